"""Texts in tables: a column of them as numbers, and the labels of rows."""

from __future__ import annotations

import re

import numpy as np

from pyrovae.data.readers._common import quoted
from pyrovae.errors import DataError

_LONGEST = 256  # longer text is no class, and NumPy pads every label to the longest
_MOST = 1 << 24  # float32 counts exactly as far as this
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


def is_number(text: str) -> bool:
    """Whether a cell holds a number in plain notation; ``float`` would take ``1_000`` and foreign digits as well."""
    return _NUMBER.fullmatch(text) is not None


def absent(text: str) -> bool:
    """Whether a cell of texts is missing."""
    return text.lower() in ("", "nan")


def checked(text: str, where: str) -> str:
    """The text, if it is short enough for a class."""
    if len(text) > _LONGEST:
        raise DataError(f"{where}: a text of {len(text)} letters, {quoted(text[:20])}, is no class: drop the column")
    return text


class TextColumn:
    """The texts of a column, numbered as they come and in sorted order at last."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, cell: str, where: str) -> str:
        """The number of a cell, written down; empty where the cell is missing."""
        text = checked(cell.strip(), where)
        if absent(text):
            return ""
        if len(self._codes) == _MOST and text not in self._codes:
            raise DataError(f"{where}: more than {_MOST:,} different texts in one column: drop it")
        return str(self._codes.setdefault(text, len(self._codes)))

    def sort(self, x: np.ndarray) -> tuple[str, ...]:
        """The texts in sorted order; the numbers of a column are changed, in place, to the places in it."""
        texts = tuple(sorted(self._codes))
        order = np.empty(len(texts), x.dtype)
        order[[self._codes[text] for text in texts]] = np.arange(len(texts))
        present = ~np.isnan(x)
        x[present] = order[x[present].astype(np.int64)]
        return texts


def typed(labels: list[str]) -> np.ndarray:
    """Integers where all labels are whole numbers (missing: -1), floats where all are numbers, otherwise text."""
    missing = np.array([absent(text) for text in labels])
    present = [text for text, gone in zip(labels, missing, strict=True) if not gone]
    if not all(map(is_number, present)):
        return np.array(["" if gone else text for text, gone in zip(labels, missing, strict=True)])
    values = np.full(len(labels), np.nan)
    values[~missing] = [float(text) for text in present]
    if np.any(np.abs(values[~missing]) >= 2.0**53):  # long identifiers would run together as numbers
        return np.array(labels)
    whole = not np.any(values[~missing] % 1)
    return np.where(missing, -1, values).astype(np.int64) if whole else values
