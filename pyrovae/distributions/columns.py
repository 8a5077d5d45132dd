"""Rows whose columns are of different kinds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrovae.distributions.masked import cells, moments

__all__ = ["ColumnWise"]


class ColumnWise(TorchDistribution):
    r"""Independent columns, each with a distribution and units of its own: ``x_d = shift_d + scale_d u_d``.

    ``log p(x) = sum_d [log p_d((x_d - shift_d) / scale_d) - log scale_d]``, a density in the units of the data.

    Args:
        parts: distributions of u, of one batch shape, each with an event of one dimension and independent cells.
        order: the columns of x in the order of the parts' cells, shape ``(D,)``.
        shift: of each column, shape ``(D,)``.
        scale: of each column, positive, shape ``(D,)``; 1 for whole numbers and classes.
        support: of a row.

    Example:
        >>> import pyro.distributions as dist
        >>> parts = [dist.Bernoulli(0.5 * torch.ones(1)).to_event(1), dist.Normal(torch.zeros(1), 1.0).to_event(1)]
        >>> support = constraints.cat([constraints.real, constraints.boolean], dim=-1)
        >>> shift, scale = torch.tensor([5.0, 0.0]), torch.tensor([2.0, 1.0])
        >>> d = ColumnWise(parts, torch.tensor([1, 0]), shift, scale, constraints.independent(support, 1))
        >>> d.mean, d.log_prob(torch.tensor([5.0, 1.0]))
        (tensor([5.0000, 0.5000]), tensor(-2.3052))
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore
    has_rsample = False

    def __init__(
        self,
        parts: Sequence[TorchDistribution],
        order: Tensor,
        shift: Tensor,
        scale: Tensor,
        support: constraints.Constraint,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.parts, self.order, self.shift, self.scale, self._support = list(parts), order, shift, scale, support
        batch_shape = torch.broadcast_shapes(*(part.batch_shape for part in parts))
        super().__init__(batch_shape, torch.Size([len(order)]), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Of a row, column by column."""
        return self._support

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "ColumnWise":
        """The same distribution over a larger batch shape."""
        parts = [part.expand(torch.Size(batch_shape)) for part in self.parts]
        return ColumnWise(parts, self.order, self.shift, self.scale, self._support, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        return cells(self, value, torch.zeros_like(value, dtype=torch.bool)).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws in the units of the data."""
        with torch.no_grad():
            return self.shift + self.scale * self._joined([part.sample(sample_shape) for part in self.parts])

    @property
    def mean(self) -> Tensor:
        """Of every column; NaN for classes."""
        return self.shift + self.scale * self._joined([_mean(part) for part in self.parts])

    @property
    def mode(self) -> Tensor:
        """Of every column, or its mean where the mode is not known."""
        return self.shift + self.scale * self._joined([_mode(part) for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """Of every column; NaN for classes."""
        return moments(self, self.mean, torch.zeros_like(self.mean, dtype=torch.bool))[1]

    def _each(self, function: Callable[..., Any], value: Tensor, missing: Tensor) -> list[Any]:
        """What a function says of every part, its values in standard units and where they are missing."""
        sizes = [part.event_shape[0] for part in self.parts]
        standard = ((value - self.shift) / self.scale).index_select(-1, self.order).split(sizes, -1)
        absent = missing.index_select(-1, self.order).split(sizes, -1)
        return [function(*given) for given in zip(self.parts, standard, absent, strict=True)]

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        """The parts' cells in the order of the columns."""
        leads = torch.broadcast_shapes(*(v.shape[:-1] for v in values))
        joined = torch.cat([v.expand(*leads, v.shape[-1]).to(self.scale.dtype) for v in values], -1)
        return joined.index_select(-1, self.order.argsort())


@cells.register
def _(distribution: ColumnWise, value: Tensor, missing: Tensor) -> Tensor:
    standard = distribution._joined(distribution._each(cells, value, missing))
    return torch.where(missing, 0.0, standard - distribution.scale.log())


@moments.register
def _(distribution: ColumnWise, value: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    means, variances = zip(*distribution._each(moments, value, missing), strict=True)
    mean = distribution.shift + distribution.scale * distribution._joined(means)
    return mean, distribution.scale**2 * distribution._joined(variances)


def _mean(part: TorchDistribution) -> Tensor:
    try:
        return part.mean
    except NotImplementedError:
        return torch.full_like(part.sample(), torch.nan)


def _mode(part: TorchDistribution) -> Tensor:
    try:
        return part.mode
    except NotImplementedError:
        return part.mean
