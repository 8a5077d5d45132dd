"""Rewrites of captured graphs that leave every number as it is, bit for bit.

A captured graph holds what autograd and Pyro needed in general, such as sums with 0, products with 1, questions asked
twice, and costs a few microseconds for every node. Constants are worked out once.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from pyrovae.graphs.nodes import (
    EMPTY,
    aten,
    changes_arguments,
    is_random,
    mutated,
    replace,
    roots_of,
    value_of,
)

__all__ = ["prepare", "simplify"]

_FACTORIES = {
    aten.full.default,
    aten.full_like.default,
    aten.ones.default,
    aten.ones_like.default,
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.scalar_tensor.default,
    aten.eye.default,
    aten.eye.m,
}
_COPIES = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
_LARGEST_CONSTANT = 2**16  # elements; more would trade memory traffic for arithmetic


def prepare(graph: GraphModule, tensors: Sequence[Tensor]) -> tuple[GraphModule, list[Tensor], list[Tensor], bool]:
    """Simplify a captured graph and settle what goes in and out.

    Args:
        graph: whose first inputs are ``tensors``, and whose last output is the decision.
        tensors: those that are the same at every run.

    Returns:
        The graph; the tensors that it reads, in the order of its first inputs; those that it writes into; and whether
        its last output is still a decision, or was taken out because it never depends on anything.
    """
    references = _references_as_inputs(graph, len(tensors))
    simplify(graph)
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    reads, writes = [], []
    for node, tensor in zip(inputs, [*tensors, *references], strict=False):
        if not node.users:
            graph.graph.erase_node(node)
            continue
        reads.append(tensor)
        if mutated(node):
            writes.append(tensor)
    decides = _settle_outputs(graph)
    graph.recompile()
    return graph, reads, writes, decides


def simplify(graph: GraphModule) -> GraphModule:
    """Take out what does nothing and work out what never changes, in place.

    Args:
        graph: what stands in it by reference never changes: what does is an input.

    Returns:
        The same object.
    """
    nodes = graph.graph
    for node in list(nodes.nodes):
        if node.target in _COPIES and not mutated(node):
            replace(node, node.args[0])
    _literals(graph)
    for _ in range(3):  # each pass uncovers work for the next
        for node in list(nodes.nodes):
            same = _does_nothing(node)
            if same is not None and not mutated(node) and not mutated(same):
                replace(node, same)
        for node in [n for n in nodes.nodes if n.target is aten.neg.default]:
            _sign_last(node)
        _fold(graph)
        _merge(nodes)
        nodes.eliminate_dead_code()
    graph.recompile()
    return graph


def _references_as_inputs(graph: GraphModule, place: int) -> list[Tensor]:
    """Make every tensor that stands in the graph by reference an input, after the first ones.

    A compiler might take their numbers for constants, and they can change: they belong to the user.
    """
    last = [n for n in graph.graph.nodes if n.op == "placeholder"][place - 1]
    literal = {n.args[0] for n in graph.graph.nodes if n.target is aten.lift_fresh_copy.default}
    found: dict[str, Node] = {}
    for node in [n for n in graph.graph.nodes if n.op == "get_attr" and n not in literal]:
        name = str(node.target)
        if name not in found:
            with graph.graph.inserting_after(last):
                last = found[name] = graph.graph.placeholder(f"reference_{len(found)}")
            last.meta["val"] = getattr(graph, name)
        replace(node, found[name])
    return [getattr(graph, name) for name in found]


def _settle_outputs(graph: GraphModule) -> bool:
    """Outputs in memory of their own, since whoever gets a gradient may write into it; no decision that is settled."""
    output = next(n for n in graph.graph.nodes if n.op == "output")
    *results, decision = output.args[0]
    roots, seen = roots_of(graph.graph), set()
    for i, node in enumerate(results):
        shared = roots[node] in seen or roots[node].op != "call_function" or 0 in value_of(node).stride()
        if shared:
            with graph.graph.inserting_before(output):
                results[i] = graph.graph.call_function(aten.clone.default, (node,))
            results[i].meta = dict(node.meta)
        seen.add(roots[node])
    if decision.op == "call_function":  # all(stack(...))
        asked = [n for n in decision.args[0].args[0] if not (n.op == "get_attr" and bool(getattr(graph, n.target)))]
        decision.args[0].args = (asked,)
        if len(asked) == 1:
            replace(decision, asked[0])
            decision = asked[0]
    settled = decision.op == "get_attr" and bool(getattr(graph, decision.target))
    output.args = (results if settled else [*results, decision],)
    graph.graph.eliminate_dead_code()
    return not settled


def _does_nothing(node: Node) -> Node | None:
    """The argument that the node gives back unchanged, if it does."""
    target: Any = node.target
    args: Any = node.args
    if not args or not isinstance(args[0], (Node, list, tuple)):
        return None
    same: Any = args[0]
    shaped = target in (aten.expand.default, aten.view.default, aten._to_copy.default)
    if target in (aten.any.default, aten.all.default, aten._is_all_true.default) and value_of(same).dim() == 0:
        return same if value_of(same).dtype is torch.bool else None
    if target is aten.cat.default and len(args[0]) == 1:
        same, shaped = args[0][0], True
    if target is aten.mul.Tensor and _number(same) == 1:
        same, shaped = args[1], True
    undone = {aten.neg.default: aten.neg.default, aten.t.default: aten.t.default}.get(target)
    if undone is not None and isinstance(same, Node) and same.target is undone:
        return same.args[0]  # pyright: ignore[reportReturnType]
    if not (shaped or _neutral(node)) or not isinstance(same, Node):
        return None
    new, old = value_of(node), value_of(same)
    alike = isinstance(new, Tensor) and isinstance(old, Tensor) and (new.dtype, new.device) == (old.dtype, old.device)
    return same if alike and new.shape == old.shape and new.stride() == old.stride() else None


def _neutral(node: Node) -> bool:
    """Whether the node multiplies by 1, or adds a 0 that changes no sign of another, but maybe that of a scalar."""
    number = _number(node.args[1]) if len(node.args) > 1 else None
    if node.target in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.pow.Tensor_Scalar):
        return number == 1
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or number != 0:
        return False
    subtracted = node.target is aten.sub.Tensor and math.copysign(1, number) > 0
    return subtracted or value_of(node).dim() == 0


def _number(argument: Any) -> float | None:
    """What an operand is in every element, if it is the same number everywhere in every run."""
    if isinstance(argument, Node) and argument.op == "get_attr":
        value = getattr(argument.graph.owning_module, str(argument.target))
        return value.flatten()[0].item() if value.is_floating_point() and value.numel() and _equal(value) else None
    return argument if isinstance(argument, (int, float)) else None


def _sign_last(node: Node) -> None:
    """``sum(-x) = -sum(x)``, exactly: the sign costs less after the sum than before."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.target not in (aten.view.default, aten.sum.dim_IntList, aten.sum.default):
        return
    source = node.args[0]
    if mutated(node) or mutated(user) or mutated(source):  # pyright: ignore[reportArgumentType]
        return
    with node.graph.inserting_after(user):
        sign = node.graph.call_function(aten.neg.default, (user,))
    sign.meta = dict(user.meta)
    user.replace_all_uses_with(sign, delete_user_cb=lambda n: n is not sign)
    user.replace_input_with(node, source)  # pyright: ignore[reportArgumentType]
    node.graph.erase_node(node)
    _sign_last(sign)


def _literals(graph: GraphModule) -> None:
    """Tensors made from numbers within the program, ``torch.tensor(1.)``, are constants."""
    for node in [n for n in graph.graph.nodes if n.target is aten.lift_fresh_copy.default]:
        source = node.args[0]
        if isinstance(source, Node) and source.op == "get_attr" and not mutated(node):
            _constant(graph, node, getattr(graph, str(source.target)).clone())


def _constant(graph: GraphModule, node: Node, value: Tensor) -> Node:
    """The node of a number instead of the one that computes it."""
    if _one_number(node, value):
        value = value.flatten()[0].clone().expand(value.shape)
    name = f"_folded{sum(n.startswith('_folded') for n in vars(graph) | graph._buffers)}"
    graph.register_buffer(name, value, persistent=False)
    with graph.graph.inserting_before(node):
        new = graph.graph.get_attr(name)
    new.meta = dict(node.meta)
    replace(node, new)
    return new


def _one_number(node: Node, value: Tensor) -> bool:
    """Whether one number can stand for all, read faster than many: sums and products would add it up differently."""
    pointwise = all(
        isinstance(u.target, torch._ops.OpOverload) and torch.Tag.pointwise in u.target.tags for u in node.users
    )
    return pointwise and value.numel() > 1 and _equal(value)


def _equal(value: Tensor) -> bool:
    return bool((value == value.flatten()[:1]).all())


def _fold(graph: GraphModule) -> None:
    """Work out what depends on nothing."""
    known = {n: getattr(graph, str(n.target)) for n in graph.graph.nodes if n.op == "get_attr"}
    for node in list(graph.graph.nodes):
        if not _foldable(node, known):
            continue
        # a factory takes no more than the likeness of a tensor
        result = _run(node, _like if node.target in _FACTORIES else known.__getitem__)
        if result.numel() <= _LARGEST_CONSTANT or _one_number(node, result):
            new = _constant(graph, node, result)
            known[new] = getattr(graph, str(new.target))


def _foldable(node: Node, known: dict[Node, Tensor]) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    factory, sources, value = node.target in _FACTORIES, node.all_input_nodes, value_of(node)
    if not factory and not (sources and all(n in known for n in sources)):
        return False
    alike = factory or all(_equal(known[n]) for n in sources)  # then the result may be one number, however large
    small = isinstance(value, Tensor) and (alike or value.numel() <= _LARGEST_CONSTANT)
    random = is_random(node) or node.target in EMPTY
    return small and not random and not changes_arguments(node) and not mutated(node)


def _like(node: Node) -> Tensor:
    value = value_of(node)
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def _run(node: Node, value: Callable[[Node], Tensor]) -> Tensor:
    args, kwargs = map_arg((node.args, node.kwargs), value)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def _merge(nodes: Graph) -> None:
    """Compute once what is asked twice."""
    seen: dict[Any, Node] = {}
    for node in list(nodes.nodes):
        if node.op == "get_attr":
            key: Any = ("get_attr", node.target)
        elif node.op == "call_function" and _pure(node):
            key = (node.target, _hashable(node.args), _hashable(tuple(sorted(node.kwargs.items()))))
        else:
            continue
        if key in seen and not mutated(node) and not mutated(seen[key]):
            replace(node, seen[key])
        else:
            seen.setdefault(key, node)


def _pure(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    random = is_random(node) or node.target in EMPTY
    return not random and not changes_arguments(node) and not any(mutated(n) for n in node.all_input_nodes)


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    # 1, 1.0 and True are equal and mean different things
    return value if isinstance(value, Node) else (type(value), str(value))
