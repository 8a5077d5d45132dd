"""Numbers in [0, 1]."""

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.nn import MLP

__all__ = ["ContinuousBernoulli"]


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
