"""One column of a table, and columns of equal likelihood together."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Independent

from pyrovae.conditional import Head
from pyrovae.errors import ConfigError
from pyrovae.families.discrete import Ordinal
from pyrovae.nn import Shape, dims

__all__ = ["Column", "Group", "Likelihood", "as_columns", "grouped", "in_units", "units"]

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


class Group:
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


def as_columns(columns: Any) -> list[Column]:
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


def grouped(columns: Sequence[Column]) -> list[Group]:
    """Columns of equal likelihood together, in the order in which each likelihood comes first."""
    places: dict[str, list[int]] = {}
    for i, column in enumerate(columns):
        places.setdefault(_signature(column.likelihood), []).append(i)
    groups = [Group(columns[of[0]].likelihood, of, columns[of[0]].name) for of in places.values()]
    for group in groups:
        for i in group.places:
            check_column(columns[i], group)
    return groups


def check_column(column: Column, group: Group) -> None:
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


def units(columns: Sequence[Column], groups: Sequence[Group]) -> dict[str, Tensor]:
    """Shift and scale of every column, and the columns in the order of the groups."""
    order = [i for group in groups for i in group.places]
    like = torch.get_default_dtype()
    return {
        "order": torch.tensor(order),
        "shift": torch.tensor([c.shift for c in columns], dtype=like),
        "scale": torch.tensor([c.scale for c in columns], dtype=like),
    }


def in_units(support: Any, column: Column, kind: str) -> constraints.Constraint:
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
