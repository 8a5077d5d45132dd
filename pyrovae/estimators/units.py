"""Between the caller's columns and the model's: which are modelled, in which units, and what that does to a density."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae import recipes
from pyrovae.data.preprocess import Identity, Preprocess, Standardize

__all__ = ["Units", "cell_support"]


class Units:
    """The columns a model sees, in units of its own.

    Where the likelihood's support is the real line, columns are standardised; where it is the positive numbers, they
    are divided by their mean; else they stay. Of standardised columns a constant one has no density: it is left out,
    and is put back as the constant.

    Args:
        step: from the columns that are kept to the model's.
        kept: which columns those are, booleans.
        constant: of the others, their one value.

    Example:
        >>> units = Units.of(np.array([[1.0, 7.0], [5.0, 7.0]]), constraints.real)
        >>> units.inward(np.array([[5.0, 0.0]])), units.outward(torch.tensor([[0.0]]))
        (tensor([[1.]]), array([[3., 7.]]))
        >>> round(units.log_jacobian, 4)  # of one standardised column with the standard deviation 2
        -0.6931
    """

    def __init__(self, step: Preprocess, kept: np.ndarray, constant: np.ndarray) -> None:
        self.step, self.kept, self.constant = step, kept, constant

    @classmethod
    def of(cls, x: np.ndarray, support: constraints.Constraint | None) -> "Units":
        """Those of training rows, missing cells NaN.

        Args:
            x: rows, at least one value in each column.
            support: of one cell under the likelihood; None leaves the numbers as they are.
        """
        x = x.astype(np.float64)
        if support is constraints.real:
            kept = np.nanmax(x, axis=0) != np.nanmin(x, axis=0)
            kept = kept if kept.any() else ~kept
            return cls(Standardize().fit(x[:, kept]), kept, np.nanmin(x, axis=0))
        everything = np.ones(x.shape[1], dtype=bool)
        if support in (constraints.positive, constraints.nonnegative):
            scale = np.nanmean(x, axis=0)
            step = Standardize(np.zeros_like(scale).tolist(), np.where(scale > 0, scale, 1.0).tolist())
            return cls(step, everything, scale)
        return cls(Identity(), everything, np.zeros(x.shape[1]))

    @property
    def log_jacobian(self) -> float:
        """What is added to a log density of the model's units for one of the caller's, nats per row."""
        scale: Any = self.step.scale if isinstance(self.step, Standardize) else 1.0
        return float(np.log(np.reciprocal(scale)).sum())

    @property
    def width(self) -> int:
        """Columns that the model sees."""
        return int(self.kept.sum())

    def inward(self, x: np.ndarray) -> Tensor:
        """Rows as the model sees them, in the default floating type."""
        return self.step(torch.tensor(x[:, self.kept], dtype=torch.float64))

    def outward(self, rows: Tensor) -> np.ndarray:
        """Rows as the caller sees them."""
        x = np.tile(self.constant, (len(rows), 1))
        x[:, self.kept] = self.step.inverse(rows.double()).double().numpy()
        return x


def cell_support(likelihood: Callable[..., Any], width: int) -> constraints.Constraint | None:
    """The support of one cell; None where cells have none of their own."""
    with torch.random.fork_rng(devices=[]):
        support = recipes.complete(likelihood, shape=width)().support
    return getattr(support, "base_constraint", None)
