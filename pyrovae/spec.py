"""Objects as plain tables and back: one table is one constructor call.

A part keeps its constructor arguments as attributes of the same name (scikit-learn's convention), so it can be
described; a table names its class, so it can be built. Tables hold strings, numbers, booleans, lists and tables alone:

- ``{"type": "Mixture", "shape": 2, "components": 5}`` is the call ``Mixture(shape=2, components=5)``;
- ``{"partial": "MLP", "hidden": [300]}`` is ``functools.partial(MLP, hidden=[300])``, ``{"partial": "MLP"}`` is MLP;
- ``"$posterior"`` is the object described at that path, shared and not copied.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from pyrovae.errors import ConfigError

__all__ = ["build", "closest", "describe"]

_DEPRECATED = ("max_iarange_nesting",)  # Pyro's old name of max_plate_nesting
Table = dict[str, Any]
Names = Mapping[str, Callable[..., Any]]


def describe(obj: Any) -> Table:
    """The table that rebuilds an object of documented parts; learned values are no part of it.

    Raises:
        ConfigError: for a part that does not keep its arguments, or an argument that no table can hold.

    Example:
        >>> import pyrovae as pv
        >>> describe(pv.StandardNormal(2))
        {'type': 'StandardNormal', 'shape': 2}
    """
    return _describe(obj, (), _homes(obj))


def build(table: Mapping[str, Any], names: Names, where: str = "model") -> Any:
    """The object a table describes.

    Args:
        table: as :func:`describe` gives it.
        names: what may be called, by name; nothing else is.
        where: what the table is called in messages.

    Raises:
        ConfigError: for an unknown type or argument (the nearest name is offered), or an error of a constructor.

    Example:
        >>> import pyrovae as pv
        >>> build({"type": "StandardNormal", "shape": 2}, {"StandardNormal": pv.StandardNormal})
        StandardNormal()
    """
    return _Builder(table, names, where).value(table, ())


def closest(name: str, names: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"``, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


class _Builder:
    """Builds every table once, in whatever order references ask for."""

    def __init__(self, root: Mapping[str, Any], names: Names, where: str) -> None:
        self.root, self.names, self.where = root, names, where
        self.built: dict[tuple[str, ...], Any] = {}
        self.open: set[tuple[str, ...]] = set()

    def value(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, str) and value.startswith("$"):
            return self.reference(value, path)
        if isinstance(value, Mapping):
            return self.call(value, path)
        if isinstance(value, list):
            return [self.value(v, (*path, str(i))) for i, v in enumerate(value)]
        return value

    def reference(self, value: str, path: tuple[str, ...]) -> Any:
        target = tuple(value[1:].split("."))
        table: Any = self.root
        for key in target:
            if not isinstance(table, Mapping) or key not in table:
                raise ConfigError(f"{self.at(path)}: {value!r} refers to a table that is not there")
            table = table[key]
        if not isinstance(table, Mapping):
            raise ConfigError(f"{self.at(path)}: {value!r} refers to something that is no table")
        return self.value(table, target)

    def call(self, table: Mapping[str, Any], path: tuple[str, ...]) -> Any:
        if path in self.built:
            return self.built[path]
        if path in self.open:
            raise ConfigError(f"{self.at(path)}: refers to itself")
        self.open.add(path)
        maker, kind = self.maker(table, path)
        arguments = {key: self.value(v, (*path, key)) for key, v in table.items() if key != kind}
        self.built[path] = _make(maker, arguments, partial=kind == "partial", where=self.at(path))
        return self.built[path]

    def maker(self, table: Mapping[str, Any], path: tuple[str, ...]) -> tuple[Callable[..., Any], str]:
        kinds = [kind for kind in ("type", "partial") if kind in table]
        if len(kinds) != 1:
            raise ConfigError(
                f"{self.at(path)}: expected one of 'type' and 'partial', received the keys {sorted(table)}"
            )
        name = table[kinds[0]]
        if not isinstance(name, str) or name not in self.names:
            raise ConfigError(f"{self.at(path)}: there is no part {name!r}{closest(str(name), self.names)}")
        return self.names[name], kinds[0]

    def at(self, path: tuple[str, ...]) -> str:
        return ".".join((self.where, *path))


def _make(maker: Callable[..., Any], arguments: Table, *, partial: bool, where: str) -> Any:
    known = list(inspect.signature(maker).parameters)
    for name in arguments:
        if name not in known:
            label = getattr(maker, "__name__", maker)
            raise ConfigError(f"{where}: {label} has no argument {name!r}{closest(name, known)}")
    if partial:
        return functools.partial(maker, **arguments) if arguments else maker
    try:
        return maker(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _describe(obj: Any, path: tuple[str, ...], homes: dict[int, tuple[str, ...]]) -> Any:
    if isinstance(obj, functools.partial):
        return {"partial": obj.func.__name__} | _plain_items(obj.keywords, path, homes)  # pyright: ignore[reportAttributeAccessIssue]
    if inspect.isclass(obj):
        return {"partial": obj.__name__}
    if obj is None or isinstance(obj, (bool, int, float, str)):
        return obj
    if isinstance(obj, (list, tuple)):
        return [_describe(v, path, homes) for v in obj]
    home = homes.get(id(obj), path)
    if home != path:
        return "$" + ".".join(home)
    if inspect.isfunction(obj) or inspect.ismethod(obj):
        raise ConfigError(f"{_at(path)}: a function of your own cannot be written to a file; use a documented part")
    arguments = _arguments(obj, path)
    if type(obj).__module__.split(".")[0] not in ("pyrovae", "pyro", "torch"):
        raise ConfigError(f"{_at(path)}: {type(obj).__name__} is a class of your own, which no file can rebuild")
    return {"type": type(obj).__name__} | _plain_items(arguments, path, homes)


def _plain_items(items: Mapping[str, Any], path: tuple[str, ...], homes: dict[int, tuple[str, ...]]) -> Table:
    described = {name: _describe(value, (*path, name), homes) for name, value in items.items()}
    return {name: value for name, value in described.items() if value is not None}


def _arguments(obj: Any, path: tuple[str, ...] = ()) -> Table:
    """Constructor arguments that differ from their defaults; tensors are left to the file of weights."""
    arguments = {}
    for name, parameter in _signature(obj, path).items():
        if name in _DEPRECATED:
            continue
        try:
            value = getattr(obj, name)
        except AttributeError:
            message = f"{_at(path)}: {type(obj).__name__} does not keep its argument {name!r} as an attribute"
            raise ConfigError(message) from None
        if not isinstance(value, Tensor) and value is not parameter.default:
            arguments[name] = value
    return arguments


def _signature(obj: Any, path: tuple[str, ...]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(type(obj)).parameters
    except ValueError:  # a class written in C
        raise ConfigError(f"{_at(path)}: a {type(obj).__name__} cannot be written to a file") from None


def _homes(root: Any) -> dict[int, tuple[str, ...]]:
    """The path nearest to the root of every module, so that a shared part is described where it belongs."""
    homes: dict[int, tuple[str, ...]] = {}
    queue: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while queue:
        path, obj = queue.pop(0)
        if id(obj) not in homes and isinstance(obj, nn.Module):
            homes[id(obj)] = path
            queue += [((*path, name), value) for name, value in _arguments(obj, path).items()]
    return homes


def _at(path: tuple[str, ...]) -> str:
    return ".".join(("model", *path))
