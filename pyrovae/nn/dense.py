"""Networks of vectors: fully connected layers, and a constant where there is nothing to take in."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyrovae.nn.joining import Splittable, affine, concatenate
from pyrovae.nn.layered import Activation, Layered, Norm, check_builders
from pyrovae.nn.shapes import Shape, batched, dims, shapes_of, widths_of

__all__ = ["MLP", "Constant", "GatedMLP"]


class _Dense(Layered, Splittable):
    """Fully connected layers, the first of which takes parts as `SplitLinear` does."""

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Map ``(rows, *in_shape)`` to ``(rows, *out_shape)``, or parts of a vector to ``(*batch, *out_shape)``.

        With parts the first layer's parameters are used without calling it, so that no hook on that layer runs.
        """
        if not more:
            return self.layers(x)
        parts = (x, *more)
        if not all(p.dim() for p in parts) or (sum(p.shape[-1] for p in parts),) != dims(self.in_shape):
            name = type(self).__name__
            raise ValueError(
                f"{name}: expected parts of one input of shape {self.in_shape}, received {shapes_of(parts)}"
            )
        first = self.layers[0]
        if type(first) is not nn.Linear:  # replaced or parametrised: what it does with its weight is its own affair
            return batched(self.layers, concatenate(parts), 1)
        return batched(self.layers[1:], affine(parts, first.weight, first.bias), 1)


class MLP(_Dense):
    """A multilayer perceptron: ``h_i = activation(norm(W_i h_{i-1} + b_i))``, then a linear output.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: Shape of one output.
        hidden: Widths of the hidden layers; ``()`` makes the network linear.
        activation: Builds an activation, such as the class ``nn.ReLU``.
        norm: Builds a normalisation of so many units, such as the class ``nn.BatchNorm1d``; None for none.

    Raises:
        ValueError: If a shape or a width is not made of positive ints, or activation or norm is not a class.

    Example:
        >>> MLP((1, 28, 28), 16, hidden=(300, 300))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int] = (400,),
        activation: Activation = nn.ReLU,
        norm: Norm | None = None,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden, self.activation, self.norm = hidden, activation, norm
        check_builders(activation=activation, norm=norm)
        normed = (lambda size: []) if norm is None else (lambda size: [norm(size)])
        self.layers = _dense(in_shape, out_shape, hidden, lambda i, o: [nn.Linear(i, o), *normed(o), activation()])


class GatedMLP(_Dense):
    """A multilayer perceptron with gates: ``h_i = (W_i h_{i-1} + b_i) * sigmoid(V_i h_{i-1} + c_i)``, linear output.

    ``W`` and ``V`` are the upper and lower half of one matrix, which is faster than two.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: Shape of one output.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: If a shape or a width is not made of positive ints.

    References:
        - *VAE with a VampPrior (Tomczak, Welling, 2018)*
        - *Language Modeling with Gated Convolutional Networks (Dauphin, Fan, Auli, Grangier, 2017)*

    Example:
        >>> GatedMLP(784, 40)(torch.zeros(5, 784)).shape
        torch.Size([5, 40])
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, hidden: Sequence[int] = (300, 300)) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden = hidden
        self.layers = _dense(in_shape, out_shape, hidden, lambda i, o: [nn.Linear(i, 2 * o), nn.GLU()])


class Constant(nn.Module):
    """A learned constant, zero at first: the network of a head without context.

    Args:
        shape: Shape of the constant.

    Raises:
        ValueError: If the shape is not made of positive ints.

    Example:
        >>> Constant((2, 3))().shape
        torch.Size([2, 3])
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.value = nn.Parameter(torch.zeros(dims(shape)))

    def forward(self) -> Tensor:
        """Return the parameter, of shape ``shape``."""
        return self.value


def _dense(
    in_shape: Shape, out_shape: Shape, hidden: Sequence[int], layer: Callable[[int, int], list[nn.Module]]
) -> nn.Sequential:
    ins, outs = dims(in_shape, "in_shape"), dims(out_shape, "out_shape")
    widths = (math.prod(ins), *widths_of(hidden, "hidden"))
    layers = [m for i, o in pairwise(widths) for m in layer(i, o)]
    flatten = [nn.Flatten()] if len(ins) > 1 else []
    unflatten = [nn.Unflatten(1, outs)] if len(outs) > 1 else []
    return nn.Sequential(*flatten, *layers, nn.Linear(widths[-1], math.prod(outs)), *unflatten)
