"""Families of numbers above 0, from 0 to 1, of proportions, and joint Gaussians: densities, draws, KL, gradients."""

import functools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch.distributions import biject_to, kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae as pv
from pyrovae.data.gate import check_cells
from pyrovae.distributions import gamma, kumaraswamy, simplex
from pyrovae.distributions.supports import open_unit_interval
from pyrovae.errors import ConfigError, DataError
from pyrovae.families.interval import Beta, Kumaraswamy
from pyrovae.families.joint import FullNormal, LowRankNormal
from pyrovae.families.point import Delta
from pyrovae.families.positive import Gamma, LogNormal
from pyrovae.families.simplex import Dirichlet, LogisticNormal
from pyrovae.families.sphere import PowerSpherical, VonMises, VonMisesFisher

RARE = 2e-5  # a goodness-of-fit test may fail this often
EXTREMES = [-50.0, -3.0, 0.0, 3.0, 50.0]
HEADS = {
    "Gamma": Gamma,
    "LogNormal": LogNormal,
    "Beta": Beta,
    "Kumaraswamy": Kumaraswamy,
    "Dirichlet": Dirichlet,
    "LogisticNormal": LogisticNormal,
    "FullNormal": FullNormal,
    "LowRankNormal": functools.partial(LowRankNormal, rank=2),
    "Delta": Delta,
    "VonMisesFisher": VonMisesFisher,
    "PowerSpherical": PowerSpherical,
    "VonMises": VonMises,
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def exact(d):
    """SciPy's distribution of the same parameters."""
    d = d.base_dist if isinstance(d, dist.Independent) else d
    if isinstance(d, dist.LogNormal):
        return stats.lognorm(s=d.scale.double().item(), scale=d.loc.double().exp().item())
    one, zero = (getattr(d, n, torch.zeros(())).double().item() for n in ("concentration1", "concentration0"))
    if isinstance(d, dist.Gamma):
        return stats.gamma(d.concentration.double().item(), scale=1 / d.rate.double().item())
    return stats.beta(one, zero) if isinstance(d, dist.Beta) else _Kumaraswamy(one, zero)


class _Kumaraswamy:
    def __init__(self, a, b):
        self.a, self.b = a, b

    def cdf(self, x):
        return -np.expm1(self.b * np.log1p(-np.exp(self.a * np.log(x))))

    def logpdf(self, x):
        return np.log(self.a * self.b) + (self.a - 1) * np.log(x) + (self.b - 1) * np.log(-np.expm1(self.a * np.log(x)))

    def ppf(self, q):
        return np.exp(np.log(-np.expm1(np.log1p(-np.asarray(q)) / self.b)) / self.a)


def panels(low, high, count=400, order=10):
    u, w = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(low, high, count + 1)
    half = np.diff(edges) / 2
    nodes = ((edges[:-1] + half)[:, None] + half[:, None] * u).ravel()
    return nodes, (half[:, None] * w).ravel()


# --- densities, in the working type ---


@pytest.mark.parametrize("head", [Gamma, LogNormal, Beta, Kumaraswamy])
@pytest.mark.parametrize("first", EXTREMES)
@pytest.mark.parametrize("second", EXTREMES)
def test_density_integrates_to_one_in_float32(head, first, second):
    """Between quantiles that float32 can hold; near 1, where it cannot hold the nodes, at their roundings."""
    d = head(1, context=2).at(torch.tensor([first, second]))
    truth = exact(d)
    low, high = np.maximum(truth.ppf(1e-9), 1e-30), truth.ppf(1 - 1e-9)
    if head in (Beta, Kumaraswamy):
        u, w = panels(special.logit(low), special.logit(min(high, 1 - 1e-6)))
        x = special.expit(u).astype(np.float32)
        slope = special.expit(u) * special.expit(-u)
        mass = (np.exp(truth.logpdf(x.astype(np.float64))) * slope * w).sum()
    else:
        u, w = panels(np.log(low), np.log(high))
        x, slope, mass = np.exp(u).astype(np.float32), np.exp(u), truth.cdf(high) - truth.cdf(low)
    p = d.log_prob(torch.from_numpy(x)[:, None]).double().exp().numpy()
    assert (p * slope * w).sum() == pytest.approx(mass, abs=1e-5)


@pytest.mark.parametrize("head", [Dirichlet, LogisticNormal])
@pytest.mark.parametrize("first", EXTREMES)
@pytest.mark.parametrize("second", EXTREMES)
def test_density_of_two_proportions_integrates_to_one_in_float32(head, first, second):
    d = head(2, context=2).at(torch.tensor([first, second]))
    if head is Dirichlet:
        truth = stats.beta(*d.concentration.double().tolist())
        low, high = special.logit(max(truth.ppf(1e-9), 1e-30)), -special.logit(max(1 - truth.ppf(1 - 1e-9), 1e-12))
        mass = truth.cdf(special.expit(high)) - truth.cdf(special.expit(low))
    else:
        loc, scale = d.loc.item(), d.scale.item()
        low, high, mass = loc - 7 * scale, loc + 7 * scale, 1.0
    u, w = panels(low, high)
    x = np.stack([special.expit(u), special.expit(-u)], -1)  # each proportion with its own digits
    p = d.log_prob(torch.tensor(x, dtype=torch.float32)).double().exp().numpy()
    assert (p * x.prod(-1) * w).sum() == pytest.approx(mass, abs=1e-5)


def test_density_of_three_proportions_integrates_to_one(float64):
    u = torch.linspace(-30, 30, 601)
    y = torch.cartesian_prod(u, u)
    log_x = torch.cat([y, torch.zeros(len(y), 1)], -1).log_softmax(-1)
    for d in (
        gamma.Dirichlet(torch.tensor([0.5, 2.0, 11.0])),
        simplex.LogisticNormal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])),
    ):
        log_p = d.log_prob(log_x.exp()) + log_x.sum(-1)
        assert (log_p.exp().sum() * 0.1**2).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("a", [0.1, 1.0, 7.9, 8.1, 100.0, 2e4])
@pytest.mark.parametrize("b", [0.1, 3.0, 2e4])
def test_log_densities_against_scipy(a, b):
    generator = np.random.default_rng(0)
    q = generator.uniform(0.001, 0.999, 500)
    for ours, theirs, support in (
        (gamma.Gamma, stats.gamma(a, scale=1 / b), np.inf),
        (gamma.Beta, stats.beta(a, b), 0.9999),
    ):
        x = np.clip(theirs.ppf(q), 1e-30, support).astype(np.float32)
        error = ours(torch.tensor(a), torch.tensor(b)).log_prob(torch.from_numpy(x)).double().numpy() - theirs.logpdf(
            x.astype(np.float64)
        )
        assert abs(error.mean()) < 1e-5
        assert np.abs(error).max() < 3e-5 + 1e-6 * np.sqrt(max(a, b))
        exact_type = ours(*torch.tensor([a, b], dtype=torch.float64)).log_prob(torch.from_numpy(x).double())
        np.testing.assert_allclose(exact_type.numpy(), theirs.logpdf(x.astype(np.float64)), rtol=1e-9, atol=1e-9)


def test_torch_s_own_densities_are_off_in_float32():
    """What the classes of the same names are for."""
    a = torch.tensor(2e4)
    x = torch.tensor(np.random.default_rng(0).gamma(2e4, 1 / 2e4, 1000), dtype=torch.float32)
    truth = torch.from_numpy(stats.gamma(2e4, scale=1 / 2e4).logpdf(x.double()))
    assert (dist.Gamma(a, a).log_prob(x) - truth).mean().abs() > 1e-4
    assert (gamma.Gamma(a, a).log_prob(x) - truth).mean().abs() < 1e-5
    x = torch.tensor(np.random.default_rng(0).beta(2e4, 2e4, 1000), dtype=torch.float32)
    truth = torch.from_numpy(stats.beta(2e4, 2e4).logpdf(x.double()))
    assert (dist.Beta(a, a).log_prob(x) - truth).mean().abs() > 1e-3
    assert (gamma.Beta(a, a).log_prob(x) - truth).mean().abs() < 1e-5
    x = torch.full((3,), 1e-4)
    a, b = torch.tensor([2.0, 3.0, 1.0]), torch.tensor([1e4, 1e4, 2e4])
    truth = torch.tensor([_Kumaraswamy(i.item(), j.item()).logpdf(np.float64(x[0])) for i, j in zip(a, b, strict=True)])
    ours, theirs = kumaraswamy.Kumaraswamy(a, b), dist.Kumaraswamy(a, b)
    torch.testing.assert_close(ours.log_prob(x).double(), truth, atol=2e-6, rtol=1e-6)
    assert (theirs.log_prob(x) - truth).abs().max() > 1e-4
    assert ours.mean.double()[0].item() == pytest.approx(math.sqrt(math.pi / 4e4), rel=1e-4)
    assert theirs.mean[0].item() != pytest.approx(math.sqrt(math.pi / 4e4), rel=1e-3)


@every_head
@pytest.mark.parametrize("size", [1.0, 50.0, 1e4])
def test_extreme_outputs_stay_finite(make, size):
    """float32: own draws, their densities and every gradient; likewise without any signal."""
    head = make(4, context=2, net=torch.nn.Linear)
    signs = (torch.rand(200, head.network.out_features) < 0.5).float() * 2 - 1
    for raw in (size * signs, size * torch.randn_like(signs), torch.zeros_like(signs)):
        raw.requires_grad_()
        d = head.at(raw)
        x = d.rsample() if d.has_rsample else d.sample()
        assert d.support.check(x).all()
        assert d.mean.isfinite().all()
        log_p = d.log_prob(x)
        assert log_p.isfinite().all()
        total = log_p.sum() + (x.sum() if d.has_rsample else 0)
        assert torch.autograd.grad(total, raw)[0].isfinite().all()


# --- divergences ---


@pytest.mark.parametrize(
    ("family", "p", "q"),
    [
        (gamma.Gamma, (2.0, 3.0), (5.0, 0.5)),
        (gamma.Gamma, (40.0, 3.0), (30.0, 2.0)),
        (gamma.Beta, (2.0, 3.0), (1.0, 1.0)),
        (gamma.Beta, (20.0, 5.0), (3.0, 0.5)),
        (dist.LogNormal, (0.3, 0.5), (-1.0, 2.0)),
    ],
)
def test_divergences_against_quadrature(family, p, q, float64):
    p, q = (family(*map(torch.tensor, parameters)) for parameters in (p, q))
    unit = family is gamma.Beta
    u, w = panels(-40, 40, 1000)
    x = torch.from_numpy(special.expit(u) if unit else np.exp(u))
    slope = torch.from_numpy(special.expit(u) * special.expit(-u)) if unit else x
    inside = (x > 0) & (x < 1 - 1e-15) if unit else x > 0
    x = torch.where(inside, x, 0.5)
    log_p = p.log_prob(x)
    truth = torch.where(inside, log_p.exp() * (log_p - q.log_prob(x)) * slope, 0.0) @ torch.from_numpy(w)
    assert kl_divergence(p, q).item() == pytest.approx(truth.item(), abs=1e-8)


@pytest.mark.parametrize("size", [2, 3])
def test_divergences_of_proportions(size, float64):
    """Two proportions are a Beta, or a Normal; more by draws."""
    p, q = gamma.Dirichlet(torch.tensor([2.0, 3.0, 0.7][:size])), gamma.Dirichlet(torch.ones(size))
    if size == 2:
        beta = [gamma.Beta(*d.concentration) for d in (p, q)]
        torch.testing.assert_close(kl_divergence(p, q), kl_divergence(*beta))
    x = p.sample((20_000,))
    gap = p.log_prob(x) - q.log_prob(x)
    assert (gap.mean() - kl_divergence(p, q)).abs() < 5 * gap.std() / math.sqrt(20_000)
    p = simplex.LogisticNormal(torch.randn(size - 1), torch.rand(size - 1) + 0.2)
    q = simplex.LogisticNormal(torch.zeros(size - 1), torch.ones(size - 1))
    x = p.sample((20_000,))
    gap = p.log_prob(x) - q.log_prob(x)
    assert (gap.mean() - kl_divergence(p, q)).abs() < 5 * gap.std() / math.sqrt(20_000)


def test_divergences_keep_their_digits_in_float32():
    a, b = torch.tensor(2e4), torch.tensor(2.01e4)
    wide = [dist.Gamma(t.double(), t.double()) for t in (a, b)]
    ours = kl_divergence(gamma.Gamma(a, a), gamma.Gamma(b, b)).item()
    assert ours == pytest.approx(kl_divergence(*wide).item(), abs=1e-7)
    wide = [dist.Beta(t.double(), t.double()) for t in (a, b)]
    assert kl_divergence(gamma.Beta(a, a), gamma.Beta(b, b)).item() == pytest.approx(
        kl_divergence(*wide).item(), abs=1e-7
    )
    wide = [dist.Dirichlet(t.double().expand(3)) for t in (a, b)]
    ours = kl_divergence(gamma.Dirichlet(a.expand(3)), gamma.Dirichlet(b.expand(3))).item()
    assert ours == pytest.approx(kl_divergence(*wide).item(), abs=1e-7)


# --- draws ---


@pytest.mark.parametrize("family", [gamma.Gamma, gamma.Beta, kumaraswamy.Kumaraswamy, dist.LogNormal])
@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (1.0, 3.0), (20.0, 0.7), (1e4, 1e4), (0.5, 1e4)])
def test_draws_follow_the_density(family, first, second):
    if family is dist.LogNormal:
        first, second = math.log(first), min(second, 5.0)
    d = family(torch.tensor(first), torch.tensor(second))
    x = d.sample((10_000,)).double().numpy()
    x = x[x < 1 - 2**-24] if isinstance(exact(d), _Kumaraswamy) or family is gamma.Beta else x
    assert len(x) > 9900
    assert stats.kstest(x, exact(d).cdf).pvalue > RARE
    mean = d.mean.item()
    if family is not dist.LogNormal:
        assert abs(x.mean() - mean) < 5 * x.std() / math.sqrt(len(x)) + 1e-6 * mean


@pytest.mark.parametrize("alpha", [(0.3, 0.1, 0.6), (1.0, 1.0, 1.0), (2e4, 30.0, 1.0)])
def test_draws_of_a_dirichlet(alpha):
    d = gamma.Dirichlet(torch.tensor(alpha))
    x = d.sample((10_000,)).double().numpy()
    for k, a in enumerate(alpha):
        inner = x[:, k] < 1 - 2**-23
        assert inner.mean() > 0.9
        cdf = stats.beta(a, sum(alpha) - a).cdf
        inside = stats.kstest(x[:, k][inner], lambda v, cdf=cdf: cdf(v) / cdf(1 - 2**-23))
        assert inside.pvalue > RARE


def test_draws_of_a_logistic_normal():
    d = simplex.LogisticNormal(torch.tensor([1.0, -3.0]), torch.tensor([0.01, 3.0]))
    x = d.sample((10_000,))
    y = (x[:, :2] / x[:, 2:]).log().double().numpy()
    assert stats.kstest(y[:, 0], stats.norm(1.0, 0.01).cdf).pvalue > RARE
    assert stats.kstest(y[:, 1], stats.norm(-3.0, 3.0).cdf).pvalue > RARE
    assert abs(np.corrcoef(y.T)[0, 1]) < 0.05


@pytest.mark.parametrize("size", [2, 3, 10, 50])
@pytest.mark.parametrize("scale", [0.001, 1.0, 5.0])
def test_mean_of_a_logistic_normal(size, scale):
    d = simplex.LogisticNormal(torch.randn(size - 1), torch.full((size - 1,), scale))
    assert d.support.check(d.mean)
    tolerance = 0.004 if scale <= 1 else 0.02
    assert (d.mean - d.sample((50_000,)).mean(0)).abs().max() < tolerance + 5 * 0.5 / math.sqrt(50_000)
    assert d.expand((2, 3)).mean.shape == (2, 3, size)


# --- gradients through draws ---


def check_gradient(found, truth, slack=0.02):
    """The mean of gradients, one for each draw, is the truth, and known to a few percent."""
    error = found.double().std() / math.sqrt(len(found))
    assert abs(found.double().mean().item() - truth) < 5 * error + 2e-3 * abs(truth)
    assert error < slack * abs(truth)


N = 20_000


@pytest.mark.parametrize("a", [0.1, 0.5, 1.0, 10.0, 1e3, 1e4])
def test_gradient_through_a_gamma(a):
    """``d E log x / da`` is the trigamma function, ``d E log x / d rate = -1 / rate``."""
    alpha, rate = torch.full((N,), a, requires_grad=True), torch.full((N,), 3.0, requires_grad=True)
    slopes = torch.autograd.grad(gamma.Gamma(alpha, rate).rsample().log().sum(), [alpha, rate])
    check_gradient(slopes[0], special.polygamma(1, a), 0.05)
    check_gradient(slopes[1], -1 / 3)


@pytest.mark.parametrize("a", [0.25, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("b", [0.25, 3.0, 1e4])
def test_gradient_through_a_beta(a, b):
    """``E log x = digamma(a) - digamma(a + b)``."""
    alpha, beta = torch.full((N,), a, requires_grad=True), torch.full((N,), b, requires_grad=True)
    slopes = torch.autograd.grad(gamma.Beta(alpha, beta).rsample().log().sum(), [alpha, beta])
    check_gradient(slopes[0], special.polygamma(1, a) - special.polygamma(1, a + b), 0.05)
    check_gradient(slopes[1], -special.polygamma(1, a + b), 0.05)


@pytest.mark.parametrize("a", [0.1, 1.0, 100.0, 1e4])
def test_gradient_through_a_dirichlet(a):
    alpha = torch.tensor([a, 0.5, 3.0]).expand(N, 3).clone().requires_grad_()
    (slopes,) = torch.autograd.grad(gamma.Dirichlet(alpha).rsample()[:, 0].log().sum(), alpha)
    total = special.polygamma(1, a + 3.5)
    check_gradient(slopes[:, 0], special.polygamma(1, a) - total, 0.05)
    check_gradient(slopes[:, 1], -total, 0.05)


def test_torch_s_own_gradient_is_off():
    """What the draws by gammas are for."""
    alpha = torch.tensor([1e4, 0.25]).expand(2 * N, 2).clone().requires_grad_()
    (slopes,) = torch.autograd.grad(dist.Dirichlet(alpha).rsample()[:, 0].log().sum(), alpha)
    error = slopes[:, 1].double().std() / math.sqrt(2 * N)
    truth = -special.polygamma(1, 1e4 + 0.25)
    assert abs(slopes[:, 1].double().mean().item() - truth) > 5 * error
    assert abs(slopes[:, 1].double().mean().item() / truth - 1) > 0.02


@pytest.mark.parametrize("a", [0.25, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("b", [0.25, 1.0, 1e4])
def test_gradient_through_a_kumaraswamy(a, b):
    """``a E log x = -(digamma(b + 1) + euler)``, as ``x^a`` is a Beta(1, b)."""
    one, zero = torch.full((N,), a, requires_grad=True), torch.full((N,), b, requires_grad=True)
    slopes = torch.autograd.grad(kumaraswamy.Kumaraswamy(one, zero).rsample().log().sum(), [one, zero])
    check_gradient(slopes[0], (special.digamma(b + 1) + np.euler_gamma) / a**2, 0.05)
    check_gradient(slopes[1], -special.polygamma(1, b + 1) / a, 0.05)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (2.0, 0.7), (-1.0, 4.0)])
def test_gradient_through_a_logistic_normal(loc, scale):
    """Against finite differences of Gauss-Hermite quadrature of ``E x_1^2``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)

    def mean(loc, scale):
        return (weights * special.expit(loc + scale * nodes) ** 2).sum() / math.sqrt(2 * math.pi)

    m, s = (torch.full((N, 1), v, requires_grad=True) for v in (loc, scale))
    slopes = torch.autograd.grad(simplex.LogisticNormal(m, s).rsample()[:, 0].square().sum(), [m, s])
    step = 1e-4
    check_gradient(slopes[0][:, 0], (mean(loc + step, scale) - mean(loc - step, scale)) / (2 * step), 0.05)
    check_gradient(slopes[1][:, 0], (mean(loc, scale + step) - mean(loc, scale - step)) / (2 * step), 0.1)


# --- joint Gaussians ---


@pytest.mark.parametrize("shape", [1, 3, (2, 3), (1, 2, 2)])
def test_full_normal_is_the_dense_one(shape, float64):
    head = FullNormal(shape, context=2)
    size = math.prod((shape,) if isinstance(shape, int) else shape)
    raw = torch.randn(5, head.network.out_shape)
    d = head.at(raw)
    assert d.event_shape == ((shape,) if isinstance(shape, int) else shape)
    loc, scale, lower = raw.split([size, size, size * (size - 1) // 2], -1)
    for row in range(5):
        factor = torch.eye(size)
        factor[tuple(torch.tril_indices(size, size, -1))] = 10 * torch.tanh(lower[row] / 10)
        factor = torch.exp(10 * torch.tanh(scale[row] / 10))[:, None] * factor
        x = torch.randn(size)
        truth = stats.multivariate_normal(loc[row], factor @ factor.T).logpdf(x)
        found = head.at(raw[row]).log_prob(x.reshape(d.event_shape))
        assert found.item() == pytest.approx(float(truth), rel=1e-8)
    assert d.mean.shape == (5, *d.event_shape)
    assert d.expand((4, 5)).rsample((2,)).shape == (2, 4, 5, *d.event_shape)


@pytest.mark.parametrize("shape", [3, (1, 2, 3)])
@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_normal_is_the_dense_one(shape, rank, float64):
    head = LowRankNormal(shape, context=2, rank=rank)
    d = head(torch.randn(2))
    raw = head.params(torch.ones(2)).detach() * 5
    event = d.event_shape
    loc, scale, *columns = raw.chunk(2 + rank, -len(event))
    factor = torch.stack([10 * torch.tanh(c / 10).flatten() for c in columns], -1)
    scale = torch.exp(10 * torch.tanh(scale.flatten() / 10))
    covariance = scale[:, None] * (torch.eye(len(scale)) + factor @ factor.T) * scale
    x = torch.randn(event)
    truth = stats.multivariate_normal(loc.flatten(), covariance).logpdf(x.flatten())
    found = head.at(raw)
    assert found.log_prob(x).item() == pytest.approx(float(truth), rel=1e-8)
    torch.testing.assert_close(found.variance.flatten(), covariance.diagonal())
    draws = (found.sample((20_000,)) - found.mean).flatten(1)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), draws.T, upper=False)
    z = (white @ white.T / 20_000 - torch.eye(len(scale))) * math.sqrt(20_000 / 2)
    assert z.abs().max() < 5


def test_full_normal_draws(float64):
    head = FullNormal(3, context=2)
    d = head.at(torch.tensor([1.0, 2.0, 3.0, 0.0, -1.0, 1.0, 2.0, -1.0, 0.5]))
    white = torch.linalg.solve_triangular(d.scale_tril, (d.sample((20_000,)) - d.loc).T, upper=False)
    assert all(stats.kstest(w.numpy(), "norm").pvalue > RARE for w in white)
    z = (white @ white.T / 20_000 - torch.eye(3)) * math.sqrt(20_000 / 2)
    assert z.abs().max() < 5


def test_low_rank_columns_part_ways():
    """A learned prior starts with columns that differ, or the rank would be one for ever."""
    raw = LowRankNormal(5, rank=2).params()
    assert not torch.allclose(raw[10:15], raw[15:])


@pytest.mark.parametrize("rank", [0, -1, True, 1.5])
def test_rank_is_a_positive_int(rank):
    with pytest.raises(ConfigError, match="rank: expected a positive int"):
        LowRankNormal(3, rank=rank)


# --- heads ---


@pytest.mark.parametrize("head", [Beta, Kumaraswamy, Dirichlet])
def test_learned_priors_start_uniform(head):
    d = head(3)()
    assert d.log_prob(d.sample()).item() == pytest.approx(math.log(2) if head is Dirichlet else 0.0, abs=1e-6)


@pytest.mark.parametrize("head", [Dirichlet, LogisticNormal])
@pytest.mark.parametrize("shape", [1, (2, 3)])
def test_proportions_are_vectors(head, shape):
    with pytest.raises(ConfigError, match=f"{head.__name__}: expected the length of a vector, at least 2"):
        head(shape)


@pytest.mark.parametrize("head", [Beta, Kumaraswamy])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_the_interval_are_refused(head, end):
    d = head(2, context=1)(torch.zeros(1))
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        check_cells(torch.tensor([[0.5, 0.5], [end, 0.5]]), d.support)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor([end, 0.5]))
    assert biject_to(open_unit_interval)(torch.tensor(0.0)) == 0.5


@pytest.mark.parametrize("head", [Gamma, LogNormal])
def test_zero_is_not_positive(head):
    with pytest.raises(DataError, match="numbers above 0"):
        check_cells(torch.tensor([[1.0], [0.0]]), head(1, context=1)(torch.zeros(1)).support)


def test_zero_proportions_are_finite():
    x = torch.tensor([[0.0, 0.4, 0.6], [0.0, 0.0, 1.0]])
    for head in (Dirichlet, LogisticNormal):
        raw = torch.randn(2, 3 if head is Dirichlet else 4, requires_grad=True)
        log_p = head(3, context=1).at(raw).log_prob(x)
        assert log_p.isfinite().all()
        assert torch.autograd.grad(log_p.sum(), raw)[0].isfinite().all()


@pytest.mark.parametrize("shape", [3, (1, 2, 2)])
def test_delta_is_an_autoencoder(shape):
    """The bound is ``log p(x | f(x)) + log p(f(x))``, without noise."""
    vae = pv.VAE(pv.StandardNormal(shape), pv.Normal(6, context=shape), Delta(shape, context=6))
    x = torch.randn(5, 6)
    z = vae.posterior(x).mean
    bound = vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z)
    torch.testing.assert_close(pv.elbo_terms(vae, x).elbo, bound.detach())
    assert pv.ELBO()(vae, x).item() == pytest.approx(-bound.mean().item(), rel=1e-5)


@every_head
def test_capture(make):
    """Draws, density and gradient become one graph, which draws the same from the same generator."""
    head = make(5, context=3, net=torch.nn.Linear)
    dist.enable_validation(False)

    def program(raw):
        d = head.at(raw)
        x = d.rsample() if d.has_rsample else d.sample()
        log_p = d.log_prob(x)
        return x, log_p, torch.autograd.grad(log_p.sum() + x.sum(), raw)[0]

    raw = torch.randn(4, head.network.out_features, requires_grad=True)
    graph = make_fx(program)(raw)
    other = torch.randn_like(raw).requires_grad_()
    with torch.random.fork_rng():
        expected = program(other)
    torch.testing.assert_close(graph(other), list(expected) if isinstance(graph(other), list) else expected)
