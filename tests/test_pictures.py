"""The report of a labelling as pictures: the numbers in them, and that every one is made."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

import pyrovae as pv
from pyrovae import labelling as lab
from pyrovae import plots
from pyrovae.evaluation import labels as measures
from pyrovae.labelling import comparison as comparing
from pyrovae.labelling.pictures import as_images


def points(axes):
    """Coordinates of everything that was drawn as a line or a marker."""
    return [np.column_stack(line.get_data()).astype(float) for line in axes.get_lines()]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def ink(path):
    """How much two pictures' pixels differ from a blank page."""
    return float(np.asarray(Image.open(path).convert("L")).std())


METHODS = {
    "net": {"error": 0.2, "low": 0.1, "high": 0.4, "uses_unlabelled": False},
    "vae": {"error": 0.05, "low": 0.0, "high": 0.1, "uses_unlabelled": True},
}


def test_methods_are_ranked_with_their_intervals():
    axes = plots.errors(METHODS, chosen="vae").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["vae", "net"]
    assert [tick.get_fontweight() for tick in axes.get_yticklabels()] == ["bold", "normal"]
    drawn = points(axes)
    np.testing.assert_allclose(drawn[0], [[0, 0], [10, 0]])
    np.testing.assert_allclose(drawn[1], [[5, 0]])
    np.testing.assert_allclose(drawn[2], [[10, 1], [40, 1]])
    assert texts(axes) == ["5.0 %", "20.0 %"]


def test_calibration_is_drawn_with_exact_intervals_and_its_error():
    axes, below = plots.calibration([0.6, 0.9], [0.5, 1.0], [20, 30]).axes
    intervals, dots = axes.collections
    np.testing.assert_allclose(dots.get_offsets(), [[60, 50], [90, 100]])
    assert np.diff(dots.get_sizes()) > 0
    low, high = intervals.get_segments()[0][:, 1]
    exact = binomtest(10, 20).proportion_ci()
    np.testing.assert_allclose([low, high], [100 * exact.low, 100 * exact.high])
    assert axes.get_title() == f"expected calibration error {0.4 * 0.1 + 0.6 * 0.1:.3f}"
    assert [bar.get_height() for bar in below.patches] == [20, 30]


def test_error_is_drawn_against_coverage_with_what_was_wanted_and_taken():
    axes = plots.risk_coverage([0.2, 0.6, 1.0], [0.0, 0.02, 0.1], allowed=0.05, taken=0.6).axes[0]
    curve, wanted, safe = points(axes)
    np.testing.assert_allclose(curve, [[20, 0], [60, 2], [100, 10]])
    assert set(wanted[:, 1]) == {5}
    np.testing.assert_allclose(safe, [[60, 2]])
    assert texts(axes) == ["wanted: at most 5 %", "shown to be safe: 60 % of rows"]
    assert len(points(plots.risk_coverage([1.0], [0.0]).axes[0])) == 1


def test_a_confusion_tells_counts_and_shades_shares_of_the_class():
    axes = plots.confusion_matrix([[3, 1], [0, 0]], ["a$", "a name that is far too long"]).axes[0]
    assert texts(axes) == ["3", "1"]
    right, wrong = (image.get_array() for image in axes.images)
    assert (right[0, 0], wrong[0, 1]) == (0.75, 0.25)
    assert right.mask.tolist() == [[False, True], [True, False]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [r"a\$", "a name that is …"]


@pytest.mark.parametrize(("classes", "told"), [(2, True), (30, True), (31, False), (120, False)])
def test_confusions_of_many_classes_stay_readable(classes, told, tmp_path):
    figure = plots.confusion_matrix(np.eye(classes, dtype=int), range(classes), tmp_path / "c.png")
    assert bool(texts(figure.axes[0])) == told
    assert len(figure.axes[0].get_yticklabels()) <= 50
    assert max(figure.get_size_inches()) < 11


def test_a_learning_curve_is_drawn_with_intervals():
    axes = plots.error_by_labels([10, 20], [0.3, 0.2], [0.2, 0.1], [0.4, 0.3], title="m2").axes[0]
    np.testing.assert_allclose(points(axes)[0], [[10, 30], [20, 20]])
    np.testing.assert_allclose(axes.collections[0].get_segments()[1], [[20, 10], [20, 30]])
    assert texts(axes) == ["30.0 %", "20.0 %"]


def test_images_are_shown_above_their_captions():
    x = np.linspace(0, 1, 3 * 16).reshape(3, 4, 4)
    figure = plots.asked(x, ["one", "two$", "three"], columns=2)
    assert [axes.get_xlabel() for axes in figure.axes] == ["one", r"two\$", "three", ""]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), x[1])


# which rows are images

BYTES = np.random.default_rng(0).integers(0, 256, (7, 64), dtype=np.uint8)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (BYTES, BYTES.reshape(7, 8, 8) / 255),
        (BYTES.reshape(7, 8, 8), BYTES.reshape(7, 8, 8) / 255),
        (BYTES.reshape(7, 1, 8, 8), BYTES.reshape(7, 1, 8, 8) / 255),
        (BYTES[:, :48].reshape(7, 4, 4, 3), np.moveaxis(BYTES[:, :48].reshape(7, 4, 4, 3), -1, 1) / 255),
        (BYTES.reshape(7, 8, 8) / 255.0, BYTES.reshape(7, 8, 8) / 255),
        (pd.DataFrame(BYTES / 255.0).add_prefix("pixel").assign(kind="a"), BYTES.reshape(7, 8, 8) / 255),
        (pd.DataFrame(BYTES.astype(float)).add_prefix("x"), BYTES.reshape(7, 8, 8) / 255),
    ],
)
def test_rows_that_are_images_are_recognised(rows, expected):
    np.testing.assert_allclose(as_images(rows, "kind")([4, 2]), expected[[4, 2]], rtol=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        BYTES[:, :63],
        BYTES[:, :48].reshape(7, 2, 4, 6),
        pd.DataFrame(BYTES / 255.0).add_prefix("pixel").rename(columns={"pixel3": "age"}),
        pd.DataFrame(BYTES * 10.0).add_prefix("x"),
        pd.DataFrame(BYTES - 200.0).add_prefix("x"),
        pd.DataFrame({"a": [1.0]}),
    ],
)
def test_other_rows_are_not(rows):
    assert as_images(rows) is None


# the learning curve


class Counts(lab.Labeller):
    """Right on rows below a limit that rises with the labels it is given."""

    uses_unlabelled = False

    def __init__(self, answers, limit):
        self.answers, self.limit, self.seen = answers, limit, []

    def fit(self, x, y):
        self.learned = int((y >= 0).sum())
        self.seen.append(np.flatnonzero(y >= 0))
        return self

    def probabilities(self, x):
        rows = x[:, 0].astype(int)
        wrong = rows % 10 >= self.limit(self.learned)
        return np.eye(2)[np.where(wrong, 1 - self.answers[rows], self.answers[rows])]


def curve_of(limit, labels=80):
    y = np.arange(100) % 2
    x = np.arange(100, dtype=np.float32)[:, None]
    hidden = np.where(np.arange(100) < labels, y, -1)
    labeller = Counts(y, limit)
    found = lab.compare_labellers({"it": [labeller]}, x, hidden, folds=5)
    labeller.seen.clear()
    return comparing.learning_curve(found, "it", x, hidden), labeller.seen


def test_the_learning_curve_is_of_nested_parts_and_judged_on_what_they_leave():
    curve, seen = curve_of(lambda learned: {20: 5, 40: 7, 64: 10}[learned])
    assert (curve["labels"], curve["held_out"]) == ([20, 40, 64], [60, 40, 80])
    quarter, half = seen
    assert set(quarter) < set(half) < set(range(80))
    for place, (part, limit) in enumerate(((quarter, 5), (half, 7))):
        held = np.setdiff1d(np.arange(80), part)
        wrong = int((held % 10 >= limit).sum())
        assert curve["error"][place] == pytest.approx(wrong / len(held))
        assert (curve["low"][place], curve["high"][place]) == measures.error_interval(wrong, len(held))
    assert (curve["error"][2], curve["fell"]) == (0.0, True)
    json.dumps(curve, allow_nan=False)


def test_it_is_said_that_the_error_fell_only_if_it_did():
    assert curve_of(lambda learned: 9)[0]["fell"] is False
    assert curve_of(lambda learned: 10 - learned // 20)[0]["fell"] is False
    assert curve_of(lambda learned: 9, labels=39)[0] is None


def test_every_beginning_of_the_order_holds_all_classes_in_their_shares():
    y = np.array([0] * 60 + [1] * 30 + [2] * 9 + [3] + [-1] * 20)
    order = lab.comparison.nested_order(y, seed=3)
    assert sorted(order) == list(range(100))
    assert set(y[order[:4]]) == {0, 1, 2, 3}
    for count in (25, 50):
        shares = np.bincount(y[order[:count]], minlength=4)
        assert abs(shares - np.array([60, 30, 9, 1]) * count / 100).max() <= 1
    np.testing.assert_array_equal(order, lab.comparison.nested_order(y, seed=3))


# the whole way


def scenes(rows=120, labels=60):
    """Images of a bright half, and labels of some."""
    rng = np.random.default_rng(1)
    y = np.arange(rows) % 2
    x = rng.integers(0, 120, (rows, 8, 8), dtype=np.uint8)
    x[y == 0, :4] += 110
    x[y == 1, 4:] += 110
    return x, np.where(np.arange(rows) < labels, np.array(["top", "foot"])[y], "")


quickly = functools.partial(lab.label, method=["supervised", "gradient-boosting"], folds=2, steps=30)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    x, y = scenes()
    folder = tmp_path_factory.mktemp("drawn")
    state = torch.get_rng_state()
    found = quickly(x, y, directory=folder)
    written = found.save_pictures(folder)
    assert (torch.get_rng_state() == state).all()
    return found, folder, written


def test_every_picture_is_made_and_none_is_blank(drawn):
    _, folder, written = drawn
    names = ["errors", "calibration", "coverage", "confusion", "learning-curve", "ask-next"]
    assert [path.name for path in written] == ["report.txt", *(f"{name}.png" for name in names)]
    for path in written[1:]:
        assert path.parent == folder
        assert ink(path) > 5, path.name


def test_the_labeller_is_read_back_from_among_its_pictures(drawn):
    found, folder, _ = drawn
    again = lab.load_labeller(folder)
    assert again.report == json.loads(json.dumps(found.report))
    np.testing.assert_allclose(again.probabilities(scenes()[0]).sum(1), 1, atol=1e-6)


def test_the_report_tells_the_curve_and_what_to_label_next(drawn):
    found, folder, _ = drawn
    curve = found.report["learning_curve"]
    assert curve["labels"] == [15, 30, 30]
    assert "Learning curve: an error of " in found.text
    first = ", ".join(map(str, found.report["ask_next"][:10]))
    assert f"Rows to label next, the most useful first: {first}." in found.text
    assert (folder / "report.txt").read_text() == f"{found.text}\n"


def test_what_the_report_does_not_hold_is_not_drawn(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)) + np.repeat([[-3, 0], [3, 0]], 20, axis=0)
    y = np.full(40, -1)
    y[[0, 39]] = 0, 1
    found = lab.label(x, y, method="supervised", steps=5)
    assert [path.name for path in found.save_pictures(tmp_path / "new")] == ["report.txt"]
    y[[1, 2, 37, 38]] = 0, 0, 1, 1
    found = quickly(x, y)
    assert "learning_curve" not in found.report or found.report["learning_curve"] is None
    names = {path.stem for path in found.save_pictures(tmp_path)}
    assert names == {"report", "errors", "calibration", "coverage", "confusion"}


def test_the_curve_can_be_left_out_and_needs_time():
    x, y = scenes()
    left_out = [quickly(x, y, curve=False), quickly(x, y, minutes=1e-9)]
    assert all("learning_curve" not in found.report for found in left_out)
    first, again = (quickly(x, y).report["learning_curve"] for _ in range(2))
    assert first == again
    assert pv.label is lab.label
