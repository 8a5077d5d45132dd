"""Directions, as unit vectors or as angles."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import softplus

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import sphere
from pyrovae.families.lengths import length
from pyrovae.nn import MLP

__all__ = ["PowerSpherical", "Spherical", "VonMises", "VonMisesFisher"]


class Spherical(Head):
    r"""Abstract: a direction and a concentration, each from the network, on the unit vectors of R^m.

    The direction is the first m outputs by their length. The concentration is ``s / (1 + s / 10^6) + 10^-3`` with s the
    softplus of the last: about the softplus where it matters, and between 10^-3 and 10^6. Without a context the
    direction starts at random, as at 0 there is none.

    Args:
        shape: m, the length of one event, at least 2; the sphere has m - 1 dimensions.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Raises:
        ConfigError: for a shape that is no vector's.
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        size = length(shape, type(self).__name__)
        super().__init__(shape, context, net, sizes=(size, 1))
        if context is None:
            with torch.no_grad():
                next(self.network.parameters())[:size].normal_()


def _concentration(positive: Tensor) -> Tensor:
    """From 1e-3 to 1e6, where the densities are accurate; about the number itself in between."""
    return positive / (1 + positive / 1e6) + 1e-3


class VonMisesFisher(Spherical):
    r"""The Gaussian of directions: ``log p(x) = k loc . x + log C_m(k)``, with the uniform as its limit at k = 0.

    As a posterior with the prior :class:`SphereUniform` it is the S-VAE, whose KL term is known in closed form
    (``ELBO(estimator=TraceMeanField_ELBO(max_plate_nesting=1))``) and whose pull towards the prior has no preferred
    direction. First derivatives of the draws are exact; second ones are not recorded.

    Args:
        shape: m, the length of one event, at least 2.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    References:
        Hyperspherical variational auto-encoders (Davidson et al., 2018)

    Example:
        >>> q = VonMisesFisher(3, context=784)
        >>> q(torch.zeros(5, 784)).rsample().norm(dim=-1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000]...)
    """

    def family(self, *params: Tensor) -> TorchDistribution:
        """Von Mises-Fisher around the direction."""
        raw, concentration = params
        return sphere.VonMisesFisher(sphere.direction(raw), _concentration(softplus(concentration.squeeze(-1))))


class PowerSpherical(Spherical):
    r"""``p(x) ~ (1 + loc . x)^k``: close to the von Mises-Fisher, and quicker, as nothing is rejected or inverted.

    Args:
        shape: m, the length of one event, at least 2.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    References:
        The power spherical distribution (De Cao and Aziz, 2020)

    Example:
        >>> q = PowerSpherical(3, context=784)
        >>> q(torch.zeros(5, 784)).event_shape
        torch.Size([3])
    """

    def family(self, *params: Tensor) -> TorchDistribution:
        """Power spherical around the direction."""
        raw, concentration = params
        return sphere.PowerSpherical(sphere.direction(raw), _concentration(softplus(concentration.squeeze(-1))))


class VonMises(Head):
    r"""Angles in [-pi, pi], each by itself: ``log p(x) = sum_d [k_d cos(x_d - loc_d) - log 2 pi - log I_0(k_d)]``.

    The network puts out ``k (cos loc, sin loc)``, two numbers per element: in these the log density is smooth even at
    concentration 0, where a direction by itself would mean nothing. The concentration is their length r as
    ``r / (1 + r / 10^6) + 10^-3``. A likelihood: draws are not reparameterised, nor are those of torch's class; for a
    latent take :class:`VonMisesFisher` of size 2.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Example:
        >>> VonMises(4, context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([4])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net, n_params=2)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Von Mises at the angle of the two numbers, off the origin by 1e-3, where an angle has no derivative."""
        cos, sin = params[0] + 1e-3, params[1]
        concentration = _concentration(torch.hypot(cos, sin))
        return sphere.VonMises(torch.atan2(sin, cos), concentration).to_event(self.event_dim)
