"""Run directories: what is written comes back, what is damaged is refused, nothing else is touched."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from torch import nn

import pyrovae as pv
from pyrovae import runs
from pyrovae.errors import ConfigError, ModelFileError, ResourceError

X = torch.rand(40, 4).round()


def small(prior=None):
    q = pv.Normal(2, context=4, net=lambda i, o: pv.MLP(i, o, hidden=(3,)))
    q = pv.Normal(2, context=4) if prior is None else q
    return pv.VAE(pv.StandardNormal(2) if prior is None else prior, pv.Bernoulli(4, context=2), q)


def make(path, model=None, **details):
    model = small() if model is None else model
    runs.save(runs.claim(path), model)
    runs.log(path, {"epoch": 1, "loss": 2.5})
    runs.seal(path, details)
    return model


@pytest.fixture
def run(tmp_path):
    make(tmp_path / "run", preprocess={"type": "Binarize"}, schema={"shape": [4]})
    return tmp_path / "run"


def edit(path, change):
    """Change the manifest of a run."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def refused(path, *words, **arguments):
    with pytest.raises(ModelFileError) as caught:
        pv.load(path, **arguments)
    message = str(caught.value)
    assert all(word in message for word in (str(path), *words)), message
    assert "\n" not in message.strip()


# ---- round trip


MODELS = {
    "standard": lambda: small(),
    "mixture": lambda: pv.VAE(pv.Mixture(2, components=3), pv.Normal(4, context=2, scale=0.1), pv.Normal(2, context=4)),
    "vamp": lambda: vamp(pv.Normal(2, context=4)),
    "batch statistics": lambda: pv.VAE(
        pv.StandardNormal(2), pv.Normal(4, context=2, scale=pv.OptimalScale), pv.Laplace(2, context=4)
    ),
}


def vamp(q):
    return pv.VAE(pv.VampPrior(q, torch.rand(5, 4)), pv.StudentT(4, context=2, df=3.0), q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(tmp_path, name, dtype):
    torch.set_default_dtype(dtype)
    model = MODELS[name]()
    pv.fit(model, X, epochs=2, directory=tmp_path / "run")
    torch.set_default_dtype(torch.float32)
    before = torch.get_rng_state()
    loaded = pv.load(tmp_path / "run")
    torch.set_rng_state(before)
    assert torch.get_default_dtype() == torch.float32
    state, again = model.state_dict(), loaded.model.state_dict()
    assert state.keys() == again.keys()
    for key, tensor in state.items():
        assert again[key].dtype == tensor.dtype
        assert torch.equal(again[key], tensor), key
    x = X.to(dtype)
    assert torch.equal(loaded.model.log_prob(x, k=5), model.eval().log_prob(x, k=5))
    assert not loaded.model.training
    assert loaded.schema.shape == (4,)
    assert isinstance(loaded.preprocess, pv.Identity)


def test_a_shared_part_is_stored_once_and_stays_shared(tmp_path):
    make(tmp_path / "run", MODELS["vamp"]())
    stored = safetensors.torch.load_file(tmp_path / "run" / "weights.safetensors")
    assert not [n for n in stored if n.startswith("prior.posterior") and n.removeprefix("prior.") in stored]
    model = pv.load(tmp_path / "run").model
    assert model.prior.posterior is model.posterior


def test_what_a_run_holds(run):
    assert sorted(p.name for p in run.iterdir()) == [
        *("manifest.json", "metrics.jsonl", "model.toml", "weights.safetensors")
    ]
    manifest = runs.verify(run)
    assert set(manifest["files"]) == {"metrics.jsonl", "model.toml", "weights.safetensors"}
    assert {"pyrovae", "torch", "pyro", "numpy", "python"} <= manifest["versions"].keys()
    assert isinstance(pv.load(run).preprocess, pv.Binarize)


def test_a_loaded_model_trains_on(run):
    loaded = pv.load(run)
    assert len(pv.fit(loaded.model, X, epochs=1)) == 1
    assert len(pv.fit(pv.load(run).model, X, epochs=1)) == 1


class Own(nn.Module):
    """A program of the user's own, with a function that no table can hold."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(1, 4), nn.Linear(4, 1)

    def model(self, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_a_program_of_ones_own(tmp_path):
    model, custom = Own(), small(prior=pv.StandardNormal(2))
    pv.fit(model, X, epochs=1, directory=tmp_path / "own")
    make(tmp_path / "custom", custom)
    twin = pv.load(tmp_path / "own", Own()).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not (tmp_path / "custom" / "model.toml").exists()
    refused(tmp_path / "custom", "program of your own", "load(run, model)")
    pv.load(tmp_path / "custom", small(prior=pv.StandardNormal(2)))
    refused(tmp_path / "own", "do not fit", "missing", "unexpected", model=small())
    refused(tmp_path / "own")


# ---- damage


def test_nothing_there(tmp_path):
    refused(tmp_path / "nope", "found nothing")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "found a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "manifest.json", "no finished run")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.toml", "metrics.jsonl"])
def test_missing_and_changed_files(run, name):
    whole = (run / name).read_bytes()
    for content in (b"", whole[:-1], whole + b" ", bytes([whole[0] ^ 1]) + whole[1:]):
        (run / name).write_bytes(content)
        refused(run, name, "checksum")
    (run / name).unlink()
    refused(run, name, "not there")


def test_every_flipped_bit_of_the_weights_is_found(run):
    path = run / "weights.safetensors"
    whole = bytearray(path.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(whole) * 8, 20):
        spoilt = bytearray(whole)
        spoilt[at // 8] ^= 1 << (at % 8)
        path.write_bytes(spoilt)
        refused(run, "weights.safetensors")


BAD_MANIFESTS = {
    "empty": "",
    "no json": "{",
    "a list": "[]",
    "no files": '{"format": 1}',
    "files of another kind": '{"format": 1, "files": []}',
    "no format": '{"files": {}}',
    "entries of another kind": '{"format": 1, "files": {"a": 3}}',
    "no checksum": '{"format": 1, "files": {"a": {"size": 3}}}',
    "deep": "[" * 100_000,
    "long number": '{"format": ' + "9" * 5000 + "}",
    "not utf-8": "\udcff",
    "long name": json.dumps({"format": 1, "files": {"a" * 5000: {"size": 0, "sha256": ""}}}),
    "nul": json.dumps({"format": 1, "files": {"a\0b": {"size": 0, "sha256": ""}}}),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_damaged_manifests(run, name):
    (run / "manifest.json").write_text(BAD_MANIFESTS[name], encoding="utf-8", errors="surrogateescape")
    refused(run, "manifest.json", "damaged")


def test_a_manifest_too_large(run):
    with (run / "manifest.json").open("ab") as file:
        file.truncate(2**24 + 1)
    refused(run, "too large")


def test_newer_format(run):
    edit(run, lambda m: m.update(format=99))
    refused(run, "format 99", "newer pyrovae")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_names_outside_the_run(run, name):
    (run.parent / "secret").write_text("x")
    (run / "a").mkdir()
    edit(run, lambda m: m["files"].update({name: {"size": 1, "sha256": "x"}}))
    refused(run, "outside the run")


def test_links_are_not_followed(run):
    inside = run / "weights.safetensors"
    inside.rename(run.parent / "elsewhere")
    inside.symlink_to(run.parent / "elsewhere")
    refused(run, "outside the run")


def test_linked_folders_are_not_followed(run):
    (run.parent / "other").mkdir()
    (run.parent / "other" / "x").write_text("x")
    (run / "checkpoints").symlink_to(run.parent / "other")
    edit(run, lambda m: m["files"].update({"checkpoints/x": {"size": 1, "sha256": "x"}}))
    refused(run, "outside the run")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.toml"])
def test_files_that_the_manifest_does_not_vouch_for(run, name):
    edit(run, lambda m: m["files"].pop(name))
    refused(run, name, "does not name")


def reweigh(run, change):
    path = run / "weights.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    runs.seal(run, {})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.update(more=torch.zeros(2)), "unexpected: more"),
        (lambda t: t.pop(next(iter(t))), "missing: "),
        (lambda t: t.update({n: torch.zeros(3, 3, 3) for n in list(t)[:1]}), "of another shape: "),
        (lambda t: next(iter(t.values())).fill_(float("nan")), "not finite: "),
        (lambda t: next(iter(t.values())).fill_(float("inf")), "not finite: "),
    ],
)
def test_weights_that_do_not_fit(run, change, word):
    reweigh(run, change)
    refused(run, "weights.safetensors", "do not fit", word)


def test_weights_that_are_no_safetensors(run, tmp_path):
    class Gadget:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    for content in (b"", b"\xff" * 100, pickle.dumps(Gadget()), (2**63).to_bytes(8, "little") + b"{}"):
        (run / "weights.safetensors").write_bytes(content)
        runs.seal(run, {})
        refused(run, "weights.safetensors")
    torch.save({"x": Gadget()}, run / "weights.safetensors")
    runs.seal(run, {})
    refused(run, "weights.safetensors")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("type = ", "model.toml"),
        ('type = "Popen"', "no part 'Popen'"),
        ('type = "StandardNormal"\nshape = 2', "do not fit"),
        ('type = "Identity"', "something else"),
        ('type = "VAE"\nprior = "$prior"', "no table"),
        ("a = " + "[" * 10_000, "model.toml"),
        ('type = "StandardNormal"\nshape = "x"', "shape"),
        ('type = "StandardNormal"\nshape = -1', "-1"),
    ],
)
def test_model_tables_that_build_no_model(run, content, word):
    (run / "model.toml").write_text(content)
    runs.seal(run, {})
    refused(run, word)


@pytest.mark.parametrize(
    "details",
    [
        *({"preprocess": p} for p in (3, "x", [], {"type": "Popen"}, {"type": "VAE"}, {"type": "IWAE"})),
        *({"schema": s} for s in (3, [], {}, {"shape": "x"}, {"shape": [-1]})),
    ],
)
def test_details_of_another_kind(run, details):
    runs.seal(run, details)
    refused(run)


# ---- writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    runs.write(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"file: cannot be written \(No space left"):
        runs.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_stale_temporary_files_belong_to_no_run(run):
    (run / ".weights.safetensors.tmp").write_bytes(b"half")
    runs.seal(run, {})
    assert ".weights.safetensors.tmp" not in runs.verify(run)["files"]
    pv.load(run)


def test_metrics_are_json_lines(tmp_path):
    runs.log(tmp_path, {"epoch": 1, "loss": float("nan"), "lr": 0.1})
    runs.log(tmp_path, {"epoch": 2, "loss": 3.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": 1, "loss": None, "lr": 0.1}, {"epoch": 2, "loss": 3.0}]


def test_claiming(tmp_path):
    assert runs.claim(tmp_path / "a" / "b").is_dir()
    runs.claim(tmp_path / "a" / "b")
    with pytest.raises(ConfigError, match="not empty"):
        runs.claim(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="found a file"):
        runs.claim(tmp_path / "file")
    with pytest.raises(ResourceError, match="cannot be written"):
        runs.claim(tmp_path / "file" / "below")


class Stop(Exception):
    pass


def stopped(path, use, **options):
    with runs.claimed(path, **options) as made:
        use(made)
        raise Stop


def test_a_claim_that_is_not_used_leaves_no_trace(tmp_path):
    with pytest.raises(Stop):
        stopped(tmp_path / "a" / "b" / "c", Path.iterdir)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Stop):
        stopped(tmp_path / "a" / "b" / "c", lambda path: (path / "x").touch())
    assert (tmp_path / "a" / "b" / "c" / "x").exists()


def test_an_old_run_gives_way_only_to_a_new_one(run):
    with pytest.raises(ConfigError, match="--overwrite"), runs.claimed(run):
        pass
    weights = (run / "weights.safetensors").read_bytes()
    with pytest.raises(Stop):
        stopped(run, lambda path: path.rmdir() or path.mkdir(), overwrite=True)  # an empty directory, and ours
    assert (run / "weights.safetensors").read_bytes() == weights
    pv.load(run)
    with runs.claimed(run, overwrite=True) as path:
        (path / "metrics.jsonl").touch()
    assert [p.name for p in run.parent.rglob("*")] == ["run", "metrics.jsonl"]


def test_nobody_elses_files_are_overwritten(run, monkeypatch):
    (run / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis\.tex, which belongs to no run"), runs.claimed(run, overwrite=True):
        pass
    (run / "thesis.tex").unlink()
    (run / "manifest.json").write_text('{"name": "a browser extension"}')
    with pytest.raises(ModelFileError, match="damaged"), runs.claimed(run, overwrite=True):
        pass
    (run / "manifest.json").unlink()
    monkeypatch.chdir(run)
    with pytest.raises(ConfigError, match="current directory"), runs.claimed(".", overwrite=True):
        pass
    assert (run / "weights.safetensors").exists()


def test_fingerprints_know_values_types_and_shapes():
    x = np.arange(6.0).reshape(2, 3)
    same = (x, np.asfortranarray(x), torch.tensor(x))
    assert len({runs.fingerprint([a]) for a in same}) == 1
    others = (x.astype(np.float32), x.reshape(3, 2), x + 1e-12, x[:1])
    assert len({runs.fingerprint([a]) for a in (x, *others)}) == 5
