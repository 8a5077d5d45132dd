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
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pyrovae.data.readers._common import BinaryStream, Table, guarded, listing, nearest, quoted, shown, size
from pyrovae.errors import DataError

_LONGEST_LINE = 1 << 26  # a gzipped bomb may have no newline at all
_BLOCK_CELLS = 1 << 18  # text cells held at a time
_LONGEST_LABEL = 256  # longer text is no class label, and NumPy pads every label to the longest
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


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


def read_csv(stream: BinaryStream, source: str, label_column: str | None, max_bytes: int) -> Table:
    """Numbers as float32, the label column (if any) as y."""
    with guarded(source):
        lines = _Lines(stream, source, max_bytes)
        records = _records(lines, source)
        names = _header(next(records, None), source)
        label = None if label_column is None else _find_label(names, label_column, source)
        columns = tuple(name for i, name in enumerate(names) if i != label)
        if not columns:
            raise DataError(f"{source}: 0 columns beside the label column: x needs at least one")
        blocks: list[np.ndarray] = []
        labels: list[str] = []
        for block in _blocks(records, len(names), source):
            if label is not None:
                labels += [_label(record, label, source) for record in block]
            start = sum(map(len, blocks))
            blocks.append(_numbers(block, columns, start, source, plain=lines.plain))
            lines.plain = True
        if not blocks:
            raise DataError(f"{source}: 0 rows: only a header is there")
        x = np.concatenate(blocks)
    return Table(x, None if label is None else _typed(labels), source, columns)


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
    if all(_NUMBER.fullmatch(name) for name in names):
        raise DataError(f"{source}: the first row is all numbers: a header with the columns' names is needed")
    if "" in names:
        advice = "name it, or drop a saved index (pandas: to_csv(path, index=False))"
        raise DataError(f"{source}: column {names.index('') + 1} of the header has no name: {advice}")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{source}: {times} columns are named {quoted(name)}: rename them")
    return names


def _find_label(names: list[str], wanted: str, source: str) -> int:
    if wanted not in names:
        raise DataError(
            f"{source}: no label column {quoted(wanted)}{nearest(wanted, names)}: the columns are {listing(names)}"
        )
    return names.index(wanted)


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
    text = record.cells.pop(label).strip()
    if len(text) > _LONGEST_LABEL:
        raise DataError(f"{source}: line {record.line}: a label of {len(text)} letters: choose another label column")
    return text


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
            if _NUMBER.fullmatch(cell):
                wide[row, column] = float(cell)
            elif cell:
                raise DataError(
                    f"{_place(block, columns, start, row, column, source)}: {quoted(cell)} is not a number: drop the "
                    "column, name it as label_column, or leave missing cells empty"
                )
    return wide


def _place(block: list[Record], columns: tuple[str, ...], start: int, row: int, column: int, source: str) -> str:
    return f"{source}: column {quoted(columns[column])}, row {start + row} (line {block[row].line})"


def _typed(labels: list[str]) -> np.ndarray:
    """Integers where all labels are whole numbers (missing: -1), floats where all are numbers, otherwise text."""
    missing = np.array([text.lower() in ("", "nan") for text in labels])
    present = [text for text, gone in zip(labels, missing, strict=True) if not gone]
    if not all(map(_NUMBER.fullmatch, present)):
        return np.array(["" if gone else text for text, gone in zip(labels, missing, strict=True)])
    values = np.full(len(labels), np.nan)
    values[~missing] = [float(text) for text in present]
    if np.any(np.abs(values[~missing]) >= 2.0**53):  # long identifiers would run together as numbers
        return np.array(labels)
    whole = not np.any(values[~missing] % 1)
    return np.where(missing, -1, values).astype(np.int64) if whole else values
