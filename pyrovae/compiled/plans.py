"""How batches of one kind are run: by Pyro, or by the graph of what Pyro did."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.compiled.gradients import Gradients, Result
from pyrovae.compiled.lean import lean
from pyrovae.compiled.watch import Watch
from pyrovae.errors import ConfigError
from pyrovae.graphs import CompilerFailed, Function, Refused, cuda_devices, kept

__all__ = ["Captured", "Eager", "Plan", "tensors_of"]

_MISSES = 8  # decisions that come out differently before the program is run eagerly for good
_CLOSE, _CLOSE_HALF = 1e-3, 0.1  # relative: another program differs by more, rounding by less


class Plan(abc.ABC):
    """Loss and gradients for data of one kind.

    Attributes:
        level: its name.
    """

    level: str

    @abc.abstractmethod
    def __call__(self, data: Sequence[Any], t: Tensor) -> Result:
        """Loss and gradients at progress t."""


class Eager(Plan):
    """The program itself, under a lean messenger where that gives the same numbers.

    Pyro's validation is as the user has it at the first run, and off afterwards.
    """

    level = "eager"

    def __init__(self, gradients: Gradients) -> None:
        self.gradients, self.objective = gradients, lean(gradients.objective, gradients.program)
        self.runs = 0

    def __call__(self, data: Sequence[Any], t: Tensor) -> Result:
        """Loss and gradients at progress t."""
        self.runs += 1
        if self.runs == 1:
            return self.gradients(data, t.item())
        with pyro.validation_enabled(False):
            return self.gradients(data, t.item(), self.objective)


class Captured(Plan):
    """The graph of a program's loss and gradients.

    Args:
        gradients: what is captured.
        data: an example; of every other batch, shapes and types are the same.
        t: progress, a scalar that is read at every run.
        watch: the tensors that are watched are inputs of the graph.
        compiled: whether to compile the graph.
        half: whether to do its products in bfloat16.

    Raises:
        Refused: if that is impossible, and why.
        CompilerFailed: if only compiling it is.
    """

    def __init__(
        self, gradients: Gradients, data: Sequence[Any], t: Tensor, watch: Watch, *, compiled: bool, half: bool
    ) -> None:
        self.gradients, self.runs, self.misses = gradients, 0, 0
        self.present: list[bool] = []
        self.has_norm = False
        self.buffers = [b for module in watch.modules for b in module.buffers(recurse=False)]
        self.devices = cuda_devices(gradients.parameters)
        expected = self._by_pyro(data, t)
        self.function = self._capture(data, t, watch, expected.loss.dtype, half=half)
        self._compare(expected, self._alone(data, t, exact=True), _CLOSE)
        if compiled:
            uncompiled = self._alone(data, t)
            self._compile(data, t)
            expected, received = self._effect(lambda: uncompiled), self._effect(lambda: self._alone(data, t))
            self._compare_compiled(expected, received, _CLOSE_HALF if half else _CLOSE)
        self.level = "compiled" if compiled else "replay"

    def __call__(self, data: Sequence[Any], t: Tensor) -> Result:
        """Loss and gradients at progress t.

        Raises:
            ConfigError: if the program is no longer the one that was captured.
            Refused: if it branches differently all the time.
        """
        self.runs += 1
        if self.runs & (self.runs - 1) == 0 and self.runs > 1:
            self._check(data, t)
        outputs = self.function(*tensors_of(data, t))
        return self._again(data, t) if outputs is None else self._result(outputs)

    def holds(self) -> bool:
        """Whether everything is still of the kinds that this was made for."""
        return self.function.unchanged()

    def _capture(self, data: Sequence[Any], t: Tensor, watch: Watch, dtype: torch.dtype, *, half: bool) -> Function:
        def function(*given: Tensor) -> list[Tensor]:
            *rest, progress = given
            tensors = iter(rest)
            result = self.gradients([next(tensors) if isinstance(d, Tensor) else d for d in data], progress)
            self.present, self.has_norm = [g is not None for g in result.gradients], result.norm is not None
            pairs = zip(result.gradients, self.gradients.parameters, strict=True)
            parts = [_like(g, p) for g, p in pairs if g is not None]
            return [result.loss.to(dtype), *([] if result.norm is None else [result.norm]), *parts]

        tensors = list(({id(p): p for p in self.gradients.parameters} | watch.tensors()).values())
        with kept(self.buffers, self.devices), pyro.validation_enabled(False):
            captured = Function(function, tensors, tensors_of(data, t), half=half)
            name = watch.changed()
        if name is not None:
            raise Refused(f"running it changes {name!r}, which a captured program would not; keep it in a tensor")
        return captured

    def _compile(self, data: Sequence[Any], t: Tensor) -> None:
        self.function.compile(tensors_of(data, t))

    def _result(self, outputs: Sequence[Tensor]) -> Result:
        loss, *rest = outputs
        norm = rest.pop(0) if self.has_norm else None
        gradients = iter(rest)
        return Result(loss, norm, [next(gradients) if present else None for present in self.present])

    def _again(self, data: Sequence[Any], t: Tensor) -> Result:
        """The program itself, on the same noise: a branch on data came out differently than when it was captured."""
        self.misses += 1
        if self.misses > _MISSES and 2 * self.misses > self.runs:
            raise Refused("it branches on data, and the branch changes all the time")
        return self.gradients(data, t.item())

    def _check(self, data: Sequence[Any], t: Tensor) -> None:
        """Run program and graph on the same noise.

        Raises:
            ConfigError: if they differ.
        """
        try:
            self._compare(self._by_pyro(data, t), self._alone(data, t, exact=True), _CLOSE)
        except Refused as error:
            raise ConfigError(
                f"the program is not the one that was captured ({error}): it depends on something that is neither a "
                "tensor nor a plain attribute of a module; keep it in a tensor, or train with compile 'eager'"
            ) from None

    def _by_pyro(self, data: Sequence[Any], t: Tensor) -> Result:
        with kept(self.buffers, self.devices):
            return self.gradients(data, t.item())

    def _alone(self, data: Sequence[Any], t: Tensor, *, exact: bool = False) -> Result | None:
        """A run that leaves no trace."""
        with kept(self.buffers, self.devices):
            outputs = self.function(*tensors_of(data, t), exact=exact)
        return None if outputs is None else self._result(outputs)

    def _effect(self, run: Callable[[], Result | None]) -> Result | None:
        """What a run is compared by."""
        return run()

    @classmethod
    def _compare_compiled(cls, expected: Result | None, received: Result | None, close: float) -> None:
        """Another order of sums may matter, where a program divides by what is nearly 0: the graph itself still does.

        Raises:
            CompilerFailed: if the compiled graph gives other numbers.
        """
        try:
            cls._compare(expected, received, close)
        except Refused as error:
            raise CompilerFailed(str(error)) from None

    @staticmethod
    def _compare(expected: Result | None, received: Result | None, close: float) -> None:
        """See that two results agree; a branch that differs from the captured one is dealt with when it is met.

        Raises:
            Refused: if they do not.
        """
        if expected is None or received is None:
            return
        if [g is None for g in expected.gradients] != [g is None for g in received.gradients]:
            raise Refused("other parameters get a gradient")
        pairs = zip([expected.loss, *expected.gradients], [received.loss, *received.gradients], strict=True)
        if not all(_close(a, b, close) for a, b in pairs if a is not None and b is not None):
            raise Refused("loss or gradients differ on the same noise")


def tensors_of(data: Sequence[Any], t: Tensor) -> list[Tensor]:
    """What a graph is given at every run."""
    return [*(d for d in data if isinstance(d, Tensor)), t]


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the parameter's layout, as autograd would accumulate it."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _close(a: Tensor, b: Tensor, relative: float) -> bool:
    difference, size = (a - b).double().norm(), a.double().norm()
    return bool(difference <= relative * size + 1e-6) or not bool(size.isfinite())
