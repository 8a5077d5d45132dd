"""Premade models as functions: they size parts for the data and put them together."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyrovae.columns import Columns
from pyrovae.conditional import Conditional, NetBuilder, Shape
from pyrovae.families import Bernoulli, Normal
from pyrovae.missing import MaskAware, Masked
from pyrovae.models import VAE
from pyrovae.nn import GatedMLP
from pyrovae.priors import StandardNormal

__all__ = ["complete", "vae"]

Part = Callable[..., Conditional]


def vae(
    shape: Shape,
    *,
    latent: Shape = 40,
    prior: Part = StandardNormal,
    likelihood: Part = Bernoulli,
    posterior: Part = Normal,
    net: NetBuilder = GatedMLP,
    exemplars: Tensor | None = None,
    missing: bool = False,
) -> VAE:
    """A VAE whose parts are classes or partials of them; what they leave open is filled in.

    Args:
        shape: of one x.
        latent: shape of z.
        prior: takes ``shape``, and ``posterior`` and ``inputs`` where it knows them.
        likelihood: takes ``shape``, ``context`` and ``net``.
        posterior: takes ``shape``, ``context`` and ``net``.
        net: of every head that does not bring its own.
        exemplars: rows as the model sees them, the ``inputs`` of a prior that is made of them.
        missing: whether cells of x can be missing, NaN: the likelihood then skips them, the encoder is told which.

    Example:
        >>> from pyrovae import Mixture
        >>> vae((1, 8, 8), latent=2, prior=functools.partial(Mixture, components=5)).sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    p = complete(likelihood, shape=shape, context=latent, net=net)
    reading = p.encoder(net) if isinstance(p, Columns) else functools.partial(MaskAware, net=net) if missing else net
    q = complete(posterior, shape=latent, context=shape, net=reading)
    rows = {} if exemplars is None else {"inputs": exemplars}
    return VAE(
        prior=complete(prior, shape=latent, posterior=q, **rows),
        likelihood=Masked(p) if missing and not isinstance(p, Columns) else p,
        posterior=q,
    )


def complete(part: Callable[..., Any], **available: Any) -> Any:
    """Call a part with those available arguments that it knows and does not already have."""
    known = inspect.signature(part).parameters
    bound = part.keywords if isinstance(part, functools.partial) else {}
    return part(**{k: v for k, v in available.items() if k in known and k not in bound})
