"""Elements that are classes."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP

__all__ = ["Bernoulli", "Categorical"]


class Bernoulli(Head):
    r"""Binary data: ``log p(x) = sum_d [x_d l_d - softplus(l_d)]`` with logits l.

    Grey values are no data of this family: cross-entropy on them is not a log density. Binarise them, or use
    :class:`ContinuousBernoulli` or :class:`Normal`.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Example:
        >>> Bernoulli((1, 4, 4), context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([1, 4, 4])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Bernoulli with logits, which do not saturate as probabilities do."""
        return dist.Bernoulli(logits=params[0]).to_event(self.event_dim)


class Categorical(Head):
    r"""One of K classes in every element: ``log p(x) = sum_d [l_{d, x_d} - logsumexp_k l_{d, k}]``.

    Args:
        shape: of one event, whose elements are ints from 0 to ``classes - 1``.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        classes: K, at least 2.

    Example:
        >>> Categorical(3, context=2, classes=5)(torch.zeros(7, 2)).sample().max() < 5
        tensor(True)
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, classes: int = 2) -> None:
        if classes < 2:
            raise ConfigError(f"classes: expected at least 2, received {classes!r}")
        super().__init__(shape, context, net, n_params=classes)
        self.classes = classes

    def family(self, *params: Tensor) -> TorchDistribution:
        """Categorical with one tensor of logits per class."""
        return dist.Categorical(logits=torch.stack(params, -1)).to_event(self.event_dim)
