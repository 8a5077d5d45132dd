"""What models with labels share: labels may be given, missing, or both in one batch."""

import abc
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Conditional
from pyrovae.distributions import center
from pyrovae.distributions.given import clamped, known
from pyrovae.errors import ConfigError
from pyrovae.evaluation import Rows, as_tensor
from pyrovae.handlers import frozen
from pyrovae.models.model import Model

__all__ = ["Labelled"]


class Labelled(Model):
    """Abstract: a model of rows x with labels y at the site ``"y"``, given, missing, or mixed in one batch.

    Classes are one-hot vectors inside the programs. They are handed over as ints of shape ``(batch,)`` with -1 where a
    label is missing, or as one-hot vectors with NaN; real-valued targets as numbers with NaN; None where all are
    missing. The guide puts a point mass on a label that is there, so that one batch may hold rows of both kinds and
    its ELBO is the sum of theirs: log p(x, y) is bounded where y is known, log p(x) where it is not.

    Missing classes are enumerated: ``ELBO()`` sums over them instead of drawing, see ``Model.enumerated``.

    Args:
        labels: p(y), such as ``OneHotCategorical(10)``, which learns the classes' frequencies.
    """

    def __init__(self, labels: Conditional) -> None:
        super().__init__()
        self.labels = labels
        self.enumerated = ("y",) if self._y_prior().has_enumerate_support else ()

    @property
    def _infer(self) -> Any:
        return {"enumerate": "parallel"} if self.enumerated else {}

    def _y_prior(self) -> TorchDistribution:
        with torch.no_grad():
            return self.labels()

    @abc.abstractmethod
    def classify(self, x: Rows) -> TorchDistribution:
        """The distribution q(y|x), without gradients; its ``mean`` holds the classes' probabilities.

        Args:
            x: data, shape ``(batch, *x)``.
        """

    def encode(self, x: Rows, c: Rows | None = None) -> TorchDistribution:
        """The distribution q(z|x, y); for classes that are not given the mixture ``sum_y q(y|x) q(z|x, y)``.

        Args:
            x: data, shape ``(batch, *x)``.
            c: labels y, some missing, or None.
        """
        with frozen(self):
            x = as_tensor(self, x)
            q = known(self.classify(x), None if c is None else as_tensor(self, c))
            if not self.enumerated:
                return self._codes(x, q.mean)
            probs = q.mean
            classes = torch.eye(probs.shape[-1], dtype=probs.dtype, device=probs.device)
            codes = self._codes(x[:, None], classes).expand(probs.shape)
            return dist.MixtureSameFamily(dist.Categorical(probs=probs), codes)

    @abc.abstractmethod
    def _codes(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """The distribution q(z|x, y), batch shape as of the leading dimensions of x and y."""

    def decode(self, z: Rows, c: Rows | None = None) -> TorchDistribution:
        """The distribution p(x|z, y), without gradients.

        Args:
            z: latents, shape ``(*batch, *z)``.
            c: labels y, none missing.

        Raises:
            ConfigError: if there are none.
        """
        if c is None:
            raise ConfigError("y: p(x|z, y) needs a label for every row, received none")
        with frozen(self):
            y = clamped(self._y_prior(), as_tensor(self, c)).mean
            return self._data(as_tensor(self, z), y)

    @abc.abstractmethod
    def _data(self, z: Tensor, y: Tensor) -> TorchDistribution:
        """The distribution p(x|z, y)."""

    def reconstruct(self, x: Rows, c: Rows | None = None) -> Tensor:
        """Decode the mean of q(z|x, y), a missing y being the most probable one under q(y|x).

        Args:
            x: data, shape ``(batch, *x)``.
            c: labels y, some missing, or None.
        """
        with frozen(self):
            x, q = as_tensor(self, x), self.classify(x)
            y = known(q, None if c is None else as_tensor(self, c)).mean
            if self.enumerated:
                y = torch.nn.functional.one_hot(y.argmax(-1), y.shape[-1]).to(y)
            return center(self._data(self._codes(x, y).mean, y))
