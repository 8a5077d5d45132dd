"""Densities that integrate to one at the extremes, draws that follow them, and gradients that stay finite."""

import contextlib
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.distributions import CalibratedNormal, ContinuousBernoulli, NormalMixture, mixture, score, whole

RARE = 2e-5  # a goodness-of-fit test may fail this often
LOGITS = [0.0, 1e-4, 9e-4, 1.1e-3, 0.019, 0.021, 0.099, 0.101, 1.0, 15.0, 16.0, 20.0, 60.0, 200.0, 500.0]
LOGITS = [-l for l in reversed(LOGITS[1:])] + LOGITS  # noqa: E741


def panels(low=0.0, high=1.0, count=256, order=20):
    """Gauss-Legendre nodes and weights on equal panels, in double precision."""
    u, w = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(low, high, count + 1)
    half = (edges[1:] - edges[:-1]) / 2
    nodes = (edges[:-1] + half)[:, None] + half[:, None] * u
    return torch.from_numpy(nodes.ravel()), torch.from_numpy((half[:, None] * w).ravel())


def cdf(l, x):  # noqa: E741
    """Of the continuous Bernoulli, in double precision, without overflow."""
    l, x = np.float64(l), np.asarray(x, np.float64)  # noqa: E741
    if l == 0:
        return x
    if l > 0:
        return (np.exp(l * (x - 1)) - np.exp(-l)) / -np.expm1(-l) if l > 1 else np.expm1(l * x) / np.expm1(l)
    return np.expm1(l * x) / np.expm1(l)


# --- continuous Bernoulli ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_integrates_to_one(logit, dtype, tolerance):
    x, w = panels()
    # the density is scored where single precision can stand, so the weights are those of the rounded nodes' density
    x32 = x.to(dtype)
    log_prob = ContinuousBernoulli(torch.tensor(logit, dtype=dtype)).log_prob(x32).double()
    log_prob = log_prob + logit * (x - x32.double())
    assert (log_prob.exp() * w).sum().item() == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-7)])
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_moments(logit, dtype, tolerance):
    x, w = panels()
    d = ContinuousBernoulli(torch.tensor(logit, dtype=dtype))
    p = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64)).log_prob(x).exp() * w
    mean = (p * x).sum()
    assert d.mean.item() == pytest.approx(mean.item(), abs=tolerance)
    assert d.variance.item() == pytest.approx((p * (x - mean) ** 2).sum().item(), abs=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-7)])
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_quantiles(logit, dtype, tolerance):
    v = torch.linspace(0, 1, 1001, dtype=dtype)
    x = ContinuousBernoulli(torch.tensor(logit, dtype=dtype)).icdf(v)
    assert x.min() >= 0
    assert x.max() <= 1
    inner = slice(1, -1)
    back = cdf(logit, x[inner].double().numpy())
    # one rounding of x is worth p(x) of probability
    slack = tolerance + torch.finfo(dtype).eps * max(1.0, abs(logit))
    np.testing.assert_allclose(back, v[inner].double(), atol=slack, rtol=0)
    assert (x[1:] >= x[:-1] - 1e-6).all()


def test_continuous_bernoulli_quantiles_lean_the_right_way():
    for logit in (1e-5, 5e-4, 9.9e-4, 1.1e-3, 0.5):
        d = ContinuousBernoulli(torch.tensor([logit, -logit], dtype=torch.float64))
        x = d.icdf(torch.tensor(0.5, dtype=torch.float64)) - 0.5
        assert x[0].item() == pytest.approx(logit / 8, rel=0.05)
        assert x[1].item() == pytest.approx(-logit / 8, rel=0.05)


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_draws(logit):
    x = ContinuousBernoulli(torch.full((20_000,), logit)).sample()
    assert stats.kstest(x.double().numpy(), lambda v: cdf(logit, v)).pvalue > RARE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_gradients(logit, dtype):
    """The score is ``x - mean``, at every logit and at both ends of the data."""
    x = torch.tensor([0.0, 1e-3, 0.5, 0.999, 1.0], dtype=dtype)
    logits = torch.full((5,), logit, dtype=dtype, requires_grad=True)
    d = ContinuousBernoulli(logits)
    (gradient,) = torch.autograd.grad(d.log_prob(x).sum(), logits)
    torch.testing.assert_close(gradient, x - d.mean.detach(), atol=2e-5 if dtype == torch.float32 else 1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(d.rsample((9,)).sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_gradients_of_moments(logit, dtype):
    """``d mean / dl`` is the variance."""
    logits = torch.tensor(logit, dtype=dtype, requires_grad=True)
    d = ContinuousBernoulli(logits)
    (gradient,) = torch.autograd.grad(d.mean, logits, retain_graph=True)
    assert gradient.item() == pytest.approx(d.variance.item(), abs=1e-4 if dtype == torch.float32 else 1e-6)
    (gradient,) = torch.autograd.grad(d.variance, logits)
    assert gradient.isfinite()


@pytest.mark.parametrize("logit", [0.0, 5e-4, -5e-4, 0.05, -0.05, 3.0, -3.0, 30.0, -30.0])
def test_continuous_bernoulli_pathwise_gradient(logit):
    """``dx/dl = -(dF/dl) / p(x)``, by finite differences of the distribution function."""
    v = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    l = torch.full((5,), logit, dtype=torch.float64, requires_grad=True)  # noqa: E741
    d = ContinuousBernoulli(l)
    x = d.icdf(v)
    (gradient,) = torch.autograd.grad(x.sum(), l)
    x, h = x.detach(), 1e-4
    slope = torch.as_tensor((cdf(logit + h, x.numpy()) - cdf(logit - h, x.numpy())) / (2 * h))
    expected = -slope / d.log_prob(x).exp().detach()
    torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=1e-4)


def test_continuous_bernoulli_shapes_and_support():
    d = ContinuousBernoulli(torch.zeros(3, 1)).expand((2, 3, 4))
    assert d.sample((5,)).shape == (5, 2, 3, 4)
    assert d.log_prob(torch.rand(4)).shape == (2, 3, 4)
    torch.testing.assert_close(d.log_prob(torch.rand(4)), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="support"):
        ContinuousBernoulli(torch.zeros(2), validate_args=True).log_prob(torch.tensor([0.5, 1.1]))


def test_continuous_bernoulli_against_torch_in_its_good_range():
    l = torch.linspace(-10, 10, 101, dtype=torch.float64)  # noqa: E741
    x = torch.rand(7, 101, dtype=torch.float64)
    theirs = torch.distributions.ContinuousBernoulli(logits=l)
    torch.testing.assert_close(ContinuousBernoulli(l).log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(ContinuousBernoulli(l).mean, theirs.mean, rtol=0, atol=1e-6)


# --- mixtures ---


def small_mixture():
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    loc, scale = torch.tensor([[-3.0], [0.0], [4.0]]).double(), torch.tensor([[0.5], [0.1], [1.5]]).double()
    return NormalMixture(logits, loc, scale), logits.softmax(0), loc[:, 0], scale[:, 0]


def test_normal_mixture_density_and_draws():
    d, w, loc, scale = small_mixture()
    x, weight = panels(-20, 20, 800)
    p = d.log_prob(x[:, None]).exp()
    assert (p * weight).sum().item() == pytest.approx(1.0, abs=1e-10)
    np.testing.assert_allclose(
        p,
        sum(
            a * stats.norm.pdf(x.numpy(), b, c)
            for a, b, c in zip(*map(torch.Tensor.tolist, (w, loc, scale)), strict=True)
        ),
        rtol=1e-9,
        atol=1e-300,
    )
    assert d.mean.item() == pytest.approx((w * loc).sum().item(), abs=1e-12)
    draws = d.sample((20_000,))[:, 0].numpy()

    def distribution_function(v):
        return sum(a.item() * stats.norm.cdf(v, b.item(), c.item()) for a, b, c in zip(w, loc, scale, strict=True))

    assert stats.kstest(draws, distribution_function).pvalue > RARE


def test_normal_mixture_components_and_shapes():
    d = NormalMixture(torch.zeros(4), torch.randn(4, 2, 3), torch.rand(4, 2, 3) + 0.1)
    assert d.batch_shape == ()
    assert d.event_shape == (2, 3)
    z = torch.randn(5, 6, 2, 3)
    parts = torch.stack([dist.Normal(d.loc[k], d.scale[k]).to_event(2).log_prob(z) for k in range(4)], -1)
    torch.testing.assert_close(d.component_log_prob(z), parts, rtol=1e-4, atol=1e-4)
    wide = d.expand((5, 6))
    assert wide.sample((7,)).shape == (7, 5, 6, 2, 3)
    assert wide.mean.shape == (5, 6, 2, 3)
    torch.testing.assert_close(wide.log_prob(z), d.log_prob(z))
    draws = d.expand((9,)).sample()
    assert len(draws.flatten(1).unique(dim=0)) == 9  # every element of a batch is a draw of its own
    with pytest.raises(ValueError, match="support"):
        NormalMixture(d.logits, d.loc, d.scale, validate_args=True).log_prob(torch.full((2, 3), math.nan))


def test_mixture_takes_the_fastest_exact_class():
    logits = torch.randn(3)
    normal = dist.Normal(torch.randn(3, 2), torch.rand(3, 2) + 0.1).to_event(1)
    fast, z = mixture(logits, normal), torch.randn(7, 2)
    assert isinstance(fast, NormalMixture)
    slow = dist.MixtureSameFamily(dist.Categorical(logits=logits), normal)
    torch.testing.assert_close(fast.log_prob(z), slow.log_prob(z), rtol=1e-5, atol=1e-4)
    assert isinstance(mixture(logits, dist.Laplace(torch.zeros(3, 2), 1.0).to_event(1)), dist.MixtureSameFamily)


# --- Normal at its own optimum ---


def test_calibrated_normal_is_scored_at_the_optimum():
    loc, reported = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), []
    x = 3 * torch.randn(6, 4, dtype=torch.float64)
    d = CalibratedNormal(loc, torch.tensor(0.2, dtype=torch.float64), reported.append)
    total = d.to_event(1).log_prob(x).sum()
    best = ((x - loc) ** 2).mean()
    n = x.numel()
    assert total.item() == pytest.approx(-n / 2 * (math.log(2 * math.pi * best.item()) + 1), abs=1e-9)
    for s in (0.9, 1.1):  # no other scale is better
        assert total > dist.Normal(loc, s * best.sqrt()).log_prob(x).sum()
    assert len(reported) == 1
    assert reported[0].item() == pytest.approx(best.item())
    assert not reported[0].requires_grad
    (gradient,) = torch.autograd.grad(total, loc, retain_graph=True)
    (whole,) = torch.autograd.grad(-n / 2 * best.log(), loc)  # with the scale's own dependence on loc
    torch.testing.assert_close(gradient, whole, rtol=1e-10, atol=1e-10)


def test_calibrated_normal_draws_at_the_given_scale():
    d = CalibratedNormal(torch.zeros(20_000), torch.tensor(0.2), lambda _: None)
    assert stats.kstest(d.sample().double().numpy() / 0.2, "norm").pvalue > RARE
    assert d.expand((2, 20_000)).scale.shape == (2, 20_000)
    assert d.expand((2, 20_000)).report is d.report
    exact = CalibratedNormal(torch.zeros(3), torch.ones(3), lambda _: None)
    assert exact.log_prob(torch.zeros(3)).isfinite().all()  # a perfect fit has no infinite density


# --- heads: draws follow log_prob, which is the textbook's ---

SCALED = {
    "Normal": (pv.Normal, stats.norm()),
    "Laplace": (pv.Laplace, stats.laplace()),
    "StudentT": (lambda *a, **k: pv.StudentT(*a, df=3.5, **k), stats.t(3.5)),
}


def head_of(make, *values):
    """A head whose linear network ignores its context and puts out these numbers."""
    head = make(1, context=1, net=nn.Linear)
    with torch.no_grad():
        head.network.weight.zero_()
        head.network.bias.copy_(torch.tensor(values))
    return head


def raw(scale):
    return 10 * math.atanh(math.log(scale) / 10)


@pytest.mark.parametrize(("make", "textbook"), SCALED.values(), ids=SCALED)
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-2.0, 0.05), (100.0, 30.0)])
def test_location_scale_heads(make, textbook, loc, scale, float64):
    head = head_of(make, loc, raw(scale))
    with torch.no_grad():
        d = head(torch.zeros(20_000, 1))
        x = d.sample()
        theirs = textbook.logpdf(((x[:, 0] - loc) / scale).numpy()) - math.log(scale)
        np.testing.assert_allclose(d.log_prob(x), theirs, rtol=1e-9, atol=1e-9)
        for draws in (x, d.rsample()):
            assert stats.kstest(((draws[:, 0] - loc) / scale).numpy(), textbook.cdf).pvalue > RARE


@pytest.mark.parametrize("logit", [-3.0, 0.0, 0.4, 20.0])
def test_continuous_bernoulli_head(logit):
    with torch.no_grad():
        d = head_of(pv.ContinuousBernoulli, logit)(torch.zeros(20_000, 1))
    x = d.sample()
    assert stats.kstest(x[:, 0].double().numpy(), lambda v: cdf(logit, v)).pvalue > RARE
    theirs = np.log(np.float64(logit / math.expm1(logit) if logit else 1.0)) + logit * x[:, 0].double().numpy()
    np.testing.assert_allclose(d.log_prob(x), theirs, atol=2e-5)


@pytest.mark.parametrize("logits", [(-1.0,), (0.0,), (4.0,), (-30.0,), (200.0,)])
def test_bernoulli_head(logits, float64):
    with torch.no_grad():
        d = head_of(pv.Bernoulli, *logits)(torch.zeros(20_000, 1))
    ones = d.sample().sum().item()
    p = 1 / (1 + math.exp(-logits[0]))
    assert stats.binomtest(int(ones), 20_000, p).pvalue > RARE
    zero, one = (d.log_prob(torch.full((20_000, 1), v))[0].item() for v in (0.0, 1.0))
    assert math.exp(zero) + math.exp(one) == pytest.approx(1.0, abs=1e-12)
    assert one - zero == pytest.approx(logits[0], abs=1e-9)


def test_categorical_head(float64):
    logits = (0.5, -1.0, 2.0, 0.0)
    with torch.no_grad():
        d = head_of(lambda *a, **k: pv.Categorical(*a, classes=4, **k), *logits)(torch.zeros(20_000, 1))
    p = torch.tensor(logits).softmax(0)
    counts = np.bincount(d.sample()[:, 0].numpy(), minlength=4)
    assert stats.chisquare(counts, 20_000 * p.numpy()).pvalue > RARE
    log_prob = torch.stack([d.log_prob(torch.full((20_000, 1), float(k)))[0] for k in range(4)])
    torch.testing.assert_close(log_prob, p.log(), rtol=0, atol=1e-12)


def test_categorical_puts_each_class_in_a_plane_of_its_own(float64):
    """Elements and classes do not mix in an event of several elements."""
    head = pv.Categorical((2, 3), context=1, net=pv.MLP, classes=4)
    context = torch.randn(5, 1)
    logits = head.params(context).reshape(5, 4, 2, 3).movedim(1, -1)
    x = torch.randint(4, (5, 2, 3)).double()
    expected = logits.log_softmax(-1).gather(-1, x.long()[..., None]).sum((1, 2, 3))
    torch.testing.assert_close(head(context).log_prob(x), expected, rtol=0, atol=1e-12)


# --- closed-form divergences, as the analytic ELBO uses them ---


@pytest.mark.parametrize("family", [pv.Normal, pv.Laplace])
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.5, 0.3), (-0.5, 2.0)])
def test_divergence_from_the_standard_normal(family, loc, scale, float64):
    q, p = head_of(family, loc, raw(scale))(torch.zeros(1)), pv.StandardNormal(1)()
    x, w = panels(loc - 60 * scale, loc + 60 * scale, 2000)
    log_q = q.log_prob(x[:, None])
    expected = (log_q.exp() * (log_q - p.log_prob(x[:, None])) * w).sum()
    torch.testing.assert_close(kl_divergence(q, p).squeeze(), expected.squeeze(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("raw_value", [-1e4, -60.0, 0.0, 60.0, 1e4])
def test_divergence_survives_any_network_output(raw_value):
    """In single precision, where a free exponential makes it inf or nan."""
    bias = torch.tensor([0.5, raw_value], requires_grad=True)
    scale = pv.NetworkScale(1)(bias[1:])
    q = dist.Normal(bias[:1], scale).to_event(1)
    divergence = kl_divergence(q, pv.StandardNormal(1)())
    s = math.exp(10 * math.tanh(raw_value / 10))
    assert divergence.item() == pytest.approx(0.5 * (s**2 + 0.25 - 1) - math.log(s), rel=1e-4)
    divergence.backward()
    assert bias.grad.isfinite().all()


# --- scores of binary data ---


def exact_bernoulli(logits, x):
    """In double precision, without cancellation; softplus by logaddexp, which has no threshold."""
    s = (1 - 2 * x.double()) * logits.double()
    return -torch.logaddexp(s, torch.zeros_like(s)).sum(-1)


@pytest.mark.parametrize("size", [1, 3, 64, 97, 98, 99, 784, 1000])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.1, 1.0, 5.0, 30.0, 87.0, 1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", [contextlib.nullcontext, whole])
def test_score_of_binary_data_is_exact(size, spread, dtype, form):
    torch.manual_seed(size)
    logits = spread * torch.randn(7, size, dtype=dtype)
    fitting = (logits > 0).to(dtype)
    for x in (fitting, 1 - fitting, torch.rand(7, size).round().to(dtype), torch.rand(size).round().to(dtype)):
        d = dist.Bernoulli(logits=logits).to_event(1)
        with torch.no_grad(), form():
            value = score(d, x)
        assert value.dtype == dtype
        exact, unit = exact_bernoulli(logits, x), torch.finfo(dtype).eps
        # each term to rounding, each factor 1 + exp(s) to rounding
        assert ((value.double() - exact).abs() <= 4 * unit * exact.abs() + unit * size).all()
        # torch takes x l off at the end, and what cancels leaves its rounding
        torch.testing.assert_close(value, d.log_prob(x), rtol=8 * unit, atol=unit * (size + logits.abs().sum(-1).max()))


def test_score_of_binary_data_at_extreme_logits():
    logits = torch.tensor([1e4, -1e4, 88.0, 89.0, -104.0, 0.0, torch.inf])
    with torch.no_grad():
        for i in range(len(logits)):
            for x in (torch.zeros(1), torch.ones(1)):
                one = score(dist.Bernoulli(logits=logits[i : i + 1]).to_event(1), x)
                exact = exact_bernoulli(logits[i : i + 1], x)
                torch.testing.assert_close(one.double(), exact, rtol=1e-6, atol=1.2e-7)
        wrong = dist.Bernoulli(logits=torch.full((784,), 1e4)).to_event(1)
        assert score(wrong, torch.zeros(784)).item() == pytest.approx(-7.84e6)
        assert score(wrong, torch.ones(784)).item() == 0
        broken = dist.Bernoulli(logits=torch.tensor([0.0, math.nan]), validate_args=False).to_event(1)
        assert score(broken, torch.ones(2)).isnan()


@pytest.mark.parametrize("event", [(6,), (2, 3), (1, 28, 28)])
@pytest.mark.parametrize(
    ("batch", "value_batch"), [((), ()), ((5,), (5,)), ((4, 5), (5,)), ((4, 1), (4, 5)), ((), (5,))]
)
@pytest.mark.parametrize("piece", [2**18, 50, 1])
def test_score_broadcasts_as_log_prob_does(event, batch, value_batch, piece, monkeypatch):
    monkeypatch.setattr("pyrovae.distributions.scoring._PIECE", piece)
    d = dist.Bernoulli(logits=torch.randn(*batch, *event)).to_event(len(event))
    x = torch.rand(*value_batch, *event).round()
    with torch.no_grad():
        torch.testing.assert_close(score(d, x), d.log_prob(x), rtol=1e-5, atol=1e-5)
        wide = d.expand(torch.broadcast_shapes((3, 4, 5), d.batch_shape))
        torch.testing.assert_close(score(wide, x), wide.log_prob(x), rtol=1e-5, atol=1e-5)
        for kind in (torch.bool, torch.uint8, torch.int64):
            assert torch.equal(score(d, x.to(kind)), score(d, x))


def test_score_asks_everything_else_itself():
    logits, x = torch.randn(5, 6), torch.rand(5, 6).round()
    bernoulli = dist.Bernoulli(logits=logits)
    with torch.no_grad():
        mask = torch.tensor([True, False, True, False, True])
        for d, value in (
            (bernoulli, x),
            (bernoulli.to_event(1).mask(mask), x),
            (dist.Bernoulli(logits=logits.bfloat16()).to_event(1), x.bfloat16()),
            (dist.Bernoulli(logits=logits, validate_args=False).to_event(1), torch.rand(5, 6)),  # cross-entropy
            (dist.Normal(logits, 1.0).to_event(1), x),
            (dist.Categorical(logits=logits), torch.tensor(2)),
        ):
            assert torch.equal(score(d, value), d.log_prob(value))
        for bad in (torch.full((5, 6), 0.5), torch.full((5, 6), 2.0), torch.full((5, 6), math.nan), x[:, :3]):
            with pytest.raises(ValueError, match=r"support|broadcastable"):
                score(bernoulli.to_event(1), bad)
    probs = dist.Bernoulli(probs=logits.sigmoid()).to_event(1)
    with torch.no_grad():
        torch.testing.assert_close(score(probs, x), probs.log_prob(x))


def test_score_has_the_exact_gradient():
    logits = (10 * torch.randn(4, 50)).requires_grad_()
    x = torch.rand(4, 50).round()
    (gradient,) = torch.autograd.grad(score(dist.Bernoulli(logits=logits).to_event(1), x).sum(), logits)
    torch.testing.assert_close(gradient, x - logits.detach().sigmoid(), rtol=1e-6, atol=1e-7)
