"""The evidence lower bound."""

import math
from collections.abc import Collection
from typing import Any, ClassVar

import pyro
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyrovae.errors import ConfigError
from pyrovae.handlers import temper, weigh
from pyrovae.objectives.objective import Objective, final, rows
from pyrovae.objectives.schedules import Schedule

__all__ = ["ELBO"]


class ELBO(Objective):
    r"""``-ELBO = -E_q log p(x|z) + beta KL(q(z|x) || p(z))``, by any of Pyro's estimators.

    Args:
        beta: weight of the KL term, a number or a schedule.
        estimator: one of Pyro's ELBOs with ``differentiable_loss``; ``TraceMeanField_ELBO(max_plate_nesting=1)`` takes
            the KL analytically where there is a closed form; None is ``TraceEnum_ELBO`` for a model that enumerates,
            else ``Trace_ELBO``.
        sites: names of the sites beta applies to; None for every latent site.

    Raises:
        ConfigError: for a negative beta.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2014);
        beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al., 2017)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> import torch
        >>> loss = ELBO(beta=pv.Warmup(over=0.1))(vae, torch.ones(8, 4))
    """

    scheduled: ClassVar[tuple[str, ...]] = ("beta",)

    def __init__(
        self,
        beta: float | Schedule | Tensor = 1.0,
        estimator: Any = None,
        sites: Collection[str] | None = None,
    ) -> None:
        if isinstance(beta, (int, float)) and not 0 <= beta < math.inf:
            raise ConfigError(f"beta: expected a number from 0, received {beta!r}")
        self.beta, self.estimator, self.sites = beta, estimator, sites

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Minus the (weighted) ELBO, nats per row."""
        beta, count = final(self.beta), rows(data)
        program, guide = model.model, model.guide
        if isinstance(beta, Tensor) or beta != 1:
            program, guide = temper(beta, self.sites)(program), temper(beta, self.sites)(guide)
        if weights is not None:
            if weights.shape != (count,):
                raise ConfigError(f"weights: expected one for each of {count} rows, received {tuple(weights.shape)}")
            program, guide = weigh(weights)(program), weigh(weights)(guide)
        with pyro.get_param_store().scope():
            return self.estimator_for(model).differentiable_loss(program, guide, *data) / count

    def estimator_for(self, model: Any) -> Any:
        """The estimator that is used for a model."""
        if self.estimator is not None:
            return self.estimator
        return (TraceEnum_ELBO if getattr(model, "enumerated", ()) else Trace_ELBO)(max_plate_nesting=1)
