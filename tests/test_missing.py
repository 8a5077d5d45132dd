"""Missing cells: exact evidence of what is observed, no bit from what is not, what is refused, and imputation."""

import copy
import functools
import inspect
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import pyrovae as pv
from pyrovae import families
from pyrovae.compiled import compile_step
from pyrovae.conditional import Head
from pyrovae.config import NAMES
from pyrovae.data.gate import Missing, check_cells
from pyrovae.distributions import masked
from pyrovae.distributions.masked import MaskedCells, OrMissing
from pyrovae.evaluation.imputation import cell_log_prob, conditional_log_prob, impute
from pyrovae.missing import MaskAware, Masked
from pyrovae.spec import build, describe

Z = 5.0  # standard errors
small = functools.partial(pv.MLP, hidden=(6,))
aware = functools.partial(MaskAware, net=small)
ALL = {
    n: c for n, c in vars(families).items() if inspect.isclass(c) and issubclass(c, Head) and not inspect.isabstract(c)
}
TIED = {  # no marginal of single cells
    "Concrete",
    "Dirichlet",
    "LogisticNormal",
    "OneHotCategorical",
    "PowerSpherical",
    "StraightThrough",
    "VonMisesFisher",
}
NOT_SCORED = {"Delta"}  # infinite beside its point
SCORED = [n for n in ALL if n not in TIED | NOT_SCORED]


def hide(x, share=0.3, row=None, seed=1):
    """NaN in some cells, and in a whole row."""
    y = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share, torch.nan, x)
    if row is not None:
        y[row] = torch.nan
    return y


def likelihood(name, shape=5, context=2):
    return ALL[name](shape, context, small)


def rows_of(head, n=12):
    return head(torch.randn(n, 2)).sample().detach()


# --- exact answers -----------------------------------------------------------------------------------------------


class ExactPosterior(pv.Conditional):
    """q(z | x_observed) of ``x ~ N(A z + b, noise)`` with a standard normal z."""

    def __init__(self, weight, bias, noise):
        super().__init__()
        self.weight, self.bias, self.noise = weight, bias, noise

    def forward(self, *context):
        x, *_ = context
        there = ~x.isnan()
        noise = torch.where(there[..., None] & there[..., None, :], self.noise, torch.eye(self.noise.shape[-1]))
        weight = torch.where(there[..., None], self.weight, 0.0)
        residual = torch.where(there, x - self.bias, 0.0)
        precise = torch.linalg.solve(noise, weight)
        covariance = torch.linalg.inv(torch.eye(weight.shape[-1]) + weight.mT @ precise)
        loc = (covariance @ (precise.mT @ residual[..., None]))[..., 0]
        return dist.MultivariateNormal(loc, covariance)


def linear_gaussian(make, d=5):
    """A head of a linear network whose covariance does not depend on z, masked, with the exact posterior as guide."""
    head = make(d, context=2, net=nn.Linear)
    with torch.no_grad():
        head.network.weight[d:] = 0
    base = head(torch.zeros(2))
    noise = base.covariance_matrix if base.event_dim and hasattr(base, "covariance_matrix") else base.variance.diag()
    weight, bias, noise = head.network.weight[:d].detach(), head.network.bias[:d].detach(), noise.detach()
    vae = pv.VAE(pv.StandardNormal(2), Masked(head), ExactPosterior(weight, bias, noise))
    return vae, bias, weight @ weight.T + noise


def log_mvn(x, loc, covariance):
    r = x - loc
    maha = r @ torch.linalg.solve(covariance, r)
    return -0.5 * (maha + torch.linalg.slogdet(covariance)[1] + len(r) * math.log(2 * math.pi))


GAUSSIAN = {
    "Normal": pv.Normal,
    "Normal, shared": functools.partial(pv.Normal, scale=0.7),
    "LowRankNormal": functools.partial(pv.LowRankNormal, rank=2),
    "FullNormal": pv.FullNormal,
}
every_gaussian = pytest.mark.parametrize("make", list(GAUSSIAN.values()), ids=list(GAUSSIAN))


@every_gaussian
def test_every_draw_gives_the_evidence_of_the_observed_block(make, float64):
    vae, loc, covariance = linear_gaussian(make)
    x = hide(torch.randn(20, 5), row=3)
    expected = torch.stack([log_mvn(r[o], loc[o], covariance[o][:, o]) for r in x for o in [~r.isnan()]])
    for seed in range(3):
        torch.testing.assert_close(pv.elbo_terms(vae, x, seed=seed).elbo, expected, rtol=0, atol=1e-10)
    assert expected[3] == 0
    torch.testing.assert_close(pv.log_marginal(vae, x, k=7).values, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3)])
@pytest.mark.parametrize("name", ["LowRankNormal", "FullNormal"])
def test_joint_events_of_any_shape(name, shape, float64):
    head = likelihood(name, shape)
    d = head(torch.randn(4, 2))
    x = hide(d.sample().detach(), row=2)
    flat = d.base
    expected = torch.stack(
        [
            log_mvn(r.flatten()[o], loc[o], c[o][:, o])
            for r, loc, c in zip(x, flat.loc, flat.covariance_matrix, strict=True)
            for o in [~r.flatten().isnan()]
        ]
    )
    torch.testing.assert_close(MaskedCells(d).log_prob(x), expected, rtol=0, atol=1e-10)
    filled, (mean, variance) = MaskedCells(d).complete(x), MaskedCells(d).moments(x)
    for given in (filled, mean):
        torch.testing.assert_close(given[~x.isnan()], x[~x.isnan()], rtol=0, atol=0)
    assert (variance[x.isnan()] > 0).all()


def test_multinomial_given_the_sum_of_the_observed(float64):
    logits = torch.tensor([0.3, -1.0, 0.7, 0.1])
    d = families.Multinomial(4).at(logits)
    x = torch.tensor([2.0, torch.nan, 3.0, torch.nan])
    expected = dist.Multinomial(5, logits=logits[[0, 2]]).log_prob(x[[0, 2]])
    torch.testing.assert_close(MaskedCells(d).log_prob(x), expected)
    with pytest.raises(pv.ConfigError, match="nothing to draw"):
        MaskedCells(d).complete(x)


def test_optimal_scale_is_that_of_the_observed_cells(float64):
    head = pv.Normal(3, scale=pv.OptimalScale)
    x = hide(torch.randn(50, 3), 0.4)
    d = Masked(head)()
    seen = x[~x.isnan()]
    expected = dist.Normal(0.0, seen.square().mean().sqrt()).log_prob(seen).sum()
    torch.testing.assert_close(d.log_prob(x).sum(), expected)
    torch.testing.assert_close(head.scale_source.variance, seen.square().mean())
    assert d.log_prob(torch.full((2, 3), torch.nan)).tolist() == [0, 0]


# --- every likelihood --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("shape", [5, (1, 2, 3)], ids=["vector", "image"])
def test_every_likelihood(name, shape):
    head = likelihood(name, shape)
    x = hide(rows_of(head), row=4)
    d = Masked(head)(torch.randn(3, 12, 2))
    log_prob = d.log_prob(x)
    assert log_prob.shape == (3, 12)
    assert (log_prob[:, 4] == 0).all()
    log_prob.sum().backward()
    for parameter, p in head.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter
    assert log_prob.isfinite().all()
    assert d.sample().shape == (3, 12, *((5,) if shape == 5 else shape))
    assert d.expand((2, 3, 12)).batch_shape == (2, 3, 12)
    whole = rows_of(head)
    torch.testing.assert_close(d.log_prob(whole), d.base.log_prob(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(SCORED) - {"FullNormal", "LowRankNormal", "Multinomial"}))
def test_independent_cells_are_left_out(name, float64):
    head = likelihood(name).eval()
    z = torch.randn(12, 2)
    x = hide(rows_of(head))
    d = head(z)
    if isinstance(d, dist.Independent):
        filled = torch.where(x.isnan(), rows_of(head), x)
        expected = torch.where(x.isnan(), 0.0, d.base_dist.log_prob(filled)).sum(-1)
        torch.testing.assert_close(MaskedCells(d).log_prob(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(TIED))
def test_cells_that_are_tied_together(name):
    head = likelihood(name, (2, 3) if name in ("OneHotCategorical", "Concrete", "StraightThrough") else 5)
    with pytest.raises(pv.ConfigError, match="ties the cells"):
        Masked(head)(torch.randn(12, 2)).log_prob(hide(rows_of(head)))


def test_every_family_is_looked_at():
    assert set(ALL) == set(SCORED) | TIED | NOT_SCORED


# --- what is missing changes nothing -----------------------------------------------------------------------------

_placeholder = masked.placeholder
OTHER = {
    constraints.real: -999.0,
    constraints.boolean: 1.0,
    constraints.unit_interval: 0.125,
    constraints.positive: 1e30,
    constraints.nonnegative_integer: 1e6,
}


def another(support):
    """Some other legal number."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, constraints.integer_interval):
        return support.upper_bound
    other = OTHER.get(support)
    if other is None:
        other = 0.6 * (_placeholder(support) == 0) + 0.4
        other = other if support.check(torch.as_tensor(other)) else 1.0
    assert other != _placeholder(support)
    return other


def loss_and_gradients(vae, x):
    torch.manual_seed(3)
    vae.zero_grad()
    loss = pv.ELBO()(vae, x)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in vae.parameters())]


def bitwise(a, b):
    return all(torch.equal(s, t) and s.isfinite().all() for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("name", SCORED)
def test_the_placeholder_changes_no_bit(name, monkeypatch):
    head = likelihood(name)
    vae = pv.VAE(pv.StandardNormal(2), Masked(head), pv.Normal(2, context=5, net=aware))
    x = hide(rows_of(head), row=4)
    first = loss_and_gradients(vae, x)
    used = []
    monkeypatch.setattr(masked, "placeholder", lambda support: used.append(another(support)) or used[-1])
    assert bitwise(first, loss_and_gradients(vae, x))
    assert used or name in ("FullNormal", "LowRankNormal", "Multinomial")


@pytest.mark.parametrize("name", SCORED)
def test_what_lies_under_the_mask_changes_no_bit(name):
    """A mask laid over 0, 1e30 or -999, and NaN of any payload."""
    head = likelihood(name)
    vae = pv.VAE(pv.StandardNormal(2), Masked(head), pv.Normal(2, context=5, net=aware))
    whole = rows_of(head)
    missing = hide(whole, row=4).isnan()
    nan = torch.from_numpy(np.array([0x7FC00001, 0xFFC00000], np.uint32).view(np.float32))
    results = []
    for content, mark in [(0.0, torch.tensor(torch.nan)), (1e30, nan[0]), (-999.0, nan[1])]:
        x = torch.where(missing, content, whole)
        results.append(loss_and_gradients(vae, torch.where(missing, mark, x)))
    assert bitwise(results[0], results[1])
    assert bitwise(results[0], results[2])


@pytest.mark.parametrize("support", [constraints.half_open_interval(2.0, 4.0), constraints.less_than(-3.0), *OTHER])
@pytest.mark.parametrize("wrap", [0, 2])
def test_placeholders_are_legal(support, wrap):
    given = constraints.independent(support, wrap) if wrap else support
    assert support.check(torch.as_tensor(masked.placeholder(given)))


def test_supports_with_missing_cells():
    support = OrMissing(constraints.independent(constraints.positive, 1))
    x = torch.tensor([[1.0, torch.nan], [torch.nan, -1.0]])
    assert support.check(x).tolist() == [True, False]
    d = MaskedCells(dist.Exponential(torch.ones(2)).to_event(1), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(x)


# --- networks ----------------------------------------------------------------------------------------------------


def test_mask_aware_network(float64):
    network = MaskAware(3, 4, net=nn.Linear)
    x = torch.tensor([[1.0, torch.nan, 3.0]])
    expected = torch.tensor([[1.0, 0.0, 3.0, 1.0, 0.0, 1.0]]) @ network.network.weight.T + network.network.bias
    torch.testing.assert_close(network(x), expected)


def test_mask_aware_network_of_images():
    network = MaskAware((2, 8, 8), 4, net=functools.partial(pv.ConvNet, channels=(3,)))
    assert network.network.in_shape == (4, 8, 8)
    assert network(torch.full((5, 2, 8, 8), torch.nan)).isfinite().all()


NAMES_HERE = NAMES | {"Masked": Masked, "MaskAware": MaskAware}


def test_description_builds_the_model_again():
    q = pv.Normal(2, context=5, net=functools.partial(MaskAware, net=functools.partial(pv.GatedMLP, hidden=(7,))))
    vae = pv.VAE(pv.StandardNormal(2), Masked(pv.Bernoulli(5, context=2)), q)
    table = describe(vae)
    assert table["likelihood"] == {"type": "Masked", "likelihood": {"type": "Bernoulli", "shape": 5, "context": 2}}
    assert table["posterior"]["net"] == {"partial": "MaskAware", "net": {"partial": "GatedMLP", "hidden": [7]}}
    again = build(table, NAMES_HERE)
    assert describe(again) == table
    again.load_state_dict(vae.state_dict())


def test_a_class_is_not_a_likelihood():
    with pytest.raises(pv.ConfigError, match="built"):
        Masked(pv.Normal)


# --- models ------------------------------------------------------------------------------------------------------


def model(likelihood=None, net=aware, d=5):
    return pv.VAE(pv.StandardNormal(2), likelihood or Masked(pv.Normal(d, 2, small)), pv.Normal(2, d, net))


@pytest.mark.parametrize("objective", [pv.ELBO(), pv.IWAE(k=3)], ids=["elbo", "iwae"])
def test_fit_and_use(objective):
    vae, x = model(), hide(torch.randn(40, 5), row=7)
    before = x.clone()
    history = pv.fit(vae, x, objective=objective, validation=x[:9], epochs=3, batch_size=20)
    assert torch.tensor(history["loss"]).isfinite().all()
    assert torch.equal(x.nan_to_num(99), before.nan_to_num(99))
    assert vae.log_prob(x, k=20).isfinite().all()
    assert vae.reconstruct(x).isfinite().all()
    assert vae.sample(3).isfinite().all()
    assert vae.encode(x).mean.isfinite().all()
    whole_row = pv.elbo_terms(vae, x)
    assert whole_row.reconstruction[7] == 0


@pytest.mark.parametrize("name", ["Bernoulli", "Normal", "LowRankNormal", "NegativeBinomial", "Gamma", "VonMises"])
def test_captured_steps_are_the_eager_ones(name):
    head = likelihood(name)
    vae = pv.VAE(pv.StandardNormal(2), Masked(head), pv.Normal(2, 5, aware))
    x = rows_of(head, 24)
    weights = {}
    for level in ("eager", "replay"):
        twin = copy.deepcopy(vae)
        step = compile_step(twin.model, twin.guide, pv.ELBO(), torch.optim.SGD(twin.parameters(), 1e-3), level=level)
        torch.manual_seed(1)
        for seed in range(3):
            step(hide(x, seed=seed, row=seed))
        assert step.level == level
        weights[level] = [p.detach() for p in twin.parameters()]
    for a, b in zip(*weights.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# --- the gate ----------------------------------------------------------------------------------------------------


def refused(*words):
    return pytest.raises(pv.DataError, match=".*".join(words))


def test_missing_cells_without_a_mask():
    x = hide(torch.randn(20, 5))
    with refused("missing value", r"Masked\(...\)", "net=MaskAware"):
        pv.fit(model(pv.Normal(5, 2, small)), x)


def test_a_posterior_that_reads_nan():
    x = torch.randn(20, 5)
    x[13, 2] = torch.nan  # not in the first batch perhaps
    with refused("row 13, column 2", "posterior is not finite", "net=MaskAware"):
        pv.fit(model(net=small), x, batch_size=5)


def test_columns_and_tables_without_a_value():
    x = hide(torch.randn(20, 5))
    x[:, 3] = torch.nan
    with refused("column 3 is missing", "every row", "leave it out"):
        pv.fit(model(), x, epochs=1)
    with refused("2 columns are missing", 'first column "c"'):
        y = x.numpy().copy()
        y[:, 2] = np.nan
        check_cells(y, columns=list("abcde"), missing=Missing.CELLS)
    check_cells(x, missing=Missing.COLUMNS)
    with refused("every cell is missing"):
        check_cells(torch.full((3, 2), torch.nan), missing=Missing.COLUMNS)


def test_infinities_are_never_missing():
    x = hide(torch.randn(20, 5))
    x[11, 4] = -math.inf
    with refused("infinite value", "row 11, column 4", "not missing"):
        pv.fit(model(), x)


def test_support_of_the_observed_cells():
    x = hide((torch.rand(20, 5) > 0.5).float())
    vae = model(Masked(pv.Bernoulli(5, 2, small)))
    pv.fit(vae, x, epochs=1)
    x[5] = torch.tensor([torch.nan, 0.5, 1.0, 0.0, 1.0])
    with refused("grey values", "row 5, column 1"):
        pv.fit(vae, x, epochs=1)
    pv.fit(vae, x, preprocess=pv.Binarize(), epochs=1)


def test_whole_rows_may_be_missing():
    x = torch.randn(20, 5)
    x[3] = torch.nan
    assert math.isfinite(pv.fit(model(), x, epochs=1)["loss"][0])


# --- preprocessing -----------------------------------------------------------------------------------------------


def test_standardize_skips_missing_cells():
    x = 100 + 5 * np.random.default_rng(0).standard_normal((9000, 3))
    x[:5000, 1] = np.nan  # more than is read at once
    x[:, 2] = 0.1
    x[::3, :2] = np.nan
    step = pv.Standardize().fit(x)
    np.testing.assert_allclose(step.mean, np.nanmean(x, 0), rtol=1e-12)
    np.testing.assert_allclose(step.scale[:2], np.nanstd(x[:, :2], axis=0), rtol=1e-10)
    assert step.scale[2] == 1
    seen = step(torch.tensor(x))
    assert torch.equal(seen.isnan(), torch.tensor(np.isnan(x)))
    torch.testing.assert_close(step.inverse(seen), torch.tensor(x).float(), equal_nan=True)
    x[:, 1] = np.nan
    with refused("column 1 is missing"):
        pv.Standardize().fit(x)


@pytest.mark.parametrize("step", [pv.Rescale(2.0), pv.Threshold(), pv.Binarize(), pv.Identity()])
def test_other_steps_keep_what_is_missing(step):
    x = torch.rand(50, 4)
    y = hide(x)
    with_all, with_some = (step(t, torch.Generator().manual_seed(5)) for t in (x, y))
    assert torch.equal(with_some.isnan(), y.isnan())
    assert torch.equal(with_some[~y.isnan()], with_all[~y.isnan()])  # as many random numbers as without


# --- imputation --------------------------------------------------------------------------------------------------


def conditional(x, loc, covariance):
    """Mean and covariance of the missing cells of a row given the observed ones."""
    m, o = x.isnan(), ~x.isnan()
    gain = torch.linalg.solve(covariance[o][:, o], covariance[o][:, m]).T
    return loc[m] + gain @ (x[o] - loc[o]), covariance[m][:, m] - gain @ covariance[o][:, m]


@every_gaussian
@pytest.mark.parametrize("exact", [True, False], ids=["exact guide", "prior as guide"])
def test_imputation_is_the_exact_conditional(make, exact, float64):
    vae, loc, covariance = linear_gaussian(make)
    if not exact:
        vae = pv.VAE(vae.prior, vae.likelihood, Wide())
    x = hide(torch.randn(6, 5), 0.4, row=2, seed=4)
    n, k = 3000, 4000
    # several passes over the draws of every row
    filled = impute(vae, x, draws=n, k=k, chunk_size=1500)
    assert filled.draws.shape == (n, 6, 5)
    observed = ~x.isnan()
    assert torch.equal(filled.draws[:, observed], x[observed].expand(n, -1))
    assert torch.equal(filled.mean[observed], x[observed])
    assert (filled.std[observed] == 0).all()
    size = filled.effective_sample_size
    if exact:
        torch.testing.assert_close(size, torch.full_like(size, k))
    for i, row in enumerate(x):
        mean, cov = conditional(row, loc, covariance)
        sd, hole = cov.diagonal().sqrt(), row.isnan()
        # the weighted points, and the completions picked among them
        by_points, by_draws = sd / size[i].sqrt(), sd * (1 / n + 1 / size[i]).sqrt()
        assert ((filled.mean[i, hole] - mean).abs() < Z * by_points).all()
        assert ((filled.draws[:, i, hole].mean(0) - mean).abs() < Z * by_draws).all()
        relative = Z * math.sqrt(2) * (1 / size[i]).sqrt()
        assert ((filled.std[i, hole] / sd - 1).abs() < relative).all()
        assert ((filled.draws[:, i, hole].std(0) / sd - 1).abs() < relative + Z * math.sqrt(1 / n)).all()
        if hole.sum() > 1:
            assert ((filled.draws[:, i, hole].T.cov() - cov).abs() < 0.3 * sd[:, None] * sd).all()


class Wide(pv.Conditional):
    """A guide that has not learned anything."""

    def forward(self, *context):
        return dist.Normal(torch.zeros(len(context[0]), 2), 1.2).to_event(1)


@every_gaussian
def test_log_probability_of_hidden_cells(make, float64):
    vae, loc, covariance = linear_gaussian(make)
    truth = torch.randn(6, 5)
    x = hide(truth, 0.4, row=2, seed=4)
    truth[0, x[0].isnan().nonzero()[0]] = torch.nan  # not known either
    k = 40_000
    received = conditional_log_prob(vae, x, truth, k=k)
    full = torch.where(x.isnan(), truth, x)
    rows = [
        log_mvn(f[a], loc[a], covariance[a][:, a]) - log_mvn(r[o], loc[o], covariance[o][:, o])
        for f, r in zip(full, x, strict=True)
        for a, o in [(~f.isnan(), ~r.isnan())]
    ]
    torch.testing.assert_close(received, torch.stack(rows), rtol=0, atol=0.15)
    if make in (pv.LowRankNormal, pv.FullNormal) or "rank" in getattr(make, "keywords", {}):
        with pytest.raises(pv.ConfigError, match="ties the cells"):
            cell_log_prob(vae, x, truth, k=2)
        return
    by_cell = cell_log_prob(vae, x, truth, k=k)
    assert torch.equal(by_cell.isnan(), ~(x.isnan() & ~truth.isnan()))
    for i, row in enumerate(x):
        mean, cov = conditional(row, loc, covariance)
        hole = row.isnan()
        expected = dist.Normal(mean, cov.diagonal().sqrt(), validate_args=False).log_prob(truth[i, hole])
        torch.testing.assert_close(by_cell[i, hole], expected, rtol=0, atol=0.05, equal_nan=True)


def test_nothing_hidden_and_nothing_missing(float64):
    vae, _, _ = linear_gaussian(pv.Normal)
    x = torch.randn(4, 5)
    assert conditional_log_prob(vae, x, x, k=3).abs().max() < 1e-12
    filled = impute(vae, x, draws=2, k=3)
    assert torch.equal(filled.draws, x.expand(2, 4, 5))
    assert (filled.std == 0).all()


def test_imputation_of_classes_and_images():
    vae = model(Masked(pv.Categorical(5, 2, small, classes=3)))
    x = hide(torch.randint(3, (7, 5)).float())
    filled = impute(vae, x, draws=200, k=30)
    assert set(filled.draws.unique().tolist()) == {0.0, 1.0, 2.0}
    assert filled.mean[x.isnan()].isnan().all()
    assert torch.equal(filled.mode[~x.isnan()], x[~x.isnan()])
    assert "200 completions of 7 rows" in str(filled)
    images = pv.VAE(pv.StandardNormal(2), Masked(pv.Bernoulli((1, 4, 4), 2, small)), pv.Normal(2, (1, 4, 4), aware))
    x = hide((torch.rand(6, 1, 4, 4) > 0.5).double())
    filled = impute(images, x.numpy(), draws=3, k=8, chunk_size=10)
    assert filled.draws.dtype == torch.float64
    assert torch.equal(filled.draws[1][~x.isnan()], x[~x.isnan()])
    assert filled.mean.isfinite().all()


def test_imputation_leaves_noise_and_mode_alone():
    vae, x = model(), hide(torch.randn(6, 5))
    vae.train()
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    first = impute(vae, x, draws=2, k=5)
    assert torch.equal(torch.rand(3), expected)
    assert vae.training
    assert torch.equal(first.draws, impute(vae, x, draws=2, k=5).draws)
    assert not torch.equal(first.draws, impute(vae, x, draws=2, k=5, seed=1).draws)


def test_imputation_refuses():
    x = hide(torch.randn(6, 5))
    with pytest.raises(pv.ConfigError, match=r"Masked\(...\)"):
        impute(model(pv.Normal(5, 2, small)), x.nan_to_num(0), k=2)
    with pytest.raises(pv.ConfigError, match="draws: expected an int from 1"):
        impute(model(), x, draws=0)
    with pytest.raises(pv.DataError, match="truth"):
        conditional_log_prob(model(), x, x[:3])
