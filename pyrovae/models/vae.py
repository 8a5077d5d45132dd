"""The graph of a variational autoencoder."""

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor

from pyrovae.conditional import Conditional
from pyrovae.evaluation import Rows, as_tensor
from pyrovae.handlers import frozen
from pyrovae.models.model import Model

__all__ = ["VAE"]


class VAE(Model):
    r"""Variational autoencoder: ``z ~ p(z|c)``, ``x ~ p(x|z, c)``, with guide ``q(z|x, c)``.

    The decoder is the likelihood p(x|z) and the encoder the posterior q(z|x). Training maximises
    ``ELBO = E_q log p(x|z) - KL(q(z|x) || p(z)) <= log p(x)``.

    Args:
        prior: p(z) or p(z|c).
        likelihood: p(x|z) or p(x|z, c).
        posterior: q(z|x) or q(z|x, c).

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2014)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(
        ...     prior=pv.StandardNormal(2),
        ...     likelihood=pv.Bernoulli(784, context=2),
        ...     posterior=pv.Normal(2, context=784),
        ... )
        >>> vae.sample(3).shape
        torch.Size([3, 784])
    """

    guide_parts = ("posterior",)

    def __init__(self, prior: Conditional, likelihood: Conditional, posterior: Conditional) -> None:
        super().__init__()
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    @pyro_method
    def model(self, x: Tensor | None = None, c: Tensor | None = None, *, n: int = 1) -> Tensor:
        """The generative program p(x, z | c)."""
        with pyro.plate("batch", n if x is None else len(x)):
            z = pyro.sample("z", self.prior(c))
            return pyro.sample("x", self.likelihood(z, c), obs=x)

    @pyro_method
    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """The inference program q(z | x, c)."""
        with pyro.plate("batch", len(x)):
            pyro.sample("z", self.posterior(x, c))

    def encode(self, x: Rows, c: Rows | None = None) -> TorchDistribution:
        """The distribution q(z | x, c), batch shape ``(batch,)``."""
        return self._apply_part(self.posterior, x, c)

    def decode(self, z: Rows, c: Rows | None = None) -> TorchDistribution:
        """The distribution p(x | z, c), batch shape as of z."""
        return self._apply_part(self.likelihood, z, c)

    def _apply_part(self, part: Conditional, *context: Rows | None) -> TorchDistribution:
        with frozen(self):
            return part(*(None if c is None else as_tensor(self, c) for c in context))
