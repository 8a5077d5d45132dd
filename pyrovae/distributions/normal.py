"""Normals that torch and Pyro lack: mixtures by matrix products, and one scored at its own optimal scale."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["CalibratedNormal", "NormalMixture", "mixture"]


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
