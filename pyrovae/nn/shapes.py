"""Shapes: what they may be, and leading dimensions folded where a network knows one alone."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TypeAlias

from torch import Tensor, nn

__all__ = ["NetBuilder", "Shape", "Size", "batched", "dims", "is_size", "shapes_of", "widths_of"]

Shape: TypeAlias = int | tuple[int, ...]
# Not Callable[[Shape, Shape], ...]: a type checker would then refuse nn.Linear, which takes ints alone.
NetBuilder: TypeAlias = Callable[..., nn.Module]
Size: TypeAlias = tuple[int, ...]


def dims(shape: int | Sequence[int], name: str = "shape") -> tuple[int, ...]:
    """Return a shape as a tuple, ``16`` as ``(16,)``; ``name`` is what an error calls it.

    Raises:
        ValueError: If it is empty, or an entry is not a positive int.

    Example:
        >>> dims(16), dims((1, 28, 28))
        ((16,), (1, 28, 28))
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not sizes or not all(is_size(s) for s in sizes):
        raise ValueError(f"{name}: expected a positive int or a tuple of them, received {shape!r}")
    return tuple(map(int, sizes))


def batched(net: Callable[[Tensor], Tensor], x: Tensor, event_dims: int) -> Tensor:
    """Call a network that knows one leading dimension on any number of them.

    Particles and enumerated values come as leading dimensions, which Conv2d and normalisation layers would misread:
    they are folded into the rows and restored afterwards.

    Args:
        net: Maps ``(rows, *in_shape)`` to ``(rows, *out_shape)``.
        x: Input ``(*batch, *in_shape)``.
        event_dims: The number of dimensions of ``in_shape``.

    Returns:
        Output ``(*batch, *out_shape)``.

    Raises:
        ValueError: If ``x`` has fewer than ``event_dims`` dimensions.

    Example:
        >>> import torch
        >>> batched(nn.Conv2d(1, 8, 3), torch.zeros(7, 5, 1, 28, 28), event_dims=3).shape
        torch.Size([7, 5, 8, 26, 26])
    """
    split = x.dim() - event_dims
    if split < 0:
        raise ValueError(f"batched: expected at least {event_dims} dimensions, received shape {tuple(x.shape)}")
    if split == 1:
        return net(x)
    batch, event = x.shape[:split], x.shape[split:]
    # Not reshape(-1, ...), which is ambiguous when there are no rows.
    y = net(x.reshape(math.prod(batch), *event))
    return y.reshape(*batch, *y.shape[1:])


def is_size(size: object) -> bool:
    """Whether it is a positive int; numpy's ints count, bools do not."""
    return isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0


def widths_of(widths: Sequence[int], name: str) -> tuple[int, ...]:
    """Return widths of layers, none of them too, as a tuple; ``name`` is what an error calls them.

    Raises:
        ValueError: If an entry is not a positive int.
    """
    if not isinstance(widths, Sequence) or not all(is_size(w) for w in widths):
        raise ValueError(f"{name}: expected a sequence of positive ints, received {widths!r}")
    return tuple(map(int, widths))


def shapes_of(parts: Sequence[Tensor]) -> str:
    """The shapes of tensors, for an error."""
    return "shapes " + ", ".join(str(tuple(p.shape)) for p in parts)
