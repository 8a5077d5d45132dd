"""Matrix products in half precision, everything else as it was."""

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from pyrovae.graphs.nodes import aten, value_of
from pyrovae.graphs.simplify import simplify

__all__ = ["half_products"]

_SHORT = 64  # terms of a sum of products below which rounding the operands costs more than it saves
_PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.convolution.default: (0, 1),
    aten.convolution_backward.default: (0, 1, 2),
}


def half_products(graph: GraphModule) -> GraphModule:
    """Matrix products and convolutions in bfloat16, all else in float32: sums, losses, log-probabilities, weights.

    The operands are rounded to 8 bits of mantissa, the products summed in float32 and rounded once more.

    Returns:
        A new graph.
    """
    new = Graph()
    values: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        values[node] = _half(new, node, values) if node.target in _PRODUCTS else new.node_copy(node, values.__getitem__)
    return simplify(GraphModule(graph, new))


def _half(new: Graph, node: Node, values: dict[Node, Any]) -> Any:
    """The product's node with rounded operands; what is added to a product is added in float32."""
    args = [map_arg(a, values.__getitem__) for a in node.args]
    target: Any = node.target
    operand = value_of(node.args[_PRODUCTS[target][0]])
    short = "mm" in str(node.target) and operand.shape[-1] < _SHORT
    if operand.dtype is not torch.float32 or short or node.kwargs:
        return new.node_copy(node, values.__getitem__)
    for i in _PRODUCTS[target]:
        args[i] = _cast(new, args[i], node.args[i], torch.bfloat16)
    added = None
    if target in (aten.addmm.default, aten.baddbmm.default):
        added, args = args[0], args[1:]
        target = aten.mm.default if target is aten.addmm.default else aten.bmm.default
    elif target is aten.convolution.default and args[2] is not None:
        added, args[2] = new.call_function(aten.view.default, (args[2], [-1, *[1] * (value_of(node).dim() - 2)])), None
    result = new.call_function(target, tuple(args))
    if target is aten.convolution_backward.default:
        return _cast_each(new, result, node)
    result = _cast(new, result, node, torch.float32)
    return result if added is None else _with_meta(new.call_function(aten.add.Tensor, (result, added)), node)


def _cast(new: Graph, value: Any, like: Any, dtype: torch.dtype) -> Node:
    if value.target is aten.t.default:  # one rounded copy serves a matrix and its transpose
        source = like.args[0] if isinstance(like, Node) and like.target is aten.t.default else value.args[0]
        node = new.call_function(aten.t.default, (_cast(new, value.args[0], source, dtype),))
        node.meta["val"] = value_of(like).to(dtype)
        return node
    node = new.call_function(aten._to_copy.default, (value,), {"dtype": dtype})
    node.meta["val"] = value_of(like).to(dtype)
    return node


def _with_meta(node: Node, like: Node) -> Node:
    node.meta["val"] = value_of(like)
    return node


def _cast_each(new: Graph, result: Node, node: Node) -> Any:
    wanted = node.args[-1]
    parts = []
    for i, is_wanted in enumerate(wanted):  # pyright: ignore[reportArgumentType]
        part = new.call_function(operator.getitem, (result, i))
        dtype: dict[str, Any] = {"dtype": torch.float32}
        parts.append(new.call_function(aten._to_copy.default, (part,), dtype) if is_wanted else part)
    return parts
