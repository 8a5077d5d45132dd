"""What every family leans on: a positive number from any number, a centre for any distribution."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

__all__ = ["center", "positive"]


def positive(raw: Tensor) -> Tensor:
    """``exp(10 tanh(raw / 10))``: about exp near 0, and within exp(±10) everywhere.

    A scale in that range neither underflows in a square nor overflows in a precision, even in float32.
    """
    return torch.exp(10 * torch.tanh(raw / 10))


def center(distribution: TorchDistribution) -> Tensor:
    """The mean; where there is none, as for classes or a Cauchy tail, the mode."""
    mean = distribution.mean
    return torch.where(mean.isnan(), distribution.mode, mean) if mean.isnan().any() else mean
