"""The thin edge between text and objects: names of parts, TOML files, saved runs.

A part is written ``vamp(components=500)`` or as a table ``{type = "VampPrior", components = 500}``. Names are those
of the classes, without regard to case, hyphens and underscores, and may be cut short while they stay unambiguous.
There are no import paths, no inheritance, no interpolation: a specification that wants a loop should be Python.
"""

import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae import autoregressive, families, flows, models, objectives, priors, runs
from pyrovae import nn as networks
from pyrovae.columns import Column, ColumnAware, Columns
from pyrovae.conditional import Conditional, Head
from pyrovae.data import preprocess
from pyrovae.data.gate import Schema
from pyrovae.errors import ConfigError, ModelFileError
from pyrovae.missing import MaskAware, Masked
from pyrovae.spec import build, closest
from pyrovae.text import Text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["Run", "instance", "load", "part", "parts", "read_toml"]


Parts = dict[str, Callable[..., Any]]


def _final(kind: type, *rooms: Any) -> Parts:
    """The finished classes of a kind that rooms offer, by name."""
    offered = [thing for room in rooms for thing in vars(room).values() if inspect.isclass(thing)]
    return {thing.__name__: thing for thing in offered if issubclass(thing, kind) and not inspect.isabstract(thing)}


def _named(*things: Callable[..., Any]) -> Parts:
    return {thing.__name__: thing for thing in things}


_FAMILIES = _final(Head, families, flows)
_ROLES: dict[str, Parts] = {
    "prior": _final(Conditional, priors, autoregressive) | _FAMILIES,
    "posterior": _FAMILIES,
    "likelihood": _FAMILIES | _named(Columns, Text),
    "base": _FAMILIES,
    "transform": _final(flows.FlowTransform, flows),
    "scale": _final(families.Scale, families),
    "net": _named(networks.MLP, networks.GatedMLP, networks.ConvNet, networks.ResNet, nn.Linear, MaskAware)
    | _named(networks.GRUDecoder, networks.GRUEncoder),
    "activation": _named(nn.ReLU, nn.SiLU, nn.GELU, nn.Softplus, nn.Tanh, nn.ELU, nn.LeakyReLU),
    "norm": _named(nn.BatchNorm1d, nn.LayerNorm),
    "objective": _final(objectives.Objective, objectives),
    "schedule": _named(objectives.Warmup, objectives.Cyclical),
    "kernel": _final(objectives.Kernel, objectives),
    "sampling": _final(objectives.Sampling, objectives),
    "preprocess": _final(preprocess.Preprocess, preprocess),
    "column": _named(Column),
}
_BUILDERS = ("scale", "net", "activation", "norm", "transform", "base")  # called later, by the part they are given to
# arguments that are parts under another name than their role's
_ROLE_OF = {"terms": "objective", "weights": "schedule", "columns": "column"} | {
    name: "schedule" for objective in _ROLES["objective"].values() for name in getattr(objective, "scheduled", ())
}
_ESTIMATORS = _named(Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO)
NAMES: Parts = {name: thing for named in _ROLES.values() for name, thing in named.items()} | _ESTIMATORS
NAMES |= _final(models.Model, models) | _named(Masked, ColumnAware)


def parts() -> dict[str, Parts]:
    """Every part by the role it can take, then by name; a family takes any role, that of a learned prior too."""
    return {role: dict(named) for role, named in _ROLES.items()}


def part(text: str | Mapping[str, Any], role: str) -> Callable[..., Any]:
    """A class or a partial of it, from text or a table; whoever takes the role calls it.

    Args:
        text: ``"mixture"``, ``"mixture(components=5)"`` or ``{"type": "Mixture", "components": 5}``.
        role: a key of :func:`parts`.

    Raises:
        ConfigError: for an unknown name or argument (the nearest is offered), or text that is no such call.

    Example:
        >>> part("mixture(components=5)", "prior")
        functools.partial(<class 'pyrovae.priors.Mixture'>, components=5)
    """
    return _built(text, role, "partial")


def instance(text: str | Mapping[str, Any], role: str, **available: Any) -> Any:
    """The part itself, for a role that needs nothing else to be built.

    Args:
        text: as in :func:`part`; objectives also as sums, ``"elbo(beta=0) + 10 * mmd"``.
        role: a key of :func:`parts`.
        **available: arguments that parts of this role are given where they take them and the text says nothing.

    Raises:
        ConfigError: as :func:`part`, and for arguments out of range.

    Example:
        >>> instance("iwae(k=5)", "objective").k
        5
    """
    table = _filled(_specification(text, role, "type"), available)
    return build(table, NAMES, f"--{role}")


def read_toml(path: str | os.PathLike[str], known: tuple[str, ...]) -> dict[str, Any]:
    """A TOML file whose top-level keys are all known.

    Raises:
        ConfigError: if it cannot be read, or for an unknown key (the nearest is offered).
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file that can be read ({error})") from error
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}{closest(key, known)}")
    return table


@dataclass(frozen=True)
class Run:
    """A finished run, read back.

    Attributes:
        model: with the learned weights, in evaluation mode.
        preprocess: from stored rows to the model's.
        schema: of one row; None where the run was made from arrays alone.
        manifest: versions, settings and results.
        directory: where it lies.
    """

    model: nn.Module
    preprocess: preprocess.Preprocess
    schema: Schema | None
    manifest: dict[str, Any]
    directory: Path


def load(directory: str | os.PathLike[str], model: nn.Module | None = None) -> Run:
    """Read a run back, after every file was verified.

    Args:
        directory: of a run, as ``fit(directory=...)`` or ``pyrovae fit`` left it.
        model: a program of your own to fill with the weights; None builds the one in ``model.toml``.

    Raises:
        ModelFileError: if something is missing, damaged, or does not fit.
    """
    manifest = runs.verify(directory)
    try:
        program = _program(directory) if model is None else model
        step = build(manifest.get("preprocess", {"type": "Identity"}), NAMES, "preprocess")
        schema = Schema.from_dict(manifest["schema"]) if "schema" in manifest else None
    except (ConfigError, ModelFileError, TypeError) as error:
        where = "" if str(directory) in str(error) else f"{directory}: "
        raise ModelFileError(f"{where}{error}") from error
    if not (isinstance(program, nn.Module) and isinstance(step, preprocess.Preprocess)):
        raise ModelFileError(f"{directory}: the model or the preprocessing is described as something else")
    runs.load_weights(directory, program)
    return Run(program.eval(), step, schema, manifest, Path(directory))


def _program(directory: str | os.PathLike[str]) -> Any:
    """The untrained model, built in the floating type of its weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(runs.stored_dtype(directory))
    try:
        return build(runs.read_model_table(directory), NAMES)
    finally:
        torch.set_default_dtype(before)


def _built(text: str | Mapping[str, Any], role: str, kind: str) -> Any:
    return build(_specification(text, role, kind), NAMES, f"--{role}")


def _specification(text: str | Mapping[str, Any], role: str, kind: str) -> dict[str, Any]:
    """The table for ``build``: names of classes in full, and arguments that are parts as tables in their turn."""
    if not isinstance(text, (str, Mapping)):
        raise ConfigError(f"--{role}: expected a name, name(argument=value) or a table, received {text!r}")
    table = dict(text) if isinstance(text, Mapping) else _parse(text, role)
    if not {"type", "partial"} & table.keys():
        raise ConfigError(f"--{role}: expected a table with type = NAME, received the keys {sorted(table)}")
    name = _resolve(str(table.pop("type", table.pop("partial", ""))), role)
    return {kind: name} | {key: _nested(key, value, role) for key, value in table.items()}


def _nested(name: str, value: Any, parent: str) -> Any:
    """An argument that is a part, as a table; a column's likelihood is called later, by the columns."""
    if isinstance(value, list):
        return [_nested(name, v, parent) for v in value]
    role = _ROLE_OF.get(name, name)
    if role not in _ROLES or not isinstance(value, (str, Mapping)):
        return value
    return _specification(value, role, "partial" if role in _BUILDERS or parent == "column" else "type")


def _filled(table: dict[str, Any], available: Mapping[str, Any]) -> dict[str, Any]:
    """With what is available and not given, in a sum of objectives for every term."""
    if "terms" in table:
        return table | {"terms": [_filled(term, available) for term in table["terms"]]}
    known = inspect.signature(NAMES[table["type"]]).parameters
    return {name: value for name, value in available.items() if name in known} | table


def _resolve(name: str, role: str) -> str:
    """The class's name, from one written in any case and perhaps cut short."""
    candidates = list(_ROLES.get(role, {}))
    plain = {_plain(c): c for c in candidates}
    if _plain(name) in plain:
        return plain[_plain(name)]
    starts = [c for p, c in plain.items() if _plain(name) and p.startswith(_plain(name))]
    if len(starts) == 1:
        return starts[0]
    shown = [hyphenated(c) for c in candidates]
    near = closest(hyphenated(name), [*shown, *(s.split("-")[0] for s in shown)])
    raise ConfigError(f"--{role}: there is no {role} {hyphenated(name)!r}{near}; there are {', '.join(shown)}")


def _parse(text: str, role: str) -> dict[str, Any]:
    """``name`` or ``name(argument=value, ...)`` as a table, by Python's own grammar, evaluating nothing."""
    names_joined = re.sub(r"""('[^']*'|"[^"]*")|(?<=\w)-(?=[A-Za-z])""", lambda found: found[1] or "_", text.strip())
    try:
        call = ast.parse(names_joined, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"--{role}: expected a name or name(argument=value), received {text!r}") from None
    return _call(call, role, text)


def _call(node: ast.expr, role: str, text: str) -> dict[str, Any]:
    if isinstance(node, ast.Name):
        return {"type": node.id}
    if isinstance(node, ast.BinOp) and role == "objective":
        weights, terms = zip(*_summands(node, text), strict=True)
        return {"type": "Sum", "terms": list(terms), "weights": list(weights)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not (node.args or _starred(node)):
        name = _resolve(node.func.id, role)
        arguments = {str(k.arg): _argument(k.value, str(k.arg), text) for k in node.keywords}
        return {"type": name} | arguments
    raise ConfigError(f"--{role}: expected name(argument=value), received {text!r}; arguments are given by name")


def _summands(node: ast.expr, text: str) -> list[tuple[Any, dict[str, Any]]]:
    """Weights and objectives of ``a + 2 * b``; a weight is a number or a schedule."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _summands(node.left, text) + _summands(node.right, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        weight, term = (node.right, node.left) if isinstance(node.right, ast.Constant) else (node.left, node.right)
        return [(_argument(weight, "weights", text), _term(term, text))]
    if isinstance(node, ast.BinOp):
        raise ConfigError(f"--objective: {text!r}: objectives add and are multiplied by numbers, 'elbo + 10 * mmd'")
    return [(1.0, _term(node, text))]


def _term(node: ast.expr, text: str) -> dict[str, Any]:
    table = _call(node, "objective", text)
    return table | {"type": _resolve(table["type"], "objective")}


def _starred(node: ast.Call) -> bool:
    return any(k.arg is None for k in node.keywords)


def _argument(node: ast.expr, name: str, text: str) -> Any:
    """A literal, or a part in a role of its own."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    role = _ROLE_OF.get(name, name)
    if role not in _ROLES:
        raise ConfigError(f"{text!r}: expected a number, text or list for {name!r}, received {ast.unparse(node)!r}")
    return _call(node, role, text)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def hyphenated(name: str) -> str:
    """ContinuousBernoulli as continuous-bernoulli, GatedMLP as gated-mlp, ReLU as relu."""
    return re.sub(r"(?<=[a-z]{2})(?=[A-Z])", "-", name).lower().replace("_", "-")


def first_sentence(obj: Callable[..., Any]) -> str:
    """The first line of a docstring, with its formula."""
    return re.sub(r"``|:\w+:|`", "", (inspect.getdoc(obj) or "").split("\n\n")[0]).replace("\n", " ")


def constructor(obj: Callable[..., Any]) -> str:
    """Arguments a user may give at the command line."""
    supplied = {"shape", "context", "posterior", "inputs", "in_shape", "out_shape", "in_features", "out_features"}
    supplied |= {"device", "dtype", "bias", "estimator", "sites", "size"}
    known = inspect.signature(obj).parameters
    supplied |= {"features"} if "size" in known else set()  # a flow's transforms are sized by the flow
    return ", ".join(f"{n}={_shown(p.default)}" for n, p in known.items() if n not in supplied)


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "..."
    return hyphenated(default.__name__) if inspect.isclass(default) else repr(default)
