"""From a table as people have it to the numbers that methods see, and to the likelihood of these numbers."""

import abc
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pyrovae.columns import Columns
from pyrovae.conditional import Conditional, Context, NetBuilder
from pyrovae.data import Table
from pyrovae.errors import DataError, ModelFileError
from pyrovae.families import Bernoulli, LearnedScale, Normal, SharedScale
from pyrovae.missing import MaskAware, Masked

__all__ = ["Feature", "Features", "Pixels", "TableFeatures", "as_rows", "features_from_dict", "infer_features"]

_CATEGORIES = 50  # of a column of texts; rarer ones have no column of their own
_FAR = 10.0  # standard deviations, beyond which a number is cut off
_PIXELS = 64  # bytes in a row from which they are pixels rather than counts
_NOISE = 0.2  # of pixels from 0 to 1, at the start


class Features(abc.ABC):
    """Abstract: how rows of a table become vectors.

    Attributes:
        width: numbers in a vector.
        left_out: columns that are not used, and why.
        missing: whether cells may be missing, NaN.
    """

    width: int
    left_out: Mapping[str, str]
    missing: bool

    @abc.abstractmethod
    def encode(self, rows: Any, source: str = "table") -> np.ndarray:
        """Vectors of float32, shape ``(rows, width)``, NaN where a cell is missing.

        Args:
            rows: as :func:`as_rows` gives them.
            source: where they came from, for messages.

        Raises:
            DataError: for rows that are not like those of training.
        """

    @abc.abstractmethod
    def likelihood(self, context: Context, net: NetBuilder) -> Conditional:
        """A likelihood of vectors given a context."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""

    def reader(self, net: NetBuilder) -> NetBuilder:
        """A builder of networks that read vectors."""
        return functools.partial(MaskAware, net=net) if self.missing else net


@dataclass(frozen=True)
class Feature:
    """A column of a table.

    Args:
        name: in the table.
        categories: the texts that have a column of their own; None for numbers.
        mean: of numbers.
        scale: of numbers.
    """

    name: str
    categories: Sequence[str] | None = None
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """Numbers that it becomes: of two categories only the second one."""
        return 1 if self.categories is None else 1 if len(self.categories) == 2 else len(self.categories)


class TableFeatures(Features):
    """Columns of a DataFrame: numbers in standard units, cut off at ten standard deviations, texts one-hot.

    Args:
        columns: those that are used.
        left_out: the others, with the reason.
        missing: whether cells may be missing.

    Example:
        >>> import pandas as pd
        >>> df = pd.DataFrame({"age": [20.0, 40.0, None], "city": ["Rome", "Oslo", "Rome"], "id": ["a", "a", "a"]})
        >>> features = TableFeatures.infer(df)
        >>> features.encode(df)
        array([[-1.,  1.],
               [ 1.,  0.],
               [nan,  1.]], dtype=float32)
        >>> features.left_out
        {'id': 'one value only'}
    """

    def __init__(self, columns: Sequence[Feature], left_out: Mapping[str, str], *, missing: bool) -> None:
        self.columns, self.left_out, self.missing = list(columns), dict(left_out), missing
        self.width = sum(column.width for column in self.columns)

    @classmethod
    def infer(cls, df: Any, source: str = "table") -> "TableFeatures":
        """The features of a DataFrame.

        Raises:
            DataError: for an infinite number, two columns of one name, or no column that can be used.
        """
        if not df.columns.is_unique:
            raise DataError(f"{source}: two columns are named {df.columns[df.columns.duplicated()][0]!r}: rename one")
        columns, left_out = [], {}
        for name in df.columns:
            found = _feature(str(name), df[name], source)
            if isinstance(found, Feature):
                columns.append(found)
            else:
                left_out[str(name)] = found
        if not columns:
            told = "; ".join(f"{name!r}: {why}" for name, why in list(left_out.items())[:5])
            raise DataError(f"{source}: no column that anything can be learned from ({told})")
        names = {column.name for column in columns}
        used = [name for name in df.columns if str(name) in names]
        return cls(columns, left_out, missing=bool(df[used].isna().any(axis=None)))

    def encode(self, rows: Any, source: str = "table") -> np.ndarray:
        """Columns are found by name; a text that training had not seen is none of the categories."""
        named = {str(name): name for name in getattr(rows, "columns", ())}
        absent = [column.name for column in self.columns if column.name not in named]
        if absent:
            wanted = ", ".join(column.name for column in self.columns[:12]) + (
                ", ..." if len(self.columns) > 12 else ""
            )
            raise DataError(f"{source}: no column {absent[0]!r}: the labels were learned from {wanted}")
        x = np.empty((len(rows), self.width), dtype=np.float32)
        start = 0
        for column in self.columns:
            x[:, start : start + column.width] = _encoded(column, rows[named[column.name]], source)
            start += column.width
        if not self.missing and np.isnan(x).any():
            row, place = (int(i) for i in np.argwhere(np.isnan(x))[0])
            raise DataError(
                f"{source}: row {row}, column {self._names[place]!r}: a missing cell, and no training row missed one: "
                "fill it, or train on a table that has such cells"
            )
        return x

    def likelihood(self, context: Context, net: NetBuilder) -> Conditional:
        """Normal for numbers, with one learned scale a column, Bernoulli for the rest; missing cells are skipped."""
        kinds = [Normal if c.categories is None else Bernoulli for c in self.columns for _ in range(c.width)]
        normal = functools.partial(Normal, scale=LearnedScale)
        if len(set(kinds)) > 1:
            named = {name: normal if k is Normal else k for name, k in zip(self._names, kinds, strict=True)}
            return Columns(named, context, net)
        whole = (normal if kinds[0] is Normal else Bernoulli)(self.width, context, net)
        return Masked(whole) if self.missing else whole

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        columns = [asdict(column) for column in self.columns]
        return {"kind": "table", "columns": columns, "left_out": self.left_out, "missing": self.missing}

    @property
    def _names(self) -> list[str]:
        return [
            column.name if column.categories is None else f"{column.name}={category}"
            for column in self.columns
            for category in (column.categories or [""])[-column.width :]
        ]


class Pixels(Features):
    """Images, or rows of bytes: numbers divided by the largest one, one vector each.

    Args:
        shape: of one row.
        maximum: what becomes 1.
    """

    def __init__(self, shape: Sequence[int], maximum: float) -> None:
        self.shape, self.maximum = tuple(shape), maximum
        self.width, self.left_out, self.missing = int(np.prod(self.shape)), {}, False

    def encode(self, rows: Any, source: str = "images") -> np.ndarray:
        """Rows as vectors of numbers from 0 to 1."""
        rows = np.asarray(rows)
        if rows.shape[1:] != self.shape:
            raise DataError(
                f"{source}: rows of shape {rows.shape[1:]}: the labels were learned from rows of {self.shape}"
            )
        x = rows.reshape(len(rows), self.width).astype(np.float32) / np.float32(self.maximum)
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise DataError(f"{source}: expected numbers from 0 to {self.maximum:g}, found others, or missing cells")
        return x

    def likelihood(self, context: Context, net: NetBuilder) -> Conditional:
        """Normal with one learned scale, whose codes hold what an image shows.

        With a scale for every pixel, or a density that peaks at 0 and 1, pixels that hardly ever change weigh most.
        """
        return Normal(self.width, context, net, scale=functools.partial(SharedScale, initial=_NOISE))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"kind": "pixels", "shape": list(self.shape), "maximum": self.maximum}


def as_rows(table: Any) -> Any:
    """A DataFrame, or an array of rows that are no vectors of different quantities.

    Args:
        table: DataFrame, array, tensor, list of rows, or :class:`pyrovae.data.Table`. Vectors become columns ``x0``,
            ``x1``, ...; images, and rows of 64 bytes and more, stay arrays.

    Raises:
        DataError: for anything else.
    """
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, Table):
        return _frame(table) if table.columns is not None else as_rows(table.x)
    array = table.detach().cpu().numpy() if hasattr(table, "detach") else np.asarray(table)
    if array.ndim < 2 or not len(array) or (array.dtype.kind not in "biuf" and array.ndim > 2):
        raise DataError(f"table: expected rows of numbers, received {array.dtype} of shape {array.shape}")
    if array.ndim > 2 or (array.dtype == np.uint8 and array.shape[1] >= _PIXELS):
        return array
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])


def infer_features(rows: Any, source: str = "table") -> Features:
    """The features of what :func:`as_rows` gives."""
    if not isinstance(rows, np.ndarray):
        return TableFeatures.infer(rows, source)
    maximum = 255.0 if rows.dtype == np.uint8 else float(rows.max(initial=0.0))
    return Pixels(rows.shape[1:], maximum if maximum > 1 else 1.0)


def features_from_dict(stored: Mapping[str, Any]) -> Features:
    """What :meth:`Features.to_dict` described.

    Raises:
        ModelFileError: if it describes nothing.
    """
    try:
        if stored["kind"] == "pixels":
            return Pixels(stored["shape"], stored["maximum"])
        return TableFeatures([Feature(**c) for c in stored["columns"]], stored["left_out"], missing=stored["missing"])
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"features: damaged ({error})") from error


def _frame(table: Table) -> Any:
    import pandas as pd

    columns: dict[str, Any] = {}
    for i, name in enumerate(table.columns or ()):
        cells, texts = table.x[:, i], (table.texts or {}).get(name)
        if texts is None:
            columns[name] = cells
        else:
            columns[name] = [None if np.isnan(c) else texts[int(c)] for c in cells.astype(np.float64)]
    return pd.DataFrame(columns)


def _feature(name: str, series: Any, source: str) -> Feature | str:
    """The feature of a column, or why there is none."""
    import pandas as pd

    present = series.dropna()
    if not len(present):
        return "every cell is missing"
    types = pd.api.types
    if types.is_datetime64_any_dtype(series.dtype) or types.is_timedelta64_dtype(series.dtype):
        return "dates are not read; make them numbers, such as days since a date that means something"
    numbers = _numbers(present)
    if numbers is None:
        texts = present.astype(str).value_counts()
        if len(texts) < 2:
            return "one value only"
        if len(texts) > _CATEGORIES and len(texts) > len(present) / 2:
            return f"{len(texts)} different texts in {len(present)} rows, names rather than classes"
        return Feature(name, sorted(texts.index[:_CATEGORIES]))
    if not np.isfinite(numbers).all():
        row = int((~np.isfinite(numbers)).argmax())
        raise DataError(f"{source}: row {present.index[row]}, column {name!r}: an infinite number: mend it")
    if numbers.min() == numbers.max():
        return "one value only"
    return Feature(name, None, float(numbers.mean()), float(numbers.std()) or 1.0)


def _numbers(present: Any) -> np.ndarray | None:
    """A column as numbers, if it is one of numbers."""
    import pandas as pd

    if isinstance(present.dtype, pd.CategoricalDtype) or any(isinstance(v, str) for v in present):
        return None
    try:
        return present.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _encoded(column: Feature, series: Any, source: str) -> np.ndarray:
    there = series.notna().to_numpy()
    x = np.full((len(series), column.width), np.nan)
    values = series[there]
    if column.categories is None:
        numbers = _numbers(values) if len(values) else np.empty(0)
        if numbers is None or not np.isfinite(numbers).all():
            raise DataError(f"{source}: column {column.name!r}: expected finite numbers, as in training")
        x[there, 0] = np.clip((numbers - column.mean) / column.scale, -_FAR, _FAR)
        return x
    code = {text: i for i, text in enumerate(column.categories)}
    places = values.astype(str).map(code).fillna(-1).to_numpy(dtype=np.int64)
    hot = places[:, None] == np.arange(len(column.categories))
    x[there] = hot[:, -column.width :]
    return x
