"""The optimizer's step without the optimizer's bookkeeping, where the two are the same: called directly, or in a graph.

    m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2,   p' = p - lr m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps)

with the gradient g + decay p (Adam), or p first made smaller by lr decay p (AdamW).

References:
    Adam: a method for stochastic optimization (Kingma and Ba, 2015);
    Decoupled weight decay regularization (Loshchilov and Hutter, 2019)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.optimizer import _get_scalar_dtype, _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["Group", "Update"]

_PLAIN = {"amsgrad": False, "maximize": False, "differentiable": False, "capturable": False}
_NUMBERS = 8


@dataclass
class Group:
    """A parameter group of Adam: what it reads and writes, and where its gradients stand.

    Attributes:
        options: the optimizer's own, read anew at every update.
        places: of its parameters among all.
        parameters: those with a gradient.
        averages: m.
        squares: v.
        steps: updates so far, one scalar for each parameter.
        counted: all of those, which lie in its memory: one sum instead of one for each.
        numbers: what an update in a graph reads of options and steps.
    """

    options: dict[str, Any]
    places: list[int]
    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    counted: Tensor
    numbers: Tensor

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        """Update by the gradients of all parameters."""
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

    @property
    def written(self) -> list[Tensor]:
        """What an update changes."""
        return [*self.parameters, *self.averages, *self.squares, self.counted]

    def plain(self) -> bool:
        """Whether its parameters are the processor's, of one type that holds what an update in a graph reads."""
        kinds = {(p.dtype, p.device.type) for p in self.parameters}
        return kinds in ({(torch.float32, "cpu")}, {(torch.float64, "cpu")})

    def ready(self) -> bool:
        """Write down the numbers of the next update; False if its parameters have not been updated equally often."""
        count, *others = set(self.counted.tolist())
        if others:
            return False
        (beta1, beta2), rate, decay = self.options["betas"], self.options["lr"], self.options["weight_decay"]
        apart = self.options["decoupled_weight_decay"]
        root = (1 - beta2 ** (count + 1)) ** 0.5
        size, least = root * rate / (1 - beta1 ** (count + 1)), root * self.options["eps"]
        shrink, push = (1 - rate * decay, 0.0) if apart else (1.0, -decay)
        self.numbers.numpy()[:] = size, least, shrink, push, beta1, 1 - beta1, beta2, 1 - beta2
        return True

    @staticmethod
    def operations(gradients: Sequence[Tensor], written: Sequence[Tensor], numbers: Tensor, valid: Tensor) -> None:
        """The update as operations of a graph, for the group's gradients alone.

        Args:
            gradients: one for each parameter.
            written: see :attr:`written`.
            numbers: see :attr:`numbers`.
            valid: whether to make it, a boolean scalar.
        """
        size, least, shrink, push, beta1, rest1, beta2, rest2 = numbers.unbind()
        *state, counted = written
        parts = (state[i :: len(gradients)] for i in range(len(gradients)))
        for g, (p, m, v) in zip(gradients, parts, strict=True):
            g = g - push * p  # a product plus something would be computed on top of a copy of that
            average, square = beta1 * m + rest1 * g, beta2 * v + rest2 * (g * g)
            step = size * average / (square.sqrt() + least)  # both times the root: a division less
            for old, new in ((p, shrink * p - step), (m, average), (v, square)):
                old.copy_(torch.where(valid, new, old))
        counted.add_(valid)


class Update:
    """One update of the parameters by their gradients; the optimizer's state is as ``optimizer.step()`` leaves it.

    ``torch.optim`` spends up to 0.1 ms on lists of its own before the arithmetic starts. Fused Adam and AdamW are
    called directly; every other optimizer, and one with hooks, by its own ``step``. In a graph, which has an order of
    operations of its own, Adam and AdamW need not be fused.

    Args:
        optimizer: read anew at every update: learning rates, moments, and a state that was loaded meanwhile.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._groups: list[Group] = []
        self._present: list[bool] = []

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Update the parameters; those without a gradient stay as they are."""
        groups = self.groups(parameters, [g is not None for g in gradients])
        if groups and all(group.options["fused"] for group in groups):
            for group in groups:
                group(gradients)
        else:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()

    def groups(self, parameters: Sequence[Tensor], present: list[bool]) -> list[Group]:
        """The groups of a plain Adam or AdamW, the same objects while nothing changes; of others none.

        Args:
            parameters: all that are trained.
            present: which of them have a gradient.
        """
        if not (present == self._present and self._unchanged(parameters)):
            self._present = present
            self._groups = self._direct(parameters, present) if _plain(self.optimizer) else []
        return self._groups

    def _direct(self, parameters: Sequence[Tensor], present: list[bool]) -> list[Group]:
        place = {id(p): i for i, p in enumerate(parameters)}
        groups = []
        for options in self.optimizer.param_groups:
            held = [p for p in options["params"] if id(p) in place and present[place[id(p)]]]
            if not held:
                continue
            state = [self._state(p, fused=bool(options["fused"])) for p in held]
            counted = torch.stack([s["step"] for s in state])
            for s, step in zip(state, counted, strict=True):
                s["step"] = step
            averages, squares, steps = ([s[name] for s in state] for name in ("exp_avg", "exp_avg_sq", "step"))
            places, numbers = [place[id(p)] for p in held], torch.empty(_NUMBERS, dtype=held[0].dtype)
            groups.append(Group(options, places, held, averages, squares, steps, counted, numbers))
        self.optimizer._opt_called = True  # pyright: ignore[reportAttributeAccessIssue] which schedulers look at
        return groups

    def _state(self, parameter: Tensor, *, fused: bool) -> dict[str, Any]:
        """The optimizer's, made as it does itself at its first step."""
        state = self.optimizer.state[parameter]
        if not state:
            device = parameter.device if fused else "cpu"
            state["step"] = torch.zeros((), dtype=_get_scalar_dtype(is_fused=fused), device=device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def _unchanged(self, parameters: Sequence[Tensor]) -> bool:
        """Whether options and state are those that were seen: loading a state replaces every tensor of it."""
        return (
            bool(self._groups)
            and _plain(self.optimizer)
            and all(
                parameters[g.places[0]] is g.parameters[0]
                and self.optimizer.state[g.parameters[0]].get("exp_avg") is g.averages[0]
                and self.optimizer.state[g.parameters[0]].get("step") is g.steps[0]
                for g in self._groups
            )
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
