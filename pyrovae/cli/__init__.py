"""The command ``pyrovae``: every error is one line on stderr, every kind of error has its own exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 ok, 2 usage, 3 data, 4 model file, 5 diverged, 6 resources, 130 and 143 signals."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(_run([a for a in given if a != "--debug"], debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:
    import typer

    from pyrovae.cli.commands import app
    from pyrovae.errors import PyrovaeError

    usage_error: Any = typer.BadParameter.__bases__[0]  # typer may bring its own copy of click
    try:
        code = typer.main.get_command(app)(arguments, prog_name="pyrovae", standalone_mode=False)
    except PyrovaeError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except usage_error as error:
        return _usage(error, debug=debug)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; what was learned so far is in the run directory", 130, debug=debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read stdout has closed it
        return 0
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error).lower():
            raise
        return _fail("out of memory; a smaller --batch needs less", 6, debug=debug)
    except OSError as error:
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 6, debug=debug)
    return code if isinstance(code, int) else 0


def _usage(error: Any, *, debug: bool) -> int:
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message)
        return 2
    return _fail(f"{message[:1].lower()}{message[1:].rstrip('.')}; see pyrovae --help", 2, debug=debug)


def _fail(message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # one line, and no control character of a file's name or cell reaches the terminal
    clean = "".join(c if c.isprintable() else " " for c in message)
    print(f"pyrovae: error: {' '.join(clean.split())}", file=sys.stderr)
    return code
