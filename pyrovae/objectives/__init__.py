"""Callables ``(model, *data) -> loss`` in nats per row: change the loss by passing another one.

Any function of that signature will do. An :class:`Objective` can also change over training: ``at(t)`` is the objective
at progress t, from 0 at the first step to 1 at the last; called directly it stands at its final value. Objectives add
up and scale like numbers, ``ELBO(beta=0.0) + 10.0 * MMD()``, and take weights of rows.
"""

from pyrovae.objectives.adversarial import AdversarialAutoencoder, FactorVAE
from pyrovae.objectives.aggregate import (
    DIPVAE,
    DIPVAEII,
    IMQ,
    MMD,
    RBF,
    BetaTCVAE,
    Kernel,
    Sampling,
    StratifiedSampling,
    WeightedSampling,
)
from pyrovae.objectives.conditional import GSNN, Hybrid
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.importance import CIWAE, IWAE, MIWAE, PIWAE, STL, DReG, Renyi
from pyrovae.objectives.labels import Classification, LabelEntropy, LabelMarginal, VirtualAdversarial
from pyrovae.objectives.objective import Objective, Sum, average, expectation, reported
from pyrovae.objectives.rate import Capacity, FreeBits, SiteFreeBits
from pyrovae.objectives.schedules import Cyclical, Schedule, Warmup

__all__ = [
    "CIWAE",
    "DIPVAE",
    "DIPVAEII",
    "ELBO",
    "GSNN",
    "IMQ",
    "IWAE",
    "MIWAE",
    "MMD",
    "PIWAE",
    "RBF",
    "STL",
    "AdversarialAutoencoder",
    "BetaTCVAE",
    "Capacity",
    "Classification",
    "Cyclical",
    "DReG",
    "FactorVAE",
    "FreeBits",
    "Hybrid",
    "Kernel",
    "LabelEntropy",
    "LabelMarginal",
    "Objective",
    "Renyi",
    "Sampling",
    "Schedule",
    "SiteFreeBits",
    "StratifiedSampling",
    "Sum",
    "VirtualAdversarial",
    "Warmup",
    "WeightedSampling",
    "average",
    "expectation",
    "reported",
]
