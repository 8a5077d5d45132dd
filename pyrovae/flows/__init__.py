"""Densities by change of variables: a base distribution pushed through invertible maps whose parameters are learned."""

from pyrovae.flows.flow import Flow, Flowed
from pyrovae.flows.transforms import IAF, MAF, FlowTransform, Householder, NeuralSpline, Planar, RealNVP, Sylvester

__all__ = [
    "IAF",
    "MAF",
    "Flow",
    "FlowTransform",
    "Flowed",
    "Householder",
    "NeuralSpline",
    "Planar",
    "RealNVP",
    "Sylvester",
]
