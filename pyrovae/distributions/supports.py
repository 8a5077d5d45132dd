"""Supports that torch lacks."""

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import SigmoidTransform

__all__ = ["open_unit_interval", "sphere"]


class _OpenUnitInterval(constraints.Constraint):
    """Numbers strictly between 0 and 1, where densities that are 0 or infinite at the ends are finite."""

    def __repr__(self) -> str:
        return "numbers strictly between 0 and 1"

    def check(self, value: Tensor) -> Tensor:
        """Elementwise."""
        return (value > 0) & (value < 1)


class _Sphere(constraints.Constraint):
    """Unit vectors, by their length within 1e-4: data rounded to five digits pass, data that are not normalised fail.

    A length off by d moves the log density of a von Mises-Fisher by ``concentration d^2 / 2``, 0.005 nats at the most.
    """

    event_dim = 1

    def __repr__(self) -> str:
        return "unit vectors"

    def check(self, value: Tensor) -> Tensor:
        """For each vector."""
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() < 1e-4


open_unit_interval = _OpenUnitInterval()
sphere = _Sphere()


@biject_to.register(_OpenUnitInterval)
@transform_to.register(_OpenUnitInterval)
def _sigmoid(support: constraints.Constraint) -> SigmoidTransform:
    return SigmoidTransform()
