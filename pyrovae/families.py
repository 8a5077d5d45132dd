"""Final heads: each is likelihood p(x|z), posterior q(z|x) or learned prior p(z|c), as its place in the model says."""

import abc
import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import CalibratedNormal, positive
from pyrovae.distributions import ContinuousBernoulli as _ContinuousBernoulli
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP, dims

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "FixedScale",
    "Laplace",
    "LearnedScale",
    "NetworkScale",
    "Normal",
    "OptimalScale",
    "Scale",
    "SharedScale",
    "StudentT",
]


class Scale(nn.Module, abc.ABC):
    """Where the scale of a location-scale family comes from.

    Args:
        shape: of one event; the head fills it in, so that ``scale=SharedScale`` is a whole declaration.
    """

    n_params: int = 0
    """Network outputs per element that this scale uses."""

    @abc.abstractmethod
    def forward(self, *raw: Tensor) -> Tensor:
        """The scale, positive, broadcasting with the location.

        Args:
            *raw: ``n_params`` tensors of shape ``(*batch, *shape)``.
        """

    def normal(self, loc: Tensor, *raw: Tensor) -> TorchDistribution:
        """The Normal of this scale around ``loc``."""
        return dist.Normal(loc, self(*raw))


ScaleBuilder = Callable[..., Scale]


class NetworkScale(Scale):
    """Computed by the network for every row and element: ``scale = exp(10 tanh(raw / 10))``.

    The bound keeps the scale within exp(±10), where neither its square nor a divergence underflows in float32.
    """

    n_params = 1

    def __init__(self, shape: Shape) -> None:
        super().__init__()

    def forward(self, *raw: Tensor) -> Tensor:
        """The scale, shape ``(*batch, *shape)``."""
        return positive(raw[0])


class LearnedScale(Scale):
    """One learned scale for each element of the event, the same in every row.

    Args:
        shape: of one event.
        initial: value before training.
    """

    def __init__(self, shape: Shape, initial: float = 1.0) -> None:
        super().__init__()
        self.initial = initial
        self.raw = nn.Parameter(torch.full(dims(shape), _raw(initial)))

    def forward(self, *raw: Tensor) -> Tensor:
        """The scale, shape ``shape``."""
        return positive(self.raw)


class SharedScale(Scale):
    """One learned scale for all elements and rows: the calibrated decoder of the probabilistic-PCA kind.

    Args:
        shape: of one event, not used.
        initial: value before training.

    References:
        Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis and Levine, 2021)
    """

    def __init__(self, shape: Shape, initial: float = 1.0) -> None:
        super().__init__()
        self.initial = initial
        self.raw = nn.Parameter(torch.tensor(_raw(initial)))

    def forward(self, *raw: Tensor) -> Tensor:
        """The scale, a scalar."""
        return positive(self.raw)


class FixedScale(Scale):
    """A constant; ``scale=0.1`` on a head is short for it.

    Args:
        shape: of one event, not used.
        value: the scale.
    """

    value: float
    constant: Tensor

    def __init__(self, shape: Shape, value: float = 1.0) -> None:
        super().__init__()
        self.value = _positive_number(value, "scale")
        self.register_buffer("constant", torch.tensor(float(value)), persistent=False)

    def forward(self, *raw: Tensor) -> Tensor:
        """The scale, a scalar."""
        return self.constant


class OptimalScale(Scale):
    """The maximum-likelihood scale in closed form, for Normal alone: ``s^2 = mean((x - loc)^2)`` over the batch.

    While training each batch is scored at its own optimum, and a running average of s² is kept; in evaluation mode, and
    for draws, the average is used, so that p(x|z) is a density there.

    Args:
        shape: of one event, not used.
        momentum: weight of the newest batch in the running average.

    References:
        Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis and Levine, 2021)
    """

    variance: Tensor
    seen: Tensor

    def __init__(self, shape: Shape, momentum: float = 0.01) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ConfigError(f"momentum: expected a number in (0, 1], received {momentum!r}")
        self.momentum = momentum
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, *raw: Tensor) -> Tensor:
        """Only a Normal has this optimum."""
        raise ConfigError("scale: OptimalScale is the closed form of the Normal alone; use SharedScale or LearnedScale")

    def normal(self, loc: Tensor, *raw: Tensor) -> TorchDistribution:
        """In training the Normal that is scored at the batch's optimum, afterwards the one at the running average."""
        scale = self.variance.sqrt()
        return CalibratedNormal(loc, scale, self.observe) if self.training else dist.Normal(loc, scale)

    @torch.no_grad()
    def observe(self, variance: Tensor) -> None:
        """Move the running average towards a new batch's optimum; the first few count evenly."""
        self.seen += 1
        self.variance.lerp_(variance.to(self.variance.dtype), torch.clamp(1 / self.seen, min=self.momentum))


def _raw(scale: float) -> float:
    """The inverse of ``positive``."""
    log_scale = math.log(_positive_number(scale, "initial"))
    if abs(log_scale) >= 10:
        raise ConfigError(f"initial: expected a scale between exp(-10) and exp(10), received {scale!r}")
    return 10 * math.atanh(log_scale / 10)


def _positive_number(value: float, name: str) -> float:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name}: expected a positive number, received {value!r}")
    return value


def _scale(scale: ScaleBuilder | float, shape: Shape) -> Scale:
    return FixedScale(shape, scale) if isinstance(scale, (int, float)) else scale(shape)


class LocationScale(Head):
    """Abstract: a location from the network and a scale from a :class:`Scale`.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        scale: class of the scale or a partial of it, or a number.
    """

    def __init__(
        self,
        shape: Shape,
        context: Context = None,
        net: NetBuilder = MLP,
        scale: ScaleBuilder | float = NetworkScale,
    ) -> None:
        source = _scale(scale, shape)
        super().__init__(shape, context, net, n_params=1 + source.n_params)
        self.scale, self.scale_source = scale, source


class Normal(LocationScale):
    r"""Diagonal Gaussian: ``log p(a) = -1/2 sum_d [((a_d - loc_d) / scale_d)^2 + 2 log scale_d + log 2 pi]``.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        scale: :class:`NetworkScale`, :class:`LearnedScale`, :class:`SharedScale`, :class:`OptimalScale`, or a number.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2014)

    Example:
        >>> q = Normal(16, context=784)
        >>> d = q(torch.zeros(3, 784))
        >>> d.batch_shape, d.event_shape
        (torch.Size([3]), torch.Size([16]))
    """

    def family(self, *params: Tensor) -> TorchDistribution:
        """Normal with ``loc`` and what the scale needs."""
        loc, *raw = params
        return self.scale_source.normal(loc, *raw).to_event(self.event_dim)


class Laplace(LocationScale):
    r"""Double exponential: ``log p(a) = -sum_d [|a_d - loc_d| / scale_d + log 2 scale_d]``, robust to outliers.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        scale: :class:`NetworkScale`, :class:`LearnedScale`, :class:`SharedScale`, or a number.

    Example:
        >>> Laplace(3, context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def family(self, *params: Tensor) -> TorchDistribution:
        """Laplace with ``loc`` and what the scale needs."""
        loc, *raw = params
        return dist.Laplace(loc, self.scale_source(*raw)).to_event(self.event_dim)


class StudentT(LocationScale):
    r"""Heavy tails: ``p(a_d) ~ (1 + ((a_d - loc_d) / scale_d)^2 / df)^(-(df + 1) / 2)``.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        scale: :class:`NetworkScale`, :class:`LearnedScale`, :class:`SharedScale`, or a number.
        df: degrees of freedom; None learns one number above 2, so that the variance exists.

    References:
        Student-t variational autoencoder for robust density estimation (Takahashi et al., 2018)

    Example:
        >>> StudentT(3, context=2, df=4.0)(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        shape: Shape,
        context: Context = None,
        net: NetBuilder = MLP,
        scale: ScaleBuilder | float = NetworkScale,
        df: float | None = None,
    ) -> None:
        super().__init__(shape, context, net, scale)
        self.df = df if df is None else _positive_number(df, "df")
        if df is None:
            self.raw_df = nn.Parameter(torch.tensor(3.0))

    def family(self, *params: Tensor) -> TorchDistribution:
        """Student's t with ``loc`` and what the scale needs."""
        loc, *raw = params
        df = 2 + softplus(self.raw_df) if self.df is None else self.df
        return dist.StudentT(df, loc, self.scale_source(*raw)).to_event(self.event_dim)


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
        >>> ContinuousBernoulli(3, context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Continuous Bernoulli with logits."""
        return _ContinuousBernoulli(logits=params[0]).to_event(self.event_dim)


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
