"""Gaussians whose elements depend on one another."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import positive
from pyrovae.distributions.reshaped import reshaped
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP, dims

__all__ = ["FullNormal", "LowRankNormal"]


def _slope(raw: Tensor) -> Tensor:
    """Within ±10, so that solving with many of them neither overflows nor loses all digits in float32."""
    return 10 * torch.tanh(raw / 10)


class FullNormal(Head):
    r"""Gaussian with a full covariance: ``a = loc + L e``, ``L = diag(scale) (1 + N)`` with N strictly triangular.

    The scale is ``exp(10 tanh(raw / 10))``; the elements of N, of which there are ``d (d - 1) / 2``, lie within ±10, so
    that two elements correlate up to 0.995. Meant for latents: the parameters grow with d^2 and the work with d^3.

    Args:
        shape: of one event, of d elements in all.
        context: shape conditioned on, or None for learned constants.
        net: network builder; it puts out a vector.

    References:
        An introduction to variational autoencoders (Kingma and Welling, 2019), section 2.5.1

    Example:
        >>> FullNormal(3, context=2)(torch.zeros(5, 2)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    places: Tensor

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        size = math.prod(dims(shape))
        super().__init__(shape, context, net, sizes=(size, size, size * (size - 1) // 2))
        row, column = torch.tril_indices(size, size, -1)
        self.register_buffer("places", row * size + column, persistent=False)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Multivariate normal by its Cholesky factor."""
        loc, raw, lower = params
        size = loc.shape[-1]
        flat = lower.new_zeros(*lower.shape[:-1], size * size).index_copy(-1, self.places, _slope(lower))
        factor = flat.unflatten(-1, (size, size)) + torch.eye(size, dtype=loc.dtype, device=loc.device)
        normal = dist.MultivariateNormal(loc, scale_tril=positive(raw).unsqueeze(-1) * factor)
        return reshaped(normal, dims(self.shape))


class LowRankNormal(Head):
    r"""Gaussian with the covariance ``D (1 + W W^T) D``, D the diagonal of scales and W of ``rank`` columns.

    A likelihood that knows of a few directions in which all elements move together, at a cost linear in their number.
    The scale is ``exp(10 tanh(raw / 10))`` and the elements of W lie within ±10.

    Args:
        shape: of one event; up to some 10 000 elements, beyond which float32 may not tell apart what rank 1 and 2 add.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        rank: columns of W.

    Raises:
        ConfigError: for a rank below 1.

    References:
        Structured uncertainty prediction networks (Dorta et al., 2018);
        Stochastic segmentation networks (Monteiro et al., 2020)

    Example:
        >>> LowRankNormal((1, 4, 4), context=2, rank=3)(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, rank: int = 1) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ConfigError(f"rank: expected a positive int, received {rank!r}")
        super().__init__(shape, context, net, n_params=2 + rank)
        self.rank = rank
        if context is None:  # equal columns would stay equal, and columns of 0 stay 0
            with torch.no_grad():
                next(self.network.parameters())[2 * dims(shape)[0] :].normal_(std=0.1)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Low-rank multivariate normal of the flattened event."""
        loc, raw, *columns = (p.flatten(-self.event_dim) for p in params)
        scale = positive(raw)
        factor = scale.unsqueeze(-1) * _slope(torch.stack(columns, -1))
        return reshaped(dist.LowRankMultivariateNormal(loc, factor, scale.square()), dims(self.shape))
