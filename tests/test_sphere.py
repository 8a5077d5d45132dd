"""Directions: densities against Bessel functions and quadrature, draws and their gradients, up to k = 1e6."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import special, stats
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.data.gate import check_cells
from pyrovae.distributions import sphere
from pyrovae.errors import ConfigError, DataError
from pyrovae.families.sphere import PowerSpherical, VonMises, VonMisesFisher
from pyrovae.priors import SphereUniform

RARE = 2e-5  # a goodness-of-fit test may fail this often
SIZES = [2, 3, 4, 10, 30, 100]
CONCENTRATIONS = [1e-3, 0.1, 1.0, 10.0, 100.0, 1e4, 1e6]
FAMILIES = [sphere.VonMisesFisher, sphere.PowerSpherical]
sizes = pytest.mark.parametrize("m", SIZES)
concentrations = pytest.mark.parametrize("k", CONCENTRATIONS)
families = pytest.mark.parametrize("family", FAMILIES)


def at(family, m, k, loc=None, **like):
    return family(torch.eye(1, m, **like)[0] if loc is None else loc, torch.tensor(float(k), **like))


def angles(family, m, k, count=200, order=10):
    """Nodes and weights in the angle from ``loc``, in float64, where the density is."""
    width = (1 if family is sphere.VonMisesFisher else 2) / k
    high = min(math.pi, math.sqrt(m * width) + 11 * math.sqrt(width))
    u, w = np.polynomial.legendre.leggauss(order)
    edges = high * (1 - np.linspace(1, 0, count + 1) ** 4)  # finer where (1 + w)^k may be a cusp
    half = np.diff(edges) / 2
    return torch.from_numpy(((edges[:-1] + half)[:, None] + half[:, None] * u).ravel()), torch.from_numpy(
        (half[:, None] * w).ravel()
    )


def ring(m, theta):
    """The measure of the points at an angle of ``theta``."""
    area = math.log(2) + (m - 1) / 2 * math.log(math.pi) - math.lgamma((m - 1) / 2)
    return math.exp(area) * theta.sin() ** (m - 2)


def points(m, theta, dtype):
    x = torch.zeros(len(theta), m, dtype=torch.float64)
    x[:, 0], x[:, 1] = theta.cos(), theta.sin()
    return x.to(dtype)


# --- densities ---


@families
@sizes
@concentrations
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_density_integrates_to_one(family, m, k, dtype, tolerance):
    theta, weight = angles(family, m, k)
    log_p = at(family, m, k, dtype=dtype).log_prob(points(m, theta, dtype)).double()
    rounding = torch.finfo(dtype).eps * log_p.max().abs().item()  # of the result: a normaliser may be 500 nats
    mass = (log_p.exp() * ring(m, theta) * weight).sum().item()
    assert mass == pytest.approx(1.0, abs=tolerance + rounding)


@families
@sizes
@concentrations
def test_moments_and_divergence_are_those_of_the_density(family, m, k):
    theta, weight = angles(family, m, k)
    d = at(family, m, k, dtype=torch.float64)
    log_p = d.log_prob(points(m, theta, torch.float64))
    p = log_p.exp() * ring(m, theta) * weight
    assert (1 - d.mean[0]).item() == pytest.approx((p * (1 - theta.cos())).sum().item(), rel=1e-9)
    assert d.entropy().item() == pytest.approx(-(p * log_p).sum().item(), rel=2e-9, abs=1e-8)
    uniform = SphereUniform(m).double()()
    kl = (p * (log_p - uniform.log_prob(points(m, theta, torch.float64)))).sum().item()
    assert kl_divergence(d, uniform).item() == pytest.approx(kl, rel=2e-9, abs=1e-8)


@sizes
@concentrations
def test_against_bessel_functions(m, k):
    d = at(sphere.VonMisesFisher, m, k, dtype=torch.float64)
    order = m / 2 - 1
    scaled = special.ive(order, k)
    log_c = order * math.log(k) - m / 2 * math.log(2 * math.pi) - math.log(scaled) - k
    x = torch.nn.functional.normalize(torch.randn(m, dtype=torch.float64), dim=0)
    assert d.log_prob(x).item() == pytest.approx(log_c + k * x[0].item(), rel=1e-9, abs=1e-9)
    assert d.mean[0].item() == pytest.approx(special.ive(order + 1, k) / scaled, rel=1e-9)
    area = math.log(2) + m / 2 * math.log(math.pi) - math.lgamma(m / 2)
    kl = kl_divergence(d, SphereUniform(m).double()()).item()
    assert kl == pytest.approx(k * d.mean[0].item() + log_c + area, abs=1e-8 * max(1, k / 100))


@pytest.mark.parametrize("k", [0.01, 1.0, 30.0, 1e6])
def test_three_dimensions_in_closed_form(k):
    d = at(sphere.VonMisesFisher, 3, k, dtype=torch.float64)
    log_c = math.log(k / (2 * math.pi)) - math.log1p(-math.exp(-2 * k))
    assert d.log_prob(d.loc).item() == pytest.approx(log_c, abs=1e-10)
    assert (1 - d.mean[0]).item() == pytest.approx(1 - 1 / math.tanh(k) + 1 / k, rel=1e-8)
    if k < 100:
        theirs = dist.VonMises3D(k * d.loc)
        x = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=-1)
        torch.testing.assert_close(d.log_prob(x), theirs.log_prob(x))


@families
@sizes
def test_without_concentration_it_is_uniform(family, m):
    uniform = SphereUniform(m)()
    kl = [kl_divergence(at(family, m, k), uniform).item() for k in (1e-5, 1e-3, 1e-2)]
    assert 0 <= kl[0] < 1e-9
    # the leading terms, in float32 from float64
    leading = [k**2 / (2 * m) if family is sphere.VonMisesFisher else None for k in (1e-3, 1e-2)]
    for ours, theirs in zip(kl[1:], leading, strict=True):
        assert ours > 0
        assert theirs is None or ours == pytest.approx(theirs, rel=1e-2)


@sizes
@concentrations
def test_derivatives_of_the_normaliser(m, k):
    """``d log p(x) / dk = w - A``, ``dA / dk = 1 - A^2 - (m - 1) A / k``, ``d KL / dk = k dA / dk``."""
    kappa = torch.tensor(k, dtype=torch.float64, requires_grad=True)
    d = sphere.VonMisesFisher(torch.eye(1, m, dtype=torch.float64)[0], kappa)
    a = d.mean[0].detach()
    (score,) = torch.autograd.grad(d.log_prob(d.loc), kappa)
    assert score.item() == pytest.approx((1 - a).item(), rel=1e-6)
    (slope,) = torch.autograd.grad(d.mean[0], kappa)
    step = 1e-4 * k
    up, down = (at(sphere.VonMisesFisher, m, k + s, dtype=torch.float64).mean[0] for s in (step, -step))
    assert slope.item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-4)
    (kl_slope,) = torch.autograd.grad(kl_divergence(d, SphereUniform(m).double()()), kappa)
    assert kl_slope.item() == pytest.approx(k * slope.item(), rel=1e-6, abs=1e-15)


# --- draws ---


def distance(x, loc):
    """``1 - loc . x`` of unit vectors, without losing what is small."""
    return (x.double() - loc.double()).square().sum(-1) / 2


@families
@pytest.mark.parametrize("m", [2, 3, 10, 100])
@pytest.mark.parametrize("k", [1e-3, 1.0, 100.0, 1e6])
def test_draws_follow_the_density(family, m, k):
    loc = torch.nn.functional.normalize(torch.randn(m), dim=0)
    d = at(family, m, k, loc)
    x = d.sample((10_000,))
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-6
    assert d.support.check(x).all()
    theta, weight = angles(family, m, k, 1000, 4)
    p = at(family, m, k, dtype=torch.float64).log_prob(points(m, theta, torch.float64)).exp() * ring(m, theta) * weight
    t = 1 - theta.cos() if k < 1e4 else 2 * (theta / 2).sin().square()
    drawn = distance(x, loc).numpy()
    assert stats.kstest(drawn, lambda v: np.interp(v, t, p.cumsum(0))).pvalue > RARE
    # what lies across the axis has no preferred direction
    across = x.double() - (1 - torch.from_numpy(drawn))[:, None] * loc.double()
    across = across / across.norm(dim=-1, keepdim=True)
    assert (across.mean(0) / (across.std(0) + 1e-9) * 100).abs().max() < 5.5


@families
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_draws_around_the_poles(family, sign):
    for offset in (0.0, 1e-8, 1e-4, 0.5):
        loc = torch.nn.functional.normalize(torch.tensor([sign, offset, -offset]), dim=0)
        x = at(family, 3, 1e6, loc).sample((5000,))
        scale = 1e-6 if family is sphere.VonMisesFisher else 2e-6
        assert distance(x, loc).mean().item() == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize("m", [2, 3, 7, 100])
@pytest.mark.parametrize("k", [1e-3, 1.0, 30.0, 1e3, 1e6])
def test_flow_of_the_draws_is_the_implicit_one(m, k, float64):
    """``dw/dk = int_w^1 (s - A) p(s) ds / p(w)`` for every single draw, by quadrature on panels around it."""
    kappa = torch.full((12,), k, requires_grad=True)
    loc = torch.eye(1, m)[0]
    x = sphere.VonMisesFisher(loc, kappa).rsample()
    (slope,) = torch.autograd.grad(x[:, 0].sum(), kappa)
    short = (1 - at(sphere.VonMisesFisher, m, k).mean[0]).item()
    theta = 2 * torch.asin((distance(x.detach(), loc) / 2).sqrt())
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u, w = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    for one, found in zip(theta, slope, strict=True):
        s = one * u
        log_ratio = k * (one.cos() - s.cos()).neg() + (m - 2) * (s.sin() / one.sin()).log()
        t = 2 * (s / 2).sin().square()
        expected = (w * one * (short - t) * log_ratio.exp()).sum() * one.sin()
        scale = one.sin().square() / k if k > m else one.sin().square() / m
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6 * scale.item())


@families
@pytest.mark.parametrize("m", [2, 3, 10, 100])
@concentrations
def test_gradient_of_the_mean_through_draws(family, m, k):
    """float32: ``E dw/dk`` is ``dA/dk``, with the error of the mean at a percent or two."""
    n = 10_000
    kappa = torch.full((n,), k, requires_grad=True)
    x = family(torch.eye(1, m)[0], kappa).rsample()
    (slope,) = torch.autograd.grad(x[:, 0].sum(), kappa)
    exact = torch.tensor(k, dtype=torch.float64, requires_grad=True)
    (truth,) = torch.autograd.grad(family(torch.eye(1, m, dtype=torch.float64)[0], exact).mean[0], exact)
    error = slope.double().std() / math.sqrt(n)
    assert (slope.double().mean() - truth).abs() < 5 * error + 2e-5 * truth
    assert error < 0.025 * truth


@families
def test_gradient_of_the_direction_through_draws(family, float64):
    """``E a . x = A a . loc``, and loc the direction of three numbers."""
    n, a = 40_000, torch.tensor([0.3, -1.0, 2.0])
    raw = torch.tensor([-0.5, 1.0, 0.7]).expand(n, 3).clone().requires_grad_()
    x = family(sphere.direction(raw), torch.tensor(5.0)).rsample()
    (found,) = torch.autograd.grad((x @ a).sum(), raw)
    one = raw[0].detach().requires_grad_()
    (truth,) = torch.autograd.grad(family(sphere.direction(one), torch.tensor(5.0)).mean @ a, one)
    assert ((found.mean(0) - truth).abs() < 5 * found.std(0) / math.sqrt(n)).all()


# --- heads ---


@pytest.mark.parametrize("head", [VonMisesFisher, PowerSpherical])
@pytest.mark.parametrize("m", [2, 5, 100])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 50.0, 1e6, 1e12])
def test_heads_at_extreme_outputs(head, m, size):
    raw = (size * torch.randn(64, m + 1)).requires_grad_()
    d = head(m, context=3).at(raw)
    assert d.concentration.min() >= 1e-3
    assert d.concentration.max() <= 1.001e6
    x = d.rsample()
    assert d.support.check(x).all()
    target = torch.nn.functional.normalize(torch.randn(64, m), dim=-1)
    opposite = -d.loc.detach()
    for value in (x, target, opposite, d.loc.detach()):
        log_p = d.log_prob(value)
        assert log_p.isfinite().all()
        (slope,) = torch.autograd.grad(log_p.sum(), raw, retain_graph=True)
        assert slope.isfinite().all()
    assert kl_divergence(d, SphereUniform(m)()).min() >= 0


@pytest.mark.parametrize("part", [VonMisesFisher, PowerSpherical, SphereUniform])
@pytest.mark.parametrize("shape", [1, (2, 3), (1,)])
def test_events_are_vectors(part, shape):
    with pytest.raises(ConfigError, match=f"{part.__name__}: expected the length of a vector, at least 2"):
        part(shape)


@pytest.mark.parametrize("head", [VonMisesFisher, PowerSpherical])
def test_a_learned_prior_learns_its_direction(head):
    prior = head(4)
    truth = torch.tensor([0.0, 0.6, -0.8, 0.0])
    x = at(sphere.VonMisesFisher, 4, 50.0, truth).sample((500,))
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-prior().log_prob(x).mean()).backward()
        optimizer.step()
    assert (prior().loc @ truth).item() > 0.998


@pytest.mark.parametrize("head", [VonMisesFisher, PowerSpherical])
def test_a_vae_on_the_sphere(head):
    """The analytic bound is the estimated one on average, and training lowers it."""
    vae = pv.VAE(SphereUniform(3), pv.Bernoulli(8, context=3), head(3, context=8))
    x = (torch.rand(32, 8) < 0.5).float()
    analytic = pv.ELBO(estimator=TraceMeanField_ELBO(max_plate_nesting=1))
    with torch.no_grad():
        gap = torch.stack([analytic(vae, x) - pv.ELBO()(vae, x) for _ in range(150)])
    assert gap.mean().abs() < 5 * gap.std() / math.sqrt(150)
    history = pv.fit(vae, x, objective=analytic, epochs=8, batch_size=16)
    assert history["loss"][-1] < history["loss"][0]
    assert pv.log_marginal(vae, x, k=50).values.isfinite().all()


def test_uniform_draws():
    d = SphereUniform(4)()
    x = d.sample((20_000,))
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-6
    assert stats.kstest((x[:, 2].numpy() + 1) / 2, stats.beta(1.5, 1.5).cdf).pvalue > RARE
    torch.testing.assert_close(d.log_prob(x), torch.full((20_000,), -math.log(2 * math.pi**2)))
    assert d.mean.abs().sum() == 0
    assert d.expand((2, 5)).sample((3,)).shape == (3, 2, 5, 4)


def test_the_gate_refuses_what_is_no_direction():
    head = VonMisesFisher(3, context=2)
    unit = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    check_cells(unit, head(torch.zeros(2)).support)
    with pytest.raises(DataError, match="unit vectors"):
        check_cells(unit * 1.01, head(torch.zeros(2)).support)
    with pytest.raises(ValueError, match="support"):
        head(torch.zeros(2)).log_prob(unit * 1.01)


# --- angles ---


@pytest.mark.parametrize("k", [1e-3, 1.0, 50.0, 1e4, 1e6])
def test_von_mises(k):
    d = sphere.VonMises(torch.tensor(2.5), torch.tensor(k))
    scale = min(math.pi, 11 / math.sqrt(k))
    u, w = np.polynomial.legendre.leggauss(300)
    x = torch.from_numpy(2.5 + scale * u)
    inside = x.clamp(-math.pi, math.pi) == x
    x = torch.where(inside, x, x - 2 * math.pi).float()
    assert (d.log_prob(x).double().exp() * torch.from_numpy(w) * scale).sum().item() == pytest.approx(1.0, abs=1e-5)
    if k <= 50:
        np.testing.assert_allclose(d.log_prob(x), stats.vonmises(k, loc=np.float32(2.5)).logpdf(x.double()), atol=2e-5)
    assert stats.kstest(d.sample((10_000,)).double().numpy(), _von_mises_cdf(k, 2.5)).pvalue > RARE


def _von_mises_cdf(k, loc):
    """From -pi, by the trapezoid rule."""
    grid = np.sort(
        np.concatenate([np.linspace(-np.pi, np.pi, 20_001), loc + np.linspace(-11, 11, 20_001) / np.sqrt(k)])
    )
    grid = grid[(grid >= -np.pi) & (grid <= np.pi)]
    p = np.exp(-2 * k * np.sin((grid - loc) / 2) ** 2)
    total = np.concatenate([[0], np.cumsum((p[1:] + p[:-1]) / 2 * np.diff(grid))])
    return lambda v: np.interp(v, grid, total / total[-1])


def test_torch_s_von_mises_is_off_in_float32():
    x, k = torch.tensor(0.001), torch.tensor(1e6)
    exact = 0.5 * math.log(1e6 / (2 * math.pi)) - 0.5
    assert sphere.VonMises(torch.tensor(0.0), k).log_prob(x).item() == pytest.approx(exact, abs=1e-4)
    assert abs(dist.VonMises(torch.tensor(0.0), k).log_prob(x).item() - exact) > 0.01


def test_angles_stay_in_their_interval():
    head = VonMises(2, context=3)
    support = head(torch.zeros(3)).support
    check_cells(torch.tensor([[math.pi, -math.pi]]), support)
    for wrong in (10.0, 180.0):
        with pytest.raises(DataError, match="outside the support"):
            check_cells(torch.tensor([[0.0, wrong]]), support)
        with pytest.raises(ValueError, match="support"):
            head(torch.zeros(3)).log_prob(torch.tensor([0.0, wrong]))
    assert not head(torch.zeros(3)).has_rsample
    assert support.check(head(torch.randn(5000, 3)).sample()).all()


@pytest.mark.parametrize("size", [0.0, 1.0, 50.0, 1e6, 1e12])
def test_von_mises_head_at_extreme_outputs(size):
    raw = (size * torch.randn(64, 6)).requires_grad_()
    d = VonMises(3, context=2).at(raw)
    log_p = d.log_prob(torch.rand(64, 3) * 6 - 3)
    (slope,) = torch.autograd.grad(log_p.sum(), raw)
    assert log_p.isfinite().all()
    assert slope.isfinite().all()
    assert size > 0 or slope.abs().sum() > 0  # a learned constant starts there, and leaves
