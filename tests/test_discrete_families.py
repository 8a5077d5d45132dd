"""Grey levels, counts and classes: probabilities that sum to one at the extremes, draws that follow them."""

import functools
import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from scipy.special import expit
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae as pv
from pyrovae.data.gate import check_cells
from pyrovae.distributions import center
from pyrovae.distributions.levels import Levels
from pyrovae.families import counts, discrete, levels
from pyrovae.spec import build, describe

RARE = 2e-5  # a goodness-of-fit test may fail this often
RAW = [-50.0, -3.0, 0.0, 3.0, 50.0]
exact = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
small = functools.partial(pv.MLP, hidden=(5,))

HEADS = {
    "DiscretizedLogistic": levels.DiscretizedLogistic,
    "DiscretizedLogistic, 2": functools.partial(levels.DiscretizedLogistic, levels=2),
    "DiscretizedLogisticMixture": functools.partial(levels.DiscretizedLogisticMixture, components=3),
    "CategoricalLevels": functools.partial(levels.CategoricalLevels, levels=17),
    "Poisson": counts.Poisson,
    "NegativeBinomial": counts.NegativeBinomial,
    "ZeroInflatedNegativeBinomial": counts.ZeroInflatedNegativeBinomial,
    "Multinomial": functools.partial(counts.Multinomial, total=30),
    "Ordinal": functools.partial(discrete.Ordinal, classes=5),
    "Ordinal, 2": discrete.Ordinal,
}
GRIDS = [name for name in HEADS if "Levels" in name or "Logistic" in name]
COUNTS = ["Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"]
every = pytest.mark.parametrize("make", list(HEADS.values()), ids=list(HEADS))


def at(make, *raw, dtype=torch.float64):
    """The distribution of one element at given network outputs, one for each parameter."""
    head = make(1).to(dtype)
    return head.at(torch.tensor(raw, dtype=dtype))


def raws(make):
    """Network outputs of one element, the extremes among them."""
    n = make(1)._n_params
    if n <= 3:
        return list(itertools.product(RAW, repeat=n))
    generator = torch.Generator().manual_seed(0)
    mixed = torch.tensor(RAW)[torch.randint(len(RAW), (30, n), generator=generator)]
    return [(50.0,) * n, (-50.0,) * n, *map(tuple, mixed.tolist())]


# --- what every one promises ---


@every
@pytest.mark.parametrize("shape", [3, (2, 3)], ids=str)
@pytest.mark.parametrize("batch", [(), (4,), (5, 4)], ids=str)
def test_shapes(make, shape, batch):
    event = (3,) if shape == 3 else shape
    d = make(shape, context=2, net=small)(torch.randn(*batch, 2))
    value = d.sample()
    assert value.shape == (*batch, *event)
    assert value.dtype == torch.float32 or (value.dtype == torch.int64 and "classes" in vars(make(3)))
    assert d.log_prob(value).shape == batch
    assert d.log_prob(value).dtype == torch.float32
    assert d.support.check(value).all()
    wide = d.expand((2, *batch))
    torch.testing.assert_close(wide.log_prob(value), d.log_prob(value).expand(2, *batch))
    assert wide.sample((3,)).shape == (3, 2, *batch, *event)
    middle = center(d)
    assert middle.shape == value.shape
    assert middle.isfinite().all()


@every
def test_every_parameter_gets_a_gradient(make):
    head = make(3, context=2, net=small)
    d = head(torch.randn(64, 2))
    d.log_prob(d.sample()).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in head.parameters())


@every
def test_in_plates(make):
    head = make(3, context=2, net=small)

    def program(context):
        with pyro.plate("particles", 5, dim=-2), pyro.plate("batch", 4, dim=-1):
            return pyro.sample("x", head(context))

    trace = poutine.trace(program).get_trace(torch.randn(4, 2))
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5, 4)


@every
def test_a_program_can_be_captured(make):
    head = make(3, context=2, net=small)
    context = torch.randn(4, 2)
    value = head(context).sample()

    def gradients(c, x):
        loss = head(c).log_prob(x).sum()
        return loss, *torch.autograd.grad(loss, list(head.parameters()))

    with pyro.validation_enabled(False):
        graph = make_fx(gradients)(context, value)
        draw = make_fx(lambda c: head(c).sample())(context)
    other, x = torch.randn(4, 2), head(torch.randn(4, 2)).sample()
    torch.testing.assert_close(graph(other, x), gradients(other, x))
    torch.manual_seed(1)
    first = draw(other)
    torch.manual_seed(1)
    torch.testing.assert_close(first, head(other).sample())


@every
def test_describes_itself(make):
    head = make(3, context=2)
    names = {n: c for room in (levels, counts, discrete) for n, c in vars(room).items() if n in room.__all__}
    again = build(describe(head), names | {"MLP": pv.MLP})
    assert describe(again) == describe(head)
    assert again.load_state_dict(head.state_dict())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_the_extremes(make, dtype):
    """Any value in the support, also one that is all but impossible, has a finite log-probability and gradient."""
    head = make(1).to(dtype)
    name = next(n for n, m in HEADS.items() if m is make)
    top = 1.0 if name in GRIDS else 1e4 if name in COUNTS else head.classes - 1 if "Ordinal" in name else 1e4
    for raw in raws(make):
        params = torch.tensor(raw, dtype=dtype, requires_grad=True)
        for value in (0.0, 1.0, top):
            log_prob = head.at(params).log_prob(torch.tensor([value], dtype=dtype))
            (gradient,) = torch.autograd.grad(log_prob, params)
            assert log_prob.isfinite(), (raw, value)
            assert gradient.isfinite().all(), (raw, value)
            assert log_prob <= 1e-4
    with torch.no_grad():
        head.network.value.fill_(-50.0)
    head().log_prob(torch.tensor([top], dtype=dtype)).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


# --- grey levels ---


def grid_heads():
    many = {f"{n} of 256": HEADS[n] for n in ("DiscretizedLogistic", "DiscretizedLogisticMixture")}
    many["CategoricalLevels of 256"] = levels.CategoricalLevels
    few = {
        f"{make.__name__} of {count}": functools.partial(make, levels=count)
        for make in (levels.DiscretizedLogistic, levels.DiscretizedLogisticMixture, levels.CategoricalLevels)
        for count in (2, 17)
    }
    return many | few


every_grid = pytest.mark.parametrize("make", list(grid_heads().values()), ids=list(grid_heads()))


@exact
@every_grid
def test_levels_sum_to_one(make, dtype, tolerance):
    for raw in raws(make):
        d = at(make, *raw, dtype=dtype).base_dist
        total = d.log_prob(d.enumerate_support()).double().exp().sum()
        assert abs(total.item() - 1) < tolerance, raw


@pytest.mark.parametrize("raw", [(0.0, 0.0), (0.1, -2.0), (-0.7, 1.0), (0.3, -4.0), (2.0, -50.0)], ids=str)
def test_discretized_logistic_against_scipy(raw, float64):
    loc = 255 * (0.5 + raw[0])
    scale = 255 / 8 * math.exp(10 * math.tanh(raw[1] / 10)) + 0.1
    j = np.arange(256)
    upper = np.where(j == 255, np.inf, j + 0.5)
    lower = np.where(j == 0, -np.inf, j - 0.5)
    with np.errstate(divide="ignore"):
        direct = np.log(expit((upper - loc) / scale) - expit((lower - loc) / scale))
        mirrored = np.log(stats.logistic.sf(lower, loc, scale) - stats.logistic.sf(upper, loc, scale))
    expected = np.where(j < loc, direct, mirrored)  # on its own side each cancels little
    d = at(levels.DiscretizedLogistic, *raw).base_dist
    log_prob = d.log_prob(torch.arange(256)[:, None] / 255)[:, 0].numpy()
    near = expected > -30
    assert near.any()
    np.testing.assert_allclose(log_prob[near], expected[near], atol=1e-6)


def test_mixture_against_its_components(float64):
    raw = torch.randn(9)
    d = at(functools.partial(levels.DiscretizedLogisticMixture, components=3), *raw.tolist()).base_dist
    x = torch.arange(256)[:, None] / 255
    parts = [
        at(levels.DiscretizedLogistic, (k + 0.5) / 3 - 0.5 + raw[3 + k].item(), raw[6 + k].item()).base_dist.log_prob(x)
        for k in range(3)
    ]
    expected = (torch.stack(parts) + raw[:3].log_softmax(0)[:, None, None]).logsumexp(0)
    torch.testing.assert_close(d.log_prob(x), expected)


@every_grid
def test_mean_and_mode_of_levels(make, float64):
    for raw in raws(make)[::7]:
        d = at(make, *raw).base_dist
        grid = d.enumerate_support()
        log_prob = d.log_prob(grid)
        assert d.mean.item() == pytest.approx((log_prob.exp() * grid).sum().item(), abs=1e-9)
        if not isinstance(make(1), levels.DiscretizedLogisticMixture):
            assert d.log_prob(d.mode).item() == pytest.approx(log_prob.max().item(), abs=1e-9)


@every_grid
def test_draws_of_levels(make):
    n = make(1)._n_params
    generator = torch.Generator().manual_seed(1)
    d = at(make, *(0.4 * torch.randn(n, generator=generator)).tolist(), dtype=torch.float32).base_dist
    x = d.sample((20_000,))
    assert d.support.check(x).all()
    p = d.log_prob(d.enumerate_support())[:, 0].double().exp().numpy()
    seen = np.bincount((x[:, 0] * (len(p) - 1)).round().int().numpy(), minlength=len(p))
    check_counts(seen, p)


def check_counts(seen, p):
    """Chi-squared, rare cells together."""
    rare = p * seen.sum() < 5
    expected = np.append(p[~rare], max(1 - p[~rare].sum(), 0)) * seen.sum()
    observed = np.append(seen[~rare], seen[rare].sum())
    keep = expected > 1e-3
    assert observed[~keep].sum() <= 1
    statistic = ((observed[keep] - expected[keep]) ** 2 / expected[keep].clip(1)).sum()
    assert stats.chi2.sf(statistic, max(keep.sum() - 1, 1)) > RARE


def test_values_are_scored_as_the_nearest_level():
    d = levels.DiscretizedLogistic(1)()
    j = torch.arange(256.0)[:, None]
    torch.testing.assert_close(d.log_prob(j / 255), d.log_prob((j + 0.015) / 255), rtol=0, atol=0)
    torch.testing.assert_close(d.log_prob(j / 255), d.log_prob((j.double() / 255).float()), rtol=0, atol=0)


@pytest.mark.parametrize("count", [2, 17, 256, 65536])
def test_support_of_levels(count):
    support = Levels(count)
    grid = torch.arange(count) / (count - 1)
    assert support.check(grid).all()
    assert support.check(pv.Rescale(count - 1)(torch.arange(count))).all()
    assert not support.check(grid[:-1] + 0.3 / (count - 1)).any()
    assert not support.check(torch.tensor([-1 / (count - 1), 1 + 1 / (count - 1), math.nan, math.inf])).any()
    assert repr(support) == f"levels({count})"


def test_the_gate_says_which_levels():
    support = levels.DiscretizedLogistic(2)().support
    check_cells(np.array([[0.0, 1.0], [128 / 255, 3 / 255]]), support)
    with pytest.raises(pv.errors.DataError, match=r"row 1.*levels\(256\)"):
        check_cells(np.array([[0.0, 1.0], [0.5, 3 / 255]]), support)


def test_levels_are_learned():
    """Bits per dimension of data that repeat four levels fall towards two."""
    torch.manual_seed(0)
    x = torch.tensor([0.0, 60.0, 61.0, 255.0])[torch.randint(4, (512, 3))] / 255
    head = levels.DiscretizedLogisticMixture(3, components=5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss = -head().log_prob(x).mean() / (3 * math.log(2))
        loss.backward()
        optimizer.step()
    assert 1.9 < loss.item() < 2.6


# --- counts ---


def rate(raw):
    return math.exp(15 * math.tanh(raw / 15))


def dispersion(raw):
    return math.exp(10 * math.tanh(raw / 10))


def reference(name, raw):
    """Scipy's distribution and the probability of extra zeros."""
    if name == "Poisson":
        return stats.poisson(rate(raw[0])), 0.0
    m, r = rate(raw[0]), dispersion(raw[1])
    return stats.nbinom(r, r / (r + m)), expit(raw[2]) if len(raw) == 3 else 0.0


@exact
@pytest.mark.parametrize("name", COUNTS)
def test_counts_sum_to_one(name, dtype, tolerance):
    """Over a window, beyond which scipy knows how much there is; a double is good to 1e-9 where means are below 1e6."""
    for raw in raws(HEADS[name])[:: 1 if name == "Poisson" else 3]:
        base, gate = reference(name, raw)
        d = at(HEADS[name], *raw, dtype=dtype).base_dist
        low = max(int(base.ppf(1e-13)) - 2, 1)
        x = torch.arange(low, low + 200_000, dtype=torch.float64)
        inside = d.log_prob(x.to(dtype)[:, None]).double().exp().sum()
        zero = d.log_prob(torch.zeros(1, dtype=dtype)).double().exp().item()
        outside = (1 - gate) * (base.cdf(low - 1) - base.pmf(0) + base.sf(low + 200_000 - 1))
        assert abs(inside.item() + zero + outside - 1) < tolerance + 2e-15 * rate(raw[0]), raw


@pytest.mark.parametrize("name", COUNTS)
def test_counts_against_scipy(name, float64):
    x = np.array([0, 1, 2, 5, 17, 300, 40_000])
    for raw in raws(HEADS[name]):
        base, gate = reference(name, raw)
        with np.errstate(divide="ignore"):
            expected = np.logaddexp(np.log1p(-gate) + base.logpmf(x), np.where(x == 0, np.log(gate), -np.inf))
        if name != "Poisson" and gate > 1 - 1e-9:
            expected[1:] = -raw[2] + base.logpmf(x[1:])  # scipy's 1 - gate has rounded to 0
        if name == "ZeroInflatedNegativeBinomial" and gate > 1 - 1e-9:
            expected[0] = 0.0
        log_prob = at(HEADS[name], *raw).base_dist.log_prob(torch.from_numpy(x).double()[:, None])[:, 0]
        np.testing.assert_allclose(log_prob, expected, rtol=1e-6, atol=1e-6, err_msg=str(raw))


@pytest.mark.parametrize("name", COUNTS)
def test_float32_counts_are_as_good_as_float64(name):
    x = torch.tensor([0.0, 3.0, 250.0, 22_000.0, 23_000.0])[:, None]
    for raw in raws(HEADS[name]):
        single, double = (at(HEADS[name], *raw, dtype=t).base_dist for t in (torch.float32, torch.float64))
        torch.testing.assert_close(single.log_prob(x).double(), double.log_prob(x.double()), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("Poisson", (1.0,)),
        ("Poisson", (4.0,)),
        ("NegativeBinomial", (2.0, 0.5)),
        ("NegativeBinomial", (1.0, -2.0)),
        ("ZeroInflatedNegativeBinomial", (2.0, 0.5, -1.0)),
    ],
)
def test_draws_and_moments_of_counts(name, raw):
    base, gate = reference(name, raw)
    d = at(HEADS[name], *raw, dtype=torch.float32).base_dist
    x = d.sample((20_000,))[:, 0].int().numpy()
    p = (1 - gate) * base.pmf(np.arange(x.max() + 1))
    p[0] += gate
    check_counts(np.bincount(x), p)
    mean = (1 - gate) * base.mean()
    assert d.mean.item() == pytest.approx(mean, rel=1e-5)
    second = (1 - gate) * (base.var() + base.mean() ** 2)
    assert d.variance.item() == pytest.approx(second - mean**2, rel=1e-4)


def test_rates_are_bounded():
    """A rate of 0 would have a gradient of NaN, and poison the rows beside it."""
    head = counts.Poisson(2, context=1, net=torch.nn.Linear)
    x = torch.tensor([[0.0, 3.0], [7.0, 1.0]])
    context = torch.tensor([[-1e4], [1.0]])
    head(context).log_prob(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    means = head(torch.tensor([[-1e6], [1e6]])).mean
    assert means.min() > 3.0e-7
    assert means.max() < 3.3e6


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("bad", [-1.0, 0.5])
def test_what_is_no_count_is_refused(name, bad):
    d = HEADS[name](2)()
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor([bad, 1.0]))
    with pytest.raises(pv.errors.DataError, match="whole numbers from 0"):
        check_cells(np.array([[bad, 1.0]]), d.support)


def compositions(total, kinds):
    for bars in itertools.combinations(range(total + kinds - 1), kinds - 1):
        yield [b - a - 1 for a, b in itertools.pairwise((-1, *bars, total + kinds - 1))]


@exact
@pytest.mark.parametrize("total", [0, 1, 4, 12])
def test_multinomial_sums_to_one_for_any_total(total, dtype, tolerance):
    x = torch.tensor(list(compositions(total, 3)), dtype=dtype)
    head = counts.Multinomial(3, total=7).to(dtype)
    for raw in itertools.product(RAW, repeat=3):
        log_prob = head.at(torch.tensor(raw, dtype=dtype)).log_prob(x)
        assert log_prob.isfinite().all()
        assert abs(log_prob.double().exp().sum().item() - 1) < tolerance


def test_multinomial_against_scipy(float64):
    logits = torch.randn(5)
    p = logits.softmax(0).numpy()
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 400, (6, 5))).double()
    d = counts.Multinomial(5).at(logits)
    expected = [stats.multinomial(int(row.sum()), p / p.sum()).logpmf(row.numpy()) for row in x]
    np.testing.assert_allclose(d.log_prob(x), expected, rtol=1e-10)
    single = counts.Multinomial(5).float().at(logits.float())
    np.testing.assert_allclose(single.log_prob(x.float()), expected, rtol=1e-6)


def test_multinomial_draws():
    logits = torch.tensor([0.0, 1.0, -1.0])
    d = counts.Multinomial(3, total=4).at(logits)
    x = d.sample((20_000,))
    assert (x.sum(-1) == 4).all()
    every = torch.tensor(list(compositions(4, 3))).float()
    seen = (x[:, None] == every).all(-1).sum(0).numpy()
    check_counts(seen, d.log_prob(every).double().exp().numpy())
    torch.testing.assert_close(d.mean, 4 * logits.softmax(0))
    images = counts.Multinomial((1, 2, 2), context=3, net=small, total=9)(torch.zeros(5, 3)).sample()
    assert (images.flatten(1).sum(-1) == 9).all()


def test_multinomial_refuses_what_is_no_count():
    d = counts.Multinomial(2)()
    for bad in (-1.0, 0.5):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(torch.tensor([bad, 1.0]))


# --- ordered classes ---


@exact
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_ordinal_sums_to_one(classes, dtype, tolerance):
    head = discrete.Ordinal(1, classes=classes).to(dtype)
    k = torch.arange(classes, dtype=dtype)[:, None]
    for raw in RAW:
        for cuts in (None, -50.0, 50.0):
            with torch.no_grad():
                head.raw_cuts.fill_(cuts) if cuts else None
            log_prob = head.at(torch.tensor([raw], dtype=dtype)).log_prob(k)
            assert log_prob.isfinite().all()
            assert abs(log_prob.double().exp().sum().item() - 1) < tolerance


def test_ordinal_against_pyro(float64):
    head = discrete.Ordinal(2, classes=4)
    with torch.no_grad():
        head.raw_cuts.normal_()
    loc = torch.randn(5, 2)
    first, rest = head.raw_cuts[..., :1], torch.exp(10 * torch.tanh(head.raw_cuts[..., 1:] / 10))
    cuts = torch.cat([first, rest], -1).cumsum(-1)
    expected = pyro.distributions.OrderedLogistic(loc, cuts).to_event(1)
    x = torch.randint(4, (5, 2)).double()
    torch.testing.assert_close(head.at(loc).log_prob(x), expected.log_prob(x))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_ordinal_starts_even(classes):
    d = discrete.Ordinal(2, classes=classes)()
    torch.testing.assert_close(d.base_dist.probs, torch.full((2, classes), 1 / classes))


def test_ordinal_in_the_far_tail(float64):
    """Where a difference of sigmoids is 0: the logarithm is that of the exponentials."""
    head = discrete.Ordinal(1, classes=3)
    log_prob = head.at(torch.tensor([800.0])).log_prob(torch.arange(3.0)[:, None])
    first, second = math.log(1 / 2), math.log(2)
    expected = [first - 800, math.log(math.exp(second) - math.exp(first)) - 800, 0.0]
    np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-12, atol=1e-12)


def test_ordinal_draws_and_mode():
    head = discrete.Ordinal(1, classes=5)
    d = head.at(torch.tensor([0.7]))
    p = d.log_prob(torch.arange(5.0)[:, None]).double().exp().detach().numpy()
    check_counts(np.bincount(d.sample((20_000,))[:, 0].int().numpy(), minlength=5), p)
    assert center(d).item() == p.argmax()
    modes = [center(head.at(torch.tensor([loc]))).item() for loc in (-9.0, -0.9, 0.0, 0.9, 9.0)]
    assert modes == sorted(modes)
    assert (modes[0], modes[-1]) == (0, 4)


# --- what cannot be built ---


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (functools.partial(levels.DiscretizedLogistic, levels=1), "levels: expected an int of at least 2"),
        (functools.partial(levels.DiscretizedLogistic, levels=256.0), "levels: expected an int"),
        (functools.partial(levels.DiscretizedLogisticMixture, levels=True), "levels: expected an int"),
        (functools.partial(levels.DiscretizedLogisticMixture, components=0), "components: expected a positive int"),
        (functools.partial(levels.CategoricalLevels, levels=0), "levels: expected an int"),
        (functools.partial(counts.Multinomial, total=0), "total: expected a positive int"),
        (functools.partial(discrete.Ordinal, classes=1), "classes: expected an int of at least 2"),
    ],
)
def test_what_cannot_be_built(make, what):
    with pytest.raises(pv.ConfigError, match=what):
        make(3)
