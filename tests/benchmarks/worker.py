"""One contender in a process of its own: builds, warms up, then runs a block whenever it is told to.

    python tests/benchmarks/worker.py MODULE FACTORY SETUP_AS_JSON

Lines of JSON in both directions. First comes ``{"ready": ...}``; then each ``{"run": n}`` is answered by
``{"seconds": s}`` for n units (steps or epochs) and each ``{"memory": true}`` by ``{"bytes": b}``. Only the standard
library is imported here: the environment is the contender's.
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any


class Setup(dict):
    """What the coordinator wants, with its entries as attributes."""

    __getattr__ = dict.__getitem__


class Link:
    """The coordinator as a contender sees it: call ``lap()`` after every unit, and nothing else.

    A contender that owns its loop, such as another library's trainer, calls it from wherever it can; so whole trainers
    can be stopped between two epochs like everybody else.
    """

    def __init__(self, requests: Any, answers: Any, setup: Setup) -> None:
        self.requests, self.answers, self.setup = requests, answers, setup
        self.born = time.perf_counter()
        self.left: int | None = None  # units of this block still to run; None before the first block
        self.spent: float = 0.0
        self.since: float | None = None  # when the clock was started, None while it stands
        self.before: int | None = None  # resident bytes before a unit whose memory is asked for
        self.extra: dict[str, Any] = {}

    def lap(self) -> None:
        """One unit is done."""
        if self.left is None:
            self._send(ready=True, first=time.perf_counter() - self.born, versions=_versions(), **self.extra)
        else:
            self.left -= 1
            if self.left:
                return
            self._answer()
        self._receive()

    def tell(self, **extra: Any) -> None:
        """Say something along with being ready."""
        self.extra.update(extra)

    def pause(self) -> None:
        """What follows is no part of a unit."""
        if self.since is not None:
            self.spent += time.perf_counter() - self.since
        self.since = None

    def resume(self) -> None:
        """The next unit begins."""
        if self.since is None:
            self.since = time.perf_counter()

    def _answer(self) -> None:
        self.pause()
        if self.before is None:
            self._send(seconds=self.spent)
        else:
            self._send(bytes=_memory("VmHWM") - self.before)

    def _receive(self) -> None:
        line = self.requests.readline()
        if not line:
            raise SystemExit  # the coordinator has enough
        request = json.loads(line)
        self.left, self.spent, self.since, self.before = request.get("run", 1), 0.0, None, None
        if "memory" in request:
            self.before = _trimmed()
        self.resume()

    def _send(self, **message: Any) -> None:
        self.answers.write(json.dumps(message) + "\n")
        self.answers.flush()


def serve(unit: Callable[[], Any], link: Link) -> None:
    """Warm up one unit and run it for ever, for contenders that do not own their loop."""
    start = time.perf_counter()
    unit()
    link.tell(build=start - link.born, step=time.perf_counter() - start)
    if not link.setup.get("cold"):
        _warm(unit, link, start + 1.0)
    link.lap()
    while True:
        unit()
        link.lap()


def _warm(unit: Callable[[], Any], link: Link, end: float) -> None:
    """The loss after one update, which contenders of one mathematics share; then more units where they are short."""
    if link.setup.get("check"):
        import torch

        torch.manual_seed(1)
        link.tell(loss=float(unit()))
    while time.perf_counter() < end:
        unit()


def _trimmed() -> int:
    """Free memory is given back and the high-water mark forgotten; returns what is left, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))


def _versions() -> dict[str, str]:
    known = {"torch": "torch", "pyro": "pyro-ppl", "pyrovae": "pyrovae", "pythae": "pythae"}
    known |= {"jax": "jax", "numpyro": "numpyro"}
    return {package: metadata.version(package) for module, package in known.items() if module in sys.modules}


def main() -> None:
    # Whatever a library prints goes to stderr, from C too; the protocol keeps the real stdout for itself.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, factory, setup = sys.argv[1:]
    link = Link(sys.stdin, answers, Setup(json.loads(setup)))
    getattr(importlib.import_module(f"contenders.{module}"), factory)(link.setup, link)


if __name__ == "__main__":
    main()
