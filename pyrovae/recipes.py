"""Premade models as functions: they size parts for the data and put them together."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pyrovae.conditional import Conditional, NetBuilder, Shape
from pyrovae.families import Bernoulli, Normal
from pyrovae.models import VAE
from pyrovae.nn import GatedMLP
from pyrovae.priors import StandardNormal

__all__ = ["vae"]

Part = Callable[..., Conditional]


def vae(
    shape: Shape,
    *,
    latent: Shape = 40,
    prior: Part = StandardNormal,
    likelihood: Part = Bernoulli,
    posterior: Part = Normal,
    net: NetBuilder = GatedMLP,
) -> VAE:
    """A VAE whose parts are classes or partials of them; what they leave open is filled in.

    Args:
        shape: of one x.
        latent: shape of z.
        prior: takes ``shape``, and ``posterior`` where it knows it.
        likelihood: takes ``shape``, ``context`` and ``net``.
        posterior: takes ``shape``, ``context`` and ``net``.
        net: of every head that does not bring its own.

    Example:
        >>> from pyrovae import Mixture
        >>> vae((1, 8, 8), latent=2, prior=functools.partial(Mixture, components=5)).sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    q = _complete(posterior, shape=latent, context=shape, net=net)
    return VAE(
        prior=_complete(prior, shape=latent, posterior=q),
        likelihood=_complete(likelihood, shape=shape, context=latent, net=net),
        posterior=q,
    )


def _complete(part: Part, **available: Any) -> Conditional:
    """Call a part with those available arguments that it knows and does not already have."""
    known = inspect.signature(part).parameters
    bound = part.keywords if isinstance(part, functools.partial) else {}
    return part(**{k: v for k, v in available.items() if k in known and k not in bound})
