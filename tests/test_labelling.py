"""Labels from a few: propagation, calibration, promises and methods against closed forms, scikit-learn and draws."""

import dataclasses
import functools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta, binom
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix
from sklearn.semi_supervised import LabelSpreading

import pyrovae as pv
from pyrovae import labelling as lab
from pyrovae.errors import ConfigError, DataError, ModelFileError
from pyrovae.evaluation import labels as measures
from pyrovae.labelling.report import cross_fitted, helped
from pyrovae.labelling.training import Lengths

# measures


@pytest.mark.parametrize(("wrong", "rows"), [(0, 20), (3, 20), (20, 20)])
def test_the_error_interval_is_that_of_exact_tail_probabilities(wrong, rows):
    low, high = measures.error_interval(wrong, rows, 0.9)
    assert low == 0 if wrong == 0 else binom.sf(wrong - 1, rows, low) == pytest.approx(0.05)
    assert high == 1 if wrong == rows else binom.cdf(wrong, rows, high) == pytest.approx(0.05)


def draws(rows=4000, classes=3, heat=1.0, seed=0):
    """Probabilities, and classes drawn from them after division of the logits by ``heat``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 2
    p, true = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits, logits / heat))
    return p, (true.cumsum(1) > rng.random((rows, 1))).argmax(1)


def test_reliability_is_scikit_learns_and_its_error_the_mean_gap():
    p, y = draws(heat=2.0)
    found = measures.reliability(p, y, bins=10)
    share, mean = calibration_curve(p.argmax(1) == y, p.max(1), n_bins=10)
    np.testing.assert_allclose(found.accuracy, share)
    np.testing.assert_allclose(found.confidence, mean)
    gap = (found.count / len(y) * np.abs(share - mean)).sum()
    assert measures.expected_calibration_error(p, y, bins=10) == pytest.approx(gap)


def test_clusters_are_assigned_as_enumeration_would_and_confusion_is_scikit_learns():
    rng = np.random.default_rng(1)
    y, clusters = rng.integers(0, 3, 50), rng.integers(0, 5, 50)
    table = confusion_matrix(y, clusters, labels=range(5))
    np.testing.assert_array_equal(measures.confusion(y, clusters, 5), table)
    best = max(sum((y == k) & (clusters == c) for k, c in enumerate(p)).sum() for p in _injections(5, 3))
    assert measures.cluster_accuracy(y, clusters) == pytest.approx(best / 50)
    assert measures.cluster_accuracy(y, clusters) == table[linear_sum_assignment(-table)].sum() / 50


def _injections(many, few):
    from itertools import permutations

    return permutations(range(many), few)


def test_the_coverage_curve_ends_at_the_error_of_all_rows():
    p, y = draws()
    shares, errors = measures.coverage_curve(p, y)
    assert (shares[-1], errors[-1]) == (1.0, (p.argmax(1) != y).mean())
    half = p.max(1) >= np.median(p.max(1))
    assert np.interp(0.5, shares, errors) == pytest.approx((p.argmax(1) != y)[half].mean(), abs=2e-3)


# propagation


def cloud(rows=40, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(-1, 1, (rows // 2, 2)), rng.normal(1, 1, (rows // 2, 2))])


def test_propagation_reaches_the_closed_form():
    codes, y = cloud(), np.full(40, -1)
    y[[0, 1, 39]] = 0, 0, 1
    spread = lab.LatentPropagation(neighbours=4, alpha=0.9, iterations=500)
    distance = np.linalg.norm(codes[:, None] - codes[None], axis=-1) + np.diag(np.full(40, np.inf))
    near = np.zeros((40, 40))
    np.put_along_axis(near, distance.argsort(1)[:, :4], 1, 1)
    weights = near + near.T
    degree = weights.sum(1)
    s = weights / np.sqrt(degree[:, None] * degree)
    np.testing.assert_allclose(spread.graph(codes).toarray(), s)
    known = np.eye(2)[np.maximum(y, 0)] * (y >= 0)[:, None]
    exact = np.linalg.solve(np.eye(40) - 0.9 * s, known)
    exact = exact / exact.sum(0)
    exact = exact / exact.sum(1, keepdims=True)
    exact[y >= 0] = known[y >= 0]
    np.testing.assert_allclose(spread(codes, y), exact, atol=1e-9)


def test_rows_that_no_label_reaches_are_undecided_and_classes_without_labels_empty():
    codes = np.array([[0.0], [0.1], [9.0], [9.1]])
    soft = lab.LatentPropagation(neighbours=1)(codes, np.array([1, -1, -1, -1]), classes=3)
    np.testing.assert_allclose(soft, [[0, 1, 0], [0, 1, 0], [1 / 3] * 3, [1 / 3] * 3])


# calibration and promises


@pytest.mark.parametrize("heat", [0.5, 3.0])
def test_the_temperature_is_found_again(heat):
    p, y = draws(20_000, heat=heat)
    found = lab.Temperature.fit(p, y)
    assert found.value == pytest.approx(heat, rel=0.12)  # of probabilities of which a hundredth was spread evenly
    assert measures.expected_calibration_error(found(p), y) < 0.015 < measures.expected_calibration_error(p, y)


def test_a_few_labels_that_are_all_right_make_nothing_certain():
    p = np.tile([0.9, 0.1], (8, 1))
    assert 0.85 < lab.Temperature.fit(p, np.zeros(8, dtype=int))(p).max() < 0.95


def test_prediction_sets_cover_as_promised_whatever_the_probabilities_are_worth():
    hits = []
    for seed in range(400):
        p, y = draws(150, heat=4.0, seed=seed)
        sets = lab.ConformalSets.fit(p[:50], y[:50], 0.9)
        hits.append(sets(p[50:])[np.arange(100), y[50:]].mean())
    exact = math.ceil(51 * 0.9) / 51
    error = np.std(hits) / 20
    assert np.mean(hits) == pytest.approx(exact, abs=5 * error)


def test_prediction_sets_hold_everything_where_labels_are_too_few():
    p, y = draws(10)
    assert lab.ConformalSets.fit(p, y, 0.95)(p).all()
    assert not lab.ConformalSets.fit(p, y, 0.5)(p).all()


def test_labels_that_are_safe_are_wrong_as_seldom_as_promised():
    broken, accepted = 0, []
    for seed in range(300):
        p, y = draws(2300, heat=0.7, seed=seed)
        found = lab.Abstention.fit(p[:300], y[:300], 0.1, confidence=0.9)
        safe = ~found(p[300:])
        accepted.append(safe.mean())
        wrong = (p[300:].argmax(1) != y[300:])[safe]
        broken += safe.any() and wrong.mean() > 0.1
    assert np.mean(accepted) > 0.3
    assert broken <= binom.ppf(0.9999, 300, 0.1)


def test_no_label_is_safe_where_none_can_be_shown_to_be():
    p, y = np.tile([0.99, 0.01], (58, 1)), np.zeros(58, dtype=int)
    assert lab.Abstention.fewest(0.05) == 59
    assert lab.Abstention.fit(p, y, 0.05)(p).all()
    one_more = lab.Abstention.fit(np.vstack([p, p[:1]]), np.zeros(59, dtype=int), 0.05)
    assert not one_more(p).any()
    assert one_more.bound == pytest.approx(beta.ppf(0.95, 1, 59))


def test_what_is_fitted_to_the_other_folds_never_sees_its_own():
    p, y = draws(30)
    folds = np.arange(30) % 3
    seen = []
    whole = cross_fitted(p, y, folds, lambda q, labels: seen.append(len(labels)) or (lambda own: own * 2))
    np.testing.assert_allclose(whole, 2 * p)
    assert seen == [20, 20, 20]


# asking


def test_what_is_asked_next_is_unsure_typical_and_not_asked_before():
    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.normal(c, 0.1, (30, 2)) for c in ((0, 0), (10, 0), (0, 10))] + [[[90.0, 90.0]]])
    p = np.full((91, 2), [0.99, 0.01])
    p[30:] = 0.5  # two clusters of unsure rows, and an outlier
    labelled = np.zeros(91, dtype=bool)
    labelled[:3] = True
    ranks = lab.ask_next(p, codes, labelled, count=2)
    assert sorted(ranks[ranks > 0]) == list(range(1, 89))
    assert (ranks[labelled] == 0).all()
    first, second = (int(np.flatnonzero(ranks == r)[0]) for r in (1, 2))
    assert {first // 30, second // 30} == {1, 2}


# features


FRAME = pd.DataFrame(
    {
        "age": [20.0, 30.0, None, 50.0],
        "city": ["Rome", None, "Oslo", "Bern"],
        "smokes": [True, False, True, True],
        "when": pd.date_range("2020", periods=4),
        "same": 1,
    }
)


def test_features_are_in_standard_units_one_hot_and_missing_where_cells_are():
    features = lab.TableFeatures.infer(FRAME)
    x = features.encode(FRAME)
    assert sorted(features.left_out) == ["same", "when"]
    assert x.shape == (4, 5)
    np.testing.assert_allclose(np.nanmean(x[:, 0]), 0, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(x), [[0] * 5, [0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0] * 5])
    again = lab.features.features_from_dict(json.loads(json.dumps(features.to_dict())))
    np.testing.assert_array_equal(again.encode(FRAME[["smokes", "city", "age"]]), x)
    assert (again.encode(FRAME.assign(city="Paris"))[:, 1:4] == 0).all()
    assert again.likelihood(2, torch.nn.Linear)(torch.zeros(4, 2)).log_prob(torch.tensor(x)).isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda df: df.drop(columns="age"), "no column 'age'"),
        (lambda df: df.assign(age="old"), "column 'age': expected finite numbers"),
        (lambda df: df.assign(age=np.inf), "column 'age': expected finite numbers"),
    ],
)
def test_a_later_table_that_differs_is_refused(change, words):
    features = lab.TableFeatures.infer(FRAME)
    with pytest.raises(DataError, match=words):
        features.encode(change(FRAME))


def test_a_missing_cell_is_refused_where_training_had_none():
    features = lab.TableFeatures.infer(FRAME[["smokes"]].assign(age=[1.0, 2, 3, 4]))
    with pytest.raises(DataError, match="row 2, column 'age': a missing cell"):
        features.encode(FRAME)


def test_images_become_numbers_from_0_to_1():
    images = np.full((3, 2, 2), 255, dtype=np.uint8)
    pixels = lab.infer_features(lab.as_rows(images))
    assert pixels.encode(images).tolist() == [[1.0] * 4] * 3
    with pytest.raises(DataError, match="rows of shape"):
        pixels.encode(images[:, :1])


# methods


def blobs(rows=240, seed=0, distance=2.5):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    centres = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]) * distance
    return (rng.normal(size=(rows, 4)) + centres[y]).astype(np.float32), y


def few(y, each=4):
    hidden = np.full(len(y), -1)
    for k in np.unique(y):
        hidden[np.flatnonzero(y == k)[:each]] = k
    return hidden


@pytest.fixture(scope="module")
def ready():
    x, y = blobs()
    features = lab.infer_features(lab.as_rows(x))
    x = features.encode(lab.as_rows(x))
    sizes = lab.Sizes(latent=2, net=functools.partial(pv.MLP, hidden=(32,)), steps=16, learning_rate=0.02)
    density = lab.Density.train(x, features, sizes)
    return features, x, y, sizes, density


@pytest.mark.parametrize("name", lab.METHODS)
def test_every_method_learns_and_repeats_itself(ready, name):
    features, x, y, sizes, density = ready
    for labeller in lab.candidates(features, 3, sizes, density)[name][-1:]:
        first, again = (labeller.fit(x, few(y)).probabilities(x) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(first.sum(1), 1, atol=1e-5)
        assert (first.argmax(1) != y).mean() < 0.25


def test_labels_may_be_one_of_a_class_or_all_or_of_fewer_classes(ready):
    features, x, y, sizes, density = ready
    sizes = dataclasses.replace(sizes, steps=2)
    for labels in (few(y, 1), y, np.where(y == 2, -1, few(y))):
        for labellers in lab.candidates(features, 3, sizes, density).values():
            assert np.isfinite(labellers[0].fit(x, labels).probabilities(x)).all()


def test_spreading_is_scikit_learns(ready):
    _, x, y, *_ = ready
    own = lab.GraphSpreading(3).fit(x, few(y)).probabilities(x)
    expected = LabelSpreading(kernel="knn", n_neighbors=10, alpha=0.2, max_iter=100).fit(x, few(y)).predict_proba(x)
    np.testing.assert_allclose(own, expected)


def test_a_column_without_a_value_in_the_labelled_rows_is_no_obstacle():
    x, y = blobs(60)
    x[:, 3] = np.where(few(y) >= 0, np.nan, x[:, 3])
    features = lab.infer_features(lab.as_rows(x))
    sizes = lab.sizes_for(60, features, steps=5)
    assert np.isfinite(lab.Supervised(features, 3, sizes).fit(x, few(y)).probabilities(x)).all()


def test_a_length_that_was_watched_is_what_a_shorter_training_gives(ready):
    features, x, y, sizes, density = ready
    labeller = lab.Smooth(features, 3, sizes, density)
    watched = labeller.by_length(x, few(y), x[:5])
    assert list(watched) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for length in (0.0, 0.5, 1.0):
        own = labeller.of_length(length).fit(x, few(y)).probabilities(x[:5])
        np.testing.assert_allclose(own, watched[length], atol=1e-6)
    assert Lengths(1.0).marks == ()


def test_novelty_is_high_far_away(ready):
    _, x, _, _, density = ready
    assert density.novelty(np.full((1, 4), 8.0, dtype=np.float32)) == 1.0
    np.testing.assert_allclose(np.median(density.novelty(x)), 0.5, atol=0.05)
    sampled = pv.log_marginal(density.vae, x, k=500).values.numpy()
    assert np.corrcoef(density.log_prob(x), sampled)[0, 1] > 0.95


# comparison


class Fixed(lab.Labeller):
    """Knows the answer, but for some rows."""

    def __init__(self, answers, wrong, uses):
        self.answers, self.wrong, self.uses_unlabelled = answers, wrong, uses
        self.seen = []

    def fit(self, x, y):
        self.seen.append(y)
        return self

    def probabilities(self, x):
        rows = x[:, 0].astype(int)
        return np.eye(2)[np.where(np.isin(rows, self.wrong), 1 - self.answers[rows], self.answers[rows])]


def compared(*wrong, folds=5):
    y = np.arange(20) % 2
    x = np.arange(20, dtype=np.float32)[:, None]
    hidden = np.where(np.arange(20) < 16, y, -1)
    labellers = {f"{i}": [Fixed(y, w, bool(i % 2))] for i, w in enumerate(wrong)}
    return lab.compare_labellers(labellers, x, hidden, folds=folds), labellers, hidden


def test_methods_are_judged_on_labels_they_were_not_given():
    found, labellers, hidden = compared([0, 1, 2], [3], [5])
    assert {name: trial.wrong for name, trial in found.trials.items()} == {"0": 3, "1": 1, "2": 1}
    assert found.best() == "1", "the simplest of equals"
    assert sorted(found.rows) == list(range(16))
    for fold, seen in enumerate(labellers["0"][0].seen):
        held = found.rows[found.folds == fold]
        assert (seen[held] == -1).all()
        np.testing.assert_array_equal(np.delete(seen, held), np.delete(hidden, held))
    low, high = found.interval("0")
    assert low < 3 / 16 < high


@pytest.mark.parametrize(
    ("without", "with_them", "verdict", "prefer"),
    [(list(range(16)), [], True, "1"), ([], list(range(16)), False, "0"), ([0], [0], None, "0")],
)
def test_the_report_says_whether_unlabelled_rows_helped(without, with_them, verdict, prefer):
    found = helped(compared(without, with_them)[0])
    assert (found["helped"], found["prefer"]) == (verdict, prefer)


def test_folds_keep_the_only_label_of_a_class():
    y = np.array([0] * 7 + [1] * 2 + [2] + [-1] * 5)
    folds = lab.label_folds(y, 3)
    assert folds[9] == -1
    assert (folds[10:] == -1).all()
    assert sorted(np.bincount(folds[:9])) == [3, 3, 3]
    assert (lab.label_folds(np.array([0, 1, -1]), 5) == -1).all()


# the whole way


def table_of(x, y, each=8):
    df = pd.DataFrame(x, columns=["a", "b", "c", "d"])
    df["city"] = np.where(x[:, 0] > 1, "Rome", "Oslo")
    df.loc[5, "a"] = np.nan
    df["kind"] = [["ape", "bee", "cat"][k] if k >= 0 else None for k in few(y, each)]
    return df


@pytest.fixture(scope="module")
def labelled():
    x, y = blobs()
    df = table_of(x, y)
    before = df.copy()
    state = torch.get_rng_state()
    found = lab.label(df, "kind", method=["supervised", "gradient-boosting", "smooth"], folds=2, steps=16, coverage=0.8)
    assert (torch.get_rng_state() == state).all()
    pd.testing.assert_frame_equal(df, before)
    return df, y, found


def test_the_table_has_its_own_columns_and_then_what_was_found(labelled):
    df, y, found = labelled
    out = found.table()
    own = [*df.columns]
    p = ["p_ape", "p_bee", "p_cat"]
    assert list(out) == [*own, "label", "probability", *p, "prediction_set", "abstain", "novelty", "ask_next"]
    pd.testing.assert_frame_equal(out[own], df)
    np.testing.assert_allclose(out[p].sum(axis=1), 1, atol=1e-6)
    given = df["kind"].notna()
    assert (out["label"][given] == df["kind"][given]).all()
    assert (out["probability"][given] == 1).all()
    assert (out["prediction_set"][given] == df["kind"][given]).all()
    assert out["ask_next"].isna().equals(given)
    assert out["novelty"].between(0, 1).all()
    names = np.array(["ape", "bee", "cat"])
    assert (out["label"] != names[y]).mean() < 0.25
    assert out["abstain"][~given].all(), "24 labels show nothing at 5 %"


def test_the_report_is_plain_and_speaks(labelled):
    _, _, found = labelled
    report = json.loads(json.dumps(found.report, allow_nan=False))
    assert set(report["methods"]) == {"supervised", "gradient-boosting", "smooth"}
    assert np.sum(report["confusion"]) == 24
    for words in ("24 of 240 rows", "Error on held-out labels", "Rows without a label", "Calibration", "59 held-out"):
        assert words in found.text
    assert len(report["ask_next"]) == 20


def test_what_was_saved_labels_alike(labelled, tmp_path):
    df, _, found = labelled
    found.labeller.save(tmp_path / "run")
    again = lab.load_labeller(tmp_path / "run")
    later = again.label(df.drop(columns="kind").sample(frac=1, random_state=0).assign(more=1))
    np.testing.assert_allclose(
        later.table().sort_index()[["p_ape", "novelty"]],
        found.labeller.label(df.drop(columns="kind")).table()[["p_ape", "novelty"]],
        atol=1e-5,
    )
    with pytest.raises(DataError, match='unknown label "dog"'):
        again.label(df.assign(kind="dog"), "kind")
    with pytest.raises(DataError, match="no column 'b'"):
        again.label(df.drop(columns="b"))
    with pytest.raises(ConfigError, match="not empty"):
        found.labeller.save(tmp_path / "run")
    (tmp_path / "run" / "labelling.json").write_text("{}")
    with pytest.raises(ModelFileError, match="checksum"):
        lab.load_labeller(tmp_path / "run")


def test_a_method_of_scikit_learn_labels_and_one_of_ours_is_saved(tmp_path):
    x, y = blobs(90)
    found = lab.label(x, few(y), method="gradient-boosting", folds=2, steps=5, directory=tmp_path / "run")
    assert (found.report["method"], found.report["saved_method"]) == ("gradient-boosting", "supervised")
    assert "cannot be saved" in found.text
    assert lab.load_labeller(tmp_path / "run").method == "supervised"
    assert found.table().columns[0] == "x0"


def test_a_column_that_is_called_label_is_completed():
    x, y = blobs(60)
    df = table_of(x, y).rename(columns={"kind": "label"})
    out = lab.label(df, "label", method="supervised", folds=2, steps=5).table()
    assert list(out.columns).count("label") == 1
    assert out["label"].notna().all()


def test_one_label_of_each_class_is_enough_to_label_and_for_no_promise():
    x, y = blobs(60)
    found = lab.label(x, few(y, 1), steps=4)
    assert found.report["method"] == "smooth"
    assert found.abstain[found.given < 0].all()
    assert found.sets[found.given < 0].all()
    assert "nothing is known about the error" in found.text


def test_images_and_time_that_is_short():
    images = np.zeros((30, 4, 4), dtype=np.uint8)
    images[15:, :2] = 200
    y = ["a", "a", "a"] + [""] * 24 + ["b", "b", "b"]
    found = lab.label(images, y, folds=2, steps=5, minutes=1e-9)
    assert set(found.report["left_out_methods"]) == set(lab.METHODS) - {"supervised"}
    assert found.table().columns[0] == "label"


X, Y = blobs(30)
STRINGS = np.array(["ape", "bee", "cat"])[Y]


@pytest.mark.parametrize(
    ("table", "y", "more", "words"),
    [
        (X, np.full(30, -1), {}, "no row has a label"),
        (X, np.full(30, "", dtype=object), {}, "no row has a label"),
        (X, np.full(30, np.nan), {}, "no row has a label"),
        (X, np.where(Y == 1, 1, -1), {}, "every label is 1"),
        (X, Y[:-1], {}, "29 labels for 30 rows"),
        (X, None, {}, "expected labels"),
        (X, np.arange(30), {}, "as many classes as labels"),
        (X, few(Y, 1), {"classes": [0, 1, 2, 3]}, "4 classes and 3 labels"),
        (X, few(Y), {"classes": [0, 1]}, "the label 2 is none of the classes"),
        (X, np.arange(30) / 7, {}, "a class is a whole number"),
        (np.column_stack([X, Y]), Y, {}, "column 'x4' holds the labels themselves"),
        (pd.DataFrame(X).assign(z=STRINGS), STRINGS, {}, "column 'z' holds the labels"),
        (pd.DataFrame(X).assign(z=[f"no. {k}" if k >= 0 else None for k in few(Y)]), few(Y), {}, "and says the same"),
        (pd.DataFrame(X), "kind", {}, "no column 'kind'"),
        (np.full((30, 2), 3.0), few(Y), {}, "one value only"),
        (np.where(X > 3, np.inf, X), few(Y), {}, "an infinite number"),
        (X, few(Y), {"method": "smoth"}, "did you mean 'smooth'"),
        (X, few(Y), {"coverage": 1.5}, "coverage"),
        (X, few(Y), {"error_rate": 0.0}, "error_rate"),
        (X, few(Y), {"folds": 1}, "folds"),
    ],
)
def test_what_cannot_be_labelled_is_refused_in_words(table, y, more, words, tmp_path):
    with pytest.raises((DataError, ConfigError), match=words):
        lab.label(table, y, directory=tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_the_report_speaks_of_the_threshold_that_is_applied():
    """With few labels, thresholds refitted in every fold are others than the one that is used."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)) + np.repeat([[-1.3, 0.0], [1.3, 0.0]], 150, axis=0)
    y = np.repeat([0, 1], 150)
    y[rng.permutation(300)[:240]] = -1
    found = lab.label(x, y, method="supervised", error_rate=0.2, steps=60)
    safe, applied = found.report["abstention"], found.labeller.calibration.abstention
    assert not found.abstain[found.given < 0].all()
    assert (safe["accepted"], safe["wrong"]) == (applied.accepted, applied.wrong)
