"""What labels are worth where all are known: methods by the number of labels, and asking for rows against chance."""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrovae import plots
from pyrovae.errors import ConfigError
from pyrovae.evaluation.labels import expected_calibration_error, mean_interval
from pyrovae.labelling.asking import ask_next
from pyrovae.labelling.density import Density, Neighbourhood
from pyrovae.labelling.front import METHODS, candidates
from pyrovae.labelling.hidden import StudyRows, any_order, check_counts, draw_labels
from pyrovae.labelling.methods import Labeller, VariationalM2
from pyrovae.labelling.propagation import LatentPropagation
from pyrovae.labelling.records import Log
from pyrovae.labelling.training import sizes_for
from pyrovae.spec import closest

__all__ = [
    "STRATEGIES",
    "STUDIED",
    "StudyTable",
    "compare_labels",
    "simulate_asking",
    "study_table",
]

STUDIED = (*METHODS[:4], "propagation", *METHODS[4:])
"""Names of the methods that are compared: ``METHODS``, and labels that spread in the codes of a VAE."""

STRATEGIES = ("ask_next", "random")
"""Ways to choose the rows whose label is asked for."""

_OF_CODES = ("propagation", "m2", "smooth")
_LEAST = 1e-6  # probability in a log loss, as where methods are chosen


def compare_labels(
    data: StudyRows | str | os.PathLike[str],
    labels: Sequence[int],
    methods: Sequence[str] = METHODS,
    *,
    seeds: int = 5,
    steps: int | None = None,
    label_column: str | None = None,
    out: str | os.PathLike[str] | None = None,
    told: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train methods on draws of few labels, all other training rows unlabelled, and measure them on test rows.

    Every method has its default setting: nothing is chosen by the test rows. Labels are drawn by :func:`draw_labels`,
    the same ones for all methods; those that need a VAE share one for each seed, which sees no label. ``propagation``
    has the test rows in its graph, without their labels. scikit-learn's label spreading has a sparse graph of ten
    nearest neighbours: its memory grows with the rows, its time with their square.

    Args:
        data: rows, the name of a data set, or a labelled file.
        labels: how many are drawn.
        methods: some of ``STUDIED``.
        seeds: draws of labels, with the seeds 0, 1, ...
        steps: updates of a training; None chooses by the number of rows.
        label_column: of a CSV or Parquet file.
        out: file of JSON lines: each finished run is appended at once, and not repeated when the same study is called
            again. A last line that was cut off is dropped. One study at a time may write to it.
        told: called with each run that was not there before.

    Returns:
        A dict for each run: what it was (``labels``, ``seed``, ``method``, ``steps``, ``setting``, ``draw``), ``error``
        (share of wrong labels), ``ece`` (expected calibration error, uncalibrated), ``log_loss`` (nats per row,
        probabilities not below 1e-6), ``seconds`` and ``vae_seconds`` (of the VAE it shares with others).

    Raises:
        ConfigError: for arguments that cannot be, or a file of something else.
        DataError: for data from which nothing can be learned. Nothing is written then.

    Example:
        >>> runs = compare_labels("iris", [6, 30], ["label-spreading"], seeds=2)
        >>> [(run["labels"], run["seed"], run["method"]) for run in runs]
        [(6, 0, 'label-spreading'), (30, 0, 'label-spreading'), (6, 1, 'label-spreading'), (30, 1, 'label-spreading')]
        >>> print(study_table(runs).text)
        | labels | label-spreading |
        |---:|---:|
        | 6 | ... |
        | 30 | ... |
    """
    if not methods:
        raise ConfigError(f"methods: expected some of {', '.join(STUDIED)}, received none")
    study, log = _study(data, labels, methods, seeds, steps, label_column, out, told)
    runs = []
    for seed in range(seeds):
        for count in sorted(set(labels)):
            y, how = draw_labels(study.rows.y, count, seed)
            for method in dict.fromkeys(methods):
                key = study.key("labels", count, seed, method)
                runs.append(log.find(key) or log.add(study.run(key, {"draw": how}, y)))
    return runs


def simulate_asking(
    data: StudyRows | str | os.PathLike[str],
    labels: Sequence[int],
    method: str = "supervised",
    *,
    seeds: int = 5,
    steps: int | None = None,
    batch: int | None = None,
    label_column: str | None = None,
    out: str | os.PathLike[str] | None = None,
    told: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Ask for labels round by round, by :func:`ask_next` and at random, and measure the error on test rows.

    Both begin with the same rows, drawn at random but for one of each class. In each round the method is trained anew,
    then the labels of more rows are asked for: those that ``ask_next`` ranks first by the method's probabilities and
    the codes of a VAE, or any.

    Args:
        data: rows, the name of a data set, or a labelled file.
        labels: numbers of labels at which the error is measured; the first is drawn.
        method: one of ``STUDIED``.
        seeds: repetitions, with the seeds 0, 1, ...
        steps: updates of a training; None chooses by the number of rows.
        batch: labels that are asked for at once, at most; None asks for all up to the next number.
        label_column: of a CSV or Parquet file.
        out: as for :func:`compare_labels`.
        told: as for :func:`compare_labels`.

    Returns:
        A dict for each round, as from :func:`compare_labels`; with ``strategy``, and ``asked``, the places of the rows
        among the training rows.

    Raises:
        ConfigError: for arguments that cannot be, or a file of something else.
        DataError: for data from which nothing can be learned. Nothing is written then.

    Example:
        >>> runs = simulate_asking("iris", [4, 8], steps=20, seeds=1)
        >>> [(run["strategy"], run["labels"], len(run["asked"])) for run in runs]
        [('ask_next', 4, 4), ('ask_next', 8, 4), ('random', 4, 4), ('random', 8, 4)]
    """
    if batch is not None and batch < 1:
        raise ConfigError(f"batch: expected an int from 1, or None, received {batch!r}")
    study, log = _study(data, labels, [method], seeds, steps, label_column, out, told)
    runs, stops = [], sorted(set(labels))
    for seed in range(seeds):
        for strategy in STRATEGIES:
            known: tuple[int, ...] = ()
            for place, stop in enumerate(stops):
                how = {"strategy": strategy, "stops": stops[: place + 1], "batch": batch}
                key = study.key("asking", stop, seed, method) | how
                run = log.find(key)
                twin = None if known else log.find(key | {"strategy": STRATEGIES[0]})  # both begin alike
                if run is None and twin is not None:
                    run = log.add(twin | key)
                elif run is None:
                    asked = study.asked(strategy, known, stop, method, seed, batch)
                    run = log.add(study.run(key, {"asked": list(asked)}, study.shown(known + asked)))
                known += tuple(run["asked"])
                runs.append(run)
    return runs


@dataclass(frozen=True)
class StudyTable:
    """Means over seeds with Student's 95 % interval.

    Args:
        measure: what was averaged, such as ``"error"``.
        values: by method, or strategy, then by the number of labels: ``mean``, ``low``, ``high`` (None of one run
            alone) and ``runs``.
    """

    measure: str
    values: Mapping[str, Mapping[int, Mapping[str, Any]]]

    @property
    def text(self) -> str:
        """In Markdown: a row for each number of labels, errors in per cent."""
        lines = [f"| labels | {' | '.join(self.values)} |", "|---:" * (1 + len(self.values)) + "|"]
        for labels in sorted({labels for curve in self.values.values() for labels in curve}):
            cells = [self._cell(curve.get(labels)) for curve in self.values.values()]
            lines.append(f"| {labels} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Curves over the number of labels, see :func:`pyrovae.plots.learning_curves`.

        Args:
            path: file to write, or None.
        """
        curves = {
            name: {labels: [self._scale * v for v in self._moments(cell)] for labels, cell in curve.items()}
            for name, curve in self.values.items()
        }
        ylabel = "error on test rows (%)" if self.measure == "error" else self.measure.replace("_", " ")
        return plots.learning_curves(curves, path, ylabel=ylabel)

    @property
    def _scale(self) -> float:
        return 100.0 if self.measure == "error" else 1.0

    def _cell(self, cell: Mapping[str, Any] | None) -> str:
        if cell is None:
            return ""
        form = ".2f" if self.measure == "error" else ".3f"
        mean, *bounds = (format(self._scale * v, form) for v in self._moments(cell) if np.isfinite(v))
        return f"{mean} [{', '.join(bounds)}]" if bounds else mean

    @staticmethod
    def _moments(cell: Mapping[str, Any]) -> list[float]:
        return [np.nan if cell[key] is None else cell[key] for key in ("mean", "low", "high")]


def study_table(runs: Sequence[Mapping[str, Any]], measure: str = "error") -> StudyTable:
    """Means over seeds and their intervals, of what :func:`compare_labels` or :func:`simulate_asking` returned.

    The interval is ``mean ± t_{n-1} s / sqrt(n)`` over n seeds, cut off where no measure can be. It tells how much
    draws of labels and trainings differ, not what other test rows would give.

    Args:
        runs: of one study.
        measure: ``"error"``, ``"ece"``, ``"log_loss"`` or ``"seconds"``.

    Raises:
        ConfigError: for no runs, or a measure that they do not have.

    Example:
        >>> runs = [{"labels": 10, "method": "m2", "error": error} for error in (0.1, 0.2)]
        >>> print(study_table(runs).text)
        | labels | m2 |
        |---:|---:|
        | 10 | 15.00 [0.00, 78.53] |
    """
    if not runs or any(measure not in run for run in runs):
        raise ConfigError(f"runs: expected some with {measure!r}, as compare_labels returns them")
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        name = run.get("strategy", run.get("method", ""))
        found.setdefault(name, {}).setdefault(run["labels"], []).append(run[measure])
    most = 1.0 if measure in ("error", "ece") else np.inf
    return StudyTable(
        measure,
        {name: {labels: _summary(values, most) for labels, values in curve.items()} for name, curve in found.items()},
    )


class _Study:
    """Rows, and the VAE of one seed after the other.

    Args:
        rows: to learn from and to be tested on.
        steps: updates of a training, or None.
    """

    def __init__(self, rows: StudyRows, steps: int | None) -> None:
        self.rows, self.sizes = rows, sizes_for(len(rows.x), rows.features, steps=steps)
        self.vae = functools.lru_cache(maxsize=1)(self._vae)
        self.everywhere = functools.lru_cache(maxsize=1)(self._everywhere)
        self._last = functools.lru_cache(maxsize=1)(self._learned)

    def key(self, study: str, labels: int, seed: int, method: str) -> dict[str, Any]:
        """What makes a run another one."""
        own = {"study": study, "data": self.rows.fingerprint, "labels": labels, "seed": seed, "method": method}
        return own | {"steps": self.sizes.steps}

    def learned(self, method: str, y: np.ndarray, seed: int) -> "_Learned":
        """A method trained on labels, of which -1 is none; the last one is kept, to ask by what was measured."""
        return self._last(method, y.tobytes(), seed)

    def run(self, key: Mapping[str, Any], more: Mapping[str, Any], y: np.ndarray) -> dict[str, Any]:
        """The line of a run."""
        found, truth = self.learned(key["method"], y, key["seed"]), self.rows.test_y
        own = found.test[np.arange(len(truth)), truth]
        return {
            "source": self.rows.name,
            **key,
            **more,
            "setting": found.setting,
            "error": float((found.test.argmax(1) != truth).mean()),
            "ece": expected_calibration_error(found.test, truth),
            "log_loss": float(-np.log(np.maximum(own, _LEAST)).mean()),
            "seconds": round(found.seconds, 3),
            "vae_seconds": round(self.vae(key["seed"])[2], 3) if key["method"] in _OF_CODES else 0.0,
        }

    def shown(self, known: Sequence[int]) -> np.ndarray:
        """Labels of some rows, -1 elsewhere."""
        y, places = np.full(len(self.rows.y), -1, dtype=np.int64), np.array(known, dtype=np.int64)
        y[places] = self.rows.y[places]
        return y

    def asked(
        self, strategy: str, known: tuple[int, ...], stop: int, method: str, seed: int, batch: int | None
    ) -> tuple[int, ...]:
        """Rows to be asked about next, after the known ones."""
        if not known or strategy == "random":
            more = [row for row in any_order(self.rows.y, seed) if row not in set(known)]
            return tuple(more[: stop - len(known)])
        asked, pool = (), np.flatnonzero(self.rows.y >= 0)
        codes = self.vae(seed)[1].codes[pool]
        while len(known) + len(asked) < stop:
            now = known + asked
            count = min(stop - len(now), stop if batch is None else batch)
            p = self.learned(method, self.shown(now), seed).train()[pool]
            ranks = ask_next(p, codes, np.isin(pool, now), count)
            asked += tuple(pool[np.argsort(np.where(ranks > 0, ranks, len(ranks) + 1))[:count]].tolist())
        return asked

    def _vae(self, seed: int) -> tuple[Density, Neighbourhood, float]:
        began = time.perf_counter()
        density = Density.train(self.rows.x, self.rows.features, self.sizes, seed)
        near = Neighbourhood(density.codes(self.rows.x), LatentPropagation())
        return density, near, time.perf_counter() - began

    def _everywhere(self, seed: int) -> Neighbourhood:
        density, near, _ = self.vae(seed)
        return Neighbourhood(np.concatenate([near.codes, density.codes(self.rows.test_x)]), near.propagation)

    def _learned(self, method: str, labels: bytes, seed: int) -> "_Learned":
        if method in _OF_CODES:
            self.vae(seed)  # its time is told apart
        began, rows, y = time.perf_counter(), self.rows, np.frombuffer(labels, dtype=np.int64).copy()
        if method == "propagation":
            whole = np.concatenate([y, np.full(len(rows.test_x), -1)])
            p = self.everywhere(seed).soft_labels(whole, len(rows.classes))
            return _Learned(p[len(y) :], lambda: p[: len(y)], time.perf_counter() - began)
        labeller = self._labeller(method, seed).fit(rows.x, y)
        test = labeller.probabilities(rows.test_x)
        train = functools.partial(labeller.probabilities, rows.x)
        return _Learned(test, train, time.perf_counter() - began, str(labeller))

    def _labeller(self, method: str, seed: int) -> Labeller:
        own = self.rows.features, len(self.rows.classes), self.sizes
        vae: Any = self.vae(seed)[:2] if method in _OF_CODES else (None, None)  # the others do not look at it
        if method == "m2":  # several alphas are candidates, none of them the default
            return VariationalM2(*own, *vae, seed=seed)
        return candidates(*own, *vae, seed=seed)[method][0]


@dataclass(frozen=True, eq=False)
class _Learned:
    """What a trained method says of test rows, and if asked of training rows."""

    test: np.ndarray
    train: Callable[[], np.ndarray]
    seconds: float
    setting: str = ""


def _study(
    data: StudyRows | str | os.PathLike[str],
    labels: Sequence[int],
    methods: Sequence[str],
    seeds: int,
    steps: int | None,
    label_column: str | None,
    out: str | os.PathLike[str] | None,
    told: Callable[[dict[str, Any]], None] | None,
) -> tuple[_Study, Log]:
    """What both studies share, everything checked."""
    for method in methods:
        if method not in STUDIED:
            raise ConfigError(
                f"methods: expected some of {', '.join(STUDIED)}, received {method!r}{closest(method, STUDIED)}"
            )
    for name, value in (("seeds", seeds), ("steps", 1 if steps is None else steps)):
        if value < 1:
            raise ConfigError(f"{name}: expected an int from 1, received {value!r}")
    log = Log(out, told)
    rows = data if isinstance(data, StudyRows) else StudyRows.read(data, label_column)
    check_counts(labels, rows.counts)
    return _Study(rows, steps), log


def _summary(values: Sequence[float], most: float) -> dict[str, Any]:
    mean, low, high = mean_interval(np.array(values))
    bounds = (max(0.0, low), min(most, high)) if np.isfinite(low) else (None, None)
    return {"mean": mean, "low": bounds[0], "high": bounds[1], "runs": len(values)}
