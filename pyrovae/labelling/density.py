"""A VAE of all rows, which needs no label: codes in which neighbours are alike, and how usual a row is."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.evaluation import as_tensor
from pyrovae.fit import fit
from pyrovae.handlers import frozen
from pyrovae.labelling.features import Features
from pyrovae.labelling.propagation import LatentPropagation
from pyrovae.labelling.training import BATCH, Sizes, flat_then_down, reproducibly
from pyrovae.models import VAE

__all__ = ["Density", "Neighbourhood"]

_QUANTILES = 1001
_AT_ONCE = 10_000
_ACTIVE = 0.1  # standard deviation of a dimension's means, below which it holds noise


class Density:
    """A VAE, and the quantiles of log p(x) over the rows it was trained on.

    Args:
        vae: of the rows.
        quantiles: of log p(x), rising, from the least to the largest.
        used: which dimensions of z tell anything about a row; None is all.
    """

    def __init__(self, vae: VAE, quantiles: np.ndarray, used: np.ndarray | None = None) -> None:
        self.vae, self.quantiles = vae, np.asarray(quantiles, dtype=np.float64)
        self.used = np.ones(vae.prior().event_shape, dtype=bool) if used is None else np.asarray(used, dtype=bool)

    @classmethod
    def train(cls, x: np.ndarray, features: Features, sizes: Sizes, seed: int = 0) -> "Density":
        """Train a VAE on vectors, with and without labels alike.

        Args:
            x: as the features encode them.
            features: of the rows.
            sizes: of the networks and the training.
            seed: of everything random.
        """
        with reproducibly(seed):
            vae = sizes.vae(features)
        fit(
            vae,
            x,
            optimizer=functools.partial(torch.optim.Adam, lr=sizes.learning_rate),
            scheduler=flat_then_down,
            epochs=sizes.epochs(len(x), BATCH),
            batch_size=BATCH,
            seed=seed,
            compile=sizes.level,
            progress=False,
        )
        found = cls(vae.eval(), np.zeros(1))
        active = found.codes(x).std(0) > _ACTIVE
        found.used = active if active.any() else found.used
        found.quantiles = np.quantile(found.log_prob(x), np.linspace(0, 1, _QUANTILES))
        return found

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Posterior means in the dimensions that are used, shape ``(rows, used)``."""
        means = [self.vae.encode(x[start : start + _AT_ONCE]).mean for start in range(0, len(x), _AT_ONCE)]
        return torch.cat(means).double().cpu().numpy()[:, self.used]

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Estimates of log p(x), nats per row: ``log p(x, m) - log q(m|x)`` at the mean m of q(z|x).

        Where q is the posterior that is log p(x) at any point. There is no noise, so that a row's novelty does not
        depend on the rows beside it.
        """
        parts = [self._at_means(x[start : start + _AT_ONCE]) for start in range(0, len(x), _AT_ONCE)]
        return torch.cat(parts).double().cpu().numpy()

    def _at_means(self, x: np.ndarray) -> Tensor:
        rows = as_tensor(self.vae, x)
        with frozen(self.vae):
            q = self.vae.encode(rows)
            return self.vae.decode(q.mean).log_prob(rows) + self.vae.prior().log_prob(q.mean) - q.log_prob(q.mean)

    def novelty(self, x: np.ndarray) -> np.ndarray:
        """The share of training rows that are more probable than a row: above 0.99 for one less usual than 99 %."""
        place = np.interp(self.log_prob(x), self.quantiles, np.linspace(0, 1, len(self.quantiles)), left=0, right=1)
        return 1 - place


class Neighbourhood:
    """Codes of certain rows and their graph, made once for whatever labels come.

    Args:
        codes: shape ``(rows, D)``.
        propagation: what spreads labels.
    """

    def __init__(self, codes: np.ndarray, propagation: LatentPropagation) -> None:
        self.codes, self.propagation = codes, propagation

    @functools.cached_property
    def graph(self) -> Any:
        """The sparse graph."""
        return self.propagation.graph(self.codes)

    def soft_labels(self, y: np.ndarray, classes: int) -> np.ndarray:
        """Propagated labels, shape ``(rows, classes)``."""
        return self.propagation.spread(self.graph, y, classes)
