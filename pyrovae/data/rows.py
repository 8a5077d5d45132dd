"""Batches of rows, in a new order every pass, gathered by index from memory, a mapped file or a loader."""

import abc
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrovae.data.preprocess import Identity, Preprocess
from pyrovae.errors import ConfigError, DataError

__all__ = ["Batches", "batches"]

_SHARED = {torch.uint8, torch.bool, torch.int32, torch.int64, torch.float32, torch.float64}  # those of most rows
_CELLS = 1 << 18  # gathered and preprocessed at once: few enough for the cache, enough to pay for a call


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

    Rows are gathered and preprocessed in blocks, of several batches if they are small, and batches are views of them.
    A batch that is kept keeps its block in memory.

    Args:
        arrays: of equal length; the first is preprocessed.
        batch_size: rows in a batch; the last may be shorter.
        preprocess: from stored rows to the model's.
        seed: of order and noise.
        shuffle: a new order every pass.
        mix: the rows of a pass otherwise than each of them once.
    """

    def __init__(
        self,
        arrays: Sequence[Tensor | np.ndarray],
        batch_size: int,
        preprocess: Preprocess,
        seed: Sequence[int],
        *,
        shuffle: bool,
        mix: "Mix | None" = None,
    ) -> None:
        self.sources = [_source(a) for a in arrays]
        self.batch_size, self.preprocess, self.seed, self.shuffle, self.mix = batch_size, preprocess, seed, shuffle, mix
        self.rows = len(arrays[0]) if mix is None else mix.rows
        self.steps = -(-self.rows // batch_size)
        cells = sum(max(1, math.prod(a.shape[1:])) for a in arrays) * batch_size
        self.block_size = max(1, _CELLS // cells) * batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one pass."""
        order_rng, noise_rng = (generator(*self.seed, purpose, number) for purpose in (0, 1))
        order = self._order(order_rng)
        for index in order.split(self.block_size):
            block = self._block(index, noise_rng)
            for start in range(0, len(index), self.batch_size):
                yield tuple(rows[start : start + self.batch_size] for rows in block)
            del block  # so that its memory serves for the next

    def _order(self, rng: torch.Generator) -> Tensor:
        if self.mix is not None:
            return self.mix(rng)
        return torch.randperm(self.rows, generator=rng) if self.shuffle else torch.arange(self.rows)

    def _block(self, index: Tensor, noise_rng: torch.Generator) -> tuple[Tensor, ...]:
        x, *rest = (_gather(source, index) for source in self.sources)
        return self.preprocess(x, noise_rng), *rest


class Mix:
    """Passes whose batches all have the same number of labelled rows, in front of the others.

    A pass goes once over the rows without a label; those with one are drawn without replacement until none is left,
    and then anew, so that a few labels come again and again.

    Args:
        y: ints, negative where a label is missing, or numbers with NaN; shape ``(rows, ...)``.
        share: of labelled rows in a batch, between 0 and 1.
        batch_size: rows in a batch; the last of a pass has fewer of those without a label.

    Attributes:
        rows: of a pass, repeated ones counted.

    Raises:
        ConfigError: for a share that leaves no row of either kind in a batch.
        DataError: without labelled, or without unlabelled rows.
    """

    def __init__(self, y: Tensor | np.ndarray, share: float, batch_size: int) -> None:
        given = torch.as_tensor(np.asarray(y))
        given = ~given.isnan() if given.is_floating_point() else given >= 0
        given = given.flatten(1).all(1) if given.dim() > 1 else given
        self.labelled, self.others = given.nonzero()[:, 0], (~given).nonzero()[:, 0]
        if not len(self.labelled) or not len(self.others):
            raise DataError(
                f"labelled: expected rows with and without a label to mix, received {len(self.labelled)} with and "
                f"{len(self.others)} without; leave the share out"
            )
        self.front = round(share * batch_size)
        self.back = batch_size - self.front
        if not 0 < self.front < batch_size:
            raise ConfigError(
                f"labelled: expected a share that puts rows of both kinds into a batch of {batch_size}, received "
                f"{share!r}"
            )
        self.rows = len(self.others) + self.front * -(-len(self.others) // self.back)

    def __call__(self, rng: torch.Generator) -> Tensor:
        """The rows of one pass, batch after batch."""
        others = self.others[torch.randperm(len(self.others), generator=rng)].split(self.back)
        count, needed = len(self.labelled), self.front * len(others)
        rounds = [torch.randperm(count, generator=rng) for _ in range(-(-needed // count))]
        labelled = self.labelled[torch.cat(rounds)[:needed]].split(self.front)
        return torch.cat([rows for pair in zip(labelled, others, strict=True) for rows in pair])


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
    labelled: float | None = None,
) -> Batches:
    """Batches of whatever holds rows.

    Args:
        x: array, tensor, memory-mapped array, list of rows, DataFrame, ``Dataset`` or ``DataLoader``.
        y: second array of equal length, or None.
        batch_size: rows in a batch; a DataLoader keeps its own.
        preprocess: from stored rows to the model's; None only converts to the floating type.
        seed: of order and noise; several ints make one seed.
        shuffle: a new order every pass.
        labelled: share of rows with a label in every batch, see :class:`Mix`; None leaves that to chance.

    Raises:
        ConfigError: for a share without labels to go by.
        DataError: without rows, or for arrays of different length.
    """
    step = Identity() if preprocess is None else preprocess
    if labelled is not None and (y is None or isinstance(x, Dataset | DataLoader)):
        raise ConfigError("labelled: expected x and y as arrays, whose labels say which rows have one")
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
    mix = None if labelled is None else Mix(arrays[1], labelled, batch_size)
    return ArrayBatches(arrays, batch_size, step, seed, shuffle=shuffle, mix=mix)


def generator(*seed: int) -> torch.Generator:
    """A stream of its own for every tuple of ints."""
    state = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def as_array(rows: Any) -> Tensor | np.ndarray:
    """Tensors and arrays as they are, anything else as an array."""
    return rows if isinstance(rows, (Tensor, np.ndarray)) else np.asarray(rows)


def _source(rows: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Rows as an array where NumPy can copy whole rows, which it does fastest; other tensors as they are."""
    if isinstance(rows, np.ndarray):
        return np.asarray(rows)  # also of a mapped file: without the subclass, not a copy
    rows = rows.detach()
    on_host = rows.device.type == "cpu" and rows.layout == torch.strided and rows.is_contiguous()
    return rows.numpy() if on_host and rows.dtype in _SHARED else rows


def _gather(source: Tensor | np.ndarray, index: Tensor) -> Tensor:
    if isinstance(source, Tensor):
        return source.index_select(0, index.to(source.device))
    if source.flags.c_contiguous and source.flags.aligned and source.dtype.isnative:
        # take would copy any other array as a whole; without clip it copies the rows twice
        return torch.from_numpy(source.take(index.numpy(), axis=0, mode="clip"))
    rows = source[index.numpy()]
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("=")))
