"""Data sets by name: bundled, MNIST and Fashion-MNIST, generated shapes; or any file, with a test part split off."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pyrovae.data.readers import Table, read
from pyrovae.data.readers._common import listing, nearest, place, shown, size
from pyrovae.data.readers._idx import content, decode
from pyrovae.errors import ConfigError, DataError

__all__ = ["DataSet", "load", "names", "split"]

_SHUFFLED_BYTES = 1 << 30  # larger tables are split without a copy
_DOWNLOAD_BYTES = 1 << 26  # the largest of the files below has 26 MB
_UNPACKED_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class DataSet:
    """What a name stands for.

    Args:
        name: the name, or the path of the file.
        train: rows to learn from.
        test: rows kept apart.
        preprocess: name of the step which suits the data: ``"Binarize"``, ``"Rescale"``, ``"Standardize"`` or
            ``"Identity"``.

    Example:
        >>> iris = load("iris")
        >>> len(iris.train), len(iris.test), iris.preprocess
        (135, 15, 'Standardize')
    """

    name: str
    train: Table
    test: Table
    preprocess: str


@dataclass(frozen=True)
class _Remote:
    """Four IDX files, each known by the SHA-256 of its uncompressed content."""

    url: str
    preprocess: str
    sha256: dict[str, str]
    folders: tuple[str, ...] = ()


_REMOTE = {
    "mnist": _Remote(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "Binarize",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": _Remote(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "Rescale",
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        folders=("/usr/share/datasets/fashion-mnist",),  # Debian's package dataset-fashion-mnist
    ),
}


def names() -> tuple[str, ...]:
    """The data sets that :func:`load` knows by name.

    Example:
        >>> "digits" in names()
        True
    """
    return ("digits", *_TABULAR, *_REMOTE, "shapes")


def load(
    name_or_path: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    key: str | None = None,
    texts: Collection[str] | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> DataSet:
    """Load a data set by its name, or a file with a random test part split off.

    ``digits``, ``mnist`` and ``fashion-mnist`` have a fixed test part; the others are split by ``test_fraction`` and
    ``seed`` (which also draws the rows of ``shapes``). A table of more than 1 GiB is not shuffled: its last rows
    become the test part, so that a memory-mapped file is never copied.

    MNIST and Fashion-MNIST are looked for in ``$PYROVAE_DATA``, the user's cache (``$XDG_CACHE_HOME/pyrovae`` or
    ``~/.cache/pyrovae``) and Debian's package folder, then downloaded over https into the cache, unless
    ``$PYROVAE_OFFLINE`` is set. Their content is verified by SHA-256 at every load.

    Args:
        name_or_path: one of :func:`names`, or a file or folder that :func:`pyrovae.data.readers.read` understands.
        label_column: see ``read``; for files only.
        key: see ``read``; for files only.
        texts: see ``read``; the data sets that have a name hold none.
        test_fraction: share of the rows in the test part, between 0 and 1.
        seed: of the split.

    Raises:
        DataError: an unknown name, an unreadable file, fewer than 2 rows, or no way to get the data.
        ConfigError: ``test_fraction`` outside (0, 1), or ``label_column`` or ``key`` given with a name.

    Example:
        >>> digits = load("digits")
        >>> digits.train.x.shape, digits.test.x.shape
        ((1500, 1, 8, 8), (297, 1, 8, 8))
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction: expected a number between 0 and 1, received {test_fraction}")
    name = str(name_or_path)
    if name not in names():
        _check_path(name)
        table = read(name_or_path, label_column=label_column, key=key, texts=texts)
        return DataSet(name, *split(table, test_fraction, seed), "Identity")
    if label_column is not None or key is not None:
        raise ConfigError(f"{name}: a label column or key is for files; this data set has neither: leave it out")
    if name in _REMOTE:
        return _idx_set(name, _REMOTE[name])
    if name == "digits":
        return _digits()
    if name == "shapes":
        return DataSet(name, *split(_shapes(6000, seed), test_fraction, seed), "Identity")
    return DataSet(name, *split(_bundled(name), test_fraction, seed), "Standardize")


def _check_path(name: str) -> None:
    """A word that is neither a known name nor a file is more likely a misspelt name than a missing file."""
    if not os.path.lexists(name) and Path(name).name == name and not Path(name).suffix:
        raise DataError(
            f"{shown(name)}: neither a file nor a known data set{nearest(name, names())}: known are {listing(names())}"
        )


def split(table: Table, fraction: float, seed: int) -> tuple[Table, Table]:
    """The rows in two parts, drawn with ``seed``; the last rows of a table of more than 1 GiB, as views.

    Args:
        table: at least 2 rows.
        fraction: share of the second part.
        seed: of the draw.

    Raises:
        DataError: for a single row.
    """
    n = len(table)
    if n < 2:
        raise DataError(f"{table.source}: {n} row: at least 2 rows are needed, one to train on and one to test")
    n_test = min(max(1, round(n * fraction)), n - 1)
    if table.x.nbytes > _SHUFFLED_BYTES:
        return table.take(slice(n - n_test)), table.take(slice(n - n_test, n))
    order = np.random.default_rng(seed).permutation(n)
    return table.take(order[:-n_test]), table.take(order[-n_test:])


# ---- bundled with scikit-learn ---------------------------------------------------------------------------------------

_TABULAR = {
    "breast-cancer": "load_breast_cancer",
    "wine": "load_wine",
    "iris": "load_iris",
    "diabetes": "load_diabetes",
}


def _digits() -> DataSet:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = (bunch.images / 16).astype(np.float32)[:, None]  # 17 grey levels, exact in float32
    table = Table(x, bunch.target.astype(np.int64), "digits")
    order = np.random.default_rng(0).permutation(len(x))  # always the same rows: results can be compared
    return DataSet("digits", table.take(order[:-297]), table.take(order[-297:]), "Binarize")


def _bundled(name: str) -> Table:
    import sklearn.datasets

    raw = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(sklearn.datasets, _TABULAR[name])(**raw)
    y = bunch.target if name == "diabetes" else np.asarray(bunch.target_names)[bunch.target]
    return Table(bunch.data.astype(np.float32), y, name, tuple(map(str, bunch.feature_names)))


# ---- MNIST and Fashion-MNIST -----------------------------------------------------------------------------------------


def _idx_set(name: str, remote: _Remote) -> DataSet:
    folder = _find(name, remote)
    if folder is None:
        folder = _cache() / name
        _download_all(name, remote, folder)
    train, test = (_part(name, remote, folder, part) for part in ("train", "t10k"))
    return DataSet(name, train, test, remote.preprocess)


def _part(name: str, remote: _Remote, folder: Path, part: str) -> Table:
    x, y = (_verified(folder, stem, remote) for stem in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"))
    return Table(x[:, None], y.astype(np.int64), f"{name} ({'train' if part == 'train' else 'test'})")


def _verified(folder: Path, stem: str, remote: _Remote) -> np.ndarray:
    file = _file(folder, stem)
    if file is None:
        raise DataError(f"{place(folder)}: {stem} has vanished while loading: load it again")
    return decode(_known_content(file, place(file), remote.sha256[stem]), place(file))


def _known_content(file: Path, source: str, sha256: str) -> bytearray:
    """The uncompressed bytes of a file, if they are the expected ones."""
    raw = content(file, source, _UNPACKED_BYTES)
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        advice = "damaged or changed, remove the file and get it again"
        raise DataError(f"{source}: SHA-256 {found[:12]}…, expected {sha256[:12]}…: {advice}")
    return raw


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "pyrovae")


def _places(name: str, remote: _Remote) -> list[Path]:
    given = os.environ.get("PYROVAE_DATA")
    return [*([Path(given, name)] if given else []), _cache() / name, *map(Path, remote.folders)]


def _find(name: str, remote: _Remote) -> Path | None:
    """The first place where all four files are."""
    return next((p for p in _places(name, remote) if all(_file(p, stem) for stem in remote.sha256)), None)


def _file(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file()), None)


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to https alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_https(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise DataError(f"{shown(url)}: refused to download without https: get the file by hand")


def _open(url: str) -> Any:
    return urllib.request.build_opener(_HttpsOnly()).open(url, timeout=30)


def _download_all(name: str, remote: _Remote, folder: Path) -> None:
    looked = ", ".join(place(folder) for folder in _places(name, remote))
    by_hand = f"set PYROVAE_DATA to a folder with {name}/{next(iter(remote.sha256))}.gz and its three companions"
    if os.environ.get("PYROVAE_OFFLINE"):
        raise DataError(f"{name}: not found in {looked}, and PYROVAE_OFFLINE forbids a download: {by_hand}")
    for stem, sha256 in remote.sha256.items():
        if _file(folder, stem) is None:
            try:
                _download(f"{remote.url}{stem}.gz", folder / f"{stem}.gz", sha256, _open)
            except (OSError, http.client.HTTPException) as error:
                raise DataError(
                    f"{name}: not found in {looked}, and {shown(remote.url)} could not be downloaded "
                    f"({shown(error)}): {by_hand}"
                ) from error


def _download(url: str, target: Path, sha256: str, opener: Callable[[str], Any]) -> None:
    """Fetch one gzipped IDX file; under its name only after size and content are known to be right."""
    _check_https(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=".partial-", suffix=".gz", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out, opener(url) as response:
            _copy(response, out, url)
            out.flush()
            os.fsync(out.fileno())
        _known_content(Path(partial), shown(url), sha256)
        os.chmod(partial, 0o644)  # mkstemp's own mode would hide a shared cache from others
        os.replace(partial, target)
    except BaseException:  # an interrupted download leaves nothing behind, too
        Path(partial).unlink(missing_ok=True)
        raise


def _copy(response: Any, out: Any, url: str) -> None:
    done = 0
    while chunk := response.read(1 << 16):
        done += len(chunk)
        if done > _DOWNLOAD_BYTES:
            raise DataError(f"{shown(url)}: sends more than the expected {size(_DOWNLOAD_BYTES)}: get the file by hand")
        out.write(chunk)


# ---- generated shapes ------------------------------------------------------------------------------------------------

_FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 16, "y": 16}


def _shapes(n: int, seed: int, side: int = 32) -> Table:
    """Binary images of one square, ellipse or heart; n different combinations of the factors, drawn at random."""
    sizes = tuple(_FACTORS.values())
    drawn = np.random.default_rng(seed).choice(int(np.prod(sizes)), n, replace=False)
    factors = np.stack(np.unravel_index(drawn, sizes), axis=1)
    x = np.concatenate([_draw(block, side) for block in np.array_split(factors, max(1, n // 500))])
    return Table(x[:, None], source="shapes", factors=factors, factor_names=tuple(_FACTORS))


def _draw(factors: np.ndarray, side: int) -> np.ndarray:
    """Images ``(rows, side, side)`` of 0 and 1: every pixel is asked whether it lies inside the turned shape."""
    kind, scale, turn, right, down = factors.T[:, :, None, None]
    line = (np.arange(side) + 0.5) / side * 2 - 1  # pixel centres in [-1, 1]
    radius = np.linspace(0.2, 0.4, _FACTORS["scale"])[scale]
    u = (line[None, None, :] - _centre("x")[right]) / radius
    v = (_centre("y")[down] - line[None, :, None]) / radius  # upwards
    angle = 2 * np.pi * turn / _FACTORS["orientation"]
    u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    square = np.maximum(np.abs(u), np.abs(v)) <= 0.7
    ellipse = u**2 + (2 * v) ** 2 <= 1
    heart = ((1.25 * u) ** 2 + (1.25 * v) ** 2 - 1) ** 3 <= (1.25 * u) ** 2 * (1.25 * v) ** 3
    return np.choose(np.broadcast_to(kind, square.shape), [square, ellipse, heart]).astype(np.float32)


def _centre(axis: str) -> np.ndarray:
    return np.linspace(-0.5, 0.5, _FACTORS[axis])
