"""Numbers from 0 to 1."""

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import gamma, kumaraswamy
from pyrovae.nn import MLP

__all__ = ["Beta", "ContinuousBernoulli", "Kumaraswamy"]

_LEAST = 0.25


class ContinuousBernoulli(Head):
    r"""Grey values in [0, 1]: ``log p(x) = sum_d [x_d l_d - softplus(l_d) + log C(l_d)]``, ``C(l) = l / tanh(l / 2)``.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem and Cunningham, 2019)

    Example:
        >>> import torch
        >>> ContinuousBernoulli(3, context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Continuous Bernoulli with logits."""
        return distributions.ContinuousBernoulli(logits=params[0]).to_event(self.event_dim)


class Beta(Head):
    r"""Strictly between 0 and 1: ``log p(x) = sum_d [(a_d - 1) log x_d + (b_d - 1) log(1 - x_d) - log B(a_d, b_d)]``.

    Both concentrations lie between 0.25 and exp(10); without a context it starts as the uniform, a = b = 1. The lower
    bound is that of float32, in which 6e-8 is the least distance from 1: at 0.25 the draws that belong closer to 1, and
    are put there, hide 0.03 nats of a divergence estimated from draws, at 0.1 it were 0.9. At 0 and 1 themselves the
    density is 0 or infinite: for grey values that hold them take :class:`ContinuousBernoulli`.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Example:
        >>> import torch
        >>> Beta(3, context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net, n_params=2)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Beta with two concentrations."""
        a, b = (gamma.concentration(p, _LEAST) for p in params)
        return gamma.Beta(a, b).to_event(self.event_dim)


class Kumaraswamy(Head):
    r"""Like the Beta, reparameterised in closed form: ``p(x) = prod_d a_d b_d x_d^(a_d - 1) (1 - x_d^a_d)^(b_d - 1)``.

    The concentrations are bounded as those of :class:`Beta`, and it starts as the uniform as well.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    References:
        Stick-breaking variational autoencoders (Nalisnick and Smyth, 2017)

    Example:
        >>> import torch
        >>> Kumaraswamy(3, context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net, n_params=2)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Kumaraswamy with two concentrations."""
        a, b = (gamma.concentration(p, _LEAST) for p in params)
        return kumaraswamy.Kumaraswamy(a, b).to_event(self.event_dim)
