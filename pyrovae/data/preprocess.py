"""Declared steps from rows as they are stored to rows as the model sees them; stored with the model."""

import abc
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import ConfigError, DataError

__all__ = ["Binarize", "DrawNormal", "Identity", "Preprocess", "Rescale", "Standardize", "Threshold"]

# A byte has 256 values and x / 255 is no multiple of 1 / 256: one byte of noise, its two middle values made one, is
# below x with probability t / 256, which is short of x / 255 or beyond it; a fresh draw for one cell in 256 makes up
# the difference, 255/256 t/256 + 1/256 r = x/255, and takes an r in [0, 1] for every x.
_X = np.arange(256)
_REDRAWN = (256 * 256 * _X - 255 * 255 * (_X + (_X > 127))) / (255 * 256)
_RATE = -math.log1p(-1 / 256)  # of a Poisson process that meets one cell in 256
_STREAMS = threading.local()
_CHUNK = 1 << 17  # cells at a time, for the cache


class Preprocess(abc.ABC):
    """One step, ``(*batch, *shape) -> (*batch, *shape)`` in the default floating type.

    It sees as many rows at once as suits the caller, several batches or part of the data, and keeps their order. A
    missing cell, NaN, stays NaN, and a random step draws as many numbers as without it.
    Constructor arguments are attributes of the same name, so that the step can be written to a file.
    """

    @abc.abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The rows as the model sees them.

        Args:
            x: rows as stored.
            generator: of a random step; None draws from the global one.
        """

    def inverse(self, x: Tensor) -> Tensor:
        """Rows as they would be stored, from rows as the model sees them; where that is impossible, those."""
        return x

    def fit(self, x: Tensor | np.ndarray) -> "Preprocess":
        """The step with what it takes from the training rows; most take nothing."""
        return self


class Identity(Preprocess):
    """The numbers as they are."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``x``."""
        return _floating(x)


class Rescale(Preprocess):
    """``x / maximum``: 8-bit images to [0, 1]; a density of x is then one of the rescaled values.

    Args:
        maximum: the largest value that is stored.
    """

    def __init__(self, maximum: float = 255.0) -> None:
        if not maximum > 0:
            raise ConfigError(f"maximum: expected a positive number, received {maximum!r}")
        self.maximum = maximum

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``x / maximum``."""
        return _floating(x) / self.maximum

    def inverse(self, x: Tensor) -> Tensor:
        """``x * maximum``."""
        return x * self.maximum


class Binarize(Preprocess):
    """Dynamic binarisation: every value a fresh draw of ``Bernoulli(x)`` each time the row is used.

    Rows are 8-bit (probability ``x / 255``, exactly) or lie in [0, 1].

    References:
        On the quantitative analysis of deep belief networks (Salakhutdinov and Murray, 2008)

    Example:
        >>> Binarize()(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw, 0 or 1."""
        if x.dtype == torch.uint8:
            hits = _bytes(x.cpu().contiguous().numpy().reshape(-1), _noise(generator))
        elif x.is_floating_point():
            p = x.detach().cpu().to(torch.promote_types(x.dtype, torch.float32)).contiguous().numpy().reshape(-1)
            hits = _noise(generator).random(p.size, dtype=p.dtype.type) < p
            drawn = torch.from_numpy(hits).view(x.shape).to(x.device)
            return torch.where(x.isnan(), torch.nan, _floating(drawn))
        else:
            raise DataError(f"Binarize: expected 8-bit integers or values in [0, 1], received {x.dtype}")
        return _floating(torch.from_numpy(hits).view(x.shape).to(x.device))


class DrawNormal(Preprocess):
    """A fresh draw of ``Normal(mean, scale)`` each time the row is used; a row holds both, shape ``(2, D)``.

    What M1+M2 is trained on, where mean and scale are those of q(z|x) under a model that saw no label: they are
    computed once, and M2 still sees another code of the row every time.

    References:
        Semi-supervised learning with deep generative models (Kingma, Rezende, Mohamed and Welling, 2014)

    Example:
        >>> DrawNormal()(torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]))
        tensor([[1., 2.]])
    """

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw, shape ``(*batch, D)``."""
        if x.dim() < 2 or x.shape[-2] != 2:
            raise DataError(
                f"DrawNormal: expected rows of means and scales, shape (rows, 2, D), received {tuple(x.shape)}: "
                "torch.stack([q.mean, q.stddev], 1) with q = model.encode(x)"
            )
        mean, scale = _floating(x).unbind(-2)
        noise = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=None if generator is None else generator.device
        )
        return mean + scale * noise.to(x.device)


class Threshold(Preprocess):
    """1 where a value exceeds the level, else 0; the same every time.

    Args:
        level: as the rows are stored.
    """

    def __init__(self, level: float = 0.5) -> None:
        self.level = level

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """0 or 1."""
        return torch.where(x.isnan(), torch.nan, _floating(x > self.level))


class Standardize(Preprocess):
    """``(x - mean) / scale`` per column, of the cells that are not missing; constant columns are only centred.

    Densities are then those of the standardised values.

    Args:
        mean: of each column; None takes it from the training rows.
        scale: standard deviation of each column; None takes it from the training rows.

    Example:
        >>> step = Standardize().fit(np.array([[0.0, 5.0], [2.0, 5.0]]))
        >>> step.mean, step.scale
        ([1.0, 5.0], [1.0, 1.0])
    """

    def __init__(self, mean: Sequence[float] | None = None, scale: Sequence[float] | None = None) -> None:
        self.mean, self.scale = mean, scale

    def fit(self, x: Tensor | np.ndarray) -> "Standardize":
        """The step with mean and standard deviation of these rows, read in pieces.

        Raises:
            DataError: for a column without a value.
        """
        cells = max(1, math.prod(x.shape[1:]))
        count, mean, squares = np.zeros((3, cells))
        for start in range(0, len(x), 4096):
            piece = np.asarray(x[start : start + 4096], dtype=np.float64).reshape(-1, cells)
            there = ~np.isnan(piece)
            n = there.sum(0)
            own = np.where(there, piece, 0).sum(0) / np.maximum(n, 1)
            squares += (np.where(there, piece - own, 0) ** 2).sum(0)
            squares += (own - mean) ** 2 * count * n / np.maximum(count + n, 1)
            mean += (own - mean) * n / np.maximum(count + n, 1)
            count += n
        if not count.all():
            column = np.unravel_index(int(count.argmin()), x.shape[1:])
            raise DataError(f"Standardize: column {', '.join(map(str, column))} is missing (NaN) in every row: drop it")
        variance, eps = squares / count, np.finfo(np.float64).eps
        constant = variance <= count * eps * variance + (count * mean * eps) ** 2  # but for rounding
        scale = np.where(constant, 1, np.sqrt(variance))
        found: list[Any] = [np.reshape(moment, x.shape[1:]).tolist() for moment in (mean, scale)]
        return Standardize(*found)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(x - mean) / scale``."""
        mean, scale = self._known()
        return _floating((x.double() - mean) / scale)

    def inverse(self, x: Tensor) -> Tensor:
        """``x * scale + mean``."""
        mean, scale = self._known()
        return _floating(x.double() * scale + mean)

    def _known(self) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.scale is None:
            raise ConfigError("Standardize: mean and scale are unknown; call fit(x) with the training rows first")
        return torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.scale, dtype=torch.float64)


def _floating(x: Tensor) -> Tensor:
    x = x.view(torch.uint8) if x.dtype == torch.bool else x  # torch converts bytes four times as fast as booleans
    return x.to(torch.get_default_dtype())


def _noise(generator: torch.Generator | None) -> np.random.Generator:
    """A fast stream that depends on three draws alone; torch's own takes ten times as long for a byte.

    One per thread and only its state is new: making a stream takes as long as binarising a batch.
    """
    device = "cpu" if generator is None else generator.device
    words = torch.empty(3, dtype=torch.int64, device=device).random_(generator=generator).tolist()
    if not hasattr(_STREAMS, "noise"):
        _STREAMS.noise = np.random.Generator(np.random.SFC64(0))
    bits = _STREAMS.noise.bit_generator
    state = {"state": np.array([*words, 1], dtype=np.uint64)}  # the last is its counter
    bits.state = {"bit_generator": "SFC64", "state": state, "has_uint32": 0, "uinteger": 0}
    bits.random_raw(12, output=False)  # as the algorithm's author starts it
    return _STREAMS.noise


def _bytes(x: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Draws of Bernoulli(x / 255), independent and exact, one byte of noise each."""
    hits = np.empty(x.shape, dtype=np.bool_)
    for start in range(0, x.size, _CHUNK):
        part = x[start : start + _CHUNK]
        level = noise.bit_generator.random_raw(-(-part.size // 8)).view(np.uint8)[: part.size]
        level -= (level > 127).view(np.uint8)
        np.less(level, part, out=hits[start : start + _CHUNK])
    again = noise.integers(0, max(x.size, 1), noise.poisson(_RATE * x.size))
    hits[again] = noise.random(again.size) < _REDRAWN[x[again]]
    return hits
