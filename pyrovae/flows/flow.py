"""The head whose family is a base family pushed through invertible maps."""

import functools
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import Permute
from torch import Tensor, nn
from torch.distributions import Transform

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import center
from pyrovae.errors import ConfigError
from pyrovae.families import Normal
from pyrovae.flows.transforms import FlowTransform, RealNVP
from pyrovae.nn import MLP, dims

__all__ = ["Flow", "Flowed"]


class Flow(Head):
    r"""A base distribution pushed through invertible maps: ``z = f_L(... f_1(u))`` with ``u ~ base``.

    ``log q(z) = log base(u) - sum_l log |det df_l|``, each determinant taken where the draw passes.

    Given a context, the network puts out the base's parameters and ``features`` numbers h, on which every map depends
    as well. Without one it is a learned prior: the base's parameters and those of the maps are constants.

    A draw is scored without inverting anything, so that every kind serves as a posterior; a prior scores points from
    elsewhere, quickly by ``RealNVP``, ``MAF`` and ``NeuralSpline``. Where a kind treats dimensions unlike, their order
    is reversed between layers. ``mean`` is the base's mean pushed through, not the mean, which has no closed form.

    Args:
        shape: of one event, a vector.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        base: a head of real vectors or a partial of one, such as ``partial(Normal, scale=LearnedScale)``.
        transform: one of :class:`RealNVP`, :class:`MAF`, :class:`IAF`, :class:`NeuralSpline`, :class:`Planar`,
            :class:`Householder`, :class:`Sylvester`, or a partial of it.
        layers: maps in a row.
        features: numbers h; None takes twice the vector's size, and 0 leaves the maps to themselves.

    Raises:
        ConfigError: for a shape that is no vector or too small for the kind, a base that is not on the real numbers,
            fewer than one layer, or features without a context.

    References:
        Variational inference with normalizing flows (Rezende and Mohamed, 2015);
        Normalizing flows for probabilistic modeling and inference (Papamakarios et al., 2021)

    Example:
        >>> import pyrovae as pv
        >>> from pyrovae.flows import IAF
        >>> q = Flow(16, context=784, transform=IAF)
        >>> d = q(torch.zeros(3, 784))
        >>> d.batch_shape, d.event_shape
        (torch.Size([3]), torch.Size([16]))
    """

    reversal: Tensor

    def __init__(
        self,
        shape: Shape,
        context: Context = None,
        net: NetBuilder = MLP,
        base: Callable[..., Head] = Normal,
        transform: Callable[..., FlowTransform] = RealNVP,
        layers: int = 4,
        features: int | None = None,
    ) -> None:
        size = _vector(shape)
        count = _features(features, context, size)
        source, n_params = _source(base, size)
        super().__init__(shape, context, net, sizes=[n_params, count] if count else [n_params])
        self.base, self.transform, self.layers, self.features = base, transform, layers, features
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
            raise ConfigError(f"layers: expected a positive int, received {layers!r}")
        self.source = source
        self.transforms = nn.ModuleList([transform(size, count) for _ in range(layers)])
        self.register_buffer("reversal", torch.arange(size - 1, -1, -1), persistent=False)

    def family(self, *params: Tensor) -> dist.TorchDistribution:
        """The base at its parameters, pushed through the maps given h."""
        base, *h = params
        return Flowed(self.source.at(base), functools.partial(self._chain, *h))

    def _chain(self, h: Tensor | None = None) -> list[Transform]:
        chain: list[Transform] = []
        for layer in self.transforms:
            if chain and layer.ordered:
                chain.append(Permute(self.reversal))
            chain.append(layer(h))
        return chain


class Flowed(dist.TransformedDistribution):  # pyright: ignore[reportAttributeAccessIssue]
    """A distribution pushed through transforms, as torch's and Pyro's, with a centre and honest gradients.

    The transforms remember the last draw and what it came from, so that scoring it inverts nothing. A draw that was
    made while no gradient was recorded is inverted all the same once one is: what is remembered would be a constant.

    Args:
        base_distribution: of vectors.
        build: makes the transforms, afresh in every call.
        validate_args: as in torch.
    """

    def __init__(
        self,
        base_distribution: dist.TorchDistribution,
        build: Callable[[], list[Transform]],
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(base_distribution, build(), validate_args=validate_args)
        self._build, self._drawn = build, {"recorded": True}

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Flowed":
        """The same distribution over a larger batch shape; what is remembered is shared."""
        new = self._get_checked_instance(Flowed, _instance)
        new._build, new._drawn = self._build, self._drawn
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws with gradients, shape ``(*sample_shape, *batch, size)``."""
        self._drawn["recorded"] = torch.is_grad_enabled()
        return super().rsample(sample_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws without gradients, shape ``(*sample_shape, *batch, size)``."""
        self._drawn["recorded"] = False
        return super().sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``; of a point from elsewhere the maps are inverted."""
        if torch.is_grad_enabled() and not self._drawn["recorded"]:
            value = value.view_as(value)  # another object: nothing is remembered of it
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        if value.shape[:-1] != batch:  # a point of all rows
            value = value.expand(*batch, -1)
        return super().log_prob(value)

    @property
    def mean(self) -> Tensor:
        """The base's mean pushed through, shape ``(*batch, size)``; not the mean, which has no closed form."""
        point: Any = center(self.base_dist)
        for transform in self._build():  # its own, so that the last draw stays remembered
            point = transform(point)
        return point


class _Nothing(nn.Module):
    """Stands where a head has its network, and knows how much that would have put out."""

    def __init__(self, in_shape: Shape, out_shape: int) -> None:
        super().__init__()
        self.out_shape = out_shape


def _source(base: Callable[..., Head], size: int) -> tuple[Head, int]:
    """The base without a network of its own, and the count of its parameters."""
    source = base(size, context=1, net=_Nothing)
    if not (isinstance(source, Head) and isinstance(source.network, _Nothing)):
        raise ConfigError(f"base: expected a head such as Normal or a partial of one, received {base!r}")
    n_params = source.network.out_shape
    support = source.at(torch.zeros(n_params)).support
    if getattr(support, "base_constraint", support) is not constraints.real:
        raise ConfigError(f"base: expected a head of real vectors such as Normal or StudentT, received {base!r}")
    return source, n_params


def _vector(shape: Shape) -> int:
    sizes = dims(shape)
    if len(sizes) != 1:
        raise ConfigError(f"shape: a flow is over vectors, expected one dimension, received {shape!r}; flatten it")
    return sizes[0]


def _features(features: int | None, context: Context, size: int) -> int:
    if features is not None and (isinstance(features, bool) or not isinstance(features, int) or features < 0):
        raise ConfigError(f"features: expected an int from 0, or None, received {features!r}")
    if context is None and features:
        raise ConfigError(f"features: expected none without a context to compute them from, received {features}")
    if context is None:
        return 0
    return 2 * size if features is None else features
