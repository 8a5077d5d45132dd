"""The graphs in which a latent is a mixture over clusters, or over labels."""

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

__all__ = ["GaussianMixtureVAE", "VaDE"]


class GaussianMixtureVAE(Labelled):
    r"""GMVAE: ``y ~ p(y)``, ``z ~ p(z|y)``, ``x ~ p(x|z)``, with guide ``q(y|x) q(z|x, y)``.

    Without labels y is the cluster; labels may be given as well.

    Args:
        labels: p(y).
        prior: p(z|y), such as ``Normal(2, context=10, net=torch.nn.Linear)``, one Gaussian for every class.
        likelihood: p(x|z).
        posterior: q(z|x, y).
        classifier: q(y|x).

    References:
        Deep unsupervised clustering with Gaussian mixture variational autoencoders (Dilokthanakul et al., 2016)

    Example:
        >>> import torch, pyrovae as pv
        >>> gmvae = pv.GaussianMixtureVAE(
        ...     labels=pv.OneHotCategorical(3),
        ...     prior=pv.Normal(2, context=3, net=torch.nn.Linear),
        ...     likelihood=pv.Bernoulli(8, context=2),
        ...     posterior=pv.Normal(2, context=[(8,), (3,)]),
        ...     classifier=pv.OneHotCategorical(3, context=8),
        ... )
        >>> loss = pv.ELBO()(gmvae, torch.ones(4, 8))
    """

    guide_parts = ("classifier", "posterior")

    def __init__(
        self,
        labels: Conditional,
        prior: Conditional,
        likelihood: Conditional,
        posterior: Conditional,
        classifier: Conditional,
    ) -> None:
        super().__init__(labels)
        self.prior, self.likelihood, self.posterior, self.classifier = prior, likelihood, posterior, classifier

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        """The generative program p(x, y, z)."""
        with pyro.plate("batch", n if x is None else len(x)):
            y = pyro.sample("y", clamped(self.labels(), y))
            z = pyro.sample("z", self.prior(y))
            return pyro.sample("x", self.likelihood(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The inference program q(y, z | x)."""
        with pyro.plate("batch", len(x)):
            y = pyro.sample("y", known(self.classifier(x), y), infer=self._infer)
            pyro.sample("z", self.posterior(x, y))

    def classify(self, x: Rows) -> TorchDistribution:
        """The distribution q(y|x), without gradients; its ``mean`` holds the clusters' probabilities."""
        with frozen(self):
            return self.classifier(as_tensor(self, x))

    def _codes(self, x: Tensor, y: Tensor) -> TorchDistribution:
        return self.posterior(x, y)

    def _data(self, z: Tensor, y: Tensor) -> TorchDistribution:
        return self.likelihood(z)


class VaDE(Labelled):
    r"""Variational deep embedding: the graph of the GMVAE with guide ``q(z|x) p(y|z)``, no network for y.

    ``p(y|z)`` is proportional to p(y) p(z|y), the best q(y|z) there is for given z.

    Args:
        labels: p(y).
        prior: p(z|y), such as ``Normal(2, context=10, net=torch.nn.Linear)``, one Gaussian for every class.
        likelihood: p(x|z).
        posterior: q(z|x).

    References:
        Variational deep embedding: an unsupervised and generative approach to clustering (Jiang et al., 2017)

    Example:
        >>> import torch, pyrovae as pv
        >>> vade = pv.VaDE(
        ...     labels=pv.OneHotCategorical(3),
        ...     prior=pv.Normal(2, context=3, net=torch.nn.Linear),
        ...     likelihood=pv.Bernoulli(8, context=2),
        ...     posterior=pv.Normal(2, context=8),
        ... )
        >>> loss = pv.ELBO()(vade, torch.ones(4, 8))
    """

    guide_parts = ("posterior",)

    def __init__(
        self, labels: Conditional, prior: Conditional, likelihood: Conditional, posterior: Conditional
    ) -> None:
        super().__init__(labels)
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        """The generative program p(x, y, z)."""
        with pyro.plate("batch", n if x is None else len(x)):
            y = pyro.sample("y", clamped(self.labels(), y))
            z = pyro.sample("z", self.prior(y))
            return pyro.sample("x", self.likelihood(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The inference program q(z|x) p(y|z)."""
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", self.posterior(x))
            pyro.sample("y", known(self.responsibilities(z), y), infer=self._infer)

    def responsibilities(self, z: Tensor) -> TorchDistribution:
        """The distribution p(y|z) by Bayes' rule.

        Args:
            z: latents, shape ``(*batch, *z)``.
        """
        labels = self.labels()
        classes = labels.enumerate_support(expand=False).reshape(-1, *[1] * (z.dim() - 1), *labels.event_shape)
        log_joint = self.prior(classes).log_prob(z) + labels.log_prob(classes)
        return codes.OneHotCategorical(log_joint.movedim(0, -1), 1)

    def classify(self, x: Rows) -> TorchDistribution:
        """The distribution p(y|z) at the mean z of q(z|x), without gradients."""
        with frozen(self):
            return self.responsibilities(self.posterior(as_tensor(self, x)).mean)

    def _codes(self, x: Tensor, y: Tensor) -> TorchDistribution:
        return self.posterior(x)

    def _data(self, z: Tensor, y: Tensor) -> TorchDistribution:
        return self.likelihood(z)
