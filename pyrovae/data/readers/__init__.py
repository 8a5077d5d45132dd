"""Readers of files and of folders of images, each with its sizes checked before memory is asked for."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pyrovae.data.readers._common import Table, guarded, place
from pyrovae.data.readers._csv import read_csv
from pyrovae.data.readers._folder import read_folder
from pyrovae.data.readers._idx import labels_beside, read_idx
from pyrovae.data.readers._numpy import read_npy, read_npz
from pyrovae.data.readers._parquet import read_parquet
from pyrovae.errors import ConfigError, DataError

__all__ = ["MAX_BYTES", "Table", "read"]

MAX_BYTES = 4 * 1024**3
"""What a file may take in memory unless told otherwise; a memory-mapped ``.npy`` takes none and has no limit."""

_KINDS = {
    "npy": "an array in NPY format",
    "npz": "a zip archive (NPZ)",
    "idx": "an IDX file",
    "csv": "text (CSV)",
    "pickle": "a Python pickle, which is never loaded because that runs code",
    "parquet": "a Parquet file",
    "png": "a PNG picture",
    "hdf5": "an HDF5 file",
    "gzip": "gzipped twice",
}
_MAGIC = {
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npz",
    b"PK\x05\x06": "npz",
    b"\x1f\x8b": "gzip",
    b"PAR1": "parquet",
    b"\x89PNG": "png",
    b"\x89HDF": "hdf5",
}


def read(
    path: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    key: str | None = None,
    texts: Collection[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Table:
    r"""Read a table from a file whose extension and content agree.

    ========================  =====================================================================================
    ``.npy``                  memory-mapped read-only, never copied (except from foreign byte order)
    ``.npz``                  array ``x`` (or the only one, or ``key``) and, if present, the labels ``y``
    ``.csv``, ``.csv.gz``     comma-separated UTF-8 with a header; ``x`` is float32, an empty cell is NaN
    ``.parquet``              columns of numbers, truth values or texts; ``x`` is float32, a null is NaN
    IDX, IDX ``.gz``          as MNIST; the labels of ``…images-idx3-ubyte`` are read from ``…labels-idx1-ubyte``
    a folder                  of PNG, JPEG, BMP, GIF, TIFF or WebP images of one size; bytes ``(rows, C, H, W)``
    ========================  =====================================================================================

    Nothing is ever unpickled or extracted to the disk. Values are as in the file, in native byte order; whether a model
    can use them is for :func:`pyrovae.data.gate.check_cells` to say. A column of whole numbers as labels becomes
    int64 with -1 where the cell is empty; labels which are not all numbers become text.

    Columns of texts are refused unless ``texts`` is given. With ``texts=()`` a column whose cells are no numbers
    becomes the numbers 0, 1, ... of its texts in sorted order, which ``Table.texts`` keeps; truth values are texts,
    too. A cell that is no number in a column of numbers is refused all the same. The numbers belong to this file
    alone: another file is matched by the texts, as :meth:`pyrovae.Columns.to_array` does it.

    Images are rows in the order of their names, which ``Table.files`` keeps. Where all are grey, C is 1, else 3. Their
    labels stand in ``labels.csv`` (columns ``file`` and ``label``; files that are not in it have none), or else they
    are the names of the sub-folders, of which ``unlabelled``, ``unlabeled`` and ``unknown`` are none; neither has a
    file beside the sub-folders. Pixels are made bytes, transparent ones white, photographs upright.

    Args:
        path: the file, or a folder of images.
        label_column: CSV and Parquet only: the column which is taken out of ``x`` and returned as ``y``.
        key: NPZ only: the name of the array to be used as ``x``.
        texts: CSV and Parquet: the columns to be read as texts even where they look like numbers; others are told by
            their cells. None allows no texts.
        max_bytes: the most that a compressed or text file may unpack to; checked before it is unpacked.

    Returns:
        A :class:`Table` with ``x`` of shape ``(rows, *shape)``.

    Raises:
        DataError: what is wrong, where, and what to do, in one line.
        ConfigError: ``label_column`` or ``key`` was given for a format which has none.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "flowers.csv")
        ...     _ = file.write_text("petal,sepal,kind\n1.5,2,iris\n,3,rose\n")
        ...     table = read(file, label_column="kind")
        >>> table.x.tolist(), table.y.tolist(), table.columns
        ([[1.5, 2.0], [nan, 3.0]], ['iris', 'rose'], ('petal', 'sepal'))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "people.csv")
        ...     _ = file.write_text("age,city\n31,Rome\n,Oslo\n64,\n")
        ...     table = read(file, texts=())
        >>> table.x.tolist(), table.texts
        ([[31.0, 1.0], [nan, 0.0], [64.0, nan]], {'city': ('Oslo', 'Rome')})
    """
    file, source = Path(path), place(path)
    if os.path.isdir(path):
        if label_column is not None or key is not None:
            raise ConfigError(f"{source}: a label column or key is for files, this is a folder of images: leave it out")
        return read_folder(file, source, max_bytes)
    kind, gz = _kind(file, source)
    if label_column is not None and kind not in ("csv", "parquet"):
        raise ConfigError(f"{source}: label_column is for CSV and Parquet files, this is {_KINDS[kind]}: leave it out")
    if key is not None and kind != "npz":
        raise ConfigError(f"{source}: key is for .npz files, this is {_KINDS[kind]}: leave it out")
    if kind == "npy":
        return Table(read_npy(file, source, max_bytes), source=source)
    if kind == "npz":
        return _paired(*read_npz(file, source, key, max_bytes), source)
    if kind == "idx":
        return _read_images(file, source, max_bytes)
    if kind == "parquet":
        return read_parquet(file, source, label_column, texts, max_bytes)
    return read_csv(lambda: gzip.open(file, "rb") if gz else file.open("rb"), source, label_column, texts, max_bytes)


def _read_images(file: Path, source: str, max_bytes: int) -> Table:
    x, beside = read_idx(file, source, max_bytes), labels_beside(file)
    if beside is None:
        return Table(x, source=source)
    name = place(beside)
    _kind(beside, name)
    return _paired(x, read_idx(beside, name, max_bytes), source)


def _paired(x: np.ndarray, y: np.ndarray | None, source: str) -> Table:
    if y is not None and (y.ndim == 0 or len(x) != len(y)):
        raise DataError(f"{source}: {len(x)} rows but {y.size} labels: each row needs one label")
    return Table(x, y, source)


def _kind(file: Path, source: str) -> tuple[str, bool]:
    """The format, and whether it is gzipped; an error where name and content disagree."""
    head, gz = _head(file, source)
    named, found = _named(file.name.lower()), _sniffed(head)
    if named is None and found == "csv":
        raise DataError(
            f"{source}: unknown kind of file: name it .csv, .csv.gz, .parquet, .npy or .npz after what it is"
        )
    kind = named or found
    if kind != found and not (kind == "idx" and found == "csv"):  # the IDX reader shows the wrong magic number
        told = f"named like {_KINDS[kind]} but " if named else ""
        raise DataError(f"{source}: {told}its content is {_KINDS[found]}: rename it, or save it as .npy, .npz or .csv")
    if kind not in ("npy", "npz", "idx", "csv", "parquet"):
        raise DataError(f"{source}: this is {_KINDS[kind]}: save the data as .npy, .npz or .csv")
    if gz and kind in ("npy", "npz", "parquet"):
        raise DataError(f"{source}: gzipped {kind}: unpack it with gunzip first")
    if gz != file.name.lower().endswith(".gz"):
        raise DataError(f"{source}: {'gzipped but not named .gz' if gz else 'named .gz but not gzipped'}: rename it")
    return kind, gz


def _head(file: Path, source: str) -> tuple[bytes, bool]:
    """The first bytes, unpacked where the file is gzipped."""
    with guarded(source, ValueError):  # ValueError: a NUL within the path
        if not file.exists():
            raise DataError(f"{source}: no such file: check the path")
        if not file.is_file():
            raise DataError(f"{source}: is not a regular file: name one file")
        with file.open("rb") as stream:
            head = stream.read(8)
        if not head:
            raise DataError(f"{source}: the file is empty: write it again")
        if not head.startswith(b"\x1f\x8b"):
            return head, False
        with gzip.open(file, "rb") as stream:
            return stream.read(8), True


def _named(name: str) -> str | None:
    plain = name.removesuffix(".gz")
    if re.search(r"([-.]idx\d?(-ubyte)?|-ubyte)$", plain):
        return "idx"
    return next((kind for kind in ("npy", "npz", "csv", "parquet") if plain.endswith("." + kind)), None)


def _sniffed(head: bytes) -> str:
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head[:2] == b"\0\0":
        return "idx"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "csv")
