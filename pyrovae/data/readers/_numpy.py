"""NPY and NPZ files, without NumPy's own loader: sizes are known before memory is asked for, nothing is unpickled."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyrovae.data.readers._common import BinaryStream, guarded, listing, native, nearest, quoted, read_into, shown, size
from pyrovae.errors import DataError

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by format version
_LONGEST_HEADER = 10_000  # NumPy's own limit
_DESCR = re.compile(r"'descr'\s*:\s*'([^']*)'")
_ORDER = re.compile(r"'fortran_order'\s*:\s*(True|False)")
_SHAPE = re.compile(r"'shape'\s*:\s*\(([\d\sL,]*)\)")  # L: written by Python 2
_MOST_AXES = 32
_DTYPE = re.compile(r"[<>=|]?([?a-zA-Z])(\d{0,9})(\[\w+\])?")
_NUMBERS = "biuf"
_REFUSED = {
    "O": "Python objects, which are never unpickled because that runs code: save plain numbers with numpy.save",
    "c": "complex numbers: save real and imaginary parts as two columns",
    "M": "dates: convert them to numbers first",
    "m": "time spans: convert them to numbers first",
    "V": "records: save one plain array of numbers",
    "U": "text: save numbers",
    "S": "text as bytes: save numbers, or labels as str",
}


class Header(NamedTuple):
    """What an NPY file says of itself, and the position of its first value."""

    dtype: np.dtype
    fortran: bool
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all values, as a Python integer, which cannot overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy(path: Path, source: str, max_bytes: int) -> np.ndarray:
    """Map a ``.npy`` file read-only; only foreign byte order costs a copy, limited by ``max_bytes``."""
    with guarded(source), path.open("rb") as stream:
        header = _header(stream, source, _NUMBERS)
        _check_size(header, path.stat().st_size - header.start, source)
        if not header.dtype.isnative and header.n_bytes > max_bytes:
            raise DataError(
                f"{source}: {size(header.n_bytes)} in foreign byte order: convert the file to little-endian"
            )
        order = "F" if header.fortran else "C"
        return native(np.memmap(stream, header.dtype, "r", header.start, header.shape, order))


def read_npz(path: Path, source: str, key: str | None, max_bytes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The arrays x and (if there is one) y of a ``.npz`` file."""
    with guarded(source, ValueError, OverflowError, RuntimeError), zipfile.ZipFile(path) as archive:
        members = _members(archive, source)
        chosen = _choose(list(members), key, source)
        wanted = [chosen] + ["y"] * ("y" in members and chosen != "y")
        total = sum(members[name].file_size for name in wanted)
        if total > max_bytes:
            raise DataError(
                f"{source}: unpacks to {size(total)}, more than the limit of {size(max_bytes)}: "
                "save it as .npy, or raise max_bytes if the file is trusted"
            )
        x = _read_member(archive, members[chosen], source, _NUMBERS)
        y = _read_member(archive, members["y"], source, _NUMBERS + "U") if len(wanted) == 2 else None
    return x, y


def _header(stream: BinaryStream, source: str, kinds: str) -> Header:
    start = stream.read(8)
    width = _LENGTH_BYTES.get(start[6]) if len(start) == 8 and start[:6] == _MAGIC else None
    if width is None:
        raise DataError(f"{source}: not an array in NPY format 1, 2 or 3 (damaged header): save it again")
    length = int.from_bytes(stream.read(width), "little")
    if length > _LONGEST_HEADER:
        raise DataError(f"{source}: the header is {length} bytes long, over {_LONGEST_HEADER}: save a plain array")
    text = stream.read(length)
    if len(text) < length:
        raise DataError(f"{source}: the file is truncated within its header: copy or download it again")
    return _parse(text.decode("latin-1"), 8 + width + length, source, kinds)


def _parse(text: str, start: int, source: str, kinds: str) -> Header:
    # The three fields are matched, never evaluated: a header is data from outside.
    order, shape = _ORDER.search(text), _SHAPE.search(text)
    if "'descr'" not in text or order is None or shape is None:
        raise DataError(f"{source}: the header is damaged ({shown(text, 60)}): save the array again")
    descr = _DESCR.search(text)
    dtype = _dtype(descr.group(1) if descr else "V", source, kinds)
    return Header(dtype, order.group(1) == "True", tuple(map(int, re.findall(r"\d{1,20}", shape.group(1)))), start)


def _dtype(descr: str, source: str, kinds: str) -> np.dtype:
    match = _DTYPE.fullmatch(descr)
    kind = match.group(1) if match else ""
    if kind in _REFUSED and kind not in kinds:
        raise DataError(f"{source}: holds {_REFUSED[kind]}")
    try:
        dtype = np.dtype(descr) if kind in kinds and kind else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in kinds or (dtype.kind == "f" and dtype.itemsize > 8):
        raise DataError(f"{source}: values of unknown type {quoted(descr)}: save integers, float32 or float64")
    return dtype


def _check_size(header: Header, present: int, source: str) -> None:
    if not header.shape:
        raise DataError(f"{source}: holds a single number, not rows: save an array of shape (rows, columns)")
    if len(header.shape) > _MOST_AXES:
        raise DataError(f"{source}: an array of {len(header.shape)} axes: save one of shape (rows, columns)")
    if header.n_bytes == 0:
        raise DataError(f"{source}: holds no values, its shape is {header.shape}: save at least one row and one column")
    if header.n_bytes > present:
        raise DataError(
            f"{source}: declares {size(header.n_bytes)} for shape {shown(header.shape)} but holds {size(present)}: "
            "truncated or damaged, copy or download it again"
        )
    if header.n_bytes < present:
        extra = present - header.n_bytes
        raise DataError(f"{source}: {extra} bytes follow the array of shape {header.shape}: save one array a file")


def _members(archive: zipfile.ZipFile, source: str) -> dict[str, zipfile.ZipInfo]:
    """The arrays of the archive by name; names are only looked up, no file is ever extracted."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        name = info.filename[: -len(".npy")]
        if name in members:
            raise DataError(f"{source}: two arrays are named {quoted(name)}: save it again with numpy.savez")
        members[name] = info
    if not members:
        raise DataError(f"{source}: a zip archive without arrays: save one with numpy.savez(path, x=x)")
    return members


def _choose(names: list[str], key: str | None, source: str) -> str:
    if key is not None:
        if key not in names:
            raise DataError(
                f"{source}: no array named {quoted(key)}{nearest(key, names)}: the file holds {listing(names)}"
            )
        return key
    if "x" in names:
        return "x"
    others = [name for name in names if name != "y"] or names
    if len(others) > 1:
        raise DataError(f'{source}: no array named "x" among {listing(names)}: choose one with key')
    return others[0]


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str, kinds: str) -> np.ndarray:
    where = f"{source}: array {quoted(info.filename[:-4])}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is encrypted or compressed in an unknown way: save it with numpy.savez_compressed")
    with guarded(where, ValueError, OverflowError, RuntimeError), archive.open(info) as stream:
        header = _header(stream, where, kinds)
        _check_size(header, info.file_size - header.start, where)
        flat = np.empty(math.prod(header.shape), header.dtype)
        done = read_into(stream, flat.view(np.uint8).data)
        if done < flat.nbytes or stream.read(1):  # reading to the very end is what verifies the checksum
            raise DataError(f"{where}: {size(done)} of {size(flat.nbytes)}: truncated, copy or download the file again")
    return native(flat.reshape(header.shape[::-1]).T if header.fortran else flat.reshape(header.shape))
