"""Labels as people write them, and tables that hold them where they should not."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrovae.data import Schema, Table, check_labels
from pyrovae.errors import ConfigError, DataError

__all__ = ["check_leak", "class_codes", "label_classes", "label_values", "split_column"]

_NAMES = 20  # different labels, each there once, from which they are names of rows
_CERTAIN = 10.0  # bits, from which a column does not equal the labels by chance


def split_column(rows: Any, y: Any, source: str) -> tuple[Any, Any, str | None]:
    """Rows without their column of labels, the labels, and the column's name.

    Args:
        rows: a DataFrame, or an array.
        y: labels, or the name of a column.
        source: what the table is called in messages.

    Raises:
        ConfigError: for a column that is not there.
    """
    if not isinstance(y, str):
        return rows, y, None
    named = {str(name): name for name in getattr(rows, "columns", ())}
    if y not in named:
        raise ConfigError(
            f"{source}: no column {y!r} for the labels: the columns are {', '.join(list(named)[:12]) or 'unnamed'}"
        )
    return rows.drop(columns=[named[y]]), rows[named[y]], y


def label_values(y: Any, rows: int, source: str = "labels") -> np.ndarray:
    """Labels as an array of objects or numbers, missing ones None, -1, NaN or empty.

    Args:
        y: Series, array, tensor or sequence; texts are stripped of blanks around them.
        rows: of the table.
        source: what they are called in messages.

    Raises:
        DataError: for another number of them, or something that is no class.
    """
    import pandas as pd

    if y is None:
        raise DataError(f"{source}: expected labels, -1 or empty where one is missing, received none")
    values: Any = y.detach().cpu().numpy() if hasattr(y, "detach") else y
    if np.ndim(values) == 1 and getattr(values, "dtype", None) not in (np.int64, np.float64):
        plain = [value.strip() if isinstance(value, str) else value for value in list(values)]
        values = np.array([None, *(None if _absent(pd, value) else value for value in plain)], dtype=object)[1:]
    check_labels(values, rows, source=source)
    return np.asarray(values)


def label_classes(y: np.ndarray, classes: Sequence[Any] | None = None, source: str = "labels") -> tuple[Any, ...]:
    """The classes of labels that something can be learned from.

    Args:
        y: as :func:`label_values` gives them.
        classes: those that are expected; None takes those that occur.
        source: what the labels are called in messages.

    Raises:
        DataError: for no label, one class, more classes than labels, or labels that are names of rows.
    """
    found = _schema(y).classes
    known: tuple[Any, ...] = () if found is None else found
    count = _given(y) if known else 0
    if not count or not known:
        raise DataError(
            f"{source}: no row has a label (-1, NaN and empty are none): label a few rows of every class first"
        )
    if classes is not None and len(classes) > count:
        raise DataError(f"{source}: {len(classes)} classes and {count} labels: each class needs one label at least")
    first, *others = known
    if not others:
        raise DataError(f"{source}: every label is {first!r}: expected labels of two classes at least")
    if len(known) == count > _NAMES:
        raise DataError(
            f"{source}: {count} labels, all of them different: as many classes as labels cannot be learned; are they "
            "names of rows, or a number to be predicted?"
        )
    if classes is None:
        return known
    unseen = [label for label in known if label not in classes]
    if unseen:
        raise DataError(
            f"{source}: the label {unseen[0]!r} is none of the classes {', '.join(map(repr, classes[:12]))}"
        )
    return tuple(classes)


def class_codes(y: np.ndarray, classes: Sequence[Any], source: str = "labels") -> np.ndarray:
    """Places among the classes, int64, -1 where a label is missing.

    Raises:
        DataError: for a label that is none of the classes.
    """
    return Schema((1,), None, tuple(classes)).codes(y, source=source)


def check_leak(rows: Any, codes: np.ndarray, y: np.ndarray, source: str) -> None:
    """Refuse a table that has the labels among its columns.

    Raises:
        DataError: for a column that equals the labels wherever there is one, too often for chance, or that names the
            classes in the same rows and in no other.
    """
    given = codes >= 0
    classes = len(np.unique(codes[given]))
    certain = given.sum() * np.log2(classes) >= _CERTAIN
    for name in getattr(rows, "columns", ()):
        column = rows[name]
        there = column.notna().to_numpy()
        if certain and there[given].all() and _equal(column.to_numpy()[given], y[given]):
            raise DataError(f"{source}: column {str(name)!r} holds the labels themselves: leave it out of the features")
        if not given.all() and (there == given).all() and _one_to_one(column.to_numpy()[given], codes[given]):
            raise DataError(
                f"{source}: column {str(name)!r} is there where the label is and nowhere else, and says the same: "
                "leave it out of the features"
            )


def _schema(y: np.ndarray) -> Schema:
    return Schema.of(Table(np.zeros((len(y), 1)), y=y))


def _given(y: np.ndarray) -> int:
    schema = _schema(y)
    return int((schema.codes(y) >= 0).sum())


def _absent(pd: Any, value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))


def _equal(column: np.ndarray, y: np.ndarray) -> bool:
    try:
        return bool((column.astype(np.float64) == y.astype(np.float64)).all())
    except (TypeError, ValueError):
        return list(map(str, column)) == list(map(str, y))


def _one_to_one(column: np.ndarray, codes: np.ndarray) -> bool:
    pairs = set(zip(map(str, column), codes.tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
