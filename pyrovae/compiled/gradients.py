"""Loss and gradients of a program by Pyro and autograd: what is captured, and what everything captured must equal."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.objectives import Objective, reported

__all__ = ["Gradients", "Result", "clipped"]


class Result(NamedTuple):
    """One evaluation.

    Attributes:
        loss: a scalar without gradient.
        norm: of the gradient before clipping, or None where nobody asks.
        gradients: one for each parameter; None where the loss does not depend on it.
        updated: whether the parameters have been updated by them already; they are then not kept.
    """

    loss: Tensor
    norm: Tensor | None
    gradients: list[Tensor | None]
    updated: bool = False


class Gradients:
    """The loss of an objective and its gradients.

    An objective that returns several losses by name, such as a model's and a critic's, says by
    ``objective.parameters(model)`` which parameters each of them trains; the first is the one that is reported, and
    trains those that no other claims.

    Args:
        program: what the objective is called with.
        objective: see :mod:`pyrovae.objectives`.
        parameters: those to differentiate by.
        norm: whether the gradient's norm is wanted.
        clip: its largest value.
    """

    def __init__(
        self, program: Any, objective: Any, parameters: Sequence[Tensor], *, norm: bool, clip: float | None
    ) -> None:
        self.program, self.objective, self.parameters = program, objective, list(parameters)
        self.norm, self.clip = norm, clip

    def __call__(self, data: Sequence[Any], t: float | Tensor, objective: Any = None) -> Result:
        """Evaluate at progress t; another objective stands in for this one, which gives the same numbers faster."""
        chosen = self.objective if objective is None else objective
        if isinstance(chosen, Objective):
            chosen = chosen.at(t)
        with torch.enable_grad():
            losses = chosen(self.program, *data)
            named = isinstance(losses, Mapping)
            gradients = self._named(losses) if named else self._of(losses, self.parameters)
        loss = reported(losses).detach()
        return clipped(Result(loss, None, gradients), norm=self.norm, clip=self.clip)

    def _of(self, loss: Tensor, owned: Sequence[Tensor], *, again: bool = False) -> list[Tensor | None]:
        """One gradient for each parameter: those that are not this loss's, or frozen meanwhile, have none."""
        place = {id(p): i for i, p in enumerate(self.parameters)}
        trained = [p for p in owned if id(p) in place and p.requires_grad]
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        if not trained:
            return gradients
        parts = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=again)
        for parameter, part in zip(trained, parts, strict=True):
            gradients[place[id(parameter)]] = part
        return gradients

    def _named(self, losses: Mapping[str, Tensor]) -> list[Tensor | None]:
        """Each loss by its own parameters."""
        owned = dict(self.objective.parameters(self.program))
        claimed = {id(p) for parameters in owned.values() for p in parameters}
        owned.setdefault(next(iter(losses)), [p for p in self.parameters if id(p) not in claimed])
        parts = [self._of(losses[name], parameters, again=True) for name, parameters in owned.items()]
        return [next((g for g in gradients if g is not None), None) for gradients in zip(*parts, strict=True)]


@torch.no_grad()
def clipped(result: Result, *, norm: bool, clip: float | None) -> Result:
    """With the norm of the gradients, and those no longer than ``clip``, as torch's ``clip_grad_norm_`` has it."""
    if not norm and clip is None:
        return result
    present = [g for g in result.gradients if g is not None]
    length = torch.stack([torch.dot(g.flatten(), g.flatten()) for g in present]).sum().sqrt()
    if clip is None:
        return result._replace(norm=length)
    factor = (clip / (length + 1e-6)).clamp(max=1.0)
    return Result(result.loss, length, [None if g is None else g * factor for g in result.gradients])
