"""A run is a directory: written so that a crash leaves no half file, verified before anything in it is believed.

``model.toml`` rebuilds the model, ``weights.safetensors`` holds what it learned, ``metrics.jsonl`` how, and
``manifest.json`` (sizes and SHA-256 of the other files, versions, settings; written last) makes the directory a run.
Nothing is ever unpickled. The checksums detect damage, not forgery.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import safetensors
import safetensors.torch
import tomli_w
import torch
from torch import Tensor, nn

from pyrovae._version import __version__
from pyrovae.errors import ConfigError, ModelFileError, PyrovaeError, ResourceError
from pyrovae.spec import describe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = [
    "claim",
    "claimed",
    "fingerprint",
    "load_weights",
    "read_model_table",
    "save",
    "seal",
    "stored_dtype",
    "verify",
]

FORMAT = 1
_MANIFEST, _MODEL, _WEIGHTS, _METRICS = "manifest.json", "model.toml", "weights.safetensors", "metrics.jsonl"
_PICTURES = ("loss.png", "samples.png", "reconstructions.png", "latent.png", "manifold.png")
_MAX_JSON = 2**24


def free(stem: str) -> Path:
    """The first of ``runs/STEM``, ``runs/STEM-2``, ... that is not there."""
    names = (f"{stem}-{i}" if i > 1 else stem for i in range(1, 10**6))
    return next(path for name in names if not (path := Path("runs") / name).exists())


def claim(directory: str | os.PathLike[str]) -> Path:
    """An empty directory of that name, made now, so that a run does not fail after hours of training.

    Raises:
        ConfigError: if it exists and is not empty, or is a file.
        ResourceError: if it cannot be written.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: expected a directory, found a file; choose another")
    with _resources(path):
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(f"{path}: the directory exists and is not empty; choose another")
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    return path


@contextmanager
def claimed(directory: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """:func:`claim` for as long as it is used: where nothing gets written, everything is as it was before.

    Args:
        directory: of the run to come.
        overwrite: an old run there gives way; it is deleted when the new one has been written.

    Raises:
        ConfigError: as :func:`claim`; with ``overwrite`` if the directory holds anything but a run.
        ResourceError: if it cannot be written.
    """
    path = Path(directory)
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        advice = "choose another --out, or add --overwrite if it holds an old run"
        raise ConfigError(f"{path}: the directory exists and is not empty; {advice}")
    aside = _set_aside(path) if overwrite and path.is_dir() and any(path.iterdir()) else None
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        yield claim(path)
    finally:
        written = path.is_dir() and any(path.iterdir())
        if not written:
            for made in missing:
                if made.is_dir() and not any(made.iterdir()):
                    made.rmdir()
        if aside is not None:
            shutil.rmtree(aside) if written else aside.rename(path)


def _set_aside(path: Path) -> Path:
    """Rename a directory that holds a run and nothing else, so that it can come back."""
    found = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir())
    listed = _read_manifest(path / _MANIFEST)["files"] if (path / _MANIFEST).is_file() else {}
    known = {_MANIFEST, _MODEL, _WEIGHTS, _METRICS, *_PICTURES, *listed}
    foreign = [name for name in found if name not in known and not name.endswith(".tmp")]
    if foreign:
        raise ConfigError(f"{path}: holds {foreign[0]}, which belongs to no run; choose another directory")
    if path.resolve() == Path.cwd():
        raise ConfigError(f"{path}: is the current directory; choose another")
    aside = path.with_name(f".{path.name}.replaced")
    with _resources(path):
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    return aside


def log(directory: Path, row: Mapping[str, Any]) -> None:
    """Append one line to ``metrics.jsonl``; numbers that are not finite become null."""
    line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with _resources(directory), (directory / _METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def save(directory: Path, model: nn.Module) -> None:
    """Write ``model.toml`` (where the model is one of documented parts) and ``weights.safetensors``."""
    try:
        table = describe(model)
    except ConfigError:
        (directory / _MODEL).unlink(missing_ok=True)  # a program of the user's own: load the weights into it
    else:
        write(directory / _MODEL, tomli_w.dumps(table).encode())
    write(directory / _WEIGHTS, safetensors.torch.save(_unique(model)))


def seal(directory: Path, details: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: everything else in the directory is finished."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != _MANIFEST and p.suffix != ".tmp")
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "files": {p.relative_to(directory).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files},
        **details,
    }
    write(directory / _MANIFEST, json.dumps(manifest, indent=2, allow_nan=False).encode() + b"\n")


def verify(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest, after every file it names was found whole.

    Raises:
        ModelFileError: if something is missing, damaged, or from a newer version.
    """
    path = Path(directory)
    if not path.is_dir():
        raise ModelFileError(f"{path}: expected a run directory, found {'a file' if path.exists() else 'nothing'}")
    manifest = _read_manifest(path / _MANIFEST)
    for name in (_WEIGHTS, _MODEL):
        if name not in manifest["files"] and (name == _WEIGHTS or (path / name).exists()):
            raise ModelFileError(f"{path / _MANIFEST}: does not name {name}; the manifest was changed or damaged")
    for name, entry in manifest["files"].items():
        file = path / name
        if file.is_symlink() or not file.resolve().is_relative_to(path.resolve()):
            raise ModelFileError(f"{path / _MANIFEST}: names {name!r}, which is outside the run")
        if not file.is_file():
            raise ModelFileError(f"{file}: named in the manifest and not there; the run is incomplete")
        if file.stat().st_size != entry["size"] or _sha256(file) != entry["sha256"]:
            raise ModelFileError(f"{file}: checksum mismatch; the file was changed or damaged after the run")
    return manifest


def read_model_table(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The table in ``model.toml``.

    Raises:
        ModelFileError: if there is none or it is not TOML.
    """
    path = Path(directory) / _MODEL
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(
            f"{path}: not there; the model was a program of your own, so give it: load(run, model)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def stored_dtype(directory: str | os.PathLike[str]) -> torch.dtype:
    """The floating type of the weights where they share one, else the default.

    Raises:
        ModelFileError: if they cannot be read.
    """
    found = {t.dtype for t in _read_weights(Path(directory) / _WEIGHTS).values() if t.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.get_default_dtype()


def load_weights(directory: str | os.PathLike[str], model: nn.Module) -> None:
    """Fill a model with the run's weights; names, shapes and finiteness must all be right.

    Raises:
        ModelFileError: with the names that are missing, unexpected, of another shape or not finite.
    """
    path = Path(directory) / _WEIGHTS
    own, stored = _unique(model), _read_weights(path)
    wrong = {
        "missing": own.keys() - stored.keys(),
        "unexpected": stored.keys() - own.keys(),
        "of another shape": {n for n in own.keys() & stored.keys() if own[n].shape != stored[n].shape},
        "not finite": {n for n, t in stored.items() if not t.isfinite().all()},
    }
    problems = [f"{what}: {', '.join(sorted(which)[:5])}" for what, which in wrong.items() if which]
    if problems:
        raise ModelFileError(f"{path}: the weights do not fit the model; {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def write(path: Path, content: bytes) -> None:
    """Whole or not at all: to a temporary name, forced to disk, renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _resources(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Of everything that decides the numbers."""
    return {
        "pyrovae": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def fingerprint(arrays: Iterable[Tensor | np.ndarray]) -> str:
    """SHA-256 over shapes, types and contents, read in pieces."""
    digest = hashlib.sha256()
    for rows in arrays:
        array = rows.numpy(force=True) if isinstance(rows, Tensor) else rows
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        step = max(1, 2**24 // max(1, array[:1].nbytes))
        for start in range(0, len(array), step):
            digest.update(np.ascontiguousarray(array[start : start + step]).tobytes())
    return digest.hexdigest()


def _unique(model: nn.Module) -> dict[str, Tensor]:
    """The state under one name per tensor: a shared part is stored once."""
    seen: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        seen.setdefault(id(tensor), name)
    return {name: state[name].detach().contiguous() for name in seen.values()}


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{path}: cannot be read as safetensors ({error})") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.is_file() and path.stat().st_size > _MAX_JSON:
        raise ModelFileError(f"{path}: too large for a manifest")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        well_formed = isinstance(manifest["format"], int) and all(
            isinstance(e["size"], int) and isinstance(e["sha256"], str) for e in manifest["files"].values()
        )
    except FileNotFoundError:
        raise ModelFileError(f"{path}: not there; the directory holds no finished run") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged ({type(error).__name__})") from error
    if not well_formed or any(len(name) > 255 or "\0" in name for name in manifest["files"]):
        raise ModelFileError(f"{path}: damaged (unexpected fields)")
    if manifest["format"] > FORMAT:
        raise ModelFileError(
            f"{path}: written in format {manifest['format']} by a newer pyrovae; this one reads {FORMAT}"
        )
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _fsync_directory(path: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _resources(path: Path) -> Iterator[None]:
    try:
        yield
    except PyrovaeError:
        raise
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another directory"
        ) from error
