"""Real numbers, each with a location and a scale."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.families.scale import NetworkScale, ScaleBuilder, positive_number, scale_of
from pyrovae.nn import MLP

__all__ = ["Laplace", "LocationScale", "Normal", "StudentT"]


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
        source = scale_of(scale, shape)
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
        self.df = df if df is None else positive_number(df, "df")
        if df is None:
            self.raw_df = nn.Parameter(torch.tensor(3.0))

    def family(self, *params: Tensor) -> TorchDistribution:
        """Student's t with ``loc`` and what the scale needs."""
        loc, *raw = params
        df = 2 + softplus(self.raw_df) if self.df is None else self.df
        return dist.StudentT(df, loc, self.scale_source(*raw)).to_event(self.event_dim)
