"""Graphs made ready to run: by torch's own functions over memory that is no longer needed, or by a compiler."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyrovae.graphs.nodes import aten, is_random, is_view, replace, rewrite, roots_of, value_of, written_once

__all__ = ["biases_apart", "exact_expm1", "matrix_first", "noise_first", "reuse"]

_DIRECT: dict[Any, Callable[..., Any]] = {}
_ELEMENTWISE: set[Any] = set()


def _register(names: str, where: Any, *, elementwise: bool) -> None:
    for name in names.split():
        packet = getattr(aten, name)
        for overload in packet.overloads():
            if overload in ("default", "Tensor", "Scalar", "Tensor_Scalar", "Tensor_Tensor", "dim_IntList", "self"):
                _DIRECT[getattr(packet, overload)] = getattr(where, name)
                if elementwise:
                    _ELEMENTWISE.add(getattr(packet, overload))


_register(
    "add sub mul div neg exp log log1p expm1 sqrt reciprocal tanh sigmoid square sin cos maximum minimum",
    torch,
    elementwise=True,
)
_register(
    "mm addmm bmm t sum isnan any all unsqueeze cat eq logical_not stack where gather logsumexp",
    torch,
    elementwise=False,
)
_register("expand view", Tensor, elementwise=False)
_register("softplus", torch.nn.functional, elementwise=False)
_BIG = 2**14  # elements from which fresh memory costs more than the longer call
_FEW = range(16, 33)  # rows of which a product with a large transposed matrix takes longer than it need


def reuse(graph: GraphModule) -> GraphModule:
    """Write results of elementwise operations over operands that nobody reads again, and call torch directly.

    Fresh memory for every result costs page faults and cache misses; ``torch.mul`` is reached faster than
    ``torch.ops.aten.mul.Tensor``. The graph is then for running only.

    Returns:
        The same object.
    """
    roots = roots_of(graph.graph)
    last = _last_reads(graph, roots)
    for now, node in enumerate(graph.graph.nodes):
        call = _DIRECT.get(node.target)
        if call is None:
            continue
        operand = _overwritable(node, roots, last, now) if node.target in _ELEMENTWISE else None
        if operand is not None:
            node.kwargs = node.kwargs | {"out": operand}
            merged = roots[operand]
            last[merged] = max(last[merged], last.get(node, 0))
            roots.update({other: merged for other, root in roots.items() if root is node})
        node.target = call
    for name in list(graph._buffers):
        vars(graph)[name] = graph._buffers.pop(name)  # read at every run: an attribute, not a look-up
    graph.recompile()
    return graph


def _last_reads(graph: GraphModule, roots: dict[Node, Node]) -> dict[Node, int]:
    """The place in the graph after which a node's memory is not read any more."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    last: dict[Node, int] = {}
    for node in graph.graph.nodes:
        for user in node.users:
            last[roots[node]] = max(last.get(roots[node], 0), order[user])
    return last


def _overwritable(node: Node, roots: dict[Node, Node], last: dict[Node, int], now: int) -> Node | None:
    """An operand of the result's kind, in memory of its own, that nobody reads after this node."""
    value = value_of(node)
    if not isinstance(value, Tensor) or value.numel() < _BIG or value.requires_grad:
        return None
    for operand in node.all_input_nodes:
        root, held = roots[operand], value_of(operand)
        fresh = root.op == "call_function" and not is_view(root)
        alike = (held.shape, held.dtype, held.stride()) == (value.shape, value.dtype, value.stride())
        others = [n for n in node.all_input_nodes if n is not operand and roots[n] is root]
        if fresh and alike and not others and last[root] == now and held.is_contiguous():
            return operand
    return None


def biases_apart(graph: GraphModule) -> GraphModule:
    """``addmm`` as a product and a sum, in place: a compiler merges the sum with what follows.

    The product that adds by itself first copies the bias into every row of its result.

    Returns:
        The same object.
    """
    for node in [n for n in graph.graph.nodes if n.target is aten.addmm.default and not n.kwargs]:
        bias, left, right = node.args
        with graph.graph.inserting_before(node):
            product = graph.graph.call_function(aten.mm.default, (left, right))
            # an axis in between, lest the compiler put the two together again
            wide = graph.graph.call_function(aten.unsqueeze.default, (product, 0))
            total = graph.graph.call_function(aten.add.Tensor, (wide, bias))
            result = graph.graph.call_function(aten.squeeze.dim, (total, 0))
        replace(node, result)
    graph.recompile()
    return graph


def matrix_first(graph: GraphModule) -> GraphModule:
    """``x W'`` of few rows x as ``(W x')'``, in place and with the strides it had: what follows may view it.

    MKL rearranges the large matrix when it comes second and transposed, which takes longer than the product itself. Of
    fewer rows than a processor's vectors have numbers, what follows would lose more by going along the columns.

    Returns:
        The same object.
    """
    for node in [n for n in graph.graph.nodes if n.target is aten.mm.default]:
        rows, transposed = node.args
        if transposed.target is not aten.t.default:
            continue
        few, matrix = value_of(rows), value_of(transposed.args[0])
        plain = few.is_contiguous() and matrix.is_contiguous() and few.dtype is torch.float32
        if plain and few.device.type == "cpu" and len(few) in _FEW and matrix.numel() >= _BIG:
            rewrite(node, _matrix_first, rows, transposed.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _matrix_first(x: Any, matrix: Any) -> Any:
    turned = aten.t.default(aten.mm.default(matrix, aten.t.default(x)))
    return aten.clone.default(turned, memory_format=torch.contiguous_format)


def exact_expm1(graph: GraphModule) -> GraphModule:
    """``expm1(x)`` as ``tanh(x / 2) (exp(x) + 1)``, in place: a compiler's own is ``exp(x) - 1``, whatever x.

    Returns:
        The same object.
    """
    for node in [n for n in graph.graph.nodes if n.target is aten.expm1.default]:
        rewrite(node, lambda x: (x * 0.5).tanh() * (x.exp() + 1), *node.all_input_nodes)
    graph.recompile()
    return graph


def noise_first(graph: GraphModule) -> list[Callable[[], Tensor]]:
    """Take the draws out of a graph that is to be compiled, and make them its last inputs, in place.

    Compilers draw by generators of their own. That is possible where no draw depends on a number of the graph; else
    nothing is taken out.

    Returns:
        The draws, in their order.
    """
    random = [n for n in graph.graph.nodes if is_random(n)]
    if not all(written_once(n) and len(n.all_input_nodes) == 1 and value_of(n).is_contiguous() for n in random):
        return []
    last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
    draws: list[Callable[[], Tensor]] = []
    for node in random:
        draws.append(_draw(node))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"noise_{len(draws)}")
        last.meta = dict(node.meta)
        replace(node, last)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return draws


def _draw(node: Node) -> Callable[[], Tensor]:
    value, target, args, kwargs = value_of(node), node.target, node.args[1:], node.kwargs
    size, dtype, device = tuple(value.shape), value.dtype, value.device
    return lambda: target(torch.empty(size, dtype=dtype, device=device), *args, **kwargs)  # pyright: ignore
