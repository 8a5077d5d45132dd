"""Runs a program once and keeps what it did to tensors: Pyro, distributions, handlers and autograd are gone from it.

The program runs under torch's proxy tracing with real numbers. Three things would go wrong silently there, and do not:

- A number taken out of a tensor (``.item()``) is burned in. Here a float taken out stays a tensor, of type float64.
- A branch on data (``if tensor:``, ``int(tensor)``) is burned in. Here the value that was met becomes part of the last
  output, the *decision*: it is true while every such value comes out as it did, and else the step is run eagerly.
- What leaves torch (``.numpy()``, ``.tolist()``), has a size that depends on the numbers, draws from another random
  generator or changes a Python attribute is refused.
"""

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer.util import Dice
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.graph import CodeGen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.graphs.keeping import cuda_devices, kept

__all__ = ["Refused", "capture", "trace"]

_LEAVES_TORCH = {Tensor.numpy: ".numpy()", Tensor.tolist: ".tolist()", Tensor.__array__: "numpy"}
_DICE = Dice.compute_expectation.__code__


class Refused(Exception):
    """A program that cannot be captured, and why."""


def capture(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> GraphModule:
    """The tensor operations of ``function(*inputs)`` as one graph from inputs to outputs.

    Tensors that the function reaches by other ways stand in the graph by reference; noise comes from the global
    generators at run time, in the same order. The global generators are left as they were.

    Args:
        function: called with the inputs as they are; what it returns are the graph's outputs.
        inputs: tensors, each an input of the graph.

    Returns:
        The graph, whose last output is the decision, a boolean scalar.

    Raises:
        Refused: if the graph could not stand for the function.
    """

    def traced(*inputs: Tensor) -> list[Tensor]:
        with _Floats(), _Decisions() as decisions:
            return [*function(*inputs), decisions.all()]

    before = _other_generators()
    try:
        with kept((), cuda_devices(inputs)):
            graph = trace(traced, inputs)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    if _other_generators() != before:
        raise Refused("it draws from the generator of numpy or of Python's random; draw with torch")
    return graph


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> GraphModule:
    """The tensor operations of one run of ``function(*inputs)``, writes and draws included; nothing is checked."""
    # a second of imports, only when used
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # one home for the likenesses of all values: left to itself, tracing makes one for each, a third of its time
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        graph = make_fx(function)(*inputs)
    graph.graph.set_codegen(CodeGen())  # flat inputs, flat outputs
    return graph


class _Floats(TorchFunctionMode):
    """A float taken out of a tensor stays a tensor that behaves like a Python number.

    Among its like it has the precision of float64; beside a tensor it takes on the tensor's type.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.item and args[0].is_floating_point():
            return _number(args[0].detach().double())
        if func in _LEAVES_TORCH:
            raise Refused(f"numbers leave torch by {_LEAVES_TORCH[func]}")
        if not any(_is_number(a) for a in args):
            return func(*args, **kwargs)
        others = [a.dtype for a in args if isinstance(a, Tensor) and not _is_number(a) and a.is_floating_point()]
        if others:
            return func(*(a.to(others[0]) if _is_number(a) else a for a in args), **kwargs)
        result = func(*args, **kwargs)
        return _number(result) if isinstance(result, Tensor) and result.dtype is torch.float64 else result


def _number(tensor: Tensor) -> Tensor:
    tensor.pyrovae_number = True  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and "pyrovae_number" in vars(value)


class _Decisions(TorchDispatchMode):
    """Answers questions about data with what it finds now, and keeps the questions."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def all(self) -> Tensor:
        return torch.stack(self.kept).all() if self.kept else torch.ones((), dtype=torch.bool)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            # Where a probability is 0 this estimator leaves its cost out. Left in, it adds 0 times the cost: the same,
            # or NaN, and NaN is a decision of its own.
            return True if _asked_by(_DICE) else self._value(func, args[0])
        if func is aten.equal.default and args[0].shape == args[1].shape:
            return self._value(aten._local_scalar_dense.default, (args[0] == args[1]).all())
        if torch.Tag.dynamic_output_shape in func.tags and not _indices_are_integers(func, args):
            raise Refused(f"{func} gives a result whose size depends on the numbers")
        return func(*args, **(kwargs or {}))

    def _value(self, func: Any, tensor: Tensor) -> Any:
        from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

        with disable_proxy_modes_tracing():
            value = func(tensor)
        same = tensor if value is True else tensor.logical_not() if value is False else tensor == value
        self.kept.append(same.reshape(()))
        return value


def _asked_by(code: Any, depth: int = 6) -> bool:
    frame: Any = sys._getframe(1)
    for _ in range(depth):
        if frame is None or frame.f_code is code:
            break
        frame = frame.f_back
    return frame is not None and frame.f_code is code


def _indices_are_integers(func: Any, args: Any) -> bool:
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1])


def _other_generators() -> tuple[Any, ...]:
    kind, keys, position, *rest = np.random.get_state()  # noqa: NPY002 the question is whether anybody draws from it
    return random.getstate(), kind, bytes(np.asarray(keys)), position, *rest
