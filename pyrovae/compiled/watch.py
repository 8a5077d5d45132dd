"""What a captured program has burned in, and whether it is still so."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["Watch"]

_LIBRARIES = {"torch", "pyro", "numpy", "builtins"}
_PLAIN = (bool, int, float, str, type(None))


class Watch:
    """Plain values and the identity of tensors that Python programs read: attributes, globals, free variables.

    A number such as ``self.temperature = 0.5``, the mode of a layer, or which tensor a parameter is: captured once,
    they would never change again. Numbers inside a tensor may change; lists and dicts are not looked into.

    Args:
        *roots: modules, functions and other objects that a step calls.
    """

    def __init__(self, *roots: Any) -> None:
        self.modules: list[nn.Module] = []
        self.kept: list[tuple[dict[str, Any], str, Any]] = []
        seen: set[int] = set()
        for root in roots:
            self._look(root, seen, depth=3)

    def changed(self) -> str | None:
        """The name of something that is another one now, or None."""
        for where, name, value in self.kept:
            now = where.get(name)
            if now is not value and (isinstance(value, Tensor) or type(now) is not type(value) or now != value):
                return name
        return None

    def tensors(self) -> dict[int, Tensor]:
        """Every tensor under watch by its identity."""
        return {id(value): value for _, _, value in self.kept if isinstance(value, Tensor)}

    def _look(self, root: Any, seen: set[int], depth: int) -> None:
        if id(root) in seen or depth == 0:
            return
        seen.add(id(root))
        if not isinstance(root, nn.Module):
            for inner in self._inside(root):
                self._look(inner, seen, depth - 1)
            return
        for module in root.modules():
            if module is root or id(module) not in seen:
                seen.add(id(module))
                self.modules.append(module)
                self._keep(module._parameters, hidden=True)
                self._keep(module._buffers, hidden=True)
                self._keep(vars(module))

    def _inside(self, root: Any) -> Iterator[Any]:
        """What an object or a function refers to, unless it is a library's."""
        if inspect.ismethod(root):
            yield root.__self__
            root = root.__func__
        library = (getattr(root, "__module__", None) or "").partition(".")[0] in _LIBRARIES
        if library or inspect.ismodule(root) or inspect.isclass(root):
            return
        if inspect.isfunction(root):
            found = inspect.getclosurevars(root)
            self._keep(root.__globals__, found.globals)
            yield from found.globals.values()
            yield from found.nonlocals.values()
        elif hasattr(root, "__dict__"):
            self._keep(vars(root))
            yield from vars(root).values()

    def _keep(self, where: dict[str, Any], names: Iterable[str] | None = None, *, hidden: bool = False) -> None:
        for name in where if names is None else names:
            if isinstance(where[name], (*_PLAIN, Tensor)) and (hidden or not name.startswith("_")):
                self.kept.append((where, name, where[name]))
