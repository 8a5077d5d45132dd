"""Matrix products and convolutions in half precision, everything else as it was: in a program, or in its graph."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.graphs.capture import trace
from pyrovae.graphs.nodes import aten, replace, value_of
from pyrovae.graphs.simplify import simplify

__all__ = ["half_graph", "half_products", "warn_if_emulated"]

# terms of a sum, and terms of all sums, below which rounding the factors and the sums costs more than it saves
_SHORT, _FEW = 64, 2**22
_PRODUCTS = {  # which arguments are multiplied
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.convolution.default: (0, 1),
    aten.convolution_backward.default: (0, 1, 2),
}
_WITHOUT_ADDED = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}
_NATIVE = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")  # instructions of x86 and ARM
_ROUNDED = {"dtype": torch.bfloat16}
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)
_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


def warn_if_emulated(parameters: Iterable[Tensor]) -> None:
    """Say that products in bfloat16 take longer than in float32, where the processor has no instructions for them."""
    here = all(p.device.type == "cpu" for p in parameters)
    if here and not any(torch.cpu.get_capabilities().get(name) for name in _NATIVE):
        warnings.warn(
            "precision: 'bf16' is slower than 'float32' here: this processor has no instructions for bfloat16, such as "
            "AMX or AVX512_BF16, and emulates them",
            stacklevel=4,
        )


@contextlib.contextmanager
def half_products() -> Iterator[None]:
    """Within, products of float32 tensors are bfloat16; sums, losses, log-probabilities and weights stay float32.

    The factors are rounded to 8 bits of mantissa, their products summed in float32 and rounded once more; what is added
    to them is added in float32. Products too small to gain by it stay as they are. Autograd is off; where gradients are
    operations of a graph, their factors are rounded as well.
    """
    # inference mode would show linear layers instead of their products
    with torch.inference_mode(mode=False), torch.no_grad(), _HalfProducts():
        yield


def half_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """A new graph, of what this one does within :func:`half_products`; it is run once, noise and writes included."""

    def program(*inputs: Tensor) -> Any:
        with half_products():
            return graph(*inputs)

    new = trace(program, inputs)
    _transpose_last(new)
    return simplify(new)


class _HalfProducts(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = _PRODUCTS.get(func)
        if factors is None or kwargs or not _pays(func, *(args[i] for i in factors)):
            return func(*args, **(kwargs or {}))
        args = [a.bfloat16() if i in factors else a for i, a in enumerate(args)]
        if func is aten.convolution_backward.default:
            return tuple(None if part is None else part.float() for part in func(*args))
        if func in _WITHOUT_ADDED:
            return _added(_WITHOUT_ADDED[func](*args[1:]).float(), args[0])
        if func is not aten.convolution.default or args[2] is None:
            return func(*args).float()
        bias, args[2] = args[2], None
        result = func(*args).float()
        return _added(result, bias.view(-1, *[1] * (result.dim() - 2)))


def _pays(func: Any, left: Tensor, right: Tensor, *_: Tensor) -> bool:
    if left.dtype is not torch.float32:
        return False
    return func in _CONVOLUTIONS or (left.shape[-1] >= _SHORT and left.numel() * right.shape[-1] >= _FEW)


def _added(result: Tensor, other: Tensor) -> Tensor:
    """In place, where fresh memory would cost more than the sum; a graph finds memory itself, and forbids less."""
    return result + other if is_fx_symbolic_tracing() else result.add_(other)


def _transpose_last(graph: GraphModule) -> None:
    """Transposes of rounded matrices for rounded transposes: one copy then serves a matrix and its transpose."""
    casts = [n for n in graph.graph.nodes if n.target is aten._to_copy.default and n.kwargs == _ROUNDED]
    while casts:
        cast = casts.pop()
        transpose: Any = cast.args[0]
        if transpose.target not in _TRANSPOSES:
            continue
        source, *order = transpose.args
        rounded = value_of(source).bfloat16()
        result = transpose.target(rounded, *order)
        if result.stride() != value_of(cast).stride():  # a copy of something expanded has a layout of its own
            continue
        with graph.graph.inserting_before(cast):
            casts.append(graph.graph.call_function(cast.target, (source,), cast.kwargs))
            last = graph.graph.call_function(transpose.target, (casts[-1], *order))
        casts[-1].meta["val"], last.meta["val"] = rounded, result
        replace(cast, last)
