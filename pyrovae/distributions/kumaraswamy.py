"""The Kumaraswamy distribution, whose powers keep their digits in float32."""

import math

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrovae.distributions.supports import open_unit_interval

__all__ = ["Kumaraswamy"]


class Kumaraswamy(TorchDistribution):
    r"""Like the Beta, with a closed form for its quantiles: ``p(x) = a b x^(a-1) (1 - x^a)^(b-1)`` on (0, 1).

    Powers stay logarithms throughout, and ``log(1 - exp(y))`` is taken by expm1 or log1p, whichever keeps its digits;
    torch's class of the same name rounds ``1 - x^a`` and gives infinite densities and draws of 0 and 1 in float32.

    Args:
        concentration1: a, shape ``(*batch,)``.
        concentration0: b, shape ``(*batch,)``.

    References:
        Stick-breaking variational autoencoders (Nalisnick and Smyth, 2017)

    Example:
        >>> d = Kumaraswamy(torch.tensor(2.0), torch.tensor(3.0))
        >>> d.log_prob(torch.tensor(0.5)), d.mean
        (tensor(0.5232), tensor(0.4571))
    """

    arg_constraints = {"concentration1": constraints.positive, "concentration0": constraints.positive}  # noqa: RUF012  # pyright: ignore
    support = open_unit_interval  # pyright: ignore
    has_rsample = True

    def __init__(self, concentration1: Tensor, concentration0: Tensor, *, validate_args: bool | None = None) -> None:
        self.concentration1, self.concentration0 = torch.broadcast_tensors(concentration1, concentration0)
        super().__init__(self.concentration1.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Kumaraswamy":
        """The same distribution over a larger batch shape."""
        a, b = self.concentration1.expand(batch_shape), self.concentration0.expand(batch_shape)
        return Kumaraswamy(a, b, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        a, b, log = self.concentration1, self.concentration0, value.log()
        return a.log() + b.log() + (a - 1) * log + (b - 1) * _log1mexp(a * log)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile, ``(1 - (1 - v)^(1/b))^(1/a)``, kept off 0 and 1 by one rounding."""
        x = (_log1mexp(torch.log1p(-value) / self.concentration0) / self.concentration1).exp()
        info = torch.finfo(x.dtype)
        return x.clamp(info.tiny, 1 - info.eps / 2)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised draws by inversion."""
        a = self.concentration1
        noise = torch.rand(self._extended_shape(sample_shape), dtype=a.dtype, device=a.device)
        return self.icdf(noise.clamp(min=torch.finfo(a.dtype).eps / 4))

    @property
    def mean(self) -> Tensor:
        """``b Gamma(1 + 1/a) Gamma(b) / Gamma(1 + 1/a + b)``, by way of float64."""
        a, b = self.concentration1.double(), self.concentration0.double()
        log = b.log() + torch.lgamma(1 + 1 / a) + torch.lgamma(b) - torch.lgamma(1 + 1 / a + b)
        return log.exp().to(self.concentration1.dtype)


def _log1mexp(y: Tensor) -> Tensor:
    """``log(1 - exp(y))`` for y < 0."""
    near = y > -math.log(2)
    return torch.where(
        near, torch.where(near, y, -1.0).expm1().neg().log(), torch.log1p(-torch.where(near, -1.0, y).exp())
    )
