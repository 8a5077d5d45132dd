"""The continuous Bernoulli, exact in float32."""

import math

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["ContinuousBernoulli"]


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
