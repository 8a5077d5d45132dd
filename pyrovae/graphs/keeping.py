"""What a run on the side must leave as it was: generators, and tensors that it writes into."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["cuda_devices", "kept"]


@contextlib.contextmanager
def kept(tensors: Sequence[Tensor], devices: Sequence[int] = ()) -> Iterator[None]:
    """Generators, and the numbers of these tensors, as they were, afterwards."""
    before = [t.detach().clone() for t in tensors]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for tensor, value in zip(tensors, before, strict=True):
                tensor.detach().copy_(value)


def cuda_devices(tensors: Sequence[Tensor]) -> list[int]:
    """The indices of the CUDA devices that tensors are on, whose generators a run on the side would move."""
    return sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
