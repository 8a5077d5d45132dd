"""The plan of the house: which room may import which, and what an import may do."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae as pv

PACKAGE = Path(pv.__file__).parent

# A room imports rooms above it only; `data` imports nothing but the errors.
ORDER = [
    "_version",
    "errors",
    "bridge",
    "nn",
    "data",
    "distributions",
    "conditional",
    "families",
    "flows",
    "autoregressive",
    "priors",
    "missing",
    "columns",
    "text",
    "handlers",
    "graphs",
    "evaluation",
    "models",
    "objectives",
    "refinement",
    "compiled",
    "spec",
    "runs",
    "plots",
    "fit",
    "recipes",
    "config",
    "labelling",
    "estimators",
    "cli",
]


def rooms():
    return {p.stem for p in PACKAGE.iterdir() if not p.name.startswith("__") and p.name != "py.typed"}


def sources(room):
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported_rooms(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pyrovae":
            names = node.module.split(".")[1:] or [alias.name for alias in node.names]
            yield from names[:1] if node.module != "pyrovae" else names
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("pyrovae."))


def test_every_room_has_its_place():
    assert rooms() == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_imports_point_one_way(room):
    allowed = {"errors", "data"} if room == "data" else set(ORDER[: ORDER.index(room) + 1])
    for file in sources(room):
        wrong = set(imported_rooms(file)) - allowed
        assert not wrong, f"{file.name} imports {sorted(wrong)}"


def test_nothing_is_unpickled():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for word in ("import pickle", "torch.load(", "eval(", "yaml", "shell=True", "allow_pickle=True"):
            uses = [
                line for line in text.splitlines() if word in line.replace("literal_eval(", "").replace(".eval(", "")
            ]
            assert not uses, f"{file.name}: {uses}"


PROBE = """
import json, logging, random, sys, threading, warnings
import numpy, torch, pyro
before = {
    "torch": torch.get_rng_state().tolist(), "numpy": str(numpy.random.get_state()), "python": str(random.getstate()),
    "threads": torch.get_num_threads(), "dtype": str(torch.get_default_dtype()),
    "validation": torch.distributions.Distribution._validate_args, "handlers": len(logging.getLogger().handlers),
    "store": list(pyro.get_param_store().keys()), "running": threading.active_count(),
}
import pyrovae
after = {
    "torch": torch.get_rng_state().tolist(), "numpy": str(numpy.random.get_state()), "python": str(random.getstate()),
    "threads": torch.get_num_threads(), "dtype": str(torch.get_default_dtype()),
    "validation": torch.distributions.Distribution._validate_args, "handlers": len(logging.getLogger().handlers),
    "store": list(pyro.get_param_store().keys()), "running": threading.active_count(),
}
loaded = [m for m in ("pandas", "sklearn", "matplotlib", "typer", "rich", "torch._inductor") if m in sys.modules]
print(json.dumps({"changed": [k for k in before if before[k] != after[k]], "loaded": loaded}))
"""


def test_import_has_no_side_effects():
    out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == {"changed": [], "loaded": []}
    assert out.stderr == ""


def test_every_export_exists_and_is_documented():
    for name in pv.__all__:
        assert hasattr(pv, name)
        thing = getattr(pv, name)
        if name != "__version__":
            assert (thing.__doc__ or "").strip(), name
