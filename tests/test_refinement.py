"""Refinement against linear-Gaussian models, where the best diagonal posterior is known."""

import functools
import math

import pyro
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.errors import ConfigError
from pyrovae.flows import IAF, Flow, Planar
from pyrovae.refinement import refine

D, L, SIGMA = 5, 2, 0.6


def linear_vae(prior=None, **options):
    """``x = W z + mu + 0.6 noise`` with an encoder that knows nothing of W."""
    q = pv.Normal(L, context=D, net=nn.Linear, **options)
    p = pv.StandardNormal(L) if prior is None else prior(q)
    return pv.VAE(p, pv.Normal(D, context=L, net=nn.Linear, scale=SIGMA), q)


def exact_posterior(vae, x):
    """Mean and precision of p(z|x)."""
    layer = vae.likelihood.network
    w, mu = layer.weight.detach()[:D], layer.bias.detach()[:D]
    precision = torch.eye(L) + w.T @ w / SIGMA**2
    return (x - mu) @ w / SIGMA**2 @ torch.linalg.inv(precision), precision


def divergence(d, mean, precision):
    """KL(N(loc, diag scale^2) || N(mean, precision^-1)), written out."""
    loc, variance = d.mean, d.variance
    difference = loc - mean
    maha = (difference @ precision * difference).sum(-1)
    return 0.5 * ((variance * precision.diag()).sum(-1) + maha - L - variance.log().sum(-1) - precision.logdet())


@pytest.fixture
def strong():
    """A decoder under which coordinates of z are correlated given x, so that the family has a gap of its own."""

    def of(vae):
        with torch.no_grad():
            vae.likelihood.network.weight.copy_(torch.randn(D, L))
            vae.likelihood.network.weight[:, 1].add_(vae.likelihood.network.weight[:, 0])
        return vae

    return of


@pytest.mark.usefixtures("float64")
class TestExact:
    """In double precision."""

    def test_reaches_the_best_diagonal_posterior(self, strong):
        vae, x = strong(linear_vae()), 3 * torch.randn(20, D)
        found = refine(vae, x, steps=600, lr=0.1, draws=16, k=500)
        mean, precision = exact_posterior(vae, x)
        best = torch.distributions.Normal(mean, precision.diag() ** -0.5)
        scale = best.stddev
        assert ((found.posterior.mean - best.mean) / scale).abs().max() < 0.1
        assert (found.posterior.stddev / scale).log().abs().max() < 0.1
        assert (divergence(found.posterior, mean, precision) - divergence(best, mean, precision)).max() < 0.03

    def test_the_gain_is_the_difference_of_divergences(self, strong):
        vae, x = strong(linear_vae()), 3 * torch.randn(20, D)
        found = refine(vae, x, steps=30, k=2000)
        mean, precision = exact_posterior(vae, x)
        start, end = (divergence(d, mean, precision) for d in (vae.encode(x), found.posterior))
        z = (found.after - found.before - (start - end)) / found.standard_errors
        assert z.abs().max() < 5
        assert abs(found.gain - (start - end).mean().item()) < 5 * found.standard_error
        assert found.lost == 0
        assert (start - end).min() > 1

    def test_the_elbos_are_those_of_the_two_posteriors(self, strong):
        vae, x = strong(linear_vae()), 3 * torch.randn(6, D)
        found = refine(vae, x, steps=300, k=3000)
        layer = vae.likelihood.network
        w, mu = layer.weight.detach(), layer.bias.detach()
        marginal = torch.distributions.MultivariateNormal(mu, w @ w.T + SIGMA**2 * torch.eye(D))
        for values, d in ((found.before, vae.encode(x)), (found.after, found.posterior)):
            # the draws' spread is a few nats: five standard errors of 3,000 draws
            expected = marginal.log_prob(x) - divergence(d, *exact_posterior(vae, x))
            spread = pv.log_weights(vae, x, k=3000).std(0) / math.sqrt(3000)
            assert ((values - expected) / spread).abs().max() < 5

    def test_from_the_optimum_nothing_is_gained(self):
        """And a loss is shown: too large a step from there."""
        vae, x = linear_vae(), torch.randn(10, D)
        with torch.no_grad():
            vae.likelihood.network.weight.zero_()  # x says nothing of z: the prior is the posterior
            vae.posterior.network.weight.zero_()
            vae.posterior.network.bias.zero_()
        still = refine(vae, x, steps=20, lr=1e-6)
        assert abs(still.gain) < 1e-4
        worse = refine(vae, x, steps=3, lr=2.0, draws=1)
        assert worse.gain < 0
        assert worse.lost == 10

    def test_before_and_after_share_their_noise(self, strong):
        """What hardly moves has hardly an error."""
        found = refine(strong(linear_vae()), torch.randn(10, D), steps=1, lr=1e-9)
        assert (found.after - found.before).abs().max() < 1e-4
        assert found.standard_error < 1e-4

    def test_rows_do_not_depend_on_each_other(self, strong):
        """With the noise of a chunk alike, a row ends where it ends alone among others."""
        vae, x = strong(linear_vae()), torch.randn(4, D)
        found = refine(vae, x, steps=10)
        other = refine(vae, torch.cat([x[:2], 5 * torch.randn(2, D)]), steps=10)
        torch.testing.assert_close(found.posterior.mean[:2], other.posterior.mean[:2])


def test_in_chunks():
    vae, x = linear_vae(), 3 * torch.randn(7, D)
    found = refine(vae, x, steps=400, lr=0.1, draws=4, k=11, chunk_size=8)
    assert found.posterior.batch_shape == found.after.shape == found.standard_errors.shape == (7,)
    mean, precision = exact_posterior(vae, x)
    assert ((found.posterior.mean - mean) * precision.diag().sqrt()).abs().max() < 0.3


def test_leaves_everything_alone():
    vae, x = linear_vae(prior=lambda q: pv.VampPrior(q, torch.rand(4, D))), torch.randn(6, D)
    vae.train()
    vae.likelihood.eval()
    pyro.param("mine", torch.ones(2))
    noise, weights = torch.get_rng_state(), {n: t.clone() for n, t in vae.state_dict().items()}
    first = refine(vae, x, steps=5)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(t, weights[n]) for n, t in vae.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert vae.training
    assert vae.posterior.training
    assert not vae.likelihood.training
    with torch.no_grad():
        second = refine(vae, x.numpy(), steps=5)
    assert torch.equal(first.after, second.after)
    assert not torch.equal(first.after, refine(vae, x, steps=5, seed=1).after)
    assert not first.posterior.mean.requires_grad
    assert not first.posterior.stddev.requires_grad


HEADS = {
    "Normal, learned scale": functools.partial(pv.Normal, scale=pv.LearnedScale),
    "Laplace": pv.Laplace,
    "Flow": functools.partial(Flow, transform=IAF),
    "Flow without inverse": functools.partial(Flow, transform=Planar),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_any_head(head):
    vae = pv.VAE(pv.StandardNormal(L), pv.Normal(D, context=L, scale=0.3), head(L, context=D))
    with torch.no_grad():
        vae.likelihood.network.layers[-1].weight.mul_(5)
    found = refine(vae, 2 * torch.randn(9, D), k=50)
    assert found.gain > 5 * found.standard_error
    assert found.posterior.rsample().shape == (9, L)


def test_a_context():
    posterior = pv.Normal(L, context=[(D,), (3,)])
    vae = pv.VAE(pv.StandardNormal(L), pv.Bernoulli(D, context=[(L,), (3,)]), posterior)
    x, c = (torch.rand(6, D) > 0.5).float(), torch.eye(3).repeat(2, 1)
    assert refine(vae, x, c, steps=3).posterior.batch_shape == (6,)


def test_one_line():
    found = refine(linear_vae(), 3 * torch.randn(4, D), steps=20)
    assert "\n" not in str(found)
    assert str(found).startswith("ELBO -")
    assert f"gain {found.gain:.3f}" in str(found)
    assert "k = 100 draws; 0 of 4 rows lost" in str(found)
    assert math.isnan(refine(linear_vae(), torch.randn(4, D), steps=2, k=1).standard_error)


class Fixed(pv.Conditional):
    """Draws from the prior whatever x is."""

    def forward(self, *context):
        return pv.StandardNormal(L)()


class Two(pv.VAE.__mro__[1]):
    """A guide with two latent sites."""

    def __init__(self):
        super().__init__()
        self.posterior = pv.Normal(L, context=D)

    @pyro.nn.pyro_method
    def model(self, x=None, c=None, *, n=1):
        raise NotImplementedError

    @pyro.nn.pyro_method
    def guide(self, x, c=None):
        with pyro.plate("batch", len(x)):
            pyro.sample("z1", self.posterior(x))
            pyro.sample("z2", self.posterior(x))

    encode = decode = None


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (
            lambda: pv.VAE(pv.StandardNormal(L), pv.Normal(D, context=L), Fixed()),
            {},
            "posterior is a Head given x.*received Fixed",
        ),
        (lambda: pv.VAE(pv.StandardNormal(L), pv.Normal(D, context=L), pv.Normal(L)), {}, "given x"),
        (lambda: nn.Linear(2, 2), {}, "received NoneType"),
        (Two, {}, "one latent site, received z1, z2"),
        (linear_vae, {"steps": 0}, "steps: expected a positive int, received 0"),
        (linear_vae, {"k": 1.5}, "k: expected a positive int"),
        (linear_vae, {"lr": 0.0}, "lr: expected a positive number"),
    ],
)
def test_refusals(model, options, said):
    with pytest.raises(ConfigError, match=said):
        refine(model(), torch.randn(3, D), **options)
