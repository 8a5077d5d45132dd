"""Batches run by a graph in which the optimizer's update follows the gradients: one function of compiled code."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.compiled.gradients import Gradients, Result
from pyrovae.compiled.plans import Captured, tensors_of
from pyrovae.compiled.update import Group, Update
from pyrovae.compiled.watch import Watch
from pyrovae.graphs import kept

__all__ = ["Updating"]


class Updating(Captured):
    """The compiled graph of a program's loss, gradients and update; without the update where it cannot stand in it.

    A gradient is used as soon as it is known, while it is in the cache, and is not written down as float32 if products
    are bfloat16.

    Args:
        gradients, data, t, watch, half: see :class:`Captured`.
        update: by the optimizer.
        guard: makes no update where the loss or the gradient's norm is not finite.

    Raises:
        Refused, CompilerFailed: see :class:`Captured`.
    """

    def __init__(
        self,
        gradients: Gradients,
        data: Sequence[Any],
        t: Tensor,
        watch: Watch,
        *,
        half: bool,
        update: Update,
        guard: bool,
    ) -> None:
        self.update, self.guard = update, guard
        self.groups: list[Group] = []
        self.tensors: list[Tensor] = []
        self.addresses: list[int] = []
        self.memory: set[int] = set()
        super().__init__(gradients, data, t, watch, compiled=True, half=half)

    def __call__(self, data: Sequence[Any], t: Tensor) -> Result:
        """Loss at progress t, and the update; only the gradients of data that lie in what the update writes into.

        Raises:
            ConfigError, Refused: see :class:`Captured`.
        """
        if any(tensor.untyped_storage().data_ptr() in self.memory for tensor in tensors_of(data, t)):
            return self.gradients(data, t.item())
        return super().__call__(data, t)

    def holds(self) -> bool:
        """Whether everything is still of the kinds that this was made for; a state that was loaded is taken on."""
        return super().holds() and (not self.groups or self._ready())

    def _ready(self) -> bool:
        """Whether the update can stand in the graph as it does now; its numbers are then those of the next one."""
        groups = self.update.groups(self.gradients.parameters, self.present)
        if groups is not self.groups:
            tensors = _tensors(groups)
            if list(map(_kind, tensors)) != list(map(_kind, self.tensors)):
                return False
            self.groups, self.tensors = groups, tensors
            self.function.exchange(tensors)
        addresses = [tensor.data_ptr() for tensor in self.tensors]
        if addresses != self.addresses:
            if not self._possible(groups):
                return False
            self.addresses = addresses
            self.memory = {tensor.untyped_storage().data_ptr() for tensor in self.tensors}
        return all(group.ready() for group in groups)

    def _compile(self, data: Sequence[Any], t: Tensor) -> None:
        self.groups = self.update.groups(self.gradients.parameters, self.present)
        self.tensors = _tensors(self.groups)
        if self.groups and self._ready():
            self.function.compile(tensors_of(data, t), self._then, self.tensors)
        else:
            self.groups = []
            super()._compile(data, t)

    def _possible(self, groups: Sequence[Group]) -> bool:
        """Whether nothing but the update reads or writes where it writes, on the processor."""
        ours = {id(tensor): tensor for group in groups for tensor in group.written}
        every = {id(tensor): tensor for tensor in self.function.tensors} | ours
        apart = len({tensor.untyped_storage().data_ptr() for tensor in every.values()}) == len(every)
        return apart and not any(id(t) in ours for t in self.function.written) and all(g.plain() for g in groups)

    def _then(self, results: list[Tensor], valid: Tensor | None, tensors: list[Tensor]) -> list[Tensor]:
        """The update as operations of the graph; what is left are loss and norm."""
        left, given = results[: 1 + self.has_norm], iter(tensors)
        conditions = [] if valid is None else [valid]
        conditions += [number.isfinite() for number in left] if self.guard else []
        whether = torch.stack(conditions).all() if conditions else torch.ones((), dtype=torch.bool)
        gradients: Any = super()._result(results).gradients
        for group in self.groups:
            written = list(itertools.islice(given, len(group.written)))
            group.operations([gradients[i] for i in group.places], written, next(given), whether)
        return left

    def _result(self, outputs: Sequence[Tensor]) -> Result:
        if len(outputs) > 1 + self.has_norm:  # of a run that is not compiled
            return super()._result(outputs)
        torch.autograd.graph.increment_version([p for group in self.groups for p in group.parameters])
        return Result(outputs[0], outputs[1] if self.has_norm else None, [], updated=True)

    def _effect(self, run: Callable[[], Result | None]) -> Result | None:
        """Loss, and moments of the optimizer that begin at 0, by which gradients and arithmetic are compared."""
        if not self.groups:
            return run()
        with torch.no_grad(), kept([tensor for group in self.groups for tensor in group.written]):
            result = self._first_update(run)
        self._ready()
        return result

    def _first_update(self, run: Callable[[], Result | None]) -> Result | None:
        moments = [tensor for group in self.groups for tensor in (*group.averages, *group.squares)]
        for tensor in (*moments, *(group.counted for group in self.groups)):
            tensor.zero_()
        self._ready()
        result = run()
        if result is None:
            return None
        if not result.updated:
            for group in self.groups:
                group(result.gradients)
        return Result(result.loss, None, [tensor.clone() for tensor in moments])


def _tensors(groups: Sequence[Group]) -> list[Tensor]:
    return [tensor for group in groups for tensor in (*group.written, group.numbers)]


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()
