"""The same noise for every row, so that what is estimated of a row does not depend on the rows beside it."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SharedNoise"]


class SharedNoise(TorchDispatchMode):
    """Whatever is drawn for a batch of rows is drawn for one of them, and all others get the same draw.

    Each row's estimate has the distribution that it would have with noise of its own, but it is the same number in
    any order of the rows and in any company. A draw that depends on the row's own parameters (a gamma, a class) starts
    from the same point of the stream in every row.

    Args:
        rows: in the batch.
        draws: per row, in one pass; tensors are ``(draws, rows, ...)``, or ``(rows, ...)`` for one draw.
        seed: of the noise.

    Example:
        >>> with SharedNoise(rows=2, draws=3, seed=0):
        ...     noise = torch.randn(3, 2)
        >>> bool((noise[:, 0] == noise[:, 1]).all()), bool((noise[0] == noise[1]).any())
        (True, False)
    """

    def __init__(self, rows: int, draws: int, seed: int) -> None:
        super().__init__()
        self.lead = (draws, rows) if draws > 1 else (rows,)
        self.seeds = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draws = torch.Tag.nondeterministic_seeded in func.tags
        places = [i for i, a in enumerate(args) if draws and self._by_rows(a)]
        if not places:
            return func(*args, **kwargs)
        written = func._schema.is_mutable
        read = any(isinstance(args[i], Tensor) and not (written and i == 0) for i in places)
        seed = int(torch.randint(2**62, (), generator=self.seeds))
        each = []
        for row in range(self.lead[-1] if read else 1):
            torch.default_generator.manual_seed(seed)
            own = [self._of_row(a, row) if i in places else a for i, a in enumerate(args)]
            each.append(func(*own, **kwargs))
        whole = self._joined(each, folded=not self._apart(args[places[0]]))
        return args[0].copy_(whole) if written else whole

    def _by_rows(self, value: Any) -> bool:
        """Whether a tensor, or the size of one, has the rows in front, with draws beside them or in one with them."""
        if not isinstance(value, Tensor) and not _is_size(value):
            return False
        return self._apart(value) or tuple(_size(value)[:1]) == (math.prod(self.lead),)

    def _apart(self, value: Any) -> bool:
        return tuple(_size(value)[: len(self.lead)]) == self.lead

    def _of_row(self, value: Any, row: int) -> Any:
        """The part that belongs to one row."""
        draws, apart = self.lead[:-1], self._apart(value)
        if not isinstance(value, Tensor):
            return [*draws, 1, *value[len(self.lead) :]] if apart else [math.prod(draws), *value[1:]]
        part = (value if apart else value.unflatten(0, self.lead)).narrow(len(draws), row, 1)
        return (part if apart else part.flatten(0, len(draws))).clone()

    def _joined(self, each: list[Tensor], *, folded: bool) -> Tensor:
        """The rows side by side; one draw for all of them is repeated."""
        *draws, rows = self.lead
        parts = [part.unflatten(0, (*draws, 1)) for part in each] if folded else each
        whole = torch.cat(parts * (rows // len(parts)), len(draws))
        return whole.flatten(0, len(draws)) if folded else whole


def _is_size(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(n, int) for n in value)


def _size(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else value
