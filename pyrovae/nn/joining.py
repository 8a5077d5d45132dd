"""Several contexts as one input: joined, or kept apart where joining would repeat one of them."""

import abc
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyrovae.nn.shapes import Shape, Size, batched, dims, shapes_of, widths_of

__all__ = ["Join", "SplitLinear", "Splittable", "affine", "concatenate"]


class SplitLinear(nn.Module):
    """A linear layer whose input comes in parts: ``W [x_1; x_2; ...] + b = W_1 x_1 + W_2 x_2 + ... + b``.

    Function, initial values and names of parameters are those of ``nn.Linear(sum(in_features), out_features)`` on the
    concatenation. But a part that the concatenation would repeat is multiplied once: an image once for all values of an
    enumerated label, not once for each.

    Args:
        in_features: Size of each part.
        out_features: Size of the output.

    Raises:
        ValueError: If a size is not a positive int, or there is none.

    Example:
        >>> image, label = torch.zeros(5, 784), torch.eye(10)[:, None]
        >>> SplitLinear([784, 10], 400)(image, label).shape
        torch.Size([10, 5, 400])
    """

    def __init__(self, in_features: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._sizes = widths_of(in_features, "in_features")
        if not self._sizes:
            raise ValueError("in_features: expected the size of at least one part, received none")
        (size,) = dims((out_features,), "out_features")
        whole = nn.Linear(sum(self._sizes), size)
        self.weight, self.bias = whole.weight, whole.bias

    def forward(self, *parts: Tensor) -> Tensor:
        """Map parts ``(*batch_i, in_features[i])``, whose leading dimensions broadcast, to ``(*batch, out_features)``.

        Raises:
            ValueError: If the number, the sizes or the leading dimensions of the parts do not fit.
        """
        if len(parts) != len(self._sizes):
            raise ValueError(f"SplitLinear: expected {len(self._sizes)} parts, received {len(parts)}")
        for i, (part, size) in enumerate(zip(parts, self._sizes, strict=True)):
            if part.shape[-1:] != (size,):
                received = tuple(part.shape)
                raise ValueError(f"SplitLinear: part {i}: expected shape (*batch, {size}), received {received}")
        return affine(parts, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Splittable(nn.Module, abc.ABC):
    """A network of vectors that takes its input whole, ``net(x)``, or in parts, ``net(x_1, x_2, ...)``.

    A head with several contexts hands them over in parts where their leading dimensions differ, which spares repeating
    the smaller ones. Subclass it to write such a network of your own.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Map ``(rows, *in_shape)`` to ``(rows, *out_shape)``, or parts of a vector to ``(*batch, *out_shape)``.

        Args:
            x: The whole input, or its first part ``(*batch_1, size_1)``.
            *more: The other parts ``(*batch_i, size_i)``; the sizes sum to that of the whole, and the leading
                dimensions broadcast to ``batch``.
        """


class Join(nn.Module):
    """Join several contexts into one, which a network can take.

    With an image ``(C, H, W)`` among them, vectors become constant planes and everything is concatenated along the
    channels; without one, everything is concatenated as vectors. A single context is passed on unchanged.

    Args:
        shapes: One shape per context. Images must agree in height and width.

    Attributes:
        shape: The joint shape.

    Raises:
        ValueError: If there is no shape, a shape is malformed, or the shapes do not fit together.

    Example:
        >>> join = Join([(1, 28, 28), 10])
        >>> join.shape
        (11, 28, 28)
        >>> join(torch.zeros(5, 1, 28, 28), torch.zeros(7, 5, 10)).shape
        torch.Size([7, 5, 11, 28, 28])
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        super().__init__()
        if not isinstance(shapes, Sequence) or not shapes:
            raise ValueError(f"Join: expected a sequence of one shape per context, received {shapes!r}")
        self.shapes = shapes
        self._dims = [dims(s, f"Join: shape {i}") for i, s in enumerate(shapes)]
        self._plane = _common_plane(self._dims)
        joint = sum(s[0] if self._plane else math.prod(s) for s in self._dims)
        self.shape = shapes[0] if len(shapes) == 1 else (joint, *self._plane) if self._plane else joint

    def forward(self, *contexts: Tensor | None) -> Tensor:
        """Join contexts ``(*batch, *shapes[i])``, whose leading dimensions broadcast, to ``(*batch, *shape)``."""
        return self._whole(self._parts(contexts))

    def feed(self, network: nn.Module, *contexts: Tensor | None) -> Tensor:
        """Call a network from ``shape`` on contexts, which are joined, or stay apart where that spares work.

        They stay apart if they are vectors, their leading dimensions differ, and the network is `Splittable`.

        Args:
            network: Maps ``(rows, *shape)`` to ``(rows, *out_shape)``.
            *contexts: Tensors ``(*batch_i, *shapes[i])``, whose leading dimensions broadcast.

        Returns:
            Output ``(*batch, *out_shape)``.
        """
        parts = self._parts(contexts)
        if isinstance(network, Splittable) and not self._plane and _leads_differ(parts):
            return network(*parts)
        return batched(network, self._whole(parts), len(dims(self.shape)))

    def _parts(self, contexts: Sequence[Tensor | None]) -> list[Tensor]:
        if len(contexts) != len(self._dims):
            raise ValueError(f"Join: expected {len(self._dims)} contexts, received {len(contexts)}")
        tensors = [_with_event(c, d, i) for i, (c, d) in enumerate(zip(contexts, self._dims, strict=True))]
        if len(tensors) == 1:
            return tensors
        return [self._spread(c, len(d)) for c, d in zip(tensors, self._dims, strict=True)]

    def _whole(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else concatenate(parts, self._plane)

    def _spread(self, context: Tensor, event_dims: int) -> Tensor:
        if not self._plane:
            return context.flatten(-event_dims)
        return context[..., None, None] if event_dims == 1 else context


def affine(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """``W [x_1; x_2; ...] + b``, with every part multiplied before it is repeated.

    Where none is repeated, one product of the concatenation is faster than several with slices of the weight, by some
    10% with the way back. Where one is, splitting is at par if the repeated part is short (10 beside 50 that are not
    repeated) and up to five times faster if it is long; it costs some 0.05 ms more in calls, which only toys notice.
    """
    if not _leads_differ(parts):
        return linear(torch.cat(list(parts), -1), weight, bias)
    _common_batch(parts)  # which says what does not fit
    # Concatenation promotes types, so that a one-hot label may be integer; a product does not.
    dtype = functools.reduce(torch.promote_types, (p.dtype for p in parts))
    first, *others = weight.split([p.shape[-1] for p in parts], 1)
    y = linear(parts[0].to(dtype), first, bias)
    for part, columns in zip(parts[1:], others, strict=True):
        y = y + linear(part.to(dtype), columns)
    return y


def concatenate(parts: Sequence[Tensor], plane: Size = ()) -> Tensor:
    """Concatenate along the last dimension before the plane, over which vectors are spread."""
    channel = -1 - len(plane)
    batch = _common_batch(parts, channel)
    return torch.cat([p.expand(*batch, p.shape[channel], *plane) for p in parts], channel)


def _leads_differ(parts: Sequence[Tensor]) -> bool:
    """Whether a concatenation would repeat one of the parts (or give it a leading 1, which costs nothing)."""
    first, *others = (p.shape[:-1] for p in parts)
    return any(lead != first for lead in others)


def _common_batch(parts: Sequence[Tensor], channel: int = -1) -> Size:
    try:
        return tuple(torch.broadcast_shapes(*(p.shape[:channel] for p in parts)))
    except RuntimeError:
        raise ValueError(f"expected leading dimensions that broadcast, received {shapes_of(parts)}") from None


def _common_plane(shapes: Sequence[Size]) -> Size:
    planes = {s[1:] for s in shapes if len(s) == 3}
    if planes and (len(planes) > 1 or any(len(s) not in (1, 3) for s in shapes)):
        raise ValueError(f"Join: expected vectors and images of one height and width, received {shapes}")
    return planes.pop() if planes else ()


def _with_event(context: Tensor | None, event: Size, position: int) -> Tensor:
    if context is None or tuple(context.shape[-len(event) :]) != event:
        expected = ", ".join(map(str, ("*batch", *event)))
        received = None if context is None else tuple(context.shape)
        raise ValueError(f"Join: context {position}: expected shape ({expected}), received {received}")
    return context
