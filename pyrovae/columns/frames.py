"""Between columns of a DataFrame and numbers."""

import functools
import inspect
from typing import Any

import numpy as np

from pyrovae.columns.column import Column, Likelihood, grouped
from pyrovae.data.gate import row_in_words
from pyrovae.data.readers._common import nearest, shown
from pyrovae.errors import DataError
from pyrovae.families.counts import NegativeBinomial
from pyrovae.families.discrete import Bernoulli, Categorical, Ordinal
from pyrovae.families.location_scale import Normal
from pyrovae.families.positive import LogNormal

__all__ = ["from_codes", "inferred", "to_codes"]

_FEW = 10  # so many whole numbers are grades, more are counts
_MANY = 50  # so many texts, and as many as half the rows, are names of rows
_SKEWED = 1.0  # positive numbers of a larger skewness live on a logarithmic scale


def inferred(name: str, series: Any, chosen: Likelihood | None) -> Column:
    """A column as the table shows it."""
    present = series.dropna()
    if len(present) == 0:
        raise DataError(f"column {name!r}: every cell is missing: leave it out")
    likelihood = _guess(name, present) if chosen is None else chosen
    share = float(f"{1 - len(present) / len(series):.4g}")
    parameters = inspect.signature(likelihood).parameters
    categories = None
    if "classes" in parameters:
        categories = _categories(name, present)
        bound = likelihood.keywords if isinstance(likelihood, functools.partial) else {}
        likelihood = likelihood if "classes" in bound else functools.partial(likelihood, classes=len(categories))
    kind = grouped([Column(name, likelihood)])[0].kind
    if kind == "binary":
        categories = _categories(name, present)
    return Column(name, likelihood, *_standard(name, present, kind), categories, share)


def _guess(name: str, present: Any) -> Likelihood:
    import pandas as pd

    types, dtype = pd.api.types, present.dtype
    try:
        distinct = present.unique()
    except TypeError as error:
        raise DataError(f"column {name!r}: {error}: expected numbers, booleans or texts") from None
    if isinstance(dtype, pd.CategoricalDtype):
        ordered = Ordinal if dtype.ordered else Categorical
        return _of_classes(name, len(dtype.categories), ordered)
    if types.is_bool_dtype(dtype) or all(isinstance(v, (bool, np.bool_)) for v in distinct):
        return _of_classes(name, len(distinct), Categorical)
    if not types.is_numeric_dtype(dtype) or types.is_complex_dtype(dtype):
        if not all(isinstance(v, str) for v in distinct):
            kinds = sorted({type(v).__name__ for v in distinct})
            raise DataError(
                f"column {name!r}: values of type {', '.join(kinds)}: expected numbers, booleans or texts; convert them"
            )
        if len(distinct) > _MANY and len(distinct) > len(present) / 2:
            raise DataError(
                f"column {name!r}: {len(distinct)} different texts in {len(present)} rows, which are names rather than "
                "classes: leave it out, or make it a pandas category"
            )
        return _of_classes(name, len(distinct), Categorical)
    return _of_numbers(name, present.to_numpy(dtype=np.float64))


def _of_classes(name: str, classes: int, likelihood: Likelihood) -> Likelihood:
    if classes < 2:
        raise DataError(f"column {name!r}: holds one value only: leave it out, nothing can be learned about it")
    return Bernoulli if classes == 2 else likelihood


def _of_numbers(name: str, values: np.ndarray) -> Likelihood:
    if not np.isfinite(values).all():
        raise DataError(f"column {name!r}: an infinite value, which is not missing: mend it")
    distinct = len(np.unique(values))
    whole = bool((values == np.round(values)).all())
    if distinct < 2 or (whole and distinct <= _FEW):
        return _of_classes(name, distinct, Ordinal)
    if whole and values.min() >= 0 and values.var() >= values.mean():
        return NegativeBinomial
    centred = values - values.mean()
    skewness = (centred**3).mean() / (centred**2).mean() ** 1.5
    return LogNormal if values.min() > 0 and not whole and skewness > _SKEWED else Normal


def _standard(name: str, present: Any, kind: str) -> tuple[float, float]:
    """Shift and scale of numbers: their mean and standard deviation, or for positive ones their geometric mean."""
    if kind not in ("real", "positive"):
        return 0.0, 1.0
    try:
        values = present.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"column {name!r}: expected numbers for this likelihood") from None
    if kind == "real":
        return _digits(values.mean()), _digits(values.std()) or 1.0
    if not values.min() > 0:
        raise DataError(f"column {name!r}: {values.min():g} where the likelihood wants numbers above 0")
    return 0.0, _digits(np.exp(np.log(values).mean()))


def _digits(value: float) -> float:
    """Six digits, for the eye."""
    return float(f"{value:.6g}")


def _categories(name: str, present: Any) -> list[Any]:
    """Distinct values in order; a pandas category's own."""
    import pandas as pd

    is_category = isinstance(present.dtype, pd.CategoricalDtype)
    found = list(present.dtype.categories) if is_category else sorted(present.unique())
    return [_label(value) for value in found]


def _label(value: Any) -> str | int | float | bool:
    """A category as it can be written to a file: whole numbers as int, what is neither number nor text as text."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.number)):
        return int(value) if float(value).is_integer() else float(value)
    return str(value)


def to_codes(series: Any, column: Column, source: str) -> np.ndarray:
    """A column as numbers, NaN where a cell is missing."""
    present = series.notna().to_numpy()
    x = np.full(len(series), np.nan)
    values = series[present]
    if column.categories is None:
        try:
            x[present] = values.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            import pandas as pd

            numbers: Any = pd.to_numeric(series, errors="coerce")
            row = int((present & numbers.isna().to_numpy()).argmax())
            raise DataError(f"{_cell(series, row, column, source)}: expected a number") from None
        return x
    code = {label: i for i, label in enumerate(column.categories)}
    table = {value: code.get(_label(value), -1) for value in values.unique()}
    x[present] = [table[value] for value in values]
    if (x == -1).any():
        row = int((x == -1).argmax())
        listed = ", ".join(map(repr, column.categories[:12])) + (", ..." if len(column.categories) > 12 else "")
        near = nearest(series.iloc[row], column.categories)
        raise DataError(f"{_cell(series, row, column, source, 'unknown category ')}{near}: expected one of {listed}")
    return x


def _cell(series: Any, row: int, column: Column, source: str, what: str = "") -> str:
    where = row_in_words(source, series.index[row])
    return f"{source}: {where}, column {column.name!r}: {what}{shown(repr(_label(series.iloc[row])))}"


def from_codes(cells: np.ndarray, column: Column, kind: str) -> Any:
    """A column as it is in a table."""
    import pandas as pd

    absent = np.isnan(cells)
    if column.categories is not None:
        codes = np.where(absent, -1, cells).astype(int)
        if all(isinstance(c, str) for c in column.categories):
            return pd.Categorical.from_codes(codes, list(column.categories), ordered=kind == "ordinal")
        found = pd.Series(np.array([*column.categories, None], dtype=object)[codes])
        return found.convert_dtypes() if absent.any() else found.infer_objects()
    if kind in ("count", "ordinal", "categorical", "binary"):
        whole = np.where(absent, 0, cells).astype(np.int64)
        return pd.arrays.IntegerArray(whole, absent) if absent.any() else whole
    return cells
