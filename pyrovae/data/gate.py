"""The gate between tables and models: values a model cannot use are refused at load, with their place."""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.distributions import constraints

from pyrovae.data.readers._common import Table, listing, nearest, quoted, shown
from pyrovae.errors import DataError, ModelFileError

__all__ = ["Missing", "Schema", "check_cells", "check_labels"]

_ABSURD = 1e15  # float32 squares overflow soon above it, and one such cell freezes an optimiser
_CHUNK_BYTES = 1 << 24
_IN_WORDS = {
    constraints.boolean: "0 or 1",
    constraints.unit_interval: "numbers in [0, 1]",
    constraints.nonnegative_integer: "whole numbers from 0",
    constraints.positive_integer: "whole numbers from 1",
    constraints.positive: "numbers above 0",
    constraints.nonnegative: "numbers from 0",
}
_WRAP = (
    "wrap its likelihood, Masked(...), and let the posterior read them, net=MaskAware; or drop the rows (or the "
    "columns) or fill the cells"
)
Label = str | int | float


class Missing(enum.Enum):
    """What a table may lack."""

    REFUSED = "nothing"
    CELLS = "cells, but no column as a whole"
    COLUMNS = "columns as well"


def check_cells(
    x: np.ndarray | torch.Tensor,
    support: constraints.Constraint | None = None,
    *,
    source: str = "array",
    columns: Sequence[str] | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    missing: Missing = Missing.REFUSED,
    advice: str = _WRAP,
    rows: Sequence[Any] | np.ndarray | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> None:
    """Refuse what no model can use, and what lies outside the support of the likelihood.

    Refused are: no rows or columns, values that are not numbers, infinities, numbers beyond ±1e15, and values outside
    ``support``; missing cells (NaN), or, for a model that can use those, columns without a single value. Rows are
    counted from 0. The table is looked at a chunk at a time and never changed, so a memory-mapped file stays on the
    disk.

    Args:
        x: the table, ``(rows, *shape)`` with at least one axis in ``shape``.
        support: of the likelihood; an independent constraint is checked cell by cell. One that depends on other
            variables cannot be checked here. Only closed bounds are known: 0 passes for a Beta likelihood.
        source: where the table came from; after a ``.csv`` the line number is told as well.
        columns: names of the columns, for messages.
        transform: what the model's preprocessing makes of a chunk, which is then held against ``support``.
        missing: whether NaN passes, and a column of nothing else.
        advice: what to do about missing cells where they are refused.
        rows: what to call the rows in messages; None counts them from 0.
        chunk_bytes: memory to be used at a time.

    Raises:
        DataError: what is wrong, the first offending row and column, and what to do.

    Example:
        >>> check_cells(np.array([[0.0, 1.0], [1.0, 0.0]]), constraints.boolean)
        >>> check_cells(np.array([[1.0], [np.nan]]), columns=["age"])
        Traceback (most recent call last):
        ...
        pyrovae.errors.DataError: array: 1 missing value (NaN), the first at row 1, column "age": ...
    """
    cells = x.detach() if isinstance(x, torch.Tensor) else np.asarray(x)
    where = _Where(source, None if columns is None else tuple(columns), tuple(cells.shape), rows)
    _check_form(cells, where)
    base, allowed = _elementwise(support), missing is not Missing.REFUSED
    count, first, present = 0, "", np.zeros(where.shape[1:], bool)
    for start, chunk in _chunks(cells, chunk_bytes):
        n = _scan(chunk, start, where)
        first = first or (where(start, np.isnan(chunk)) if n else "")
        count += n
        present |= ~np.isnan(chunk).all(0) if n else True
        if base is not None and (allowed or not count):
            seen = (
                chunk
                if transform is None
                else _to_numpy(transform(torch.tensor(chunk.astype(chunk.dtype.newbyteorder("=")))))
            )
            _check_support(seen, start, base, where)
    if count and not allowed:
        many = "1 missing value (NaN), the first" if count == 1 else f"{count} missing values (NaN), the first"
        raise DataError(f"{source}: {many} at {first}: missing cells are not supported by this model: {advice}")
    if count == math.prod(where.shape):
        raise DataError(f"{source}: every cell is missing (NaN): at least one value is needed")
    if missing is Missing.CELLS and not present.all():
        raise DataError(f"{source}: {where.all_missing(~present)}: leave it out, nothing can be learned about it")


def check_labels(y: Any, rows: int, *, source: str = "labels") -> None:
    """Refuse labels which are not one class per row.

    A class is a text or a whole number from 0; -1, NaN, None and the empty text mark a missing label.

    Args:
        y: array, tensor or sequence of labels, ``(rows,)``.
        rows: number of rows of the table.
        source: where the labels came from, for messages.

    Raises:
        DataError: wrong count (both are told), more than one axis, or the first value which is no class.

    Example:
        >>> check_labels([0, 2, -1], rows=3)
        >>> check_labels([0, 1.5], rows=2)
        Traceback (most recent call last):
        ...
        pyrovae.errors.DataError: labels: row 1 has the label 1.5: ...
    """
    labels = _as_labels(y, source)
    if labels.ndim != 1:
        one_hot = " (one-hot rows: take argmax over the classes)" if labels.ndim == 2 else ""
        raise DataError(f"{source}: labels of shape {labels.shape}: expected ({rows},), one class a row{one_hot}")
    if len(labels) != rows:
        raise DataError(f"{source}: {len(labels)} labels for {rows} rows: each row needs one label (-1 where unknown)")
    if labels.dtype.kind == "U" or labels.dtype.kind == "b":
        return
    if labels.dtype.kind == "O":
        _check_mixed(labels, source)
    else:
        _check_classes(labels, np.arange(rows), source)


@dataclass(frozen=True)
class Schema:
    """What one row looks like: stored with the model, applied again to every later table.

    Args:
        shape: of one row of ``x``.
        columns: names of the columns, if the table had any.
        classes: the labels in sorted order, without the missing marks; None where there are no class labels.

    Example:
        >>> table = Table(np.zeros((3, 2)), y=np.array(["dog", "", "cat"]), columns=("a", "b"))
        >>> schema = Schema.of(table)
        >>> schema.classes, schema.codes(table.y).tolist()
        (('cat', 'dog'), [1, -1, 0])
        >>> Schema.from_dict(schema.to_dict()) == schema
        True
    """

    shape: tuple[int, ...]
    columns: tuple[str, ...] | None = None
    classes: tuple[Label, ...] | None = None

    @classmethod
    def of(cls, table: Table) -> Schema:
        """The schema of a table; numbers which are not whole (a target of regression) are no classes."""
        return cls(tuple(table.x.shape[1:]), table.columns, None if table.y is None else _classes(table.y))

    def apply(self, table: Table) -> Table:
        """The table with its columns in the order of the model; a table without names is taken by position.

        Raises:
            DataError: a column is missing or unknown, or a row has another shape.
        """
        if self.columns is not None and table.columns is not None:
            table = self._reorder(table, self.columns, table.columns)
        if tuple(table.x.shape[1:]) != self.shape:
            raise DataError(
                f"{table.source}: rows of shape {tuple(table.x.shape[1:])}: expected {self.shape} as in training"
            )
        return table

    def codes(self, y: Any, *, source: str = "labels") -> np.ndarray:
        """The place of each label in ``classes`` as int64, -1 where it is missing.

        Raises:
            DataError: a label is none of the classes.
        """
        classes = self.classes or ()
        code = {label: i for i, label in enumerate(classes)}
        codes = np.full(len(y), -1, np.int64)
        for row, label in enumerate(_plain(y, source)):
            if label is not None and label not in code:
                hint = f"{nearest(label, classes)}: the classes are {listing(classes)}"
                raise DataError(f"{source}: row {row} has the unknown label {quoted(label)}{hint}")
            codes[row] = -1 if label is None else code[label]
        return codes

    def to_dict(self) -> dict[str, list]:
        """Plain lists for JSON or TOML; what is None is left out, as TOML has no null."""
        named = {"shape": self.shape, "columns": self.columns, "classes": self.classes}
        return {name: list(value) for name, value in named.items() if value is not None}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Schema:
        """The inverse of :meth:`to_dict`.

        Raises:
            ModelFileError: something else was stored.
        """
        unknown = [name for name in stored if name not in ("shape", "columns", "classes")]
        if unknown or "shape" not in stored:
            raise ModelFileError(f"schema: expected shape, columns, classes, received {listing(stored)}: save it again")
        shape = _stored(stored, "shape", lambda v: type(v) is int and v > 0) or ()
        columns = _stored(stored, "columns", lambda v: isinstance(v, str))
        return cls(shape, columns, _stored(stored, "classes", lambda v: type(v) in (str, int, float)))

    def _reorder(self, table: Table, expected: tuple[str, ...], received: tuple[str, ...]) -> Table:
        if received == expected:
            return table
        missing = [name for name in expected if name not in set(received)]
        if missing:
            hint = nearest(missing[0], [name for name in received if name not in set(expected)])
            raise DataError(
                f"{table.source}: no column {quoted(missing[0])}{hint}: the model needs {listing(expected)}"
            )
        unknown = [name for name in received if name not in set(expected)]
        if unknown:
            raise DataError(
                f"{table.source}: unknown column {quoted(unknown[0])}: remove it, or name it as label_column if it is "
                f"the label; the model knows {listing(expected)}"
            )
        place = {name: i for i, name in enumerate(received)}
        return replace(table, x=table.x[:, [place[name] for name in expected]], columns=expected)


def row_in_words(source: str, row: Any) -> str:
    """The place of a row, whose number counts from 0; of a CSV file its line as well."""
    in_lines = source.endswith((".csv", ".csv.gz")) and isinstance(row, int | np.integer)
    return f"row {row} (line {row + 2})" if in_lines else f"row {row}"


@dataclass(frozen=True)
class _Where:
    """Words for the place of a cell: row, line of a CSV file, column or pixel."""

    source: str
    columns: tuple[str, ...] | None
    shape: tuple[int, ...]
    rows: Sequence[Any] | np.ndarray | None = None

    def __call__(self, start: int, bad: np.ndarray) -> str:
        """The place of the first true cell of a chunk that begins at row ``start``."""
        row, *cell = _first(bad)
        number = start + row if self.rows is None else self.rows[start + row]
        return f"{row_in_words(self.source, number)}{self._cell(cell)}"

    def all_missing(self, columns: np.ndarray) -> str:
        """Which columns hold no value in any row."""
        places = [self._cell(list(index))[2:] for index in np.argwhere(columns)]
        noun = "column" if len(self.shape) == 2 else "pixel"
        if len(places) == 1:
            return f"{places[0]} is missing (NaN) in every row"
        return f"{len(places)} {noun}s are missing (NaN) in every row, the first {places[0]}"

    def _cell(self, cell: Sequence[int]) -> str:
        if len(cell) == 1:
            name = cell[0] if self.columns is None else quoted(self.columns[cell[0]])
            return f", column {name}"
        return f", pixel {tuple(cell)}" if cell else ""


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(int(np.argmax(bad)), bad.shape)))


def _check_form(x: np.ndarray | torch.Tensor, where: _Where) -> None:
    source, shape = where.source, where.shape
    if isinstance(x, torch.Tensor):
        kind = "c" if torch.is_complex(x) else "f"
    else:
        kind = "longdouble" if x.dtype.kind == "f" and x.dtype.itemsize > 8 else x.dtype.kind
    if kind not in ("b", "i", "u", "f"):
        raise DataError(
            f"{source}: values of type {shown(x.dtype)}: expected integers, float32 or float64, convert them"
        )
    if not shape or shape[0] == 0:
        raise DataError(f"{source}: 0 rows: at least one row is needed")
    if len(shape) == 1:
        raise DataError(
            f"{source}: shape {shape}: expected (rows, columns), reshape to ({shape[0]}, 1) or (1, {shape[0]})"
        )
    if 0 in shape:
        raise DataError(f"{source}: 0 columns, its shape is {shape}: at least one column is needed")
    if where.columns is not None and (len(shape) != 2 or len(where.columns) != shape[1]):
        raise DataError(
            f"{source}: {len(where.columns)} names for columns of shape {shape[1:]}: give one name for each"
        )


def _chunks(x: np.ndarray | torch.Tensor, chunk_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of whole rows as NumPy arrays, and the row where each begins."""
    per_row = 8 * int(np.prod(x.shape[1:], dtype=np.int64))
    rows = max(1, chunk_bytes // per_row)
    for start in range(0, x.shape[0], rows):
        chunk = x[start : start + rows]
        yield start, _to_numpy(chunk) if isinstance(chunk, torch.Tensor) else chunk


def _to_numpy(x: torch.Tensor) -> np.ndarray:
    x = x.cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # NumPy has no bfloat16


def _scan(chunk: np.ndarray, start: int, where: _Where) -> int:
    """Number of NaN; infinite and absurd values are refused at once."""
    if chunk.dtype.kind == "b" or (chunk.dtype.kind in "iu" and chunk.dtype.itemsize < 8):
        return 0
    chunk = chunk.astype(np.float32) if chunk.dtype.itemsize < 4 else chunk  # the bound overflows in float16
    fine = (chunk <= _ABSURD) & (chunk >= -_ABSURD)  # false for NaN too: one pass over clean data
    if fine.all():
        return 0
    nan = np.isnan(chunk)
    bad = ~(fine | nan)
    if bad.any():
        value = chunk[_first(bad)]
        what = "an infinite value" if np.isinf(value) else f"the absurd value {value:g}"
        advice = "infinite is not missing: mend the cell" if np.isinf(value) else "mend the cell or rescale the column"
        raise DataError(f"{where.source}: {what} at {where(start, bad)}: {advice}")
    return int(nan.sum())


def _elementwise(support: constraints.Constraint | None) -> constraints.Constraint | None:
    """The constraint on single cells; None where nothing (more) is to be checked."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is None or support is constraints.real or constraints.is_dependent(support):
        return None
    return support


def _check_support(chunk: np.ndarray, start: int, support: constraints.Constraint, where: _Where) -> None:
    # As the model will see it: a tiny positive float64 may be 0 in float32. A copy, as a file may be mapped read-only.
    wide = torch.get_default_dtype() == torch.float64
    cells = np.array(chunk, np.float64 if wide else np.float32)
    good = support.check(torch.from_numpy(cells)).numpy()
    if good.all():
        return
    if good.ndim == chunk.ndim:
        good |= np.isnan(cells)  # where missing cells are allowed at all: the others were refused already
        if good.all():
            return
    place = where(start, ~good)
    if good.ndim < chunk.ndim:  # the support of a whole vector, a simplex for example
        raise DataError(
            f"{where.source}: {place} lies outside the support of the likelihood, {_words(support)}: rescale"
        )
    value = f"{chunk[_first(~good)]:g}"
    if isinstance(support, constraints.cat):
        column = _first(~good)[-1]
        cells, support = cells[..., column], _of_column(support, column)
    raise DataError(f"{where.source}: " + _advice(cells, value, place, support))


def _of_column(support: Any, column: int) -> constraints.Constraint:
    """What the constraint on a row of different columns asks of one of them."""
    kinds = (c for c, n in zip(support.cseq, support.lengths, strict=True) for _ in range(n))
    return next(itertools.islice(kinds, column, None))


def _advice(cells: np.ndarray, value: str, place: str, support: constraints.Constraint) -> str:
    low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
    if support is constraints.boolean and low >= 0 and high <= 1:
        return (
            f"grey values where the likelihood wants 0 or 1, the first {value} at {place}: binarise them anew in every "
            "epoch (--preprocess binarize, preprocess=Binarize()), or take a likelihood for grey values "
            "(ContinuousBernoulli or Normal)"
        )
    if support in (constraints.boolean, constraints.unit_interval) and low >= 0 and 1 < high <= 255:
        choice = ", or preprocess=Binarize() for 0 and 1" if support is constraints.boolean else ""
        return (
            f"values run to {high:g} (0..255?) where the likelihood wants {_words(support)}, the first {value} at "
            f"{place}: scale them to [0, 1] (--preprocess rescale, preprocess=Rescale()){choice}"
        )
    ends = support.check(torch.tensor([0.0, 0.5, 1.0])).tolist() == [False, True, False]
    closed = " (ContinuousBernoulli scores 0 and 1 as well)" if ends and low >= 0 and high <= 1 else ""
    return (
        f"{value} at {place} lies outside the support of the likelihood, {_words(support)}: "
        f"mend the cell, preprocess the data, or take another likelihood{closed}"
    )


def _words(support: constraints.Constraint) -> str:
    if isinstance(support, constraints.integer_interval):
        return f"whole numbers from {support.lower_bound} to {support.upper_bound}"
    return _IN_WORDS.get(support, shown(support))


def _as_labels(y: Any, source: str) -> np.ndarray:
    try:
        labels = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
        # NumPy would turn [1, "a"] into text and [1, None] into objects: keep a sequence's own values.
        labels = np.array(list(y), object) if labels.dtype.kind == "U" and not isinstance(y, np.ndarray) else labels
    except ValueError as error:
        raise DataError(f"{source}: labels of unequal lengths: expected one class a row") from error
    if labels.dtype.kind not in "biufUO":
        raise DataError(f"{source}: labels of type {shown(labels.dtype)}: expected text or whole numbers")
    return labels


def _check_classes(labels: np.ndarray, rows: np.ndarray, source: str) -> None:
    missing = (labels == -1) | np.isnan(labels)
    bad = ~missing & ~((labels >= 0) & np.isfinite(labels) & (labels == np.floor(labels)))
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(
            f"{source}: row {rows[at]} has the label {labels[at]:g}: "
            "a class is a whole number from 0 or a text, a missing label is -1, NaN or empty"
        )


def _check_mixed(labels: np.ndarray, source: str) -> None:
    text = [isinstance(label, str) for label in labels]
    number = [isinstance(label, int | float | np.number | np.bool_) for label in labels]
    strange = next((i for i, v in enumerate(labels) if not (text[i] or number[i] or v is None)), None)
    if strange is not None:
        raise DataError(
            f"{source}: row {strange} has a label of type {type(labels[strange]).__name__}: use text or int"
        )
    rows = np.flatnonzero(number)
    values = np.array([float(labels[i]) for i in rows])
    if any(label for label in labels[text]) and np.any(~np.isnan(values)):
        raise DataError(f"{source}: labels are partly text and partly numbers: make them all one kind")
    _check_classes(values, rows, source)


def _plain(y: Any, source: str) -> list[Label | None]:
    """Labels as Python values, whole numbers as int, missing ones as None."""
    return [_one(label) for label in _as_labels(y, source).tolist()]


def _one(label: Any) -> Label | None:
    if label is None or label == "" or label != label or label == -1:
        return None
    return int(label) if not isinstance(label, str) and label % 1 == 0 else label


def _classes(y: np.ndarray) -> tuple[Label, ...] | None:
    if y.ndim != 1:
        return None
    found = {label for label in _plain(y, "labels") if label is not None}
    if any(not isinstance(label, str | int) for label in found) or len(set(map(type, found))) > 1:
        return None
    return tuple(sorted(found)) or None  # type: ignore[type-var]


def _stored(stored: Mapping[str, Any], name: str, fits: Any) -> tuple | None:
    values = stored.get(name)
    if values is None:
        return None
    if not isinstance(values, list | tuple) or not all(map(fits, values)):
        raise ModelFileError(f"schema: {name} holds something else than expected ({shown(values)}): save it again")
    return tuple(values)
