"""Context-free distributions for p(z); any head of ``families`` built without context is a learned prior too."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.conditional import Conditional, Head, Shape
from pyrovae.distributions import NormalMixture, mixture, positive
from pyrovae.errors import ConfigError
from pyrovae.nn import dims

__all__ = ["Mixture", "StandardNormal", "VampPrior"]


class StandardNormal(Conditional):
    r"""``p(z) = N(z; 0, I)``.

    Args:
        shape: of one latent, an int for vectors.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2014)

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("loc", torch.zeros(dims(shape)), persistent=False)
        self.register_buffer("scale", torch.ones(dims(shape)), persistent=False)

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The standard normal; a context is ignored."""
        return dist.Normal(self.loc, self.scale).to_event(self.loc.dim())


class Mixture(Conditional):
    r"""K diagonal Gaussians with learned weights: ``p(z) = sum_k w_k N(z; loc_k, diag scale_k^2)``.

    Args:
        shape: of one latent.
        components: K.

    References:
        Deep unsupervised clustering with Gaussian mixture variational autoencoders (Dilokthanakul et al., 2016);
        VAE with a VampPrior (Tomczak and Welling, 2018)

    Example:
        >>> Mixture(2, components=5)().sample().shape
        torch.Size([2])
    """

    def __init__(self, shape: Shape, components: int = 10) -> None:
        super().__init__()
        self.shape, self.components = shape, _count(components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, *dims(shape)))
        self.raw_scale = nn.Parameter(torch.zeros(components, *dims(shape)))

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The mixture; a context is ignored."""
        return NormalMixture(self.logits, self.loc, positive(self.raw_scale))


class VampPrior(Conditional):
    r"""The posterior at K pseudo-inputs, averaged: ``p(z) = 1/K sum_k q(z | u_k)``.

    It approximates the aggregate posterior, which is the best prior there is for a given guide. The pseudo-inputs are
    learned with everything else; taken from data they start there. They are data-like: a model file holds them.

    Args:
        posterior: the guide's own part, shared, not copied.
        inputs: starting pseudo-inputs, shape ``(K, *x)``; None starts from small noise.
        components: K where ``inputs`` is None.
        learn: False keeps the pseudo-inputs as they are.
        bounds: clip the pseudo-inputs to this interval, such as ``(0.0, 1.0)``; None leaves them free.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018)

    Example:
        >>> import pyrovae as pv
        >>> q = pv.Normal(2, context=4)
        >>> VampPrior(q, torch.rand(10, 4))().log_prob(torch.zeros(2)).shape
        torch.Size([])
    """

    inputs: Tensor
    logits: Tensor

    def __init__(
        self,
        posterior: Head,
        inputs: Tensor | None = None,
        components: int = 500,
        *,
        learn: bool = True,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        start = _start(posterior, inputs, components)
        self.posterior, self.components, self.learn, self.bounds = posterior, len(start), learn, bounds
        if learn:
            self.inputs = nn.Parameter(start)
        else:
            self.register_buffer("inputs", start)
        self.register_buffer("logits", torch.zeros(len(start)), persistent=False)

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The mixture of the posteriors at the pseudo-inputs; a context is ignored."""
        inputs = self.inputs if self.bounds is None else self.inputs.clamp(*self.bounds)
        return mixture(self.logits, self.posterior(inputs))


def _start(posterior: Head, inputs: Tensor | None, components: int) -> Tensor:
    if inputs is None:
        context = posterior.context
        if context is None or not (isinstance(context, int) or isinstance(context[0], int)):
            raise ConfigError("VampPrior: expected a posterior given x alone; its context sizes the pseudo-inputs")
        return 0.05 + 0.01 * torch.randn(_count(components), *dims(context))  # pyright: ignore[reportArgumentType]
    if len(inputs) == 0:
        raise ConfigError("VampPrior: expected at least one pseudo-input, received none")
    return torch.as_tensor(inputs, dtype=torch.get_default_dtype()).detach().clone()


def _count(components: int) -> int:
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ConfigError(f"components: expected a positive int, received {components!r}")
    return components
