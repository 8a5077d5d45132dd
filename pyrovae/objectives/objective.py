"""What an objective is."""

import abc
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.errors import ConfigError

__all__ = ["Objective", "reported", "rows"]


class Objective(abc.ABC):
    """A loss in nats per row, possibly changing over training.

    To write one, subclass and compute a scalar from the model's programs; where a weight follows a schedule, override
    ``at`` to return the objective with the schedule evaluated. Weights belong here, never into the program.

    An objective with an adversary returns several losses by name, ``{"model": ..., "critic": ...}``, and has a method
    ``parameters(model)`` that tells which parameters each of them trains; the first loss is the one that is reported.
    """

    @abc.abstractmethod
    def __call__(self, model: Any, *data: Tensor | None) -> Tensor:
        """The loss, a scalar in nats per row.

        Args:
            model: anything with Pyro programs ``model`` and ``guide``.
            *data: what both are called with, ``x`` of shape ``(batch, *x)`` first.
        """

    def at(self, t: float | Tensor) -> "Objective":
        """This objective at progress t in [0, 1]."""
        return self


def reported(losses: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The loss, or the first of several named ones."""
    return next(iter(losses.values())) if isinstance(losses, Mapping) else losses


def rows(data: tuple[Tensor | None, ...]) -> int:
    """How many rows a batch has.

    Raises:
        ConfigError: without any.
    """
    if not data or data[0] is None or len(data[0]) == 0:
        raise ConfigError("data: expected rows as the first argument, received none")
    return len(data[0])
