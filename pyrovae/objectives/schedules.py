"""Weights that change over training: functions of progress t in [0, 1]."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import ConfigError

__all__ = ["Cyclical", "Schedule", "Warmup"]


Schedule = Callable[[Any], Any]
"""A function of progress t in [0, 1], a number or a scalar tensor, that gives a weight of the same kind."""


class Warmup:
    r"""Rises from ``start`` to ``end`` over the first ``over`` of training, then stays: KL warm-up.

    Args:
        over: fraction of training, in (0, 1].
        start: first value.
        end: final value.

    References:
        Generating sentences from a continuous space (Bowman et al., 2016);
        Ladder variational autoencoders (Sonderby et al., 2016)

    Example:
        >>> Warmup(over=0.1)(0.05), Warmup(over=0.1)(0.5)
        (0.5, 1.0)
    """

    def __init__(self, over: float = 0.1, start: float = 0.0, end: float = 1.0) -> None:
        if not 0 < over <= 1:
            raise ConfigError(f"over: expected a fraction of training in (0, 1], received {over!r}")
        self.over, self.start, self.end = over, start, end

    def __call__(self, t: Any) -> Any:
        """The value at progress t."""
        return self.start + (self.end - self.start) * _clip(t / self.over)


class Cyclical:
    r"""Rises from ``start`` to ``end`` and falls back, ``cycles`` times; within a cycle over its first ``rise``.

    Args:
        cycles: number of cycles, M in the paper.
        rise: fraction of a cycle spent rising, R in the paper.
        start: value at the start of a cycle.
        end: value held until its end.

    References:
        Cyclical annealing schedule: a simple approach to mitigating KL vanishing (Fu et al., 2019)

    Example:
        >>> [Cyclical(cycles=2)(t) for t in (0.0, 0.125, 0.25, 0.49, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, cycles: int = 4, rise: float = 0.5, start: float = 0.0, end: float = 1.0) -> None:
        if cycles < 1 or not 0 < rise <= 1:
            raise ConfigError(f"cycles, rise: expected an int from 1 and a fraction, received {cycles!r}, {rise!r}")
        self.cycles, self.rise, self.start, self.end = cycles, rise, start, end

    def __call__(self, t: Any) -> Any:
        """The value at progress t; the last cycle ends at ``end``."""
        turns = t * self.cycles
        floor = torch.floor(turns) if isinstance(turns, Tensor) else math.floor(turns)
        last = self.cycles - 1
        whole = floor.clamp(max=last) if isinstance(floor, Tensor) else min(floor, last)
        return self.start + (self.end - self.start) * _clip((turns - whole) / self.rise)


def _clip(t: Any) -> Any:
    return t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)
