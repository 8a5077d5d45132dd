"""Finished runs, one JSON line each, so that a study goes on where it was stopped."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyrovae.errors import ConfigError

__all__ = ["Log"]


class Log:
    """Finished runs, in a file of JSON lines.

    Args:
        path: of the file, or None.
        told: called with each run that is added.

    Raises:
        ConfigError: for a path that no file can have, or a file of something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None, told: Callable[[dict[str, Any]], None] | None) -> None:
        self.path, self.told = None if path is None else Path(path), told
        if self.path is not None and (self.path.is_dir() or not self.path.parent.is_dir()):
            raise ConfigError(f"{self.path}: expected the path of a file, in a directory that is there")
        content = self.path.read_bytes() if self.path is not None and self.path.exists() else b""
        self.end, self.size = content.rfind(b"\n") + 1, len(content)
        if content[self.end :].strip() and not content[self.end :].startswith(b"{"):
            raise self._foreign(content.count(b"\n") + 1)
        self.runs = [self._run(i, line) for i, line in enumerate(content[: self.end].splitlines()) if line.strip()]

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The finished run of a key."""
        return next((run for run in self.runs if all(run.get(name, key) == key[name] for name in key)), None)

    def add(self, run: dict[str, Any]) -> dict[str, Any]:
        """Keep a run, and write it down."""
        if self.path is not None:
            if self.size > self.end:  # what a kill left of a line
                os.truncate(self.path, self.end)
                self.size = self.end
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
        self.runs.append(run)
        if self.told is not None:
            self.told(run)
        return run

    def _run(self, place: int, line: bytes) -> dict[str, Any]:
        try:
            run = json.loads(line)
        except ValueError:
            run = None
        if not isinstance(run, dict) or "study" not in run:
            raise self._foreign(place + 1)
        return run

    def _foreign(self, line: int) -> ConfigError:
        return ConfigError(f"{self.path}: line {line} is no finished run: remove the line, or choose another file")
