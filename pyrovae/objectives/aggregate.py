"""Objectives of the aggregate posterior, q(z) = E_x q(z|x): dependence, covariance, distance to the prior."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.errors import ConfigError
from pyrovae.handlers import sample_sites
from pyrovae.objectives.objective import Objective, average, expectation, mass, normalised, rows, scaled
from pyrovae.objectives.rate import Latent, differentiable, elements, one_pass
from pyrovae.objectives.schedules import Schedule

__all__ = [
    "DIPVAE",
    "DIPVAEII",
    "IMQ",
    "MMD",
    "RBF",
    "BetaTCVAE",
    "Kernel",
    "RateTerms",
    "Sampling",
    "StratifiedSampling",
    "WeightedSampling",
]

Weight = float | Schedule | Tensor


class Sampling(abc.ABC):
    """How the aggregate posterior is estimated from the rows of a batch: ``q(z_i) ~ sum_j W_ij q(z_i|x_j)``."""

    @abc.abstractmethod
    def log_weights(self, weights: Tensor, total: int) -> Tensor:
        """Log W, shape ``(batch, batch)``.

        Args:
            weights: of the rows, of mean 1, shape ``(batch,)``.
            total: N, rows of the data set.
        """


class WeightedSampling(Sampling):
    """Every row of the batch stands for as many others: ``W_ij = 1 / (N M)`` with M rows in the batch.

    Its estimate of q(z) is too small, by a factor from M, where the codes of different rows do not overlap, to N, where
    they coincide. The mutual information comes out too large by the logarithm of that factor, the total correlation by
    D - 1 times as much and the dimension-wise KL too small by D times as much, for D dimensions. The sum is exact, and
    a constant factor has no gradient; to measure rather than train, take :class:`StratifiedSampling`.

    References:
        Isolating sources of disentanglement in variational autoencoders (Chen et al., 2018), section 4.1
    """

    def log_weights(self, weights: Tensor, total: int) -> Tensor:
        """``log 1 / (N M)``, row by row of the batch."""
        return _log(weights / (total * len(weights))).expand(len(weights), -1)


class StratifiedSampling(Sampling):
    """Row i stands for itself, the others for all others: ``W_ii = 1/N``, ``W_ij = (N - 1) / (N (M - 1))``.

    The estimate of q(z_i) is unbiased, and exact where the batch is the data set. The paper lets one of the other rows
    carry the correction; this is the mean over which of them does.

    References:
        Isolating sources of disentanglement in variational autoencoders (Chen et al., 2018), appendix C.2
    """

    def log_weights(self, weights: Tensor, total: int) -> Tensor:
        """``log 1/N`` on the diagonal, the rest shared by the others."""
        one = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
        own = weights / total
        others = (weights.sum() - weights).clamp(min=torch.finfo(weights.dtype).tiny)
        share = (1 - own)[:, None].clamp(min=0) * weights / others[:, None]
        return _log(torch.where(one > 0, own, share))


@dataclass(frozen=True)
class RateTerms:
    """The rate in three parts, each of shape ``(batch,)``; their sum is log q(z|x) - log p(z).

    Attributes:
        mutual_information: log q(z|x) - log q(z).
        total_correlation: log q(z) - sum_d log q(z_d).
        dimension_wise: sum_d log q(z_d) - log p(z).
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor


class BetaTCVAE(Objective):
    r"""``-E_q log p(x|z) + alpha I(x; z) + beta TC(z) + gamma sum_d KL(q(z_d) || p(z_d))``.

    The three terms sum to the rate, so that all weights 1 give the ELBO. The aggregate posterior q(z) is estimated from
    the batch. Other latent sites count with weight 1.

    Args:
        rows: N, rows of the data set.
        beta: weight of the total correlation, a number or a schedule.
        alpha: weight of the index-code mutual information.
        gamma: weight of the dimension-wise KL.
        sampling: how q(z) is estimated; None is :class:`WeightedSampling`, as in the paper's experiments.
        site: the latent site; its posterior must factorise.

    References:
        Isolating sources of disentanglement in variational autoencoders (Chen et al., 2018)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = BetaTCVAE(rows=60_000, sampling=StratifiedSampling())(vae, torch.ones(3, 4))
    """

    scheduled: ClassVar[tuple[str, ...]] = ("beta", "alpha", "gamma")

    def __init__(
        self,
        rows: int,
        beta: Weight = 6.0,
        alpha: Weight = 1.0,
        gamma: Weight = 1.0,
        sampling: Sampling | None = None,
        site: str = "z",
    ) -> None:
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 2:
            raise ConfigError(f"rows: expected the number of rows of the data set, received {rows!r}")
        for name, value in (("beta", beta), ("alpha", alpha), ("gamma", gamma)):
            _check_weight(name, value)
        self.rows, self.beta, self.alpha, self.gamma, self.site = rows, beta, alpha, gamma, site
        self.sampling = WeightedSampling() if sampling is None else sampling

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The loss, nats per row."""
        drawn = one_pass(model, *data)
        parts = self._split(drawn.latent(self.site), weights)
        rate = (
            scaled(self.alpha, parts.mutual_information)
            + scaled(self.beta, parts.total_correlation)
            + scaled(self.gamma, parts.dimension_wise)
        )
        others = drawn.rate(name for name in drawn.latents if name != self.site)
        return average(rate + others - drawn.reconstruction, weights)

    def terms(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> RateTerms:
        """The three parts of the rate of each row.

        A row's mutual information is at most ``-log W_ii``: log N by :class:`StratifiedSampling`, log N M by
        :class:`WeightedSampling`, with N rows of the data and M in the batch. There it stays once its code overlaps
        with no other of the batch, however large the rate; the rest of the rate is then booked as total correlation
        and dimension-wise KL. With all rows in one batch the bound is log M, and the true value obeys it as well.

        Args:
            model: as in a call.
            *data: as in a call.
            weights: of the rows, or None.
        """
        return self._split(one_pass(model, *data).latent(self.site), weights)

    def _split(self, latent: Latent, weights: Tensor | None) -> RateTerms:
        each = elements(latent.q, latent.name).log_prob(latent.z[:, None]).flatten(2)  # log q(z_id | x_j)
        given = torch.ones_like(each[:, 0, 0]) if weights is None else weights
        share = self.sampling.log_weights(normalised(given).detach(), max(self.rows, len(given)))
        joint = (each.sum(-1) + share).logsumexp(1)
        product = (each + share[..., None]).logsumexp(1).sum(-1)
        own = each.diagonal().sum(0)
        return RateTerms(own - joint, joint - product, product - latent.p.log_prob(latent.z))


class _DIP(Objective):
    """Abstract: ``-ELBO`` and how far the covariance of the aggregate posterior is from the identity.

    Args:
        off_diagonal: weight of its squared covariances.
        diagonal: weight of its squared variances minus 1.
        site: the latent site.
    """

    scheduled: ClassVar[tuple[str, ...]] = ("off_diagonal", "diagonal")

    def __init__(self, off_diagonal: Weight, diagonal: Weight, site: str) -> None:
        _check_weight("off_diagonal", off_diagonal)
        _check_weight("diagonal", diagonal)
        self.off_diagonal, self.diagonal, self.site = off_diagonal, diagonal, site

    @abc.abstractmethod
    def covariance(self, latent: Latent, weights: Tensor | None) -> Tensor:
        """The covariance of z over the batch, shape ``(D, D)``."""

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The loss, nats per row."""
        drawn = one_pass(model, *data)
        covariance = self.covariance(drawn.latent(self.site), weights)
        variances = covariance.diagonal()
        spread = covariance.square().sum() - variances.square().sum()
        penalty = scaled(self.off_diagonal, spread) + scaled(self.diagonal, (variances - 1).square().sum())
        return average(drawn.rate() - drawn.reconstruction, weights) + mass(weights) * penalty


class DIPVAE(_DIP):
    r"""``-ELBO + a sum_{i != j} C_ij^2 + b sum_i (C_ii - 1)^2`` with ``C = Cov_x(E_q(z|x) z)``.

    Args:
        off_diagonal: a, a number or a schedule.
        diagonal: b; ten times a in the paper.
        site: the latent site.

    References:
        Variational inference of disentangled latent concepts from unlabeled observations (Kumar, Sattigeri and
        Balakrishnan, 2018)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = DIPVAE(off_diagonal=5.0, diagonal=50.0)(vae, torch.ones(3, 4))
    """

    def __init__(self, off_diagonal: Weight = 10.0, diagonal: Weight = 100.0, site: str = "z") -> None:
        super().__init__(off_diagonal, diagonal, site)

    def covariance(self, latent: Latent, weights: Tensor | None) -> Tensor:
        """Of the means."""
        return _covariance(latent.q.mean.flatten(1), weights)


class DIPVAEII(_DIP):
    r"""``-ELBO + a sum_{i != j} C_ij^2 + b sum_i (C_ii - 1)^2`` with ``C = Cov_q(z) z``.

    The covariance of the aggregate posterior is that of the means and the mean variance.

    Args:
        off_diagonal: a, a number or a schedule.
        diagonal: b; as large as a in the paper.
        site: the latent site; its posterior's dimensions are independent.

    References:
        Variational inference of disentangled latent concepts from unlabeled observations (Kumar, Sattigeri and
        Balakrishnan, 2018)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = DIPVAEII()(vae, torch.ones(3, 4))
    """

    def __init__(self, off_diagonal: Weight = 10.0, diagonal: Weight = 10.0, site: str = "z") -> None:
        super().__init__(off_diagonal, diagonal, site)

    def covariance(self, latent: Latent, weights: Tensor | None) -> Tensor:
        """Of the means, and the mean variances on the diagonal."""
        variances = expectation(elements(latent.q, latent.name).variance.flatten(1), weights)
        return _covariance(latent.q.mean.flatten(1), weights) + torch.diag(variances)


class Kernel(abc.ABC):
    """A positive definite function of the squared distance between two latents.

    To write one, subclass and compute it; keep every constructor argument as an attribute of the same name.
    """

    @abc.abstractmethod
    def __call__(self, squared: Tensor, size: int) -> Tensor:
        """The kernel, elementwise.

        Args:
            squared: squared distances.
            size: elements of one latent.
        """


class RBF(Kernel):
    r"""``exp(-|a - b|^2 / (2 scale^2))``.

    Args:
        scale: the kernel's width; about the typical distance between latents, sqrt(2 D) for D standard normal ones.

    Example:
        >>> RBF(scale=1.0)(torch.tensor(2.0), 1)
        tensor(0.3679)
    """

    def __init__(self, scale: float) -> None:
        self.scale = _positive("scale", scale)

    def __call__(self, squared: Tensor, size: int) -> Tensor:
        """``exp(-d^2 / (2 scale^2))``."""
        return torch.exp(squared / (-2 * self.scale**2))


class IMQ(Kernel):
    r"""Inverse multiquadratics, ``sum_s s C / (s C + |a - b|^2)`` with ``C = 2 D scale^2`` for D dimensions.

    Their tails are heavy: latents far from the prior are drawn in from where a Gaussian kernel no longer feels them.

    Args:
        scale: standard deviation of one dimension of the prior.
        factors: s.

    References:
        Wasserstein auto-encoders (Tolstikhin et al., 2018)

    Example:
        >>> IMQ(factors=[1.0])(torch.tensor(2.0), 1)
        tensor(0.5000)
    """

    def __init__(self, scale: float = 1.0, factors: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)) -> None:
        self.scale, self.factors = _positive("scale", scale), factors
        if not factors:
            raise ConfigError("factors: expected at least one, received none")
        for factor in factors:
            _positive("factors", factor)

    def __call__(self, squared: Tensor, size: int) -> Tensor:
        """``sum_s s C / (s C + d^2)``."""
        widths = [factor * 2 * size * self.scale**2 for factor in self.factors]
        return torch.stack([width / (width + squared) for width in widths]).sum(0)


class MMD(Objective):
    r"""Squared maximum mean discrepancy between the aggregate posterior and the prior, without bias; a term to add.

    ``E k(z, z') + E k(p, p') - 2 E k(z, p)`` over different rows of the batch: z from q(z|x), p from the prior given
    the same context. It can be negative. ``ELBO(beta=0.0) + 10.0 * MMD()`` is a Wasserstein autoencoder (WAE-MMD),
    ``ELBO(beta=0.1) + 10.0 * MMD()`` an InfoVAE; ``beta=0.0`` with ``RBF`` the MMD-VAE. One row has no discrepancy: 0.
    Weights are those of a row's latent and its draw from the prior alike. The prior is run forward, so any will do; its
    parameters are trained where its draws are reparameterised.

    Args:
        kernel: None is :class:`IMQ`.
        site: the latent site.

    References:
        InfoVAE: balancing learning and inference in variational autoencoders (Zhao, Song and Ermon, 2019);
        Wasserstein auto-encoders (Tolstikhin et al., 2018);
        A kernel two-sample test (Gretton et al., 2012)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> loss = (pv.ELBO(beta=0.0) + 10.0 * MMD(RBF(scale=2.0)))(vae, torch.ones(3, 4))
    """

    def __init__(self, kernel: Kernel | None = None, site: str = "z") -> None:
        self.kernel, self.site = IMQ() if kernel is None else kernel, site

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The discrepancy, times the mean weight."""
        z, p = posterior_draws(model, self.site, *data), prior_draws(model, self.site, *data)
        return mass(weights) * self.discrepancy(z.flatten(1), p.flatten(1), weights)

    def discrepancy(self, z: Tensor, p: Tensor, weights: Tensor | None = None) -> Tensor:
        """Of two samples of equal size, a scalar.

        Args:
            z: shape ``(batch, D)``.
            p: same shape.
            weights: of the rows of both, shape ``(batch,)``.
        """
        size = z.shape[1]
        total = (
            self.kernel(_squared(z, z), size)
            + self.kernel(_squared(p, p), size)
            - 2 * self.kernel(_squared(z, p), size)
        )
        w = torch.ones_like(z[:, 0]) if weights is None else normalised(weights)
        pairs = w[:, None] * w
        pairs = pairs - torch.diag(pairs.diagonal())
        return (pairs * total).sum() / pairs.sum().clamp(min=torch.finfo(w.dtype).tiny)


def posterior_draws(model: Any, site: str, *data: Tensor | None) -> Tensor:
    """One draw of the guide for every row, shape ``(batch, *z)``.

    Raises:
        ConfigError: if there is no such site, or no gradient passes through it.
    """
    return _draws(differentiable(model).guide, site, *data)


def prior_draws(model: Any, site: str, *data: Tensor | None) -> Tensor:
    """One draw of the model for every row, given its context, shape ``(batch, *z)``.

    Raises:
        ConfigError: if there is no such site.
    """
    return _draws(model.model, site, *data)


def _draws(program: Any, site: str, *data: Tensor | None) -> Tensor:
    rows(data)
    with pyro.get_param_store().scope():
        sites = dict(sample_sites(poutine.trace(program).get_trace(*data)))
    if site not in sites or sites[site]["is_observed"]:
        raise ConfigError(f"site: there is no latent {site!r}; there are the sites {', '.join(sites)}")
    return sites[site]["value"]


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of all pairs, shape ``(len(a), len(b))``."""
    products = a @ b.T
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * products).clamp(min=0)


def _covariance(values: Tensor, weights: Tensor | None) -> Tensor:
    """Over the batch, of values ``(batch, D)``: shape ``(D, D)``."""
    centred = values - expectation(values, weights)
    heavy = centred if weights is None else normalised(weights)[:, None] * centred
    return heavy.T @ centred / len(values)


def _log(weights: Tensor) -> Tensor:
    """The logarithm, finite at 0."""
    return weights.clamp(min=torch.finfo(weights.dtype).tiny).log()


def _check_weight(name: str, value: Any) -> None:
    if isinstance(value, (int, float)) and not 0 <= value < math.inf:
        raise ConfigError(f"{name}: expected a number from 0, received {value!r}")


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{name}: expected a positive number, received {value!r}")
    return value
