"""Grey levels: the numbers ``0, 1 / (L - 1), ..., 1`` that L stored values become when scaled to [0, 1]."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import levels as grids
from pyrovae.distributions.basics import positive
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP

__all__ = ["CategoricalLevels", "DiscretizedLogistic", "DiscretizedLogisticMixture"]


class DiscretizedLogistic(Head):
    r"""Grey levels: ``P(j) = sigmoid((j + 1/2 - m) / s) - sigmoid((j - 1/2 - m) / s)`` for ``j = (L - 1) x``.

    The lowest bin is open below and the highest above, so that the probabilities sum to one. The data are 8-bit images
    scaled to [0, 1] (``Rescale()``), and the log-probability is that of the stored integers, so that it divides into
    bits per dimension. A value is scored as the nearest level. The location starts near 1/2, the scale at 1/8 of the
    range; the scale stays above a tenth of a level, where one level has 98.7 % of the mass.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        levels: L, at least 2; 256 for 8-bit images.

    Raises:
        ConfigError: for fewer than 2 levels.

    References:
        Improved variational inference with inverse autoregressive flow (Kingma et al., 2016);
        PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and other modifications
        (Salimans et al., 2017)

    Example:
        >>> DiscretizedLogistic((1, 4, 4), context=2)(torch.zeros(5, 2)).log_prob(torch.ones(5, 1, 4, 4)).shape
        torch.Size([5])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, levels: int = 256) -> None:
        at_least_two(levels, "levels")
        super().__init__(shape, context, net, n_params=2)
        self.levels = levels

    def family(self, *params: Tensor) -> TorchDistribution:
        """Discretized logistic of location and raw scale."""
        loc, raw = params
        return grids.DiscretizedLogistic(0.5 + loc, _scale(raw, self.levels), self.levels).to_event(self.event_dim)


class DiscretizedLogisticMixture(Head):
    r"""Grey levels: ``P(j) = sum_k w_k P_k(j)``, a mixture of K discretized logistics in every element.

    Elements are independent given the context, colour channels too, unlike in PixelCNN++, where the location of a
    channel depends on the values of those before. The components' locations start spread evenly over [0, 1].

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        components: K, at least 1.
        levels: L, at least 2; 256 for 8-bit images.

    Raises:
        ConfigError: for fewer than 2 levels or no component.

    References:
        PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and other modifications
        (Salimans et al., 2017)

    Example:
        >>> DiscretizedLogisticMixture((3, 4, 4), context=2)(torch.zeros(5, 2)).mean.shape
        torch.Size([5, 3, 4, 4])
    """

    starts: Tensor

    def __init__(
        self,
        shape: Shape,
        context: Context = None,
        net: NetBuilder = MLP,
        components: int = 10,
        levels: int = 256,
    ) -> None:
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise ConfigError(f"components: expected a positive int, received {components!r}")
        at_least_two(levels, "levels")
        super().__init__(shape, context, net, n_params=3 * components)
        self.components, self.levels = components, levels
        self.register_buffer("starts", (torch.arange(components) + 0.5) / components, persistent=False)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Mixture of K log weights, K locations and K raw scales."""
        logits, loc, raw = _gathered(params, self.event_dim).chunk(3, -1)
        mixture = grids.DiscretizedLogisticMixture(logits, self.starts + loc, _scale(raw, self.levels), self.levels)
        return mixture.to_event(self.event_dim)


class CategoricalLevels(Head):
    r"""Grey levels: ``log P(j) = l_j - logsumexp(l)``, L logits in every element, which know no order.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder; its output is L times the event.
        levels: L, at least 2; 256 for 8-bit images.

    Raises:
        ConfigError: for fewer than 2 levels.

    References:
        Pixel recurrent neural networks (van den Oord, Kalchbrenner and Kavukcuoglu, 2016)

    Example:
        >>> CategoricalLevels((1, 4, 4), context=2, levels=17)(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, levels: int = 256) -> None:
        super().__init__(shape, context, net, n_params=at_least_two(levels, "levels"))
        self.levels = levels

    def family(self, *params: Tensor) -> TorchDistribution:
        """Categorical on the grid with one tensor of logits per level."""
        return grids.CategoricalLevels(_gathered(params, self.event_dim)).to_event(self.event_dim)


def at_least_two(count: int, name: str) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ConfigError(f"{name}: expected an int of at least 2, received {count!r}")
    return count


def _gathered(params: Sequence[Tensor], event_dim: int) -> Tensor:
    """All of an element's parameters in a last dimension, laid out as the network put them, which is twice as fast."""
    before = -event_dim - 1
    return torch.stack(list(params), before).movedim(before, -1)


def _scale(raw: Tensor, levels: int) -> Tensor:
    return positive(raw) / 8 + 0.1 / (levels - 1)
