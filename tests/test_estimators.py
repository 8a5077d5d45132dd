"""scikit-learn's own checks, densities in the caller's units, imputation, outliers, few labels, and a clean room."""

import math
import pickle
import random

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError
from pyrovae.estimators import SemiSupervisedVAEClassifier, VAEImputer, VAEOutlierDetector, VAETransformer
from pyrovae.estimators.classifier import labelled
from pyrovae.estimators.noise import SharedNoise

QUICK = {"hidden": (8,), "random_state": 0}
ALL = [
    VAETransformer(epochs=2, n_draws=8, **QUICK),
    VAEImputer(epochs=2, n_draws=8, **QUICK),
    VAEOutlierDetector(epochs=2, n_draws=8, **QUICK),
    SemiSupervisedVAEClassifier(epochs=10, n_components=1, learning_rate=0.03, **QUICK),
]
EXPECTED = {
    "SemiSupervisedVAEClassifier": {
        "check_classifiers_classes": "one of its problems has the classes -1 and 1, and -1 marks a row without label"
    }
}


@parametrize_with_checks(ALL, expected_failed_checks=lambda e: EXPECTED.get(type(e).__name__, {}))
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def table(rows=60, seed=0):
    """Three columns around a line, of very different scales."""
    r = np.random.default_rng(seed)
    t = r.normal(size=(rows, 1))
    return (t * [1.0, -1.0, 0.5] + 0.2 * r.normal(size=(rows, 3))) * [1.0, 1e6, 1e-6] + [0.0, 5e6, 1.0]


def fitted(estimator, x=None, y=None):
    x = table() if x is None else x
    return clone(estimator).set_params(**QUICK).fit(x) if y is None else clone(estimator).set_params(**QUICK).fit(x, y)


# densities


def test_density_is_one_of_the_callers_units():
    x = 1e3 * np.random.default_rng(0).gumbel(size=(200, 1)) + 7
    vae = VAETransformer(1, epochs=10, n_draws=400, **QUICK).fit(x)
    grid = np.linspace(-2e4, 3e4, 801)
    density = np.exp(vae.score_samples(grid[:, None]))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.05)  # the noise of 400 draws
    assert vae.score(x) == pytest.approx(vae.score_samples(x).mean())


def test_density_is_the_models_own_with_the_jacobian():
    x = table()
    vae = fitted(VAETransformer(1, epochs=20, n_draws=2000), x)
    scaled = torch.tensor((x - x.mean(0)) / x.std(0))
    expected = pv.log_marginal(vae.model_, scaled, k=2000, seed=1, compile="eager")
    received = vae.score_samples(x) + np.log(x.std(0)).sum()
    np.testing.assert_allclose(np.median(received - expected.values.numpy()), 0, atol=0.02)
    detector = fitted(VAEOutlierDetector(1, epochs=20, n_draws=2000, method="reconstruction"), x)
    terms = pv.elbo_terms(detector.model_, scaled, k=2000, seed=1, compile="eager").reconstruction.numpy()
    np.testing.assert_allclose(detector.score_samples(x) + np.log(x.std(0)).sum(), terms, atol=0.3)


@pytest.mark.parametrize(
    ("likelihood", "x"),
    [
        ("bernoulli", np.random.default_rng(0).integers(0, 2, (40, 4))),
        ("poisson", np.random.default_rng(0).poisson(3.0, (40, 4))),
        ("log-normal", np.random.default_rng(0).lognormal(9.0, size=(40, 4))),
        (pv.Laplace, np.random.default_rng(0).laplace(size=(40, 4))),
    ],
)
def test_other_likelihoods(likelihood, x):
    vae = fitted(VAETransformer(likelihood=likelihood, epochs=2, n_draws=8), x)
    assert np.isfinite(vae.score_samples(x)).all()
    back, draws = vae.inverse_transform(vae.transform(x)), vae.sample(30)
    if likelihood == "bernoulli":
        assert ((back > 0) & (back < 1)).all()
        assert set(np.unique(draws)) == {0, 1}
    if likelihood == "log-normal":
        assert (draws > 0).all()
        smaller = fitted(VAETransformer(likelihood=likelihood, epochs=2, n_draws=8), x / 1e3)
        np.testing.assert_allclose(smaller.score_samples(x / 1e3), vae.score_samples(x) + 4 * math.log(1e3), rtol=1e-3)


@pytest.mark.parametrize(
    "parts",
    [
        {"posterior": "full-normal"},
        {"posterior": "power-spherical", "prior": "sphere-uniform"},
        {"posterior": "gamma", "prior": "gamma"},
        {"prior": "mixture(components=3)", "objective": "iwae(k=3)"},
        {"prior": "exemplar", "net": "mlp(hidden=[5])"},
    ],
)
def test_a_rows_answer_depends_on_no_other_row(parts):
    x = table(24)
    vae = fitted(VAETransformer(epochs=1, n_draws=7, **parts), x)
    whole = vae.score_samples(x)
    np.testing.assert_allclose(vae.score_samples(x[::-1])[::-1], whole, rtol=1e-9)
    np.testing.assert_allclose([vae.score_samples(row[None])[0] for row in x[:5]], whole[:5], rtol=1e-9)


# shared noise


@pytest.mark.parametrize("draws", [1, 4000])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: dist.Normal(torch.arange(n) * 1.0, 2.0),
        lambda n: dist.Gamma(torch.arange(n) + 0.5, 1.0),
        lambda n: dist.Categorical(probs=torch.stack([torch.arange(n) + 1.0, torch.ones(n)], -1)),
        lambda n: dist.Bernoulli(probs=1 / (torch.arange(n) + 1.5)),
        lambda n: dist.Dirichlet(torch.stack([torch.arange(n) + 1.0, torch.ones(n)], -1)),
        lambda n: dist.Exponential(torch.arange(n) + 1.0),
    ],
)
def test_shared_noise(make, draws):
    def draw(n):
        with SharedNoise(n, draws, seed=3), torch.random.fork_rng():
            return make(n).expand((draws, n) if draws > 1 else (n,)).sample()

    three, five = draw(3), draw(5)
    assert torch.equal(three, five.narrow(int(draws > 1), 0, 3))  # rows are the same in any company
    if draws > 1 and not isinstance(make(3), dist.Categorical):  # each row's own distribution is left as it is
        error = 5 * (make(5).variance / draws).sqrt() + 1e-6
        assert ((five.mean(0) - make(5).mean).abs() < error).all()
        assert len(five[:, 1].unique()) > 1


# tables


def test_constant_columns_come_back():
    x = np.column_stack([table(), np.full(60, 42.0)])
    vae = fitted(VAETransformer(epochs=3, n_draws=8), x)
    assert (vae.inverse_transform(vae.transform(x))[:, 3] == 42).all()
    assert (vae.sample(4)[:, 3] == 42).all()
    np.testing.assert_allclose(vae.score_samples(x), fitted(vae, x[:, :3]).score_samples(x[:, :3]))
    assert np.isfinite(fitted(VAETransformer(epochs=1), np.ones((10, 2))).score_samples(np.ones((10, 2)))).all()


def test_any_scale():
    x = table(300)
    vae = fitted(VAETransformer(1, epochs=30, batch_size=32, learning_rate=0.02), x)
    back = vae.inverse_transform(vae.transform(x))
    assert (((back - x) ** 2).mean(0) < 0.3 * x.var(0)).all()
    draws = vae.sample(4000)
    assert (np.abs(draws.mean(0) - x.mean(0)) < 0.3 * x.std(0)).all()
    assert (np.abs(np.log(draws.std(0) / x.std(0))) < 0.3).all()


def test_dataframes_and_types():
    df = pd.DataFrame(table(), columns=["a", "b", "c"])
    vae = fitted(VAETransformer(epochs=1), df).set_output(transform="pandas")
    assert list(vae.transform(df).columns) == ["vaetransformer0", "vaetransformer1"]
    assert list(vae.feature_names_in_) == ["a", "b", "c"]
    assert vae.n_features_in_ == 3
    assert vae.set_output(transform="default").transform(df.astype(np.float32)).dtype == np.float32
    with pytest.raises(ValueError, match="feature names"):
        vae.transform(df.rename(columns={"a": "z"}))
    with pytest.raises(DataError, match="expected 2 columns, received 3"):
        vae.inverse_transform(df.to_numpy())


# company


def test_in_pipelines_and_searches():
    x = np.concatenate([table(30), table(30) + np.array([3.0, 0.0, 0.0])])
    y = np.repeat([0, 1], 30)
    pipeline = make_pipeline(VAETransformer(epochs=2, **QUICK), LogisticRegression())
    assert cross_val_score(pipeline, x, y, cv=2).shape == (2,)
    grid = {"vaetransformer__n_components": np.array([1, 2]), "vaetransformer__objective": ["elbo(beta=0.5)"]}
    assert GridSearchCV(pipeline, grid, cv=2).fit(x, y).best_params_["vaetransformer__n_components"] in (1, 2)
    search = GridSearchCV(VAETransformer(epochs=2, n_draws=8, **QUICK), {"prior": ["standard-normal", "mixture"]}, cv=2)
    assert math.isfinite(search.fit(x).best_score_)


@pytest.mark.parametrize("estimator", ALL[:3], ids=lambda e: type(e).__name__)
def test_pickled_estimators_are_the_same(estimator):
    x, one = table(), fitted(estimator)
    two = pickle.loads(pickle.dumps(one))
    method = "transform" if hasattr(one, "transform") else "score_samples"
    assert (getattr(one, method)(x) == getattr(two, method)(x)).all()


@pytest.mark.parametrize("make", [lambda: 3, lambda: np.random.RandomState(3)], ids=["int", "RandomState"])
def test_reproducible(make):
    x = table()
    one, two = (VAETransformer(epochs=2, hidden=(8,), random_state=make()).fit(x) for _ in range(2))
    assert (one.transform(x) == two.transform(x)).all()
    assert (one.score_samples(x) == two.score_samples(x)).all()
    assert (one.sample(3, random_state=make()) == two.sample(3, random_state=make())).all()
    other = VAETransformer(epochs=2, hidden=(8,), random_state=None).fit(x)
    assert (other.transform(x) != one.transform(x)).any()


def state():
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        str(random.getstate()),
        torch.get_default_dtype(),
        torch.distributions.Distribution._validate_args,
        dict(pyro.get_param_store().named_parameters()),
    )


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_global_changes(estimator, dtype):
    torch.set_default_dtype(dtype)
    x, y = table(), np.tile([0, 1, -1], 20)
    expected = state()
    one = clone(estimator).set_params(random_state=None, epochs=1).fit(x, y)
    for name in ("transform", "score_samples", "predict", "predict_proba", "decision_function"):
        if hasattr(one, name):
            assert np.isfinite(getattr(one, name)(x)).all()
            assert state() == expected
    if isinstance(one, VAETransformer):
        one.sample(3), one.inverse_transform(one.transform(x))
    assert {p.dtype for p in one.model_.parameters()} == {torch.float64}
    assert state() == expected


def test_the_default_type_changes_no_number(float64):
    x = table()
    in_double = fitted(VAETransformer(epochs=2)).score_samples(x)
    torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(fitted(VAETransformer(epochs=2)).score_samples(x), in_double)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": "mixtrue"}, "^prior: there is no prior 'mixtrue'.*did you mean 'mixture'"),
        ({"likelihood": "bernoulli"}, "outside|support|expected"),
        ({"n_components": 0}, "^n_components: expected an int from 1"),
        ({"epochs": 1.5}, "^epochs: expected an int from 1"),
        ({"learning_rate": -1}, "^learning_rate"),
        ({"objective": "elbo("}, "^objective: expected a name"),
        ({"posterior": "dirichlet"}, "."),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAETransformer(**arguments).fit(table())


# missing cells


def holes(x, share=0.3, seed=1):
    return np.where(np.random.default_rng(seed).random(x.shape) < share, np.nan, x)


def test_imputation_foresees_and_keeps():
    x = table(400)
    missing = holes(x)
    imputer = VAEImputer(1, epochs=40, batch_size=32, learning_rate=0.02, **QUICK).fit(missing)
    filled = imputer.transform(missing)
    hidden = np.isnan(missing)
    assert (filled[~hidden] == x[~hidden]).all()
    error = np.where(hidden, filled - x, 0) / x.std(0)
    guess = np.where(hidden, np.nanmean(missing, axis=0) - x, 0) / x.std(0)
    assert (error**2).sum() < 0.6 * (guess**2).sum()
    draws = imputer.sample(missing, 40)
    assert draws.shape == (40, 400, 3)
    assert (draws[:, ~hidden] == x[~hidden]).all()
    spread = draws.std(0)[hidden]
    assert (spread > 0).all()
    gap = np.abs(draws.mean(0) - filled)[hidden] / spread
    assert np.median(gap) < 0.5  # the mean of draws is the mean, but for the noise of 40
    one = imputer.set_params(sample_posterior=True).transform(missing)
    assert (one == imputer.transform(missing)).all()
    assert (one[hidden] != filled[hidden]).all()


def test_imputation_of_odd_tables():
    x = holes(table())
    x[0] = np.nan
    x = np.column_stack([x, np.full(60, np.nan), np.where(np.arange(60) % 2, 5.0, np.nan)])
    imputer = fitted(VAEImputer(epochs=1, n_draws=8), x)
    assert imputer.transform(x).shape == (60, 4)
    assert list(imputer.get_feature_names_out()) == ["x0", "x1", "x2", "x4"]
    assert (imputer.transform(x)[:, 3] == 5).all()
    kept = fitted(VAEImputer(epochs=1, n_draws=8, keep_empty_features=True), x).transform(x)
    assert kept.shape == (60, 5)
    assert (kept[:, 3] == 0).all()
    assert np.isfinite(kept).all()
    with pytest.raises(ValueError, match="NaN alone"):
        VAEImputer().fit(np.full((5, 2), np.nan))


def test_imputation_of_mixed_columns():
    r = np.random.default_rng(0)
    city = r.choice(["Bonn", "Köln", "Ulm"], 120)
    df = pd.DataFrame(
        {"size": np.where(city == "Ulm", 10.0, 0.0) + r.normal(size=120), "city": city, "old": r.random(120) < 0.5}
    )
    df = df.astype({"old": object})
    missing = df.mask(r.random(df.shape) < 0.2)
    imputer = VAEImputer(2, likelihood="columns", epochs=40, **QUICK).fit(missing)
    filled = imputer.transform(missing)
    assert not filled.isna().any().any()
    assert set(filled["city"]) <= {"Bonn", "Köln", "Ulm"}
    there = missing.notna()
    assert (filled[there].isna() == missing.isna()).all().all()
    assert (filled["city"][there["city"]] == df["city"][there["city"]]).all()
    assert list(imputer.set_output(transform="pandas").transform(missing).columns) == ["size", "city", "old"]
    assert len(imputer.sample(missing, 3)) == 3


# outliers


@pytest.mark.parametrize("method", ["log_prob", "reconstruction"])
def test_outliers_are_found(method):
    x = table(300)
    x[:15] = x.mean(0) + x.std(0) * np.random.default_rng(1).uniform(3, 6, (15, 3)) * [1, 1, -1]
    detector = VAEOutlierDetector(1, method=method, contamination=0.05, epochs=30, **QUICK).fit(x)
    truth = np.arange(300) < 15
    assert roc_auc_score(truth, -detector.score_samples(x)) > 0.95
    assert (detector.predict(x) == -1).sum() == 15
    np.testing.assert_allclose(detector.decision_function(x), detector.score_samples(x) - detector.offset_)


def test_outlier_arguments():
    for arguments in ({"method": "distance"}, {"contamination": 0.6}):
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            VAEOutlierDetector(**arguments).fit(table())


# labels


def blobs(rows=150):
    r = np.random.default_rng(0)
    y = r.integers(0, 3, rows)
    return np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])[y] + r.normal(size=(rows, 2)), y


@pytest.mark.parametrize(
    ("names", "nothing"),
    [(np.array([7, 3, 5]), [-1]), (np.array(["x", "y", "z"], dtype=object), ["", None, np.nan, -1])],
    ids=["numbers", "texts"],
)
def test_few_labels_are_enough(names, nothing):
    x, y = blobs()
    truth = names[y]
    given = np.resize(np.array(nothing, dtype=truth.dtype), len(y))
    few = np.concatenate([np.flatnonzero(y == c)[:4] for c in range(3)])
    given[few] = truth[few]
    classifier = clone(ALL[-1]).set_params(epochs=20).fit(x, given)
    assert list(classifier.classes_) == sorted(names)
    assert (classifier.predict(x) == truth).mean() > 0.9
    assert (classifier.transduction_[few] == truth[few]).all()
    np.testing.assert_allclose(classifier.predict_proba(x).sum(1), 1)
    assert classifier.score(x, given) == (classifier.predict(x)[few] == truth[few]).mean()


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.array([1.0, -1.0, np.nan, 0.0]), [1, 0, 0, 1]),
        (np.array([-1, 0]), [0, 1]),
        (np.array(["", "a", "-1"]), [0, 1, 1]),
        (np.array([True, False]), [1, 1]),
        (np.array([None, "a", "", np.nan, -1, 3], dtype=object), [0, 1, 0, 0, 0, 1]),
    ],
    ids=repr,
)
def test_what_is_a_label(y, expected):
    assert labelled(y).tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.full(60, -1), "no label at all"),
        (np.repeat([-1, 4], 30), "at least two classes"),
        (np.linspace(0, 1, 60), "continuous"),
    ],
)
def test_labels_that_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        SemiSupervisedVAEClassifier().fit(table(), y)
