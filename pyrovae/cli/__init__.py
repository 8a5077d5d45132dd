"""The command ``pyrovae``: every error is one line on stderr, every kind of error has its own exit code."""

import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 ok, 2 usage, 3 data, 4 model file, 5 diverged, 6 resources, 130 and 143 signals."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a ± in a terminal that knows ASCII alone
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run([a for a in given if a != "--debug"], debug="--debug" in given))


def _terminate(*_: Any) -> NoReturn:
    sys.exit(143)


def _run(arguments: list[str], *, debug: bool) -> int:
    import typer

    from pyrovae.cli.commands import app
    from pyrovae.errors import PyrovaeError

    usage_error: Any = typer.BadParameter.__bases__[0]  # typer may bring its own copy of click
    try:
        code = typer.main.get_command(app)(arguments, prog_name="pyrovae", standalone_mode=False)
        sys.stdout.flush()
    except PyrovaeError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except usage_error as error:
        return _usage(error, arguments, debug=debug)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, debug=debug)
    except SystemExit as stop:
        return _fail("terminated", 143, debug=debug) if stop.code == 143 else _closed_pipe()
    except BrokenPipeError:
        return _closed_pipe()
    except OSError as error:
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 6, debug=debug)
    except Exception as error:  # a mistake of ours is one line, too
        if isinstance(error, MemoryError) or "alloc" in str(error).lower():
            return _fail("out of memory; a smaller --batch needs less", 6, debug=debug)
        what = f"{type(error).__name__}: {error}"
        return _fail(f"{what}; this should not happen, please report it with what --debug shows", 1, debug=debug)
    if code == 130:  # some versions of typer turn an interrupt into a code
        return _fail("interrupted", 130, debug=debug)
    return code if isinstance(code, int) else 0


def _closed_pipe() -> int:
    """Whoever read stdout has closed it (typer turns that into an exit of its own): no more is written, all is well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _usage(error: Any, arguments: Sequence[str], *, debug: bool) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 2
    command = error.ctx.command_path if error.ctx else "pyrovae"
    return _fail(f"{_usage_message(error, arguments)}; see {command} --help", 2, debug=debug)


def _usage_message(error: Any, arguments: Sequence[str]) -> str:
    from pyrovae.spec import closest

    kind, parameter = type(error).__name__, getattr(error, "param", None)
    if kind == "NoSuchOption":
        known = [option for p in error.ctx.command.params for option in p.opts] if error.ctx else []
        return f"{error.option_name}: there is no such option{closest(error.option_name, known)}"
    if kind == "BadParameter" and parameter is not None and parameter.opts[0].startswith("--"):
        option, expected = parameter.opts[0], "an int" if "integer" in str(error.message) else "a number"
        return f"{option}: expected {expected}, received {_received(option, arguments)!r}"
    message = re.sub(r"\.? Did you mean (.*)\?", r" (did you mean \1?)", error.format_message())
    return message[:1].lower() + message[1:].rstrip(".")


def _received(option: str, arguments: Sequence[str]) -> str:
    """What was written after an option, or behind its ``=``."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else following
    return ""


def _fail(message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # one line, and no control character of a file's name or cell reaches the terminal
    clean = "".join(c if c.isprintable() else " " for c in message)
    print(f"pyrovae: error: {' '.join(clean.split())}", file=sys.stderr)
    return code
