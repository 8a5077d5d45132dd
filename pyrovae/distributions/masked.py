"""Distributions of rows with missing cells, NaN: what is observed is scored, what is not can be drawn."""

import functools
import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal

from pyrovae.distributions.counts import Multinomial
from pyrovae.distributions.normal import CalibratedNormal
from pyrovae.distributions.reshaped import _Reshaped
from pyrovae.distributions.sphere import VonMises
from pyrovae.errors import ConfigError

__all__ = ["MaskedCells", "OrMissing", "cells", "draw_missing", "moments", "observed", "placeholder"]

_NOTHING = -1e30  # the logit of a kind without probability, finite so that its gradient is 0


class MaskedCells(TorchDistribution):
    r"""A distribution that scores the cells which are there: ``log p(x_observed) = log int p(x) dx_missing``.

    A missing cell is NaN. Where cells are independent, theirs are left out; of a Gaussian with covariances it is the
    marginal of the observed block. A row without any observed cell scores exactly 0. Draws have all cells.

    Values in missing cells' places never matter: they are replaced by a number inside the support *before* anything is
    computed, because the gradient of a NaN that is masked afterwards is NaN.

    Args:
        base: any distribution whose cells are independent, or a Gaussian.

    Raises:
        ConfigError: where the marginal of some cells is not known; raised by ``log_prob``.

    Example:
        >>> import pyro.distributions as dist
        >>> d = MaskedCells(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> d.log_prob(torch.tensor([[0.0, torch.nan], [torch.nan, torch.nan]]))
        tensor([-0.9189,  0.0000])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, base: TorchDistribution, *, validate_args: bool | None = None) -> None:
        self.base = base.base if isinstance(base, MaskedCells) else base
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base has."""
        return self.base.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """That of the base, or NaN."""
        return OrMissing(self.base.support)  # pyright: ignore[reportArgumentType]

    @property
    def mean(self) -> Tensor:
        """Of all cells."""
        return self.base.mean

    @property
    def mode(self) -> Tensor:
        """Of all cells."""
        return self.base.mode

    @property
    def variance(self) -> Tensor:
        """Of all cells."""
        return self.base.variance

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "MaskedCells":
        """The same distribution over a larger batch shape."""
        return MaskedCells(self.base.expand(torch.Size(batch_shape)), validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of all cells, with gradients."""
        return self.base.rsample(sample_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of all cells."""
        return self.base.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the observed cells in nats, shape ``(*batch,)``."""
        log_prob = observed(self.base, value, value.isnan())  # first, for its own words where it cannot be
        if self._validate_args:
            self._validate_sample(value)
        return log_prob

    def cell_log_prob(self, value: Tensor) -> Tensor:
        """Log density of every cell, 0 where it is missing, shape ``(*batch, *event)``.

        Raises:
            ConfigError: if the cells are not independent.
        """
        return cells(self.base, value, value.isnan())

    def complete(self, value: Tensor) -> Tensor:
        """Rows with their missing cells drawn given the observed ones, which stay as they are."""
        missing = value.isnan()
        return torch.where(missing, draw_missing(self.base, value, missing), value)

    def moments(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every cell given the observed ones; NaN where the distribution has none."""
        missing = value.isnan()
        mean, variance = moments(self.base, value, missing)
        return torch.where(missing, mean, value), torch.where(missing, variance, 0.0)


class OrMissing(constraints.Constraint):
    """The values of a constraint, and NaN.

    Args:
        base: constraint of a row without missing cells.
    """

    def __init__(self, base: constraints.Constraint) -> None:
        self.base = base
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base is."""
        return self.base.is_discrete

    @property
    def event_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base has."""
        return self.base.event_dim

    def check(self, value: Tensor) -> Tensor:
        """What the base says where a legal number stands for NaN."""
        return self.base.check(torch.where(value.isnan(), placeholder(self.base), value))

    def __repr__(self) -> str:
        return f"OrMissing({self.base})"


def placeholder(support: Any) -> float | Tensor:
    """A number inside the support, which stands for a missing cell while the others are scored.

    Example:
        >>> placeholder(constraints.positive), placeholder(constraints.unit_interval)
        (1.0, 0.5)
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, constraints.cat):
        parts = [torch.as_tensor(placeholder(c)) for c in support.cseq]
        return torch.cat([p.expand(n) for p, n in zip(parts, support.lengths, strict=True)])
    if isinstance(support, (constraints.integer_interval, type(constraints.nonnegative_integer))):
        return support.lower_bound
    if isinstance(support, (constraints.interval, constraints.half_open_interval)):
        return (support.lower_bound + support.upper_bound) / 2
    if isinstance(support, (constraints.greater_than, constraints.greater_than_eq)):
        return support.lower_bound + 1.0
    if isinstance(support, constraints.less_than):
        return support.upper_bound - 1.0
    if support in (constraints.real, constraints.boolean):
        return 0.0
    number = torch.zeros(())
    if support.event_dim:
        return number
    for other in (-1.0, 1.0, 0.5, 0.0):  # of an unknown support the last that is legal, without asking for a number
        guess = torch.as_tensor(other)
        number = torch.where(support.check(guess), guess, number)
    return number


@functools.singledispatch
def cells(distribution: Any, value: Tensor, missing: Tensor) -> Tensor:
    """Log density of every cell, 0 where it is missing, of a distribution whose cells are independent."""
    if len(distribution.event_shape):
        raise ConfigError(
            f"Masked: {type(distribution).__name__} ties the cells of a row together and its density without some of "
            "them is not known: take a likelihood with independent cells, or a Gaussian"
        )
    filled = torch.where(missing, placeholder(distribution.support), value)
    return torch.where(missing, 0.0, distribution.log_prob(filled))


@cells.register
def _(distribution: Independent, value: Tensor, missing: Tensor) -> Tensor:
    return cells(distribution.base_dist, value, missing)


@cells.register
def _(distribution: CalibratedNormal, value: Tensor, missing: Tensor) -> Tensor:
    """The optimal scale is that of the observed cells of the batch; without any, the scale stays."""
    residual = torch.where(missing, 0.0, value - distribution.loc).detach()
    count = (~missing).expand_as(residual).sum()
    variance = torch.where(count > 0, residual.square().sum() / count, distribution.scale.square().mean())
    variance = variance.detach().clamp(min=1e-12)
    distribution.report(variance)
    return cells(dist.Normal(distribution.loc, variance.sqrt()), value, missing)


@functools.singledispatch
def observed(distribution: Any, value: Tensor, missing: Tensor) -> Tensor:
    """Log density of the cells that are not missing, shape ``(*batch,)``."""
    return _sum(cells(distribution, value, missing), len(distribution.event_shape))


@observed.register
def _(distribution: Independent, value: Tensor, missing: Tensor) -> Tensor:
    return _sum(observed(distribution.base_dist, value, missing), distribution.reinterpreted_batch_ndims)


@observed.register
def _(distribution: LowRankMultivariateNormal, value: Tensor, missing: Tensor) -> Tensor:
    """A missing cell without factors, of variance 1 and at its mean adds nothing but a constant, which is left out."""
    residual = torch.where(missing, 0.0, value - distribution.loc)
    factor = torch.where(missing[..., None], 0.0, distribution.cov_factor)
    variance = torch.where(missing, 1.0, distribution.cov_diag)
    weighted = (factor / variance[..., None]).mT
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.cholesky(identity + weighted @ factor)
    white = torch.linalg.solve_triangular(root, weighted @ residual[..., None], upper=False)[..., 0]
    distance = (residual**2 / variance).sum(-1) - white.square().sum(-1)
    return _gaussian(distance, variance.log().sum(-1) + _log_determinant(root), missing)


@observed.register
def _(distribution: MultivariateNormal, value: Tensor, missing: Tensor) -> Tensor:
    residual = torch.where(missing, 0.0, value - distribution.loc)
    root = torch.linalg.cholesky(_observed_block(distribution.covariance_matrix, missing))
    white = torch.linalg.solve_triangular(root, residual[..., None], upper=False)[..., 0]
    return _gaussian(white.square().sum(-1), _log_determinant(root), missing)


@observed.register
def _(distribution: Multinomial, value: Tensor, missing: Tensor) -> Tensor:
    """The observed counts given their sum: the missing kinds get no probability."""
    logits = torch.where(missing, _NOTHING, distribution.logits)
    return Multinomial(logits, event_dim=distribution.event_dim).log_prob(torch.where(missing, 0.0, value))


@observed.register
def _(distribution: _Reshaped, value: Tensor, missing: Tensor) -> Tensor:
    return observed(distribution.base, *_as_vectors(distribution, value, missing))


@functools.singledispatch
def draw_missing(distribution: Any, value: Tensor, missing: Tensor) -> Tensor:
    """A draw of the missing cells given the observed ones; what it holds in observed cells' places is of no use."""
    return distribution.sample()


@draw_missing.register
def _(distribution: Independent, value: Tensor, missing: Tensor) -> Tensor:
    return draw_missing(distribution.base_dist, value, missing)


@draw_missing.register(LowRankMultivariateNormal)
@draw_missing.register(MultivariateNormal)
def _(distribution: Any, value: Tensor, missing: Tensor) -> Tensor:
    """A draw of all cells, moved by what its error in the observed ones tells about the others."""
    draw = distribution.sample()
    return draw + _regress(distribution, value - draw, missing)


@draw_missing.register
def _(distribution: Multinomial, value: Tensor, missing: Tensor) -> Tensor:
    raise ConfigError("Multinomial: how many things the missing cells hold is not known, so there is nothing to draw")


@draw_missing.register
def _(distribution: _Reshaped, value: Tensor, missing: Tensor) -> Tensor:
    draw = draw_missing(distribution.base, *_as_vectors(distribution, value, missing))
    return draw.unflatten(-1, distribution.event_shape)


@functools.singledispatch
def moments(distribution: Any, value: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every missing cell given the observed ones; NaN where there is none."""
    try:
        return distribution.mean, distribution.variance
    except NotImplementedError:
        nothing = torch.full_like(distribution.sample(), math.nan)
        return nothing, nothing


@moments.register
def _(distribution: Independent, value: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    return moments(distribution.base_dist, value, missing)


@moments.register(LowRankMultivariateNormal)
@moments.register(MultivariateNormal)
def _(distribution: Any, value: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    covariance = distribution.covariance_matrix
    cross = torch.where(missing[..., None, :], 0.0, covariance)
    explained = (cross * torch.linalg.solve(_observed_block(covariance, missing), cross.mT).mT).sum(-1)
    mean = distribution.loc + _regress(distribution, value - distribution.loc, missing)
    return mean, distribution.variance - explained


@moments.register
def _(distribution: _Reshaped, value: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = moments(distribution.base, *_as_vectors(distribution, value, missing))
    return mean.unflatten(-1, distribution.event_shape), variance.unflatten(-1, distribution.event_shape)


@moments.register(VonMises)
@moments.register(dist.VonMises)
def _(distribution: Any, value: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """An average of angles is none; look at draws."""
    return torch.full_like(distribution.mean, math.nan), torch.full_like(distribution.mean, math.nan)


def _as_vectors(distribution: _Reshaped, value: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    return value.flatten(-distribution.event_dim), missing.flatten(-distribution.event_dim)


def _regress(distribution: Any, residual: Tensor, missing: Tensor) -> Tensor:
    """``C[:, o] C[o, o]^-1 residual[o]``: what the observed cells tell about the others."""
    covariance = distribution.covariance_matrix
    known = torch.where(missing, 0.0, residual)
    solved = torch.linalg.solve(_observed_block(covariance, missing), known[..., None])
    return (covariance @ torch.where(missing[..., None], 0.0, solved))[..., 0]


def _observed_block(covariance: Tensor, missing: Tensor) -> Tensor:
    """The covariance with the identity in the rows and columns of missing cells."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(missing[..., None] | missing[..., None, :], identity, covariance)


def _gaussian(distance: Tensor, log_determinant: Tensor, missing: Tensor) -> Tensor:
    count = (~missing).sum(-1).to(distance.dtype)
    return -(count * math.log(2 * math.pi) + log_determinant + distance) / 2


def _log_determinant(root: Tensor) -> Tensor:
    return 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _sum(log_prob: Tensor, dims: int) -> Tensor:
    return log_prob.flatten(-dims).sum(-1) if dims else log_prob
