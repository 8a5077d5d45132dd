"""Callables ``(model, *data) -> loss`` in nats per row: change the loss by passing another one.

Any function of that signature will do. An :class:`Objective` can also change over training: ``at(t)`` is the objective
at progress t, from 0 at the first step to 1 at the last; called directly it stands at its final value.
"""

import abc
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyrovae.errors import ConfigError
from pyrovae.evaluation import log_weights
from pyrovae.handlers import temper

__all__ = ["ELBO", "IWAE", "Cyclical", "Objective", "Schedule", "Warmup", "reported"]

Schedule = Callable[[Any], Any]
"""A function of progress t in [0, 1], a number or a scalar tensor, that gives a weight of the same kind."""


class Warmup:
    r"""Rises from ``start`` to ``end`` over the first ``over`` of training, then stays: KL warm-up.

    Args:
        over: fraction of training, in (0, 1].
        start: first value.
        end: final value.

    References:
        Generating sentences from a continuous space (Bowman et al., 2016);
        Ladder variational autoencoders (Sonderby et al., 2016)

    Example:
        >>> Warmup(over=0.1)(0.05), Warmup(over=0.1)(0.5)
        (0.5, 1.0)
    """

    def __init__(self, over: float = 0.1, start: float = 0.0, end: float = 1.0) -> None:
        if not 0 < over <= 1:
            raise ConfigError(f"over: expected a fraction of training in (0, 1], received {over!r}")
        self.over, self.start, self.end = over, start, end

    def __call__(self, t: Any) -> Any:
        """The value at progress t."""
        return self.start + (self.end - self.start) * _clip(t / self.over)


class Cyclical:
    r"""Rises from ``start`` to ``end`` and falls back, ``cycles`` times; within a cycle over its first ``rise``.

    Args:
        cycles: number of cycles, M in the paper.
        rise: fraction of a cycle spent rising, R in the paper.
        start: value at the start of a cycle.
        end: value held until its end.

    References:
        Cyclical annealing schedule: a simple approach to mitigating KL vanishing (Fu et al., 2019)

    Example:
        >>> [Cyclical(cycles=2)(t) for t in (0.0, 0.125, 0.25, 0.49, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, cycles: int = 4, rise: float = 0.5, start: float = 0.0, end: float = 1.0) -> None:
        if cycles < 1 or not 0 < rise <= 1:
            raise ConfigError(f"cycles, rise: expected an int from 1 and a fraction, received {cycles!r}, {rise!r}")
        self.cycles, self.rise, self.start, self.end = cycles, rise, start, end

    def __call__(self, t: Any) -> Any:
        """The value at progress t; the last cycle ends at ``end``."""
        turns = t * self.cycles
        floor = torch.floor(turns) if isinstance(turns, Tensor) else math.floor(turns)
        last = self.cycles - 1
        whole = floor.clamp(max=last) if isinstance(floor, Tensor) else min(floor, last)
        return self.start + (self.end - self.start) * _clip((turns - whole) / self.rise)


class Objective(abc.ABC):
    """A loss in nats per row, possibly changing over training.

    To write one, subclass and compute a scalar from the model's programs; where a weight follows a schedule, override
    ``at`` to return the objective with the schedule evaluated. Weights belong here, never into the program.

    An objective with an adversary returns several losses by name, ``{"model": ..., "critic": ...}``, and has a method
    ``parameters(model)`` that tells which parameters each of them trains; the first loss is the one that is reported.
    """

    @abc.abstractmethod
    def __call__(self, model: Any, *data: Tensor | None) -> Tensor:
        """The loss, a scalar in nats per row.

        Args:
            model: anything with Pyro programs ``model`` and ``guide``.
            *data: what both are called with, ``x`` of shape ``(batch, *x)`` first.
        """

    def at(self, t: float | Tensor) -> "Objective":
        """This objective at progress t in [0, 1]."""
        return self


class ELBO(Objective):
    r"""``-ELBO = -E_q log p(x|z) + beta KL(q(z|x) || p(z))``, by any of Pyro's estimators.

    Args:
        beta: weight of the KL term, a number or a schedule.
        estimator: one of Pyro's ELBOs with ``differentiable_loss``; ``TraceMeanField_ELBO(max_plate_nesting=1)`` takes
            the KL analytically where there is a closed form.
        sites: names of the sites beta applies to; None for every latent site.

    Raises:
        ConfigError: for a negative beta.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2014);
        beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al., 2017)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = ELBO(beta=Warmup(over=0.1))(vae, torch.ones(8, 4))
    """

    def __init__(
        self,
        beta: float | Schedule | Tensor = 1.0,
        estimator: Any = None,
        sites: Collection[str] | None = None,
    ) -> None:
        if isinstance(beta, (int, float)) and not 0 <= beta < math.inf:
            raise ConfigError(f"beta: expected a number from 0, received {beta!r}")
        self.beta, self.sites = beta, sites
        self.estimator = Trace_ELBO(max_plate_nesting=1) if estimator is None else estimator

    def __call__(self, model: Any, *data: Tensor | None) -> Tensor:
        """Minus the (weighted) ELBO, nats per row."""
        beta = self.beta(1.0) if callable(self.beta) else self.beta
        program, guide = model.model, model.guide
        if isinstance(beta, Tensor) or beta != 1:
            program, guide = temper(beta, self.sites)(program), temper(beta, self.sites)(guide)
        with pyro.get_param_store().scope():
            return self.estimator.differentiable_loss(program, guide, *data) / _rows(data)

    def at(self, t: float | Tensor) -> "ELBO":
        """This objective with beta at progress t."""
        return ELBO(self.beta(t), self.estimator, self.sites) if callable(self.beta) else self


class IWAE(Objective):
    r"""``-E log 1/k sum_i p(x, z_i) / q(z_i|x)``, row by row: a tighter bound, equal to the ELBO at k = 1.

    The weights are taken at scale 1 and averaged within each row; ``pyro.infer.RenyiELBO`` averages over scaled or
    whole-batch weights where a plate is subsampled, and then bounds nothing.

    Args:
        k: draws per row.

    References:
        Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2016)
    """

    def __init__(self, k: int = 50) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"k: expected a positive int, received {k!r}")
        self.k = k

    def __call__(self, model: Any, *data: Tensor | None) -> Tensor:
        """Minus the bound, nats per row."""
        return math.log(self.k) - log_weights(model, *data, k=self.k).logsumexp(0).mean()


def reported(losses: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The loss, or the first of several named ones."""
    return next(iter(losses.values())) if isinstance(losses, Mapping) else losses


def _clip(t: Any) -> Any:
    return t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)


def _rows(data: tuple[Tensor | None, ...]) -> int:
    if not data or data[0] is None or len(data[0]) == 0:
        raise ConfigError("data: expected rows as the first argument, received none")
    return len(data[0])
