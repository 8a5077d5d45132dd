"""What the readers share: the table they return, and the wording of their errors."""

from __future__ import annotations

import difflib
import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from pyrovae.errors import DataError


class BinaryStream(Protocol):
    """An open file of bytes: plain, gzipped, or within a zip archive."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end."""
        ...

    def readline(self, size: int, /) -> bytes:
        """At most ``size`` bytes, up to the next newline."""
        ...


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as they were read, before any preprocessing.

    Args:
        x: the numbers, of shape ``(rows, *shape)``; a read-only ``numpy.memmap`` where the file was a ``.npy``.
        y: labels ``(rows,)`` or None; missing ones are -1, NaN or the empty string.
        source: where the rows came from, for messages.
        columns: names of the columns of a CSV file, in the order of ``x``.
        factors: known factors of variation ``(rows, n_factors)`` of generated data.
        factor_names: one name for each column of ``factors``.
        texts: of columns that hold texts, by name: the texts in sorted order, whose places are the numbers in ``x``.
        rows: numbers of the rows in their source, counted from 0; None where these are all of them, in order.
        files: names of images in their folder, one for each row.

    Example:
        >>> len(Table(np.zeros((5, 2))))
        5
    """

    x: np.ndarray
    y: np.ndarray | None = None
    source: str = "array"
    columns: tuple[str, ...] | None = None
    factors: np.ndarray | None = None
    factor_names: tuple[str, ...] | None = None
    texts: Mapping[str, tuple[str, ...]] | None = None
    rows: Sequence[int] | np.ndarray | None = None
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray | slice) -> Table:
        """The same table with some of its rows: a slice gives views, an index array gives copies.

        Example:
            >>> Table(np.arange(6.0).reshape(3, 2)).take(slice(1, None)).x.tolist()
            [[2.0, 3.0], [4.0, 5.0]]
        """
        y, factors = (None if a is None else a[rows] for a in (self.y, self.factors))
        numbers = range(len(self)) if self.rows is None else self.rows
        numbers = numbers[rows] if isinstance(rows, slice) else np.asarray(numbers)[rows]
        files = None if self.files is None else tuple(np.array(self.files, dtype=object)[rows])
        return replace(self, x=self.x[rows], y=y, factors=factors, rows=numbers, files=files)


def shown(text: object, limit: int = 80) -> str:
    """Text from outside as one printable line: control characters escaped, long text cut."""
    whole = str(text)
    cut = whole if len(whole) <= limit else whole[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def place(path: str | os.PathLike[str], limit: int = 300) -> str:
    """A path for messages; of a very long one its end."""
    whole = os.fspath(path)
    return shown(whole if len(whole) <= limit else "…" + whole[-limit:], limit + 1)


def quoted(name: object) -> str:
    """A name from outside, in quotes."""
    return f'"{shown(name)}"'


def listing(names: Iterable[object], limit: int = 12) -> str:
    """Names in quotes, the first few of them when there are many."""
    every = list(names)
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(map(quoted, every[:limit])) + rest


def nearest(name: object, names: Iterable[object]) -> str:
    """A question naming the closest of the known names, or nothing."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" (did you mean {quoted(close[0])}?)" if close else ""


def size(n_bytes: int) -> str:
    """A number of bytes for people.

    Example:
        >>> size(16_000_000_000_000), size(12)
        ('14.6 TiB', '12 bytes')
    """
    power = min(max(n_bytes.bit_length() - 1, 0) // 10, 8)
    if power == 0:
        return f"{n_bytes} bytes"
    return f"{n_bytes / 1024**power:.1f} {' KMGTPEZY'[power]}iB"


def native(array: np.ndarray) -> np.ndarray:
    """The same values in the machine's byte order: the array itself, or a converted copy."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def read_into(stream: BinaryStream, view: memoryview, chunk: int = 1 << 20) -> int:
    """Fill ``view`` from a stream a chunk at a time; how many bytes came."""
    done = 0
    while done < len(view) and (got := stream.read(min(chunk, len(view) - done))):
        view[done : done + len(got)] = got
        done += len(got)
    return done


_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, struct.error)


@contextmanager
def guarded(source: str, *damage: type[Exception]) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into one DataError; ``damage`` adds a format's own exceptions."""
    try:
        yield
    except DataError:
        raise
    except (*_DAMAGE, *damage) as error:
        raise DataError(
            f"{source}: the file is truncated or damaged ({shown(error)}): copy or download it again"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{source}: does not fit into memory: save it as .npy, which is read from the disk piece by piece"
        ) from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({shown(error.strerror or error)}): check the path") from error
