"""What every net builder of this room has in common."""

import abc
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from pyrovae.nn.shapes import Shape

__all__ = ["Activation", "Layered", "Norm", "check_builders"]

Activation: TypeAlias = Callable[[], nn.Module]
Norm: TypeAlias = Callable[[int], nn.Module]


class Layered(nn.Module, abc.ABC):
    """A network between two shapes, which keeps the arguments it was built with as attributes of the same names."""

    layers: nn.Sequential

    @abc.abstractmethod
    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = in_shape, out_shape

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, *in_shape)`` to ``(rows, *out_shape)``."""
        return self.layers(x)


def check_builders(**builders: object) -> None:
    """Refuse an activation or a normalisation that is built: every layer gets one of its own.

    Raises:
        ValueError: If one is a module.
    """
    for name, builder in builders.items():
        if isinstance(builder, nn.Module):
            example = {"activation": "nn.ReLU", "norm": "nn.BatchNorm1d"}[name]
            raise ValueError(f"{name}: expected a class such as {example}, received the instance {builder!r}")
