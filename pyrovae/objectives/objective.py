"""What an objective is, sums of objectives, and weights of rows."""

import abc
import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.objectives.schedules import Schedule

__all__ = [
    "Objective",
    "Sum",
    "Weighted",
    "average",
    "claimed",
    "evaluate",
    "expectation",
    "final",
    "mass",
    "networks",
    "normalised",
    "positive_int",
    "reported",
    "rows",
    "scaled",
    "takes_weights",
]

Losses = Any  # a scalar, or several by name


class Objective(abc.ABC):
    r"""A loss in nats per row, possibly changing over training.

    To write one, subclass and compute a scalar from the model's programs: ``pyrovae.log_weights`` gives log p(x, z) -
    log q(z|x) of every row, ``pyrovae.handlers.run`` the traces of both programs. Weights belong here, never into the
    program. Keep every constructor argument as an attribute of the same name.

    Example:
        >>> import pyrovae as pv
        >>> class Cautious(Objective):  # E_q log w - c sd_q log w
        ...     scheduled = ("caution",)
        ...
        ...     def __init__(self, k, caution=0.1):
        ...         self.k, self.caution = k, caution
        ...
        ...     def __call__(self, model, *data, weights=None):
        ...         log_w = pv.log_weights(model, *data, k=self.k)
        ...         return average(final(self.caution) * log_w.std(0) - log_w.mean(0), weights)
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = (Cautious(8) + 0.1 * pv.IWAE(8))(vae, torch.ones(3, 4))

    *Schedules.* An argument that may be a schedule is named in ``scheduled``; ``at(t)`` is the objective with all of
    them evaluated at progress t. Called directly, an objective stands at its final value.

    *Weights of rows.* ``objective(model, *data, weights=w)`` with w of shape ``(batch,)``, from 0, is
    ``sum_i w_i L_i / batch`` where the loss is a mean over rows: a row of weight 2 counts as if it were there twice,
    one of weight 0 as if it were absent, up to the division by the number of rows. A statistic of the whole batch, such
    as a covariance, takes its expectations under weights divided by their mean and is multiplied by that mean, so that
    the loss as a whole is proportional to the weights. An objective without the argument ``weights`` works unless
    weights are given.

    *Sums.* ``a + b`` and ``c * a``, with c a number or a schedule, are objectives: see :class:`Sum`.

    *Adversaries.* An objective may keep networks of its own as attributes. It then returns several losses,
    ``{"model": ..., "critic": ...}``, and ``parameters(model)`` tells which parameters belong to which loss; those it
    does not name belong to the first one, which is the one that is reported. ``fit`` trains them all, the networks as
    well, by one optimizer. The networks are no part of the model that is saved. Their initial weights are drawn from
    torch's global generator when the objective is made: for the same critics again, call ``torch.manual_seed`` before.

    Attributes:
        scheduled: names of the attributes that may be schedules.
    """

    scheduled: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Losses:
        """The loss, a scalar in nats per row, or several by name.

        Args:
            model: anything with Pyro programs ``model`` and ``guide``.
            *data: what both are called with, ``x`` of shape ``(batch, *x)`` first.
            weights: of the rows, shape ``(batch,)``; None is 1 for all.
        """

    def at(self, t: float | Tensor) -> "Objective":
        """This objective at progress t in [0, 1]."""
        moving = {name: getattr(self, name) for name in self.scheduled if callable(getattr(self, name))}
        if not moving:
            return self
        now = copy.copy(self)
        vars(now).update({name: schedule(t) for name, schedule in moving.items()})
        return now

    def parameters(self, model: Any) -> dict[str, list[nn.Parameter]]:
        """Which parameters belong to which of several named losses; those not named belong to the first loss.

        Args:
            model: as in a call.
        """
        return {}

    def networks(self) -> list[nn.Module]:
        """The networks that it keeps as attributes."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]

    def __add__(self, other: Callable[..., Losses]) -> "Sum":
        if not callable(other):
            return NotImplemented
        (terms, weights), (more, others) = _parts(self), _parts(other)
        return Sum([*terms, *more], [*weights, *others])

    def __mul__(self, factor: float | Schedule) -> "Sum":
        if not _is_weight(factor):
            return NotImplemented
        return Sum([self], [factor])

    __rmul__ = __mul__


class Sum(Objective):
    r"""``sum_i c_i L_i``, what ``ELBO(beta=0.0) + 10.0 * MMD()`` makes.

    Every term makes its own pass with its own draws. Of terms with several named losses, the first ones are added;
    a loss of other parameters of the model (the guide's in :class:`PIWAE`) is added to what the other terms ask of
    these; losses of critics stay as they are.

    Args:
        terms: objectives, or functions ``(model, *data) -> loss``.
        weights: c, a number or a schedule for each term; None is 1 for all.

    Raises:
        ConfigError: without terms, or for weights that do not fit them.

    Example:
        >>> import pyrovae as pv
        >>> objective = pv.ELBO() + 0.5 * pv.IWAE(8) + pv.Warmup() * pv.IWAE(2)
        >>> objective.weights[:2], len(objective.terms)
        ([1.0, 0.5], 3)
    """

    def __init__(self, terms: Sequence[Callable[..., Losses]], weights: Sequence[Any] | None = None) -> None:
        self.terms = list(terms)
        self.weights = [1.0] * len(self.terms) if weights is None else list(weights)
        if not self.terms or not all(map(callable, self.terms)):
            raise ConfigError(f"terms: expected objectives, received {terms!r}")
        if len(self.weights) != len(self.terms) or not all(map(_is_weight, self.weights)):
            raise ConfigError(
                f"weights: expected a number or a schedule for each of {len(self.terms)} terms, received {weights!r}"
            )
        self._networks = nn.ModuleList([network for term in self.terms for network in networks(term)])

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Losses:
        """The weighted sum; named losses where a term has them."""
        losses = [evaluate(term, model, *data, weights=weights) for term in self.terms]
        total = self._add(reported(loss) for loss in losses)
        if not any(isinstance(loss, Mapping) for loss in losses):
            return total
        named = {"model": total}
        for key, claim in self._claims(model).items():
            if claim.critic:
                (place,) = claim.names
                named[key] = losses[place][claim.names[place]]
            else:
                named[key] = self._add(
                    loss[claim.names[place]] if place in claim.names else reported(loss)
                    for place, loss in enumerate(losses)
                )
        return named

    def at(self, t: float | Tensor) -> "Sum":
        """Terms and weights at progress t."""
        now = copy.copy(self)
        now.terms = [term.at(t) if isinstance(term, Objective) else term for term in self.terms]
        now.weights = [weight(t) if callable(weight) else weight for weight in self.weights]
        return now

    def parameters(self, model: Any) -> dict[str, list[nn.Parameter]]:
        """Those of every term; where two terms have a critic, the second's is called ``"critic 2"``."""
        return {key: claim.parameters for key, claim in self._claims(model).items()}

    def _add(self, losses: Iterable[Tensor]) -> Tensor:
        first, *rest = (scaled(w, loss) for w, loss in zip(self.weights, losses, strict=True))
        for loss in rest:
            first = first + loss
        return first

    def _claims(self, model: Any) -> dict[str, "_Claim"]:
        inside = {id(p) for p in model.parameters()} if isinstance(model, nn.Module) else set()
        claims: dict[str, _Claim] = {}
        for place, term in enumerate(self.terms):
            for name, parameters in claimed(term, model).items():
                critic = not all(id(p) in inside for p in parameters)
                if name == "model":
                    continue
                if not critic and name in claims and not claims[name].critic:
                    claims[name].names[place] = name
                    continue
                key = next(k for k in (name, *(f"{name} {i}" for i in range(2, 99))) if k not in claims)
                claims[key] = _Claim(parameters, {place: name}, critic=critic)
        return claims


class _Claim:
    """Parameters with a loss of their own, and what that loss is called in the terms that have it."""

    def __init__(self, parameters: list[nn.Parameter], names: dict[int, str], *, critic: bool) -> None:
        self.parameters, self.names, self.critic = parameters, names, critic


class Weighted(Objective):
    """An objective whose last argument is the weights of the rows: data of a step as everything else.

    Args:
        objective: takes ``weights``.

    Raises:
        ConfigError: if it does not.
    """

    def __init__(self, objective: Callable[..., Losses]) -> None:
        if not takes_weights(objective):
            raise ConfigError(_without_weights(objective))
        self.objective = objective
        self._networks = nn.ModuleList(networks(objective))

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Losses:
        """The objective at all data but the last, weighted by that."""
        *rows, last = data
        return evaluate(self.objective, model, *rows, weights=last)

    def at(self, t: float | Tensor) -> "Weighted":
        """The objective at progress t, weighted."""
        now = copy.copy(self)
        now.objective = self.objective.at(t) if isinstance(self.objective, Objective) else self.objective
        return now

    def parameters(self, model: Any) -> dict[str, list[nn.Parameter]]:
        """The objective's."""
        return claimed(self.objective, model)


def evaluate(objective: Callable[..., Losses], model: Any, *data: Tensor | None, weights: Tensor | None) -> Losses:
    """The objective, given weights if there are any.

    Raises:
        ConfigError: for an objective that takes none.
    """
    if weights is None:
        return objective(model, *data)
    if not takes_weights(objective):
        raise ConfigError(_without_weights(objective))
    return objective(model, *data, weights=weights)


def takes_weights(objective: Any) -> bool:
    """Whether it has an argument ``weights``."""
    try:
        known = inspect.signature(objective.forward if isinstance(objective, nn.Module) else objective).parameters
    except (TypeError, ValueError):
        return False
    return "weights" in known or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())


def networks(objective: Any) -> list[nn.Module]:
    """The networks that an objective brings with it."""
    if isinstance(objective, Objective):
        return objective.networks()
    return [objective] if isinstance(objective, nn.Module) else []


def claimed(objective: Any, model: Any) -> dict[str, list[nn.Parameter]]:
    """The parameters that belong to named losses; none of a plain function's."""
    return objective.parameters(model) if isinstance(objective, Objective) else {}


def reported(losses: Losses) -> Tensor:
    """The loss, or the first of several named ones."""
    return next(iter(losses.values())) if isinstance(losses, Mapping) else losses


def rows(data: tuple[Tensor | None, ...]) -> int:
    """How many rows a batch has.

    Raises:
        ConfigError: without any.
    """
    if not data or data[0] is None or len(data[0]) == 0:
        raise ConfigError("data: expected rows as the first argument, received none")
    return len(data[0])


def average(values: Tensor, weights: Tensor | None) -> Tensor:
    """``sum_i w_i v_i / batch`` of values ``(batch, *shape)``: shape ``shape``."""
    return values.mean(0) if weights is None else (_column(weights, values) * values).mean(0)


def expectation(values: Tensor, weights: Tensor | None) -> Tensor:
    """``sum_i w_i v_i / sum_i w_i`` of values ``(batch, *shape)``: shape ``shape``."""
    return average(values, None if weights is None else normalised(weights))


def normalised(weights: Tensor) -> Tensor:
    """Weights of mean 1; all 0 where all are 0."""
    return weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)


def mass(weights: Tensor | None) -> Tensor | float:
    """The mean weight, which a statistic of the batch is multiplied by."""
    return 1.0 if weights is None else weights.mean()


def final(weight: Any) -> Any:
    """A weight as it is, a schedule's at the end of training."""
    return weight(1.0) if callable(weight) else weight


def scaled(weight: Any, value: Tensor) -> Tensor:
    """``weight * value`` in the value's type, also where the weight is a tensor of its own type."""
    weight = final(weight)
    if isinstance(weight, Tensor):
        return weight.to(value.dtype) * value
    return value if weight == 1 else weight * value


def positive_int(name: str, value: Any) -> int:
    """The value.

    Raises:
        ConfigError: if it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: expected a positive int, received {value!r}")
    return value


def _column(weights: Tensor, values: Tensor) -> Tensor:
    if weights.shape != values.shape[:1]:
        raise ConfigError(
            f"weights: expected one for each of {len(values)} rows, received the shape {tuple(weights.shape)}"
        )
    return weights.reshape(-1, *[1] * (values.dim() - 1))


def _parts(objective: Any) -> tuple[list[Any], list[Any]]:
    return (objective.terms, objective.weights) if isinstance(objective, Sum) else ([objective], [1.0])


def _is_weight(value: Any) -> bool:
    number = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    return number or (callable(value) and not isinstance(value, (Objective, nn.Module)))


def _without_weights(objective: Any) -> str:
    name = getattr(objective, "__name__", type(objective).__name__)
    return f"weights: the objective {name} has no argument 'weights'; give it one, (model, *data, weights=None)"
