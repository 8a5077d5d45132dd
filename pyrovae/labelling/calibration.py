"""From scores to probabilities that mean something: temperature, sets that cover, labels that are safe."""

import math
from dataclasses import dataclass

import numpy as np

from pyrovae.errors import ConfigError
from pyrovae.evaluation.labels import error_interval

__all__ = ["Abstention", "ConformalSets", "Temperature"]

_DOUBT = 0.01  # part of every row that is spread over the classes: neighbours' votes say 0 and 1, and mean neither
_STEPS = 20  # set sizes that are tried
_STARTS = 4  # of them from which a sequence of tests starts


@dataclass(frozen=True)
class Temperature:
    r"""Probabilities ``p_k^{1/T} / sum_j p_j^{1/T}``: less sure than before for T above 1, in the same order.

    One part in a hundred of p is first spread evenly over the classes, so that a 0 says something finite.

    Args:
        value: T.

    References:
        On calibration of modern neural networks (Guo, Pleiss, Sun and Weinberger, 2017);
        Probabilistic outputs for support vector machines (Platt, 1999), there the smoothed targets

    Example:
        >>> Temperature(2.0)(np.array([[0.9, 0.1]])).round(2)
        array([[0.75, 0.25]])
    """

    value: float = 1.0

    @classmethod
    def fit(cls, probabilities: np.ndarray, y: np.ndarray) -> "Temperature":
        """The T of least log loss on held-out labels.

        Of n labels each target is ``n / (n + 1)`` for the label and ``1 / (n + 1)`` spread evenly over the classes, so
        that a few labels that are all right do not make anything certain.

        Args:
            probabilities: of rows that were not trained on, shape ``(rows, classes)``.
            y: their classes.
        """
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax

        logits, (rows, classes) = _log(probabilities), np.shape(probabilities)
        targets = (np.eye(classes)[np.asarray(y)] * rows + 1 / classes) / (rows + 1)

        def loss(log_t: float) -> float:
            return -(targets * log_softmax(logits / math.exp(log_t), axis=1)).sum() / rows

        # the loss is convex in 1/T, so that it has one minimum
        found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(50)), method="bounded")
        return cls(math.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, shape ``(rows, classes)``."""
        from scipy.special import softmax

        return softmax(_log(probabilities) / self.value, axis=1)


@dataclass(frozen=True)
class ConformalSets:
    r"""Sets of classes that hold the right one with a chosen probability: ``{k: p_k >= threshold}``.

    With the threshold taken from n held-out labels, ``coverage <= P(y in set) < coverage + 1 / (n + 1)`` for a new row
    drawn as they were, on average over classes and rows; whatever the probabilities are worth. Of all sets of classes
    these are the smallest on average. A set may be empty: no class is as probable as the right one is in 95 of 100
    labelled rows; it may hold all classes, and does where n is too small.

    Args:
        threshold: the smallest probability that enters.

    References:
        Least ambiguous set-valued classifiers with bounded error levels (Sadinle, Lei and Wasserman, 2019);
        Algorithmic learning in a random world (Vovk, Gammerman and Shafer, 2005)

    Example:
        >>> sets = ConformalSets.fit(np.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]), np.array([0, 0, 0]), 0.5)
        >>> sets(np.array([[0.8, 0.2], [0.5, 0.5]]))
        array([[ True, False],
               [False, False]])
    """

    threshold: float = 0.0

    @classmethod
    def fit(cls, probabilities: np.ndarray, y: np.ndarray, coverage: float) -> "ConformalSets":
        """The ``ceil((n + 1) coverage)``-th largest probability of a label is the threshold.

        Args:
            probabilities: of rows that were not trained on, shape ``(rows, classes)``.
            y: their classes.
            coverage: wanted, between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise ConfigError(f"coverage: expected a number between 0 and 1, received {coverage!r}")
        own = np.sort(np.asarray(probabilities)[np.arange(len(y)), np.asarray(y)])[::-1]
        rank = math.ceil((len(own) + 1) * coverage - 1e-9)
        return cls(float(own[rank - 1]) if rank <= len(own) else 0.0)

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Which classes are in the set, booleans of shape ``(rows, classes)``."""
        return np.asarray(probabilities) >= self.threshold


@dataclass(frozen=True)
class Abstention:
    r"""Rows whose label is not safe: those whose largest probability is below a threshold.

    Among rows above it the error is at most ``error_rate`` with the chosen confidence, for rows drawn as the held-out
    ones were. Twenty thresholds are tried against the exact binomial bound, from the strictest one that could ever pass
    (``log(1 - confidence) / log(1 - error_rate)`` rows, 59 at 5 % and 95 %) to the one that takes all rows. So that
    trying many does not break the promise, the next one is tried only where the last one passed, from each of four
    starts with a quarter of the doubt; from one start where labels are too few for that.

    Args:
        threshold: the smallest probability that is safe; infinite where none can be shown to be.
        accepted: held-out rows above it.
        wrong: of these.
        bound: upper bound of the error among them; NaN where none is accepted.

    References:
        Selective classification for deep neural networks (Geifman and El-Yaniv, 2017);
        Learn then test: calibrating predictive algorithms to achieve risk control (Angelopoulos et al., 2021), there
        the fixed sequence of tests

    Example:
        >>> safe = Abstention.fit(np.tile([0.9, 0.1], (60, 1)), np.zeros(60, dtype=int), error_rate=0.05)
        >>> safe.threshold, safe(np.array([[0.95, 0.05], [0.8, 0.2]]))
        (0.9, array([False,  True]))
    """

    threshold: float = math.inf
    accepted: int = 0
    wrong: int = 0
    bound: float = math.nan

    @classmethod
    def fit(cls, probabilities: np.ndarray, y: np.ndarray, error_rate: float, confidence: float = 0.95) -> "Abstention":
        """The lowest threshold that passes.

        Args:
            probabilities: of rows that were not trained on, shape ``(rows, classes)``.
            y: their classes.
            error_rate: allowed among rows that get a label.
            confidence: of the promise.
        """
        starts, fewest = _STARTS, cls.fewest(error_rate, 1 - (1 - confidence) / _STARTS)
        if len(probabilities) < fewest:
            starts, fewest = 1, cls.fewest(error_rate, confidence)
        sure, wrong = np.max(probabilities, 1), np.argmax(probabilities, 1) != np.asarray(y)
        ranked, best = np.sort(sure)[::-1], cls()
        if len(ranked) < fewest:
            return best
        sizes = np.unique(np.linspace(fewest, len(ranked), _STEPS).round().astype(int))
        for start in np.unique(np.linspace(0, len(sizes), starts, endpoint=False).astype(int)):
            for size in sizes[start:]:
                accepted = sure >= ranked[size - 1]
                count, errors = int(accepted.sum()), int(wrong[accepted].sum())
                bound = error_interval(errors, count, 1 - 2 * (1 - confidence) / starts)[1]
                if bound > error_rate:
                    break
                if count > best.accepted:
                    best = cls(float(ranked[size - 1]), count, errors, bound)
        return best

    @staticmethod
    def fewest(error_rate: float, confidence: float = 0.95) -> int:
        """Held-out labels without which no threshold can pass.

        Raises:
            ConfigError: for a rate outside (0, 1), or a confidence outside (0.5, 1).
        """
        if not (0 < error_rate < 1 and 0.5 < confidence < 1):
            raise ConfigError(
                "error_rate, confidence: expected numbers between 0 and 1 and between 0.5 and 1, received "
                f"{error_rate!r}, {confidence!r}"
            )
        return math.ceil(math.log(1 - confidence) / math.log(1 - error_rate))

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Which rows should go without a label, booleans of shape ``(rows,)``."""
        return np.max(probabilities, 1) < self.threshold


def _log(probabilities: np.ndarray) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return np.log((1 - _DOUBT) * probabilities + _DOUBT / probabilities.shape[1])
