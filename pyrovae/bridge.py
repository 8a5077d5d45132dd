"""Zuko without its side effects: the one place it is imported from."""

import sys
from types import ModuleType

from torch.distributions import Distribution
from torch.distributions import transforms as _transforms

__all__ = ["zuko"]


def zuko() -> ModuleType:
    """The package zuko, imported when first asked for, with every switch of torch and Pyro as it was before.

    Importing zuko turns validation off for all distributions of the process, replaces the table of constraints of
    torch's base class, and renames its inverse transform. All three are put back; zuko's own classes keep the table.

    Example:
        >>> before = Distribution._validate_args
        >>> zuko().__name__, Distribution._validate_args == before
        ('zuko', True)
    """
    if "zuko" not in sys.modules:
        checks, table = Distribution._validate_args, vars(Distribution)["arg_constraints"]
        name = _transforms._InverseTransform.__name__
        try:
            import zuko.distributions
        finally:
            Distribution._validate_args = checks
            Distribution.arg_constraints = table  # pyright: ignore[reportAttributeAccessIssue]
            _transforms._InverseTransform.__name__ = name
        for kind in vars(zuko.distributions).values():
            if getattr(kind, "__module__", "") == "zuko.distributions" and _inherits(kind, table):
                kind.arg_constraints = {}
    return sys.modules["zuko"]


def _inherits(kind: object, table: object) -> bool:
    return isinstance(kind, type) and getattr(kind, "arg_constraints", None) is table
