"""IDX files, the format of MNIST: a magic number, sizes, big-endian values; plain or gzipped."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import numpy as np

from pyrovae.data.readers._common import BinaryStream, guarded, native, shown, size
from pyrovae.errors import DataError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20
_MOST_AXES = 32


def read_idx(path: Path, source: str, max_bytes: int) -> np.ndarray:
    """The array of one IDX file, in native byte order."""
    return decode(content(path, source, max_bytes), source)


def content(path: Path, source: str, max_bytes: int) -> bytearray:
    """The uncompressed bytes of an IDX file; never more of them than its header declares."""
    zipped = path.name.lower().endswith(".gz")
    with guarded(source), gzip.open(path, "rb") if zipped else path.open("rb") as stream:
        head = bytearray(stream.read(4))
        head += stream.read(4 * head[3]) if len(head) == 4 else b""
        shape, dtype = _parse(head, source)
        declared = math.prod(shape) * dtype.itemsize
        if declared > max_bytes:
            raise DataError(
                f"{source}: declares {size(declared)}, more than the limit of {size(max_bytes)} (max_bytes)"
            )
        return head + _exactly(stream, declared, source)


def decode(raw: bytes | bytearray, source: str) -> np.ndarray:
    """The array within the bytes of an IDX file."""
    shape, dtype = _parse(raw, source)
    return native(np.frombuffer(raw, dtype, offset=4 + 4 * len(shape)).reshape(shape))


def labels_beside(path: Path) -> Path | None:
    """The labels' file that belongs to an images' file (``train-images-idx3-ubyte.gz``), if it is there."""
    match = re.fullmatch(r"(.*)images([-.])idx3-ubyte(\.gz)?", path.name)
    if match is None:
        return None
    plain = path.with_name(f"{match[1]}labels{match[2]}idx1-ubyte")
    zipped = plain.with_name(plain.name + ".gz")
    return next((p for p in ((zipped, plain) if match[3] else (plain, zipped)) if p.is_file()), None)


def _parse(head: bytes | bytearray, source: str) -> tuple[tuple[int, ...], np.dtype]:
    if head[:2] != b"\0\0" or len(head) < 4:
        raise DataError(f"{source}: wrong magic number {bytes(head[:4]).hex()}: an IDX file starts with 0000")
    if head[2] not in _DTYPES:
        raise DataError(f"{source}: unknown IDX type code 0x{head[2]:02x}: known are 08 09 0b 0c 0d 0e")
    if len(head) < 4 + 4 * head[3]:
        raise DataError(f"{source}: the file is truncated within its header: copy or download it again")
    shape = tuple(int.from_bytes(head[4 + 4 * i : 8 + 4 * i], "big") for i in range(head[3]))
    if math.prod(shape) == 0 or not 0 < len(shape) <= _MOST_AXES:
        raise DataError(f"{source}: holds no usable values, its shape is {shown(shape)}: it must have at least one row")
    return shape, np.dtype(_DTYPES[head[2]])


def _exactly(stream: BinaryStream, declared: int, source: str) -> bytearray:
    raw = bytearray()  # grows with what is really there: a header alone allocates nothing
    while len(raw) < declared and (chunk := stream.read(min(_CHUNK, declared - len(raw)))):
        raw += chunk
    if len(raw) < declared:
        raise DataError(f"{source}: declares {declared} bytes of values but holds {len(raw)}: truncated, copy it again")
    if stream.read(1):  # reading on also verifies a gzip's checksum
        raise DataError(f"{source}: more bytes follow the {declared} which the header declares: the file is damaged")
    return raw
