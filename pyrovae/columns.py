"""Tables whose columns are of different kinds: one likelihood for each, and the way from a DataFrame and back."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Independent

from pyrovae.conditional import Context, Head, as_shape
from pyrovae.data.gate import Missing, check_cells
from pyrovae.distributions.columns import ColumnWise
from pyrovae.distributions.masked import MaskedCells
from pyrovae.errors import ConfigError, DataError
from pyrovae.families.counts import NegativeBinomial
from pyrovae.families.discrete import Bernoulli, Categorical, Ordinal
from pyrovae.families.location_scale import Normal
from pyrovae.families.positive import LogNormal
from pyrovae.nn import MLP, NetBuilder, Shape, dims

__all__ = ["Column", "ColumnAware", "Columns"]

_FEW = 10  # so many whole numbers are grades, more are counts
_MANY = 50  # so many texts, and as many as half the rows, are names of rows
_SKEWED = 1.0  # positive numbers of a larger skewness live on a logarithmic scale

Likelihood = Callable[..., Head]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: in the table.
        likelihood: class of a head or a partial of it, such as ``Normal`` or ``partial(Categorical, classes=7)``; the
            shape, the context and the network are not its own.
        shift: numbers are scored as ``(x - shift) / scale``, with the Jacobian counted.
        scale: positive; whole numbers and classes have 1.
        categories: what the codes 0, 1, ... stand for; None for numbers.
        missing: share of missing cells in the table this was inferred from, if it was.
    """

    name: str
    likelihood: Likelihood
    shift: float = 0.0
    scale: float = 1.0
    categories: Sequence[str | int | float | bool] | None = None
    missing: float | None = None

    def __str__(self) -> str:
        keywords = self.likelihood.keywords if isinstance(self.likelihood, functools.partial) else {}
        shown = {k: getattr(v, "__name__", v) for k, v in keywords.items()}
        if (self.shift, self.scale) != (0, 1):
            shown |= {"shift": f"{self.shift:g}", "scale": f"{self.scale:g}"}
        words = [f"{_name(self.likelihood)}({', '.join(f'{k}={v}' for k, v in shown.items())})"]
        if self.categories is not None:
            listed = ", ".join(map(str, self.categories[:6])) + (", ..." if len(self.categories) > 6 else "")
            words.append(f"[{listed}]")
        if self.missing is not None:
            words.append(f"{100 * self.missing:.3g} % missing")
        return ", ".join(words)


class Columns(Head):
    r"""A row of a table, with one likelihood per column: ``log p(x) = sum_d log p_d(x_d)`` over the observed cells.

    One network gives the parameters of all columns. A missing cell is NaN and is skipped, as by
    :class:`pyrovae.Masked`. Numbers are scored in the units of the data while the network works in standard units,
    ``(x - shift) / scale``: with ``x`` in cents instead of euros log p(x) falls by log 100.

    Columns of equal likelihood form one head: what that shares over its elements (``SharedScale``, a learned ``df``)
    they share.

    Args:
        columns: likelihoods by name, or :class:`Column` objects, which can have units and categories.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Attributes:
        shape: number of columns.
        columns: the :class:`Column` objects.

    Raises:
        ConfigError: for a likelihood that is no head with independent cells, naming the column.

    References:
        Handling incomplete heterogeneous data using VAEs (Nazabal, Olmos, Ghahramani and Valera, 2020)

    Example:
        >>> import pyrovae as pv
        >>> likelihood = Columns({"age": Normal, "city": functools.partial(Categorical, classes=7)}, context=2)
        >>> q = pv.Normal(2, context=likelihood.shape, net=likelihood.encoder())
        >>> vae = pv.VAE(pv.StandardNormal(2), likelihood, q)
        >>> x = torch.tensor([[31.0, 6.0], [torch.nan, 2.0], [64.0, torch.nan]])
        >>> vae.log_prob(x, k=5).shape
        torch.Size([3])
        >>> print(likelihood)
        age   real         Normal()
        city  categorical  Categorical(classes=7)
    """

    order: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        columns: Mapping[str, Likelihood] | Sequence[Column],
        context: Context = None,
        net: NetBuilder = MLP,
    ) -> None:
        listed = _listed(columns)
        groups = _grouped(listed)
        super().__init__(len(listed), context, net, sizes=[group.size for group in groups])
        self.columns, self.groups = listed, groups
        self.heads = nn.ModuleList(group.head for group in groups)
        kinds = {i: group.kind for group in groups for i in group.places}
        self.kinds = [kinds[i] for i in range(len(listed))]
        supports = {i: group.support for group in groups for i in group.places}
        cells = [_in_units(supports[i], column, self.kinds[i]) for i, column in enumerate(listed)]
        self._support = constraints.independent(constraints.cat(cells, dim=-1), 1)
        for name, buffer in _units(listed, groups).items():
            self.register_buffer(name, buffer, persistent=False)

    def family(self, *params: Tensor) -> TorchDistribution:
        """The columns' distributions, of the cells that are not NaN."""
        parts = [head.at(p) for head, p in zip(self.heads, params, strict=True)]  # pyright: ignore[reportCallIssue]
        return MaskedCells(ColumnWise(parts, self.order, self.shift, self.scale, self._support))

    def encoder(self, net: NetBuilder = MLP) -> NetBuilder:
        """A builder of networks that read rows of this table: ``Normal(8, context=p.shape, net=p.encoder())``.

        Args:
            net: builder of the network behind, see :class:`ColumnAware`.
        """
        return functools.partial(ColumnAware, columns=self, net=net)

    @classmethod
    def infer(
        cls,
        df: Any,
        context: Context = None,
        net: NetBuilder = MLP,
        overrides: Mapping[str, Likelihood] | None = None,
    ) -> "Columns":
        """Likelihoods guessed from a DataFrame; print them, and override what is wrong.

        ==================================================================  ====================================
        column                                                              kind and likelihood
        ==================================================================  ====================================
        booleans; two distinct texts, categories or whole numbers           binary, Bernoulli
        texts; a pandas category                                            categorical, Categorical
        an ordered pandas category; 3 to 10 distinct whole numbers          ordinal, Ordinal
        more whole numbers from 0, of a variance not below their mean       count, NegativeBinomial
        positive numbers that are not whole, of a skewness above 1          positive, LogNormal
        other numbers                                                       real, Normal
        ==================================================================  ====================================

        Angles look like other numbers: override them with ``VonMises``, in radians from -pi to pi.

        Args:
            df: the table, missing cells NaN or None.
            context: shape conditioned on, or None for learned constants.
            net: network builder.
            overrides: likelihoods by column, as in :class:`Columns`; ``classes`` and units are filled in.

        Raises:
            DataError: for a column nothing can be learned about, naming it: all missing, constant, dates, mixed types,
                a different text in every row.

        Example:
            >>> import pandas as pd
            >>> df = pd.DataFrame({"age": [31.5, None, 64.0], "smokes": [True, False, None], "grade": [1, 2, 4]})
            >>> print(Columns.infer(df, overrides={"grade": Normal}))
            age     real    Normal(shift=47.75, scale=16.25), 33.3 % missing
            smokes  binary  Bernoulli(), [False, True], 33.3 % missing
            grade   real    Normal(shift=2.33333, scale=1.24722), 0 % missing
        """
        chosen = dict(overrides or {})
        unknown = [name for name in chosen if name not in df.columns]
        if unknown:
            raise ConfigError(f"overrides: the table has no column {unknown[0]!r}")
        if not df.columns.is_unique:
            raise DataError(f"table: two columns are named {df.columns[df.columns.duplicated()][0]!r}: rename one")
        return cls([_inferred(str(name), df[name], chosen.get(name)) for name in df.columns], context, net)

    def to_array(self, df: Any) -> np.ndarray:
        """Rows as the model sees them, float64: numbers as they are, codes of categories, NaN where a cell is missing.

        Columns are found by name, in any order; others are left out.

        Args:
            df: a DataFrame.

        Raises:
            DataError: for a missing column, an unknown category or a number outside its column's support, with its row.
        """
        absent = [c.name for c in self.columns if c.name not in df.columns]
        if absent:
            raise DataError(
                f"table: no column {absent[0]!r}: the model needs {', '.join(c.name for c in self.columns)}"
            )
        x = np.stack([_codes(df[column.name], column) for column in self.columns], -1)
        names = [column.name for column in self.columns]
        check_cells(x, self._support, source="table", columns=names, missing=Missing.COLUMNS)
        return x

    def to_frame(self, x: Any) -> Any:
        """The inverse of :meth:`to_array`: a DataFrame, of samples and imputations too, with categories and counts.

        Args:
            x: array or tensor, shape ``(rows, D)``.
        """
        import pandas as pd

        rows = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            raise DataError(f"x: expected shape (rows, {len(self.columns)}), received {rows.shape}")
        series = {c.name: _values(rows[:, i], c, self.kinds[i]) for i, c in enumerate(self.columns)}
        return pd.DataFrame(series)

    def __str__(self) -> str:
        names, kinds = (max(map(len, words)) for words in ([c.name for c in self.columns], self.kinds))
        lines = zip(self.columns, self.kinds, strict=True)
        return "\n".join(f"{c.name:<{names}}  {kind:<{kinds}}  {c}" for c, kind in lines)


class ColumnAware(nn.Module):
    """A network for rows of :class:`Columns`: every column in a form a network can read, and which cells are there.

    Real numbers come in standard units, positive ones as logarithms, counts as ``log(1 + x)``, classes one-hot, ordered
    classes and fractions from -1 to 1, angles as sine and cosine. A missing cell is 0 in all of that.

    Args:
        in_shape: columns, and behind them whatever else the network is to see.
        out_shape: of one output.
        columns: of the table; in TOML ``"$likelihood"``.
        net: builder of the network behind.

    Example:
        >>> from pyrovae.families.sphere import VonMises
        >>> columns = [Column("age", Normal, shift=40.0, scale=10.0), Column("wind", VonMises)]
        >>> ColumnAware(2, 3, columns=columns)(torch.tensor([[50.0, torch.nan]])).shape
        torch.Size([1, 3])
    """

    order: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self, in_shape: Shape, out_shape: Shape, columns: Columns | Sequence[Column], net: NetBuilder = MLP
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.net = in_shape, out_shape, net
        self.columns = columns.columns if isinstance(columns, Columns) else _listed(columns)
        self._groups = [(g.kind, g.classes, len(g.places)) for g in _grouped(self.columns)]
        size, *image = dims(in_shape, "in_shape")
        if image or size < len(self.columns):
            raise ConfigError(f"in_shape: expected at least the {len(self.columns)} columns, received {in_shape!r}")
        for name, buffer in _units(self.columns, _grouped(self.columns)).items():
            self.register_buffer(name, buffer, persistent=False)
        width = sum(count * (1 + _WIDTH.get(kind, classes)) for kind, classes, count in self._groups)
        self.network = net(as_shape((width + size - len(self.columns),)), out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, D + more)``, NaN where a cell of the D columns is missing, to ``(rows, *out_shape)``."""
        cells, more = x[..., : len(self.columns)], x[..., len(self.columns) :]
        standard = ((cells - self.shift) / self.scale).index_select(-1, self.order)
        missing = standard.isnan()
        parts, start = [(~missing).to(x.dtype), more], 0
        for kind, classes, count in self._groups:
            u, absent = (t[..., start : start + count] for t in (standard, missing))
            seen = _READ[kind](torch.where(absent, 1.0, u), classes)
            parts.append(torch.where(absent[..., None], 0.0, seen).flatten(-2))
            start += count
        return self.network(torch.cat(parts, -1))


def _ends(u: Tensor, low: float, high: float) -> Tensor:
    return (2 * (u - low) / (high - low) - 1)[..., None]


# what a network reads of columns of a kind, (*batch, count) -> (*batch, count, width); a missing cell comes as 1
_READ: dict[str, Callable[[Tensor, int], Tensor]] = {
    "real": lambda u, classes: u[..., None],
    "positive": lambda u, classes: u.clamp(min=1e-6).log()[..., None],
    "count": lambda u, classes: u.clamp(min=0).log1p()[..., None],
    "binary": lambda u, classes: _ends(u, 0, 1),
    "fraction": lambda u, classes: _ends(u, 0, 1),
    "ordinal": lambda u, classes: _ends(u, 0, classes - 1),
    "categorical": lambda u, classes: (u[..., None] == torch.arange(classes, device=u.device)).to(u.dtype),
    "angle": lambda u, classes: torch.stack([u.sin(), u.cos()], -1),
}
_WIDTH = {"angle": 2} | {kind: 1 for kind in _READ if kind not in ("angle", "categorical")}


class _Group:
    """Columns of equal likelihood as one head, whose parameters come from outside."""

    def __init__(self, likelihood: Likelihood, places: list[int], name: str) -> None:
        self.places = places
        try:
            head = likelihood(len(places), context=1, net=_Given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"column {name!r}: {error} (its shape, context and net are the table's)") from error
        if not (isinstance(head, Head) and isinstance(head.network, _Given)):
            raise ConfigError(f"column {name!r}: expected a likelihood that is a head, received {likelihood!r}")
        self.head, self.size = head, head.network.size
        d: Any = head.at(torch.zeros(1, self.size))
        if not isinstance(d, Independent) or d.base_dist.event_shape or d.event_shape != (len(places),):
            raise ConfigError(f"column {name!r}: {type(head).__name__} is no distribution of single numbers")
        self.support, self.classes = d.base_dist.support, 0
        self.kind = _kind(self.support, head)
        if self.kind == "":
            raise ConfigError(f"column {name!r}: {type(head).__name__} is of no kind that a column can have")
        if self.kind in ("ordinal", "categorical"):
            self.classes = self.support.upper_bound + 1


class _Given(nn.Module):
    """Stands for the network of a head whose parameters another one computes."""

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.size = math.prod(dims(out_shape))


def _kind(support: Any, head: Head) -> str:
    """What the values of a likelihood are; empty where they are nothing known."""
    if support is constraints.boolean:
        return "binary"
    if isinstance(support, constraints.integer_interval) and support.lower_bound == 0:
        return "ordinal" if isinstance(head, Ordinal) else "categorical"
    if support is constraints.nonnegative_integer:
        return "count"
    if support is constraints.real:
        return "real"
    if isinstance(support, (constraints.greater_than, constraints.greater_than_eq)) and support.lower_bound == 0:
        return "positive"
    if isinstance(support, constraints.interval) and support.lower_bound == -math.pi:
        return "angle"
    inside = [bool(support.check(torch.tensor(v))) for v in (-0.1, 0.1, 0.5, 0.9, 1.1)]
    return "fraction" if inside == [False, True, True, True, False] else ""


def _listed(columns: Any) -> list[Column]:
    """Columns as objects, each name once."""
    if isinstance(columns, Mapping):
        columns = [c if isinstance(c, Column) else Column(name, c) for name, c in columns.items()]
    if not columns or not all(isinstance(c, Column) and isinstance(c.name, str) for c in columns):
        raise ConfigError(f"columns: expected likelihoods by name, or Column objects, received {columns!r}")
    names = [c.name for c in columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"columns: {twice[0]!r} is there twice")
    return list(columns)


def _grouped(columns: Sequence[Column]) -> list[_Group]:
    """Columns of equal likelihood together, in the order in which each likelihood comes first."""
    places: dict[str, list[int]] = {}
    for i, column in enumerate(columns):
        places.setdefault(_signature(column.likelihood), []).append(i)
    groups = [_Group(columns[of[0]].likelihood, of, columns[of[0]].name) for of in places.values()]
    for group in groups:
        for i in group.places:
            _check_column(columns[i], group)
    return groups


def _check_column(column: Column, group: _Group) -> None:
    where = f"column {column.name!r}"
    movable = {"real": "shift and scale", "positive": "scale", "angle": "scale"}.get(group.kind, "")
    if not 0 < column.scale < math.inf or not math.isfinite(column.shift):
        raise ConfigError(
            f"{where}: expected a finite shift and a positive scale, received {column.shift!r}, {column.scale!r}"
        )
    if (column.scale != 1 and "scale" not in movable) or (column.shift != 0 and "shift" not in movable):
        raise ConfigError(f"{where}: a column that is {group.kind} has no units to change; leave shift and scale out")
    classes = 2 if group.kind == "binary" else group.classes
    if column.categories is not None and len(column.categories) != classes:
        raise ConfigError(f"{where}: expected {classes} categories, received {len(column.categories)}")


def _units(columns: Sequence[Column], groups: Sequence[_Group]) -> dict[str, Tensor]:
    """Shift and scale of every column, and the columns in the order of the groups."""
    order = [i for group in groups for i in group.places]
    like = torch.get_default_dtype()
    return {
        "order": torch.tensor(order),
        "shift": torch.tensor([c.shift for c in columns], dtype=like),
        "scale": torch.tensor([c.scale for c in columns], dtype=like),
    }


def _in_units(support: Any, column: Column, kind: str) -> constraints.Constraint:
    """The support in the units of the data; those of other kinds have none or stay as they are."""
    if kind != "angle" or column.scale == 1:
        return support
    return constraints.interval(support.lower_bound * column.scale, support.upper_bound * column.scale)


def _signature(likelihood: Any) -> str:
    """Equal for equal classes with equal arguments."""
    if isinstance(likelihood, functools.partial):
        arguments = ", ".join(f"{k}={_signature(v)}" for k, v in sorted(likelihood.keywords.items()))
        return f"{_signature(likelihood.func)}({arguments})"
    return f"{likelihood.__module__}.{likelihood.__qualname__}" if inspect.isclass(likelihood) else repr(likelihood)


def _name(likelihood: Any) -> str:
    return _name(likelihood.func) if isinstance(likelihood, functools.partial) else likelihood.__name__


def _inferred(name: str, series: Any, chosen: Likelihood | None) -> Column:
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
    kind = _grouped([Column(name, likelihood)])[0].kind
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


def _codes(series: Any, column: Column) -> np.ndarray:
    """A column as numbers, NaN where a cell is missing."""
    present = series.notna().to_numpy()
    x = np.full(len(series), np.nan)
    values = series[present]
    if column.categories is None:
        try:
            x[present] = values.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(f"table: column {column.name!r} holds {series.dtype}, expected numbers") from None
        return x
    code = {label: i for i, label in enumerate(column.categories)}
    table = {value: code.get(_label(value), -1) for value in values.unique()}
    x[present] = [table[value] for value in values]
    if (x == -1).any():
        row = int((x == -1).argmax())
        listed = ", ".join(map(repr, column.categories))
        raise DataError(
            f"table: row {row}, column {column.name!r}: unknown category {series.iloc[row]!r}: expected one of {listed}"
        )
    return x


def _values(cells: np.ndarray, column: Column, kind: str) -> Any:
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
