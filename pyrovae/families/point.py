"""A single point."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.nn import MLP

__all__ = ["Delta"]


class Delta(Head):
    r"""All of the mass at ``f(context)``: the posterior of an autoencoder, or a point estimate of a latent.

    With it the ELBO is ``log p(x | f(x)) + log p(f(x))``, a regularised reconstruction: its maximum over f is a maximum
    a posteriori estimate. It is no bound on log p(x), as the entropy of a point is minus infinity, so that numbers for
    different latents or priors do not compare, and an importance-weighted log p(x) from such draws means nothing. It is
    no likelihood either: other values than f have the density 0.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Example:
        >>> import torch
        >>> q = Delta(2, context=4)(torch.ones(3, 4))
        >>> q.log_prob(q.rsample())
        tensor([0., 0., 0.]...)
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Delta at the network's output."""
        return dist.Delta(params[0]).to_event(self.event_dim)
