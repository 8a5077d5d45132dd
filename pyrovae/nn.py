"""Networks, and the places where shapes are settled: joining or splitting contexts, flattening leading dimensions.

A *net builder* is any callable ``net(in_shape, out_shape) -> nn.Module`` whose module maps ``(rows, *in_shape)`` to
``(rows, *out_shape)``. A shape is an int for vectors and a tuple for anything with more dimensions, ``(C, H, W)`` for
images. The classes below are builders, and so are ``nn.Linear``, ``functools.partial(MLP, hidden=(300, 300))`` and a
function of your own.
"""

import abc
import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = [
    "MLP",
    "Constant",
    "ConvNet",
    "GatedMLP",
    "Join",
    "NetBuilder",
    "ResNet",
    "Shape",
    "SplitLinear",
    "Splittable",
    "batched",
    "dims",
]

Shape: TypeAlias = int | tuple[int, ...]
# Not Callable[[Shape, Shape], ...]: a type checker would then refuse nn.Linear, which takes ints alone.
NetBuilder: TypeAlias = Callable[..., nn.Module]
Activation: TypeAlias = Callable[[], nn.Module]
Size: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]
Block: TypeAlias = Callable[[int], list[nn.Module]]


def dims(shape: int | Sequence[int], name: str = "shape") -> tuple[int, ...]:
    """Return a shape as a tuple, ``16`` as ``(16,)``; ``name`` is what an error calls it.

    Raises:
        ValueError: If it is empty, or an entry is not a positive int.

    Example:
        >>> dims(16), dims((1, 28, 28))
        ((16,), (1, 28, 28))
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not sizes or not all(_is_size(s) for s in sizes):
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
        self._sizes = _widths(in_features, "in_features")
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
        return _affine(parts, self.weight, self.bias)

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
        return parts[0] if len(parts) == 1 else _concatenate(parts, self._plane)

    def _spread(self, context: Tensor, event_dims: int) -> Tensor:
        if not self._plane:
            return context.flatten(-event_dims)
        return context[..., None, None] if event_dims == 1 else context


class _Layered(nn.Module, abc.ABC):
    """A network between two shapes, which keeps the arguments it was built with as attributes of the same names."""

    layers: nn.Sequential

    @abc.abstractmethod
    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = in_shape, out_shape

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, *in_shape)`` to ``(rows, *out_shape)``."""
        return self.layers(x)


class _Dense(_Layered, Splittable):
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
            raise ValueError(f"{name}: expected parts of one input of shape {self.in_shape}, received {_shapes(parts)}")
        first = self.layers[0]
        if type(first) is not nn.Linear:  # replaced or parametrised: what it does with its weight is its own affair
            return batched(self.layers, _concatenate(parts), 1)
        return batched(self.layers[1:], _affine(parts, first.weight, first.bias), 1)


class MLP(_Dense):
    """A multilayer perceptron: ``h_i = activation(W_i h_{i-1} + b_i)``, then a linear output.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: Shape of one output.
        hidden: Widths of the hidden layers; ``()`` makes the network linear.
        activation: Builds an activation, such as the class ``nn.ReLU``.

    Raises:
        ValueError: If a shape or a width is not made of positive ints, or the activation is not a class.

    Example:
        >>> MLP((1, 28, 28), 16, hidden=(300, 300))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, hidden: Sequence[int] = (400,), activation: Activation = nn.ReLU
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden, self.activation = hidden, activation
        _check_activation(activation)
        self.layers = _dense(in_shape, out_shape, hidden, lambda i, o: [nn.Linear(i, o), activation()])


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


class ConvNet(_Layered):
    """A convolutional network, whose direction follows from the shapes.

    Image to vector: one strided convolution per entry of ``channels``, each halving height and width, then a linear
    layer. Vector to image: the mirror image, with transposed convolutions. Image to image: halve or double until the
    output's size is reached, in as many stages as it takes, and convolve at one size in stages left over. Images may
    have any size, ``(1, 5, 7)`` too.

    Args:
        in_shape: Shape of one input, an image ``(C, H, W)`` or a vector.
        out_shape: Shape of one output, likewise; one of the two must be an image.
        channels: Channels per stage, from the finest to the coarsest.
        activation: Builds an activation, such as the class ``nn.ReLU``.

    Raises:
        ValueError: If neither shape is an image, one is neither image nor vector, or an entry is no positive int.

    Example:
        >>> ConvNet((1, 28, 28), 32)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 32])
        >>> ConvNet(16, (1, 28, 28))(torch.zeros(5, 16)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, channels: Sequence[int] = (32, 64), activation: Activation = nn.ReLU
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.channels, self.activation = channels, activation
        _check_activation(activation)
        self.layers = _convolutional(in_shape, out_shape, channels, lambda width: [activation()])


class ResNet(_Layered):
    """A convolutional network as `ConvNet`, with residual blocks at every size: ``h + W silu(V silu(h))``.

    Args:
        in_shape: Shape of one input, an image ``(C, H, W)`` or a vector.
        out_shape: Shape of one output, likewise; one of the two must be an image.
        channels: Channels per stage, from the finest to the coarsest.
        blocks: Residual blocks per stage.

    Raises:
        ValueError: As for `ConvNet`, or if ``blocks`` is not a positive int.

    References:
        - *Deep Residual Learning for Image Recognition (He, Zhang, Ren, Sun, 2016)*
        - *Identity Mappings in Deep Residual Networks (He, Zhang, Ren, Sun, 2016)*

    Example:
        >>> ResNet((3, 32, 32), (8, 8, 8), channels=(16, 32))(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 8, 8, 8])
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, channels: Sequence[int] = (32, 64), blocks: int = 1) -> None:
        super().__init__(in_shape, out_shape)
        self.channels, self.blocks = channels, blocks
        if not _is_size(blocks):
            raise ValueError(f"blocks: expected a positive int, received {blocks!r}")
        self.layers = _convolutional(in_shape, out_shape, channels, lambda width: _residuals(width, blocks))


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


class _Residual(nn.Module):
    """A residual block, activation first (so that the identity path stays untouched), without normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [layer for _ in range(2) for layer in (nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _residuals(width: int, blocks: int) -> list[nn.Module]:
    return [*(_Residual(width) for _ in range(blocks)), nn.SiLU()]


def _is_size(size: object) -> bool:
    return isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0


def _widths(widths: Sequence[int], name: str) -> tuple[int, ...]:
    if not isinstance(widths, Sequence) or not all(_is_size(w) for w in widths):
        raise ValueError(f"{name}: expected a sequence of positive ints, received {widths!r}")
    return tuple(map(int, widths))


def _check_activation(activation: object) -> None:
    if isinstance(activation, nn.Module):
        raise ValueError(f"activation: expected a class such as nn.ReLU, received the instance {activation!r}")


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


def _affine(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
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


def _leads_differ(parts: Sequence[Tensor]) -> bool:
    """Whether a concatenation would repeat one of the parts (or give it a leading 1, which costs nothing)."""
    first, *others = (p.shape[:-1] for p in parts)
    return any(lead != first for lead in others)


def _concatenate(parts: Sequence[Tensor], plane: Size = ()) -> Tensor:
    """Concatenate along the last dimension before the plane, over which vectors are spread."""
    channel = -1 - len(plane)
    batch = _common_batch(parts, channel)
    return torch.cat([p.expand(*batch, p.shape[channel], *plane) for p in parts], channel)


def _common_batch(parts: Sequence[Tensor], channel: int = -1) -> Size:
    try:
        return tuple(torch.broadcast_shapes(*(p.shape[:channel] for p in parts)))
    except RuntimeError:
        raise ValueError(f"expected leading dimensions that broadcast, received {_shapes(parts)}") from None


def _shapes(parts: Sequence[Tensor]) -> str:
    return "shapes " + ", ".join(str(tuple(p.shape)) for p in parts)


def _dense(
    in_shape: Shape, out_shape: Shape, hidden: Sequence[int], layer: Callable[[int, int], list[nn.Module]]
) -> nn.Sequential:
    ins, outs = dims(in_shape, "in_shape"), dims(out_shape, "out_shape")
    widths = (math.prod(ins), *_widths(hidden, "hidden"))
    layers = [m for i, o in pairwise(widths) for m in layer(i, o)]
    flatten = [nn.Flatten()] if len(ins) > 1 else []
    unflatten = [nn.Unflatten(1, outs)] if len(outs) > 1 else []
    return nn.Sequential(*flatten, *layers, nn.Linear(widths[-1], math.prod(outs)), *unflatten)


def _convolutional(in_shape: Shape, out_shape: Shape, channels: Sequence[int], block: Block) -> nn.Sequential:
    ins, outs, widths = dims(in_shape, "in_shape"), dims(out_shape, "out_shape"), _widths(channels, "channels")
    _check_images(ins, outs, widths)
    n = len(widths)
    # A vector stands for the size that its image reaches when halved once per stage.
    in_size = ins[1:] or tuple(max(1, s >> n) for s in outs[1:])
    out_size = outs[1:] or tuple(max(1, s >> n) for s in ins[1:])
    coarse = tuple(map(min, in_size, out_size))
    upwards = len(ins) == 1 or out_size != coarse
    downs, ups = _halvings(in_size, coarse, 0 if upwards else n), _halvings(out_size, coarse, n if upwards else 0)
    # Where more stages are needed than given, the coarsest width serves for the rest.
    before = (ins[0], *(widths[min(i, n - 1)] for i in range(len(downs) - 1)))
    after = (outs[0], *(widths[min(i, n - 1)] for i in range(len(ups) - 1)))
    if len(outs) == 1:
        middle = [nn.Flatten(), nn.Linear(before[-1] * math.prod(coarse), outs[0])]
    elif len(ins) == 1:
        middle = [nn.Linear(ins[0], after[-1] * math.prod(coarse)), nn.Unflatten(1, (after[-1], *coarse))]
    else:
        resize = [nn.Upsample(size=ups[-1], mode="bilinear")] if downs[-1] != ups[-1] else []
        middle = [*resize, nn.Conv2d(before[-1], after[-1], 3, padding=1)]
    return nn.Sequential(*_down(before, downs, block), *middle, *_up(after, ups, block))


def _check_images(ins: Size, outs: Size, widths: Size) -> None:
    if not widths:
        raise ValueError("channels: expected at least one stage, received none")
    for name, shape in (("in_shape", ins), ("out_shape", outs)):
        if len(shape) not in (1, 3):
            raise ValueError(f"{name}: expected an image (C, H, W) or a vector, received {shape}")
    if len(ins) == len(outs) == 1:
        raise ValueError(f"expected an image (C, H, W) on one side, received vectors {ins} and {outs}: use MLP")


def _halvings(fine: Size, coarse: Size, at_least: int) -> list[Size]:
    sizes = [fine]
    while len(sizes) <= at_least or any(s // 2 >= c for s, c in zip(sizes[-1], coarse, strict=True)):
        sizes.append(tuple(s // 2 if s // 2 >= c else s for s, c in zip(sizes[-1], coarse, strict=True)))
    return sizes


def _down(channels: Size, sizes: list[Size], block: Block) -> list[nn.Module]:
    layers = []
    for (i, o), (fine, coarse) in zip(pairwise(channels), pairwise(sizes), strict=True):
        kernel, stride, _ = _geometry(fine, coarse)
        layers += [nn.Conv2d(i, o, kernel, stride, padding=1), *block(o)]
    return layers


def _up(channels: Size, sizes: list[Size], block: Block) -> list[nn.Module]:
    layers = []
    for (o, i), (fine, coarse) in reversed(list(zip(pairwise(channels), pairwise(sizes), strict=True))):
        kernel, stride, extra = _geometry(fine, coarse)
        layers += [*block(i), nn.ConvTranspose2d(i, o, kernel, stride, padding=1, output_padding=extra)]
    return layers


def _geometry(fine: Size, coarse: Size) -> tuple[Pair, Pair, Pair]:
    """Return kernel, stride and output padding, with which ``fine`` becomes ``coarse`` and the other way round."""
    stride = (1 if fine[0] == coarse[0] else 2, 1 if fine[1] == coarse[1] else 2)
    # 4 is a multiple of stride 2, which leaves no checkerboard in transposed convolutions.
    kernel = (stride[0] + 2, stride[1] + 2)
    return kernel, stride, (fine[0] - coarse[0] * stride[0], fine[1] - coarse[1] * stride[1])
