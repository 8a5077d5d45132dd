"""What labels are worth: draws, records that a study goes on from, tables, and asking for rows against chance."""

import csv
import json

import numpy as np
import pytest
import torch

from pyrovae import cli, plots
from pyrovae import labelling as lab
from pyrovae.errors import ConfigError, DataError

QUICK = {"seeds": 2, "steps": 3}


def blobs(rows=150, seed=0, distance=2.5):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    centres = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]) * distance
    return rng.normal(size=(rows, 4)) + centres[y], y


@pytest.fixture(scope="module")
def rows():
    return lab.StudyRows.split(*blobs(), "blobs")


# rows and draws


def test_a_fifth_of_every_class_is_kept_for_testing():
    y = np.repeat(["a", "b", "c", "d", ""], [50, 10, 2, 1, 7])
    found = lab.StudyRows.split(np.arange(140.0).reshape(70, 2) ** 0.5, y)
    assert found.classes == ("a", "b", "c", "d")
    assert np.bincount(found.test_y).tolist() == [10, 2, 1]
    assert found.counts.tolist() == [40, 8, 1, 1]
    assert (found.y < 0).sum() == 7
    assert not {tuple(row) for row in found.x} & {tuple(row) for row in found.test_x}


def test_a_data_set_keeps_its_own_test_rows():
    digits = lab.StudyRows.read("digits")
    assert (len(digits.x), len(digits.test_x), len(digits.classes)) == (1500, 297, 10)
    assert digits.fingerprint == lab.StudyRows.read("digits").fingerprint


@pytest.mark.parametrize("labels", [3, 7, 30, 45, 80, 100])
def test_draws_hold_as_many_labels_as_were_wanted_and_every_class(labels):
    y = np.repeat([0, 1, 2, -1], [60, 30, 10, 20])
    hidden, how = lab.draw_labels(y, labels, seed=3)
    counts = np.bincount(hidden[hidden >= 0], minlength=3)
    assert counts.sum() == labels
    assert how == ("even" if labels <= 30 else "shares")
    assert (hidden[hidden >= 0] == y[hidden >= 0]).all()
    if how == "even":
        assert counts.max() - counts.min() <= 1
    else:
        np.testing.assert_allclose(counts, 1 + np.array([59, 29, 9]) * (labels - 3) / 97, atol=1)
    np.testing.assert_array_equal(hidden, lab.draw_labels(y, labels, seed=3)[0])


def test_draws_of_one_seed_are_nested_and_seeds_differ():
    y = np.arange(300) % 3
    small, large, other = (np.flatnonzero(lab.draw_labels(y, n, s)[0] >= 0) for n, s in ((9, 0), (30, 0), (9, 1)))
    assert np.isin(small, large).all()
    assert not np.isin(small, other).all()


# methods against numbers of labels


def test_every_method_is_measured_and_repeats_itself(rows):
    runs, again = (lab.compare_labels(rows, [9], lab.STUDIED, seeds=1, steps=6) for _ in range(2))
    assert [run["method"] for run in runs] == list(lab.STUDIED)
    for run, other in zip(runs, again, strict=True):
        assert 0 <= run["error"] <= 0.8
        assert 0 <= run["ece"] <= 1
        assert (run["error"], run["log_loss"]) == (other["error"], other["log_loss"])
        assert run["seconds"] > 0
        assert (run["vae_seconds"] > 0) == (run["method"] in ("propagation", "m2", "smooth"))
    assert {run["setting"].partition(" ")[0] for run in runs} == {"", "alpha", "reach"}


def test_measures_are_those_of_the_labeller_itself(rows):
    (run,) = lab.compare_labels(rows, [30], ["label-spreading"], seeds=1)
    y, _ = lab.draw_labels(rows.y, 30, 0)
    p = lab.GraphSpreading(3).fit(rows.x, y).probabilities(rows.test_x)
    assert run["error"] == (p.argmax(1) != rows.test_y).mean()
    own = np.maximum(p[np.arange(len(p)), rows.test_y], 1e-6)
    assert run["log_loss"] == pytest.approx(-np.log(own).mean())


class _Killed(Exception):
    pass


def killed_after(count):
    seen = []

    def told(run):
        seen.append(run)
        if len(seen) == count:
            raise _Killed

    return told


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain(runs):
    """Without times, which differ."""
    return [{k: v for k, v in run.items() if "seconds" not in k} for run in runs]


@pytest.mark.parametrize("count", [1, 3])
def test_a_study_goes_on_where_it_was_stopped(rows, tmp_path, count):
    out, call = tmp_path / "runs.jsonl", (rows, [6, 12], ["label-spreading", "smooth"])
    with pytest.raises(_Killed):
        lab.compare_labels(*call, **QUICK, out=out, told=killed_after(count))
    assert len(lines_of(out)) == count
    new = []
    runs = lab.compare_labels(*call, **QUICK, out=out, told=new.append)
    assert len(runs) == len(lines_of(out)) == len(new) + count == 8
    assert lines_of(out) == runs
    assert plain(runs) == plain(lab.compare_labels(*call, **QUICK))
    lab.compare_labels(*call, **QUICK, out=out, told=killed_after(1))  # nothing is left to do
    other = lab.compare_labels(rows, [6], ["smooth"], seeds=1, steps=4, out=out)
    assert (other[0]["steps"], len(lines_of(out))) == (4, 9)


def test_other_rows_are_another_study(rows, tmp_path):
    call = {"labels": [6], "methods": ["supervised"], "seeds": 1, "steps": 4, "out": tmp_path / "runs.jsonl"}
    lab.compare_labels(rows, **call)
    lab.compare_labels(lab.StudyRows.split(*blobs(seed=1), "blobs"), **call)
    assert len(lines_of(call["out"])) == 2


def test_a_line_that_a_kill_cut_off_is_dropped(rows, tmp_path):
    out, call = tmp_path / "runs.jsonl", (rows, [6], ["supervised"])
    runs = lab.compare_labels(*call, **QUICK, out=out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    assert plain(lab.compare_labels(*call, **QUICK, out=out)) == plain(runs)
    assert plain(lines_of(out)) == plain(runs)


@pytest.mark.parametrize("content", ["# notes", "a\nb\n", '{"study": "labels"}\n{"a": 1}\n', '["x"]\n', '{"cut\n{}\n'])
def test_a_file_of_something_else_is_left_alone(rows, tmp_path, content):
    out = tmp_path / "runs.jsonl"
    out.write_text(content)
    with pytest.raises(ConfigError, match="no finished run"):
        lab.compare_labels(rows, [6], ["supervised"], **QUICK, out=out)
    assert out.read_text() == content


# asking


def test_both_ways_begin_alike_and_ask_for_as_many(rows):
    runs = lab.simulate_asking(rows, [4, 10, 15], "label-spreading", seeds=1, steps=12, batch=4)
    assert [(run["strategy"], run["labels"]) for run in runs] == [(s, n) for s in lab.STRATEGIES for n in (4, 10, 15)]
    assert runs[0]["error"] == runs[3]["error"]
    assert runs[0]["asked"] == runs[3]["asked"]
    for path in (runs[:3], runs[3:]):
        asked = [row for run in path for row in run["asked"]]
        assert [len(run["asked"]) for run in path] == [4, 6, 5]
        assert len(set(asked)) == 15
    assert {*rows.y[runs[0]["asked"]]} == {0, 1, 2}
    assert runs[1]["asked"] != runs[4]["asked"]


@pytest.mark.parametrize("batch", [None, 2])
def test_what_is_asked_is_what_ask_next_ranks_first(rows, batch):
    runs = lab.simulate_asking(rows, [6, 11], "label-spreading", seeds=1, steps=3, batch=batch)
    sizes = lab.sizes_for(len(rows.x), rows.features, steps=3)
    codes, known = lab.Density.train(rows.x, rows.features, sizes, 0).codes(rows.x), list(runs[0]["asked"])
    for count in [5] if batch is None else [2, 2, 1]:
        shown = np.isin(np.arange(len(rows.y)), known)
        p = lab.GraphSpreading(3).fit(rows.x, np.where(shown, rows.y, -1)).probabilities(rows.x)
        ranks = lab.ask_next(p, codes, shown, count)
        known += [int(np.flatnonzero(ranks == i + 1)[0]) for i in range(count)]
    assert runs[1]["asked"] == known[6:]


def test_rows_whose_label_nobody_knows_are_not_asked_about():
    x, y = blobs(90)
    y[::2] = -1
    rows = lab.StudyRows.split(x, y)
    runs = lab.simulate_asking(rows, [3, int(rows.counts.sum())], "label-spreading", seeds=1, steps=4)
    for run in runs:
        assert (rows.y[run["asked"]] >= 0).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_asking_goes_on_where_it_was_stopped(rows, tmp_path, count):
    out, call = tmp_path / "asking.jsonl", (rows, [4, 8, 12], "label-spreading")
    with pytest.raises(_Killed):
        lab.simulate_asking(*call, **QUICK, batch=2, out=out, told=killed_after(count))
    runs = lab.simulate_asking(*call, **QUICK, batch=2, out=out)
    assert lines_of(out) == runs
    assert plain(runs) == plain(lab.simulate_asking(*call, **QUICK, batch=2))
    assert len(lab.simulate_asking(rows, [4, 12], "label-spreading", **QUICK, batch=2, out=out)) == 8
    assert len(lines_of(out)) == 12 + 4  # a round after other rounds is another one


# tables and plots

RUNS = [
    {"labels": n, "method": m, "seed": s, "error": e, "log_loss": 2 * e}
    for n, m, errors in [(10, "a", [0.2, 0.3, 0.4]), (10, "b", [0.5]), (20, "a", [0.1, 0.1, 0.1])]
    for s, e in enumerate(errors)
]


def test_the_table_is_what_a_hand_computes():
    table = lab.study_table(RUNS)
    half = 4.30265273 * 0.1 / 3**0.5  # the 97.5 % quantile of Student's t with 2 degrees of freedom
    cell = table.values["a"][10]
    assert [cell["mean"], cell["low"], cell["high"], cell["runs"]] == pytest.approx([0.3, 0.3 - half, 0.3 + half, 3])
    assert table.values["b"][10] == {"mean": 0.5, "low": None, "high": None, "runs": 1}
    assert table.text.splitlines() == [
        "| labels | a | b |",
        "|---:|---:|---:|",
        "| 10 | 30.00 [5.16, 54.84] | 50.00 |",
        "| 20 | 10.00 [10.00, 10.00] |  |",
    ]
    assert json.loads(json.dumps(table.values["b"])) == {"10": table.values["b"][10]}
    assert lab.study_table(RUNS, "log_loss").text.splitlines()[-1] == "| 20 | 0.200 [0.200, 0.200] |  |"
    with pytest.raises(ConfigError, match="ece"):
        lab.study_table(RUNS, "ece")


def test_curves_are_drawn_with_their_bands(tmp_path):
    figure = lab.study_table(RUNS).plot(tmp_path / "curves.png")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[10, 30], [20, 10]])
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] == 0
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "learning_curves" in plots.__all__


# refusals

BAD = [
    ({"labels": []}, ConfigError, "labels: expected how many"),
    ({"labels": [2, 9]}, ConfigError, "3 classes and 2 labels"),
    ({"labels": [9, 121]}, ConfigError, "at most the 120 labelled training rows, received 121"),
    ({"methods": ["smoth"]}, ConfigError, "'smoth' .did you mean 'smooth'?"),
    ({"methods": []}, ConfigError, "received none"),
    ({"seeds": 0}, ConfigError, "seeds: expected an int from 1"),
    ({"steps": 0}, ConfigError, "steps: expected an int from 1"),
    ({"data": "digit"}, DataError, 'did you mean "digits"'),
    ({"data": "shapes"}, ConfigError, "no labels are known"),
    ({"data": "digits", "label_column": "y"}, ConfigError, "leave it out"),
    ({"data": "diabetes"}, DataError, "label"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=[str(case[0]) for case in BAD])
def test_what_cannot_be_compared_is_refused(rows, tmp_path, change, error, words):
    call = {"data": rows, "labels": [9], "methods": ["supervised"], "out": tmp_path / "runs.jsonl"} | change
    with pytest.raises(error, match=words):
        lab.compare_labels(**call)
    assert not list(tmp_path.iterdir())


def test_asking_refuses_what_it_cannot_do(rows):
    with pytest.raises(ConfigError, match="batch"):
        lab.simulate_asking(rows, [3, 9], batch=0)
    with pytest.raises(ConfigError, match="path of a file"):
        lab.simulate_asking(rows, [3, 9], out="nowhere/runs.jsonl")
    with pytest.raises(DataError, match="to be tested on"):
        lab.StudyRows.split(np.arange(6.0).reshape(3, 2), ["a", "b", "c"])


# the command


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = blobs(60)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        kinds = ["iris", "rose", "tulip"]
        csv.writer(file).writerows([["a", "b", "c", "d", "kind"], *([*r, kinds[k]] for r, k in zip(x, y, strict=True))])

    def call(*arguments):
        code = cli._run(["compare", *map(str, arguments)], debug=False)
        return code, *capsys.readouterr()

    return call


def test_the_command_compares_and_goes_on(run, tmp_path):
    quick = ("t.csv", "--label-column", "kind", "--steps", 4, "--seeds", 2)
    call = ("labels", *quick, "--labels", "6, 12", "--methods", "supervised,label-spreading", "--out", "runs.jsonl")
    code, out, err = run(*call)
    assert (code, err) == (0, "")
    assert out.count("error ") == 8
    assert "seed 1, 12 labels, label-spreading: error " in out
    assert "| labels | supervised | label-spreading |" in out
    assert "8 runs in runs.jsonl, 0 of them from before; plot in runs.png" in out
    assert (tmp_path / "runs.png").is_file()
    code, out, err = run(*call)
    assert "8 of them from before" in out
    assert "seed 1" not in out
    assert len(lines_of(tmp_path / "runs.jsonl")) == 8
    code, out, err = run("asking", *quick, "--labels", "3,6", "--method", "label-spreading", "--out", "asking.jsonl")
    assert (code, err) == (0, "")
    assert "seed 0, 6 labels, ask_next, label-spreading: error " in out
    assert "| labels | ask_next | random |" in out
    assert len(lines_of(tmp_path / "asking.jsonl")) == 8


REFUSED = [
    (2, ["labels", "digits"], "--labels"),
    (2, ["labels", "digits", "--labels", "ten"], "such as 20,50, received 'ten'"),
    (2, ["labels", "digits", "--labels", "0,20"], "from 1"),
    (2, ["labels", "digits", "--labels", "5"], "10 classes and 5 labels"),
    (2, ["labels", "digits", "--labels", "1501"], "at most the 1500"),
    (2, ["labels", "digits", "--labels", "20", "--methods", "m1"], "did you mean 'm2'"),
    (2, ["labels", "digits", "--labels", "20", "--methods", ""], "received none"),
    (2, ["labels", "digits", "--labels", "20", "--seeds", "0"], "seeds"),
    (2, ["labels", "digits", "--labels", "20", "--steps", "x"], "--steps"),
    (2, ["labels", "digits", "--labels", "20", "--out", "runs.csv"], ".jsonl"),
    (2, ["labels", "digits", "--labels", "20", "--out", "nowhere/runs.jsonl"], "no directory"),
    (2, ["labels", "digits", "--labels", "20", "--sedes", "1"], "--seeds"),
    (2, ["labels", "t.csv", "--labels", "6"], "--label-column"),
    (3, ["labels", "t.csv", "--labels", "6", "--label-column", "kid"], "kid"),
    (3, ["labels", "none.csv", "--labels", "6", "--label-column", "kind"], "no such file"),
    (2, ["asking", "digits", "--labels", "20", "--method", "random"], "methods"),
    (2, ["asking", "digits", "--labels", "20", "--batch", "0"], "batch"),
    (2, ["asking", "digits"], "--labels"),
    (2, ["lables", "digits"], "did you mean 'labels'"),
]


@pytest.mark.parametrize(("code", "call", "words"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_the_command_refuses_in_a_line_and_writes_nothing(run, tmp_path, code, call, words):
    found, _, err = run(*call)
    assert err.startswith("pyrovae: error: "), err
    assert err.count("\n") == 1
    assert words in err, err
    assert found == code, err
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_the_callers_random_numbers_stay_as_they_are(rows):
    before = torch.get_rng_state()
    lab.compare_labels(rows, [6], ["smooth"], seeds=1, steps=2)
    assert torch.equal(before, torch.get_rng_state())
