"""One training step of a Pyro program: captured once, then replayed or compiled, with the same numbers."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.elbo import ELBO as PyroELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.compiled.gradients import Gradients, Result, clipped
from pyrovae.compiled.plans import Captured, Eager, Plan
from pyrovae.compiled.update import Update
from pyrovae.compiled.updating import Updating
from pyrovae.compiled.watch import Watch
from pyrovae.errors import ConfigError
from pyrovae.graphs import LEVELS, PRECISIONS, CompilerFailed, Refused, compiler, warn_if_emulated
from pyrovae.objectives import ELBO

__all__ = ["Step", "compile_step"]

_GRAPHS = 16  # kept for data of different kinds, and captures that are renewed, before it goes on eagerly
_KINDS = 64  # remembered, the latest: where a number among the data is new in every batch, none ever comes back
# what a graph saves of an eager step, what compiling saves of a replay, and what either costs once
_GAIN_REPLAY, _SECONDS_CAPTURE = 0.3, 0.5
_GAIN_COMPILED, _SECONDS_COMPILE = 0.2, 10.0


def compile_step(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    objective: Any = None,
    optimizer: Optimizer | None = None,
    *,
    level: str = "auto",
    precision: str = "float32",
    clip: float | None = None,
    accumulate: int = 1,
    steps: int | None = None,
) -> "Step":
    r"""A training step of any Pyro program, as fast as its tensor operations.

    At its first call the step runs model, guide and objective once under Pyro's own handlers, keeps the tensor
    operations of loss and gradients as one graph ``(*parameters, *data) -> (loss, *gradients)``, and from then on runs
    that graph: Pyro, distributions and autograd are gone at run time. Value and gradients are those of the objective
    on the same noise: bit for bit in a replay, within 1e-6 relative when compiled.

    What may change from step to step without a new capture: numbers in tensors (parameters, buffers, data, a
    temperature kept as a tensor), learning rates, progress ``t`` and with it every schedule. Shapes, types and modes,
    plain attributes and which tensor a parameter is belong to the capture: another value makes a new one. Python's
    hidden state (a list that grows, a closure's counter) cannot be seen; the step is compared with the program at
    steps 1, 2, 4, 8, ... and an error is raised where they differ.

    Args:
        model: Pyro program p(x, z), called with the step's data.
        guide: Pyro program q(z|x), called with the same.
        objective: as for :func:`pyrovae.fit`, called with an object that has ``model`` and ``guide``; or one of Pyro's
            ELBOs with ``differentiable_loss``, used as ``SVI`` would, param store included. None is ``pyrovae.ELBO()``.
        optimizer: a torch optimizer over the parameters to train; those reached by the programs and not in it stay as
            they are. On a processor Adam and AdamW become part of the compiled code; elsewhere those with
            ``fused=True`` are called directly. The state is as ``optimizer.step()`` leaves it.
        level: ``"compiled"`` by inductor, which needs a C++ compiler or CUDA; ``"replay"`` of the graph; ``"eager"``,
            never captured; ``"auto"`` weighs the seconds of compiling against the steps to come.
        precision: ``"bf16"`` does matrix products and convolutions in bfloat16, everything else stays float32; it
            pays on processors with instructions for it.
        clip: largest gradient norm over all parameters together.
        accumulate: calls for one update, by the mean of their gradients.
        steps: steps to expect, for ``"auto"``; where None, it is captured and compiled once it has lasted long enough.

    Returns:
        The step: ``loss = step(*data)`` makes one update.

    Raises:
        ConfigError: for arguments that cannot work, or when the program turns out to be another than was captured.

    References:
        Stochastic variational inference (Hoffman et al., 2013);
        torch.fx: practical program capture and transformation for deep learning in Python (Reed et al., 2022)

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> decoder, encoder = torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("batch", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     with pyro.plate("batch", len(x)):
        ...         pyro.sample("z", dist.Normal(encoder(x), 0.1).to_event(1))
        >>> adam = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=1e-3, fused=True)
        >>> step = compile_step(model, guide, ELBO(), adam, level="replay")
        >>> loss = step(torch.ones(8, 4))  # nats per row
    """
    if optimizer is None:
        raise ConfigError("optimizer: expected a torch optimizer over the parameters to train, received None")
    return Step(
        _program(model, guide),
        _objective(objective),
        optimizer,
        level=level,
        precision=precision,
        clip=clip,
        accumulate=accumulate,
        steps=steps,
    )


class Step:
    """See :func:`compile_step`, which makes one; ``fit`` makes one of a model.

    Attributes:
        level: how the last batch was run: ``"compiled"``, ``"replay"`` or ``"eager"``.
        norm: of the last gradient, before clipping, where it was asked for.
        parameters: those that are trained.
        guard: keeps that norm, and makes no update where it or the loss is not finite.
    """

    def __init__(
        self,
        program: Any,
        objective: Any,
        optimizer: Optimizer,
        *,
        level: str = "auto",
        precision: str = "float32",
        clip: float | None = None,
        accumulate: int = 1,
        steps: int | None = None,
        guard: bool = False,
    ) -> None:
        self.parameters: list[Tensor] = [p for g in optimizer.param_groups for p in g["params"]]
        _check(level, precision, clip, accumulate, self.parameters)
        self.wanted, self.precision, self.accumulate, self.steps = level, precision, accumulate, steps
        self.clip, self.guard = clip, guard
        whole = accumulate == 1  # else norm and clipping are the sum's
        self._loss = Gradients(program, objective, self.parameters, norm=guard and whole, clip=clip if whole else None)
        self._eager, self._update = Eager(self._loss), Update(optimizer)
        self._t = torch.ones((), dtype=torch.float64)
        self._plans: dict[Any, _Kind] = {}
        self._watch: Watch | None = None
        self._renewed = 0
        self._sum: list[Tensor | None] = []
        self._calls = 0
        self._gradients: list[Tensor | None] = []
        self.level, self.norm = "eager", None

    def __call__(self, *data: Any, t: float = 1.0) -> Tensor:
        """Make one update.

        Args:
            *data: what model and guide are called with.
            t: progress of training in [0, 1], for an objective with a schedule.

        Returns:
            The loss before the update, a scalar without gradient, in the objective's unit (nats per row).

        Raises:
            ConfigError: if the program is no longer the one that was captured.
        """
        result = self._run(data, t, whole=self.accumulate == 1)
        if not result.updated and not (self.guard and not _finite(result)):
            self.update()
        return result.loss

    def gradients(self, *data: Any, t: float = 1.0) -> Tensor:
        """The loss, with :attr:`norm` and the gradients ready for :meth:`update`; arguments as for a call."""
        return self._run(data, t, whole=False).loss

    def update(self) -> None:
        """Apply the gradients; with ``accumulate``, at every so many calls."""
        if self._gradients:
            self._update(self.parameters, self._gradients)

    def assign(self, *data: Any, t: float = 1.0) -> None:
        """Set ``parameter.grad``, for those who look there, without an update: by the program itself, once more."""
        self._t.fill_(t)
        for parameter, gradient in zip(self.parameters, self._eager(data, self._t).gradients, strict=True):
            parameter.grad = gradient

    def _run(self, data: Sequence[Any], t: float, *, whole: bool) -> Result:
        """Loss and gradients, and the update too where ``whole`` and the plan makes both at once."""
        self._t.fill_(t)
        plan = self._plan(data, whole=whole)
        try:
            result = plan(data, self._t)
        except Refused as error:
            self._give_up(error)
            plan = self._eager
            result = plan(data, self._t)
        self.level = plan.level
        result = result if self.accumulate == 1 else self._accumulated(result)
        self.norm, self._gradients = result.norm, result.gradients
        return result

    def _accumulated(self, result: Result) -> Result:
        """The mean gradients of the last calls when there are enough, and none before."""
        parts = [None if g is None else g / self.accumulate for g in result.gradients]
        self._sum = [_add(a, b) for a, b in zip(self._sum, parts, strict=True)] if self._sum else parts
        self._calls += 1
        if self._calls % self.accumulate:
            return Result(result.loss, None, [])
        total, self._sum = self._sum, []
        return clipped(Result(result.loss, None, total), norm=self.guard, clip=self.clip)

    def _plan(self, data: Sequence[Any], *, whole: bool) -> Plan:
        """The plan for data of this kind: what is burned into a graph is its key, or under watch."""
        if self.wanted == "eager":
            return self._eager
        if self._watch is not None and (name := self._watch.changed()) is not None:
            self._renew(self._watch, name)
            if self.wanted == "eager":
                return self._eager
        kind = self._kind(data, whole=whole)
        kind.seen += 1
        void = isinstance(kind.plan, Captured) and not kind.plan.holds()
        due = kind.seen in (kind.capture_at, kind.compile_at) and (kind.first or self._graphs() < _GRAPHS)
        if due or void:
            kind.plan = self._captured(data, compiled=kind.seen >= kind.compile_at, whole=whole)
        return kind.plan

    def _kind(self, data: Sequence[Any], *, whole: bool) -> "_Kind":
        """What is known of data of this kind; for a new one, the kind without a graph that was met longest ago goes.

        Graphs stay: to drop and capture them by turns would cost more than eager steps do.
        """
        key = whole, *_key(data)
        kind = self._plans.get(key)
        if kind is None:
            if len(self._plans) == _KINDS:
                del self._plans[next(k for k, old in self._plans.items() if old.plan is self._eager)]
            kind = self._plans[key] = self._new_kind(data, first=not any(k[0] is whole for k in self._plans))
        elif kind.plan is self._eager:
            self._plans[key] = self._plans.pop(key)  # the latest stands last
        return kind

    def _graphs(self) -> int:
        return sum(isinstance(kind.plan, Captured) for kind in self._plans.values())

    def _new_kind(self, data: Sequence[Any], *, first: bool) -> "_Kind":
        """When to do what for data of a kind that is new: a choice by numbers alone, the same in every run.

        The first kind is captured and compiled when that pays, at once if the number of steps is known; without it, a
        run that has lasted so long is taken to last as long again. Others (a shorter last batch) are replayed.
        """
        half = self.precision == "bf16"  # eager steps would not be
        if not first:
            return _Kind(self._eager, 1 if half else 2, math.inf)
        rows = next((len(d) for d in data if isinstance(d, Tensor) and d.dim()), 1)
        seconds = 1e-3 + 6 * rows * sum(p.numel() for p in self.parameters) / 1e11  # of a step, roughly
        replay, compiled = _SECONDS_CAPTURE / (_GAIN_REPLAY * seconds), _SECONDS_COMPILE / (_GAIN_COMPILED * seconds)
        if self.steps is not None:
            replay, compiled = (1 if self.steps > least else math.inf for least in (replay, compiled))
        if self.wanted != "auto":
            replay, compiled = 1, (1 if self.wanted == "compiled" else math.inf)
        if compiler(self.parameters[0].device) is None:
            compiled = math.inf
        return _Kind(self._eager, 1 if half else _ceil(replay), _ceil(compiled), first=True)

    def _captured(self, data: Sequence[Any], *, compiled: bool, whole: bool) -> Plan:
        half = self.precision == "bf16"
        try:
            self._watch = self._watch or self._new_watch()
            given = self._loss, data, self._t, self._watch
            try:
                if compiled and whole:
                    return Updating(*given, half=half, update=self._update, guard=self.guard)
                return Captured(*given, compiled=compiled, half=half)
            except CompilerFailed as error:
                _say(f"inductor failed, the captured step is replayed instead: {error}")
                return Captured(*given, compiled=False, half=half)
        except Refused as error:
            self._give_up(error)
            return self._eager

    def _renew(self, watch: Watch, name: str) -> None:
        """Something burned in is another one now: what was captured is void."""
        before, self._watch = watch.tensors(), self._new_watch()
        after = self._watch.tensors()
        if any(id(p) in before and id(p) not in after for p in self.parameters):
            raise ConfigError(
                f"parameter {name!r} was replaced after the step was made, and its optimizer does not know the new "
                "one: assign to parameter.data, or make a new optimizer and a new step"
            )
        self._plans, self._renewed = {}, self._renewed + 1
        if self._renewed > _GRAPHS:
            self._give_up(Refused(f"{name!r} changes again and again; keep it in a tensor"))

    def _new_watch(self) -> Watch:
        return Watch(self._loss.program, self._loss.objective)

    def _give_up(self, error: Refused) -> None:
        if self.precision == "bf16":
            raise ConfigError(f"precision: 'bf16' needs a program that can be captured; {error}") from None
        if self.wanted != "eager":
            _say(f"the program cannot be captured: {error}. Training goes on without, with the same numbers")
        self.wanted, self._plans = "eager", {}


@dataclass
class _Kind:
    """Data of one kind: how it is run now, at which of its batches that changes, and how many there were.

    Attributes:
        first: what training is mostly made of; it may have one graph more than the others together.
    """

    plan: Plan
    capture_at: float
    compile_at: float
    first: bool = False
    seen: int = 0


@dataclass(frozen=True)
class _Programs:
    """What an objective is called with when model and guide belong to no object."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


def _program(model: Callable[..., Any], guide: Callable[..., Any]) -> Any:
    """The object whose methods they are, which an objective may want to know, or both side by side."""
    owner: Any = getattr(model, "__self__", None)
    if getattr(owner, "model", None) == model and getattr(owner, "guide", None) == guide:
        return owner
    return _Programs(model, guide)


class _ByPyro:
    """One of Pyro's own estimators as an objective, in Pyro's unit: nats, summed over rows."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def __call__(self, program: Any, *data: Any) -> Tensor:
        return self.estimator.differentiable_loss(program.model, program.guide, *data)


def _objective(objective: Any) -> Any:
    if objective is None:
        return ELBO()
    if isinstance(objective, PyroELBO):
        if not hasattr(objective, "differentiable_loss"):
            raise ConfigError(f"objective: {type(objective).__name__} has no differentiable_loss to capture")
        return _ByPyro(objective)
    if not callable(objective):
        raise ConfigError(f"objective: expected a callable (model, *data) -> loss, received {objective!r}")
    return objective


def _check(level: str, precision: str, clip: Any, accumulate: Any, parameters: Sequence[Tensor]) -> None:
    if not any(p.requires_grad for p in parameters):
        raise ConfigError("optimizer: expected parameters that require gradients, received none")
    for name, value, known in (("level", level, LEVELS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"{name}: expected one of {', '.join(known)}, received {value!r}")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip: expected a positive number or None, received {clip!r}")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ConfigError(f"accumulate: expected an int from 1, received {accumulate!r}")
    if precision == "bf16" and level == "eager":
        raise ConfigError("precision: 'bf16' rewrites the captured graph, which level 'eager' does not make")
    if precision == "bf16":
        warn_if_emulated(parameters)
    if level == "compiled" and compiler(parameters[0].device) is None:
        raise ConfigError("level: 'compiled' needs a C++ compiler (g++, clang++, c++ or $CXX); 'replay' needs none")


def _key(data: Sequence[Any]) -> tuple[Any, ...]:
    """Everything about data and surroundings that a graph fixes."""
    kinds = tuple((d.shape, d.dtype, d.device) if isinstance(d, Tensor) else d for d in data)
    return kinds, torch.is_autocast_enabled("cpu"), torch.get_default_dtype()


def _finite(result: Result) -> bool:
    return bool(result.loss.isfinite()) and (result.norm is None or bool(result.norm.isfinite()))


def _ceil(count: float) -> float:
    return count if math.isinf(count) else math.ceil(count)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _say(message: str) -> None:
    warnings.warn(message, stacklevel=5)
