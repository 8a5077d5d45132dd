"""Objectives with a critic: a network that tells two distributions of z apart, trained along with the model."""

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.conditional import NetBuilder, Shape
from pyrovae.nn import MLP, dims
from pyrovae.objectives.aggregate import Weight, _check_weight, prior_draws
from pyrovae.objectives.objective import Objective, average, expectation, mass, normalised, scaled
from pyrovae.objectives.rate import one_pass

__all__ = ["AdversarialAutoencoder", "FactorVAE"]

LEAKY = functools.partial(nn.LeakyReLU, negative_slope=0.2)
WIDE = functools.partial(MLP, hidden=(1000,) * 6, activation=LEAKY)
PLAIN = functools.partial(MLP, hidden=(512,) * 4, activation=nn.ReLU)


class _Adversarial(Objective):
    """Abstract: a critic T(z), the log odds that z comes from the first of two distributions.

    Args:
        shape: of one latent.
        gamma: weight of what the critic says.
        net: builds the critic, ``net(shape, 1)``.
        site: the latent site.
    """

    scheduled: ClassVar[tuple[str, ...]] = ("gamma",)

    def __init__(self, shape: Shape, gamma: Weight, net: NetBuilder, site: str) -> None:
        _check_weight("gamma", gamma)
        self.shape, self.gamma, self.net, self.site = shape, gamma, net, site
        sizes = dims(shape)
        self.critic = net(sizes[0] if len(sizes) == 1 else sizes, 1)

    def parameters(self, model: Any) -> dict[str, list[nn.Parameter]]:
        """The critic's."""
        return {"critic": list(self.critic.parameters())}

    def log_odds(self, z: Tensor) -> Tensor:
        """T(z), shape ``(batch,)``."""
        return self.critic(z).flatten()

    def critic_loss(self, first: Tensor, second: Tensor, heavy: Tensor | None, weights: Tensor | None) -> Tensor:
        """Cross-entropy of telling the two apart, in nats: log 2 where that is impossible."""
        told = expectation(softplus(-self.log_odds(first.detach())), heavy)
        return (told + expectation(softplus(self.log_odds(second.detach())), weights)) / 2


class FactorVAE(_Adversarial):
    r"""``-ELBO + gamma TC(z)``, the total correlation KL(q(z) || prod_d q(z_d)) by a critic's density ratio.

    The critic learns to tell z from z whose dimensions were permuted over the batch, each by itself; the total
    correlation is then the mean of its log odds. Two losses, ``"model"`` and ``"critic"``.

    Args:
        shape: of one latent.
        gamma: weight of the total correlation, a number or a schedule.
        net: builds the critic, called as ``net(shape, 1)``.
        site: the latent site.

    References:
        Disentangling by factorising (Kim and Mnih, 2018)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> history = pv.fit(vae, torch.ones(8, 4), objective=FactorVAE(2, gamma=10.0), epochs=1)
    """

    def __init__(self, shape: Shape, gamma: Weight = 35.0, net: NetBuilder = WIDE, site: str = "z") -> None:
        super().__init__(shape, gamma, net, site)

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Both losses; the model's in nats per row."""
        drawn = one_pass(model, *data)
        z = drawn.latent(self.site).z
        correlation = mass(weights) * expectation(self.log_odds(z), weights)
        loss = average(drawn.rate() - drawn.reconstruction, weights) + scaled(self.gamma, correlation)
        return {"model": loss, "critic": self.critic_loss(z, permuted(z.detach(), weights), weights, None)}


class AdversarialAutoencoder(_Adversarial):
    r"""``-E_q log p(x|z) - gamma E_q log sigmoid(T(z))``: a critic in the place of the rate.

    The critic learns to tell draws of the prior from z, the guide to pass for the prior, and there the aggregate
    posterior is the prior. Two losses, ``"model"`` and ``"critic"``. The prior can be anything that draws; it is not
    trained.

    With a large gamma the guide outruns the critic and the loss swings. On scikit-learn's digits (8 latent dimensions,
    three seeds, learning rate 3e-3, a critic of 2 x 64 units) the :class:`MMD` to the prior after 480 steps was 0.02 to
    0.03 with gamma 1, 0.7 to 5 with 3 and with 10. The default critic is wide enough for all three; with it 10 leaves
    less detail and a better log p(x).

    Args:
        shape: of one latent.
        gamma: weight of fooling the critic, a number or a schedule.
        net: builds the critic, called as ``net(shape, 1)``.
        site: the latent site.

    References:
        Adversarial autoencoders (Makhzani et al., 2015);
        Wasserstein auto-encoders (Tolstikhin et al., 2018), there WAE-GAN

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> history = pv.fit(vae, torch.ones(8, 4), objective=AdversarialAutoencoder(2), epochs=1)
    """

    def __init__(self, shape: Shape, gamma: Weight = 1.0, net: NetBuilder = PLAIN, site: str = "z") -> None:
        super().__init__(shape, gamma, net, site)

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Both losses; the model's in nats per row."""
        drawn = one_pass(model, *data)
        z, prior = drawn.latent(self.site).z, prior_draws(model, self.site, *data)
        fooling = mass(weights) * expectation(softplus(-self.log_odds(z)), weights)
        loss = average(-drawn.reconstruction, weights) + scaled(self.gamma, fooling)
        return {"model": loss, "critic": self.critic_loss(prior, z, weights, weights)}


def permuted(z: Tensor, weights: Tensor | None = None) -> Tensor:
    """Every element of z permuted over the batch by itself: a draw from the product of the marginals.

    Args:
        z: shape ``(batch, *z)``.
        weights: rows come in proportion to them, at evenly spaced points of their cumulative sum.
    """
    flat = z.flatten(1)
    order = torch.rand_like(flat).argsort(0)
    if weights is not None:
        reached = (normalised(weights) / len(flat)).cumsum(0)
        order = torch.searchsorted(reached, (order + 0.5) / len(flat), right=True).clamp(max=len(flat) - 1)
    return flat.gather(0, order).reshape(z.shape)
