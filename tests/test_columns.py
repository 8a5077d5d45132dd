"""Tables with one likelihood per column: densities in the units of the data, DataFrames and files there and back."""

import functools
import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import pyrovae as pv
from pyrovae import families
from pyrovae.columns import Column, ColumnAware, Columns
from pyrovae.compiled import compile_step
from pyrovae.config import NAMES
from pyrovae.distributions.columns import ColumnWise
from pyrovae.evaluation.imputation import cell_log_prob, impute
from pyrovae.spec import build, describe

small = functools.partial(pv.MLP, hidden=(6,))
NAMES_HERE = NAMES | {c.__name__: c for c in (Column, Columns, ColumnAware)}
TABLE = [
    Column("age", pv.Normal, shift=40.0, scale=16.0),
    Column("visits", families.NegativeBinomial),
    Column("grade", functools.partial(families.Ordinal, classes=5)),
    Column("income", families.LogNormal, scale=2048.0),
    Column("sex", pv.Bernoulli, categories=["f", "m"]),
    Column("city", functools.partial(pv.Categorical, classes=3), categories=["Bonn", "Köln", "Ulm"]),
    Column("wind", families.VonMises, scale=180 / math.pi),
    Column("height", pv.Normal, shift=170.0, scale=8.0),
    Column("share", families.Beta),
]
KINDS = ["real", "count", "ordinal", "positive", "binary", "categorical", "angle", "real", "fraction"]


def frame(n=300, seed=0):
    """A table of all kinds, with missing cells."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(n)
    grade = np.clip(np.round(2 * z + 3 + rng.standard_normal(n)), 1, 5)
    df = pd.DataFrame(
        {
            "age": 40 + 16 * rng.standard_normal(n),
            "visits": rng.poisson(np.exp(2.5 + z)).astype(float),
            "grade": grade,
            "income": 2000 * np.exp(0.7 * z + 0.5 * rng.standard_normal(n)),
            "member": pd.array(rng.random(n) < 0.4, dtype="boolean"),
            "city": rng.choice(["Bonn", "Köln", "Ulm"], n),
            "size": pd.Categorical.from_codes(rng.integers(0, 4, n), list("SMLX"), ordered=True),
            "sex": rng.choice(["f", "m"], n),
            "wind": rng.uniform(-math.pi, math.pi, n),
            "balance": rng.integers(-500, 500, n),
        }
    )
    for i, name in enumerate(df.columns[:-1]):
        df.loc[rng.random(n) < 0.1 + 0.01 * i, name] = None
    return df


WIND = {"wind": families.VonMises}


def vae_of(likelihood, latent=2):
    return pv.VAE(
        pv.StandardNormal(latent),
        likelihood,
        pv.Normal(latent, context=likelihood.shape, net=likelihood.encoder(small)),
    )


def rows_of(likelihood, n=20):
    return likelihood(torch.randn(n, 2)).sample()


# --- densities ---------------------------------------------------------------------------------------------------


def test_the_sum_of_the_columns_densities(float64):
    """Against torch's own distributions, written out column by column."""
    columns = [TABLE[i] for i in (5, 0, 4, 3, 7)]  # city, age, sex, income, height
    p = Columns(columns, context=2, net=nn.Linear)
    z = torch.randn(20, 2)
    x = rows_of(p)
    out = p.network(z)  # categorical, then both normals, then Bernoulli, then log-normal
    bounded = families.LogNormal(1).at(out[:, 8:]).base_dist
    scale = torch.exp(10 * torch.tanh(out[:, 5:7] / 10))
    expected = torch.stack(
        [
            dist.Categorical(logits=out[:, :3]).log_prob(x[:, 0]),
            dist.Normal(40 + 16 * out[:, 3], 16 * scale[:, 0]).log_prob(x[:, 1]),
            dist.Bernoulli(logits=out[:, 7]).log_prob(x[:, 2]),
            dist.LogNormal(bounded.loc[:, 0] + math.log(2048), bounded.scale[:, 0]).log_prob(x[:, 3]),
            dist.Normal(170 + 8 * out[:, 4], 8 * scale[:, 1]).log_prob(x[:, 4]),
        ],
        -1,
    )
    d = p(z)
    torch.testing.assert_close(d.cell_log_prob(x), expected)
    torch.testing.assert_close(d.log_prob(x), expected.sum(-1))
    torch.testing.assert_close(d.base.log_prob(x), expected.sum(-1))
    x[torch.rand(x.shape) < 0.3] = torch.nan
    x[3] = torch.nan
    torch.testing.assert_close(d.log_prob(x), torch.where(x.isnan(), 0.0, expected).sum(-1))
    assert d.log_prob(x)[3] == 0


@pytest.mark.parametrize(("column", "factor"), [("age", 0.25), ("income", 128.0), ("height", 1024.0), ("wind", 2.0)])
def test_units_shift_the_density(column, factor):
    """In another unit, by a power of two, log p(x) falls by the log of the factor, exactly but for one rounding."""
    torch.manual_seed(1)
    first = Columns(TABLE, context=2, net=small).double()
    changed = [
        Column(c.name, c.likelihood, factor * c.shift, factor * c.scale, c.categories) if c.name == column else c
        for c in TABLE
    ]
    second = Columns(changed, context=2, net=small).double()
    second.load_state_dict(first.state_dict())
    z, x = torch.randn(20, 2).double(), rows_of(first.float()).double()
    first, at = first.double(), [c.name for c in TABLE].index(column)
    y = x.clone()
    y[:, at] *= factor
    a, b = first(z).cell_log_prob(x), second(z).cell_log_prob(y)
    torch.testing.assert_close(b[:, at], a[:, at] - math.log(factor), rtol=0, atol=1e-6)
    others = torch.arange(len(TABLE)) != at
    assert torch.equal(b[:, others], a[:, others])
    mean, like = first(z).mean, second(z).mean
    torch.testing.assert_close(like[:, at], factor * mean[:, at], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [(), (4,), (3, 4)], ids=str)
def test_shapes(batch):
    p = Columns(TABLE, context=2, net=small)
    d = p(torch.randn(*batch, 2))
    assert d.batch_shape == batch
    assert d.event_shape == (9,)
    x = d.sample()
    assert x.shape == (*batch, 9)
    assert d.log_prob(x).shape == batch
    assert d.log_prob(x).isfinite().all()
    assert d.expand((2, *batch)).sample().shape == (2, *batch, 9)
    assert d.support.check(x).all()
    nothing = d.mean.isnan().reshape(-1, 9).any(0).tolist()
    assert nothing == [kind in ("ordinal", "categorical") for kind in KINDS]
    assert d.mode.isfinite().all()
    assert Columns(TABLE)().batch_shape == ()


def test_every_parameter_gets_a_gradient():
    for p in (Columns(TABLE, context=2, net=small), Columns(TABLE)):
        p(torch.randn(30, 2)).log_prob(rows_of(Columns(TABLE, context=2), 30)).sum().backward()
        for name, parameter in p.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_equal_likelihoods_are_one_head():
    p = Columns(TABLE, context=2)
    assert [len(places) for places in p.groups] == [2, 1, 1, 1, 1, 1, 1, 1]
    assert p.kinds == KINDS
    shared = functools.partial(pv.Normal, scale=pv.SharedScale)
    assert len(list(Columns({"a": shared, "b": shared})().base.parts)) == 1


def test_column_wise_without_missing_cells(float64):
    parts = [dist.Normal(torch.zeros(2), 1.0).to_event(1)]
    support = constraints.independent(constraints.real, 1)
    d = ColumnWise(parts, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), support)
    assert d.variance.tolist() == [9.0, 16.0]
    assert d.mean.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor([torch.nan, 0.0]))


# --- the network that reads rows ---------------------------------------------------------------------------------


def test_what_the_network_reads(float64):
    names = ["age", "visits", "grade", "income", "sex", "city", "wind"]
    chosen = {c.name: c for c in TABLE}
    columns = [
        Column("age", pv.Normal, 40.0, 10.0),
        *(chosen[n] for n in names[1:-1]),
        Column("wind", families.VonMises),
    ]
    network = ColumnAware(9, 3, columns=columns, net=nn.Linear)
    network.network = nn.Identity()
    x = torch.tensor([[50.0, math.e - 1, 4.0, 2048 * math.e, 0.0, 2.0, math.pi / 2, 7.0, 8.0]])
    expected = [1.0] * 7 + [7.0, 8.0] + [1.0, 1.0, 1.0, 1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    torch.testing.assert_close(network(x)[0], torch.tensor(expected))
    x[0, :7] = torch.nan
    torch.testing.assert_close(network(x)[0], torch.tensor([0.0] * 7 + [7.0, 8.0] + [0.0] * 10))


def test_the_network_is_as_wide_as_what_it_reads():
    p = Columns(TABLE, context=2)
    network = p.encoder(small)(9, 4)
    assert network.network.in_shape == 9 + 2 + 1 + 1 + 1 + 1 + 3 + 2 + 1
    assert network(rows_of(p)).shape == (20, 4)
    with pytest.raises(pv.ConfigError, match="in_shape"):
        p.encoder()(8, 4)


# --- models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    df = frame()
    p = Columns.infer(df, context=2, net=small, overrides=WIND)
    vae = vae_of(p)
    history = pv.fit(vae, p.to_array(df), epochs=3, batch_size=100)
    return df, vae, history


def test_three_epochs(fitted):
    df, vae, history = fitted
    assert torch.tensor(history["loss"]).isfinite().all()
    x = vae.likelihood.to_array(df)
    assert vae.log_prob(x[:20], k=10).isfinite().all()
    assert vae.reconstruct(x[:20]).isfinite().all()
    drawn = vae.likelihood.to_frame(vae.sample(50))
    assert list(drawn) == list(df)
    assert drawn.notna().all().all()
    assert set(drawn["city"]) <= {"Bonn", "Köln", "Ulm"}
    assert (drawn["income"] > 0).all()
    np.testing.assert_array_equal(vae.likelihood.to_array(drawn).shape, (50, 10))


def test_imputation_of_a_table(fitted):
    df, vae, _ = fitted
    x = vae.likelihood.to_array(df)[:40]
    filled = impute(vae, x, draws=50, k=60)
    there = ~np.isnan(x)
    for draw in filled.draws[:3]:
        completed = vae.likelihood.to_frame(draw)
        assert completed.notna().all().all()
        np.testing.assert_array_equal(vae.likelihood.to_array(completed)[there], x[there])
    kinds = np.array(vae.likelihood.kinds)
    without_mean = filled.mean.isnan().any(0).numpy()
    assert set(kinds[without_mean]) == {"ordinal", "categorical", "angle"}
    truth = np.where(there, x, vae.likelihood.to_array(vae.likelihood.to_frame(filled.mode)))
    by_cell = cell_log_prob(vae, x, truth, k=60)
    assert torch.equal(by_cell.isnan(), torch.tensor(there))
    assert by_cell[torch.tensor(~there)].isfinite().all()


def test_captured_steps_are_the_eager_ones():
    df = frame(64)
    p = Columns.infer(df, context=2, net=small, overrides=WIND)
    x = torch.tensor(p.to_array(df)).float()
    results = []
    for level in ("eager", "replay"):
        torch.manual_seed(2)
        vae = vae_of(Columns(p.columns, 2, small))
        step = compile_step(vae.model, vae.guide, pv.ELBO(), torch.optim.SGD(vae.parameters(), 1e-3), level=level)
        losses = torch.stack([step(x[i::4]) for i in range(4)])
        assert step.level == level
        results.append(losses)
    torch.testing.assert_close(*results)


def test_description_builds_the_model_again(fitted):
    df, vae, _ = fitted
    table = describe(vae)
    columns = {c["name"]: c for c in table["likelihood"]["columns"]}
    assert columns["city"]["likelihood"] == {"partial": "Categorical", "classes": 3}
    assert columns["city"]["categories"] == ["Bonn", "Köln", "Ulm"]
    assert columns["wind"]["likelihood"] == {"partial": "VonMises"}
    assert table["posterior"]["net"]["columns"] == "$likelihood"
    again = build(table, NAMES_HERE)
    assert describe(again) == table
    again.load_state_dict(vae.state_dict())
    x = vae.likelihood.to_array(df)[:20]
    torch.testing.assert_close(again.eval().log_prob(x, k=5), vae.log_prob(x, k=5), rtol=0, atol=0)
    assert str(again.likelihood) == str(vae.likelihood)
    assert len(list(vae.posterior.parameters())) == 4  # the likelihood's are not among them


def test_a_run_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.config.NAMES", NAMES_HERE)
    df = frame(60)
    p = Columns.infer(df, context=2, net=small, overrides=WIND)
    vae, x = vae_of(p), p.to_array(df)
    pv.fit(vae, x, epochs=1, directory=tmp_path / "run")
    again = pv.load(tmp_path / "run").model
    torch.testing.assert_close(again.log_prob(x, k=3), vae.eval().log_prob(x, k=3), rtol=0, atol=0)


# --- DataFrames --------------------------------------------------------------------------------------------------


def test_kinds_of_a_table():
    p = Columns.infer(frame(), overrides=WIND)
    assert dict(zip([c.name for c in p.columns], p.kinds, strict=True)) == {
        "age": "real",
        "visits": "count",
        "grade": "ordinal",
        "income": "positive",
        "member": "binary",
        "city": "categorical",
        "size": "ordinal",
        "sex": "binary",
        "wind": "angle",
        "balance": "real",
    }
    by_name = {c.name: c for c in p.columns}
    assert by_name["grade"].categories == [1, 2, 3, 4, 5]
    assert by_name["size"].categories == list("SMLX")
    assert by_name["member"].categories == [False, True]
    df = frame()
    assert by_name["age"].shift == pytest.approx(df["age"].mean(), rel=1e-5)
    assert by_name["age"].scale == pytest.approx(df["age"].std(ddof=0), rel=1e-5)
    assert by_name["income"].scale == pytest.approx(math.exp(np.log(df["income"]).mean()), rel=1e-5)
    assert by_name["city"].missing == pytest.approx(df["city"].isna().mean(), abs=1e-4)
    lines = str(p).splitlines()
    assert len(lines) == 10
    assert lines[5].startswith("city     categorical  Categorical(classes=3), [Bonn, Köln, Ulm], ")
    assert lines[5].endswith("% missing")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, -1.0, 2.0], "real"),
        ([0.0, 0.5, 1.5], "real"),
        ([1.5, 2.5], "real"),
        (list(range(1990, 2021)), "real"),  # whole numbers narrower than any Poisson
        ([0, 1, 3, 2, 5, 40, 17, 9, 22, 11, 13, 14], "count"),
        ([-3, 1, 3, 2, 5, 40, 17, 9, 22, 11, 13, 14], "real"),
        ([1.5, 1.7, 1.9, 2.0, 80.5], "positive"),
        ([1, 2, 2, 1], "binary"),
        ([1, 2, None, 3], "ordinal"),
        ([True, None, False], "binary"),
        (["a", "b", None], "binary"),
        (["a", "b", "c"], "categorical"),
        (pd.Categorical(["x", "y"], ["x", "y", "z"]), "categorical"),
        (pd.cut([0.1, 0.5, 0.9], 3), "ordinal"),
        (pd.array([1, None, 0], dtype="Int64"), "binary"),
    ],
)
def test_guesses_and_round_trips(values, kind):
    df = pd.DataFrame({"a": values})
    p = Columns.infer(df)
    assert p.kinds == [kind]
    x = p.to_array(df)
    np.testing.assert_array_equal(np.isnan(x[:, 0]), df["a"].isna())
    back = p.to_frame(x)
    np.testing.assert_array_equal(p.to_array(back), x)
    if not isinstance(df["a"].dtype, pd.CategoricalDtype):
        assert [a if pd.notna(a) else None for a in back["a"]] == [a if pd.notna(a) else None for a in df["a"]]
    torch_back = p.to_frame(torch.tensor(x).float())
    np.testing.assert_allclose(p.to_array(torch_back), x, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([None, None, np.nan], "every cell is missing"),
        ([3.0, 3.0, None], "one value only"),
        (["a", "a", "a"], "one value only"),
        (pd.to_datetime(["2020-01-01", "2021-01-01", None]), "Timestamp"),
        (["a", 1, 2.5], "int, str"),
        ([str(i) for i in range(60)], "60 different texts"),
        ([1.0, np.inf, 2.0], "infinite"),
        ([[1], [2], [3]], "list"),
    ],
)
def test_columns_that_cannot_be_used(values, words):
    df = pd.DataFrame({"fine": np.arange(len(values)) / 7 - 1, "bad": pd.Series(values)})
    with pytest.raises(pv.DataError, match=words) as error:
        Columns.infer(df)
    assert "'bad'" in str(error.value)


def test_overrides():
    df = frame()
    p = Columns.infer(df, overrides={"grade": pv.Normal, "visits": families.Poisson, "size": pv.Categorical} | WIND)
    by_name = dict(zip([c.name for c in p.columns], p.kinds, strict=True))
    assert (by_name["grade"], by_name["visits"], by_name["size"]) == ("real", "count", "categorical")
    with pytest.raises(pv.ConfigError, match="no column 'nope'"):
        Columns.infer(df, overrides={"nope": pv.Normal})
    with pytest.raises(pv.DataError, match=r"'balance'.*above 0"):
        Columns.infer(df, overrides={"balance": families.Gamma})


def test_arrays_of_other_tables():
    df = frame()
    p = Columns.infer(df, overrides=WIND)
    x = p.to_array(df)
    shuffled = df[list(reversed(df.columns))].assign(extra=1)
    np.testing.assert_array_equal(p.to_array(shuffled), x)
    with pytest.raises(pv.DataError, match="no column 'age'"):
        p.to_array(df.drop(columns="age"))
    with pytest.raises(pv.DataError, match=r"row 7, column 'city': unknown category 'Rom'"):
        p.to_array(df.assign(city=df["city"].where(df.index != 7, "Rom")))
    with pytest.raises(pv.DataError, match=r'row 7, column "income".*numbers above 0'):
        p.to_array(df.assign(income=df["income"].where(df.index != 7, -5.0)))
    with pytest.raises(pv.DataError, match=r'row 7, column "visits".*whole numbers from 0'):
        p.to_array(df.assign(visits=df["visits"].where(df.index != 7, 0.5)))
    with pytest.raises(pv.DataError, match="row 0, column 'age': 'old': expected a number"):
        p.to_array(df.assign(age="old"))
    with pytest.raises(pv.DataError, match=r"expected shape \(rows, 10\)"):
        p.to_frame(x[:, :3])


def test_the_gate_of_a_table():
    df = frame(60)
    p = Columns.infer(df, context=2, net=small, overrides=WIND)
    x = p.to_array(df)
    x[5, 3] = -1.0
    with pytest.raises(pv.DataError, match=r"row 5, column 3.*numbers above 0"):
        pv.fit(vae_of(p), x, epochs=1)
    x = p.to_array(df)
    x[:, 2] = np.nan
    with pytest.raises(pv.DataError, match="column 2 is missing"):
        pv.fit(vae_of(p), x, epochs=1)


# --- what cannot be built ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "columns"),
        ([pv.Normal], "columns"),
        ([Column("a", pv.Normal), Column("a", pv.Laplace)], "'a' is there twice"),
        ({"a": families.Dirichlet}, "'a'.*vector"),
        ({"a": families.FullNormal}, "'a'.*single numbers"),
        ({"a": pv.StandardNormal}, "'a'"),
        ({"a": functools.partial(pv.Normal, context=3, nett=1)}, "'a'.*nett"),
        ([Column("a", pv.Normal, scale=0.0)], "'a'.*positive scale"),
        ([Column("a", pv.Bernoulli, shift=1.0)], "'a'.*no units"),
        ([Column("a", families.LogNormal, shift=1.0)], "'a'.*no units"),
        ([Column("a", pv.Bernoulli, categories=["x"])], "'a'.*2 categories, received 1"),
    ],
)
def test_columns_that_cannot_be_built(columns, words):
    with pytest.raises(pv.ConfigError, match=words):
        Columns(columns)
