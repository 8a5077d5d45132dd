"""Where the scale of a location-scale family comes from."""

import abc
import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.conditional import Shape
from pyrovae.distributions import CalibratedNormal, positive
from pyrovae.errors import ConfigError
from pyrovae.nn import dims

__all__ = ["FixedScale", "LearnedScale", "NetworkScale", "OptimalScale", "Scale", "SharedScale"]


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
        self.value = positive_number(value, "scale")
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
    log_scale = math.log(positive_number(scale, "initial"))
    if abs(log_scale) >= 10:
        raise ConfigError(f"initial: expected a scale between exp(-10) and exp(10), received {scale!r}")
    return 10 * math.atanh(log_scale / 10)


def positive_number(value: float, name: str) -> float:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name}: expected a positive number, received {value!r}")
    return value


def scale_of(scale: ScaleBuilder | float, shape: Shape) -> Scale:
    return FixedScale(shape, scale) if isinstance(scale, (int, float)) else scale(shape)
