"""Objectives against exact values: linear-Gaussian evidence, closed forms, enumeration, and each other."""

import copy
import functools
import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae import objectives as o
from pyrovae.objectives.adversarial import permuted
from pyrovae.spec import build, describe

D, L = 5, 2
Z = 5.0  # standard errors a Monte-Carlo mean may be off: a false alarm in 2e6
inf = math.inf
exactly = pytest.mark.usefixtures("float64")
smooth = functools.partial(pv.MLP, hidden=(4,), activation=nn.Tanh)
small = functools.partial(pv.MLP, hidden=(5,))
analytic = TraceMeanField_ELBO(max_plate_nesting=1)

# everything once; critics draw their weights when they are built
OBJECTIVES = {
    "elbo": lambda: o.ELBO(beta=0.5),
    "elbo, analytic": lambda: o.ELBO(estimator=analytic),
    "gsnn": lambda: o.GSNN(3),
    "hybrid": lambda: o.Hybrid(pv.Warmup(end=0.5)),
    "free bits": lambda: o.FreeBits(0.1),
    "free bits, sites": lambda: o.SiteFreeBits(nats=pv.Warmup(end=0.2)),
    "capacity": lambda: o.Capacity(gamma=10.0, capacity=pv.Warmup(over=0.5, end=2.0)),
    "iwae": lambda: o.IWAE(3),
    "dreg": lambda: o.DReG(4),
    "stl": lambda: o.STL(),
    "stl, several": lambda: o.STL(3),
    "renyi": lambda: o.Renyi(0.5, 3),
    "renyi, negative": lambda: o.Renyi(-1, 3),
    "renyi, elbo": lambda: o.Renyi(1, 3),
    "renyi, largest": lambda: o.Renyi(-inf, 3),
    "miwae": lambda: o.MIWAE(3, 2),
    "ciwae": lambda: o.CIWAE(3, beta=pv.Warmup(end=0.5)),
    "piwae": lambda: o.PIWAE(3, 2),
    "tc": lambda: o.BetaTCVAE(100, beta=pv.Warmup(end=4.0)),
    "tc, stratified": lambda: o.BetaTCVAE(100, sampling=o.StratifiedSampling()),
    "dip 1": lambda: o.DIPVAE(),
    "dip 2": lambda: o.DIPVAEII(off_diagonal=pv.Warmup()),
    "wae": lambda: o.ELBO(beta=0.0) + 10.0 * o.MMD(),
    "info": lambda: o.ELBO(beta=0.5) + pv.Warmup() * o.MMD(o.RBF(2.0)),
    "factor": lambda: o.FactorVAE(L, gamma=pv.Warmup(end=3.0), net=small),
    "adversarial": lambda: o.AdversarialAutoencoder(L, net=small),
    "sum of named": lambda: o.PIWAE(2, 2) + 0.5 * o.IWAE(2) + o.FactorVAE(L, net=small),
}
NOISY = ("wae", "info", "gsnn", "hybrid")  # draws of the prior are new ones whatever the posterior is


def every(*leave_out):
    names = [name for name in OBJECTIVES if name not in leave_out]
    return pytest.mark.parametrize("make", [OBJECTIVES[n] for n in names], ids=names)


class Point(pv.Conditional):
    """All the mass at a linear function of x: no noise, so that rows can be compared exactly."""

    def __init__(self, d=D):
        super().__init__()
        self.network = nn.Linear(d, L)

    def forward(self, *context):
        return dist.Delta(self.network(context[0])).to_event(1)


class Fixed(pv.Conditional):
    """A given distribution of every row."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *context):
        return self.function(*(c for c in context if c is not None))


def raw_scale(scale):
    """What ``exp(10 tanh(raw / 10))`` turns into ``scale``."""
    return 10 * torch.atanh(torch.as_tensor(scale).log() / 10)


def linear_vae(prior=None, posterior=None, sigma=0.6, d=D):
    return pv.VAE(
        pv.StandardNormal(L) if prior is None else prior,
        pv.Normal(d, context=L, net=nn.Linear, scale=sigma),
        pv.Normal(L, context=d, net=nn.Linear) if posterior is None else posterior,
    )


def smooth_vae(prior="normal", d=D):
    q = pv.Normal(L, context=d, net=smooth)
    priors = {"normal": lambda: pv.StandardNormal(L), "vamp": lambda: pv.VampPrior(q, torch.rand(3, d))}
    return pv.VAE(priors[prior](), pv.Bernoulli(d, context=L, net=smooth), q)


def evidence(vae, x, sigma=0.6):
    w, mu = vae.likelihood.network.weight[: x.shape[1]].detach(), vae.likelihood.network.bias[: x.shape[1]].detach()
    return dist.MultivariateNormal(mu, w @ w.T + sigma**2 * torch.eye(x.shape[1])).log_prob(x)


def exact_vae(sigma=0.6):
    """Orthogonal columns make the exact posterior diagonal, and the guide is set to it."""
    vae = linear_vae(sigma=sigma)
    with torch.no_grad():
        decoder, encoder = vae.likelihood.network, vae.posterior.network
        w = torch.linalg.qr(torch.randn(D, L))[0] * torch.tensor([1.5, 0.7])
        decoder.weight[:D] = w
        variances = sigma**2 / ((w**2).sum(0) + sigma**2)
        gain = variances[:, None] * w.T / sigma**2
        encoder.weight[:L], encoder.bias[:L] = gain, -gain @ decoder.bias[:D]
        encoder.weight[L:], encoder.bias[L:] = 0, raw_scale(variances.sqrt())
    return vae


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=0, atol=atol)


def seeded(function, *args, seed=7, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


def value(objective, *args, seed=7, **kwargs):
    return o.reported(seeded(objective, *args, seed=seed, **kwargs)).detach()


def owned(objective, vae):
    """What each named loss trains."""
    claims = objective.parameters(vae)
    claimed = {id(p) for ps in claims.values() for p in ps}
    return {"model": [p for p in vae.parameters() if id(p) not in claimed]} | claims


def gradients(loss, parameters):
    parts = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(parts, parameters, strict=True)]


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def rows(n, d=D):
    return (torch.rand(n, d) > 0.5).to(torch.get_default_dtype())


# --- bounds by importance weights ---


@exactly
def test_bounds_stand_in_order_below_the_evidence():
    vae = linear_vae()
    with torch.no_grad():
        vae.posterior.network.weight.mul_(0.5)
    one = torch.randn(1, D)
    x, ceiling = one.expand(20_000, -1), evidence(vae, one).item()
    ordered = [o.Renyi(2.0, 8), o.MIWAE(1, 8), o.CIWAE(8, beta=0.5), o.MIWAE(4, 2), o.Renyi(0.3, 8), o.IWAE(8)]
    bounds = [-objective.bound(seeded(objective.log_weights, vae, x)).mean().item() for objective in ordered]
    deviations = [b - a for a, b in itertools.pairwise(reversed(bounds))]
    # the same draws everywhere, but for CIWAE against MIWAE of fewer draws
    assert all(b > 0 for b in deviations), bounds
    assert -bounds[-1] < ceiling
    log_w = seeded(o.IWAE(400).log_weights, vae, one.expand(2_000, -1))
    bound = o.IWAE(400).bound(log_w).detach()
    assert bound.mean().item() == pytest.approx(ceiling, abs=0.02)


@exactly
def test_renyi_is_a_power_mean():
    log_w = torch.randn(6, 50) * 3
    alphas = [-inf, -20.0, -1.0, 0.0, 0.5, 0.999, 0.9995, 1.0, 1.0005, 1.001, 2.0, 30.0, inf]
    bounds = [o.Renyi(alpha, 6).bound(log_w) for alpha in alphas]
    assert all((a >= b - 1e-12).all() for a, b in itertools.pairwise(bounds))
    for alpha in (-1.0, 0.5, 2.0, 1.0005, 0.9995):
        close(o.Renyi(alpha, 6).bound(log_w), (log_w.exp() ** (1 - alpha)).mean(0).log() / (1 - alpha), 1e-8)
    close(o.Renyi(0, 6).bound(log_w), o.IWAE(6).bound(log_w), 0)
    close(o.Renyi(1, 6).bound(log_w), log_w.mean(0), 0)
    for alpha in (1 - 1e-9, 1 + 1e-9):
        close(o.Renyi(alpha, 6).bound(log_w), log_w.mean(0), 1e-6)
    single = o.Renyi(1 - 1e-5, 6).bound(log_w.float())  # in single precision too
    close(single, o.Renyi(1 - 1e-5, 6).bound(log_w).float(), 1e-4)


@exactly
def test_special_cases_are_each_other():
    vae, x = linear_vae(), torch.randn(7, D)
    several = Trace_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    elbo, iwae = value(o.ELBO(estimator=several), vae, x), value(o.IWAE(6), vae, x)
    assert elbo > iwae
    for objective in (o.MIWAE(6, 1), o.CIWAE(6, beta=0.0), o.Renyi(0.0, 6), o.STL(6), o.DReG(6)):
        close(value(objective, vae, x), iwae, 1e-12)
    for objective in (o.MIWAE(1, 6), o.CIWAE(6, beta=1.0), o.Renyi(1.0, 6)):
        close(value(objective, vae, x), elbo, 1e-12)
    close(value(o.CIWAE(6, beta=0.25), vae, x), 0.25 * elbo + 0.75 * iwae, 1e-12)
    close(value(o.MIWAE(1, 1), vae, x), value(o.ELBO(), vae, x), 1e-12)
    log_w = seeded(pv.log_weights, vae, x, k=6)
    by_hand = torch.stack([(log_w[:3].exp().mean(0)).log(), (log_w[3:].exp().mean(0)).log()]).mean()
    close(value(o.MIWAE(3, 2), vae, x), -by_hand.detach(), 1e-12)


@exactly
def test_partial_bounds_train_their_own_parameters():
    vae, x = linear_vae(), torch.randn(7, D)
    objective = o.PIWAE(3, 2)
    step = pv.compile_step(vae.model, vae.guide, objective, torch.optim.SGD(vae.parameters(), lr=0.0), level="eager")
    loss = seeded(step.gradients, x)
    received = {id(p): g for p, g in zip(step.parameters, step._gradients, strict=True)}
    for bound, part in ((o.IWAE(6), vae.likelihood), (o.MIWAE(3, 2), vae.posterior)):
        parameters = list(part.parameters())
        expected = gradients(seeded(bound, vae, x), parameters)
        close(flat([received[id(p)] for p in parameters]), flat(expected), 1e-12)
    close(loss, value(o.IWAE(6), vae, x), 1e-12)
    with pytest.raises(pv.ConfigError, match="PIWAE: expected a pyrovae"):
        objective.parameters(nn.Linear(1, 1))

    class Other(pv.VAE.__base__):
        model = guide = encode = decode = None

    with pytest.raises(pv.ConfigError, match="guide_parts"):
        objective.parameters(Other())


# --- gradients without the guide's score ---


@exactly
def test_no_gradient_at_the_exact_posterior():
    """Draw by draw: sticking the landing."""
    vae, x = exact_vae(), 3 * torch.randn(4, D)
    close(value(o.IWAE(5), vae, x), -evidence(vae, x).mean(), 1e-10)
    parameters = list(vae.posterior.parameters())
    for objective in (o.STL(), o.DReG(1), o.DReG(7), o.STL(7)):
        assert flat(gradients(seeded(objective, vae, x), parameters)).abs().max() < 1e-12
    for objective in (o.ELBO(), o.IWAE(7)):
        assert flat(gradients(seeded(objective, vae, x), parameters)).abs().max() > 1e-2


@exactly
def test_doubly_reparameterised_gradient_is_unbiased_and_less_noisy():
    vae = exact_vae()
    with torch.no_grad():
        vae.posterior.network.bias[:L] += 0.4
    x = torch.randn(1, D).expand(200, -1)
    means = {}
    for objective in (o.IWAE(6), o.DReG(6)):
        bias = vae.posterior.network.bias
        draws = torch.stack([gradients(objective(vae, x), [bias])[0] for _ in range(150)])
        means[type(objective)] = draws.mean(0), draws.var(0) / len(draws)
    (a, va), (b, vb) = means.values()
    assert ((a - b) / (va + vb).sqrt()).abs().max() < Z
    assert (va / vb).min() > 2
    # the model's gradient is that of IWAE, draw by draw
    parameters = list(vae.likelihood.parameters())
    close(*(flat(gradients(seeded(b, vae, x), parameters)) for b in (o.IWAE(6), o.DReG(6))), 1e-12)


class Ladder(nn.Module):
    """Two layers of latents, the second drawn given the first, with dropout and normalisation between them."""

    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.first, self.second, self.decoder = nn.Linear(D, 2 * L), nn.Linear(L, 2 * L), nn.Linear(2 * L, D)
        self.norm = nn.BatchNorm1d(D) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def model(self, x):
        with pyro.plate("batch", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2.tanh(), 0.7).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(torch.cat([z1, z2], -1)), 0.8).to_event(1), obs=x)

    def q(self, layer, h):
        loc, raw = layer(h).chunk(2, -1)
        return dist.Normal(loc, raw.exp()).to_event(1)

    def guide(self, x):
        with pyro.plate("batch", len(x)):
            z1 = pyro.sample("z1", self.q(self.first, self.dropout(self.norm(x))))
            pyro.sample("z2", self.q(self.second, self.dropout(z1.tanh())))


@exactly
@pytest.mark.parametrize("k", [1, 5])
def test_doubly_reparameterised_gradient_by_hand(k):
    """Through two layers of latents: every path to the guide's parameters is weighted once."""
    program, x = Ladder(), torch.randn(3, D)
    torch.manual_seed(3)
    e1, e2 = (torch.randn(*([k] if k > 1 else []), 3, L) for _ in range(2))
    q1 = program.q(program.first, x)
    z1 = q1.base_dist.loc + q1.base_dist.scale * e1
    q2 = program.q(program.second, z1.tanh())
    z2 = q2.base_dist.loc + q2.base_dist.scale * e2
    a, b = (z.detach().requires_grad_() for z in (z1, z2))
    fixed = copy.deepcopy(program).requires_grad_(False)
    log_w = (
        dist.Normal(0.0, 1.0).log_prob(b).sum(-1)
        + dist.Normal(b.tanh(), 0.7).log_prob(a).sum(-1)
        + dist.Normal(program.decoder(torch.cat([a, b], -1)), 0.8).log_prob(x).sum(-1)
        - fixed.q(fixed.first, x).log_prob(a)
        - fixed.q(fixed.second, a.tanh()).log_prob(b)
    ).reshape(k, 3)
    share = log_w.detach().softmax(0)
    to_a, to_b = torch.autograd.grad((share**2 * log_w).sum(), [a, b], retain_graph=True)
    guide = [*program.first.parameters(), *program.second.parameters()]
    model = list(program.decoder.parameters())
    expected = gradients((to_a * z1).sum() + (to_b * z2).sum(), guide)
    expected += gradients((share * log_w).sum(), model)
    received = gradients(-3 * seeded(o.DReG(k), program, x, seed=3), guide + model)
    close(flat(received), flat(expected), 1e-10)


@exactly
@pytest.mark.parametrize("objective", [o.STL(4), o.DReG(4)])
def test_second_run_of_the_guide_sees_the_same_masks_and_counts_no_batch_twice(objective):
    """Dropout before and between the draws; running statistics as after one run."""
    x = torch.randn(9, D)
    ours, theirs = (seeded(Ladder, 0.5, norm=True) for _ in range(2))
    close(value(objective, ours, x), value(o.IWAE(4), theirs, x), 1e-12)
    state = torch.get_rng_state()
    seeded(o.IWAE(4), theirs, x)
    assert torch.equal(state, torch.get_rng_state())  # and draws no more
    theirs = seeded(Ladder, 0.5, norm=True)
    seeded(o.IWAE(4), theirs, x)
    for name, buffer in ours.named_buffers():
        close(buffer, theirs.get_buffer(name), 0)
    first, ours = ours, ours.eval()
    assert first is ours
    close(value(objective, ours, x), value(o.IWAE(4), theirs.eval(), x), 1e-12)


def test_second_run_is_captured_with_its_masks():
    x = torch.randn(9, D)
    losses = {}
    for level in ("eager", "replay"):
        program = seeded(Ladder, 0.3, norm=True)
        adam = torch.optim.Adam(program.parameters(), lr=1e-2)
        step = pv.compile_step(program.model, program.guide, o.DReG(3), adam, level=level)
        torch.manual_seed(1)
        losses[level] = [step(x).item() for _ in range(5)]
        assert step.level == level
    assert losses["eager"] == losses["replay"]


def test_second_run_costs_no_second_encoder_when_captured():
    products = {}
    for objective in (o.IWAE(3), o.DReG(3)):
        vae = smooth_vae()
        adam = torch.optim.Adam(vae.parameters())
        step = pv.compile_step(vae.model, vae.guide, objective, adam, level="replay")
        step(rows(6))
        (kind,) = step._plans.values()
        nodes = kind.plan.function._graph.graph.nodes
        products[type(objective)] = sum("mm" in str(n.target) for n in nodes)
    assert products[o.DReG] == products[o.IWAE]


@exactly
def test_a_prior_that_shares_the_posterior_keeps_the_models_gradient():
    """What a VampPrior sends to the shared network is what it would send to a copy of its own."""
    vae, x = smooth_vae("vamp"), rows(6)
    apart = copy.deepcopy(vae)
    apart.prior.posterior = copy.deepcopy(apart.posterior)
    for objective in (o.STL(), o.DReG(4)):
        shared = gradients(seeded(objective, vae, x), list(vae.posterior.parameters()))
        loss = seeded(objective, apart, x)
        guide = gradients(loss, list(apart.posterior.parameters()))
        prior = gradients(loss, list(apart.prior.posterior.parameters()))
        close(flat(shared), flat(guide) + flat(prior), 1e-12)
        assert flat(prior).abs().max() > 1e-4


def test_plain_functions_have_guides_too():
    encoder, decoder, x = nn.Linear(D, L), nn.Linear(L, D), torch.randn(4, D)

    class Program:
        def model(self, x):
            with pyro.plate("batch", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            scale = pyro.param("scale", torch.full((L,), 0.5), constraint=dist.constraints.positive)
            with pyro.plate("batch", len(x)):
                pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    loss = seeded(o.STL(), Program(), x)
    assert loss.item() == seeded(o.IWAE(1), Program(), x).item()
    # log q by fixed parameters: what is left at z = loc + scale e is the path
    torch.manual_seed(7)
    z = encoder(x) + 0.5 * torch.randn(4, L)
    fixed = encoder(x).detach()
    log_w = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(decoder(z), 1.0).log_prob(x).sum(-1)
    log_w = log_w - dist.Normal(fixed, 0.5).log_prob(z).sum(-1)
    close(*(flat(gradients(f, list(encoder.parameters()))) for f in (loss, -log_w.mean())), 1e-5)
    assert list(pyro.get_param_store()) == []


@pytest.mark.parametrize(
    "objective",
    [o.IWAE(2), o.Renyi(), o.MIWAE(), o.STL(), o.DReG(2), o.FreeBits(), o.Capacity(), o.DIPVAE(), o.MMD()],
    ids=lambda objective: type(objective).__name__,
)
def test_draws_without_a_gradient_are_refused(objective):
    vae = linear_vae(posterior=Fixed(lambda x: NonreparameterizedNormal(x[:, :L], 1.0).to_event(1)))
    with pytest.raises(pv.ConfigError, match=r"site 'z'.*reparameterised.*ELBO"):
        objective(vae, torch.randn(3, D))


# --- the rate: free bits, capacity ---


@exactly
def test_free_bits():
    vae, x = smooth_vae(), rows(8)
    q = vae.posterior(x)
    kl = kl_divergence(q.base_dist, dist.Normal(0.0, 1.0)).detach()
    reconstruction = value(o.ELBO(beta=0.0), vae, x)
    floor = kl.mean(0).mean().item()  # one dimension above, one below
    for group in (1, 2, 5):
        rate = kl.mean(0).clamp(min=floor).sum() if group == 1 else kl.sum(1).mean().clamp(min=floor)
        close(value(o.FreeBits(floor, group), vae, x), reconstruction + rate, 1e-12)
    close(value(o.SiteFreeBits(9.0), vae, x), reconstruction + 9.0, 1e-12)
    close(value(o.SiteFreeBits(0.0), vae, x), reconstruction + kl.sum(1).mean(), 1e-12)
    close(value(o.FreeBits(0.0), vae, x), value(o.ELBO(estimator=analytic), vae, x), 1e-12)
    # below the floor the rate has no gradient
    free = gradients(seeded(o.FreeBits(100.0), vae, x), list(vae.parameters()))
    plain = gradients(seeded(o.ELBO(beta=0.0), vae, x), list(vae.parameters()))
    close(flat(free), flat(plain), 1e-12)
    assert value(o.FreeBits(pv.Warmup(end=0.3)).at(0.0), vae, x) == value(o.FreeBits(0.0), vae, x)


@exactly
def test_rates_estimated_from_the_draw_agree_with_the_formula():
    """A Normal that torch knows no KL of, against the same Normal."""
    vae, x = smooth_vae(), rows(1).expand(20_000, -1)

    class Unknown(dist.TorchDistribution):  # no subclass of Normal: kl_divergence does not know it
        has_rsample, arg_constraints, support = True, {}, dist.constraints.real

        def __init__(self, base):
            self.base = base
            super().__init__(base.batch_shape, validate_args=False)

        def rsample(self, sample_shape=()):
            return self.base.rsample(torch.Size(sample_shape))

        def log_prob(self, value):
            return self.base.log_prob(value)

        def expand(self, batch_shape, _instance=None):
            return Unknown(self.base.expand(batch_shape))

    other = copy.deepcopy(vae)
    other.posterior = Fixed(lambda x: Unknown(vae.posterior(x).base_dist).to_event(1))
    for objective in (o.FreeBits(0.0), o.SiteFreeBits(0.0)):
        rates = [value(objective, v, x) - value(o.ELBO(beta=0.0), v, x) for v in (vae, other)]
        assert rates[0] == pytest.approx(rates[1].item(), abs=0.05)
        assert rates[0] != rates[1]
    sampled = value(o.ELBO(), other, x[:50])
    close(value(o.SiteFreeBits(0.0), other, x[:50]), sampled, 1e-10)


def test_a_prior_that_does_not_factorise_has_a_rate_as_a_whole():
    vae = linear_vae(prior=pv.Mixture(L, components=3))
    with pytest.raises(pv.ConfigError, match=r"site 'z'.*NormalMixture.*SiteFreeBits"):
        o.FreeBits(0.1)(vae, torch.randn(3, D))
    x = torch.randn(3, D)
    close(value(o.SiteFreeBits(0.0), vae, x), value(o.ELBO(), vae, x), 1e-5)


@exactly
def test_capacity_holds_the_rate():
    vae, x = smooth_vae(), rows(8)
    rate = kl_divergence(vae.posterior(x), vae.prior().expand((8,))).mean().item()
    reconstruction = value(o.ELBO(beta=0.0), vae, x).item()
    for capacity in (0.0, rate / 2, 2 * rate):
        expected = reconstruction + 7.0 * abs(rate - capacity)
        assert value(o.Capacity(7.0, capacity), vae, x).item() == pytest.approx(expected, abs=1e-12)
    rising = o.Capacity(7.0, pv.Warmup(over=0.5, end=4 * rate))
    assert value(rising.at(0.25), vae, x).item() == pytest.approx(reconstruction + 7.0 * rate, abs=1e-12)
    vae, x = smooth_vae(), rows(64)
    pv.fit(vae, x, objective=o.Capacity(100.0, 1.5), epochs=150, batch_size=64, optimizer=adam(1e-2))
    assert kl_divergence(vae.posterior(x), vae.prior().expand((64,))).mean().item() == pytest.approx(1.5, abs=0.1)


@exactly
@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_beta_is_the_variance_of_the_likelihood(beta):
    vae, x = linear_vae(sigma=1.0), torch.randn(6, D)
    wide = copy.deepcopy(vae)
    wide.likelihood = pv.Normal(D, context=L, net=nn.Linear, scale=math.sqrt(beta))
    wide.likelihood.load_state_dict(vae.likelihood.state_dict())
    a = gradients(seeded(o.ELBO(beta=beta), vae, x), list(vae.parameters()))
    b = gradients(seeded(o.ELBO(), wide, x), list(wide.parameters()))
    close(flat(a), beta * flat(b), 1e-10)


# --- the aggregate posterior ---


def gaussians(w, scale=None):
    """A guide over whole data sets: loc w x, given scale."""
    return Fixed(lambda x: dist.Normal(x @ w.T, scale).to_event(1))


@exactly
def test_the_three_terms_sum_to_the_rate():
    vae, x = smooth_vae(), rows(30)
    for sampling in (o.WeightedSampling(), o.StratifiedSampling()):
        parts = seeded(o.BetaTCVAE(1000, sampling=sampling).terms, vae, x)
        total = parts.mutual_information + parts.total_correlation + parts.dimension_wise
        torch.manual_seed(7)
        q = vae.posterior(x)
        z = q.rsample()
        close(total, q.log_prob(z) - vae.prior().log_prob(z), 1e-10)
        objective = o.BetaTCVAE(1000, beta=1.0, sampling=sampling)
        close(value(objective, vae, x), value(o.ELBO(), vae, x), 1e-10)
        close(
            value(o.BetaTCVAE(1000, 3.0, 2.0, 0.5, sampling), vae, x),
            value(o.ELBO(beta=0.0), vae, x)
            + (2 * parts.mutual_information + 3 * parts.total_correlation + parts.dimension_wise / 2).mean(),
            1e-10,
        )


@exactly
def test_the_terms_in_the_mean_are_the_analytic_rate():
    vae, x = smooth_vae(), rows(1).expand(3000, -1)
    parts = o.BetaTCVAE(3000).terms(vae, x)
    draws = sum(vars(parts).values()).detach()
    exact = kl_divergence(vae.posterior(x[:1]), vae.prior().expand((1,))).item()
    assert abs(draws.mean() - exact) < Z * draws.std() / math.sqrt(3000)


@exactly
def test_aggregate_posterior_of_the_whole_data_is_exact():
    """The batch is the data set: q(z) is a mixture with one component for each row."""
    n = 200
    scale = torch.rand(n, L) + 0.5
    vae, x = linear_vae(posterior=Fixed(lambda x: dist.Normal(x[:, :L], scale).to_event(1))), torch.randn(n, D)
    parts = seeded(o.BetaTCVAE(n, sampling=o.StratifiedSampling()).terms, vae, x)
    torch.manual_seed(7)
    z = dist.Normal(x[:, :L], scale).sample()
    density = dist.Normal(x[:, :L], scale).log_prob(z[:, None]).exp()  # z_i under row j, by dimension
    joint, marginal = density.prod(-1).mean(1), density.mean(1)
    close(parts.total_correlation, joint.log() - marginal.log().sum(-1), 1e-10)
    close(parts.mutual_information, density.prod(-1).diagonal().log() - joint.log(), 1e-10)
    # weighting gives the same where the batch is the data set
    other = seeded(o.BetaTCVAE(n).terms, vae, x)
    close(other.total_correlation, parts.total_correlation - math.log(n) * (1 - L), 1e-10)


@exactly
def test_mutual_information_of_a_linear_gaussian():
    n, sigma = 500, 0.5
    w = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.5, 0.8]])
    x = torch.randn(n, 3)
    vae = linear_vae(posterior=gaussians(w, sigma), d=3)
    parts = [o.BetaTCVAE(n, sampling=o.StratifiedSampling()).terms(vae, x) for _ in range(20)]
    covariance = w @ w.T + sigma**2 * torch.eye(2)
    information = 0.5 * (torch.logdet(covariance) - 2 * math.log(sigma**2))
    correlation = -0.5 * (torch.logdet(covariance) - covariance.diagonal().log().sum())
    received = torch.stack([p.mutual_information.mean() for p in parts]).mean()
    assert received.item() == pytest.approx(information.item(), abs=0.08)
    received = torch.stack([p.total_correlation.mean() for p in parts]).mean()
    assert received.item() == pytest.approx(correlation.item(), abs=0.05)


@exactly
@pytest.mark.parametrize("apart", [0.0, 1e3])
def test_where_the_estimates_of_a_minibatch_end(apart):
    """Codes that do not overlap: no information beyond log 1/W_ii. Codes that coincide: a constant, 0 if unbiased."""
    n, size = 1000, 50
    vae = linear_vae(posterior=Fixed(lambda x: dist.Normal(apart * x[:, :L], 0.01 * torch.ones(L)).to_event(1)))
    for sampling, low, high in (
        (o.StratifiedSampling(), 0.0, math.log(n)),
        (o.WeightedSampling(), math.log(n), math.log(n * size)),
    ):
        parts = o.BetaTCVAE(n, sampling=sampling).terms(vae, torch.randn(size, D))
        bound = torch.full((size,), high if apart else low)
        close(parts.mutual_information, bound, 1e-9)
        close(parts.total_correlation, (L - 1) * bound, 1e-9)


@exactly
def test_estimators_over_all_batches():
    """Stratified: the mean over all batches with a row in it is the aggregate. Weighted: a sum of 1 / (N M)."""
    n, size, density = 6, 3, torch.rand(6)
    estimates = []
    for others in itertools.combinations(range(1, n), size - 1):
        share = o.StratifiedSampling().log_weights(torch.ones(size), n).exp()
        estimates.append((share[0] * density[[0, *others]]).sum())
    close(torch.stack(estimates).mean(), density.mean(), 1e-12)
    close(o.WeightedSampling().log_weights(torch.ones(size), n).exp(), torch.full((size, size), 1 / (n * size)), 1e-12)
    close(o.StratifiedSampling().log_weights(torch.ones(n), n).exp(), torch.full((n, n), 1 / n), 1e-12)
    weights = torch.tensor([2.0, 1.0, 0.0])
    for sampling in (o.StratifiedSampling(), o.WeightedSampling()):
        share = sampling.log_weights(weights, 3).exp()
        close(share[:, 2], torch.zeros(3), 1e-12)
        close(share.sum(1), torch.full((3,), 1.0 if isinstance(sampling, o.StratifiedSampling) else 1 / 3), 1e-12)


@exactly
@pytest.mark.parametrize(("kind", "extra"), [(o.DIPVAE, 0.0), (o.DIPVAEII, 0.36)])
def test_covariance_of_latents(kind, extra):
    x = torch.randn(50, 2) @ torch.tensor([[1.0, 0.4], [0.0, 2.0]])
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T
    vae = linear_vae(posterior=gaussians(torch.eye(2), 0.6), d=2)
    base = value(o.ELBO(estimator=analytic), vae, x)
    covariance = torch.cov(x.T, correction=0) + extra * torch.eye(2)
    by_hand = 3 * 2 * covariance[0, 1] ** 2 + 5 * ((covariance.diagonal() - 1) ** 2).sum()
    close(value(kind(3.0, 5.0), vae, x), base + by_hand, 1e-9)
    smaller = white * math.sqrt(1 - extra)
    close(value(kind(3.0, 5.0), vae, smaller), value(o.ELBO(estimator=analytic), vae, smaller), 1e-9)


@exactly
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_discrepancy_of_gaussians(shift):
    """Against the closed form; unbiased, so 0 in the mean where the two are one."""
    d, g, s = 3, 1.3, 1.0 if shift == 0 else 0.6
    loc = torch.full((d,), shift)

    def kernel(variances, distance):
        total = g**2 + variances
        return (g**2 / total) ** (d / 2) * math.exp(-distance / (2 * total))

    exact = kernel(2 * s**2, 0.0) + kernel(2.0, 0.0) - 2 * kernel(1 + s**2, d * shift**2)
    draws = torch.stack(
        [o.MMD(o.RBF(g)).discrepancy(loc + s * torch.randn(40, d), torch.randn(40, d)) for _ in range(400)]
    )
    assert abs(draws.mean() - exact) < Z * draws.std() / math.sqrt(400)
    assert shift == 0 or draws.mean() > 10 * draws.std() / math.sqrt(400)


@exactly
def test_discrepancy_by_hand():
    z, p = torch.randn(4, 3), torch.randn(4, 3)
    kernel = o.IMQ(scale=0.7, factors=(0.5, 2.0))

    def k(a, b):
        c = 2 * 3 * 0.7**2
        return sum(s * c / (s * c + ((a - b) ** 2).sum()) for s in (0.5, 2.0))

    pairs = [
        k(z[i], z[j]) + k(p[i], p[j]) - k(z[i], p[j]) - k(z[j], p[i]) for i in range(4) for j in range(4) if i != j
    ]
    close(o.MMD(kernel).discrepancy(z, p), sum(pairs) / 12, 1e-12)
    weights = torch.tensor([3.0, 0.0, 1.0, 1.0])
    close(o.MMD(kernel).discrepancy(z, p, torch.tensor([1.0, 1, 1, 0])), o.MMD(kernel).discrepancy(z[:3], p[:3]), 1e-12)
    close(o.MMD(kernel).discrepancy(z, p, weights), o.MMD(kernel).discrepancy(z, p, 2 * weights), 1e-12)
    close(o.MMD()(linear_vae(), torch.randn(1, D)), 0.0, 0)  # one row says nothing about a distribution


@exactly
def test_discrepancy_is_with_the_prior_given_the_context():
    """A prior p(z|c) that the guide copies has discrepancy 0; another one has not. Its parameters get a gradient."""
    prior = pv.Normal(L, context=1, net=nn.Linear)
    vae = pv.VAE(prior, pv.Normal(D, context=[(L,), (1,)]), Fixed(lambda x, c: prior(c)))
    c, x = 3 * torch.randn(150, 1), torch.randn(150, D)
    draws = torch.stack([o.MMD()(vae, x, c) for _ in range(40)])
    assert abs(draws.mean()) < Z * draws.std() / math.sqrt(40)
    vae.posterior = Fixed(lambda x, c: dist.Normal(2 * torch.ones(len(x), L), 1.0).to_event(1))
    loss = o.MMD()(vae, x, c)
    assert loss > 0.5
    assert flat(gradients(loss, list(prior.parameters()))).abs().max() > 1e-3
    with pytest.raises(pv.ConfigError, match="no latent 'y'"):
        o.MMD(site="y")(vae, x, c)


# --- critics ---


def adam(lr):
    return functools.partial(torch.optim.Adam, lr=lr)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_critic_learns_the_density_ratio(rho):
    """Total correlation of two Gaussians: -1/2 log(1 - rho^2)."""
    objective = o.FactorVAE(2, net=functools.partial(pv.MLP, hidden=(32,)))
    optimizer = torch.optim.Adam(objective.critic.parameters(), lr=1e-2)
    mix = torch.tensor([[1.0, rho], [0.0, math.sqrt(1 - rho**2)]])
    for _ in range(300):
        z = torch.randn(512, 2) @ mix
        optimizer.zero_grad()
        objective.critic_loss(z, permuted(z), None, None).backward()
        optimizer.step()
    with torch.no_grad():
        received = objective.log_odds(torch.randn(20_000, 2) @ mix).mean().item()
    assert received == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.1)


def test_permuted_rows_keep_their_margins_and_nothing_else():
    z = torch.randn(500, 1) + 0.1 * torch.randn(500, 3)
    shuffled = permuted(z)
    assert torch.equal(shuffled.sort(0).values, z.sort(0).values)
    assert torch.corrcoef(z.T)[0, 1] > 0.9
    assert torch.corrcoef(shuffled.T)[0, 1].abs() < 0.25
    torch.manual_seed(3)
    expected = permuted(z)
    torch.manual_seed(3)
    assert torch.equal(permuted(z, torch.ones(500)), expected)
    drawn = permuted(z, torch.cat([torch.zeros(400), torch.full((99,), 1.0), torch.tensor([3.0])]))
    assert torch.isin(drawn, z[400:]).all()
    assert (drawn == z[499]).sum() >= 3 * 3 * 500 / 102 - 9


def test_an_adversary_draws_the_aggregate_to_the_prior():
    torch.manual_seed(1)
    x = torch.randn(512, 2)
    vae = pv.VAE(
        pv.StandardNormal(1),
        pv.Normal(2, context=1, net=small, scale=1.0),
        pv.Normal(1, context=2, net=functools.partial(pv.MLP, hidden=(16,))),
    )
    with torch.no_grad():
        vae.posterior.network.layers[-1].bias[0] = 3.0

    def distance():
        z = seeded(vae.encode(x).sample)
        return abs(z.mean().item()) + abs(z.std().item() - 1)

    before = distance()
    objective = o.AdversarialAutoencoder(1, gamma=3.0, net=functools.partial(pv.MLP, hidden=(32,)))
    pv.fit(vae, x, objective=objective, epochs=100, batch_size=128, optimizer=adam(5e-3))
    assert before > 2
    assert distance() < 0.8


def test_fit_trains_the_critic_and_leaves_it_out_of_the_model(tmp_path):
    vae, x = smooth_vae(), rows(24)
    objective = o.FactorVAE(L, net=functools.partial(pv.MLP, hidden=(4,)))
    objective.critic.eval()
    before = copy.deepcopy(objective.critic.state_dict())
    pv.fit(vae, x, objective=objective + 1.0 * o.IWAE(2), epochs=1, batch_size=8, directory=tmp_path / "run")
    assert not any(torch.equal(before[n], p) for n, p in objective.critic.state_dict().items())
    assert not any(part.training for part in objective.critic.modules())
    assert set(pv.load(tmp_path / "run").model.state_dict()) == set(vae.state_dict())
    assert "critic" not in " ".join(vae.state_dict())
    with pytest.raises(pv.ConfigError, match="critic"):
        pv.fit(vae, x, objective=objective, optimizer=torch.optim.Adam(vae.parameters()), epochs=1)
    both = torch.optim.Adam([*vae.parameters(), *objective.critic.parameters()])
    pv.fit(vae, x, objective=objective, optimizer=both, epochs=1)
    vae.double()
    pv.fit(vae, x, objective=objective, epochs=1)  # the critic goes where the model is
    assert objective.critic.layers[0].weight.dtype == torch.float64


def test_a_critic_that_diverges_is_named():
    class Exploding(nn.Module):
        def __init__(self, ins, outs):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(ins))

        def forward(self, z):
            return 0 * z.sum(-1, keepdim=True) + torch.sqrt(0 * self.weight).sum()

    vae = smooth_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(pv.TrainingDiverged, match="gradient of critic"):
        pv.fit(vae, rows(8), objective=o.FactorVAE(L, net=Exploding), epochs=1)
    assert all(torch.equal(before[n], p) for n, p in vae.state_dict().items())


# --- sums ---


@exactly
def test_objectives_add_up_and_scale():
    vae, x = linear_vae(), torch.randn(6, D)
    parts = value(o.ELBO(beta=2.0), vae, x), value(o.IWAE(1), vae, x)  # the same noise, one after the other
    torch.manual_seed(7)
    first, second = o.ELBO(beta=2.0)(vae, x), o.IWAE(1)(vae, x)
    close(value(o.ELBO(beta=2.0) + 3 * o.IWAE(1), vae, x), (first + 3 * second).detach(), 1e-12)
    close(value(0.5 * o.ELBO(beta=2.0), vae, x), 0.5 * parts[0], 1e-12)
    close(value(o.ELBO(beta=2.0) * 0.5, vae, x), 0.5 * parts[0], 1e-12)
    close(value(2 * (0.25 * o.IWAE(1)), vae, x), 0.5 * parts[1], 1e-12)
    total = 1.0 * o.ELBO(beta=2.0) + (lambda model, x: x.mean()) + 2.0 * o.STL()
    assert [type(t) for t in total.terms] == [o.ELBO, type(lambda: 0), o.STL]
    assert total.weights == [1.0, 1.0, 2.0]
    assert total(vae, x).isfinite()


@exactly
def test_schedules_reach_terms_and_weights():
    vae, x = linear_vae(), torch.randn(6, D)
    total = o.ELBO(beta=pv.Warmup(over=1.0)) + pv.Warmup(over=1.0, end=4.0) * o.IWAE(1)
    torch.manual_seed(7)
    expected = o.ELBO(beta=0.5)(vae, x) + 2.0 * o.IWAE(1)(vae, x)
    close(value(total.at(0.5), vae, x), expected.detach(), 1e-12)
    close(value(total.at(torch.tensor(0.5)), vae, x), expected.detach(), 1e-12)
    close(value(total, vae, x), value(total.at(1.0), vae, x), 0)
    assert callable(total.weights[1])
    assert (2.0 * (pv.Warmup() * o.MMD())).at(0.0).terms[0].weights == [0.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: o.Sum([]), "terms"),
        (lambda: o.Sum([1.0]), "terms"),
        (lambda: o.Sum([o.ELBO()], [1.0, 2.0]), "weights"),
        (lambda: o.Sum([o.ELBO()], ["much"]), "weights"),
        (lambda: o.IWAE(0), "k"),
        (lambda: o.Renyi(float("nan")), "alpha"),
        (lambda: o.MIWAE(2, 0), "m"),
        (lambda: o.CIWAE(2, beta=2.0), "beta"),
        (lambda: o.GSNN(0), "k"),
        (lambda: o.Hybrid(1.5), "alpha"),
        (lambda: o.FreeBits(-1.0), "nats"),
        (lambda: o.FreeBits(group=0), "group"),
        (lambda: o.Capacity(gamma=-1.0), "gamma"),
        (lambda: o.BetaTCVAE(1), "rows"),
        (lambda: o.BetaTCVAE(10, beta=-1.0), "beta"),
        (lambda: o.DIPVAE(off_diagonal=-1.0), "off_diagonal"),
        (lambda: o.RBF(0.0), "scale"),
        (lambda: o.IMQ(factors=()), "factors"),
        (lambda: o.FactorVAE(2, gamma=-1.0, net=small), "gamma"),
    ],
)
def test_arguments_out_of_range(make, words):
    with pytest.raises(pv.ConfigError, match=f"^{words}"):
        make()


@pytest.mark.parametrize("wrong", [lambda: o.ELBO() + 1, lambda: o.ELBO() * o.ELBO(), lambda: "a" * o.ELBO()])
def test_what_is_no_sum(wrong):
    with pytest.raises(TypeError):
        wrong()


NAMES = {n: getattr(o, n) for n in o.__all__} | {
    "MLP": pv.MLP,
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
}


@every()
def test_described_and_built_again(make):
    objective = make()
    table = describe(objective)
    again = build(table, NAMES, "objective")
    assert describe(again) == table
    vae, x = smooth_vae(), rows(8)
    if not objective.parameters(vae) or "critic" not in objective.parameters(vae):  # whose weights are drawn
        assert value(again, vae, x) == value(objective, vae, x)


def test_losses_of_critics_stay_apart_in_a_sum():
    vae, x = smooth_vae(), rows(8)
    a, b = o.FactorVAE(L, gamma=2.0, net=small), o.AdversarialAutoencoder(L, net=small)
    total = 0.5 * a + o.PIWAE(2, 3) + 3.0 * b
    losses = seeded(total, vae, x)
    torch.manual_seed(7)
    parts = [a(vae, x), o.PIWAE(2, 3)(vae, x), b(vae, x)]
    assert list(losses) == ["model", "critic", "guide", "critic 2"]
    close(losses["model"], 0.5 * parts[0]["model"] + parts[1]["model"] + 3 * parts[2]["model"], 1e-4)
    close(losses["guide"], 0.5 * parts[0]["model"] + parts[1]["guide"] + 3 * parts[2]["model"], 1e-4)
    assert losses["critic"] == parts[0]["critic"]
    assert losses["critic 2"] == parts[2]["critic"]
    claims = total.parameters(vae)
    assert {id(p) for p in claims["critic 2"]} == {id(p) for p in b.critic.parameters()}
    assert {id(p) for p in claims["guide"]} == {id(p) for p in vae.posterior.parameters()}


# --- weights of rows ---


@exactly
@every()
def test_weights_of_one_change_nothing(make):
    vae, x = smooth_vae(), rows(8)
    objective = seeded(make)
    for other in (torch.ones(8), torch.full((8,), 3.0)):
        plain, weighted = (seeded(objective, vae, x, **k) for k in ({}, {"weights": other}))
        assert value(objective, vae, x, weights=other).item() == pytest.approx(
            other[0].item() * o.reported(plain).item(), rel=1e-12
        )
        if isinstance(plain, dict) and other[0] == 1:
            for name, loss in plain.items():
                assert weighted[name].item() == pytest.approx(loss.item(), rel=1e-12), name


@exactly
@every(*NOISY, "tc, stratified")  # a row and its double are two strata
def test_weight_is_how_often_a_row_is_there(make):
    """Without noise: losses times rows, and their gradients, of weighted rows and of rows repeated or left out."""
    vae, x = linear_vae(posterior=Point()), torch.randn(4, D)
    objective = seeded(make)
    parameters = list(vae.parameters())
    for counts in ([2, 1, 1, 1], [1, 1, 0, 1], [3, 0, 2, 1]):
        repeats = torch.tensor(counts)
        weighted = 4 * o.reported(seeded(objective, vae, x, weights=repeats.to(x.dtype)))
        repeated = sum(counts) * o.reported(seeded(objective, vae, x.repeat_interleave(repeats, 0)))
        close(weighted, repeated, 1e-8 * max(1.0, abs(repeated.item())))
        if not isinstance(objective, o.BetaTCVAE):  # whose logarithms of a point's density are infinite
            a, b = (flat(gradients(loss, parameters)) for loss in (weighted, repeated))
            close(a, b, 1e-8 * max(1.0, b.abs().max().item()))


@exactly
@every()
def test_all_weights_zero_are_no_error(make):
    vae, x = smooth_vae(), rows(5)
    objective = seeded(make)
    losses = seeded(objective, vae, x, weights=torch.zeros(5))
    assert o.reported(losses).item() == 0
    assert flat(gradients(o.reported(losses), list(vae.parameters()))).isfinite().all()


class Labels(nn.Module):
    """A label that the guide sums over, or draws; and a plate-free constant."""

    def __init__(self, enumerate_=None):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(D, 3), nn.Embedding(3, D)
        self.infer = {} if enumerate_ is None else {"enumerate": enumerate_}

    def model(self, x):
        with pyro.plate("batch", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3), infer=self.infer)
            pyro.sample("x", dist.Normal(self.decoder(y), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.encoder(x)), infer=self.infer)


@exactly
def test_weights_under_enumeration():
    program, x = Labels("parallel"), torch.randn(3, D)
    objective, weights = o.ELBO(estimator=TraceEnum_ELBO(max_plate_nesting=1)), torch.tensor([2.0, 0.0, 0.5])
    each = torch.stack([objective(program, row[None]) for row in x])
    loss = objective(program, x, weights=weights)
    close(loss, (weights * each).mean(), 1e-12)
    expected = gradients((weights * each).mean(), list(program.parameters()))
    close(flat(gradients(loss, list(program.parameters()))), flat(expected), 1e-12)


@exactly
def test_weights_under_score_functions():
    """In the mean over draws the gradient is that of the weighted sum over labels."""
    program, exact = Labels(), Labels("parallel")
    exact.load_state_dict(program.state_dict())
    x, weights = torch.randn(2, D), torch.tensor([3.0, 0.5])
    bias = [program.encoder.bias]
    draws = torch.stack([gradients(o.ELBO()(program, x, weights=weights), bias)[0] for _ in range(1500)])
    summed = o.ELBO(estimator=TraceEnum_ELBO(max_plate_nesting=1))(exact, x, weights=weights)
    expected = gradients(summed, [exact.encoder.bias])[0]
    z = (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))
    assert z.abs().max() < Z


@pytest.mark.parametrize("estimator", [Trace_ELBO(max_plate_nesting=1, num_particles=2), analytic])
def test_zero_weight_is_absence_in_pyros_estimators(estimator):
    vae, x = linear_vae(posterior=Point()), torch.randn(3, D)
    if estimator is analytic:
        vae = linear_vae(posterior=gaussians(torch.eye(L, D), 1e-9))
    weighted = value(o.ELBO(estimator=estimator), vae, x, weights=torch.tensor([1.0, 1.0, 0.0]))
    close(weighted, value(o.ELBO(estimator=estimator), vae, x[:2]) * 2 / 3, 1e-4)


def test_weights_of_another_shape():
    vae, x = smooth_vae(), rows(4)
    for objective in (o.ELBO(), o.IWAE(2), o.FreeBits(), o.DIPVAE()):
        with pytest.raises(pv.ConfigError, match="weights: expected one for each of 4 rows"):
            objective(vae, x, weights=torch.ones(4, 1))


@exactly
def test_fit_with_counts_is_fit_with_repeated_rows():
    counts = torch.tensor([2, 1, 0, 3, 1])
    x, results = torch.randn(5, D), []
    torch.manual_seed(2)
    start = linear_vae(posterior=Point())
    for data, weights, lr in ((x, counts.numpy(), 0.05), (x.repeat_interleave(counts, 0), None, 0.05 * 7 / 5)):
        vae = copy.deepcopy(start)
        sgd = functools.partial(torch.optim.SGD, lr=lr)
        history = pv.fit(vae, data, weights=weights, optimizer=sgd, epochs=5, batch_size=100)
        results.append((vae, [loss * len(data) for loss in history["loss"]]))
    (a, losses), (b, expected) = results
    assert losses == pytest.approx(expected, rel=1e-9)
    close(flat(a.parameters()), flat(b.parameters()), 1e-9)


def test_fit_shuffles_weights_with_their_rows():
    seen = {}

    def objective(model, x, y, weights=None):
        if weights is not None:
            seen.update(zip(x[:, 0].tolist(), weights.tolist(), strict=True))
            assert torch.equal(y, 2 * x)
        return o.ELBO()(model, x) if weights is None else o.ELBO()(model, x, weights=weights)

    x = torch.arange(20.0).repeat(D, 1).T.contiguous()
    pv.fit(linear_vae(), x, 2 * x, objective=objective, weights=x[:, 0] / 4, epochs=2, batch_size=3, compile="eager")
    assert seen == {float(i): i / 4 for i in range(20)}


def test_fit_with_weights_of_one_is_fit_without():
    x, start, states = rows(20), smooth_vae(), []
    for weights in (None, [1] * 20):
        vae = copy.deepcopy(start)
        pv.fit(vae, x, weights=weights, epochs=2, batch_size=8)
        states.append(vae.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (torch.ones(3), "one for each of 8 rows"),
        (torch.ones(8, 1), "one for each of 8 rows"),
        ([1.0] * 7 + [-0.5], "from 0, received -0.5 for row 7"),
        ([1.0, math.nan] * 4, "received nan for row 1"),
        ([1.0, inf] * 4, "received inf"),
        (torch.zeros(8), "positive"),
        ("heavily", "numbers"),
    ],
)
def test_weights_that_fit_refuses(weights, words):
    with pytest.raises(pv.ConfigError, match=f"weights: .*{words}"):
        pv.fit(smooth_vae(), rows(8), weights=weights, epochs=1)


def test_weights_need_an_objective_that_takes_them_and_rows_that_stay_in_place():
    def plain(model, x):
        return o.ELBO()(model, x)

    for objective in (plain, o.ELBO() + plain):
        with pytest.raises(pv.ConfigError, match="objective plain has no argument 'weights'"):
            pv.fit(smooth_vae(), rows(8), objective=objective, weights=torch.ones(8), epochs=1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows(8)), batch_size=4)
    with pytest.raises(pv.ConfigError, match=r"weights: .*loader"):
        pv.fit(smooth_vae(), loader, weights=torch.ones(8), epochs=1)


# --- everything ---


@exactly
@every("dreg", "stl", "stl, several")  # whose gradient is not the gradient of their value
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_against_finite_differences(make, weighted):
    vae, x = smooth_vae(d=3), rows(5, 3)
    objective, weights = seeded(make), torch.rand(5) if weighted else None
    losses = seeded(objective, vae, x, weights=weights)
    for name, parameters in owned(objective, vae).items():
        gradient = flat(gradients(losses[name] if isinstance(losses, dict) else losses, parameters))
        start, h = nn.utils.parameters_to_vector(parameters).detach(), 1e-5
        for _ in range(3):
            direction, values = torch.randn_like(start), []
            for sign in (1, -1):
                nn.utils.vector_to_parameters(start + sign * h * direction, parameters)
                moved = seeded(objective, vae, x, weights=weights)
                values.append((moved[name] if isinstance(moved, dict) else moved).detach())
            nn.utils.vector_to_parameters(start, parameters)
            difference = (values[0] - values[1]) / (2 * h)
            close((gradient * direction).sum(), difference, 1e-6 * max(1.0, difference.abs().item()))


@every()
def test_captured_step_is_the_eager_one(make):
    """Bit for bit, with weights, schedules, critics and a shorter last batch."""
    x, weights, results = rows(15), torch.rand(15), []
    for level in ("eager", "replay"):
        vae, objective = seeded(smooth_vae), seeded(make)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a program that cannot be captured says so
            history = pv.fit(vae, x, objective=objective, weights=weights, epochs=3, batch_size=6, compile=level)
        critics = [p for ps in objective.parameters(vae).values() for p in ps]
        results.append((history["loss"], flat([*vae.parameters(), *critics])))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@every()
def test_scored_without_gradients_in_evaluation(make):
    plain = [OBJECTIVES[name] for name in ("free bits", "gsnn", "hybrid")]  # not with a mixture as the prior
    vae, x = smooth_vae() if make in plain else smooth_vae("vamp"), rows(6)
    objective = make()
    with torch.no_grad(), pyro.validation_enabled(True):
        loss = o.reported(objective(vae.eval(), x))
    assert loss.shape == ()
    assert loss.isfinite()
