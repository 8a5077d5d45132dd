"""scikit-learn's methods, which ours stand beside; they live in memory only, for nothing here is pickled."""

import abc
import warnings
from typing import Any

import numpy as np

from pyrovae.labelling.methods import Labeller

__all__ = ["GradientBoosting", "GraphSpreading", "SelfTraining"]


class _ScikitLearn(Labeller):
    """Abstract: an estimator with ``predict_proba``.

    Args:
        classes: how many.
        seed: of everything random.
    """

    def __init__(self, classes: int, seed: int = 0) -> None:
        self.classes, self.seed = classes, seed

    @abc.abstractmethod
    def _estimator(self) -> Any:
        """An untrained estimator."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "_ScikitLearn":
        """Learn; the same object comes back."""
        self.indicators = np.isnan(x).any(0)
        rows = np.ones(len(y), dtype=bool) if self.uses_unlabelled else y >= 0
        self.labelled = int((y >= 0).sum())
        self.shares = np.bincount(y[y >= 0], minlength=self.classes) / self.labelled
        self.estimator = self._estimator()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence, and of rows that no label reaches
            self.estimator.fit(self._finite(x[rows]), y[rows])
        return self

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Of the classes; their shares where the method has no answer."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = self.estimator.predict_proba(self._finite(x))
        full = np.zeros((len(x), self.classes))
        full[:, np.asarray(self.estimator.classes_, dtype=np.int64)] = found
        lost = ~np.isfinite(full).all(1) | (full.sum(1) <= 0)
        full[lost] = self.shares
        return full / full.sum(1, keepdims=True)

    def _finite(self, x: np.ndarray) -> np.ndarray:
        """Missing cells as 0, the mean, and beside them which they are."""
        return np.concatenate([np.nan_to_num(x), np.isnan(x[:, self.indicators]).astype(x.dtype)], 1)


class GraphSpreading(_ScikitLearn):
    """scikit-learn's ``LabelSpreading`` on 10 nearest neighbours of the vectors themselves."""

    uses_unlabelled = True

    def _estimator(self) -> Any:
        from sklearn.semi_supervised import LabelSpreading

        return LabelSpreading(kernel="knn", n_neighbors=10, alpha=0.2, max_iter=100)


class SelfTraining(_ScikitLearn):
    """scikit-learn's ``SelfTrainingClassifier`` around a logistic regression: sure predictions become labels."""

    uses_unlabelled = True

    def _estimator(self) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.semi_supervised import SelfTrainingClassifier

        return SelfTrainingClassifier(LogisticRegression(max_iter=300), threshold=0.9)


class GradientBoosting(_ScikitLearn):
    """scikit-learn's ``HistGradientBoostingClassifier``, from rows with a label alone."""

    uses_unlabelled = False

    def _estimator(self) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier

        leaf = max(1, min(20, self.labelled // 20))  # the default of 20 leaves a single split to 50 labels
        how: dict[str, Any] = {"early_stopping": False}
        return HistGradientBoostingClassifier(min_samples_leaf=leaf, random_state=self.seed, **how)
