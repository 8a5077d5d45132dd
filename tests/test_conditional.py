"""Conditional models: their objectives and log-likelihoods against closed forms, and a target with two modes."""

import copy
import functools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrovae as pv
from pyrovae import objectives as o
from pyrovae.evaluation import log_marginal_by_sampling

X, Y, C = 4, 2, 3  # lengths of x, z and c
Z = 5.0  # standard errors a Monte-Carlo mean may be off: a false alarm in 2e6
SIGMA = 0.7
exactly = pytest.mark.usefixtures("float64")
linear = functools.partial(pv.Normal, net=nn.Linear)
small = functools.partial(pv.MLP, hidden=(64,))
analytic = TraceMeanField_ELBO(max_plate_nesting=1)


def conditional_vae(net=nn.Linear, **likelihood):
    """Context into all three parts."""
    return pv.VAE(
        pv.Normal(Y, context=C, net=net),
        pv.Normal(X, context=[(Y,), (C,)], net=net, **{"scale": SIGMA, **likelihood}),
        pv.Normal(Y, context=[(X,), (C,)], net=net),
    )


class Regression(pv.VAE.__base__):
    """p(x|c) without a latent."""

    encode = decode = None

    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    @pyro.nn.pyro_method
    def model(self, x=None, c=None, *, n=1):
        with pyro.plate("batch", n if x is None else len(x)):
            return pyro.sample("x", self.likelihood(c), obs=x)

    @pyro.nn.pyro_method
    def guide(self, x, c=None):
        pass


def affine(layer, inputs):
    return inputs @ layer.weight.T + layer.bias


def parts_by_hand(vae, c):
    """Loc and scale of the prior, W_z and the mean of x at z = 0, from the networks' weights."""
    loc, raw = affine(vae.prior.network, c).chunk(2, -1)
    weight, bias = vae.likelihood.network.weight[:X], vae.likelihood.network.bias[:X]
    return loc, torch.exp(10 * torch.tanh(raw / 10)), weight[:, :Y], c @ weight[:, Y:].T + bias


def evidence(vae, x, c):
    """Log N(x; W m + b(c), W S W' + sigma^2 I)."""
    loc, scale, w, offset = parts_by_hand(vae, c)
    covariance = w @ torch.diag_embed(scale**2) @ w.T + SIGMA**2 * torch.eye(X)
    return dist.MultivariateNormal(loc @ w.T + offset, covariance).log_prob(x)


def prediction(vae, x, c):
    """E_p(z|c) log N(x; W z + b(c), sigma^2)."""
    loc, scale, w, offset = parts_by_hand(vae, c)
    spread = (scale**2 @ (w**2).T).sum(-1) / (2 * SIGMA**2)
    return dist.Normal(loc @ w.T + offset, SIGMA).log_prob(x).sum(-1) - spread


def data(n=6):
    return torch.randn(n, X), torch.randn(n, C)


def seeded(function, *args, seed=7, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=0, atol=atol)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def gradient(loss, parameters):
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    return flat(torch.zeros_like(p) if g is None else g for g, p in zip(parts, parameters, strict=True))


# --- objectives ---


@exactly
def test_gsnn_is_the_mean_log_likelihood_under_the_prior():
    vae, (x, c) = conditional_vae(), data()
    losses = torch.stack([o.GSNN(200)(vae, x, c).detach() for _ in range(100)])
    exact = -prediction(vae, x, c).mean()
    assert abs(losses.mean() - exact) < Z * losses.std() / 10
    assert exact > -evidence(vae, x, c).mean()


@exactly
def test_gradient_of_gsnn():
    vae, (x, c) = conditional_vae(), data()
    parameters = [*vae.prior.parameters(), *vae.likelihood.parameters()]
    exact = gradient(-prediction(vae, x, c).mean(), parameters)
    draws = torch.stack([gradient(o.GSNN(200)(vae, x, c), parameters) for _ in range(100)])
    error = draws.std(0) / 10
    assert ((draws.mean(0) - exact).abs() < Z * error + 1e-12).all()
    assert (exact.abs() > 10 * error).any()
    assert gradient(o.GSNN()(vae, x, c), list(vae.posterior.parameters())).abs().max() == 0


@exactly
def test_gsnn_is_the_elbo_of_the_prior_as_guide():
    vae, (x, c) = conditional_vae(), data()
    twin = pv.VAE(vae.prior, vae.likelihood, OfContext(vae.prior))
    close(seeded(o.GSNN(), vae, x, c), seeded(o.ELBO(), twin, x, c), 1e-12)


class OfContext(pv.Conditional):
    """q(z|x, c) = p(z|c)."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, *context):
        return self.prior(context[1])


@exactly
@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 0, 0.5, 1, 1, 0], dtype=torch.float64)])
def test_hybrid_lies_between_elbo_and_gsnn(weights):
    vae, (x, c) = conditional_vae(), data()
    loss = functools.partial(seeded, weights=weights)
    elbo = loss(o.ELBO(), vae, x, c)
    gsnn = o.GSNN()(vae, x, c, weights=weights)  # draws after the ELBO's, as in the hybrid
    for alpha in (0.0, 0.25, 1.0):
        close(loss(o.Hybrid(alpha), vae, x, c), alpha * elbo + (1 - alpha) * gsnn, 1e-12)
        close(loss(alpha * o.ELBO() + (1 - alpha) * o.GSNN(), vae, x, c), alpha * elbo + (1 - alpha) * gsnn, 1e-12)
    close(loss(o.Hybrid(pv.Warmup(over=1.0)).at(0.25), vae, x, c), 0.25 * elbo + 0.75 * gsnn, 1e-12)
    close(loss(o.Hybrid(1.0, analytic), vae, x, c), loss(o.ELBO(estimator=analytic), vae, x, c), 1e-12)


@exactly
@pytest.mark.parametrize("counts", [[2, 1, 0, 1], [0, 3, 1, 0]])
def test_weight_of_a_row_of_gsnn(counts):
    """A prior without noise: the weighted loss is that of rows repeated or left out."""
    vae, (x, c) = conditional_vae(), data(4)
    with torch.no_grad():
        vae.prior.network.weight[Y:], vae.prior.network.bias[Y:] = 0, -1e9  # the lowest scale there is, e^-10
        vae.likelihood.network.weight[:, :Y] *= 1e-6
    repeats = torch.tensor(counts)
    weighted = 4 * o.GSNN(2)(vae, x, c, weights=repeats.to(x.dtype))
    repeated = sum(counts) * o.GSNN(2)(vae, x.repeat_interleave(repeats, 0), c.repeat_interleave(repeats, 0))
    close(weighted, repeated, 1e-7)


def test_hybrid_trains_every_part():
    vae, (x, c) = conditional_vae(small, scale=pv.NetworkScale), data(8)
    before = copy.deepcopy(vae.state_dict())
    pv.fit(vae, x, c, objective=o.Hybrid(0.5), epochs=1)
    assert not any(torch.equal(before[name], p) for name, p in vae.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [lambda: o.GSNN(), lambda: o.GSNN(3), lambda: o.Hybrid(pv.Warmup(end=0.8)), lambda: o.ELBO() + 0.5 * o.GSNN()],
    ids=["gsnn", "gsnn, several", "hybrid", "sum"],
)
def test_captured_step_is_the_eager_one(make):
    """Bit for bit, with a context, weights, a schedule and a shorter last batch."""
    (x, c), weights, results = data(15), torch.rand(15), []
    for level in ("eager", "replay"):
        vae = seeded(conditional_vae, small)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a program that cannot be captured says so
            history = pv.fit(vae, x, c, objective=make(), weights=weights, epochs=3, batch_size=6, compile=level)
        results.append((history["loss"], flat(vae.parameters())))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_what_the_objectives_refuse():
    x, c = data()
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(pv.ConfigError, match=r"^alpha"):
            o.Hybrid(wrong)
    with pytest.raises(pv.ConfigError, match=r"^k"):
        o.GSNN(0)
    with pytest.raises(pv.ConfigError, match="weights: expected one for each of 6 rows"):
        o.GSNN()(conditional_vae(), x, c, weights=torch.ones(5))
    classes = pv.VAE(pv.OneHotCategorical((Y,), context=C), pv.Normal(X, context=Y), pv.Concrete((Y,), context=X))
    with pytest.raises(pv.ConfigError, match=r"site 'z': expected .* reparameterised draws, received OneHot"):
        o.GSNN()(classes, x, c)


# --- conditional log-likelihood ---


@exactly
@pytest.mark.parametrize("compile", ["eager", "replay"])
def test_both_estimators_against_the_closed_form(compile):
    vae, (_, c) = conditional_vae(), data()
    x = vae.sample(6, c)
    exact = evidence(vae, x, c).detach()
    for estimate in (pv.log_marginal, log_marginal_by_sampling):
        found = estimate(vae, x, c, k=20_000, compile=compile)
        assert ((found.values - exact).abs() < Z * found.standard_errors).all()
        assert found.standard_errors.max() < 0.3
        assert (found.k, found.event_size) == (20_000, X)
    assert not torch.equal(found.values, log_marginal_by_sampling(vae, x, c, k=20_000, seed=1).values)


@exactly
def test_sampling_is_a_bound_and_looser_than_a_good_guide():
    """Linear models have an exact guide of known form: with it one draw is enough."""
    vae, (x, c) = conditional_vae(), data(2000)
    with torch.no_grad():
        vae.prior.network.weight[Y:] = 0
        w = torch.linalg.qr(torch.randn(X, Y))[0]
        vae.likelihood.network.weight[:, :Y] = w
        _, scale, w, _ = parts_by_hand(vae, c[:1])
        variance = 1 / (1 / scale[0] ** 2 + 1 / SIGMA**2)  # of z given x and c, W' W = I
        # mean = variance (m(c) / s^2 + W'(x - b(c)) / sigma^2), which is linear in x and c
        a, b = vae.prior.network.weight[:Y] / scale.T**2, vae.prior.network.bias[:Y] / scale[0] ** 2
        layer = vae.posterior.network
        layer.weight.zero_()
        layer.weight[:Y, :X] = variance[:, None] * w.T / SIGMA**2
        layer.weight[:Y, X:] = variance[:, None] * (a - w.T @ vae.likelihood.network.weight[:X, Y:] / SIGMA**2)
        layer.bias[:Y] = variance * (b - w.T @ vae.likelihood.network.bias[:X] / SIGMA**2)
        layer.bias[Y:] = 10 * torch.atanh(variance.sqrt().log() / 10)
    exact = evidence(vae, x, c).detach()
    close(pv.log_marginal(vae, x, c, k=1).values, exact, 1e-9)
    gaps = [(exact - log_marginal_by_sampling(vae, x, c, k=k).values).mean().item() for k in (1, 10, 100)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    close(gaps[0], (exact - prediction(vae, x, c)).mean().item(), 0.2 * gaps[0])


@exactly
def test_sampling_needs_no_guide_and_no_latent():
    model, (x, c) = Regression(linear(X, context=C, scale=SIGMA)), data(50)
    exact = model.likelihood(c).log_prob(x).detach()
    for k in (1, 7):
        close(log_marginal_by_sampling(model, x, c, k=k).values, exact, 1e-12)
        close(pv.log_marginal(model, x, c, k=k).values, exact, 1e-12)
    del type(model).guide
    close(log_marginal_by_sampling(model, x, c, k=2, chunk_size=10).values, exact, 1e-12)


def test_evaluation_leaves_everything_as_it_was():
    vae, (x, c) = conditional_vae(), data()
    state, parameters = torch.get_rng_state(), copy.deepcopy(vae.state_dict())
    log_marginal_by_sampling(vae, x, c, k=5)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert all(torch.equal(parameters[name], p) for name, p in vae.state_dict().items())
    with pytest.raises(pv.ConfigError, match="k and chunk_size"):
        log_marginal_by_sampling(vae, x, c, k=0)
    with pytest.raises(pv.ConfigError, match="precision"):
        log_marginal_by_sampling(vae, x, c, k=2, precision="half")


# --- what a latent is for ---


def adam(lr):
    return functools.partial(torch.optim.Adam, lr=lr)


def test_latent_that_is_of_no_use_is_given_up():
    """Given c the elements of x are independent: no z is needed, and the rate falls to 0."""
    torch.manual_seed(1)
    c = torch.randn(1000, C)
    x = c @ torch.randn(C, X) + 0.6 * torch.randn(1000, X)  # less than SIGMA: chance correlations need no z either
    vae = conditional_vae()
    assert pv.elbo_terms(vae, x, c, k=10).kl.mean() > 0.5
    settings = {"optimizer": adam(0.1), "scheduler": CosineAnnealingLR, "epochs": 60, "batch_size": 100}
    pv.fit(vae, x, c, objective=o.ELBO(estimator=analytic), **settings)
    assert pv.elbo_terms(vae, x, c, k=10).kl.mean() < 0.02


def modes(c):
    return 1.5 + torch.sin(2 * c)


def test_both_modes_of_a_target():
    """The target is f(c) or -f(c): a regression predicts 0 and a wide scale, a conditional VAE one of the two."""
    torch.manual_seed(0)
    c = 4 * torch.rand(2000, 1) - 2
    sign = 2.0 * (torch.rand(2000, 1) > 0.5) - 1
    x = sign * modes(c) + 0.2 * torch.randn(2000, 1)
    vae = pv.VAE(
        pv.Normal(2, context=1, net=small),
        pv.Normal(1, context=[(2,), (1,)], net=small, scale=pv.SharedScale),
        pv.Normal(2, context=[(1,), (1,)], net=small),
    )
    regression = Regression(pv.Normal(1, context=1, net=small))
    near, log_p = {}, {}
    for model in (vae, regression):
        pv.fit(model, x, c, epochs=60, batch_size=100, optimizer=adam(3e-2), scheduler=CosineAnnealingLR)
        drawn = seeded(model.sample, 2000, c)
        near[model] = (drawn.abs() - modes(c)).abs() < 0.5
        log_p[model] = log_marginal_by_sampling(model, x, c, k=500).mean
    assert near[vae].float().mean() > near[regression].float().mean() + 0.25
    drawn = seeded(vae.sample, 2000, c)
    for part in (c < -0.7, (c > -0.7) & (c < 0.7), c > 0.7):
        assert 0.3 < (drawn[near[vae] & part] > 0).float().mean() < 0.7
    assert log_p[vae] > log_p[regression] + 0.8
