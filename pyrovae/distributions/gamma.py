"""Gamma, Beta and Dirichlet with densities and gradients that keep their digits in float32.

torch's densities add up terms like ``lgamma(a)`` that cancel: at a = 20000 they are off by up to 0.03 nats in float32.
Here each is a deviance, which is 0 at the mean, and a normaliser by Stirling's formula. The gradients of torch's draws
of a Dirichlet are off by 4% where concentrations are as unequal as 0.25 and 10000; here the draws are those of gammas.
"""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.kl import register_kl

from pyrovae.distributions.basics import positive
from pyrovae.distributions.supports import open_unit_interval

__all__ = ["Beta", "Dirichlet", "Gamma", "concentration", "stirling"]


def concentration(raw: Tensor, least: float) -> Tensor:
    """A concentration from any number: 1 at 0, never below ``least``, never above exp(10), about 22 000."""
    return least + (1 - least) * positive(raw)


class Gamma(dist.Gamma):
    r"""``log p(x) = a (log r - r + 1) + 1/2 log(a / 2 pi) - s(a) - log x`` with ``r = x / mean``.

    s is Stirling's remainder, what his formula lacks to the logarithm of the gamma function.

    Args:
        concentration: a, shape ``(*batch,)``.
        rate: ``a / mean``, shape ``(*batch,)``.

    Example:
        >>> Gamma(torch.tensor(2.0), torch.tensor(2.0)).log_prob(torch.tensor(1.0))
        tensor(-0.6137)
    """

    support = constraints.positive  # pyright: ignore

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        a = self.concentration
        constant = (a / (2 * math.pi)).log() / 2 - stirling(a)
        return a * _excess(value, a / self.rate) + constant - value.log()


class Beta(dist.Beta):
    """The Dirichlet of two, of which x is the first; on the open interval (0, 1).

    Args:
        concentration1: of x, shape ``(*batch,)``.
        concentration0: of ``1 - x``, shape ``(*batch,)``.

    Example:
        >>> Beta(torch.tensor(1.0), torch.tensor(1.0)).log_prob(torch.tensor(0.3)).abs() < 1e-6
        tensor(True)
    """

    support = open_unit_interval  # pyright: ignore

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        alpha = torch.stack([self.concentration1, self.concentration0], -1)
        return _dirichlet_log_prob(alpha, torch.stack([value, 1 - value], -1))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised draws, kept off 0 and 1 by one rounding."""
        shape = self._extended_shape(sample_shape)
        x = (_log_gamma(self.concentration1.expand(shape)) - _log_gamma(self.concentration0.expand(shape))).sigmoid()
        return x.clamp(torch.finfo(x.dtype).tiny, 1 - torch.finfo(x.dtype).eps / 2)


class Dirichlet(dist.Dirichlet):
    r"""``log p(x) = sum_k a_k log(x_k / mean_k) - sum_k log x_k + c(a)``; 0 counts as the least positive float.

    Args:
        concentration: a, shape ``(*batch, K)``.

    Example:
        >>> Dirichlet(torch.ones(3)).log_prob(torch.tensor([0.2, 0.3, 0.5]))
        tensor(0.6931)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        return _dirichlet_log_prob(self.concentration, value.clamp(min=torch.finfo(value.dtype).tiny))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised draws, without zeros."""
        x = _log_gamma(self.concentration.expand(self._extended_shape(sample_shape))).softmax(-1)
        return x.clamp(min=torch.finfo(x.dtype).tiny)


def _log_gamma(a: Tensor) -> Tensor:
    """Reparameterised draws of the logarithm of gammas: of ``a + 1``, times ``U^(1/a)``, so that none underflows."""
    return torch._standard_gamma(a + 1).log() + torch.rand_like(a).clamp(min=torch.finfo(a.dtype).eps / 4).log() / a


def _dirichlet_log_prob(alpha: Tensor, x: Tensor) -> Tensor:
    total = alpha.sum(-1, keepdim=True)
    deviance = (alpha * _excess(x, alpha / total)).sum(-1)
    half_logs = (alpha / (2 * math.pi)).log().sum(-1) - (total / (2 * math.pi)).log().squeeze(-1)
    remainders = stirling(total).squeeze(-1) - stirling(alpha).sum(-1)
    return deviance - x.log().sum(-1) + half_logs / 2 + remainders


def _excess(x: Tensor, mean: Tensor) -> Tensor:
    """``log(x / mean) - (x - mean) / mean``, without losing it where x is near the mean."""
    u = (x - mean) / mean
    near = u.abs() < 0.5
    return torch.where(near, torch.log1p(torch.where(near, u, 0.0)), x.log() - mean.log()) - u


def stirling(a: Tensor) -> Tensor:
    """Stirling's remainder, ``lgamma(a) - (a - 1/2) log a + a - 1/2 log 2 pi``: by its series from 8 on."""
    large = a > 8
    b, s = torch.where(large, a, 8.0), torch.where(large, 1.0, a)
    i = b**-2
    series = (1 / 12 - i * (1 / 360 - i * (1 / 1260 - i / 1680))) / b
    return torch.where(large, series, s.lgamma() - (s - 0.5) * s.log() + s - math.log(2 * math.pi) / 2)


@register_kl(Gamma, Gamma)
def _kl_gamma(p: Gamma, q: Gamma) -> Tensor:
    """In float64, where nothing that matters is lost by the terms that cancel; so below."""
    wide = [dist.Gamma(d.concentration.double(), d.rate.double(), validate_args=False) for d in (p, q)]
    return kl_divergence(*wide).to(p.concentration.dtype)


@register_kl(Beta, Beta)
def _kl_beta(p: Beta, q: Beta) -> Tensor:
    wide = [dist.Beta(d.concentration1.double(), d.concentration0.double(), validate_args=False) for d in (p, q)]
    return kl_divergence(*wide).to(p.concentration1.dtype)


@register_kl(Dirichlet, Dirichlet)
def _kl_dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    wide = [dist.Dirichlet(d.concentration.double(), validate_args=False) for d in (p, q)]
    return kl_divergence(*wide).to(p.concentration.dtype)
