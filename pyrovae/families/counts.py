"""Counts: whole numbers from 0."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import counts
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP

__all__ = ["Multinomial", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]


class Poisson(Head):
    r"""Counts: ``log p(x) = sum_d [x_d log r_d - r_d - log x_d!]`` with ``log r = 15 tanh(raw / 15)``.

    The bound keeps rates within exp(±15), 3e-7 to 3e6: at a rate that has underflowed to 0 gradients would be NaN.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Example:
        >>> import torch
        >>> Poisson(3, context=2)(torch.zeros(5, 2)).log_prob(torch.tensor([0.0, 1.0, 100.0])).shape
        torch.Size([5])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Poisson with a raw log rate."""
        (raw,) = params
        return counts.InDouble(dist.Poisson(_log_rate(raw).exp()), raw.dtype).to_event(self.event_dim)


class NegativeBinomial(Head):
    r"""Overdispersed counts, ``E x = m`` and ``Var x = m + m^2 / r``: a Poisson whose rate is Gamma(r, r / m).

    ``log p(x) = sum_d [log C(x_d + r_d - 1, x_d) + r_d log(r_d / (r_d + m_d)) + x_d log(m_d / (r_d + m_d))]``, with
    ``log m = 15 tanh(raw / 15)`` and ``log r = 10 tanh(raw' / 10)``; both are 1 at 0.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)

    Example:
        >>> import torch
        >>> NegativeBinomial(3, context=2)(torch.zeros(5, 2)).mean.shape
        torch.Size([5, 3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net, n_params=2)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Negative binomial with a raw log mean and a raw log dispersion."""
        mean, dispersion = params
        r, logits = _dispersion(mean, dispersion)
        return counts.InDouble(dist.NegativeBinomial(r, logits=logits), mean.dtype).to_event(self.event_dim)


class ZeroInflatedNegativeBinomial(Head):
    r"""Overdispersed counts with more zeros: ``p(x_d) = g_d [x_d = 0] + (1 - g_d) NegativeBinomial(x_d; m_d, r_d)``.

    The gate g is a sigmoid of its logits; m and r are those of :class:`NegativeBinomial`.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)

    Example:
        >>> import torch
        >>> ZeroInflatedNegativeBinomial(3, context=2)(torch.zeros(5, 2)).mean.shape
        torch.Size([5, 3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net, n_params=3)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Zero-inflated negative binomial with a raw log mean, a raw log dispersion and the gate's logits."""
        mean, dispersion, gate = params
        r, logits = _dispersion(mean, dispersion)
        base = counts.ZeroInflated(dist.NegativeBinomial(r, logits=logits), gate.double())
        return counts.InDouble(base, mean.dtype).to_event(self.event_dim)


class Multinomial(Head):
    r"""Counts of K words given their sum: ``log p(x | N) = log N! - sum_k log x_k! + sum_k x_k log p_k``, p a softmax.

    Every row is scored given its own total N; the model says nothing about totals. For topic models, documents as
    counts of words.

    Args:
        shape: of one event, K for vectors; all elements are words.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        total: words in a row that is drawn, and in the mean.

    Raises:
        ConfigError: for a total below 1.

    References:
        Autoencoding variational inference for topic models (Srivastava and Sutton, 2017);
        Variational autoencoders for collaborative filtering (Liang et al., 2018)

    Example:
        >>> import torch
        >>> Multinomial(7, context=2, total=50)(torch.zeros(5, 2)).sample().sum(-1)
        tensor([50., 50., 50., 50., 50.])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, total: int = 100) -> None:
        if isinstance(total, bool) or not isinstance(total, int) or total < 1:
            raise ConfigError(f"total: expected a positive int, received {total!r}")
        super().__init__(shape, context, net)
        self.total = total

    def family(self, *params: Tensor) -> TorchDistribution:
        """Multinomial with the words' logits."""
        return counts.Multinomial(params[0], self.total, self.event_dim)


def _log_rate(raw: Tensor) -> Tensor:
    """About ``raw`` near 0, within ±15 everywhere; in float64, as what follows is."""
    return 15 * (raw.double() / 15).tanh()


def _dispersion(mean: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
    """``r`` and ``log(m / r)``."""
    r = distributions.positive(dispersion.double())
    return r, _log_rate(mean) - r.log()
