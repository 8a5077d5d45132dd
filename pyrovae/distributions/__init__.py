"""Distributions that torch and Pyro lack, or have in a form that fails in float32 or costs too much."""

from pyrovae.distributions.basics import center, positive
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.normal import CalibratedNormal, NormalMixture, mixture
from pyrovae.distributions.scoring import score, whole

__all__ = [
    "CalibratedNormal",
    "ContinuousBernoulli",
    "NormalMixture",
    "center",
    "mixture",
    "positive",
    "score",
    "whole",
]
