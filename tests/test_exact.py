"""Exact answers: linear-Gaussian models, quadrature, brute force, Pyro's own estimators, and invariances."""

import copy
import functools
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv

pytestmark = pytest.mark.usefixtures("float64")

D, L = 5, 2
Z = 5.0  # standard errors a Monte-Carlo mean may be off: a false alarm in 2e6
smooth = functools.partial(pv.MLP, hidden=(4,), activation=nn.Tanh)


def log_normal(x, loc, scale):
    """Elementwise, written out, so that nothing of torch's or ours is used to check itself."""
    return -0.5 * ((x - loc) / scale) ** 2 - torch.as_tensor(scale).log() - 0.5 * math.log(2 * math.pi)


def log_mvn(x, loc, covariance):
    difference = x - loc
    maha = (difference * torch.linalg.solve(covariance, difference.T).T).sum(-1)
    return -0.5 * (maha + torch.linalg.slogdet(covariance)[1] + x.shape[-1] * math.log(2 * math.pi))


def raw_scale(scale):
    """What ``exp(10 tanh(raw / 10))`` turns into ``scale``."""
    return 10 * torch.atanh(torch.as_tensor(scale).log() / 10)


def weights(likelihood):
    return likelihood.network.weight.detach()[: likelihood.shape], likelihood.network.bias.detach()[: likelihood.shape]


def network_scale(head, x):
    """Loc and scale of a head with a linear network and ``NetworkScale``, by hand."""
    loc, raw = (x @ head.network.weight.T + head.network.bias).chunk(2, -1)
    return loc, torch.exp(10 * torch.tanh(raw / 10))


class Gaussian(pv.Conditional):
    """N(A (x - offset(c)), covariance): the exact posterior of a linear-Gaussian model."""

    def __init__(self, weight, noise, offset):
        super().__init__()
        precision = torch.eye(weight.shape[1]) + weight.T @ (weight / noise[:, None] ** 2)
        self.covariance = torch.linalg.inv(precision)
        self.gain = self.covariance @ (weight / noise[:, None] ** 2).T
        self.offset = offset

    def forward(self, *context):
        x, *c = context
        return dist.MultivariateNormal((x - self.offset(*c)) @ self.gain.T, self.covariance)


class Point(pv.Conditional):
    """All the mass at a linear function of x: no noise, so that losses and gradients can be compared exactly."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(D, L)

    def forward(self, *context):
        return dist.Delta(self.network(context[0])).to_event(1)


def exact_vae(scale=0.6, d=D, latent=L):
    """A linear VAE with its exact posterior, and its evidence as a function of the rows."""
    likelihood = pv.Normal(d, context=latent, net=nn.Linear, scale=scale)
    w, mu = weights(likelihood)
    noise = likelihood(torch.zeros(latent)).base_dist.scale.detach().expand(d).clone()
    vae = pv.VAE(pv.StandardNormal(latent), likelihood, Gaussian(w, noise, lambda *_: mu))
    return vae, lambda x: log_mvn(x, mu, w @ w.T + torch.diag(noise**2))


def linear_vae(scale=0.6, posterior_scale=pv.NetworkScale, prior=None, d=D, latent=L):
    return pv.VAE(
        pv.StandardNormal(latent) if prior is None else prior,
        pv.Normal(d, context=latent, net=nn.Linear, scale=scale),
        pv.Normal(latent, context=d, net=nn.Linear, scale=posterior_scale),
    )


def exact_elbo(vae, x, sigma=0.6, beta=1.0):
    """The expectation in closed form, for a linear decoder and a diagonal Gaussian guide."""
    w, mu = weights(vae.likelihood)
    m, s = (t.detach() for t in network_scale(vae.posterior, x))
    residual = ((x - mu - m @ w.T) ** 2).sum(-1) + (s**2 @ (w**2).T).sum(-1)
    reconstruction = -0.5 * x.shape[-1] * math.log(2 * math.pi * sigma**2) - residual / (2 * sigma**2)
    kl = (0.5 * (m**2 + s**2 - 1) - s.log()).sum(-1)
    return reconstruction - beta * kl, reconstruction, kl


def assert_mean(draws, expected):
    """Draws along the first dimension have the expected mean, row by row."""
    error = draws.std(0) / math.sqrt(len(draws))
    z = (draws.mean(0) - expected) / error
    assert z.abs().max() < Z, f"{z.abs().max():.1f} standard errors off"


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=0, atol=atol)


# --- evidence: linear-Gaussian models with their exact posterior, where a single draw gives log p(x) ---

SCALES = {
    "number": 0.6,
    "shared": pv.SharedScale,
    "learned": pv.LearnedScale,
    "network": pv.NetworkScale,
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_single_draw_gives_the_evidence(scale):
    noise = torch.tensor([0.3, 0.5, 0.8, 1.1, 2.0])
    likelihood = pv.Normal(D, context=L, net=nn.Linear, scale=scale)
    with torch.no_grad():
        if scale is pv.LearnedScale:
            likelihood.scale_source.raw.copy_(raw_scale(noise))
        elif scale is pv.NetworkScale:
            likelihood.network.weight[D:] = 0
            likelihood.network.bias[D:] = raw_scale(noise)
        elif scale is pv.SharedScale:
            likelihood.scale_source.raw.copy_(raw_scale(0.6))
    if scale in (0.6, pv.SharedScale):
        noise = torch.full((D,), 0.6)
    w, mu = weights(likelihood)
    vae = pv.VAE(pv.StandardNormal(L), likelihood, Gaussian(w, noise, lambda *_: mu))
    x = 3 * torch.randn(7, D)
    evidence = log_mvn(x, mu, w @ w.T + torch.diag(noise**2))
    close(evidence, dist.MultivariateNormal(mu, w @ w.T + torch.diag(noise**2)).log_prob(x), 1e-10)
    close(pv.log_weights(vae, x, k=20).detach(), evidence.expand(20, 7))
    close(pv.log_weights(vae, x).detach(), evidence[None])
    close(pv.elbo_terms(vae, x, k=3).elbo, evidence)
    close(pv.ELBO()(vae, x).detach(), -evidence.mean())
    close(pv.IWAE(k=9)(vae, x).detach(), -evidence.mean())
    close(vae.log_prob(x, k=4), evidence)
    estimate = pv.log_marginal(vae, x, k=50)
    close(estimate.values, evidence)
    close(estimate.standard_errors, torch.zeros(7))
    assert estimate.mean == pytest.approx(evidence.mean().item(), abs=1e-9)
    assert estimate.bits_per_dim == pytest.approx(-evidence.mean().item() / (D * math.log(2)), abs=1e-9)


def test_conditional_evidence():
    """p(x|c) = N(A c + mu, W W' + s^2 I): the context reaches both programs."""
    likelihood = pv.Normal(D, context=[(L,), (3,)], net=nn.Linear, scale=0.6)
    w, a = likelihood.network.weight.detach().split([L, 3], dim=1)
    mu = likelihood.network.bias.detach()
    posterior = Gaussian(w, torch.full((D,), 0.6), lambda c: c @ a.T + mu)
    vae = pv.VAE(pv.StandardNormal(L), likelihood, posterior)
    x, c = torch.randn(7, D), torch.randn(7, 3)
    evidence = log_mvn(x, c @ a.T + mu, w @ w.T + 0.36 * torch.eye(D))
    close(pv.log_weights(vae, x, c, k=6).detach(), evidence.expand(6, 7))
    close(pv.elbo_terms(vae, x, c).elbo, evidence)
    close(pv.log_marginal(vae, x, c, k=5, chunk_size=3).values, evidence)
    close(pv.ELBO()(vae, x, c).detach(), -evidence.mean())


class Clustered(pv.Conditional):
    """The exact posterior of a linear model under a mixture prior: itself a mixture."""

    def __init__(self, prior, w, mu, sigma):
        super().__init__()
        self.p, self.w, self.mu = prior, w, mu
        scale = torch.exp(10 * torch.tanh(prior.raw_scale.detach() / 10))
        self.covariance = torch.linalg.inv(torch.diag_embed(scale**-2) + w.T @ w / sigma**2)
        self.precision_loc = prior.loc.detach() * scale**-2
        self.marginal = w @ torch.diag_embed(scale**2) @ w.T + sigma**2 * torch.eye(len(w))
        self.sigma = sigma

    def log_joint(self, x):
        log_weight = self.p.logits.detach().log_softmax(-1)
        parts = [log_mvn(x, self.mu + self.w @ m, c) for m, c in zip(self.p.loc.detach(), self.marginal, strict=True)]
        return torch.stack(parts, -1) + log_weight

    def forward(self, *context):
        shift = (context[0] - self.mu) @ self.w / self.sigma**2
        loc = ((shift[..., None, :] + self.precision_loc)[..., None, :] @ self.covariance).squeeze(-2)
        parts = dist.MultivariateNormal(loc, self.covariance)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.log_joint(context[0])), parts)


def test_evidence_under_a_mixture_prior():
    prior = pv.Mixture(L, components=4)
    with torch.no_grad():
        prior.logits.normal_()
        prior.raw_scale.normal_()
    likelihood = pv.Normal(D, context=L, net=nn.Linear, scale=0.6)
    posterior = Clustered(prior, *weights(likelihood), 0.6)
    vae = pv.VAE(prior, likelihood, posterior)
    x = 2 * torch.randn(7, D)
    evidence = posterior.log_joint(x).logsumexp(-1)
    close(pv.log_weights(vae, x, k=20).detach(), evidence.expand(20, 7))
    close(pv.log_marginal(vae, x, k=5).values, evidence)


# --- the ELBO of a guide that is not exact ---


def test_elbo_against_the_closed_form():
    vae, rows = linear_vae(), 20_000
    x = torch.randn(3, D)
    elbo, reconstruction, kl = exact_elbo(vae, x)
    assert_mean(pv.log_weights(vae, x, k=rows).detach(), elbo)
    terms = pv.elbo_terms(vae, x.repeat(rows, 1), seed=1)
    assert_mean(terms.elbo.reshape(rows, 3), elbo)
    assert_mean(terms.reconstruction.reshape(rows, 3), reconstruction)
    assert_mean(terms.kl.reshape(rows, 3), kl)


def test_draws_that_take_several_passes():
    """More draws than a chunk holds are averaged all the same, one number per row."""
    vae, x = linear_vae(), torch.randn(3, D)
    single = pv.log_marginal(vae, x, k=7, chunk_size=2)
    assert single.values.shape == single.standard_errors.shape == (3,)
    exact, evidence = exact_vae()
    close(pv.log_marginal(exact, x, k=7, chunk_size=2).values, evidence(x))
    close(pv.elbo_terms(exact, x, k=7, chunk_size=2).elbo, evidence(x))
    terms = pv.elbo_terms(vae, x, k=20_000)
    close(terms.elbo, exact_elbo(vae, x)[0], 0.5)
    close(terms.elbo, terms.reconstruction - terms.kl)


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("beta", [1.0, 4.0, 0.25])
def test_elbo_estimators_against_the_closed_form(estimator, beta):
    """A weight on one side only would be off by many standard errors."""
    vae, objective = linear_vae(), pv.ELBO(beta=beta, estimator=estimator(max_plate_nesting=1))
    x = torch.randn(3, D)
    with torch.no_grad():
        losses = torch.stack([objective(vae, x.repeat(200, 1)) for _ in range(100)])
    assert_mean(losses, -exact_elbo(vae, x, beta=beta)[0].mean())


@pytest.mark.parametrize("beta", [1.0, 4.0, 0.0])
def test_analytic_elbo_without_noise(beta):
    """With a decoder that ignores z nothing is left to draw."""
    vae = linear_vae()
    nn.init.zeros_(vae.likelihood.network.weight)
    objective = pv.ELBO(beta=beta, estimator=TraceMeanField_ELBO(max_plate_nesting=1))
    x = torch.randn(3, D)
    close(objective(vae, x).detach(), -exact_elbo(vae, x, beta=beta)[0].mean(), 1e-10)


def principal_components(x, latent):
    """The largest log-likelihood of probabilistic PCA, nats per row, and its variance."""
    d = x.shape[1]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    variance = eigenvalues[latent:].mean()
    logdet = eigenvalues[:latent].log().sum() + (d - latent) * variance.log()
    return -0.5 * (d * math.log(2 * math.pi) + logdet + d), variance


def test_optimum_is_principal_components():
    """Every local optimum of a linear VAE's ELBO is the global one, with log p(x) reached (Lucas et al., 2019)."""
    x = torch.randn(200, 3) @ torch.randn(3, 6) + 0.5 * torch.randn(200, 6) + torch.randn(6)
    vae = linear_vae(scale=pv.SharedScale, posterior_scale=pv.LearnedScale, d=6)
    best, variance = principal_components(x, L)

    def loss():
        q = vae.posterior(x)
        p = vae.likelihood(q.mean)
        spread = (q.variance @ (vae.likelihood.network.weight**2).T / (2 * p.variance)).sum(-1)
        return -(p.log_prob(x) - spread - kl_divergence(q, vae.prior())).mean()

    optimizer = torch.optim.LBFGS(
        vae.parameters(), max_iter=1500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    assert -loss().item() == pytest.approx(best.item(), abs=1e-6)
    close(vae.likelihood(torch.zeros(L)).variance.detach(), variance.expand(6), 1e-4)
    w, mu = weights(vae.likelihood)
    close(log_mvn(x, mu, w @ w.T + variance * torch.eye(6)).mean(), best, 1e-6)
    gram = w.T @ w
    close(gram - gram.diag().diag(), torch.zeros(L, L), 1e-3)
    close(pv.elbo_terms(vae, x, k=1).elbo, log_mvn(x, mu, w @ w.T + variance * torch.eye(6)), 1e-2)


def test_linear_vae_on_digits_reaches_the_largest_likelihood():
    """The whole library against algebra: data, model, training, evaluation."""
    digits = pv.data.load("digits")
    x, held_out = (torch.as_tensor(part.x).double().flatten(1) for part in (digits.train, digits.test))
    x, held_out = x - x.mean(0), held_out - x.mean(0)  # an offset alone would take most of the steps
    best, variance = principal_components(x, 10)
    vae = linear_vae(scale=pv.SharedScale, posterior_scale=pv.LearnedScale, d=64, latent=10)
    history = pv.fit(
        vae,
        x,
        objective=pv.ELBO(estimator=TraceMeanField_ELBO(max_plate_nesting=1)),
        optimizer=functools.partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99)),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
        epochs=1500,
        batch_size=1500,
    )
    assert pv.elbo_terms(vae, x, k=20).elbo.mean().item() == pytest.approx(best.item(), abs=0.02)
    assert -history["loss"][-1] == pytest.approx(best.item(), abs=0.5)
    w, mu = weights(vae.likelihood)
    sigma2 = vae.likelihood(torch.zeros(10)).variance[0].detach()
    assert sigma2.item() == pytest.approx(variance.item(), rel=0.02)
    evidence = log_mvn(held_out, mu, w @ w.T + sigma2 * torch.eye(64))
    estimate = pv.log_marginal(vae, held_out, k=500)
    assert 0 < estimate.standard_error < 0.01
    assert abs(estimate.mean - evidence.mean().item()) < 3 * estimate.standard_error


# --- evidence by quadrature: one latent dimension, any decoder, any likelihood ---

LIKELIHOODS = {
    "Bernoulli": pv.Bernoulli,
    "Normal": pv.Normal,
    "Laplace": pv.Laplace,
    "StudentT": pv.StudentT,
    "ContinuousBernoulli": pv.ContinuousBernoulli,
    "Categorical": functools.partial(pv.Categorical, classes=4),
}


def quadrature(vae, x, nodes):
    """On an even grid, which converges as fast as Gauss-Hermite where all is smooth, and bears a kink as well."""
    z = torch.linspace(-10, 10, nodes)
    log_w = log_normal(z, 0.0, 1.0) + math.log(20 / (nodes - 1))
    return (log_w[:, None] + vae.decode(z[:, None, None]).log_prob(x)).logsumexp(0)


def gauss_hermite(vae, x, nodes):
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    z, log_w = torch.from_numpy(z[w > 0]), torch.from_numpy(np.log(w[w > 0] / math.sqrt(2 * math.pi)))
    return (log_w[:, None] + vae.decode(z[:, None, None]).log_prob(x)).logsumexp(0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_evidence_by_quadrature(likelihood):
    net = functools.partial(pv.MLP, hidden=(8,), activation=nn.Tanh)
    decoder = likelihood(3, context=1, net=net)
    with torch.no_grad():
        for parameter in decoder.network.parameters():
            parameter.mul_(2)  # a decoder far from linear
    vae = pv.VAE(pv.StandardNormal(1), decoder, pv.Normal(1, context=3, net=net))
    x = vae.sample(6).double()
    evidence = quadrature(vae, x, 40_001)
    close(evidence, quadrature(vae, x, 20_001), 1e-6)
    if likelihood in (pv.Bernoulli, pv.ContinuousBernoulli):
        close(evidence, gauss_hermite(vae, x, 200), 1e-6)
    estimate = pv.log_marginal(vae, x, k=40_000, seed=3)
    z = (estimate.values - evidence) / estimate.standard_errors
    assert z.abs().max() < Z
    assert estimate.standard_errors.max() < 0.1
    bounds = []
    for k in (1, 5, 50):
        repeated = x.repeat(2000, 1)
        with torch.no_grad():
            draws = pv.log_weights(vae, repeated, k=k).logsumexp(0) - math.log(k)
        bounds.append((draws.mean(), draws.std() / math.sqrt(len(draws))))
        with torch.no_grad():
            close(pv.IWAE(k)(vae, repeated), -draws.mean(), 2 * Z * bounds[-1][1])
    ceiling = evidence.mean()
    for (low, e1), (high, e2) in zip(bounds, [*bounds[1:], (ceiling, torch.zeros(()))], strict=True):
        assert low < high + Z * (e1 + e2)
    assert bounds[0][0] < ceiling


def test_importance_bounds_rise_to_the_evidence():
    likelihood = pv.Normal(8, context=3, net=nn.Linear, scale=0.6)
    w, mu = weights(likelihood)
    with torch.no_grad():
        likelihood.network.weight.mul_(2)
    w, mu = weights(likelihood)
    exact = Gaussian(w, torch.full((8,), 0.6), lambda *_: mu)
    posterior = pv.Normal(3, context=8, net=nn.Linear)  # right means, independent latents, too wide
    with torch.no_grad():
        posterior.network.weight[:3], posterior.network.bias[:3] = exact.gain, -exact.gain @ mu
        posterior.network.weight[3:] = 0
        posterior.network.bias[3:] = raw_scale(1.2 * exact.covariance.diag().sqrt())
    vae = pv.VAE(pv.StandardNormal(3), likelihood, posterior)
    x = vae.sample(50)
    evidence = log_mvn(x, mu, w @ w.T + 0.36 * torch.eye(8))
    means = [exact_elbo(vae, x)[0].mean().item()]
    for k in (2, 5, 20, 100):
        repeats = torch.stack([pv.log_marginal(vae, x, k=k, seed=s).values for s in range(40)])
        means.append(repeats.mean().item())
    means += [pv.log_marginal(vae, x, k=5000).mean, evidence.mean().item()]
    assert all(a < b + 0.005 for a, b in itertools.pairwise(means)), means
    assert means[1] - means[0] > 0.05  # the bounds do differ
    close(pv.log_marginal(vae, x, k=5000).values, evidence, 0.3)
    assert means[-2] == pytest.approx(means[-1], abs=0.02)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_importance_bound_on_the_same_noise(k):
    vae, x = linear_vae(), torch.randn(4, D)
    torch.manual_seed(5)
    loss = pv.IWAE(k)(vae, x).detach()
    torch.manual_seed(5)
    noise = torch.randn(*([k] if k > 1 else []), 4, L).reshape(k, 4, L)
    (m, s), (w, mu) = network_scale(vae.posterior, x), weights(vae.likelihood)
    z = m + s * noise
    log_w = (
        log_normal(x, z @ w.T + mu, 0.6).sum(-1) + log_normal(z, 0.0, 1.0).sum(-1) - log_normal(z, m, s).sum(-1)
    ).detach()
    close(loss, -(log_w.exp().mean(0)).log().mean(), 1e-12)


class Subsampled:
    """A user's plate over 100 rows of which these are a few: Pyro scales every site by 100 / rows."""

    def __init__(self, vae):
        self.vae = vae

    def _plate(self, x):
        return pyro.plate("data", 100, subsample=torch.arange(len(x)))

    def model(self, x):
        with self._plate(x):
            z = pyro.sample("z", self.vae.prior())
            pyro.sample("x", self.vae.likelihood(z), obs=x)

    def guide(self, x):
        with self._plate(x):
            pyro.sample("z", self.vae.posterior(x))


def on_same_noise(function, *args, **kwargs):
    torch.manual_seed(7)
    result = function(*args, **kwargs)
    return result.detach() if isinstance(result, torch.Tensor) else result


@pytest.mark.parametrize("k", [1, 6])
def test_weights_belong_to_rows_and_carry_no_scale(k):
    vae, x = linear_vae(), torch.randn(3, D)
    program = Subsampled(vae)
    plain = on_same_noise(pv.log_weights, vae, x, k=k)
    close(on_same_noise(pv.log_weights, program, x, k=k), plain, 1e-12)
    close(on_same_noise(pv.IWAE(k), program, x), on_same_noise(pv.IWAE(k), vae, x), 1e-12)
    with poutine.scale(scale=13.0), pv.temper(0.3):
        close(on_same_noise(pv.log_weights, vae, x, k=k), plain, 1e-12)
        close(on_same_noise(pv.IWAE(k), vae, x), on_same_noise(pv.IWAE(k), vae, x), 1e-12)
    scaled = on_same_noise(pv.ELBO(), program, x)  # there the plate's scale is the user's wish
    close(scaled, on_same_noise(pv.ELBO(), vae, x) * 100 / 3, 1e-9)
    assert on_same_noise(pv.elbo_terms, program, x).elbo.shape == (3,)


# --- gradients ---

OBJECTIVES = {
    "elbo": pv.ELBO(),
    "beta": pv.ELBO(beta=0.5),
    "analytic": pv.ELBO(estimator=TraceMeanField_ELBO(max_plate_nesting=1)),
    "analytic, beta": pv.ELBO(beta=4.0, estimator=TraceMeanField_ELBO(max_plate_nesting=1)),
    "iwae": pv.IWAE(4),
}


def nonlinear_vae(prior="StandardNormal", likelihood="Normal"):
    q = pv.Normal(L, context=3, net=smooth)
    priors = {
        "StandardNormal": lambda: pv.StandardNormal(L),
        "Mixture": lambda: pv.Mixture(L, components=3),
        "VampPrior": lambda: pv.VampPrior(q, torch.rand(3, 3)),
    }
    return pv.VAE(priors[prior](), LIKELIHOODS[likelihood](3, context=L, net=smooth), q)


def cells(likelihood, rows=4):
    x = torch.rand(rows, 3)
    return {"Bernoulli": (x > 0.5).double(), "Categorical": (4 * x).floor(), "ContinuousBernoulli": x}.get(
        likelihood, x
    )


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize(
    ("prior", "likelihood"),
    [("StandardNormal", n) for n in LIKELIHOODS] + [("Mixture", "Bernoulli"), ("VampPrior", "Normal")],
)
def test_gradient_against_finite_differences(objective, prior, likelihood):
    vae, x = nonlinear_vae(prior, likelihood), cells(likelihood)
    parameters = list(vae.parameters())
    torch.manual_seed(7)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(objective(vae, x), parameters)])
    start = nn.utils.parameters_to_vector(parameters).detach()
    h = 1e-5
    # random directions: every parameter is in each of them
    for _ in range(8):
        direction = torch.randn_like(start)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + sign * h * direction, parameters)
            values.append(on_same_noise(objective, vae, x))
        difference = (values[0] - values[1]) / (2 * h)
        close((gradient * direction).sum(), difference, 1e-6 * max(1.0, difference.abs().item()))


class Fixed(pv.Conditional):
    """One location per row and one scale, with or without reparameterisation."""

    def __init__(self, family):
        super().__init__()
        self.family = family
        self.loc, self.scale = nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.ones(()))

    def forward(self, *context):
        return self.family(self.loc, self.scale.expand(2, 1)).to_event(1)


@pytest.mark.parametrize(
    ("family", "estimator", "particles"),
    [
        (dist.Normal, Trace_ELBO, 50_000),
        (dist.Normal, TraceMeanField_ELBO, 50_000),
        (NonreparameterizedNormal, Trace_ELBO, 500_000),  # the score function's gradients vary more
    ],
)
def test_gradient_is_unbiased(family, estimator, particles):
    """The known gradients of a Normal with Normal mean, pathwise and by score function, as in Pyro's own tests."""
    likelihood = pv.Normal(1, context=1, net=nn.Linear, scale=1.0)
    nn.init.ones_(likelihood.network.weight)
    nn.init.zeros_(likelihood.network.bias)
    vae = pv.VAE(pv.StandardNormal(1), likelihood, Fixed(family))
    vectorised = estimator(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    x = torch.tensor([[-0.5], [2.0]])
    (2 * pv.ELBO(estimator=vectorised)(vae, x)).backward()  # the objective is per row
    close(vae.posterior.loc.grad.flatten(), torch.tensor([0.5, -2.0]), 0.06)
    close(vae.posterior.scale.grad, 2.0, 0.06)


def test_importance_gradient_is_the_gradient_of_its_bound():
    """Means of many gradients against the finite difference of a bound estimated on common noise."""
    vae = linear_vae(latent=1, d=2)
    x = torch.randn(1, 2).repeat(20_000, 1)
    bias = vae.posterior.network.bias
    gradient = torch.autograd.grad(on_same(pv.IWAE(3), vae, x), bias)[0]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            bias[0] += sign * 1e-4
            values.append(on_same_noise(pv.IWAE(3), vae, x))
            bias[0] -= sign * 1e-4
    close(gradient[0], (values[0] - values[1]) / 2e-4, 1e-6)


def on_same(function, *args):
    torch.manual_seed(7)
    return function(*args)


# --- the same numbers as Pyro, bit for bit ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", ["StandardNormal", "Mixture", "VampPrior"])
@pytest.mark.parametrize("likelihood", ["Bernoulli", "Normal", "Categorical"])
@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
def test_equal_to_pyro_bitwise(estimator, likelihood, prior, dtype):
    torch.set_default_dtype(dtype)
    vae, x = nonlinear_vae(prior, likelihood), cells(likelihood, rows=7).to(dtype)
    objective = pv.ELBO() if estimator is Trace_ELBO else pv.ELBO(estimator=estimator(max_plate_nesting=1))
    results = []
    for loss in (
        lambda: objective(vae, x),
        lambda: estimator().differentiable_loss(vae.model, vae.guide, x) / len(x),
        lambda: pv.ELBO(beta=1.0, estimator=estimator(max_plate_nesting=1))(vae, x),
    ):
        vae.zero_grad()
        torch.manual_seed(11)
        value = loss()
        value.backward()
        results.append([value.detach(), *(p.grad.clone() for p in vae.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_single_weights_are_pyros_elbo():
    vae, x = nonlinear_vae("VampPrior", "StudentT"), torch.randn(7, 3)
    close(on_same_noise(pv.log_weights, vae, x).mean(), -on_same_noise(pv.ELBO(), vae, x), 1e-12)
    close(on_same_noise(pv.IWAE(1), vae, x), on_same_noise(pv.ELBO(), vae, x), 1e-12)


# --- beta ---


@pytest.mark.parametrize("prior", ["StandardNormal", "Mixture", "VampPrior"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("as_type", [float, torch.tensor])
def test_beta_weighs_the_rate_alone(prior, beta, as_type):
    vae, x = nonlinear_vae(prior, "Bernoulli"), cells("Bernoulli")
    terms = pv.elbo_terms(vae, x, seed=7)
    expected = -(terms.reconstruction - beta * terms.kl).mean()
    close(on_same_noise(pv.ELBO(beta=as_type(beta)), vae, x), expected, 1e-12)
    with pv.temper(as_type(beta)):
        tempered = on_same_noise(Trace_ELBO().differentiable_loss, vae.model, vae.guide, x) / len(x)
    close(tempered, expected, 1e-12)
    with pv.temper(as_type(beta), sites=["z"]):
        close(on_same_noise(pv.ELBO(), vae, x), expected, 1e-12)
    with pv.temper(as_type(beta), sites=["other"]):
        close(on_same_noise(pv.ELBO(), vae, x), -terms.elbo.mean(), 1e-12)
    close(on_same_noise(pv.ELBO(beta=as_type(beta), sites=["other"]), vae, x), -terms.elbo.mean(), 1e-12)


def test_beta_one_is_plain_and_beta_zero_leaves_the_prior_untrained():
    vae, x = nonlinear_vae("Mixture", "Bernoulli"), cells("Bernoulli")
    assert torch.equal(on_same_noise(pv.ELBO(beta=1.0), vae, x), on_same_noise(pv.ELBO(), vae, x))
    pv.ELBO(beta=0.0)(vae, x).backward()
    assert all(p.grad is None or not p.grad.any() for p in vae.prior.parameters())
    assert all(p.grad.any() for p in vae.likelihood.parameters())
    assert all(p.grad.isfinite().all() for p in vae.posterior.parameters())


def test_schedule_of_beta():
    vae, x = linear_vae(), torch.randn(4, D)
    annealed = pv.ELBO(beta=pv.Warmup(over=0.5, start=0.2, end=2.0))
    for t, beta in ((0.0, 0.2), (0.25, 1.1), (0.5, 2.0), (1.0, 2.0)):
        close(on_same_noise(annealed.at(t), vae, x), on_same_noise(pv.ELBO(beta=beta), vae, x), 1e-12)
    close(on_same_noise(annealed, vae, x), on_same_noise(pv.ELBO(beta=2.0), vae, x), 1e-12)


def test_rate_falls_with_beta():
    x = torch.randn(100, L) @ torch.randn(L, D) + 0.3 * torch.randn(100, D)
    rates, distortions = [], []
    for beta in (0.05, 1.0, 4.0, 20.0, 2000.0):
        torch.manual_seed(0)
        vae = linear_vae()
        pv.fit(
            vae,
            x,
            objective=pv.ELBO(beta=beta, estimator=TraceMeanField_ELBO(max_plate_nesting=1)),
            optimizer=functools.partial(torch.optim.Adam, lr=0.05),
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
            epochs=200,
            batch_size=100,
        )
        _, reconstruction, kl = exact_elbo(vae, x)
        rates.append(kl.mean().item())
        distortions.append(-reconstruction.mean().item())
    assert all(a > b for a, b in itertools.pairwise(rates)), rates
    assert all(a < b for a, b in itertools.pairwise(distortions)), distortions
    assert rates[-1] < 0.01


# --- mixtures as priors ---


def brute_force(logits, loc, scale, z):
    parts = torch.stack([log_normal(z, m, s).flatten(-m.dim()).sum(-1) for m, s in zip(loc, scale, strict=True)], -1)
    return (parts + logits - logits.logsumexp(0)).logsumexp(-1)


def random_mixture(shape, k, lowest=0.02):
    prior = pv.Mixture(shape, components=k)
    with torch.no_grad():
        prior.logits.normal_()
        prior.loc.copy_(3 + torch.randn_like(prior.loc))
        prior.raw_scale.copy_(raw_scale(lowest ** torch.rand_like(prior.loc)))
    return prior


@pytest.mark.parametrize(("shape", "k"), [(1, 1), (3, 5), ((2, 3), 4), (16, 50)])
def test_mixture_against_brute_force(shape, k):
    prior = random_mixture(shape, k)
    scale = torch.exp(10 * torch.tanh(prior.raw_scale / 10))
    z = prior().sample((4, 6)) + 0.01 * torch.randn(4, 6, *prior.loc.shape[1:])
    expected = brute_force(prior.logits, prior.loc, scale, z)
    actual = prior().log_prob(z)
    scale_of = max(1.0, expected.abs().max().item())
    close(actual, expected, 1e-10 * scale_of)
    parts = dist.Normal(prior.loc, scale).to_event(prior.loc.dim() - 1)
    same = dist.MixtureSameFamily(dist.Categorical(logits=prior.logits), parts)
    close(actual, same.log_prob(z), 1e-10 * scale_of)
    parameters = list(prior.parameters())
    for a, b in zip(
        torch.autograd.grad(actual.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_mixture_in_single_precision():
    """Narrow components far from the origin, where expanded squares cancel."""
    torch.set_default_dtype(torch.float32)
    prior = random_mixture(16, 50)
    with torch.no_grad():
        z = prior().sample((500,))
        scale = torch.exp(10 * torch.tanh(prior.raw_scale / 10))
        expected = brute_force(prior.logits.double(), prior.loc.double(), scale.double(), z.double())
        error = (prior().log_prob(z).double() - expected).abs()
    assert error.max() < 2e-4


def test_mixture_of_one_is_normal():
    prior = random_mixture(3, 1)
    scale = torch.exp(10 * torch.tanh(prior.raw_scale[0] / 10))
    z = prior().sample((9,))
    close(prior().log_prob(z), log_normal(z, prior.loc[0], scale).sum(-1), 1e-10)
    one = pv.Mixture(3, components=1)
    nn.init.zeros_(one.loc)
    close(one().log_prob(z), pv.StandardNormal(3)().log_prob(z), 1e-10)


@pytest.mark.parametrize("family", [pv.Normal, pv.Laplace])
def test_vamp_prior_at_the_data_is_the_aggregate_posterior(family):
    q = family(L, context=D, net=nn.Linear)
    x, z = torch.randn(9, D), torch.randn(4, 6, L)
    prior = pv.VampPrior(q, x)
    loc, scale = network_scale(q, x)
    if family is pv.Normal:
        each = log_normal(z[..., None, :], loc, scale).sum(-1)
    else:
        each = (-(z[..., None, :] - loc).abs() / scale - (2 * scale).log()).sum(-1)
    close(prior().log_prob(z), each.logsumexp(-1) - math.log(9), 1e-10)


def test_vamp_prior_rate_is_mutual_information():
    """With the aggregate posterior as prior the rate is I(x; z), at most the log of the number of rows."""
    q = pv.Normal(L, context=D, net=nn.Linear, scale=1e-3)
    x = torch.randn(9, D)
    vae = pv.VAE(pv.VampPrior(q, x), pv.Normal(D, context=L, net=nn.Linear), q)
    rate = pv.elbo_terms(vae, x, k=10).kl.mean().item()
    assert rate == pytest.approx(math.log(9), abs=1e-3)  # so narrow a guide tells all rows apart


def test_vamp_prior_shares_the_posterior():
    q = pv.Normal(L, context=D, net=nn.Linear)
    vae = pv.VAE(pv.VampPrior(q, torch.randn(4, D)), pv.Normal(D, context=L, net=nn.Linear), q)
    assert vae.prior.posterior is vae.posterior
    assert len(list(vae.parameters())) == len(list(q.parameters())) + len(list(vae.likelihood.parameters())) + 1
    twin = copy.deepcopy(vae)
    assert twin.prior.posterior is twin.posterior is not q
    z = torch.zeros(L)
    before = vae.prior().log_prob(z).item()
    with torch.no_grad():
        q.network.bias.add_(1)
    assert vae.prior().log_prob(z).item() != before
    assert twin.prior().log_prob(z).item() == before
    inputs = torch.randn(4, D)
    prior = pv.VampPrior(q, inputs)
    with torch.no_grad():
        prior.inputs.add_(1)
    assert not torch.equal(prior.inputs, inputs)  # the caller's rows are copied
    close(pv.VampPrior(q, inputs, learn=False).inputs, inputs, 0)


# --- invariances ---


def test_order_and_chunks_of_rows_do_not_matter():
    vae, evidence = exact_vae()
    x = torch.randn(23, D)
    order = torch.randperm(23)
    for size in (1, 3, 10, 5000):
        close(pv.elbo_terms(vae, x, chunk_size=size).elbo, evidence(x))
        close(pv.elbo_terms(vae, x[order], k=1, chunk_size=size).elbo, evidence(x)[order])
        close(pv.log_marginal(vae, x[order], k=7, chunk_size=size).values, evidence(x)[order])
        plain = linear_vae()
        close(
            pv.active_units(plain, x, chunk_size=size).variances, (network_scale(plain.posterior, x)[0]).var(0, False)
        )
    assert pv.log_marginal(vae, x, k=7, chunk_size=3).mean == pytest.approx(evidence(x).mean().item(), abs=1e-9)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_rows_do_not_see_each_other(likelihood):
    torch.set_default_dtype(torch.float32)
    vae, x = nonlinear_vae("Mixture", likelihood), cells(likelihood, rows=17).float()
    order = torch.randperm(17)
    whole = vae.encode(x).mean
    close(vae.encode(x[order]).mean, whole[order], 1e-5)
    close(torch.cat([vae.encode(part).mean for part in x.split(4)]), whole, 1e-5)
    close(vae.reconstruct(x[order]), vae.reconstruct(x)[order], 1e-5)
    close(vae.decode(whole[order]).log_prob(x[order]), vae.decode(whole).log_prob(x)[order], 1e-5)
    assert torch.equal(vae.log_prob(x, k=9, seed=4), vae.log_prob(x, k=9, seed=4))


def test_doubled_rows_change_nothing():
    vae = pv.VAE(pv.Mixture(L, components=3), pv.Normal(D, context=L, net=nn.Linear), Point())
    x, results = torch.randn(6, D), []
    for rows in (x, x.repeat_interleave(2, 0), x.repeat(3, 1)):
        vae.zero_grad()
        loss = pv.ELBO()(vae, rows)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in vae.parameters())])
        assert loss.item() == pytest.approx(pv.IWAE(1)(vae, rows).item(), abs=1e-12)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            close(a, b, 1e-12)


@pytest.mark.parametrize("rows", [1, 6, 7])
@pytest.mark.parametrize("objective", [pv.ELBO(), pv.IWAE(5)], ids=["elbo", "iwae"])
def test_ragged_last_batch_counts_by_its_rows(rows, objective):
    """Batches of 3, 3 and 1: the epoch's loss is the mean over rows, not over batches."""
    vae, evidence = exact_vae()
    x = torch.randn(rows, D) * torch.arange(1.0, rows + 1)[:, None]
    sgd = functools.partial(torch.optim.SGD, lr=0.0)
    history = pv.fit(vae, x, objective=objective, optimizer=sgd, epochs=2, batch_size=3, validation=x[:5])
    assert history["loss"] == pytest.approx([-evidence(x).mean().item()] * 2, abs=1e-9)
    assert history["validation"] == pytest.approx([-evidence(x[:5]).mean().item()] * 2, abs=1e-9)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=3)
    assert pv.fit(vae, loader, objective=objective, optimizer=sgd, epochs=1)["loss"] == pytest.approx(
        history["loss"][:1], abs=1e-9
    )


def test_long_validation_counts_by_its_rows():
    vae, evidence = exact_vae()
    x = torch.randn(501, D)  # validated in more than one batch
    x[-1] += 100
    sgd = functools.partial(torch.optim.SGD, lr=0.0)
    history = pv.fit(vae, x[:3], optimizer=sgd, epochs=1, validation=x)
    assert history["validation"][0] == pytest.approx(-evidence(x).mean().item(), abs=1e-9)


FAMILIES = {"Normal": pv.Normal, "Laplace": pv.Laplace, "StudentT": functools.partial(pv.StudentT, df=3.0)}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_units_of_the_data_shift_the_density(family):
    """x' = a x + b, with the first and last weights adapted, costs sum log a; columns in another order cost nothing."""
    vae = pv.VAE(
        pv.StandardNormal(L), family(D, context=L, net=nn.Linear, scale=pv.LearnedScale), pv.Normal(L, D, nn.Linear)
    )
    x, a, b = torch.randn(6, D), torch.tensor([0.5, 2.0, 3.0, 0.1, 1.0]), torch.randn(D)
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        first, last = twin.posterior.network, twin.likelihood.network
        first.weight.div_(a)
        first.bias.sub_(first.weight @ b)
        last.weight.mul_(a[:, None])
        last.bias.mul_(a).add_(b)
        twin.likelihood.scale_source.raw.copy_(raw_scale(a * vae.likelihood(torch.zeros(L)).base_dist.scale))
    close(pv.elbo_terms(twin, a * x + b).elbo, pv.elbo_terms(vae, x).elbo - a.log().sum(), 1e-9)
    close(twin.log_prob(a * x + b, k=50), vae.log_prob(x, k=50) - a.log().sum(), 1e-9)
    order = torch.randperm(D)
    with torch.no_grad():
        first.weight.copy_(first.weight[:, order])
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
        twin.likelihood.scale_source.raw.copy_(twin.likelihood.scale_source.raw[order])
    close(pv.elbo_terms(twin, (a * x + b)[:, order]).elbo, pv.elbo_terms(vae, x).elbo - a.log().sum(), 1e-9)


def test_evaluation_leaves_noise_mode_and_store_alone():
    vae, x = linear_vae(), torch.randn(5, D)
    vae.train()
    vae.likelihood.eval()
    pyro.param("mine", torch.ones(2))
    before = torch.get_rng_state()
    pv.elbo_terms(vae, x, k=3)
    pv.log_marginal(vae, x, k=3)
    pv.active_units(vae, x)
    vae.encode(x)
    assert torch.equal(torch.get_rng_state(), before)
    pv.ELBO()(vae, x)
    pv.IWAE(3)(vae, x)
    vae.sample(2)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert vae.training
    assert vae.posterior.training
    assert not vae.likelihood.training
