"""Distributions that torch and Pyro lack, or have in a form that fails in float32 or costs too much."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

__all__ = ["CalibratedNormal", "ContinuousBernoulli", "NormalMixture", "center", "mixture", "positive", "score"]


class ContinuousBernoulli(TorchDistribution):
    r"""A density on [0, 1] with one natural parameter, exact in float32 for logits up to ±500.

    ``log p(x) = x l - softplus(l) + log C(l)`` with ``C(l) = l / tanh(l / 2)``, a form without cancellation:
    torch's class of the same name loses up to the whole mass beyond ``|l| = 16`` in float32.

    Args:
        logits: natural parameter l, shape ``(*batch,)``.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem and Cunningham, 2019)

    Example:
        >>> d = ContinuousBernoulli(logits=torch.tensor([0.0, 20.0]))
        >>> d.log_prob(torch.tensor([0.3, 1.0]))
        tensor([0.0000, 2.9957])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012  # pyright: ignore
    support = constraints.unit_interval  # pyright: ignore
    has_rsample = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "ContinuousBernoulli":
        """The same distribution over a larger batch shape."""
        return ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        return value * self.logits - softplus(self.logits) + self.log_normalizer

    @property
    def log_normalizer(self) -> Tensor:
        """``log C(l)``; by series near l = 0, where the quotient is 0 / 0."""
        near, u = self._split(0.02)
        series = math.log(2) + self.logits**2 / 12 - 7 * self.logits**4 / 1440
        return torch.where(near, series, (u / torch.tanh(u / 2)).log())

    @property
    def mean(self) -> Tensor:
        """``1 / (1 - exp(-l)) - 1 / l``, computed for |l| and mirrored."""
        near, u = self._split(0.1)
        series = 0.5 + self.logits / 12 - self.logits**3 / 720
        a = u.abs()
        upper = -1 / torch.expm1(-a) - 1 / a
        return torch.where(near, series, torch.where(u > 0, upper, 1 - upper))

    @property
    def variance(self) -> Tensor:
        """``1 / l^2 - exp(-|l|) / (1 - exp(-|l|))^2``."""
        near, u = self._split(0.1)
        series = 1 / 12 - self.logits**2 / 240
        a = u.abs()
        return torch.where(near, series, a**-2 - torch.exp(-a) / torch.expm1(-a) ** 2)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile, computed on the side where the exponential is at most 1 and mirrored."""
        near, u = self._split(1e-3)
        a = -u.abs()
        v = torch.where(u > 0, 1 - value, value).clamp(max=1 - torch.finfo(u.dtype).eps)
        x = torch.log1p(v * torch.expm1(a)) / a
        x = torch.where(u > 0, 1 - x, x).clamp(0, 1)
        return torch.where(near, value + self.logits * value * (1 - value) / 2, x)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised draws by inversion."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))

    def _split(self, radius: float) -> tuple[Tensor, Tensor]:
        """Where the series holds, and logits made safe there, so that no gradient is nan under ``where``."""
        near = self.logits.abs() < radius
        return near, torch.where(near, torch.ones_like(self.logits), self.logits)


class NormalMixture(TorchDistribution):
    r"""Mixture of K diagonal Gaussians: ``p(z) = sum_k w_k N(z; loc_k, diag scale_k^2)``.

    The squares are expanded, ``(z - m)^2 / s^2 = z^2 / s^2 - 2 z m / s^2 + m^2 / s^2``, so that all pairs of rows and
    components cost two matrix products instead of a ``(*batch, K, D)`` tensor. The products run in float64, because
    the three terms cancel; the rest stays in the type of ``loc``.

    Args:
        logits: unnormalised log weights, shape ``(K,)``.
        loc: shape ``(K, *event)``.
        scale: shape ``(K, *event)``.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  # pyright: ignore
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        *,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale = logits, loc, scale
        super().__init__(batch_shape, loc.shape[1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Real tensors of the event's shape."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "NormalMixture":
        """The same distribution over a larger batch shape."""
        return NormalMixture(
            self.logits, self.loc, self.scale, batch_shape=torch.Size(batch_shape), validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        log_joint = self.component_log_prob(value) + self.logits.log_softmax(-1)
        return log_joint.logsumexp(-1)

    def component_log_prob(self, value: Tensor) -> Tensor:
        """``log N(z; loc_k, scale_k)`` of every component, shape ``(*batch, K)``."""
        z = value.flatten(-self.event_dim).double()
        loc, scale = self.loc.flatten(1).double(), self.scale.flatten(1).double()
        precision = scale**-2
        constant = (loc**2 * precision).sum(-1) / 2 + scale.log().sum(-1) + loc.shape[1] * math.log(2 * math.pi) / 2
        return (z @ (loc * precision).T - (z**2) @ (precision.T / 2) - constant).to(value.dtype)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws: a component for every one, then a point of it."""
        with torch.no_grad():
            k = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape) + self.batch_shape)
            return torch.normal(self.loc[k], self.scale[k])

    @property
    def mean(self) -> Tensor:
        """``sum_k w_k loc_k``, shape ``(*batch, *event)``."""
        weights = self.logits.softmax(-1)
        mean = torch.tensordot(weights, self.loc, dims=1)
        return mean.expand(self.batch_shape + self.event_shape)


def mixture(logits: Tensor, components: TorchDistribution) -> TorchDistribution:
    """Mixture of the K rows of ``components`` (batch shape ``(K,)``), by the fastest exact class."""
    normal = components.base_dist if isinstance(components, dist.Independent) else None
    if isinstance(normal, dist.Normal) and components.batch_shape == logits.shape:
        return NormalMixture(logits, normal.loc, normal.scale)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


def positive(raw: Tensor) -> Tensor:
    """``exp(10 tanh(raw / 10))``: about exp near 0, and within exp(±10) everywhere.

    A scale in that range neither underflows in a square nor overflows in a precision, even in float32.
    """
    return torch.exp(10 * torch.tanh(raw / 10))


def center(distribution: TorchDistribution) -> Tensor:
    """The mean; where there is none, as for classes or a Cauchy tail, the mode."""
    mean = distribution.mean
    return torch.where(mean.isnan(), distribution.mode, mean) if mean.isnan().any() else mean


def score(distribution: TorchDistribution, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    r"""``distribution.log_prob(value)``, several times faster for events of binary data where no gradient is recorded.

    The log-probability of binary x under a Bernoulli with logits l is ``-log prod_d (1 + exp(s_d))`` with
    ``s = (1 - 2 x) l``: one logarithm for a group of elements instead of one for each, in pieces that stay in the
    processor's cache. Where the product of a group overflows, beyond 88 nats in float32, a sum takes its place.
    Beside the rounding of any sum, an element's term is off by 1.2e-7 nats at most.

    Args:
        distribution: any; all but ``Bernoulli(...).to_event(n)`` on a CPU are asked for their own log_prob.
        value: broadcasts with the distribution's shape.
        *args: passed on to log_prob.
        **kwargs: passed on to log_prob.

    Example:
        >>> d = dist.Bernoulli(logits=torch.tensor([0.0, 1e4, -1e4])).to_event(1)
        >>> with torch.no_grad():
        ...     score(d, torch.tensor([1.0, 1.0, 0.0]))
        tensor(-0.6931)
    """
    base: Any = distribution.base_dist if type(distribution) is dist.Independent else None
    events = distribution.event_dim
    if (
        type(base) is not dist.Bernoulli
        or args
        or kwargs
        or torch.is_grad_enabled()
        or base.logits.device.type != "cpu"
        or base.logits.dtype not in (torch.float32, torch.float64)
        or value.shape[-events:] != distribution.event_shape
        or not ((value == 0) | (value == 1)).all()
    ):
        return distribution.log_prob(value, *args, **kwargs)
    if distribution._validate_args:
        distribution._validate_sample(value)
    logits, x = base.logits.flatten(-events), value.flatten(-events).to(base.logits.dtype)
    return _bernoulli(*torch.broadcast_tensors(logits, 1 - 2 * x))


_PIECE = 2**18  # numbers, 1 MB of float32: half of a core's cache
_GROUP = 98  # that many fair coins are 68 nats: within float32 even before training


def _bernoulli(logits: Tensor, sign: Tensor) -> Tensor:
    """``-sum softplus(sign * logits)`` over the last dimension, by pieces along the first ones."""
    if logits.dim() == 1 or logits.numel() <= _PIECE * torch.get_num_threads():
        return _bernoulli_piece(logits, sign)
    if len(logits) == 1:
        return _bernoulli(logits[0], sign[0])[None]
    rows = max(1, _PIECE * torch.get_num_threads() * len(logits) // logits.numel())
    return torch.cat([_bernoulli(*piece) for piece in zip(logits.split(rows), sign.split(rows), strict=True)])


def _bernoulli_piece(logits: Tensor, sign: Tensor) -> Tensor:
    """The same in one piece."""
    size = logits.shape[-1]
    grouped = size - size % _GROUP
    odds = torch.mul(logits, sign).exp_().add_(1)
    total = -odds[..., grouped:].prod(-1).log()
    if grouped:
        total -= odds[..., :grouped].unflatten(-1, (-1, _GROUP)).prod(-1).log_().sum(-1)
    return total if total.isfinite().all() else logsigmoid(-logits * sign).sum(-1)


class CalibratedNormal(dist.Normal):
    """A Normal that is scored at its own maximum-likelihood scale, ``s^2 = mean((x - loc)^2)`` over all elements.

    Args:
        loc: shape ``(*batch,)``.
        scale: the scale draws are made with, broadcast to ``loc``.
        report: receives each new optimal variance, a detached scalar.
    """

    def __init__(self, loc: Tensor, scale: Tensor, report: Callable[[Tensor], None]) -> None:
        super().__init__(loc, scale.expand_as(loc))
        self.report = report

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "CalibratedNormal":
        """The same distribution over a larger batch shape."""
        return CalibratedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.report)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats at the optimal scale.

        The variance is detached: at the optimum the derivative with respect to it is zero, so no gradient is lost.
        """
        variance = (value - self.loc).detach().square().mean().clamp(min=1e-12)
        self.report(variance)
        return dist.Normal(self.loc, variance.sqrt()).log_prob(value)
