"""Declared steps from rows as they are stored to rows as the model sees them; stored with the model."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import ConfigError

__all__ = ["Binarize", "Identity", "Preprocess", "Rescale", "Standardize", "Threshold"]


class Preprocess(abc.ABC):
    """One step, ``(*batch, *shape) -> (*batch, *shape)`` in the default floating type.

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
            noise = torch.empty_like(x).random_(
                0, 255, generator=generator
            )  # uniform on 0..254: P(noise < x) = x / 255
        else:
            noise = torch.rand(x.shape, dtype=x.dtype, generator=generator)
        return _floating(noise < x)


class Threshold(Preprocess):
    """1 where a value exceeds the level, else 0; the same every time.

    Args:
        level: as the rows are stored.
    """

    def __init__(self, level: float = 0.5) -> None:
        self.level = level

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """0 or 1."""
        return _floating(x > self.level)


class Standardize(Preprocess):
    """``(x - mean) / scale`` per column; constant columns are only centred.

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
        """The step with mean and standard deviation of these rows, read in pieces."""
        from sklearn.preprocessing import StandardScaler

        scaler: Any = StandardScaler()
        for start in range(0, len(x), 4096):
            piece = np.asarray(x[start : start + 4096], dtype=np.float64)
            scaler.partial_fit(piece.reshape(len(piece), -1))
        shape = x.shape[1:]
        return Standardize(np.reshape(scaler.mean_, shape).tolist(), np.reshape(scaler.scale_, shape).tolist())

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
    return x.to(torch.get_default_dtype())
