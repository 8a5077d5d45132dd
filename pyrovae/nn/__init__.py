"""Networks, and the places where shapes are settled: joining or splitting contexts, flattening leading dimensions.

A *net builder* is any callable ``net(in_shape, out_shape) -> nn.Module`` whose module maps ``(rows, *in_shape)`` to
``(rows, *out_shape)``. A shape is an int for vectors and a tuple for anything with more dimensions, ``(C, H, W)`` for
images. The classes below are builders, and so are ``nn.Linear``, ``functools.partial(MLP, hidden=(300, 300))`` and a
function of your own.
"""

from pyrovae.nn.dense import MLP, Constant, GatedMLP
from pyrovae.nn.images import ConvNet, ResNet
from pyrovae.nn.joining import Join, SplitLinear, Splittable
from pyrovae.nn.sequences import GRUDecoder, GRUEncoder, SequenceDecoder
from pyrovae.nn.shapes import NetBuilder, Shape, batched, dims

__all__ = [
    "MLP",
    "Constant",
    "ConvNet",
    "GRUDecoder",
    "GRUEncoder",
    "GatedMLP",
    "Join",
    "NetBuilder",
    "ResNet",
    "SequenceDecoder",
    "Shape",
    "SplitLinear",
    "Splittable",
    "batched",
    "dims",
]
