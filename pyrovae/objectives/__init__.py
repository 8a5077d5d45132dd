"""Callables ``(model, *data) -> loss`` in nats per row: change the loss by passing another one.

Any function of that signature will do. An :class:`Objective` can also change over training: ``at(t)`` is the objective
at progress t, from 0 at the first step to 1 at the last; called directly it stands at its final value.
"""

from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.importance import IWAE
from pyrovae.objectives.objective import Objective, reported
from pyrovae.objectives.schedules import Cyclical, Schedule, Warmup

__all__ = ["ELBO", "IWAE", "Cyclical", "Objective", "Schedule", "Warmup", "reported"]
