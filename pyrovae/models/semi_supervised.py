"""The graph of M2: labels and a latent side by side."""

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor

from pyrovae.conditional import Conditional
from pyrovae.distributions.given import clamped, known
from pyrovae.evaluation import Rows, as_tensor
from pyrovae.handlers import frozen
from pyrovae.models.labelled import Labelled

__all__ = ["SemiSupervisedVAE"]


class SemiSupervisedVAE(Labelled):
    r"""M2: ``y ~ p(y)``, ``z ~ p(z)``, ``x ~ p(x|z, y)``, with guide ``q(y|x) q(z|x, y)``.

    A labelled row's loss is ``-E_q [log p(x|z, y) + log p(y) + log p(z) - log q(z|x, y)]``, an unlabelled row's the
    mean of that over q(y|x) minus the entropy of q(y|x). Neither teaches q(y|x) from labels: add
    ``Classification(alpha)``. With a real-valued y, whose prior and classifier are heads such as ``Normal``, it is
    semi-supervised regression.

    Args:
        labels: p(y).
        prior: p(z), or p(z|y) with y as its context.
        likelihood: p(x|z, y).
        posterior: q(z|x, y).
        classifier: q(y|x).

    References:
        Semi-supervised learning with deep generative models (Kingma, Rezende, Mohamed and Welling, 2014)

    Example:
        >>> import torch, pyrovae as pv
        >>> m2 = pv.SemiSupervisedVAE(
        ...     labels=pv.OneHotCategorical(10),
        ...     prior=pv.StandardNormal(16),
        ...     likelihood=pv.Bernoulli(784, context=[(16,), (10,)]),
        ...     posterior=pv.Normal(16, context=[(784,), (10,)]),
        ...     classifier=pv.OneHotCategorical(10, context=784),
        ... )
        >>> x, y = torch.ones(8, 784), torch.tensor([3, 1, -1, -1, -1, -1, -1, -1])
        >>> loss = (pv.ELBO() + pv.Classification(50.0))(m2, x, y)
        >>> m2.classify(x).mean.shape
        torch.Size([8, 10])
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
        """The generative program p(x, y, z); labels that are given are not drawn."""
        with pyro.plate("batch", n if x is None else len(x)):
            y = pyro.sample("y", clamped(self.labels(), y))
            z = pyro.sample("z", self.prior(y))
            return pyro.sample("x", self.likelihood(z, y), obs=x)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The inference program q(y, z | x); labels that are given are certain."""
        with pyro.plate("batch", len(x)):
            y = pyro.sample("y", known(self.classifier(x), y), infer=self._infer)
            pyro.sample("z", self.posterior(x, y))

    def classify(self, x: Rows) -> TorchDistribution:
        """The distribution q(y|x), without gradients; its ``mean`` holds the classes' probabilities."""
        with frozen(self):
            return self.classifier(as_tensor(self, x))

    def _codes(self, x: Tensor, y: Tensor) -> TorchDistribution:
        return self.posterior(x, y)

    def _data(self, z: Tensor, y: Tensor) -> TorchDistribution:
        return self.likelihood(z, y)
