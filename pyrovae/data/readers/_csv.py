"""CSV files: streamed, strict, and with line numbers.

Python's own ``csv`` splits the records, so quotes, embedded newlines and CRLF are right and the number of cells of
every row is seen; pandas would pad short rows with NaN in silence.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from pyrovae.data.readers._common import BinaryStream, Table, guarded, listing, nearest, quoted, shown, size
from pyrovae.data.readers._texts import TextColumn, absent, checked, is_number, typed
from pyrovae.errors import DataError

_LONGEST_LINE = 1 << 26  # a gzipped bomb may have no newline at all
_BLOCK_CELLS = 1 << 18  # text cells held at a time


class Record(NamedTuple):
    """One row: the line it ends on, and its cells."""

    line: int
    cells: list[str]


class _Lines:
    """Decoded lines; ``plain`` stays true while ``float`` alone can be trusted to judge their cells."""

    def __init__(self, stream: BinaryStream, source: str, max_bytes: int) -> None:
        self.stream, self.source, self.max_bytes, self.plain = stream, source, max_bytes, True

    def __iter__(self) -> Iterator[str]:
        offset = 0
        while raw := self.stream.readline(_LONGEST_LINE + 1):
            if offset + len(raw) > self.max_bytes or len(raw) > _LONGEST_LINE:
                limit = "a line" if len(raw) > _LONGEST_LINE else f"the file (limit {size(self.max_bytes)}, max_bytes)"
                raise DataError(f"{self.source}: {limit} is too long: save large tables as .npy")
            yield self._decoded(raw, offset)
            offset += len(raw)

    def _decoded(self, raw: bytes, offset: int) -> str:
        skip = len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0
        try:
            text = raw[skip:].decode("utf-8")
        except UnicodeDecodeError as error:
            at = offset + skip + error.start
            raise DataError(f"{self.source}: not UTF-8 at byte {at}: save the file as UTF-8") from error
        if "\0" in text:
            at = offset + raw.index(b"\0")
            raise DataError(f"{self.source}: a NUL byte at byte {at}: not a text file in UTF-8, save it as CSV UTF-8")
        if not text.isascii() or "_" in text:  # float() would take "1_000" and foreign digits
            self.plain = False
        return text


def read_csv(
    opened: Callable[[], AbstractContextManager[BinaryStream]],
    source: str,
    label_column: str | None,
    texts: Collection[str] | None,
    max_bytes: int,
) -> Table:
    """Numbers as float32, the label column (if any) as y; columns of texts, where they are allowed, as numbers."""
    found: set[str] = set()
    if texts is not None:  # which columns hold texts is known at the end of the file: it is read twice
        with guarded(source), opened() as stream:
            found = _columns_of_texts(_File(stream, source, label_column, max_bytes), texts)
    with guarded(source), opened() as stream:
        file = _File(stream, source, label_column, max_bytes)
        coded = {i: TextColumn() for i, name in enumerate(file.columns) if name in found}
        blocks: list[np.ndarray] = []
        labels: list[str] = []
        for start, block, block_labels in file.blocks():
            labels += block_labels
            for record in block if coded else ():
                for i, column in coded.items():
                    record.cells[i] = column.code(record.cells[i], f"{source}: line {record.line}")
            blocks.append(_numbers(block, file.columns, start, source, plain=file.plain))
        if not blocks:
            raise DataError(f"{source}: 0 rows: only a header is there")
        x = np.concatenate(blocks)
    names = {file.columns[i]: column.sort(x[:, i]) for i, column in coded.items()}
    return Table(x, None if label_column is None else typed(labels), source, file.columns, texts=names or None)


class _File:
    """A CSV file from its header on: the names of the columns of x, and blocks of rows without their labels."""

    def __init__(self, stream: BinaryStream, source: str, label_column: str | None, max_bytes: int) -> None:
        self.source, self.plain = source, True
        self._lines = _Lines(stream, source, max_bytes)
        self._records = _records(self._lines, source)
        self._names = _header(next(self._records, None), source)
        self._label = None if label_column is None else find_label(self._names, label_column, source)
        self.columns = tuple(name for i, name in enumerate(self._names) if i != self._label)
        if not self.columns:
            raise DataError(f"{source}: 0 columns beside the label column: x needs at least one")

    def blocks(self) -> Iterator[tuple[int, list[Record], list[str]]]:
        """Number of the first row, rows, labels; ``plain`` is that of the rows."""
        start = 0
        for block in _blocks(self._records, len(self._names), self.source):
            self.plain, self._lines.plain = self._lines.plain, True
            labels = [] if self._label is None else [_label(record, self._label, self.source) for record in block]
            yield start, block, labels
            start += len(block)


def _columns_of_texts(file: _File, named: Collection[str]) -> set[str]:
    """The columns that were named, and those whose cells are no numbers for the greater part."""
    numbers: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for start, block, _ in file.blocks():
        for row, record in enumerate(block):
            for i, cell in enumerate(map(str.strip, record.cells)):
                if absent(cell):
                    continue
                name = file.columns[i]
                if is_number(cell):
                    numbers[name] += 1
                else:
                    texts[name] += 1
                    if name not in first:
                        first[name] = f"{_place(block, file.columns, start, row, i, file.source)}: {quoted(cell)}"
    for name in texts:
        if numbers[name] > texts[name] and name not in named:
            raise DataError(
                f"{first[name]} is not a number, as most cells of the column are: mend it, or leave missing cells empty"
            )
    return {*texts, *(name for name in named if name in file.columns)}


def _records(lines: _Lines, source: str) -> Iterator[Record]:
    reader = csv.reader(iter(lines), strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{source}: line {reader.line_num}: {shown(error)}: check the quotes and line ends"
            ) from error
        if cells:  # blank lines are skipped
            yield Record(reader.line_num, cells)


def _header(record: Record | None, source: str) -> list[str]:
    names = [] if record is None else [cell.strip() for cell in record.cells]
    if not names:
        raise DataError(f"{source}: 0 rows: the file is blank")
    if len(names) == 1 and re.search("[;\t]", names[0]):
        raise DataError(f"{source}: cells are separated by semicolons or tabs: save it separated by commas")
    if all(map(is_number, names)):
        raise DataError(f"{source}: the first row is all numbers: a header with the columns' names is needed")
    return checked_names(names, source)


def checked_names(names: list[str], source: str) -> list[str]:
    """Names of columns, none of them empty or there twice."""
    if "" in names:
        advice = "name it, or drop a saved index (pandas: to_csv(path, index=False))"
        raise DataError(f"{source}: column {names.index('') + 1} of the header has no name: {advice}")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{source}: {times} columns are named {quoted(name)}: rename them")
    return names


def find_label(names: Sequence[str], wanted: str, source: str) -> int:
    """The place of the label column among the names."""
    if wanted not in names:
        raise DataError(
            f"{source}: no label column {quoted(wanted)}{nearest(wanted, names)}: the columns are {listing(names)}"
        )
    return list(names).index(wanted)


def _blocks(records: Iterator[Record], width: int, source: str) -> Iterator[list[Record]]:
    rows = max(1, _BLOCK_CELLS // width)
    while block := list(itertools.islice(records, rows)):
        for line, cells in block:
            if len(cells) != width:
                raise DataError(
                    f"{source}: line {line} has {len(cells)} cells where the header has {width}: mend the row"
                )
        yield block


def _label(record: Record, label: int, source: str) -> str:
    return checked(record.cells.pop(label).strip(), f"{source}: line {record.line}")


def _numbers(block: list[Record], columns: tuple[str, ...], start: int, source: str, *, plain: bool) -> np.ndarray:
    shape = (len(block), len(columns))
    cells = itertools.chain.from_iterable(record.cells for record in block)
    try:
        if not plain:
            raise ValueError  # the careful way below
        wide = np.fromiter(map(float, cells), np.float64, shape[0] * shape[1]).reshape(shape)
    except ValueError:
        wide = _carefully(block, columns, start, source)
    with np.errstate(over="ignore"):
        x = wide.astype(np.float32)
    if np.isinf(x).any():
        row, column = map(int, np.argwhere(np.isinf(x))[0])
        raise DataError(
            f"{_place(block, columns, start, row, column, source)}: {quoted(block[row].cells[column])} is infinite or "
            "beyond the range of float32: rescale the column or leave the cell empty"
        )
    return x


def _carefully(block: list[Record], columns: tuple[str, ...], start: int, source: str) -> np.ndarray:
    """Cell by cell: an empty cell is NaN, anything else must be a number."""
    wide = np.full((len(block), len(columns)), np.nan)
    for row, record in enumerate(block):
        for column, cell in enumerate(map(str.strip, record.cells)):
            if is_number(cell):
                wide[row, column] = float(cell)
            elif cell:
                raise DataError(
                    f"{_place(block, columns, start, row, column, source)}: {quoted(cell)} is not a number: drop the "
                    "column, name it as label_column, leave missing cells empty, or read texts as classes "
                    "(--likelihood columns)"
                )
    return wide


def _place(block: list[Record], columns: tuple[str, ...], start: int, row: int, column: int, source: str) -> str:
    return f"{source}: column {quoted(columns[column])}, row {start + row} (line {block[row].line})"
