"""The command as a user types it: what it writes, what it refuses in one line, and with which exit code."""

import csv
import gzip
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

import pyrovae as pv
from pyrovae import cli

QUICK = ("--epochs", "1", "--k", "5", "--hidden", "8")
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(60, 3))
KINDS = ["cat", "dog"] * 30


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_table(path, order=(0, 1, 2, 3), header=("a", "b", "c", "kind")):
    rows = [[*row, kind] for row, kind in zip(TABLE.tolist(), KINDS, strict=True)]
    write_csv(path, [header[i] for i in order], [[row[i] for i in order] for row in rows])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pyrovae(here, capsys):
    def run(*arguments):
        capsys.readouterr()
        code = cli._run([str(a) for a in arguments], debug=False)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def ok(pyrovae):
    def run(*arguments):
        code, out, err = pyrovae(*arguments)
        assert (code, err) == (0, ""), err
        return out

    return run


@pytest.fixture
def refused(pyrovae):
    def run(code, *words, call):
        found, _, err = pyrovae(*call)
        assert err.startswith("pyrovae: error: "), err
        assert err.count("\n") == 1
        assert len(err) < 700
        assert all(str(word) in err for word in words), err
        assert found == code, err
        return err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs that many tests read and none changes."""
    folder = tmp_path_factory.mktemp("runs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_table(folder / "table.csv")
        np.save(folder / "grey.npy", RNG.random((40, 1, 8, 8)).astype("f4"))
        for call in (
            ("digits", "--latent", "2", "--out", "digits", *QUICK),
            ("table.csv", "--label-column", "kind", "--out", "table", *QUICK),
            ("grey.npy", "--out", "grey", *QUICK),
        ):
            assert cli._run(["fit", *call], debug=True) == 0
    finally:
        os.chdir(before)
    return folder


# ---- help, usage


def test_help_and_version(ok):
    assert ok("--version") == f"pyrovae {pv.__version__}\n"
    for command in ("fit", "evaluate", "sample", "encode", "score", "parts"):
        assert command in ok("--help")
        assert "Usage: pyrovae " in ok(command, "--help")


def test_no_command_shows_the_help(pyrovae):
    code, out, err = pyrovae()
    assert code == 2
    assert "Usage" in out
    assert not err


def test_parts_lists_every_part_with_its_formula(ok):
    out = ok("parts")
    for name in ("standard-normal()", "mixture(components=10)", "vamp-prior(", "continuous-bernoulli(", "student-t("):
        assert name in out
    for formula in ("p(z) = N(z; 0, I)", "1/K sum_k q(z | u_k)", "softplus(l_d)", "beta KL(q(z|x) || p(z))"):
        assert formula in out
    for word in ("--prior", "--likelihood", "--posterior", "--net", "--objective", "--preprocess", "leaky-relu"):
        assert word in out


USAGE = [
    (["fti", "digits"], "no such command 'fti'", "did you mean 'fit'"),
    (["fit"], "DATA", "pyrovae fit digits"),
    (["fit", "digits", "extra"], "extra"),
    (["fit", "digits", "--epocs", "1"], "--epocs", "did you mean '--epochs'", "pyrovae fit --help"),
    (["fit", "digits", "--lerning-rate", "1"], "--lerning-rate", "no such option"),
    (["fit", "digits", "--out"], "--out"),
    (["sample"], "RUN"),
    (["score", "run"], "DATA"),
    (["sample", "run", "--n", "many"], "--n: expected an int, received 'many'"),
    (["sample", "run", "--n", "0"], "--n", "from 1", "0"),
    (["evaluate", "run", "--k=x"], "--k: expected an int, received 'x'"),
    (["evaluate", "run", "--k=0"], "--k", "from 1"),
    (["fit", "digits", "--lr", "fast"], "--lr: expected a number, received 'fast'"),
    *((["fit", "digits", f"--{n}", v], f"--{n}", v) for n in ("epochs", "batch", "latent", "k") for v in ("0", "-1")),
    *((["fit", "digits", "--lr", v], "--lr", "a positive number", v) for v in ("nan", "inf", "-1", "0")),
    (["fit", "digits", "--clip", "0"], "--clip"),
    (["fit", "digits", "--patience", "0"], "--patience"),
    (["fit", "digits", "--seed", "-1"], "--seed", "from 0"),
    *((["fit", "digits", "--hidden", v], "--hidden", "300,300", v) for v in ("300,x", "3,,3", ",", "0", "-3")),
    (["fit", "digits", "--hidden", "3", "--net", "mlp(hidden=[3])"], "--hidden", "--net", "mlp(hidden="),
    (["fit", "digits", "--hidden", "3", "--net", "conv"], "--hidden", "ConvNet", "channels="),
    (["fit", "digits", "--device", "cuda:99"], "--device", "cuda:99", "try cpu"),
    (["fit", "digits", "--device", "tpu"], "--device", "'tpu'", "try cpu"),
    (["fit", "digits", "--compile", "jit"], "--compile", "auto, compiled, replay, eager", "'jit'"),
    (["fit", "digits", "--precision", "fp16"], "--precision", "float32, bf16", "'fp16'"),
    (["fit", "digits", "--precision", "bf16", "--compile", "eager"], "precision", "'eager'"),
    (["fit", "digits", "--prior", "vapm"], "--prior", "did you mean 'vamp'"),
    (["fit", "digits", "--prior", "vamp(component=5)"], "--prior", "did you mean 'components'"),
    (["fit", "digits", "--prior", "vamp(components=0)"], "components", "0"),
    (["fit", "digits", "--prior", "mixture(components='5')"], "components", "'5'"),
    (["fit", "digits", "--prior", "mixture(components=[1])"], "components", "[1]"),
    (["fit", "digits", "--likelihood", "gauss"], "--likelihood", "continuous-bernoulli"),
    (["fit", "digits", "--likelihood", "normal(scale='x y')"], "--scale", "'x y'"),
    (["fit", "digits", "--posterior", "vamp-prior"], "--posterior", "student-t"),
    (["fit", "digits", "--net", "rnn"], "--net", "gated-mlp"),
    (["fit", "digits", "--net", "mlp(hidden=3)"], "hidden", "3"),
    (["fit", "digits", "--objective", "elbow"], "--objective", "did you mean 'elbo'"),
    (["fit", "digits", "--objective", "elbo(beta=-1)"], "--objective", "beta", "-1"),
    (["fit", "digits", "--preprocess", "binarise"], "--preprocess", "did you mean 'binarize'"),
    (["fit", "digits", "--label-column", "kind"], "label column", "file"),
    (["fit", "iris", "--net", "conv", *QUICK[:4]], "image", "MLP"),
    (["fit", "digits", "--config", "nope.toml"], "nope.toml", "no such file"),
]


@pytest.mark.parametrize("case", USAGE, ids=lambda case: " ".join(case[0]))
def test_wrong_usage(refused, here, case):
    call, *words = case
    refused(2, *words, call=call)
    assert not list(here.iterdir()), "nothing is left behind"


# ---- data


def gz_idx(path):
    content = gzip.compress(struct.pack(">IIII", 0x803, 20, 8, 8) + RNG.bytes(20 * 64))
    path.write_bytes(content[: len(content) // 2])


def gadget_npz(path):
    class Gadget:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "canary"),)

    np.savez(path, x=np.array([Gadget()], object))


def with_cell(value):
    def save(path):
        x = TABLE.copy()
        x[7, 1] = value
        np.save(path, x)

    return save


DATA = {
    "missing file": ("x.npz", None, "x.npz", "no such file"),
    "misspelt name": ("digit", None, "digit", 'did you mean "digits"'),
    "directory": ("x", Path.mkdir, "directory"),
    "empty npz": ("x.npz", Path.touch, "x.npz", "empty"),
    "empty csv": ("x.csv", Path.touch, "x.csv", "empty"),
    "truncated gz": ("x-images-idx3-ubyte.gz", gz_idx, "truncated"),
    "object array": ("x.npz", gadget_npz, 'array "x"', "never unpickled"),
    "pickle": ("x.npy", lambda p: p.write_bytes(pickle.dumps([1, 2])), "x.npy"),
    "ragged csv": ("x.csv", lambda p: p.write_text("a,b\n1,2\n3\n"), "line 3", "1 cell", "header has 2"),
    "text cell": ("x.csv", lambda p: p.write_text("a,b\n1,2\n3,hello\n"), '"b"', "line 3", '"hello"'),
    "no rows": ("x.csv", lambda p: p.write_text("a,b\n"), "0 rows"),
    "zero rows": ("x.npy", lambda p: np.save(p, np.zeros((0, 3))), "(0, 3)"),
    "one row": ("x.npy", lambda p: np.save(p, TABLE[:1]), "1 row", "at least 2"),
    "inf": ("x.npy", with_cell(np.inf), "infinite", "column 1"),
    "-1e30": ("x.npy", with_cell(-1e30), "column 1"),
    "labels": ("x.npz", lambda p: np.savez(p, x=TABLE, y=np.arange(59)), "60 rows but 59 labels"),
    "one axis": ("x.npy", lambda p: np.save(p, TABLE[:, 0]), "reshape"),
    "text array": ("x.npy", lambda p: np.save(p, np.array(["a", "b"])), "x.npy"),
    "escapes": ("x.csv", lambda p: p.write_text("a\n1\n\x1b[2J\n"), "line 3"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_used(refused, here, name):
    file, prepare, *words = DATA[name]
    if prepare is not None:
        prepare(here / file)
    before = sorted(here.rglob("*"))
    err = refused(3, *words, call=["fit", file, *QUICK])
    assert "\x1b" not in err
    assert sorted(here.rglob("*")) == before, "no run directory is left behind, and nothing was executed"


def test_values_outside_the_support(refused, ok, here):
    grey = RNG.random((40, 1, 8, 8)).astype("f4")
    np.save("grey.npy", grey)
    np.save("bytes.npy", (grey * 255).astype(np.uint8))
    np.save("counts.npy", RNG.integers(0, 17, (40, 6)))
    advice = ("--preprocess binarize", "ContinuousBernoulli", "Normal", "pixel")
    for file in ("grey.npy", "bytes.npy"):
        refused(3, file, *advice, call=["fit", file, "--likelihood", "bernoulli", *QUICK])
    raw = ["--preprocess", "identity", *QUICK]
    refused(3, "0..255", "rescale", call=["fit", "bytes.npy", "--likelihood", "bernoulli", *raw])
    refused(3, "column", call=["fit", "counts.npy", "--likelihood", "categorical(classes=5)", *QUICK])
    assert {p.name for p in here.iterdir()} == {"grey.npy", "bytes.npy", "counts.npy"}
    assert "Categorical(shape=[6]" in ok("fit", "counts.npy", "--likelihood", "categorical(classes=17)", *QUICK)
    assert "Bernoulli" in ok("fit", "bytes.npy", "--likelihood", "bernoulli", "--preprocess", "binarize", *QUICK)
    assert "ContinuousBernoulli" in ok("fit", "bytes.npy", *QUICK)


def test_the_test_rows_are_checked_too(refused, here):
    x = np.zeros((40, 3))
    x[np.random.default_rng(0).permutation(40)[-4]] = 0.5  # a row that the split sets apart
    np.save("x.npy", x)
    refused(3, "grey values", call=["fit", "x.npy", *QUICK])


# ---- fit


def test_a_run_of_images(trained, ok):
    run = trained / "digits"
    pictures = {f"{n}.png" for n in ("loss", "samples", "reconstructions", "latent", "manifold")}
    files = {"model.toml", "weights.safetensors", "metrics.jsonl", "manifest.json"}
    assert {p.name for p in run.iterdir()} == files | pictures
    assert all((run / p).read_bytes().startswith(b"\x89PNG") for p in pictures)
    manifest = json.loads((run / "manifest.json").read_text())
    assert set(manifest["files"]) == (files | pictures) - {"manifest.json"}
    assert manifest["preprocess"] == {"type": "Binarize"}
    assert manifest["settings"]["data"] == "digits"
    assert manifest["results"]["rows"] == 297
    assert pv.load(run).model.sample(3).shape == (3, 1, 8, 8)


def test_a_run_of_columns(trained):
    run = trained / "table"
    assert {p.name for p in run.glob("*.png")} == {"loss.png", "samples.png", "reconstructions.png"}
    loaded = pv.load(run)
    assert loaded.schema.columns == ("a", "b", "c")
    assert loaded.schema.classes == ("cat", "dog")
    assert isinstance(loaded.preprocess, pv.Standardize)


@pytest.mark.parametrize("data", ["iris", "wine", "breast-cancer", "diabetes"])
def test_bundled_tables(ok, data):
    out = ok("fit", data, *QUICK)
    assert "Standardize" in out
    assert "LearnedScale" in out
    assert f"runs/{data}" in out


@pytest.mark.parametrize(
    "options",
    [
        ["--prior", "mixture(components=3)", "--posterior", "laplace"],
        ["--prior", "vamp(components=20)", "--patience", "1"],
        ["--prior", "student-t(df=5.0)", "--likelihood", "continuous-bernoulli"],
        ["--likelihood", "normal(scale=fixed-scale(value=0.5))", "--objective", "elbo(beta=cyclical(cycles=2))"],
        ["--likelihood", "normal(scale=optimal-scale)", "--clip", "10", "--batch", "1000"],
        ["--objective", "iwae(k=2)", "--net", "mlp(hidden=[8], activation=silu)"],
        ["--preprocess", "threshold(level=0.3)", "--net", "conv(channels=[2, 2])"],
    ],
    ids=" ".join,
)
def test_parts_by_name(ok, options):
    quick = QUICK[:4] if "--net" in options else QUICK
    ok("fit", "digits", "--out", "run", *options, *quick)
    assert "active" in ok("evaluate", "run", "--k", "2")


def test_a_likelihood_of_grey_values_is_given_grey_values(ok):
    out = ok("fit", "digits", "--likelihood", "normal", *QUICK)
    assert "Identity" in out
    assert "Binarize" in ok("fit", "digits", *QUICK)


def test_strange_but_good_data(ok, here):
    np.save("two.npy", TABLE[:2])
    np.save("constant.npy", np.full((30, 3), 7.0))
    np.save("column.npy", TABLE[:, :1])
    np.save("flat images.npy", RNG.random((30, 8, 8)))
    np.save("colour.npy", RNG.random((30, 3, 8, 8)))
    np.save("-big.npy", (TABLE * 1e6).astype(">f8"))
    for name in ("two", "constant", "column", "flat images", "colour", "./-big"):
        assert "written to   runs/" in ok("fit", f"{name}.npy", "--latent", "2", *QUICK)
    assert (here / "runs" / "flat images" / "manifold.png").exists()


def test_default_directories_are_counted(ok, here):
    for name in ("digits", "digits-2", "digits-3"):
        assert f"runs/{name}\n" in ok("fit", "digits", *QUICK)


def test_the_same_seed_gives_the_same_weights(ok, here):
    for out in ("a", "b"):
        ok("fit", "iris", "--out", out, *QUICK)
    ok("fit", "iris", "--out", "c", "--seed", "1", *QUICK)
    a, b, c = ((here / n / "weights.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_out_is_found_unfit_before_training(refused, ok, here):
    (here / "file").touch()
    (here / "full").mkdir()
    (here / "full" / "mine.txt").touch()
    started = time.perf_counter()
    refused(2, "file", "directory", call=["fit", "digits", "--out", "file"])
    refused(6, "file/x", "cannot be written", call=["fit", "digits", "--out", "file/x"])
    refused(6, "/proc/x", "cannot be written", call=["fit", "digits", "--out", "/proc/x"])
    refused(2, "full", "not empty", "--overwrite", call=["fit", "digits", "--out", "full"])
    refused(2, "full", "mine.txt", call=["fit", "digits", "--out", "full", "--overwrite"])
    assert time.perf_counter() - started < 30
    assert (here / "full" / "mine.txt").exists()


def test_overwriting_a_run(refused, ok, here):
    ok("fit", "iris", "--out", "run", *QUICK)
    before = (here / "run" / "weights.safetensors").read_bytes()
    refused(2, "run", "--overwrite", call=["fit", "iris", "--out", "run", *QUICK])
    refused(3, "irs", call=["fit", "irs", "--out", "run", "--overwrite", *QUICK])
    assert (here / "run" / "weights.safetensors").read_bytes() == before, "a typo costs no run"
    ok("fit", "iris", "--out", "run", "--overwrite", "--seed", "1", *QUICK)
    assert (here / "run" / "weights.safetensors").read_bytes() != before
    assert [p.name for p in here.iterdir()] == ["run"]


def test_divergence(refused, here):
    call = ["fit", "iris", "--out", "run", "--lr", "1e30", *QUICK, "--epochs", "3"]
    refused(5, "diverged at step", "site", "row", "lower the learning rate", call=call)
    weights = safetensors.torch.load_file(here / "run" / "weights.safetensors")
    assert all(t.isfinite().all() for t in weights.values())
    assert pv.load("run").manifest["stopped"].startswith("TrainingDiverged")


def test_toml(ok, here):
    Path("run.toml").write_text("""
data = "digits"
latent = 2
epochs = 1
k = 5
hidden = [8]
objective = {type = "ELBO", beta = {type = "Warmup", over = 0.5}}

[prior]
type = "Mixture"
components = 3

[likelihood]
type = "normal"
scale = "shared-scale"
""")
    out = ok("fit", "--config", "run.toml", "--out", "run", "--latent", "3")
    assert "Mixture(shape=3, components=3)" in out
    assert "scale=SharedScale" in out
    assert pv.load("run").manifest["settings"]["prior"] == {"type": "Mixture", "components": 3}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("epoch = 1", ["run.toml", "'epoch'", "did you mean 'epochs'"]),
        ('epochs = "1"', ["--epochs", "'1'"]),
        ("epochs = true", ["--epochs", "True"]),
        ("epochs =", ["run.toml", "line 2"]),
        ("out = 3", ["--out", "3"]),
        ('overwrite = "yes"', ["--overwrite", "'yes'"]),
        ("hidden = [3, 'x']", ["--hidden"]),
        ("hidden = 3", ["--hidden", "3"]),
        ("prior = 3", ["--prior", "3"]),
        ("[prior]\ncomponents = 3", ["--prior", "type = NAME"]),
        ('[prior]\ntype = "Mixture"\ncomponent = 3', ["--prior", "did you mean 'components'"]),
        ('[likelihood]\ntype = "Normal"\nscale = {type = "SharedScle"}', ["--scale", "did you mean 'shared-scale'"]),
    ],
)
def test_bad_toml(refused, line, words):
    Path("run.toml").write_text(f'data = "digits"\n{line}\n')
    refused(2, *words, call=["fit", "--config", "run.toml"])


def test_data_in_toml_is_text(refused):
    Path("run.toml").write_text("data = 3\n")
    refused(2, "--data", "3", call=["fit", "--config", "run.toml"])


# ---- using a run


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate(ok, trained, monkeypatch):
    monkeypatch.chdir(trained)
    out = ok("evaluate", "digits", "--k", "5")
    assert out.splitlines()[1] == "test rows    297"
    results = pv.load(trained / "digits").manifest["results"]
    assert f"-log p(x)    {-results['log_prob']:.2f} nats" in out
    assert "test rows    60" in ok("evaluate", "table", "table.csv", "--k", "5")
    assert "test rows    6" in ok("evaluate", "table", "--k", "5")


def test_evaluate_knows_the_data_again(ok, refused, here):
    x = TABLE.copy()
    np.save("x.npy", x)
    ok("fit", "x.npy", "--out", "run", "--patience", "1", *QUICK)
    ok("evaluate", "run", "--k", "5")
    x[3, 1] += 1e-6
    np.save("x.npy", x)
    refused(3, "x.npy", "has changed since the training", "name DATA", call=["evaluate", "run", "--k", "5"])
    ok("evaluate", "run", "x.npy", "--k", "5")
    Path("x.npy").unlink()
    refused(3, "x.npy", "no such file", call=["evaluate", "run"])


def test_sample(ok, refused, trained, here):
    run = trained / "digits"
    ok("sample", run, "--n", "3", "--out", "a.npy", "--seed", "1")
    ok("sample", run, "--n", "3", "--out", "b.npy", "--seed", "1")
    assert np.load("a.npy").shape == (3, 1, 8, 8)
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    assert ok("sample", run, "--n", "3", "--out", "a.npz") == "3 samples written to a.npz\n"
    assert np.load("a.npz")["x"].shape == (3, 1, 8, 8)
    ok("sample", run, "--n", "5", "--out", "a.png")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    ok("sample", trained / "table", "--n", "3", "--out", "a.csv")
    assert list(rows_of("a.csv")[0]) == ["row", "a", "b", "c"]
    before = Path("a.npy").read_bytes()
    refused(2, "a.npy", "exists", "--overwrite", call=["sample", run, "--out", "a.npy"])
    assert Path("a.npy").read_bytes() == before
    ok("sample", run, "--n", "4", "--out", "a.npy", "--overwrite")
    assert len(np.load("a.npy")) == 4
    refused(2, "--out", ".npy", "'a.txt'", call=["sample", run, "--out", "a.txt"])
    refused(2, "--out", "no images", call=["sample", trained / "table", "--out", "c.png"])


@pytest.mark.parametrize("command", ["sample", "encode", "score"])
def test_files_that_cannot_be_written(refused, trained, here, command):
    call = [command, trained / "digits", *(["digits"] if command != "sample" else [])]
    (here / "file").touch()
    refused(2, "no directory", call=[*call, "--out", "nowhere/a.npz"])
    refused(2, "no directory", call=[*call, "--out", "file/a.npz"])
    refused(2, "--out", "'a.doc'", call=[*call, "--out", "a.doc"])
    (here / "a.npz").mkdir()
    refused(2, "is a directory", call=[*call, "--out", "a.npz"])
    quick = [] if command != "score" else ["--k", "2"]
    refused(6, "/proc/a.npz", "cannot be written", call=[*call, "--out", "/proc/a.npz", *quick])


def test_encode(ok, trained, here):
    ok("encode", trained / "digits", "digits", "--out", "a.npz")
    with np.load("a.npz") as codes:
        assert codes["loc"].shape == codes["scale"].shape == (297, 2)
        assert (codes["scale"] > 0).all()
        assert len(codes["y"]) == 297


def test_columns_are_matched_by_name(ok, refused, trained, here):
    write_table(here / "same.csv")
    write_table(here / "shuffled.csv", order=(3, 2, 0, 1))
    write_table(here / "unlabelled.csv", order=(0, 1, 2))
    write_table(here / "renamed.csv", header=("a", "bee", "c", "kind"))
    write_table(here / "fewer.csv", order=(0, 1, 3))
    write_csv(here / "more.csv", ["a", "b", "c", "d"], [[1, 2, 3, 4]])
    run = trained / "table"
    for name in ("same", "shuffled", "unlabelled"):
        ok("encode", run, f"{name}.csv", "--out", f"{name}-codes.csv")
    same, shuffled, unlabelled = (rows_of(f"{n}-codes.csv") for n in ("same", "shuffled", "unlabelled"))
    assert same == shuffled
    assert [row["y"] for row in same] == KINDS
    assert [{k: v for k, v in row.items() if k != "y"} for row in same] == unlabelled
    refused(3, '"b"', 'did you mean "bee"', call=["encode", run, "renamed.csv", "--out", "x.csv"])
    refused(3, '"c"', call=["encode", run, "fewer.csv", "--out", "x.csv"])
    refused(3, '"d"', call=["encode", run, "more.csv", "--out", "x.csv"])
    assert not (here / "x.csv").exists()


def test_score(ok, trained, here):
    out = ok("score", trained / "digits", "digits", "--k", "5", "--out", "a.csv")
    rows = rows_of("a.csv")
    assert list(rows[0]) == ["row", "elbo", "reconstruction", "kl", "log_prob", "standard_error"]
    mean = np.mean([float(row["log_prob"]) for row in rows])
    assert f"{mean:.2f}" in out
    assert mean == pytest.approx(pv.load(trained / "digits").manifest["results"]["log_prob"], abs=1e-3)


@pytest.mark.parametrize("command", ["evaluate", "encode", "score"])
def test_rows_that_do_not_fit_the_model(refused, trained, here, command):
    np.save("wide.npy", RNG.random((5, 7)))
    np.save("loud.npy", 300 * RNG.random((5, 1, 8, 8)))
    np.save("nan.npy", np.full((5, 1, 8, 8), np.nan))
    out = [] if command == "evaluate" else ["--out", "x.csv"]
    run = trained / "grey"
    refused(3, "wide.npy", "(7,)", "(1, 8, 8)", call=[command, run, "wide.npy", *out])
    refused(3, "loud.npy", "pixel", call=[command, run, "loud.npy", *out])
    refused(3, "nan.npy", "missing", call=[command, run, "nan.npy", *out])
    refused(3, "nope.npy", "no such file", call=[command, run, "nope.npy", *out])
    assert not (here / "x.csv").exists()


@pytest.mark.parametrize("command", ["evaluate", "sample", "encode", "score"])
def test_damaged_runs(refused, trained, here, command):
    call = [command, "run", *(["digits"] if command in ("encode", "score") else [])]
    refused(4, "run", "found nothing", call=call)
    shutil.copytree(trained / "digits", "run")
    with open("run/weights.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    refused(4, "weights.safetensors", "checksum", call=call)
    Path("run/weights.safetensors").unlink()
    refused(4, "weights.safetensors", "not there", call=call)
    Path("run/manifest.json").unlink()
    refused(4, "manifest.json", call=call)


def test_a_run_of_ones_own_program_is_refused_with_the_way_out(refused, here):
    model = pv.VAE(
        pv.StandardNormal(2), pv.Bernoulli(4, context=2, net=lambda i, o: pv.MLP(i, o)), pv.Normal(2, context=4)
    )
    pv.fit(model, TABLE[:, [0, 0, 0, 0]] > 0, epochs=1, directory="run")
    refused(4, "program of your own", "load(run, model)", call=["sample", "run"])


def test_a_run_made_in_python_can_be_used(ok, refused, here):
    q = pv.Normal(2, context=3)
    model = pv.VAE(pv.StandardNormal(2), pv.Normal(3, context=2), q)
    pv.fit(model, TABLE, epochs=1, directory="run")
    np.save("x.npy", TABLE)
    assert "test rows    60" in ok("evaluate", "run", "x.npy", "--k", "2")
    refused(2, "DATA", "name the data", call=["evaluate", "run"])


# ---- MNIST and Fashion-MNIST

needs_data = pytest.mark.skipif(
    not os.environ.get("PYROVAE_DATA"), reason="PYROVAE_DATA names no folder with MNIST and Fashion-MNIST"
)


@needs_data
def test_fashion_mnist_is_grey(refused, monkeypatch):
    advice = ("grey values", "--preprocess binarize", "ContinuousBernoulli or Normal", "fashion-mnist")
    refused(3, *advice, call=["fit", "fashion-mnist", "--likelihood", "bernoulli"])


@needs_data
def test_fashion_mnist_with_continuous_bernoulli(ok):
    wide = ("--epochs", "1", "--batch", "2000", "--hidden", "4", "--k", "2", "--latent", "2")
    out = ok("fit", "fashion-mnist", "--likelihood", "continuous-bernoulli", *wide)
    assert "60,000 training rows of 1 x 28 x 28, Rescale" in out
    assert Path("runs/fashion-mnist/manifold.png").exists()


# ---- as a process


def start(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    command = [sys.executable, "-m", "pyrovae", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    # a shell's background job ignores it, as would its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, text=True, env=environment, **pipes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_a_run_that_loads(here, number, code):
    process = start("fit", "digits", "--epochs", "100000", "--hidden", "8", "--out", "run", cwd=here)
    metrics, deadline = here / "run" / "metrics.jsonl", time.monotonic() + 240  # a crowded machine starts slowly
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert err.startswith("pyrovae: error: ")
    assert err.count("\n") == 1
    assert "run holds the weights of the last good step" in out
    loaded = pv.load(here / "run")
    assert loaded.manifest["steps"] > 0
    assert loaded.manifest["settings"]["epochs"] == 100000
    assert not list((here / "run").glob(".*"))


def test_a_closed_pipe(here):
    with start("parts", cwd=here) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, "")


def test_text_beyond_ascii_in_a_plain_locale(trained, here):
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    process = start("evaluate", trained / "digits", "--k", "2", cwd=here, env=plain)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "test rows" in out


def test_debug_shows_the_traceback_and_the_line(here):
    process = start("fit", "nope.npz", "--debug", cwd=here)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "Traceback" in err
    assert err.splitlines()[-1] == "pyrovae: error: nope.npz: no such file: check the path"


# ---- tables with missing cells, columns of different kinds


@pytest.fixture
def people(here):
    """200 rows of a real, a positive, a count and a binary column, a fifth of the cells empty."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=200)
    height, income = 170 + 8 * factor + rng.normal(size=200), np.exp(8 + factor + 0.3 * rng.normal(size=200))
    cells = np.stack([height, income, rng.poisson(6, 200) + rng.poisson(9, 200), factor > rng.normal(size=200)], -1)
    hidden = rng.random(cells.shape) < 0.2
    rows = [
        ["" if hide else value for value, hide in zip(*pair, strict=True)] for pair in zip(cells, hidden, strict=True)
    ]
    write_csv(here / "people.csv", ["height", "income", "visits", "smokes"], rows)
    return cells, hidden


def filled_cells(path):
    return np.array([[float(value) for value in row.values()] for row in rows_of(path)])


@pytest.mark.parametrize("likelihood", [[], ["--likelihood", "columns"]], ids=["masked", "columns"])
def test_empty_cells_are_missing_and_can_be_filled(ok, people, likelihood):
    cells, hidden = people
    out = ok("fit", "people.csv", "--out", "run", "--epochs", 3, "--k", 5, *likelihood)
    assert ("smokes  binary" in out) if likelihood else ("Masked(likelihood=Normal" in out)
    ok("evaluate", "run", "--k", 5)
    ok("encode", "run", "people.csv")
    ok("score", "run", "people.csv", "--k", 5)
    assert "cells filled" in ok("impute", "run", "people.csv", "--k", 20)
    filled = filled_cells("filled.csv")
    np.testing.assert_allclose(filled[~hidden], cells[~hidden], rtol=1e-6)
    assert np.isfinite(filled).all()
    ok("impute", "run", "people.csv", "--k", 20, "--draws", 3, "--out", "filled.npz")
    with np.load("filled.npz") as arrays:
        assert arrays["draws"].shape == (3, 200, 4)
        assert (arrays["std"][~hidden] == 0).all()
        assert (arrays["std"][hidden] > 0).mean() > 0.9
    if likelihood:
        assert (filled[:, 1] > 0).all()
        assert set(filled[:, 3]) == {0.0, 1.0}


@pytest.fixture
def townsfolk(here):
    """150 rows of a real, two text and a grade column and a text label, a fifth of the cells empty."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=150)
    city = np.array(["New, York", "Oslo", "São Paulo"])[np.clip(np.round(factor + 1), 0, 2).astype(int)]
    smokes = np.where(factor > rng.normal(size=150), "yes", "no")
    columns = [np.round(40 + 10 * factor, 2), city, smokes, np.clip(np.round(factor + 3), 1, 5).astype(int) * 10]
    cells = np.stack([column.astype(object) for column in columns], -1)
    hidden = rng.random(cells.shape) < 0.2
    rows = [["" if h else v for v, h in zip(*pair, strict=True)] for pair in zip(cells, hidden, strict=True)]
    labels = np.where(factor > 0, "up", "down")
    write_csv(
        here / "town.csv",
        ["age", "city", "smokes", "grade", "mood"],
        [[*r, y] for r, y in zip(rows, labels, strict=True)],
    )
    return cells, hidden


COLUMNS = ("--likelihood", "columns", "--epochs", 2, "--k", 5)


def test_texts_are_classes_and_come_back_as_texts(ok, refused, townsfolk):
    import pandas as pd

    cells, hidden = townsfolk
    pd.read_csv("town.csv").to_parquet("town.parquet")
    out = ok("fit", "town.csv", "--label-column", "mood", "--out", "run", *COLUMNS)
    assert "city    categorical  Categorical(classes=3), [New, York, Oslo, São Paulo]" in out
    results = pv.load("run").manifest["results"]
    assert f"-log p(x)    {-results['log_prob']:.2f} nats" in ok("evaluate", "run", "--k", 5)
    ok("fit", "town.parquet", "--label-column", "mood", "--out", "other", *COLUMNS)
    assert pv.load("other").manifest["results"] == results
    for file in ("town.csv", "town.parquet"):
        ok("encode", "run", file, "--out", f"{file}.npz")
        ok("score", "run", file, "--k", 5, "--out", f"{file}-scores.csv")
        ok("impute", "run", file, "--k", 20, "--out", f"{file}-filled.csv")
    with np.load("town.csv.npz") as a, np.load("town.parquet.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in ("loc", "scale", "y"))
    filled = rows_of("town.csv-filled.csv")
    assert filled == rows_of("town.parquet-filled.csv")
    for row, given, gone in zip(filled, cells, hidden, strict=True):
        assert float(row["age"]) == pytest.approx(given[0], rel=1e-6) or gone[0]
        assert [value for value, h in zip(list(row.values())[1:], gone[1:], strict=True) if not h] == [
            str(value) for value, h in zip(given[1:], gone[1:], strict=True) if not h
        ]
        assert row["city"] in ("New, York", "Oslo", "São Paulo")
        assert row["grade"] in ("10", "20", "30", "40", "50")
    ok("sample", "run", "--n", 20, "--out", "drawn.csv")
    assert {row["smokes"] for row in rows_of("drawn.csv")} == {"yes", "no"}
    assert "city: 0 'New, York', 1 'Oslo', 2 'São Paulo'" in ok("sample", "run", "--n", 20)
    drawn = np.load("samples.npy")
    assert set(drawn[:, 1]) <= {0, 1, 2}
    assert set(drawn[:, 3]) <= {10, 20, 30, 40, 50}
    ok("score", "run", "drawn.csv", "--k", 2, "--out", "again.csv")
    assert "smokes: 0 'no', 1 'yes'" in ok("impute", "run", "town.csv", "--k", 5, "--out", "filled.npz")


def test_texts_that_the_model_does_not_know(refused, ok, townsfolk):
    ok("fit", "town.csv", "--label-column", "mood", "--out", "run", *COLUMNS)
    words = ("later.csv: row 2 (line 4)", "'city'", "unknown category 'Olso'", 'did you mean "Oslo"', "'São Paulo'")
    for command in ("evaluate", "encode", "score", "impute"):
        write_csv(
            Path("later.csv"), ["city", "smokes", "age", "grade"], [["Oslo", "", 3, 10]] * 2 + [["Olso", "", 3, 10]]
        )
        refused(3, *words, call=[command, "run", "later.csv"])
        write_csv(Path("later.csv"), ["city", "smokes", "age", "grade"], [["Oslo", "", 3, 10], ["Oslo", "", 3, 70]])
        refused(3, "row 1 (line 3), column 'grade': unknown category 70", call=[command, "run", "later.csv"])
        write_csv(Path("later.csv"), ["city", "smokes", "age", "grade"], [["", 1, "", 10], ["", "", "old", 10]])
        refused(3, "row 1 (line 3), column 'age': 'old': expected a number", call=[command, "run", "later.csv"])
        write_csv(Path("later.csv"), ["city", "smokes", "age"], [["Oslo", "", 3]])
        refused(3, "later.csv: no column 'grade'", call=[command, "run", "later.csv"])
        np.save("wide.npy", np.zeros((3, 5)))
        refused(3, "wide.npy", "(5,)", "(4,)", call=[command, "run", "wide.npy"])
    assert not list(Path().glob("*.npz"))


def test_tables_of_texts_that_teach_nothing(refused, here):
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=120)
    write_csv(here / "names.csv", ["a", "name"], [[a, f"person {i}"] for i, a in enumerate(numbers)])
    write_csv(here / "typo.csv", ["a", "b"], [[a, "x" if i == 70 else i] for i, a in enumerate(numbers)])
    write_csv(here / "rare.csv", ["a", "b"], [[a, "x"] for a in numbers])
    refused(3, "names.csv: column 'name'", "different texts", call=["fit", "names.csv", *COLUMNS])
    refused(3, 'typo.csv: column "b", row 70 (line 72): "x"', "most cells", call=["fit", "typo.csv", *COLUMNS])
    refused(3, "rare.csv: column 'b'", "one value", call=["fit", "rare.csv", *COLUMNS])
    refused(3, '"person 0" is not a number', "--likelihood columns", call=["fit", "names.csv", *QUICK])
    refused(2, "--preprocess", "own units", call=["fit", "typo.csv", *COLUMNS, "--preprocess", "rescale"])
    assert not (here / "runs").exists()


def test_a_model_of_complete_rows_fills_nothing(refused, trained, here):
    Path("x.csv").write_text("a,b,c\n1,,3\n")
    for data in ("x.csv", trained / "table.csv"):
        refused(2, "empty cells", "--likelihood columns", call=["impute", trained / "table", data])
    refused(3, 'row 0 (line 2), column "b"', "with --likelihood columns", call=["encode", trained / "table", "x.csv"])
    assert not Path("filled.csv").exists()


def test_a_class_of_the_test_rows_alone(ok, here):
    test = np.random.default_rng(0).permutation(60)[-6:]
    words = np.array(["a", "b"], object)[np.arange(60) % 2]
    words[test[0]] = "c"
    write_csv(here / "rare.csv", ["word", "n"], list(zip(words, TABLE[:, 0], strict=True)))
    assert "[a, b, c]" in ok("fit", "rare.csv", "--out", "run", *COLUMNS)
    ok("evaluate", "run", "--k", 2)


def test_rows_are_called_by_their_line(refused, here):
    rows = np.abs(TABLE) + 1
    for line, value, options in (
        (2, 1e20, []),
        (31, -4, ["--likelihood", "gamma"]),
        (61, -4, ["--likelihood", "gamma"]),
    ):
        changed = rows.copy()
        changed[line - 2, 1] = value
        write_csv(here / "x.csv", ["a", "b", "c"], changed.tolist())
        refused(3, f'row {line - 2} (line {line}), column "b"', call=["fit", "x.csv", *options])


def test_columns_by_hand_leave_others_out(ok, townsfolk):
    Path("run.toml").write_text("""
data = "town.csv"
epochs = 1
k = 5
[likelihood]
type = "Columns"
columns = [
    {type = "Column", name = "smokes", likelihood = "bernoulli", categories = ["no", "yes"]},
    {type = "Column", name = "age", likelihood = "normal", shift = 40.0, scale = 10.0},
]
""")
    ok("fit", "--config", "run.toml", "--out", "run")
    assert "test rows    15" in ok("evaluate", "run", "--k", 5)
    ok("impute", "run", "town.csv", "--k", 5)
    assert list(rows_of("filled.csv")[0]) == ["smokes", "age"]


def test_truth_values_of_a_table_made_in_python(ok, here):
    import pandas as pd

    df = pd.DataFrame({"a": TABLE[:, 0], "b": [True, False] * 30})
    columns = pv.Columns.infer(df, context=2)
    model = pv.VAE(pv.StandardNormal(2), columns, pv.Normal(2, context=columns.shape, net=columns.encoder()))
    pv.fit(model, columns.to_array(df), epochs=1, directory="run")
    df.to_csv("x.csv", index=False)
    df.to_parquet("x.parquet")
    assert ok("evaluate", "run", "x.csv", "--k", 5).splitlines()[2] == ok(
        "evaluate", "run", "x.parquet", "--k", 5
    ).splitlines()[2]  # fmt: skip


def test_columns_by_hand(ok, people):
    Path("run.toml").write_text("""
data = "people.csv"
epochs = 2
k = 5
[likelihood]
type = "Columns"
columns = [
    {type = "Column", name = "height", likelihood = {partial = "StudentT"}, shift = 170.0, scale = 8.0},
    {type = "Column", name = "income", likelihood = {partial = "Gamma"}, scale = 3000.0},
    {type = "Column", name = "visits", likelihood = {partial = "Poisson"}},
    {type = "Column", name = "smokes", likelihood = "bernoulli"},
]
""")
    assert "income  positive  Gamma(shift=0, scale=3000)" in ok("fit", "--config", "run.toml", "--out", "run")
    assert type(pv.load("run").model.likelihood) is pv.Columns


def test_a_column_without_a_single_cell(refused, here):
    write_csv(here / "empty.csv", ["a", "b"], [[i, ""] for i in range(30)])
    refused(3, '"b"', "missing", call=["fit", "empty.csv"])
    refused(3, "'b'", "missing", call=["fit", "empty.csv", "--likelihood", "columns"])


def test_a_sum_of_objectives(ok, here):
    ok("fit", "digits", "--epochs", 1, "--k", 5, "--objective", "elbo(beta=0) + 10 * mmd", "--out", "run")
    ok("fit", "digits", "--epochs", 1, "--k", 5, "--objective", "factor-vae(net=mlp(hidden=[5]))", "--out", "other")


@pytest.mark.parametrize(
    "options",
    [
        ["--posterior", "flow(transform=iaf(hidden=[50]), layers=2)"],
        ["--prior", "flow(transform=neural-spline)"],
        ["--prior", "exemplar(components=50)"],
        ["--prior", "sphere-uniform", "--posterior", "von-mises-fisher"],
        ["--prior", "dirichlet", "--posterior", "logistic-normal"],
        ["--likelihood", "discretized-logistic(levels=17)"],
    ],
)
def test_the_catalogue_by_name(ok, here, options):
    ok("fit", "digits", "--epochs", 1, "--k", 5, "--latent", 3, "--out", "run", *options)
    ok("evaluate", "run", "--k", 5)


def test_supports_that_do_not_fit(refused, here):
    refused(2, "site 'z'", "unit vectors", call=["fit", "digits", "--prior", "sphere-uniform"])
    err = refused(2, "no inverse", call=["fit", "digits", "--prior", "flow(transform=planar)"])
    assert err.endswith("rsample made them)\n"), err
    refused(2, "2000 for 1500", call=["fit", "digits", "--prior", "exemplar(components=2000)"])


# labels for all rows


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """A table with 30 labels of 90, as text, and the labeller trained on it."""
    folder = tmp_path_factory.mktemp("label")
    rng = np.random.default_rng(0)
    kinds = np.repeat(["iris", "rose", "tulip"], 30)
    x = rng.normal(size=(90, 2)) * 0.3 + np.repeat([[0, 0], [4, 0], [0, 4]], 30, axis=0)
    shown = [kind if i % 3 == 0 else "" for i, kind in enumerate(kinds)]
    soil = ["wet" if a > 2 else "dry" for a, _ in x]
    rows = [[round(a, 3), round(b, 3), wet, kind] for (a, b), wet, kind in zip(x.tolist(), soil, shown, strict=True)]
    write_csv(folder / "flowers.csv", ["petal", "sepal", "soil", "kind"], rows)
    call = ["label", "flowers.csv", "--label-column", "kind", "--method", "supervised"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli._run(call, debug=False) == 0
    finally:
        os.chdir(before)
    return folder, kinds


def test_label_writes_the_table_with_all_labels(flowers):
    folder, kinds = flowers
    with (folder / "labelled.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["petal", "sepal", "soil", "kind", "label", "probability"]
    assert {"p_iris", "p_rose", "p_tulip", "prediction_set", "abstain", "novelty", "ask_next"} <= set(rows[0])
    assert [row["label"] for row in rows] == kinds.tolist()
    assert all(row["label"] == row["kind"] and float(row["probability"]) == 1 for row in rows[::3])
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)
    assert (folder / "runs" / "flowers-labels" / "manifest.json").is_file()


def test_label_new_rows_by_the_labeller_that_was_saved(flowers, ok, refused, here):
    folder, _ = flowers
    run = folder / "runs" / "flowers-labels"
    write_csv(here / "new.csv", ["soil", "sepal", "petal", "name"], [["wet", 0.1, 4.2, "a"], ["dry", 3.9, 0.2, "b"]])
    out = ok("label", "new.csv", "--model", run, "--out", "new-labels.csv")
    assert "2 rows written to new-labels.csv" in out
    with (here / "new-labels.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["rose", "tulip"]
    write_csv(here / "odd.csv", ["petal", "sepal", "soil", "kind"], [[0, 0, "dry", "dahlia"]])
    refused(3, "dahlia", call=["label", "odd.csv", "--model", run, "--label-column", "kind", "--out", "o.csv"])
    write_csv(here / "less.csv", ["petal", "soil"], [[0, "dry"]])
    refused(3, "sepal", call=["label", "less.csv", "--model", run, "--out", "o.csv"])
    refused(4, "nowhere", call=["label", "new.csv", "--model", "nowhere", "--out", "o.csv"])
    assert not (here / "o.csv").exists()


@pytest.mark.parametrize(
    ("labels", "words", "code"),
    [
        (["a"] * 4 + [""] * 4, ["two classes"], 3),
        ([""] * 8, ["label"], 3),
        (None, ["kind"], 3),
    ],
    ids=["one class", "no label", "no such column"],
)
def test_label_refuses_and_writes_nothing(refused, here, labels, words, code):
    header = ["a", "b"] if labels is None else ["a", "b", "kind"]
    rows = [[i, i % 3, *([] if labels is None else [labels[i]])] for i in range(8)]
    write_csv(here / "t.csv", header, rows)
    refused(code, *words, call=["label", "t.csv", "--label-column", "kind", "--out", "o.csv"])
    assert sorted(p.name for p in here.iterdir()) == ["t.csv"]


def test_label_needs_to_know_the_column(refused, here):
    write_csv(here / "t.csv", ["a", "b"], [[i, i % 3] for i in range(8)])
    refused(2, "--label-column", call=["label", "t.csv", "--out", "o.csv"])
    refused(2, "--minutes", call=["label", "t.csv", "--minutes", "0"])
    refused(2, "smoth", "smooth", call=["label", "t.csv", "--label-column", "b", "--method", "smoth"])
