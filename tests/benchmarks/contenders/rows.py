"""The rows, read and gathered in the same way by every contender on torch."""

from pathlib import Path

import numpy as np
import torch


def begin(setup):
    """Threads and seed as everybody has them; the rows, float32, shape ``(rows, columns)``."""
    torch.set_num_threads(setup.threads)
    torch.manual_seed(0)
    return load(setup, "binary").float()


def load(setup, name):
    """Rows as they are stored, 8 bits a value: ``"grey"``, or ``"binary"``."""
    stored = np.load(Path(setup.data) / f"{name}.npy", mmap_mode="r")
    return torch.from_numpy(stored[: setup.rows, : setup.columns].copy())


def sampler(x, batch):
    """A function that gathers a random batch."""

    def draw():
        return x.index_select(0, torch.randint(len(x), (batch,)))

    return draw


def epoch_of(update, x, batch):
    """A function that updates by every batch of one epoch in a new order, the short one at the end too."""

    def unit():
        for index in torch.randperm(len(x)).split(batch):
            update(x.index_select(0, index))

    return unit
