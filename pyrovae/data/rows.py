"""Batches of rows, in a new order every pass, gathered by index from memory, a mapped file or a loader."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrovae.data.preprocess import Identity, Preprocess
from pyrovae.errors import ConfigError, DataError

__all__ = ["Batches", "batches"]


class Batches(abc.ABC):
    """What a training loop reads: passes over batches, each a tuple of tensors with the rows first.

    Attributes:
        rows: rows in one pass.
        steps: batches in one pass.
    """

    rows: int
    steps: int

    @abc.abstractmethod
    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one pass; the same number gives the same batches."""


class ArrayBatches(Batches):
    """Rows of arrays or tensors. Order and preprocessing noise depend on seed and pass alone.

    Args:
        arrays: of equal length; the first is preprocessed.
        batch_size: rows in a batch; the last may be shorter.
        preprocess: from stored rows to the model's.
        seed: of order and noise.
        shuffle: a new order every pass.
    """

    def __init__(
        self,
        arrays: Sequence[Tensor | np.ndarray],
        batch_size: int,
        preprocess: Preprocess,
        seed: Sequence[int],
        *,
        shuffle: bool,
    ) -> None:
        self.sources = [_source(a) for a in arrays]
        self.batch_size, self.preprocess, self.seed, self.shuffle = batch_size, preprocess, seed, shuffle
        self.rows = len(arrays[0])
        self.steps = -(-self.rows // batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one pass."""
        order_rng, noise_rng = (generator(*self.seed, purpose, number) for purpose in (0, 1))
        order = torch.randperm(self.rows, generator=order_rng) if self.shuffle else torch.arange(self.rows)
        for index in order.split(self.batch_size):
            x, *rest = (_gather(source, index) for source in self.sources)
            yield self.preprocess(x, noise_rng), *rest


class LoaderBatches(Batches):
    """Batches of a DataLoader, in its own order; tuples, lists and bare tensors alike.

    Args:
        loader: yields x, or (x, y).
        preprocess: from the loader's rows to the model's.
        seed: of the noise of preprocessing.
    """

    def __init__(self, loader: DataLoader, preprocess: Preprocess, seed: Sequence[int]) -> None:
        self.loader, self.preprocess, self.seed = loader, preprocess, seed
        try:
            self.steps, self.rows = len(loader), len(loader.dataset)  # pyright: ignore[reportArgumentType]
        except TypeError:
            raise DataError("DataLoader: expected one of known length, received an iterable data set") from None

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one pass."""
        noise_rng = generator(*self.seed, 1, number)
        for batch in self.loader:
            x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
            yield self.preprocess(x, noise_rng), *rest


def batches(
    x: Any,
    y: Any = None,
    *,
    batch_size: int,
    preprocess: Preprocess | None = None,
    seed: Sequence[int] = (0,),
    shuffle: bool = True,
) -> Batches:
    """Batches of whatever holds rows.

    Args:
        x: array, tensor, memory-mapped array, list of rows, DataFrame, ``Dataset`` or ``DataLoader``.
        y: second array of equal length, or None.
        batch_size: rows in a batch; a DataLoader keeps its own.
        preprocess: from stored rows to the model's; None only converts to the floating type.
        seed: of order and noise; several ints make one seed.
        shuffle: a new order every pass.

    Raises:
        DataError: without rows, or for arrays of different length.
    """
    step = Identity() if preprocess is None else preprocess
    if isinstance(x, DataLoader):
        if y is not None:
            raise ConfigError("y: a DataLoader yields its own labels; pass (x, y) batches and leave y out")
        return LoaderBatches(x, step, seed)
    if isinstance(x, IterableDataset):
        raise DataError("x: expected rows of known number, received an iterable data set")
    if isinstance(x, Dataset):
        return LoaderBatches(DataLoader(x, batch_size, shuffle=shuffle), step, seed)
    arrays = [as_array(a) for a in (x, y) if a is not None]
    if not arrays or len(arrays[0]) == 0:
        raise DataError("x: expected at least one row, received none")
    if len({len(a) for a in arrays}) > 1:
        raise DataError(f"y: expected one entry for each of {len(arrays[0])} rows, received {len(arrays[1])}")
    return ArrayBatches(arrays, batch_size, step, seed, shuffle=shuffle)


def generator(*seed: int) -> torch.Generator:
    """A stream of its own for every tuple of ints."""
    state = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def as_array(rows: Any) -> Tensor | np.ndarray:
    """Tensors and arrays as they are, anything else as an array."""
    return rows if isinstance(rows, (Tensor, np.ndarray)) else np.asarray(rows)


def _source(rows: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Arrays that torch can share memory with become tensors; mapped and read-only ones are gathered by numpy."""
    if isinstance(rows, np.ndarray) and not isinstance(rows, np.memmap):
        flags = rows.flags
        if flags.writeable and flags.c_contiguous and rows.dtype == rows.dtype.newbyteorder("="):
            return torch.from_numpy(rows)
    return rows


def _gather(source: Tensor | np.ndarray, index: Tensor) -> Tensor:
    if isinstance(source, Tensor):
        return source.index_select(0, index.to(source.device))
    rows = source[index.numpy()]
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("=")))
