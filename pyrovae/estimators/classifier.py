"""Labels of rows from a few that are given."""

import functools
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from pyrovae.errors import DataError
from pyrovae.estimators.base import VAEEstimator, pieces, surroundings
from pyrovae.families import OneHotCategorical
from pyrovae.models import SemiSupervisedVAE
from pyrovae.recipes import complete

__all__ = ["SemiSupervisedVAEClassifier"]


class SemiSupervisedVAEClassifier(ClassifierMixin, VAEEstimator):
    r"""Classes of rows, q(y|x) of a :class:`pyrovae.SemiSupervisedVAE`, which learns from rows without labels too.

    A row is unlabelled where y is -1 or NaN; where labels are texts, also where y is empty or None.

    Args:
        n_components: dimensions of z, what a row has besides its class.
        likelihood: p(x|z, y).
        prior: p(z).
        posterior: q(z|x, y).
        objective: the ELBO with what teaches q(y|x) from labels, ``"elbo + 50 * classification"``, perhaps with
            ``"+ virtual-adversarial"``.
        net: network of likelihood, posterior and classifier.
        hidden: widths of its hidden layers.
        standardize: whether columns are put into standard units inside, as in :class:`VAETransformer`.
        epochs: passes over the rows.
        batch_size: rows in a batch.
        learning_rate: of Adam at the start; it falls to 0 along a cosine.
        device: where training runs.
        random_state: int, ``RandomState``, or None for fresh entropy.
        verbose: 1 shows a bar.

    Attributes:
        classes_: the labels that occur, in order.
        transduction_: the label of every training row, given or predicted.
        model_: the fitted model; it sees rows in units of its own.
        history_: the table of epochs.
        n_features_in_: columns.
        feature_names_in_: their names, if they are texts.

    References:
        Semi-supervised learning with deep generative models (Kingma, Rezende, Mohamed and Welling, 2014)

    Example:
        >>> x = np.concatenate([np.full((30, 2), -1.0), np.full((30, 2), 1.0)]) + np.random.default_rng(0).normal(
        ...     scale=0.1, size=(60, 2)
        ... )
        >>> y = np.full(60, "", dtype=object)
        >>> y[[0, 59]] = "left", "right"
        >>> classifier = SemiSupervisedVAEClassifier(n_components=1, epochs=30, random_state=0).fit(x, y)
        >>> classifier.predict([[-1.0, -1.0], [1.0, 1.0]])
        array(['left', 'right'], dtype=object)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        likelihood: Any = "normal(scale=learned-scale)",
        prior: Any = "standard-normal",
        posterior: Any = "normal",
        objective: Any = "elbo + 50 * classification",
        net: Any = "gated-mlp",
        hidden: tuple[int, ...] = (100,),
        standardize: bool = True,
        epochs: int = 200,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        device: str = "cpu",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            n_components,
            likelihood=likelihood,
            prior=prior,
            posterior=posterior,
            objective=objective,
            net=net,
            hidden=hidden,
            standardize=standardize,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )

    def fit(self, X: Any, y: Any) -> "SemiSupervisedVAEClassifier":
        """Train on rows with and without labels.

        Args:
            X: rows, shape ``(rows, columns)``.
            y: their labels, some missing.

        Raises:
            ConfigError: for arguments that cannot work, a ValueError.
            DataError: for cells outside the likelihood's support, or fewer than two classes, a ValueError.
        """
        if y is None:
            raise DataError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        x = self._rows(X, reset=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(x, y)
        given = labelled(y)
        _check_labels(y[given])
        self.classes_, places = np.unique(y[given], return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"y: expected labels of at least two classes, received {len(self.classes_)} class")
        codes = np.full(len(y), -1)
        codes[given] = places
        parts = self._parts()
        rows = self._measured(x, parts["likelihood"])
        build = functools.partial(self._m2, self._units.width, len(self.classes_), **parts)
        self._train(build, rows.numpy(), codes)
        self.transduction_ = np.where(given, y, self.predict(X))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities q(y|x), shape ``(rows, classes)``, in the order of ``classes_``.

        Args:
            X: rows.
        """
        x = self._rows(X)
        with surroundings(torch.float64):
            return torch.cat([self.model_.classify(piece).mean for piece in pieces(self._inward(x))]).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row.

        Args:
            X: rows.
        """
        places = self.predict_proba(X).argmax(1)
        return self.classes_[places]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy over the rows that have a label.

        Args:
            X: rows.
            y: their labels, some perhaps missing.
            sample_weight: of the rows.
        """
        y = column_or_1d(y)
        given = labelled(y)
        weight = None if sample_weight is None else np.asarray(sample_weight)[given]
        return float(accuracy_score(y[given], self.predict(X)[given], sample_weight=weight))

    def _m2(
        self, width: int, classes: int, *, likelihood: Any, prior: Any, posterior: Any, net: Any
    ) -> SemiSupervisedVAE:
        latent, given = self._count("n_components"), (classes,)
        q = complete(posterior, shape=latent, context=[(width,), given], net=net)
        return SemiSupervisedVAE(
            labels=OneHotCategorical(classes),
            prior=complete(prior, shape=latent, posterior=q),
            likelihood=complete(likelihood, shape=width, context=[(latent,), given], net=net),
            posterior=q,
            classifier=OneHotCategorical(classes, context=width, net=net),
        )


def labelled(y: np.ndarray) -> np.ndarray:
    """Which labels are there: not -1, not NaN, not None, not an empty text.

    Args:
        y: labels.

    Example:
        >>> labelled(np.array(["a", "", None, np.nan, -1], dtype=object))
        array([ True, False, False, False, False])
    """
    if y.dtype.kind == "f":
        return ~np.isnan(y) & (y != -1)
    if y.dtype.kind == "O":
        return np.array([_is_label(label) for label in y], dtype=bool)
    return y != ("" if y.dtype.kind in "US" else -1)


def _is_label(label: Any) -> bool:
    if isinstance(label, str):
        return label != ""
    return label is not None and bool(label == label) and label != -1  # NaN is not itself


def _check_labels(y: np.ndarray) -> None:
    if y.dtype.kind == "f":
        assert_all_finite(y, input_name="y")
    if len(y) == 0:
        raise DataError("y: expected labels of at least two classes, received no label at all")
    check_classification_targets(y)
