"""The commands ``compare labels`` and ``compare asking``: every finished run a line, in the end a table and a plot."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyrovae.errors import ConfigError
from pyrovae.labelling import compare_labels, simulate_asking, study_table

__all__ = ["asking", "labels", "listed", "numbers"]


def labels(data: str, counts: list[int], methods: list[str], out: Path, **how: Any) -> None:
    """Methods against the number of labels."""
    _study(functools.partial(compare_labels, data, counts, methods, **how), out)


def asking(data: str, counts: list[int], method: str, out: Path, **how: Any) -> None:
    """Asking for rows against drawing them."""
    _study(functools.partial(simulate_asking, data, counts, method, **how), out)


def numbers(option: str, text: str | None) -> list[int]:
    """What stands between commas, as ints from 1.

    Raises:
        ConfigError: for anything else, or nothing.
    """
    parts = listed(text or "")
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        received = "nothing" if text is None else repr(text)
        raise ConfigError(f"{option}: expected ints from 1 with commas between, such as 20,50, received {received}")
    return [int(part) for part in parts]


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _study(study: Callable[..., list[dict[str, Any]]], out: Path) -> None:
    new: list[dict[str, Any]] = []

    def told(run: dict[str, Any]) -> None:
        new.append(run)
        print(_words(run), flush=True)

    runs = study(out=out, told=told)
    table, picture = study_table(runs), out.with_suffix(".png")
    table.plot(picture)
    print(f"\n{_title(runs)}\n\n{table.text}\n")
    print(f"{len(runs)} runs in {out}, {len(runs) - len(new)} of them from before; plot in {picture}")


def _title(runs: list[dict[str, Any]]) -> str:
    seeds = len({run["seed"] for run in runs})
    drawn = f"mean [95 % interval] over {seeds} seeds" if seeds > 1 else "one seed"
    return f"Error on the test rows of {runs[0]['source']} in per cent, {drawn}:"


def _words(run: dict[str, Any]) -> str:
    what = f"{run['strategy']}, {run['method']}" if "strategy" in run else run["method"]
    found = f"error {100 * run['error']:.2f} %, ece {run['ece']:.3f}, log loss {run['log_loss']:.3f}"
    return f"seed {run['seed']}, {run['labels']} labels, {what}: {found}, {run['seconds']:.1f} s"
