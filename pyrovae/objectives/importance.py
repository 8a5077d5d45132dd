"""Bounds by importance weights, averaged within each row."""

import math
from typing import Any

from torch import Tensor

from pyrovae.errors import ConfigError
from pyrovae.evaluation import log_weights
from pyrovae.objectives.objective import Objective

__all__ = ["IWAE"]


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
