"""The graphs with an auxiliary variable, which makes the guide a mixture."""

from typing import Any

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor

from pyrovae.conditional import Conditional
from pyrovae.distributions import codes
from pyrovae.distributions.given import clamped, known
from pyrovae.evaluation import Rows, as_tensor
from pyrovae.handlers import frozen
from pyrovae.models.labelled import Labelled

__all__ = ["AuxiliaryVAE", "SkipVAE"]


class AuxiliaryVAE(Labelled):
    r"""ADGM: M2 with an auxiliary a, ``x ~ p(x|z, y)``, ``a ~ p(a|z, y, x)``, guide ``q(a|x) q(y|x, a) q(z|x, y, a)``.

    The auxiliary variable leaves p(x, y, z) as it is and makes q(z, y|x) a mixture over a, which fits better.

    Args:
        labels: p(y).
        prior: p(z), or p(z|y) with y as its context.
        likelihood: p(x|z, y).
        auxiliary_likelihood: p(a|z, y, x).
        auxiliary: q(a|x).
        posterior: q(z|x, y, a).
        classifier: q(y|x, a).

    References:
        Auxiliary deep generative models (Maaløe, Sønderby, Sønderby and Winther, 2016)

    Example:
        >>> import torch, pyrovae as pv
        >>> adgm = pv.AuxiliaryVAE(
        ...     labels=pv.OneHotCategorical(3),
        ...     prior=pv.StandardNormal(2),
        ...     likelihood=pv.Bernoulli(8, context=[(2,), (3,)]),
        ...     auxiliary_likelihood=pv.Normal(2, context=[(2,), (3,), (8,)]),
        ...     auxiliary=pv.Normal(2, context=8),
        ...     posterior=pv.Normal(2, context=[(8,), (3,), (2,)]),
        ...     classifier=pv.OneHotCategorical(3, context=[(8,), (2,)]),
        ... )
        >>> loss = pv.ELBO()(adgm, torch.ones(4, 8), torch.tensor([0, 2, -1, -1]))
    """

    guide_parts = ("auxiliary", "classifier", "posterior")

    def __init__(
        self,
        labels: Conditional,
        prior: Conditional,
        likelihood: Conditional,
        auxiliary_likelihood: Conditional,
        auxiliary: Conditional,
        posterior: Conditional,
        classifier: Conditional,
    ) -> None:
        super().__init__(labels)
        self.prior, self.likelihood, self.auxiliary_likelihood = prior, likelihood, auxiliary_likelihood
        self.auxiliary, self.posterior, self.classifier = auxiliary, posterior, classifier

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        """The generative program p(x, a, y, z)."""
        with pyro.plate("batch", n if x is None else len(x)):
            y = pyro.sample("y", clamped(self.labels(), y))
            z = pyro.sample("z", self.prior(y))
            x = pyro.sample("x", self.likelihood(z, y), obs=x)
            pyro.sample("a", self.auxiliary_likelihood(z, y, x))
            return x

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The inference program q(a, y, z | x)."""
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", self.auxiliary(x))
            y = pyro.sample("y", known(self.classifier(x, a), y), infer=self._infer)
            pyro.sample("z", self.posterior(x, y, a))

    def classify(self, x: Rows, draws: int = 100) -> TorchDistribution:
        """The distribution q(y|x), the mean of q(y|x, a) over draws of a, without gradients.

        Args:
            x: data, shape ``(batch, *x)``.
            draws: of a, from a stream of their own.
        """
        return _averaged(self, x, draws)

    def _codes(self, x: Tensor, y: Tensor) -> TorchDistribution:
        return self.posterior(x, y, self.auxiliary(x).mean)

    def _data(self, z: Tensor, y: Tensor) -> TorchDistribution:
        return self.likelihood(z, y)


class SkipVAE(Labelled):
    r"""SDGM: two stochastic layers with skips, ``a ~ p(a|z, y)``, ``x ~ p(x|a, z, y)``, guide as of the ADGM.

    Args:
        labels: p(y).
        prior: p(z), or p(z|y) with y as its context.
        auxiliary_prior: p(a|z, y).
        likelihood: p(x|a, z, y).
        auxiliary: q(a|x).
        posterior: q(z|x, y, a).
        classifier: q(y|x, a).

    References:
        Auxiliary deep generative models (Maaløe, Sønderby, Sønderby and Winther, 2016)

    Example:
        >>> import torch, pyrovae as pv
        >>> sdgm = pv.SkipVAE(
        ...     labels=pv.OneHotCategorical(3),
        ...     prior=pv.StandardNormal(2),
        ...     auxiliary_prior=pv.Normal(2, context=[(2,), (3,)]),
        ...     likelihood=pv.Bernoulli(8, context=[(2,), (2,), (3,)]),
        ...     auxiliary=pv.Normal(2, context=8),
        ...     posterior=pv.Normal(2, context=[(8,), (3,), (2,)]),
        ...     classifier=pv.OneHotCategorical(3, context=[(8,), (2,)]),
        ... )
        >>> loss = pv.ELBO()(sdgm, torch.ones(4, 8), torch.tensor([0, 2, -1, -1]))
    """

    guide_parts = ("auxiliary", "classifier", "posterior")

    def __init__(
        self,
        labels: Conditional,
        prior: Conditional,
        auxiliary_prior: Conditional,
        likelihood: Conditional,
        auxiliary: Conditional,
        posterior: Conditional,
        classifier: Conditional,
    ) -> None:
        super().__init__(labels)
        self.prior, self.auxiliary_prior, self.likelihood = prior, auxiliary_prior, likelihood
        self.auxiliary, self.posterior, self.classifier = auxiliary, posterior, classifier

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        """The generative program p(x, a, y, z)."""
        with pyro.plate("batch", n if x is None else len(x)):
            y = pyro.sample("y", clamped(self.labels(), y))
            z = pyro.sample("z", self.prior(y))
            a = pyro.sample("a", self.auxiliary_prior(z, y))
            return pyro.sample("x", self.likelihood(a, z, y), obs=x)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The inference program q(a, y, z | x)."""
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", self.auxiliary(x))
            y = pyro.sample("y", known(self.classifier(x, a), y), infer=self._infer)
            pyro.sample("z", self.posterior(x, y, a))

    def classify(self, x: Rows, draws: int = 100) -> TorchDistribution:
        """The distribution q(y|x), the mean of q(y|x, a) over draws of a, without gradients.

        Args:
            x: data, shape ``(batch, *x)``.
            draws: of a, from a stream of their own.
        """
        return _averaged(self, x, draws)

    def _codes(self, x: Tensor, y: Tensor) -> TorchDistribution:
        return self.posterior(x, y, self.auxiliary(x).mean)

    def _data(self, z: Tensor, y: Tensor) -> TorchDistribution:
        return self.likelihood(self.auxiliary_prior(z, y).mean, z, y)


def _averaged(model: Any, x: Rows, draws: int) -> TorchDistribution:
    with frozen(model, seed=0):
        x = as_tensor(model, x)
        a = model.auxiliary(x).sample((draws,))
        return codes.OneHotCategorical(model.classifier(x, a).mean.mean(0).log(), 1)
