"""One command, all tables: times of pyrovae's step and epoch beside hand-written PyTorch, Pyro and other libraries.

    python tests/benchmarks/table.py --out results.jsonl                    # everything this environment can run
    python tests/benchmarks/table.py --jobs vae,m2 --batch 128 --blocks 5   # a quick look
    python tests/benchmarks/table.py --jobs epoch --peer numpyro=PYTHON --peer pythae=PYTHON --pyro-examples DIR
    python tests/benchmarks/table.py --show results.jsonl [--reference "SVI.step"]

PYTHON is the interpreter of an environment with the peer in it (numpyro and jax; pythae and torch), DIR a checkout of
Pyro's repository. Rows are MNIST's, binarised once, found as ``pyrovae.data.load("mnist")`` finds them.

Shared machines have slow phases, so absolute times mean little. Every contender is a process of its own that is built,
warmed up and then sleeps until it is its turn; one runs at a time. A round is one block of every contender, in an order
that is rotated from round to round. A ratio is taken round by round to the job's first contender; the table has its
median, with the quartiles in brackets. Whoever could not run is in the table, with the reason.

With --out, every finished job at one batch size becomes lines of JSON, one for each contender, and is not run again
by the next call unless someone did not run and --again is given.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import JOBS, Contender, Job

HERE = Path(__file__).parent
EXTRA = {"bytes": ("extra memory, MiB", 2**-20), "first_step_ms": ("first step alone, ms", 1)}  # column, factor
BUILD_LIMIT, BLOCK_LIMIT = 900, 600  # seconds until a contender counts as hanging


class NotRun(Exception):
    """Why a contender has no time, in a line."""


class Worker:
    """A contender's process, asleep between its blocks."""

    def __init__(self, contender: Contender, setup: dict[str, Any], options: argparse.Namespace, folder: Path) -> None:
        self.contender, self.setup, self.folder = contender, setup, folder
        self.python = _interpreter(contender, options)
        self.log = Path(tempfile.mkstemp(".log", dir=folder)[1])
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}
        self.units = 1

    def begin(self, seconds: float) -> None:
        """Build and warm up, and find how many units make a block."""
        self._spawn()
        self.ready = self._read(BUILD_LIMIT)
        self.units, times = 1, [self.block()]
        while len(times) < 5 and sum(times) < seconds:  # one alone may have met a hiccup
            times.append(self.block())
        self.units = max(1, round(seconds / min(times)))

    def block(self) -> float:
        """Seconds per unit over one block."""
        return self._ask(run=self.units)["seconds"] / self.units

    def memory(self) -> int:
        """Bytes that one unit needs over what is held between units, at its peak."""
        return self._ask(memory=True)["bytes"]

    def about(self) -> dict[str, Any]:
        """What is known besides the times."""
        return {k: self.ready[k] for k in ("versions", "loss") if k in self.ready}

    def end(self) -> None:
        """Stop the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _spawn(self, **variables: str) -> None:
        kept = _environment()
        module, factory = self.contender.factory.split(".")
        command = [self.python, str(HERE / "worker.py"), module, factory, json.dumps(self.setup)]
        variables = kept | {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor")} | variables
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with self.log.open("w") as log:
            try:
                self.process = subprocess.Popen(command, stderr=log, env=variables, **pipes)
            except OSError as error:
                raise NotRun(f"{self.python}: {error.strerror}") from None

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise NotRun(self._last_words()) from None
        return self._read(BLOCK_LIMIT)

    def _read(self, limit: float) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not line:
            raise NotRun(f"no answer within {limit} s" if late else self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        status = self.process.wait(10) if self.process else None
        return lines[-1][:300] if lines else f"it died without a word, exit status {status}"


class Starter(Worker):
    """A contender whose block is a new process, from its start to the end of its first unit.

    Attributes:
        steps: the first units alone, in seconds: capture, compilation and one update.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: list[float] = []

    def begin(self, seconds: float) -> None:
        """One run that does not count: files and caches are warm from then on."""
        self.block()
        self.steps.clear()

    def about(self) -> dict[str, Any]:
        """Also the median of the first units."""
        steps = {"first_step_ms": 1e3 * statistics.median(self.steps)} if self.steps else {}
        return super().about() | steps

    def block(self) -> float:
        """Seconds from start to the first unit's end, or to the end of the code."""
        if self.contender.code is not None:
            return self._run_code()
        cache = tempfile.mkdtemp(dir=self.folder) if self.contender.cache == "empty" else str(self.folder / "inductor")
        start = time.perf_counter()
        self._spawn(TORCHINDUCTOR_CACHE_DIR=cache)
        try:
            self.ready = self._read(BUILD_LIMIT)
            seconds = time.perf_counter() - start
        finally:
            self.end()
            if self.contender.cache == "empty":
                shutil.rmtree(cache, ignore_errors=True)
        self.steps.append(self.ready["step"])
        return seconds

    def _run_code(self) -> float:
        start = time.perf_counter()
        command: dict[str, Any] = {"args": [self.python, "-c", self.contender.code], "env": _environment()}
        done = subprocess.run(**command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotRun(done.stderr.strip().splitlines()[-1][:300])
        return time.perf_counter() - start


def _environment() -> dict[str, str]:
    """Libraries choose threads themselves or are told by the setup, and keep byte code, whatever the shell says."""
    shell = ("OMP_", "MKL_", "TORCHINDUCTOR_", "PYTHONDONTWRITEBYTECODE")
    return {k: v for k, v in os.environ.items() if not k.startswith(shell)}


def _interpreter(contender: Contender, options: argparse.Namespace) -> str:
    if contender.peer == "examples":
        if options.pyro_examples is None:
            raise NotRun("no --pyro-examples DIR given")
        return sys.executable
    if contender.peer is not None:
        if contender.peer not in options.peer:
            raise NotRun(f"no --peer {contender.peer}=PYTHON given")
        return options.peer[contender.peer]
    return sys.executable


class Round:
    """The contenders of one job at one batch size, and what came of each."""

    def __init__(self, job: Job, batch: int, options: argparse.Namespace, folder: Path) -> None:
        self.job, self.batch, self.options, self.folder = job, batch, options, folder
        self.workers: dict[str, Worker] = {}
        self.seconds: dict[str, dict[int, float]] = {}
        self.extra: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """All blocks of all contenders."""
        contenders = [c for c in self.job.contenders if c.batches is None or self.batch in c.batches]
        try:
            for contender in contenders:
                self._begin(contender)
            for number in range(min(self.options.blocks, self.job.blocks or self.options.blocks)):
                self._round(number)
            for name, worker in self.workers.items():
                self.extra[name] |= worker.about()
            if self.job.memory:
                self._memory()
        finally:
            for worker in self.workers.values():
                worker.end()

    def records(self) -> list[dict[str, Any]]:
        """One for each contender, the reference first."""
        reference = next(iter(self.seconds))
        return [self._record(name, reference) for name in self.seconds]

    def _begin(self, contender: Contender) -> None:
        name = contender.name
        self.seconds[name], self.extra[name] = {}, {}
        _say(f"  building {name}")
        try:
            worker = (Starter if contender.fresh else Worker)(
                contender, self._setup(contender), self.options, self.folder
            )
            self.workers[name] = worker
            worker.begin(self.options.seconds_per_block)
            self._check_loss(name)
            self.extra[name] |= worker.about()
        except NotRun as reason:
            self._drop(name, reason)

    def _setup(self, contender: Contender) -> dict[str, Any]:
        shapes = dict(self.job.shapes)
        return {
            "batch": self.batch,
            "rows": min(self.options.rows, shapes.pop("limit", self.options.rows)),
            "threads": self.options.threads,
            "data": str(self.folder),
            "examples": self.options.pyro_examples,
            "cold": contender.fresh,
            "check": self.job.tolerance is not None,
            **shapes,
            **contender.options,
        }

    def _check_loss(self, name: str) -> None:
        """Contenders that do not compute the same thing are not compared."""
        reference = next(iter(self.seconds))
        loss, expected = self.workers[name].ready.get("loss"), self.extra[reference].get("loss")
        if self.job.tolerance is None or loss is None or expected is None:
            return
        if not abs(loss - expected) <= self.job.tolerance * abs(expected):
            raise NotRun(f"its loss after one update is {loss:.4f}, that of {reference} {expected:.4f}")

    def _round(self, number: int) -> None:
        names = list(self.workers)
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            self._attempt(name, lambda worker: worker.block(), self.seconds[name], number)
        _say(
            f"  round {number + 1}: " + ", ".join(f"{1e3 * self.seconds[n][number]:.3g}" for n in self.workers) + " ms"
        )

    def _memory(self) -> None:
        for name in list(self.workers):
            self._attempt(name, lambda worker: worker.memory(), self.extra[name], "bytes")

    def _attempt(self, name: str, what: Callable[[Worker], float], results: dict[Any, Any], key: Any) -> None:
        try:
            results[key] = what(self.workers[name])
        except NotRun as reason:
            self._drop(name, reason)

    def _drop(self, name: str, reason: NotRun) -> None:
        _say(f"  not run: {name}: {reason}")
        self.extra[name]["not_run"] = str(reason)
        self.seconds[name].clear()
        if name in self.workers:
            self.workers.pop(name).end()

    def _record(self, name: str, reference: str) -> dict[str, Any]:
        seconds = self.seconds[name]
        record = {"contender": name, "reference": reference, "unit": self.job.unit, **self.extra[name]}
        if seconds:
            record["ms"] = 1e3 * statistics.median(seconds.values())
            record["blocks"] = len(seconds)
            record["ms_of_blocks"] = {number: round(1e3 * s, 6) for number, s in seconds.items()}
            record |= _ratio(seconds, self.seconds[reference])
        return record


def _ratio(blocks: dict[Any, float], reference: dict[Any, float]) -> dict[str, float]:
    """Median and quartiles of the ratio, round by round; empty without rounds in common."""
    ratios = [blocks[number] / reference[number] for number in blocks.keys() & reference.keys()]
    if not ratios:
        return {}
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    return {"ratio": middle, "q25": low, "q75": high}


def write_rows(folder: Path) -> None:
    """The training images for workers in any environment: grey, labels, and binarised once by a fixed draw."""
    import numpy as np

    import pyrovae as pv

    train = pv.data.load("mnist").train
    grey = np.ascontiguousarray(np.asarray(train.x)).reshape(len(train.x), -1)
    noise = np.random.default_rng(0).integers(0, 255, grey.shape, dtype=np.uint8)
    np.save(folder / "grey.npy", grey)
    np.save(folder / "labels.npy", np.asarray(train.y))
    np.save(folder / "binary.npy", (noise < grey).astype(np.uint8))


def show(records: list[dict[str, Any]], reference: str | None = None) -> str:
    """Markdown: a table for each job, a column for each batch size."""
    latest = {(r["job"], r["batch"], r["contender"]): r for r in records}
    tables = []
    for name, job in JOBS.items():
        batches = sorted({batch for key, batch, _ in latest if key == name})
        if batches:
            tables.append(_table(name, job, batches, latest, reference))
    return "\n\n".join([*tables, *_conditions(records)])


def _table(name: str, job: Job, batches: list[int], latest: dict[Any, dict[str, Any]], reference: str | None) -> str:
    contenders = list(dict.fromkeys(c for key, _, c in latest if key == name))
    many = job.batch is None
    heads = [f"batch {b}: ms (ratio)" if many else f"ms per {job.unit} (ratio)" for b in batches]
    columns = [key for key in EXTRA if any(key in latest.get((name, b, c), {}) for b in batches for c in contenders)]
    heads += [EXTRA[key][0] for key in columns]
    rows, reasons = [], {}
    for contender in contenders:
        cells = []
        for batch in batches:
            record = latest.get((name, batch, contender))
            base = latest.get((name, batch, reference)) if reference else None
            cells.append("" if record is None else _cell(record, base))
            if record and "not_run" in record:
                reasons[f"Not run: {contender}: {record['not_run']}"] = None
        last = latest.get((name, batches[-1], contender), {})
        cells += [f"{last[key] * EXTRA[key][1]:.0f}" if key in last else "" for key in columns]
        rows.append([contender, *cells])
    lines = [[f"{job.unit}", *heads], ["---"] * (1 + len(heads)), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([f"**{name}**: {job.title}", text, *reasons])


def _cell(record: dict[str, Any], base: dict[str, Any] | None) -> str:
    if "not_run" in record:
        return "not run"
    ratio = record if base is None else _ratio(record["ms_of_blocks"], base.get("ms_of_blocks", {}))
    time = f"{record['ms']:.0f}" if record["ms"] >= 1000 else f"{record['ms']:.3g}"
    if "ratio" not in ratio:
        return time
    middle, low, high = (f"{ratio[k]:.2f}" if ratio[k] > 0.1 else f"{ratio[k]:.2g}" for k in ("ratio", "q25", "q75"))
    return f"{time} ({middle}; {low} to {high})"


def _conditions(records: list[dict[str, Any]]) -> list[str]:
    """Where and when, each different answer once."""
    versions = {f"{k} {v}" for r in records for k, v in r.get("versions", {}).items()}
    machines = {f"{r['cpu']}, {r['threads']} threads, {r['date']}" for r in records}
    return ["; ".join(sorted(machines)) + ". " + ", ".join(sorted(versions)) + "."] if records else []


def read(path: str | None) -> list[dict[str, Any]]:
    """The records of a file that may not exist yet."""
    if path is None or not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]


def _finished(records: list[dict[str, Any]], job: str, batch: int, *, again: bool) -> bool:
    latest = {r["contender"]: r for r in records if (r["job"], r["batch"]) == (job, batch)}
    return bool(latest) and not (again and any("not_run" in r for r in latest.values()))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(JOBS), help="default: all (%(default)s)")
    parser.add_argument("--batch", default="32,128,512,2048", help="sizes of the jobs vae and epoch (%(default)s)")
    parser.add_argument("--blocks", type=int, default=20, help="rounds, fewer where a unit is long (%(default)s)")
    parser.add_argument("--seconds-per-block", type=float, default=0.3, help="about (%(default)s)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="numpyro or pythae")
    parser.add_argument("--pyro-examples", metavar="DIR", help="a checkout of Pyro's repository")
    parser.add_argument("--out", metavar="FILE", help="append results, and skip what is there")
    parser.add_argument("--again", action="store_true", help="with --out: run again where someone did not run")
    parser.add_argument("--show", metavar="FILE", help="only print the tables of these results")
    parser.add_argument("--reference", metavar="CONTENDER", help="with --show: ratios to another contender")
    parser.add_argument("--rows", type=int, default=60_000, help="of the training data (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (%(default)s)")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="written into the results")
    options = parser.parse_args()
    options.jobs = options.jobs.split(",")
    options.batch = [int(size) for size in options.batch.split(",")]
    options.peer = dict(peer.split("=", 1) for peer in options.peer)
    if unknown := set(options.jobs) - JOBS.keys():
        parser.error(f"--jobs: unknown: {', '.join(sorted(unknown))}; known: {', '.join(JOBS)}")
    return options


def main() -> None:
    options = _options()
    if options.show:
        print(show(read(options.show), options.reference))
        return
    records = read(options.out)
    where = {"threads": options.threads, "cpu": _cpu(), "date": options.date, "rows": options.rows}
    units = [(name, b) for name in options.jobs for b in ([JOBS[name].batch] if JOBS[name].batch else options.batch)]
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder))
        for name, batch in units:
            if _finished(records, name, batch, again=options.again):
                _say(f"{name}, batch {batch}: there already")
                continue
            _say(f"{name}, batch {batch}")
            competition = Round(JOBS[name], batch, options, Path(folder))
            competition.run()
            fresh = [{"job": name, "batch": batch, **record, **where} for record in competition.records()]
            records += fresh
            if options.out:
                with open(options.out, "a", encoding="utf-8") as file:
                    file.writelines(json.dumps(record) + "\n" for record in fresh)
    print(show(records))


if __name__ == "__main__":
    main()
