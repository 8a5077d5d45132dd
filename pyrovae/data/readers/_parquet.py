"""Parquet files: columns of numbers, truth values and texts; dates, lists and records are refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.readers._common import Table, guarded, quoted, shown, size
from pyrovae.data.readers._csv import checked_names, find_label
from pyrovae.data.readers._texts import TextColumn, typed
from pyrovae.errors import DataError


def read_parquet(
    path: Path, source: str, label_column: str | None, texts: Collection[str] | None, max_bytes: int
) -> Table:
    """Numbers as float32, the label column (if any) as y; columns of texts, where they are allowed, as numbers."""
    import pyarrow as pa
    from pyarrow import parquet

    with guarded(source, pa.ArrowException):
        with parquet.ParquetFile(path) as file:
            shape = file.metadata.num_rows, len(file.schema_arrow)
            if 8 * shape[0] * shape[1] > max_bytes:
                raise DataError(
                    f"{source}: {shape[0]} rows of {shape[1]} columns, more than the limit of {size(max_bytes)} "
                    "(max_bytes): save large tables as .npy"
                )
            names = checked_names(file.schema_arrow.names, source)
            label = None if label_column is None else find_label(names, label_column, source)
            content = file.read()
        columns = [name for name in names if name != label_column]
        x = np.empty((shape[0], len(columns)), np.float32)
        if x.size == 0:
            raise DataError(f"{source}: {shape[0]} rows of {len(columns)} columns: at least one of both is needed")
        known: dict[str, tuple[str, ...]] = {}
        for i, name in enumerate(columns):
            cells = content.column(name)
            if _kind(cells.type) == "" or (_kind(cells.type) == "text" and texts is None):
                advice = " or read texts as classes (--likelihood columns)" if _kind(cells.type) == "text" else ""
                raise DataError(
                    f"{source}: column {quoted(name)} holds {shown(cells.type)}: expected numbers, drop the column or "
                    f"convert it{advice}"
                )
            if texts is None or (_kind(cells.type) == "number" and name not in texts):
                with np.errstate(over="ignore"):
                    x[:, i] = _numbers(cells)
            else:
                column = TextColumn()
                codes = (column.code(cell, f"{source}: row {row}") for row, cell in enumerate(_texts(cells)))
                x[:, i] = [float(code or "nan") for code in codes]
                known[name] = column.sort(x[:, i])
        y = None if label is None else typed(list(_texts(content.column(label))))
    return Table(x, y, source, tuple(columns), texts=known or None)


def _kind(dtype: Any) -> str:
    """Number, truth value or text; empty for others."""
    from pyarrow import types

    if types.is_dictionary(dtype):
        dtype = dtype.value_type
    if types.is_integer(dtype) or types.is_floating(dtype) or types.is_decimal(dtype) or types.is_null(dtype):
        return "number"
    if types.is_boolean(dtype):
        return "truth"
    return "text" if types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype) else ""


def _numbers(cells: Any) -> np.ndarray:
    """Float64, NaN where a cell is missing."""
    return np.array([np.nan if value is None else float(value) for value in cells.to_pylist()])


def _texts(cells: Any) -> list[str]:
    """As a CSV file would have them: empty where a cell is missing."""
    return ["" if value is None else str(value) for value in cells.to_pylist()]
