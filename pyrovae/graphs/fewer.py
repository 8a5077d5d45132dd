"""Softplus and the log-probability of binary data in fewer instructions: for a graph that is to be compiled.

With ``e = exp(-|a|)`` in (0, 1], ``softplus(a) = max(a, 0) + log1p(e)``, and a Bernoulli's log-probability is a sum of
such terms. Compiled code takes most of its time for ``log1p`` of any argument. Between 0 and 1 a polynomial is as
accurate as float32; and of a sum, one logarithm of a product does for many terms: no factor ``1 + e`` exceeds 2.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch.fx import GraphModule, Node

from pyrovae.graphs.nodes import aten, is_view, rewrite, value_of

__all__ = ["fewer_instructions"]

_DEGREE = 9  # relative error 1.5e-7 in float32, of which further terms would take nothing away
_SOFTPLUS = {(), (1,), (1, 20)}  # beta, and from where on it is the identity, which rounding sees to here
_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}
_FACTORS = 98  # of one product, at most 2^98, which float32 holds
_LANES = 16  # products that a processor forms side by side


def fewer_instructions(graph: GraphModule) -> GraphModule:
    """Softplus, its derivative, and sums of cross-entropies with logits, anew, in place, where they are of float32.

    Softplus where it is an activation: as a term of a density, of which others may leave little, it is the compiler's.

    Returns:
        The same object.
    """
    for node in list(graph.graph.nodes):
        if node.target is aten.softplus.default and node.args[1:] in _SOFTPLUS and _single(node) and _multiplied(node):
            rewrite(node, _softplus, node.args[0])
        elif node.target is aten.softplus_backward.default and node.args[2:] == (1, 20) and _single(node):
            rewrite(node, _softplus_backward, *node.args[:2])
        elif node.target is aten.sum.dim_IntList and (terms := _summed_terms(node)) is not None:
            shape = value_of(node.args[0]).shape
            rewrite(node, functools.partial(_sum_of_cross_entropies, shape=shape), *terms)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _single(node: Any) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32


def _multiplied(node: Node) -> bool:
    """Whether the value is a factor of matrix products or convolutions."""
    return any(user.target in _PRODUCTS or (is_view(user) and _multiplied(user)) for user in node.users)


def _summed_terms(node: Node) -> tuple[Any, ...] | None:
    """Logits and data, if the node sums their cross-entropies over the last dimension, and nothing else reads those."""
    source: Any = node.args[0]
    flat = source.args[0] if source.target is aten.view.default else source
    if flat.target is not aten.binary_cross_entropy_with_logits.default or flat.args[2:] != (None, None, 0):
        return None
    alone = len(flat.users) == len(source.users) == 1
    last = node.args[1:] == ([-1],) and not node.kwargs
    products = last and _factors(value_of(source).shape[-1]) > 1
    return flat.args[:2] if alone and products and _single(flat) else None


def _softplus(a: Any) -> Any:
    return a.clamp(min=0) + _log1p((-a.abs()).exp())


def _softplus_backward(gradient: Any, a: Any) -> Any:
    return gradient * a.sigmoid()


def _sum_of_cross_entropies(logits: Any, x: Any, shape: Sequence[int]) -> Any:
    """``sum [max(a, 0) - x a + log1p(e)]`` over the last dimension of the terms in this shape."""
    linear = ((1 - x) * logits - logits.clamp(max=0)).reshape(shape).sum(-1)
    factors = _factors(shape[-1])
    odds = (1 + (-logits.abs()).exp()).reshape(*shape[:-1], factors, shape[-1] // factors)
    return linear + odds.prod(-2).log().sum(-1)


def _factors(terms: int) -> int:
    """How many go into one product: as many as may, of those that leave enough products; 1 if none do."""
    return max(n for n in range(1, _FACTORS + 1) if n == 1 or (terms % n == 0 and terms // n >= _LANES))


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
