"""What is asked of the nodes of a captured graph: values, views, writes, draws."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

__all__ = [
    "EMPTY",
    "aten",
    "changes_arguments",
    "copied",
    "is_random",
    "is_view",
    "mutated",
    "replace",
    "rewrite",
    "roots_of",
    "value_of",
    "written_once",
]

aten = torch.ops.aten

EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}


def copied(graph: GraphModule) -> GraphModule:
    """Another graph of the same constants."""
    new = Graph()
    values: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        values[node] = new.node_copy(node, values.__getitem__)
    return GraphModule(graph, new)


def replace(node: Node, by: Any) -> None:
    """Let another node stand where this one stood."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def rewrite(node: Node, function: Callable[..., Any], *args: Node) -> None:
    """Let the operations of a function of other nodes stand where this one stood."""
    tracer = GraphAppendingTracer(node.graph)
    with node.graph.inserting_before(node):
        result = function(*(Proxy(a, tracer) for a in args)).node
    result.meta = dict(node.meta)
    replace(node, result)


def value_of(node: Any) -> Any:
    """What tracing says of the node's value: a tensor of its shape, type and strides without numbers."""
    return node.meta.get("val") if isinstance(node, Node) else None


def changes_arguments(node: Node) -> bool:
    """Whether the operation writes into what it is given; batch normalisation does without saying so."""
    return isinstance(node.target, torch._ops.OpOverload) and (
        node.target._schema.is_mutable or "batch_norm" in node.target._schema.name
    )


def is_random(node: Node) -> bool:
    """Whether the operation draws from a generator."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def is_view(node: Node) -> bool:
    """Whether the result lies in the memory of the first argument."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(r.alias_info is not None and not r.alias_info.is_write for r in node.target._schema.returns)


def mutated(node: Node) -> bool:
    """Whether something writes into the node's memory: then when it is read matters, and it stays as it is."""
    root = node
    while is_view(root) and isinstance(root.args[0], Node):
        root = root.args[0]
    stack = [root]
    while stack:
        current = stack.pop()
        for user in current.users:
            if _writes_into(user, current):
                return True
            if is_view(user):
                stack.append(user)
    return changes_arguments(root) and not written_once(root)


def _writes_into(user: Node, node: Node) -> bool:
    """Whether the operation writes into this one of its arguments."""
    if not changes_arguments(user):
        return False
    schema: Any = user.target._schema  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    statistics = ("running_mean", "running_var") if "batch_norm" in schema.name else ()
    for place, argument in enumerate(schema.arguments):
        given = user.args[place] if place < len(user.args) else user.kwargs.get(argument.name)
        written = argument.name in statistics or (argument.alias_info is not None and argument.alias_info.is_write)
        if written and (given is node or (isinstance(given, (list, tuple)) and node in given)):
            return True
    return False


def written_once(node: Node) -> bool:
    """Noise drawn into fresh memory, ``normal_(empty())``, which nothing reads or writes besides."""
    source = node.args[0] if node.args else None
    return isinstance(source, Node) and source.target in EMPTY and len(source.users) == 1


def roots_of(nodes: Graph) -> dict[Node, Node]:
    """The node whose memory each node's value lies in."""
    roots: dict[Node, Node] = {}
    for node in nodes.nodes:
        source = node.args[0] if node.args else None
        in_place = changes_arguments(node)
        roots[node] = roots[source] if isinstance(source, Node) and (is_view(node) or in_place) else node
    return roots
