"""The rate, KL(q(z|x) || p(z)), as a sum over sites and dimensions: with a floor, or at a given capacity."""

import abc
import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae.errors import ConfigError
from pyrovae.evaluation.passes import row_log_prob
from pyrovae.handlers import run, sample_sites
from pyrovae.objectives.objective import Objective, average, expectation, final, mass, positive_int, rows, scaled
from pyrovae.objectives.schedules import Schedule, Warmup

__all__ = [
    "Capacity",
    "FreeBits",
    "Latent",
    "Pass",
    "SiteFreeBits",
    "differentiable",
    "elements",
    "one_pass",
    "reparameterised",
]

_RISING = Warmup(over=0.5, end=25.0)


class _Floor(Objective):
    """Abstract: ``-E_q log p(x|z) + sum_g max(nats, E_x KL_g)`` over groups of dimensions.

    Args:
        nats: the floor of each group, a number or a schedule.
    """

    scheduled: ClassVar[tuple[str, ...]] = ("nats",)

    def __init__(self, nats: float | Schedule) -> None:
        if isinstance(nats, (int, float)) and not 0 <= nats < math.inf:
            raise ConfigError(f"nats: expected a number from 0, received {nats!r}")
        self.nats = nats

    @abc.abstractmethod
    def groups(self, latent: "Latent", weights: Tensor | None) -> Tensor:
        """The mean rate of each group of a site, shape ``(groups,)``."""

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The loss, nats per row."""
        terms = one_pass(model, *data)
        groups = torch.cat([self.groups(latent, weights) for latent in terms.latents.values()])
        floor = torch.as_tensor(final(self.nats), dtype=groups.dtype, device=groups.device)
        return average(-terms.reconstruction, weights) + mass(weights) * torch.maximum(groups, floor).sum()


class FreeBits(_Floor):
    r"""``-E_q log p(x|z) + sum_g max(nats, E_x KL_g)``: below the floor the rate of a group costs nothing more.

    A group is a run of dimensions of a latent site, E_x the mean over the batch. The KL is analytic where torch has a
    formula for the pair, else it is estimated from the draw. A prior that does not factorise (mixture, VampPrior, flow)
    has no rate per dimension: see :class:`SiteFreeBits`.

    Args:
        nats: the floor lambda of each group in nats, as in the paper (0.5 nats are 0.72 bits); a number or a schedule.
        group: dimensions in a group; the last group of a site may have fewer.

    Raises:
        ConfigError: for a negative floor, or when called, for a prior or posterior that does not factorise.

    References:
        Improving variational inference with inverse autoregressive flow (Kingma et al., 2016), appendix C.8

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = FreeBits(nats=0.25)(vae, torch.ones(3, 4))
    """

    def __init__(self, nats: float | Schedule = 0.5, group: int = 1) -> None:
        super().__init__(nats)
        self.group = positive_int("group", group)

    def groups(self, latent: "Latent", weights: Tensor | None) -> Tensor:
        """The mean rate of each run of dimensions."""
        each = expectation(latent.rates().flatten(1), weights)
        return torch.stack([part.sum() for part in each.split(self.group)])


class SiteFreeBits(_Floor):
    r"""``-E_q log p(x|z) + sum_s max(nats, E_x KL_s)``: a floor under the rate of each latent site as a whole.

    For hierarchies, and for any prior and posterior: the KL is analytic where torch has a formula for the pair, else it
    is estimated from the draw.

    Args:
        nats: the floor of each site in nats; a number or a schedule.

    References:
        Improving variational inference with inverse autoregressive flow (Kingma et al., 2016), appendix C.8

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.Mixture(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = SiteFreeBits(nats=3.0)(vae, torch.ones(3, 4))
    """

    def __init__(self, nats: float | Schedule = 5.0) -> None:
        super().__init__(nats)

    def groups(self, latent: "Latent", weights: Tensor | None) -> Tensor:
        """The mean rate of the site."""
        return expectation(latent.rate(), weights).reshape(1)


class Capacity(Objective):
    r"""``-E_q log p(x|z) + gamma |KL - C|``: the rate is held at a capacity C, in nats, that rises over training.

    KL is the mean over the batch, of all latent sites together, analytic where torch has a formula.

    Args:
        gamma: how hard it is held; a number or a schedule.
        capacity: C; a number or a schedule.

    References:
        Understanding disentangling in beta-VAE (Burgess et al., 2018)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = Capacity(capacity=pv.Warmup(over=0.5, end=10.0))(vae, torch.ones(3, 4))
    """

    scheduled: ClassVar[tuple[str, ...]] = ("gamma", "capacity")

    def __init__(self, gamma: float | Schedule = 1000.0, capacity: float | Schedule = _RISING) -> None:
        for name, value in (("gamma", gamma), ("capacity", capacity)):
            if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                raise ConfigError(f"{name}: expected a number from 0, received {value!r}")
        self.gamma, self.capacity = gamma, capacity

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The loss, nats per row."""
        terms = one_pass(model, *data)
        rate = expectation(terms.rate(), weights)
        capacity = torch.as_tensor(final(self.capacity), dtype=rate.dtype, device=rate.device)
        return average(-terms.reconstruction, weights) + mass(weights) * scaled(self.gamma, (rate - capacity).abs())


@dataclass(frozen=True)
class Latent:
    """A latent site of a pass: z drawn from q, with p as it is given the other draws."""

    name: str
    q: TorchDistribution
    p: TorchDistribution
    z: Tensor
    mask: Any

    def rate(self) -> Tensor:
        """KL(q || p) of each row, shape ``(batch,)``."""
        return scale_and_mask(_divergence(self.q, self.p, self.z), mask=self.mask)

    def rates(self) -> Tensor:
        """KL(q || p) of each element, shape ``(batch, *z)``.

        Raises:
            ConfigError: if there is none, for q or p does not factorise.
        """
        each = _divergence(elements(self.q, self.name), elements(self.p, self.name), self.z)
        mask = self.mask.reshape(-1, *[1] * (each.dim() - 1)) if isinstance(self.mask, Tensor) else self.mask
        return scale_and_mask(each, mask=mask)


@dataclass(frozen=True)
class Pass:
    """One draw from the guide, scored.

    Attributes:
        reconstruction: log p(x|z), shape ``(batch,)``.
        latents: by the name of the site.
    """

    reconstruction: Tensor
    latents: dict[str, Latent]

    def rate(self, names: Iterable[str] | None = None) -> Tensor:
        """KL(q || p) of each row over the sites, shape ``(batch,)``."""
        rates = [self.latents[name].rate() for name in (self.latents if names is None else names)]
        return torch.stack(rates).sum(0) if rates else torch.zeros_like(self.reconstruction)

    def latent(self, site: str) -> Latent:
        """The latent site of that name.

        Raises:
            ConfigError: if there is none.
        """
        if site not in self.latents:
            raise ConfigError(f"site: the guide has no {site!r}; it has {', '.join(self.latents)}")
        return self.latents[site]


def one_pass(model: Any, *data: Tensor | None) -> Pass:
    """One draw per row from the guide, scored by both programs at scale 1.

    Raises:
        ConfigError: for a guide whose latents are not reparameterised or not the model's.
    """
    count = rows(data)
    model_trace, guide_trace = run(differentiable(model), *data)
    sites, latents = dict(sample_sites(model_trace)), {}
    for name, site in sample_sites(guide_trace):
        if name not in sites:
            raise ConfigError(f"site {name!r}: the guide draws it, the model has no such site")
        latents[name] = Latent(name, site["fn"], sites[name]["fn"], site["value"], site["mask"])
    return Pass(row_log_prob(model_trace, 1, count, observed=True)[0], latents)


def differentiable(model: Any) -> Any:
    """The same programs, with a guide that refuses latents through which no gradient passes."""
    return SimpleNamespace(model=model.model, guide=reparameterised(model.guide))


def reparameterised(program: Any) -> Any:
    """The same program, which refuses latents through which no gradient passes."""
    return _Reparameterised()(program)


class _Reparameterised(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or poutine.util.site_is_subsample(msg) or msg["fn"].has_rsample:
            return
        received = type(msg["fn"]).__name__
        raise ConfigError(
            f"site {msg['name']!r}: expected a distribution with reparameterised draws, received {received}, through "
            "whose draws no gradient passes; pyrovae.ELBO takes score functions or, with TraceEnum_ELBO, sums"
        )


def elements(distribution: Any, site: str) -> Any:
    """The distribution of single elements, batch shape ``(batch, *event)``.

    Raises:
        ConfigError: for one that does not factorise.
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if distribution.event_shape:
        raise ConfigError(
            f"site {site!r}: expected a distribution of independent dimensions, received "
            f"{type(distribution).__name__}, whose dimensions have no rates of their own (a mixture, a VampPrior, a "
            "flow): treat the site as a whole, as SiteFreeBits does, or take a factorised prior and posterior"
        )
    return distribution


def _divergence(q: Any, p: Any, z: Tensor) -> Tensor:
    """KL(q || p): analytic, or the estimate at z."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)
