"""What labels are worth: functions of arrays, for the classes and probabilities of any classifier."""

import math
from dataclasses import dataclass

import numpy as np

from pyrovae.errors import ConfigError

__all__ = [
    "Reliability",
    "cluster_accuracy",
    "confusion",
    "coverage_curve",
    "error_interval",
    "expected_calibration_error",
    "mean_interval",
    "reliability",
]


def error_interval(wrong: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of Clopper and Pearson for an error rate, of independent rows.

    Args:
        wrong: rows whose label is wrong.
        rows: how many there are.
        level: confidence of both bounds together.

    References:
        The use of confidence or fiducial limits illustrated in the case of the binomial (Clopper and Pearson, 1934)

    Example:
        >>> low, high = error_interval(0, 59, level=0.9)
        >>> low, round(high, 4)
        (0.0, 0.0495)
    """
    from scipy.stats import beta

    if not 0 <= wrong <= rows or rows < 1:
        raise ConfigError(f"wrong, rows: expected a part of at least one row, received {wrong!r} of {rows!r}")
    tail = (1 - _share("level", level)) / 2
    low = 0.0 if wrong == 0 else float(beta.ppf(tail, wrong, rows - wrong + 1))
    return low, 1.0 if wrong == rows else float(beta.ppf(1 - tail, wrong + 1, rows - wrong))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean, and Student's interval for it, over splits or draws of labels.

    Args:
        values: one for each, at least two for an interval; of one alone the bounds are NaN.
        level: confidence.

    Example:
        >>> tuple(round(v, 3) for v in mean_interval(np.array([1.0, 2.0, 3.0])))
        (2.0, -0.484, 4.484)
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + _share("level", level)) / 2, count - 1)) * float(values.std(ddof=1)) / count**0.5
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Reliability:
    """How often a prediction is right, by how sure it was: one entry for each bin that holds rows.

    Args:
        confidence: mean largest probability.
        accuracy: share of right predictions.
        count: rows.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, ``sum_b n_b / n |accuracy_b - confidence_b|``."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(probabilities: np.ndarray, y: np.ndarray, bins: int = 15) -> Reliability:
    """The reliability curve of the most probable class, over bins of equal width.

    Args:
        probabilities: shape ``(rows, classes)``.
        y: classes as ints, shape ``(rows,)``.
        bins: of equal width over [0, 1].

    References:
        On calibration of modern neural networks (Guo, Pleiss, Sun and Weinberger, 2017)
    """
    probabilities, y = _checked(probabilities, y)
    sure, right = probabilities.max(1), probabilities.argmax(1) == y
    place = np.minimum((sure * bins).astype(int), bins - 1)
    count, confidence, accuracy = (np.bincount(place, weights, bins) for weights in (None, sure, right))
    there = count > 0
    return Reliability(confidence[there] / count[there], accuracy[there] / count[there], count[there].astype(int))


def expected_calibration_error(probabilities: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """The mean gap between how sure predictions are and how often they are right, see :func:`reliability`.

    With few rows a perfectly calibrated classifier has one too, for each bin's accuracy fluctuates.

    Example:
        >>> round(expected_calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 6)
        0.3
    """
    return reliability(probabilities, y, bins).error


def coverage_curve(probabilities: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error of the labels that remain when the least sure ones are left open.

    Args:
        probabilities: shape ``(rows, classes)``.
        y: classes as ints.

    Returns:
        Shares of rows that get a label, rising to 1, and the error among them; rows that are equally sure come
        together.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> coverage_curve(p, np.array([0, 1]))
        (array([0.5, 1. ]), array([0. , 0.5]))
    """
    probabilities, y = _checked(probabilities, y)
    sure, wrong = probabilities.max(1), probabilities.argmax(1) != y
    order = np.argsort(-sure, kind="stable")
    count, errors = np.arange(1, len(y) + 1), wrong[order].cumsum()
    last = np.append(np.diff(sure[order]) != 0, True)
    return count[last] / len(y), errors[last] / count[last]


def confusion(y: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many rows of each class (first axis) were called what (second axis).

    Example:
        >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
        array([[1, 1],
               [0, 1]])
    """
    return np.bincount(np.asarray(y) * classes + np.asarray(predicted), minlength=classes**2).reshape(classes, classes)


def cluster_accuracy(y: np.ndarray, clusters: np.ndarray) -> float:
    """Accuracy of clusters under the best one-to-one assignment of clusters to classes (Hungarian algorithm).

    Where there are more clusters than classes, some are right for no row.

    Args:
        y: classes, any labels, shape ``(rows,)``.
        clusters: any names of clusters, shape ``(rows,)``.

    References:
        Unsupervised deep embedding for clustering analysis (Xie, Girshick and Farhadi, 2016)

    Example:
        >>> cluster_accuracy(np.array(["a", "a", "b", "b"]), np.array([7, 7, 3, 7]))
        0.75
    """
    from scipy.optimize import linear_sum_assignment

    if np.shape(y) != np.shape(clusters) or np.ndim(y) != 1 or not len(y):
        raise ConfigError(
            f"y, clusters: expected one of each for every row, received {np.shape(y)}, {np.shape(clusters)}"
        )
    classes, rows = np.unique(np.asarray(y), return_inverse=True)
    names, columns = np.unique(np.asarray(clusters), return_inverse=True)
    size = max(len(classes), len(names))
    counts = confusion(rows, columns, size)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(rows))


def _checked(probabilities: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, y = np.asarray(probabilities, dtype=np.float64), np.asarray(y)
    if probabilities.ndim != 2 or y.shape != probabilities.shape[:1] or not len(y):
        raise ConfigError(
            f"probabilities, y: expected shapes (rows, classes) and (rows,), received {probabilities.shape}, {y.shape}"
        )
    return probabilities, y


def _share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ConfigError(f"{name}: expected a number between 0 and 1, received {value!r}")
    return value
