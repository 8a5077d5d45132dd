"""Methods beside each other, on labels that none of them was given."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyrovae.errors import ConfigError, DataError
from pyrovae.evaluation.labels import error_interval, mean_interval
from pyrovae.labelling.methods import Labeller

__all__ = ["Comparison", "Trial", "compare_labellers", "label_folds", "learning_curve", "nested_order"]

FEWEST = 40  # labels, from which a part of them tells something
_SHARES = (0.25, 0.5)
_CLEAR = 0.025  # of the sign test


@dataclass(frozen=True)
class Trial:
    """A method in its best setting, on the held-out labels.

    Args:
        labeller: untrained, of that setting.
        setting: in words.
        probabilities: of the held-out rows, shape ``(rows, classes)``.
        errors: share of wrong labels in every fold.
        wrong: of all held-out rows.
        log_loss: mean over them.
        seconds: per training.
    """

    labeller: Labeller
    setting: str
    probabilities: np.ndarray
    errors: np.ndarray
    wrong: int
    log_loss: float
    seconds: float


@dataclass
class Comparison:
    """What methods are worth on held-out labels.

    Args:
        rows: places of the labels that were held out once, in the table.
        y: their classes.
        folds: the fold in which each was held out.
        trials: by method, the simplest first.
        skipped: methods that were left out, and why.
    """

    rows: np.ndarray
    y: np.ndarray
    folds: np.ndarray
    trials: dict[str, Trial] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def best(self, among: Sequence[str] | None = None) -> str | None:
        """The method with the fewest wrong labels, the simplest of several; None where there is none.

        Args:
            among: methods to choose from.
        """
        names = [name for name in self.trials if among is None or name in among]
        return min(names, key=lambda name: self.trials[name].wrong, default=None)

    def split(self, *, unlabelled: bool) -> list[str]:
        """The methods that use rows without a label, or the others."""
        return [name for name, trial in self.trials.items() if trial.labeller.uses_unlabelled == unlabelled]

    def interval(self, name: str) -> tuple[float, float]:
        """Of a method's error: Student's over the folds, within [0, 1], or the exact binomial one if that is wider.

        The folds' errors are not independent, for they share labels to learn from: take it as a rough one.
        """
        trial = self.trials[name]
        exact = error_interval(trial.wrong, len(self.y))
        _, low, high = mean_interval(trial.errors)
        if not np.isfinite(low):
            return exact
        return max(0.0, min(low, exact[0])), min(1.0, max(high, exact[1]))

    def difference(self, name: str, other: str) -> tuple[float, float, float]:
        """Mean of ``error of name - error of other`` over the folds, and Student's interval."""
        return mean_interval(self.trials[name].errors - self.trials[other].errors)


def label_folds(y: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """The fold in which each label is held out, -1 for rows that never are.

    Each class is spread over the folds. The only label of a class is never held out, for it could not be learned then.

    Args:
        y: ints, -1 where a label is missing.
        folds: how many; fewer where there are not as many labels.
        seed: of the assignment.

    Example:
        >>> label_folds(np.array([0, 0, 1, 1, 2, -1]), 2).tolist()[4:]
        [-1, -1]
    """
    found = np.full(len(y), -1)
    rng, start = np.random.default_rng(seed), 0
    several = [rows for rows in (np.flatnonzero(y == k) for k in np.unique(y[y >= 0])) if len(rows) > 1]
    count = min(folds, sum(map(len, several)))
    for rows in several:
        found[rng.permutation(rows)] = (start + np.arange(len(rows))) % count
        start += len(rows)
    return found


def compare_labellers(
    methods: Mapping[str, Sequence[Labeller]],
    x: np.ndarray,
    y: np.ndarray,
    *,
    folds: int = 5,
    seed: int = 0,
    minutes: float | None = None,
) -> Comparison:
    """Every method in every setting, trained on all rows and the labels of all folds but one.

    The setting of a method is the one with the fewest wrong labels, then the least log loss, on the same held-out
    labels that tell its error, which is slightly optimistic.

    Args:
        methods: untrained labellers by name, one for each setting, the simplest method first.
        x: float32, shape ``(rows, D)``.
        y: ints, -1 where a label is missing.
        folds: how often a fifth, or so, of the labels is held out.
        seed: of the folds.
        minutes: for all; a method that would take longer than what is left is left out, but for the first one.

    Raises:
        ConfigError: for fewer than two folds.
        DataError: without labels.
    """
    if folds < 2:
        raise ConfigError(f"folds: expected an int from 2, received {folds!r}")
    if not (y >= 0).any():
        raise DataError("y: expected labels, received none")
    fold = label_folds(y, folds, seed)
    held = np.flatnonzero(fold >= 0)
    found = Comparison(held, y[held], fold[held])
    end = None if minutes is None else time.perf_counter() + 60 * minutes
    if not len(held):
        return found
    for place, (name, labellers) in enumerate(methods.items()):
        trial = _trial(labellers, x, y, found, end if place else None)
        if isinstance(trial, Trial):
            found.trials[name] = trial
        else:
            found.skipped[name] = trial
    return found


def nested_order(y: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rows with a label in an order of which every beginning holds the classes in their shares, and each once at least.

    Args:
        y: ints, -1 where a label is missing.
        seed: of the order within a class.

    Example:
        >>> y = np.array([0, 0, 0, 0, 1, 1, -1])
        >>> y[nested_order(y)].tolist()
        [0, 1, 0, 0, 1, 0]
    """
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(np.flatnonzero(y == k)) for k in np.unique(y[y >= 0])]
    place = np.concatenate([np.arange(len(rows)) / len(rows) for rows in classes])
    return np.concatenate(classes)[np.argsort(place, kind="stable")]


def learning_curve(found: Comparison, name: str, x: np.ndarray, y: np.ndarray, seed: int = 0) -> dict[str, Any] | None:
    """Error of a method, in its best setting, when it is given a quarter and a half of the labels; and nearly all.

    The quarter is within the half. What a part leaves is held out, so that few labels are judged on many; the last
    point is that of the comparison. It costs two trainings.

    Args:
        found: the comparison.
        name: of the method.
        x: float32, shape ``(rows, D)``.
        y: ints, -1 where a label is missing.
        seed: of the parts.

    Returns:
        Lists of ``labels`` learned from, ``held_out`` labels, ``error``, and its exact binomial interval, ``low`` and
        ``high``, which does not know that other labels would have been learned from differently;
        ``fell``, whether the error with all labels is clearly below that with the fewest, by a sign test on the rows
        that both were asked about. None where there are fewer than 40 labels, or too few for a part.
    """
    count, classes = int((y >= 0).sum()), len(np.unique(y[y >= 0]))
    shares = [share for share in _SHARES if round(share * count) >= classes]
    if count < FEWEST or not shares or name not in found.trials:
        return None
    trial, order = found.trials[name], nested_order(y, seed)
    full = np.full(len(y), -1)
    full[found.rows] = trial.probabilities.argmax(1)
    curve: dict[str, Any] = {key: [] for key in ("labels", "held_out", "error", "low", "high")}
    gained = lost = 0
    for share in shares:
        kept, held = np.split(order, [round(share * count)])
        part = np.full(len(y), -1)
        part[kept] = y[kept]
        wrong = copy.copy(trial.labeller).fit(x, part).probabilities(x[held]).argmax(1) != y[held]
        _add(curve, len(kept), len(held), int(wrong.sum()))
        if share == shares[0]:
            right = full[held] == y[held]
            gained, lost = int((wrong & right).sum()), int((~wrong & ~right).sum())
    learned = count - round(len(found.y) / (found.folds.max() + 1))
    _add(curve, learned, len(found.y), trial.wrong)
    return curve | {"fell": _more_often(gained, lost)}


def _add(curve: dict[str, Any], labels: int, held: int, wrong: int) -> None:
    for key, value in zip(curve, (labels, held, wrong / held, *error_interval(wrong, held)), strict=True):
        curve[key].append(value)


def _more_often(first: int, second: int) -> bool:
    """Whether one of two things that are equally likely came more often than chance has it."""
    from scipy.stats import binomtest

    return first > second and float(binomtest(first, first + second, alternative="greater").pvalue) < _CLEAR


def _trial(
    labellers: Sequence[Labeller], x: np.ndarray, y: np.ndarray, split: Comparison, end: float | None
) -> Trial | str:
    tried: list[tuple[Labeller, dict[float, np.ndarray]]] = []
    began, count, total = time.perf_counter(), 0, len(labellers) * (split.folds.max() + 1)
    for labeller in labellers:
        whole: dict[float, np.ndarray] = {}
        for rows, inside in _folds(split):
            spent = time.perf_counter() - began
            if end is not None and began + spent * total / max(count, 1) > end:
                return f"no time was left: it would have taken about {spent * total / max(count, 1) / 60:.1f} minutes"
            part = labeller.by_length(x, np.where(np.isin(np.arange(len(y)), rows), -1, y), x[rows])
            for length, probabilities in part.items():
                into = whole.setdefault(length, np.full((len(split.y), probabilities.shape[1]), np.nan))
                into[inside] = probabilities
            count += 1
        tried.append((labeller, whole))
    seconds = float((time.perf_counter() - began) / total)
    trials = [
        _judged(labeller, length, whole, split, seconds)
        for labeller, lengths in tried
        for length, whole in lengths.items()
        if np.isfinite(whole).all()
    ]
    return min(trials, key=lambda trial: (trial.wrong, trial.log_loss))


def _folds(split: Comparison) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places in the table, and among the held-out rows, of every fold."""
    for fold in range(split.folds.max() + 1):
        inside = split.folds == fold
        yield split.rows[inside], inside


def _judged(labeller: Labeller, length: float, probabilities: np.ndarray, split: Comparison, seconds: float) -> Trial:
    wrong = probabilities.argmax(1) != split.y
    errors = np.array([wrong[inside].mean() for _, inside in _folds(split)])
    own = probabilities[np.arange(len(split.y)), split.y]
    words = [str(labeller)] if str(labeller) else []
    if labeller.ours:
        words.append("the warm-up alone" if length == 0 else f"{100 * length:.0f} % of the training")
    chosen = labeller.of_length(length)
    loss = float(-np.log(np.maximum(own, 1e-6)).mean())
    return Trial(chosen, ", ".join(words), probabilities, errors, int(wrong.sum()), loss, seconds)
