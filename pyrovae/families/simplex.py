"""Proportions: positive numbers that sum to 1."""

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import gamma, simplex
from pyrovae.families.lengths import length
from pyrovae.families.positive import log_scale_params
from pyrovae.nn import MLP

__all__ = ["Dirichlet", "LogisticNormal"]


class Dirichlet(Head):
    r"""``log p(x) = sum_k (a_k - 1) log x_k + log Gamma(sum_k a_k) - sum_k log Gamma(a_k)``.

    The concentrations lie between 0.1 and exp(10); without a context it starts uniform, a = 1. Below 0.1 a share of the
    draws that matters would underflow in float32. A proportion of 0 has no finite density: it counts as 1e-38.

    Args:
        shape: K, the number of proportions, at least 2.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Raises:
        ConfigError: for a shape that is no vector's.

    References:
        Dirichlet variational autoencoder (Joo et al., 2020)

    Example:
        >>> Dirichlet(3)().mean
        tensor([0.3333, 0.3333, 0.3333], grad_fn=<DivBackward0>)
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        length(shape, "Dirichlet")
        super().__init__(shape, context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Dirichlet with one concentration per proportion."""
        return gamma.Dirichlet(gamma.concentration(params[0], 0.1))


class LogisticNormal(Head):
    r"""``x = softmax([y, 0])`` with ``y ~ N(loc, diag scale^2)`` in R^(K-1).

    The location is ``20 tanh(raw / 20)`` and the scale between 0.001 and 5, within which no proportion underflows. The
    mean has no closed form and is an average over 256 fixed points of y.

    Args:
        shape: K, the number of proportions, at least 2.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Raises:
        ConfigError: for a shape that is no vector's.

    References:
        Autoencoding variational inference for topic models (Srivastava and Sutton, 2017)

    Example:
        >>> import torch
        >>> LogisticNormal(3, context=2)(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        size = length(shape, "LogisticNormal")
        super().__init__(shape, context, net, sizes=(size - 1, size - 1))

    def family(self, *params: Tensor) -> TorchDistribution:
        """Logistic normal with bounded parameters."""
        return simplex.LogisticNormal(*log_scale_params(*params))
