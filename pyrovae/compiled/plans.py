"""How batches of one kind are run: by Pyro, or by the graph of what Pyro did."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule

from pyrovae.compiled.capture import Refused, capture
from pyrovae.compiled.gradients import Gradients, Result
from pyrovae.compiled.graphs import copied
from pyrovae.compiled.half import half_products
from pyrovae.compiled.inductor import compile_graph
from pyrovae.compiled.lean import lean
from pyrovae.compiled.running import noise_first, reuse
from pyrovae.compiled.simplify import prepare
from pyrovae.compiled.watch import Watch
from pyrovae.errors import ConfigError

__all__ = ["Captured", "Eager", "Plan"]

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
        self.gradients, self.objective = gradients, lean(gradients.objective)
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
    """

    def __init__(
        self, gradients: Gradients, data: Sequence[Any], t: Tensor, watch: Watch, *, compiled: bool, half: bool
    ) -> None:
        self.gradients, self.runs, self.misses = gradients, 0, 0
        self.present: list[bool] = []
        self.has_norm = False
        self.buffers = [b for module in watch.modules for b in module.buffers(recurse=False)]
        self.devices = sorted({p.device.index or 0 for p in gradients.parameters if p.device.type == "cuda"})
        tensors = list(({id(p): p for p in gradients.parameters} | watch.tensors()).values())
        with self._kept():
            expected = gradients(data, t.item())
        graph = self._capture(data, t, tensors, watch, expected.loss.dtype)
        graph, self.tensors, self.written, self.decides = prepare(graph, tensors)
        self.kinds = [(p, _kind(p)) for p in self.tensors]
        # one graph stays as exact as it was captured: what the program is compared with
        self.exact = self.run = reuse(copied(graph)).forward
        self.level = "replay"
        self._compare(expected, self._alone(self.exact, data, t), _CLOSE)
        final = half_products(graph) if half else graph
        if half:
            self.run = reuse(copied(final)).forward
        if compiled:
            uncompiled = self._alone(self.run, data, t)
            self.run, self.level = self._compiled(final, data, t), "compiled"
            if uncompiled is not None:
                self._compare(uncompiled, self._alone(self.run, data, t), _CLOSE_HALF if half else _CLOSE)

    def __call__(self, data: Sequence[Any], t: Tensor) -> Result:
        """Loss and gradients at progress t.

        Raises:
            ConfigError: if the program is no longer the one that was captured.
            Refused: if it branches differently all the time.
        """
        self.runs += 1
        if self.runs & (self.runs - 1) == 0 and self.runs > 1:
            self._check(data, t)
        if not self.decides:
            return self._result(self.run, data, t)
        generators, written = self._generators(), [w.clone() for w in self.written]
        result = self._result(self.run, data, t)
        return self._again(data, t, generators, written) if result is None else result

    def _compiled(self, graph: GraphModule, data: Sequence[Any], t: Tensor) -> Callable[..., Any]:
        draws = noise_first(graph)
        with self._kept():
            run = compile_graph(graph, [*self._inputs(data, t), *(draw() for draw in draws)])
        return (lambda *inputs: run(*inputs, *[draw() for draw in draws])) if draws else run

    def unchanged(self) -> bool:
        """Whether parameters and buffers are of the types, shapes and strides that the graph was made for."""
        return all(_kind(tensor) == kind for tensor, kind in self.kinds)

    def _capture(self, data: Sequence[Any], t: Tensor, tensors: list[Tensor], watch: Watch, dtype: torch.dtype) -> Any:
        # distinct objects, although the caller may pass one tensor twice
        data = [d.detach() if isinstance(d, Tensor) else d for d in data]
        given = [d for d in data if isinstance(d, Tensor)]

        def function(*_: Tensor) -> list[Tensor]:
            loss, norm, gradients = self.gradients(data, t)
            self.present, self.has_norm = [g is not None for g in gradients], norm is not None
            parts = [_like(g, p) for g, p in zip(gradients, self.gradients.parameters, strict=True) if g is not None]
            return [loss.to(dtype), *([] if norm is None else [norm]), *parts]

        with self._kept(), pyro.validation_enabled(False):
            graph = capture(function, [*tensors, *given, t])
            name = watch.changed()
        if name is not None:
            raise Refused(f"running it changes {name!r}, which a captured program would not; keep it in a tensor")
        return graph

    def _inputs(self, data: Sequence[Any], t: Tensor) -> list[Tensor]:
        return [*self.tensors, *(d.contiguous() for d in data if isinstance(d, Tensor)), t]

    def _result(self, run: Any, data: Sequence[Any], t: Tensor) -> Any:
        """What the graph gives, or None where a branch on data came out differently."""
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            outputs = run(*self._inputs(data, t))
        if self.decides and not outputs[-1]:
            return None
        first = 2 if self.has_norm else 1
        parts = iter(outputs[first:])
        return Result(
            outputs[0], outputs[1] if self.has_norm else None, [next(parts) if p else None for p in self.present]
        )

    def _again(self, data: Sequence[Any], t: Tensor, generators: list[Tensor], written: list[Tensor]) -> Result:
        """The program itself, on the same noise: a branch on data came out differently than when it was captured."""
        self.misses += 1
        if self.misses > _MISSES and 2 * self.misses > self.runs:
            raise Refused("it branches on data, and the branch changes all the time")
        self._set_generators(generators)
        for tensor, before in zip(self.written, written, strict=True):
            tensor.copy_(before)
        return self.gradients(data, t.item())

    def _check(self, data: Sequence[Any], t: Tensor) -> None:
        """Run program and graph on the same noise.

        Raises:
            ConfigError: if they differ.
        """
        with self._kept():
            expected = self.gradients(data, t.item())
        try:
            self._compare(expected, self._alone(self.exact, data, t), _CLOSE)
        except Refused as error:
            raise ConfigError(
                f"the program is not the one that was captured ({error}): it depends on something that is neither a "
                "tensor nor a plain attribute of a module; keep it in a tensor, or train with compile 'eager'"
            ) from None

    def _alone(self, run: Callable[..., Any], data: Sequence[Any], t: Tensor) -> Result | None:
        """A run that leaves no trace."""
        with self._kept():
            return self._result(run, data, t)

    @staticmethod
    def _compare(expected: Result, received: Result | None, close: float) -> None:
        """See that two results agree; a branch that differs from the captured one is dealt with when it is met.

        Raises:
            Refused: if they do not.
        """
        if received is None:
            return
        if [g is None for g in expected.gradients] != [g is None for g in received.gradients]:
            raise Refused("other parameters get a gradient")
        pairs = zip([expected.loss, *expected.gradients], [received.loss, *received.gradients], strict=True)
        if not all(_close(a, b, close) for a, b in pairs if a is not None and b is not None):
            raise Refused("loss or gradients differ on the same noise")

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Generators and buffers as they were, afterwards."""
        before = [b.detach().clone() for b in self.buffers]
        with torch.random.fork_rng(self.devices):
            try:
                yield
            finally:
                with torch.no_grad():
                    for buffer, value in zip(self.buffers, before, strict=True):
                        buffer.copy_(value)

    def _generators(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.devices)]

    def _set_generators(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the parameter's layout, as autograd would accumulate it."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _close(a: Tensor, b: Tensor, relative: float) -> bool:
    difference, size = (a - b).double().norm(), a.double().norm()
    return bool(difference <= relative * size + 1e-6) or not bool(size.isfinite())
