"""Ways from a few labels to all of them: what each must be able to do, and those that are ours."""

import abc
import copy
import functools
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import TensorDataset

from pyrovae.fit import fit
from pyrovae.labelling.density import Density, Neighbourhood
from pyrovae.labelling.features import Features
from pyrovae.labelling.propagation import LatentPropagation
from pyrovae.labelling.training import BATCH, Lengths, Sizes, classified, flat_then_down, reproducibly
from pyrovae.models import SemiSupervisedVAE
from pyrovae.objectives import ELBO, Classification, LabelEntropy, LabelMarginal, Objective, VirtualAdversarial

__all__ = ["Labeller", "NetworkLabeller", "Smooth", "SpreadLabeller", "Supervised", "VariationalM2", "typical_distance"]

_MARKS = (0.25, 0.5, 0.75, 1.0)
_FEW = 64  # rows in a batch of labelled ones


class Labeller(abc.ABC):
    """Abstract: learns classes from rows of which some have a label.

    Write another by ``fit`` and ``probabilities``; :func:`pyrovae.labelling.compare_labellers` takes it beside the
    others.

    Attributes:
        uses_unlabelled: whether rows without a label matter.
        ours: whether it can be written to a file.
    """

    uses_unlabelled: ClassVar[bool]
    ours: ClassVar[bool] = False

    @abc.abstractmethod
    def fit(self, x: np.ndarray, y: np.ndarray) -> "Labeller":
        """Learn; the same object comes back.

        Args:
            x: float32, shape ``(rows, D)``, NaN where a cell is missing.
            y: ints, -1 where a label is missing.
        """

    @abc.abstractmethod
    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Of the classes, shape ``(rows, classes)``."""

    def by_length(self, x: np.ndarray, y: np.ndarray, watched: np.ndarray) -> dict[float, np.ndarray]:
        """Learn, and tell the probabilities of watched rows at several shares of the training.

        Args:
            x: as for ``fit``.
            y: as for ``fit``.
            watched: rows that are asked about, as x.
        """
        return {1.0: self.fit(x, y).probabilities(watched)}

    def of_length(self, length: float) -> "Labeller":
        """An untrained copy that trains for a share of the time."""
        return copy.copy(self)

    def __str__(self) -> str:
        return ""


class NetworkLabeller(Labeller):
    """Abstract: a classifier q(y|x), that of a :class:`pyrovae.SemiSupervisedVAE`.

    Args:
        features: of the rows.
        classes: how many.
        sizes: of networks and training.
        seed: of everything random.
        length: share of the training.

    Attributes:
        model: after ``fit``.
    """

    ours = True
    model: SemiSupervisedVAE

    def __init__(self, features: Features, classes: int, sizes: Sizes, *, seed: int = 0, length: float = 1.0) -> None:
        self.features, self.classes, self.sizes, self.seed, self.length = features, classes, sizes, seed, length

    def fit(self, x: np.ndarray, y: np.ndarray) -> "NetworkLabeller":
        """Learn; the same object comes back."""
        self._prepare()
        self._train(x, y, Lengths(self.length))
        self.model.eval()
        return self

    def by_length(self, x: np.ndarray, y: np.ndarray, watched: np.ndarray) -> dict[float, np.ndarray]:
        """One training tells all lengths: the learning rate does not depend on where it ends."""
        self._prepare()
        return self._watched(x, y, watched)

    def of_length(self, length: float) -> "NetworkLabeller":
        """An untrained copy that trains for a share of the time."""
        other = copy.copy(self)
        other.length = length
        return other

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Of the classes under q(y|x)."""
        return classified(self.model, x)

    def _prepare(self) -> None:
        with reproducibly(self.seed):
            self.model = self.sizes.m2(self.features, self.classes)

    @abc.abstractmethod
    def _train(self, x: np.ndarray, y: np.ndarray, lengths: Lengths) -> None:
        """Train the model."""

    def _watched(self, x: np.ndarray, y: np.ndarray, watched: np.ndarray) -> dict[float, np.ndarray]:
        lengths = Lengths(1.0, _MARKS, lambda: self.probabilities(watched))
        self._train(x, y, lengths)
        return lengths.found

    def _fit(
        self,
        x: Any,
        y: np.ndarray | None,
        objective: Objective,
        lengths: Lengths | None,
        slower: float = 1.0,
        **how: Any,
    ) -> None:
        fit(
            self.model,
            x,
            y,
            objective=objective,
            optimizer=functools.partial(torch.optim.Adam, lr=slower * self.sizes.learning_rate),
            scheduler=flat_then_down,
            callbacks=[] if lengths is None else [lengths],
            seed=self.seed,
            compile=self.sizes.level,
            precision=self.sizes.precision,
            progress=False,
            **how,
        )

    def _fit_mixed(
        self, x: np.ndarray, y: np.ndarray, objective: Objective, lengths: Lengths, share: float = 0.25, **how: Any
    ) -> None:
        """Train on rows with and without labels, with at least a share of each batch labelled."""
        few = 0 < (y >= 0).mean() < share
        rows = int((y < 0).sum() / (1 - share)) if few else len(y)
        how |= {"labelled": share} if few else {}
        self._fit(x, y, objective, lengths, epochs=self.sizes.epochs(rows, BATCH), batch_size=BATCH, **how)


class Supervised(NetworkLabeller):
    """The classifier alone, from rows with a label alone: what unlabelled rows must improve on.

    Args:
        features: of the rows.
        classes: how many.
        sizes: of networks and training.
        seed: of everything random.
        length: share of the training.
    """

    uses_unlabelled = False

    def _train(self, x: np.ndarray, y: np.ndarray, lengths: Lengths) -> None:
        given = y >= 0
        rows, labels = x[given], y[given]
        batch = min(_FEW, len(rows))
        how = {"epochs": self.sizes.epochs(len(rows), batch), "batch_size": batch}
        if np.isnan(rows).all(0).any():  # fit looks at arrays, and refuses a column without a value
            pairs = TensorDataset(torch.from_numpy(rows), torch.from_numpy(labels))
            self._fit(pairs, None, Classification(), lengths, **how)
        else:
            self._fit(rows, labels, Classification(), lengths, **how)


class SpreadLabeller(NetworkLabeller):
    """Abstract: a classifier warmed up on labels that spread in the codes of a VAE, each as heavy as it is sure.

    Args:
        features: of the rows.
        classes: how many.
        sizes: of networks and training.
        density: a VAE of the rows.
        neighbourhood: of the rows that ``fit`` will be given; None makes it there.
        seed: of everything random.
        length: share of the second part of the training; 0 stops after the warm-up.

    References:
        Learning with local and global consistency (Zhou et al., 2004)
    """

    uses_unlabelled = True

    def __init__(
        self,
        features: Features,
        classes: int,
        sizes: Sizes,
        density: Density,
        neighbourhood: Neighbourhood | None = None,
        *,
        seed: int = 0,
        length: float = 1.0,
    ) -> None:
        super().__init__(features, classes, sizes, seed=seed, length=length)
        self.density, self.neighbourhood = density, neighbourhood

    @abc.abstractmethod
    def _warm_up(self, x: np.ndarray, soft: np.ndarray, **how: Any) -> None:
        """Learn from spread labels, shape ``(rows, classes)``."""

    @abc.abstractmethod
    def _go_on(self, x: np.ndarray, y: np.ndarray, lengths: Lengths) -> None:
        """Learn from true labels and all other rows."""

    def _train(self, x: np.ndarray, y: np.ndarray, lengths: Lengths) -> None:
        self._begin(x, y)
        if self.length > 0:
            self._go_on(x, y, lengths)

    def _watched(self, x: np.ndarray, y: np.ndarray, watched: np.ndarray) -> dict[float, np.ndarray]:
        """All lengths, and after the warm-up alone as length 0."""
        self._begin(x, y)
        lengths = Lengths(1.0, _MARKS, lambda: self.probabilities(watched))
        found = {0.0: self.probabilities(watched)}
        self._go_on(x, y, lengths)
        return found | lengths.found

    def _begin(self, x: np.ndarray, y: np.ndarray) -> None:
        near = self.neighbourhood
        if near is None or len(near.codes) != len(x):
            near = Neighbourhood(self.density.codes(x), LatentPropagation())
        soft = near.soft_labels(y, self.classes).astype(np.float32)
        entropy = -(soft * np.log(np.maximum(soft, 1e-12))).sum(1) / np.log(self.classes)
        weights = np.maximum(1 - entropy, 0) + 1e-3
        self._warm_up(x, soft, batch_size=BATCH, weights=weights / weights.mean())


class VariationalM2(SpreadLabeller):
    """M2: the ELBO of rows with and without labels, plus alpha times the classifier's own loss.

    From nothing, q(y|x) and p(x|z, y) agree on classes of their own before labels can matter. So the warm-up takes
    spread labels for true ones; then they are forgotten, and classes are summed over where no true label is: slowly,
    with many true labels in a batch, for the ELBO alone would leave them.

    Args:
        features: of the rows.
        classes: how many.
        sizes: of networks and training.
        density: a VAE of the rows.
        neighbourhood: of the rows that ``fit`` will be given; None makes it there.
        alpha: weight of the classifier's loss per labelled row.
        seed: of everything random.
        length: share of the second part of the training; 0 stops after the warm-up.

    References:
        Semi-supervised learning with deep generative models (Kingma, Rezende, Mohamed and Welling, 2014)
    """

    def __init__(
        self,
        features: Features,
        classes: int,
        sizes: Sizes,
        density: Density,
        neighbourhood: Neighbourhood | None = None,
        *,
        alpha: float = 50.0,
        seed: int = 0,
        length: float = 1.0,
    ) -> None:
        super().__init__(features, classes, sizes, density, neighbourhood, seed=seed, length=length)
        self.alpha = alpha

    def _warm_up(self, x: np.ndarray, soft: np.ndarray, **how: Any) -> None:
        epochs = self.sizes.epochs(len(x), BATCH)  # no class is summed over: it costs little
        self._fit(x, soft.argmax(1), self._objective(), None, epochs=epochs, **how)

    def _go_on(self, x: np.ndarray, y: np.ndarray, lengths: Lengths) -> None:
        self._fit_mixed(x, y, self._objective(), lengths, share=0.5, slower=0.5)

    def _objective(self) -> Objective:
        return ELBO() + Classification(self.alpha)

    def __str__(self) -> str:
        return f"alpha {self.alpha:g}"


class Smooth(SpreadLabeller):
    """A smooth classifier: warmed up on labels that spread in the codes of a VAE, then regularised on all rows.

    After the warm-up come true labels, virtual adversarial smoothness within ``reach`` times the typical distance of a
    row to its nearest neighbour, the entropy of unlabelled rows, and their classes' shares against those of the labels.
    No term is generative: the VAE helps by its codes.

    Args:
        features: of the rows.
        classes: how many.
        sizes: of networks and training.
        density: a VAE of the rows.
        neighbourhood: of the rows that ``fit`` will be given; None makes it there.
        reach: radius of smoothness.
        seed: of everything random.
        length: share of the second part of the training; 0 stops after the warm-up.

    References:
        Virtual adversarial training: a regularization method for supervised and semi-supervised learning
        (Miyato, Maeda, Koyama and Ishii, 2018)
    """

    def __init__(
        self,
        features: Features,
        classes: int,
        sizes: Sizes,
        density: Density,
        neighbourhood: Neighbourhood | None = None,
        *,
        reach: float = 0.35,
        seed: int = 0,
        length: float = 1.0,
    ) -> None:
        super().__init__(features, classes, sizes, density, neighbourhood, seed=seed, length=length)
        self.reach = reach

    def _warm_up(self, x: np.ndarray, soft: np.ndarray, **how: Any) -> None:
        epochs = max(1, self.sizes.epochs(len(x), BATCH) // 3)
        self._fit(x, soft, Classification(), None, epochs=epochs, **how)

    def _go_on(self, x: np.ndarray, y: np.ndarray, lengths: Lengths) -> None:
        counts = np.bincount(y[y >= 0], minlength=self.classes) + 1.0
        objective = Classification() + VirtualAdversarial(self.reach * typical_distance(x, self.seed))
        objective = objective + 0.2 * LabelEntropy() + 0.5 * LabelMarginal((counts / counts.sum()).tolist())
        self._fit_mixed(x, y, objective, lengths)

    def __str__(self) -> str:
        return f"reach {self.reach:g}"


def typical_distance(x: np.ndarray, seed: int = 0, rows: int = 500, among: int = 5000) -> float:
    """The median distance of a row to its nearest neighbour, over samples; missing cells count as 0.

    Args:
        x: shape ``(rows, D)``.
        seed: of the samples.
        rows: that ask.
        among: rows that answer.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(x) < 2:
        return 1.0
    order = np.random.default_rng(seed).permutation(len(x))[:among]
    sample = np.nan_to_num(x[order])
    near = NearestNeighbors(n_neighbors=2).fit(sample)
    distance = near.kneighbors(sample[:rows])[0][:, 1]
    far = distance[distance > 0]
    return float(np.median(far)) if len(far) else 1.0
