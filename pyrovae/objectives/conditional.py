"""What a conditional model is trained for besides the ELBO: to predict x from the context alone."""

from typing import Any, ClassVar

from torch import Tensor

from pyrovae.errors import ConfigError
from pyrovae.evaluation.passes import row_log_prob
from pyrovae.handlers import unguided
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.objective import Objective, average, final, positive_int, rows, scaled
from pyrovae.objectives.rate import reparameterised
from pyrovae.objectives.schedules import Schedule

__all__ = ["GSNN", "Hybrid"]


class GSNN(Objective):
    r"""``-E_p(z|c) log p(x|z, c)``: the ELBO with the prior in the place of the guide, which is left untrained.

    The loss of a Gaussian stochastic neural network. Training draws z as prediction does, from the context alone, and
    so learns no more from z than the context says: alone it tends to a z without any use. See :class:`Hybrid`.

    Args:
        k: draws per row, which make the loss less noisy and change nothing else.

    References:
        Learning structured output representation using deep conditional generative models (Sohn, Lee and Yan, 2015)

    Example:
        >>> import torch, pyrovae as pv
        >>> prior, q = pv.Normal(2, context=3), pv.Normal(2, context=[(4,), (3,)])
        >>> vae = pv.VAE(prior, pv.Bernoulli(4, context=[(2,), (3,)]), q)
        >>> loss = GSNN()(vae, torch.ones(8, 4), torch.randn(8, 3))
    """

    def __init__(self, k: int = 1) -> None:
        self.k = positive_int("k", k)

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Minus the mean log-likelihood of draws from the prior, nats per row.

        Raises:
            ConfigError: for a prior whose draws are not reparameterised.
        """
        count = rows(data)
        trace = unguided(reparameterised(model.model), *data, particles=self.k)
        return average(-row_log_prob(trace, self.k, count, observed=True).mean(0), weights)


class Hybrid(Objective):
    r"""``-alpha ELBO + (1 - alpha) GSNN``: the guide's z and the prior's, in one loss.

    The ELBO never sees x predicted from a z of the prior, which is how it is predicted later; :class:`GSNN` sees
    nothing else. Both are bounds on log p(x|c), and so is their mean.

    Args:
        alpha: in [0, 1], a number or a schedule.
        estimator: of the ELBO, as in :class:`pyrovae.ELBO`.

    Raises:
        ConfigError: for alpha outside [0, 1].

    References:
        Learning structured output representation using deep conditional generative models (Sohn, Lee and Yan, 2015)

    Example:
        >>> import torch, pyrovae as pv
        >>> prior, q = pv.Normal(2, context=3), pv.Normal(2, context=[(4,), (3,)])
        >>> vae = pv.VAE(prior, pv.Bernoulli(4, context=[(2,), (3,)]), q)
        >>> loss = Hybrid(alpha=0.9)(vae, torch.ones(8, 4), torch.randn(8, 3))
    """

    scheduled: ClassVar[tuple[str, ...]] = ("alpha",)

    def __init__(self, alpha: float | Schedule | Tensor = 0.5, estimator: Any = None) -> None:
        if isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
            raise ConfigError(f"alpha: expected a number in [0, 1], received {alpha!r}")
        self.alpha, self.estimator = alpha, estimator

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The weighted loss, nats per row."""
        alpha = final(self.alpha)
        bound = ELBO(estimator=self.estimator)(model, *data, weights=weights)
        return scaled(alpha, bound) + scaled(1 - alpha, GSNN()(model, *data, weights=weights))
