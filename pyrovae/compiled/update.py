"""The optimizer's step without the optimizer's bookkeeping, where the two are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["Update"]

_PLAIN = {"amsgrad": False, "maximize": False, "differentiable": False, "capturable": False, "fused": True}


@dataclass
class _Group:
    """A parameter group of Adam: what it reads and writes, and where its gradients stand."""

    options: dict[str, Any]
    places: list[int]
    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    counted: Tensor  # all of them, which lie in its memory: one sum instead of one for each

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        self.counted.add_(1.0)
        options = self.options
        fused: Any = torch._fused_adamw_ if options["decoupled_weight_decay"] else torch._fused_adam_
        fused(
            self.parameters,
            [gradients[i] for i in self.places],
            self.averages,
            self.squares,
            [],
            self.steps,
            lr=options["lr"],
            beta1=options["betas"][0],
            beta2=options["betas"][1],
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            amsgrad=False,
            maximize=False,
        )


class Update:
    """One update of the parameters by their gradients; the optimizer's state is as ``optimizer.step()`` leaves it.

    ``torch.optim`` spends up to 0.1 ms on lists of its own before the arithmetic starts. Fused Adam and AdamW are
    called directly; every other optimizer, and one with hooks, by its own ``step``.

    Args:
        optimizer: read anew at every update: learning rates, moments, and a state that was loaded meanwhile.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._groups: list[_Group] = []
        self._present: list[bool] = []

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Update the parameters; those without a gradient stay as they are."""
        present = [g is not None for g in gradients]
        if self._groups and present == self._present and self._unchanged(parameters):
            for group in self._groups:
                group(gradients)
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()  # makes the state, so that the next update can go without it
        self._present = present
        self._groups = self._direct(parameters) if _plain(self.optimizer) else []

    def _direct(self, parameters: Sequence[Tensor]) -> list[_Group]:
        place = {id(p): i for i, p in enumerate(parameters)}
        groups = []
        for options in self.optimizer.param_groups:
            held = [p for p in options["params"] if p.grad is not None and id(p) in place]
            if not held:
                continue
            state = [self.optimizer.state[p] for p in held]
            counted = torch.stack([s["step"] for s in state])
            for s, step in zip(state, counted, strict=True):
                s["step"] = step
            averages, squares, steps = ([s[name] for s in state] for name in ("exp_avg", "exp_avg_sq", "step"))
            groups.append(_Group(options, [place[id(p)] for p in held], held, averages, squares, steps, counted))
        return groups

    def _unchanged(self, parameters: Sequence[Tensor]) -> bool:
        """Whether options and state are those that were seen: loading a state replaces every tensor of it."""
        return _plain(self.optimizer) and all(
            parameters[g.places[0]] is g.parameters[0]
            and self.optimizer.state[g.parameters[0]].get("exp_avg") is g.averages[0]
            and self.optimizer.state[g.parameters[0]].get("step") is g.steps[0]
            for g in self._groups
        )


def _plain(optimizer: Any) -> bool:
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    everywhere = _global_optimizer_pre_hooks or _global_optimizer_post_hooks
    if type(optimizer) not in (Adam, AdamW) or hooked or everywhere:
        return False
    return all(
        all(group[name] == value for name, value in _PLAIN.items()) and not isinstance(group["lr"], Tensor)
        for group in optimizer.param_groups
    )
