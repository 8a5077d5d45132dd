"""Softplus, and what is made of it, in fewer instructions: for a graph that is to be compiled.

With ``e = exp(-|a|)`` in (0, 1], ``softplus(a) = max(a, 0) + log1p(e)``. A Bernoulli's log-probability is made of it,
and its derivative by the logits, ``sigmoid(a)``, is 1 or e, over ``1 + e``: the two share an exponential. That of
softplus is ``-expm1(-softplus(a))``, for which a need not be kept. In compiled code ``log1p`` of any argument is what
takes most of the time; between 0 and 1 a polynomial is as accurate as float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch.fx import GraphModule, Node, Proxy

from pyrovae.graphs.nodes import aten, replace, value_of

__all__ = ["fewer_instructions"]

_DEGREE = 9  # relative error 1.5e-7 in float32, of which further terms would take nothing away
_SOFTPLUS = {(), (1,), (1, 20)}  # beta, and where the sum with log1p(e) is rounded to a


def fewer_instructions(graph: GraphModule) -> GraphModule:
    """Softplus, cross-entropy with logits and their derivatives anew, in place, where they are of float32.

    Returns:
        The same object.
    """
    nodes = [n for n in graph.graph.nodes if isinstance(value_of(n), torch.Tensor)]
    nodes = [n for n in nodes if value_of(n).dtype is torch.float32 and not n.kwargs]
    for node in [n for n in nodes if n.target is aten.binary_cross_entropy_with_logits.default]:
        if node.args[2:] == (None, None, 0):
            for sigmoid in [n for n in node.args[0].users if n in nodes and n.target is aten.sigmoid.default]:
                _rewrite(sigmoid, _sigmoid, *sigmoid.args)
            _rewrite(node, _cross_entropy, *node.args[:2])
    for node in [n for n in nodes if n.target is aten.softplus.default and n.args[1:] in _SOFTPLUS]:
        for backward in [n for n in node.args[0].users if n.target is aten.softplus_backward.default]:
            if backward.args[1] is node.args[0] and backward.args[2:] == (1, 20):
                _rewrite(backward, _softplus_backward, backward.args[0], node)
        _rewrite(node, _softplus, node.args[0])
    graph.graph.lint()
    graph.recompile()
    return graph


def _rewrite(node: Node, function: Callable[..., Any], *args: Any) -> None:
    with node.graph.inserting_before(node):
        replace(node, function(*map(Proxy, args)).node)


def _softplus(a: Any) -> Any:
    return a.clamp(min=0) + _log1p(_tail(a))


def _softplus_backward(gradient: Any, softplus: Any) -> Any:
    return -gradient * (-softplus).expm1()


def _cross_entropy(logits: Any, x: Any) -> Any:
    return (1 - x) * logits - logits.clamp(max=0) + _log1p(_tail(logits))


def _sigmoid(a: Any) -> Any:
    tail = _tail(a)
    return torch.where(a >= 0, 1.0, tail) / (1 + tail)


def _tail(a: Any) -> Any:
    return (-a.abs()).exp()


def _log1p(e: Any) -> Any:
    """For e in [0, 1], by Horner's rule."""
    *lower, total = _coefficients()
    for c in reversed(lower):
        total = total * e + c
    return total * e


@functools.cache
def _coefficients() -> list[float]:
    """Of ``log1p(e) / e``, interpolated at Chebyshev's points between 0 and 1."""
    series = Chebyshev.interpolate(lambda e: np.log1p(e) / e, _DEGREE, domain=[0, 1])
    return series.convert(kind=Polynomial).coef.tolist()
