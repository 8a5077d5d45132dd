"""Networks of images: convolutions whose direction follows from the shapes."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor, nn

from pyrovae.nn.layered import Activation, Layered, check_builders
from pyrovae.nn.shapes import Shape, Size, dims, is_size, widths_of

__all__ = ["ConvNet", "ResNet"]

Pair: TypeAlias = tuple[int, int]
Block: TypeAlias = Callable[[int], list[nn.Module]]


class ConvNet(Layered):
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
        >>> import torch
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
        check_builders(activation=activation)
        self.layers = _convolutional(in_shape, out_shape, channels, lambda width: [activation()])


class ResNet(Layered):
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
        >>> import torch
        >>> ResNet((3, 32, 32), (8, 8, 8), channels=(16, 32))(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 8, 8, 8])
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, channels: Sequence[int] = (32, 64), blocks: int = 1) -> None:
        super().__init__(in_shape, out_shape)
        self.channels, self.blocks = channels, blocks
        if not is_size(blocks):
            raise ValueError(f"blocks: expected a positive int, received {blocks!r}")
        self.layers = _convolutional(in_shape, out_shape, channels, lambda width: _residuals(width, blocks))


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


def _convolutional(in_shape: Shape, out_shape: Shape, channels: Sequence[int], block: Block) -> nn.Sequential:
    ins, outs, widths = dims(in_shape, "in_shape"), dims(out_shape, "out_shape"), widths_of(channels, "channels")
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
