"""Bounds by importance weights, averaged within each row."""

import abc
import math
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.evaluation import log_weights
from pyrovae.evaluation.passes import row_log_prob
from pyrovae.handlers import detached, particle_plate, recorded, sample_sites
from pyrovae.models import Model
from pyrovae.objectives.objective import Objective, average, final, positive_int, rows, scaled
from pyrovae.objectives.rate import differentiable
from pyrovae.objectives.schedules import Schedule

__all__ = ["CIWAE", "IWAE", "MIWAE", "PIWAE", "STL", "DReG", "ImportanceBound", "Renyi"]


class ImportanceBound(Objective):
    """Abstract: a bound on log p(x) that is a function of each row's importance weights.

    The weights are taken at scale 1 and combined within each row; ``pyro.infer.RenyiELBO`` averages over scaled or
    whole-batch weights where a plate is subsampled, and then bounds nothing. Gradients follow the path through z, so
    every latent of the guide must be reparameterised.

    To write one, keep the number of draws as ``k`` and say what the bound is.
    """

    k: int

    @property
    def draws(self) -> int:
        """Draws per row."""
        return self.k

    @abc.abstractmethod
    def bound(self, log_w: Tensor) -> Tensor:
        """The bound of each row, shape ``(batch,)``.

        Args:
            log_w: log p(x, z) - log q(z|x), shape ``(draws, batch)``.
        """

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Minus the bound, nats per row."""
        return average(-self.bound(self.log_weights(model, *data)), weights)

    def log_weights(self, model: Any, *data: Tensor | None) -> Tensor:
        """Log weights, shape ``(draws, batch)``."""
        rows(data)
        return log_weights(differentiable(model), *data, k=self.draws)


class IWAE(ImportanceBound):
    r"""``-E log 1/k sum_i p(x, z_i) / q(z_i|x)``, row by row: a tighter bound, equal to the ELBO at k = 1.

    Args:
        k: draws per row.

    References:
        Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2016)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = IWAE(k=5)(vae, torch.ones(3, 4))
    """

    def __init__(self, k: int = 50) -> None:
        self.k = positive_int("k", k)

    def bound(self, log_w: Tensor) -> Tensor:
        """``log 1/k sum_i w_i``."""
        return _log_mean(log_w)


class Renyi(ImportanceBound):
    r"""The variational Renyi bound, ``1/(1 - alpha) log 1/k sum_i w_i^(1 - alpha)``; it falls as alpha rises.

    alpha = 0 is :class:`IWAE`, alpha = 1 the ELBO (the limit, exactly), a negative alpha weighs the best draws more,
    minus infinity takes the best draw alone (VR-max). With finite k and a negative alpha it need not be below log p(x).

    Args:
        alpha: any number, infinities included.
        k: draws per row.

    References:
        Renyi divergence variational inference (Li and Turner, 2016)

    Example:
        >>> log_w = torch.tensor([[0.0], [2.0]])
        >>> [round(Renyi(a, k=2).bound(log_w).item(), 3) for a in (-math.inf, 0.0, 1.0)]
        [2.0, 1.434, 1.0]
    """

    def __init__(self, alpha: float = 0.5, k: int = 50) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or math.isnan(alpha):
            raise ConfigError(f"alpha: expected a number, received {alpha!r}")
        self.alpha, self.k = alpha, positive_int("k", k)

    def bound(self, log_w: Tensor) -> Tensor:
        """``1/(1 - alpha) log 1/k sum_i w_i^(1 - alpha)``."""
        power = 1 - self.alpha
        if math.isinf(power):
            return log_w.amax(0) if power > 0 else log_w.amin(0)
        if abs(power) > 1e-3:
            return _log_mean(power * log_w) / power
        mean = log_w.mean(0)  # near the limit the logarithm of a mean near 1 would be all rounding
        if power == 0:
            return mean
        return mean + torch.expm1(power * (log_w - mean)).mean(0).log1p() / power


class MIWAE(ImportanceBound):
    r"""The mean of m independent bounds of k draws, ``1/m sum_j log 1/k sum_i w_ij``.

    A larger m makes the guide's gradient less noisy, a larger k the bound tighter: MIWAE(k, 1) is IWAE(k), MIWAE(1, m)
    the ELBO by m draws. Where x has missing cells and m = 1 it is the bound of Mattei and Frellsen for incomplete data,
    which bears the same name.

    Args:
        k: draws in each bound.
        m: bounds.

    References:
        Tighter variational bounds are not necessarily better (Rainforth et al., 2018);
        MIWAE: deep generative modelling and imputation of incomplete data sets (Mattei and Frellsen, 2019)

    Example:
        >>> MIWAE(k=2, m=2).bound(torch.tensor([0.0, 0.0, 3.0, 3.0])[:, None])
        tensor([1.5000])
    """

    def __init__(self, k: int = 8, m: int = 8) -> None:
        self.k, self.m = positive_int("k", k), positive_int("m", m)

    @property
    def draws(self) -> int:
        """Draws per row."""
        return self.k * self.m

    def bound(self, log_w: Tensor) -> Tensor:
        """``1/m sum_j log 1/k sum_i w_ij``."""
        return _log_mean(log_w.unflatten(0, (self.m, self.k)), 1).mean(0)


class CIWAE(ImportanceBound):
    r"""``beta ELBO + (1 - beta) IWAE_k`` on the same draws.

    Args:
        k: draws per row.
        beta: from 0, the IWAE bound, to 1, the ELBO; a number or a schedule.

    References:
        Tighter variational bounds are not necessarily better (Rainforth et al., 2018)

    Example:
        >>> CIWAE(k=2, beta=1.0).bound(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """

    scheduled: ClassVar[tuple[str, ...]] = ("beta",)

    def __init__(self, k: int = 64, beta: float | Schedule | Tensor = 0.05) -> None:
        if isinstance(beta, (int, float)) and not 0 <= beta <= 1:
            raise ConfigError(f"beta: expected a number from 0 to 1, received {beta!r}")
        self.k, self.beta = positive_int("k", k), beta

    def bound(self, log_w: Tensor) -> Tensor:
        """``beta 1/k sum_i log w_i + (1 - beta) log 1/k sum_i w_i``."""
        beta = final(self.beta)
        return scaled(beta, log_w.mean(0)) + scaled(1 - beta, _log_mean(log_w))


class PIWAE(Objective):
    r"""The model's parameters by IWAE of all m k draws, the guide's by :class:`MIWAE` of the same draws.

    Two named losses, ``"model"`` and ``"guide"``. Which parameters are the guide's, the model says by
    :meth:`pyrovae.Model.guide_parameters`; those that the prior shares, as in a VampPrior, are the guide's.

    Args:
        k: draws in each of the guide's bounds.
        m: bounds.

    References:
        Tighter variational bounds are not necessarily better (Rainforth et al., 2018)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> sorted(PIWAE(k=4, m=2)(vae, torch.ones(3, 4)))
        ['guide', 'model']
    """

    def __init__(self, k: int = 8, m: int = 8) -> None:
        self.k, self.m = positive_int("k", k), positive_int("m", m)

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Minus both bounds, nats per row."""
        guide = MIWAE(self.k, self.m)
        log_w = guide.log_weights(model, *data)
        return {"model": average(-_log_mean(log_w), weights), "guide": average(-guide.bound(log_w), weights)}

    def parameters(self, model: Any) -> dict[str, list[nn.Parameter]]:
        """The guide's.

        Raises:
            ConfigError: for a model that does not name them.
        """
        if not isinstance(model, Model):
            raise ConfigError(
                f"PIWAE: expected a pyrovae.Model, whose guide_parameters() are the guide's, received a "
                f"{type(model).__name__}"
            )
        return {"guide": model.guide_parameters()}


class STL(ImportanceBound):
    r"""The bound of :class:`IWAE` with the score of the guide left out of its gradient: sticking the landing.

    ``d/dphi log q(z|x)`` is the path through z alone; at k = 1 what is left out is 0 in the mean, and the gradient
    vanishes draw by draw where the guide is the exact posterior. For k > 1 the guide's gradient is biased: see
    :class:`DReG`. The guide runs twice, once to draw, once with fixed parameters to score.

    Args:
        k: draws per row.

    References:
        Sticking the landing: simple, lower-variance gradient estimators for variational inference (Roeder, Wu and
        Duvenaud, 2017)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = STL()(vae, torch.ones(3, 4))
    """

    def __init__(self, k: int = 1) -> None:
        self.k = positive_int("k", k)

    def bound(self, log_w: Tensor) -> Tensor:
        """``log 1/k sum_i w_i``."""
        return _log_mean(log_w)

    def log_weights(self, model: Any, *data: Tensor | None) -> Tensor:
        """Log weights by fixed parameters of the guide, shape ``(k, batch)``."""
        return _PathWeights(model, data, self.k).log_w


class DReG(ImportanceBound):
    r"""The bound of :class:`IWAE` with a guide's gradient of lower variance: doubly reparameterised.

    ``sum_i v_i^2 (d log w_i / dz_i) (dz_i / dphi)`` with ``v_i = w_i / sum_j w_j``, the same in the mean as the guide's
    gradient of IWAE; it does not drown in noise as k grows. The model's gradient is IWAE's. The guide runs twice, once
    to draw, once with fixed parameters to score.

    Args:
        k: draws per row.

    References:
        Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker et al., 2019)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = DReG(k=8)(vae, torch.ones(3, 4))
    """

    def __init__(self, k: int = 50) -> None:
        self.k = positive_int("k", k)

    def bound(self, log_w: Tensor) -> Tensor:
        """``log 1/k sum_i w_i``."""
        return _log_mean(log_w)

    def log_weights(self, model: Any, *data: Tensor | None) -> Tensor:
        """Log weights, shape ``(k, batch)``, whose gradient on its way to z is weighted once more."""
        weights = _PathWeights(model, data, self.k)
        weights.reweigh()
        return weights.log_w


class _PathWeights:
    """Log weights whose dependence on the guide's parameters is the path through z.

    Model and second guide are given z as another tensor of the same numbers: gradients of both meet there, once for
    every site, whatever else z goes into on its way through the first guide. It also keeps transforms from answering
    with what they remember of the draw.
    """

    def __init__(self, model: Any, data: tuple[Tensor | None, ...], k: int) -> None:
        count, noise = rows(data), []
        self.k, self.taps = k, []
        with pyro.get_param_store().scope(), particle_plate(k):
            with recorded(noise):
                drawn = poutine.trace(differentiable(model).guide).get_trace(*data)
            for _, site in sample_sites(drawn):
                site["value"] = site["value"].view_as(site["value"])
                self.taps.append((site["value"], site["fn"].event_dim))
            scored = poutine.trace(poutine.replay(model.model, trace=drawn)).get_trace(*data)
            with detached(model, noise):
                fixed = poutine.trace(poutine.replay(model.guide, trace=drawn)).get_trace(*data)
                log_q = row_log_prob(fixed, k, count, observed=False)
        observed, latent = (row_log_prob(scored, k, count, observed=kind) for kind in (True, False))
        self.log_w = observed + latent - log_q

    def reweigh(self) -> None:
        """Multiply what reaches z by the draw's normalised weight: with the bound's own, v^2."""
        share = self.log_w.detach().softmax(0)
        for z, event_dim in self.taps:
            if z.requires_grad and self.k > 1:
                factor = share.reshape(*share.shape, *[1] * event_dim)
                z.register_hook(lambda gradient, factor=factor: gradient * factor)


def _log_mean(log_w: Tensor, dim: int = 0) -> Tensor:
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])
