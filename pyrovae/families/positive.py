"""Positive numbers."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import gamma, positive
from pyrovae.nn import MLP

__all__ = ["Gamma", "LogNormal"]


class Gamma(Head):
    r"""``log p(x) = sum_d [a_d log(a_d x_d / mean_d) - a_d x_d / mean_d - log x_d - log Gamma(a_d)]``.

    The mean is ``exp(10 tanh(raw / 10))`` and the concentration a, 1 / (relative standard deviation)^2, lies between
    0.1 and exp(10): below, a share of the draws that matters would underflow in float32. Rescale data far from 1.
    Without a context it starts as the exponential of mean 1.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    References:
        Implicit reparameterization gradients (Figurnov, Mohamed and Mnih, 2018)

    Example:
        >>> Gamma(3)().mean
        tensor([1., 1., 1.], grad_fn=<DivBackward0>)
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net, n_params=2)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Gamma with the rate ``a / mean``."""
        concentration = gamma.concentration(params[1], 0.1)
        return gamma.Gamma(concentration, concentration / positive(params[0])).to_event(self.event_dim)


class LogNormal(Head):
    r"""``log x_d ~ N(loc_d, scale_d^2)``.

    The location is ``20 tanh(raw / 20)`` and the scale from 0.001 to 5, so that draws and means neither overflow nor
    underflow in float32, whose rounding of log x is as large as a smaller scale. Rescale data far from 1.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Example:
        >>> LogNormal(3, context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net, n_params=2)

    def family(self, *params: Tensor) -> TorchDistribution:
        """LogNormal with bounded parameters."""
        loc, scale = log_scale_params(*params)
        return dist.LogNormal(loc, scale).to_event(self.event_dim)


def log_scale_params(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Location within ±20 and scale from 0.001 to 5 of the logarithm of something."""
    spread = positive(scale)
    return 20 * torch.tanh(loc / 20), 0.001 + 4.999 * spread / (5 + spread)
