"""Context-free distributions for p(z); any head of ``families`` built without context is a learned prior too."""

import abc
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.conditional import Conditional, Head, Shape
from pyrovae.distributions import NormalMixture, mixture, positive, sphere
from pyrovae.errors import ConfigError
from pyrovae.families.lengths import length
from pyrovae.nn import dims

__all__ = ["ExemplarPrior", "Mixture", "SphereUniform", "StandardNormal", "VampPrior"]


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


class _Aggregate(Conditional, abc.ABC):
    """Abstract: the posterior at given inputs, averaged."""

    inputs: Tensor
    logits: Tensor

    def __init__(self, posterior: Head, inputs: Tensor, *, learn: bool) -> None:
        super().__init__()
        self.posterior, self.components, self.learn = posterior, len(inputs), learn
        if learn:
            self.inputs = nn.Parameter(inputs)
        else:
            self.register_buffer("inputs", inputs)
        self.register_buffer("logits", torch.zeros(len(inputs)), persistent=False)

    def _average(self, inputs: Tensor) -> TorchDistribution:
        return mixture(self.logits[: len(inputs)], self.posterior(inputs))


class VampPrior(_Aggregate):
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

    def __init__(
        self,
        posterior: Head,
        inputs: Tensor | None = None,
        components: int = 500,
        *,
        learn: bool = True,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(posterior, _start(posterior, inputs, components), learn=learn)
        self.bounds = bounds

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The mixture of the posteriors at the pseudo-inputs; a context is ignored."""
        inputs = self.inputs if self.bounds is None else self.inputs.clamp(*self.bounds)
        return self._average(inputs)


class ExemplarPrior(_Aggregate):
    r"""The posterior at rows of the data, averaged: ``p(z) = 1/K sum_k q(z | x_k)``, the whole training set by default.

    Unlike :class:`VampPrior` it starts from real rows and, unless ``learn`` is set, keeps them; ``learn=True`` is a
    VampPrior with pseudo-inputs from the data. Every evaluation of the density encodes all K rows. With ``subset=M`` a
    call in training mode encodes M of them instead, drawn afresh without replacement. The logarithm of the average over
    a subset is on average below that over all rows, so the training loss is then an upper bound; in evaluation mode
    all rows count. A row's own exemplar is not left out, as Norouzi et al. do while training.

    The rows are training data, and a model file holds them.

    Args:
        posterior: the guide's own part, shared, not copied.
        inputs: rows as the model sees them, after preprocessing, shape ``(N, *x)``; None makes a prior of zeros that
            waits for a state dict, as when a saved model is built again.
        components: K, rows spread evenly over ``inputs``; None takes them all.
        learn: True trains the rows with everything else.
        subset: M, rows encoded in each call while training; None for all of them.

    Raises:
        ConfigError: without rows or their number, or for more components than rows, or a larger subset than components.

    References:
        Exemplar VAE: linking generative models, nearest neighbor retrieval, and data augmentation (Norouzi, Fleet and
        Norouzi, 2020); VAE with a VampPrior (Tomczak and Welling, 2018)

    Example:
        >>> import pyrovae as pv
        >>> q = pv.Normal(2, context=4)
        >>> ExemplarPrior(q, torch.rand(1000, 4), components=50)().log_prob(torch.zeros(2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        posterior: Head,
        inputs: Tensor | None = None,
        components: int | None = None,
        *,
        learn: bool = False,
        subset: int | None = None,
    ) -> None:
        super().__init__(posterior, _rows(posterior, inputs, components), learn=learn)
        if subset is not None and _count(subset, "subset") > self.components:
            raise ConfigError(f"subset: expected at most the {self.components} components, received {subset}")
        self.subset = subset

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The mixture of the posteriors at the rows, or at some of them while training; a context is ignored."""
        if self.subset is None or not self.training:
            return self._average(self.inputs)
        drawn = torch.randperm(self.components, device=self.inputs.device)[: self.subset]
        return self._average(self.inputs[drawn])


def _start(posterior: Head, inputs: Tensor | None, components: int) -> Tensor:
    _check_part(posterior, "VampPrior")
    if inputs is None:
        return 0.05 + 0.01 * torch.randn(_count(components), *_row(posterior, "VampPrior"))
    if len(inputs) == 0:
        raise ConfigError("VampPrior: expected at least one pseudo-input, received none")
    return _as_parameter(inputs)


def _rows(posterior: Head, inputs: Tensor | None, components: int | None) -> Tensor:
    _check_part(posterior, "ExemplarPrior")
    shape = _row(posterior, "ExemplarPrior")
    if inputs is None and components is None:
        raise ConfigError("ExemplarPrior: expected rows of the data, or the number of components, received neither")
    k = None if components is None else _count(components)
    if inputs is None:
        return torch.zeros(k or 0, *shape)
    inputs = torch.as_tensor(inputs)
    if len(inputs) == 0 or tuple(inputs.shape[1:]) != shape:
        expected = ", ".join(map(str, ("rows", *shape)))
        raise ConfigError(f"ExemplarPrior: inputs: expected shape ({expected}), received {tuple(inputs.shape)}")
    if k is not None and k > len(inputs):
        raise ConfigError(f"ExemplarPrior: expected at most as many components as rows, received {k} for {len(inputs)}")
    return _as_parameter(inputs if k is None else inputs[torch.arange(k) * len(inputs) // k])


def _check_part(posterior: Any, name: str) -> None:
    if not isinstance(posterior, Head):
        raise ConfigError(
            f"{name}: expected the guide's part, such as pv.Normal(16, context=784), received {posterior!r}"
        )


def _row(posterior: Head, name: str) -> tuple[int, ...]:
    context = posterior.context
    if context is None or not (isinstance(context, int) or isinstance(context[0], int)):
        raise ConfigError(f"{name}: expected a posterior given x alone; its context sizes the pseudo-inputs")
    return dims(context)  # pyright: ignore[reportArgumentType]


def _as_parameter(inputs: Tensor) -> Tensor:
    return torch.as_tensor(inputs, dtype=torch.get_default_dtype()).detach().clone()


def _count(components: int, name: str = "components") -> int:
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ConfigError(f"{name}: expected a positive int, received {components!r}")
    return components


class SphereUniform(Conditional):
    r"""Every direction alike: ``p(z) = Gamma(m/2) / (2 pi^(m/2))`` on the unit vectors of R^m.

    The prior of the S-VAE; its posteriors are :class:`VonMisesFisher` and :class:`PowerSpherical`, to both of which the
    divergence has a closed form.

    Args:
        shape: m, the length of one latent, at least 2; the sphere has m - 1 dimensions.

    Raises:
        ConfigError: for a shape that is no vector's.

    References:
        Hyperspherical variational auto-encoders (Davidson et al., 2018)

    Example:
        >>> SphereUniform(3)().log_prob(torch.tensor([0.0, 1.0, 0.0]))
        tensor(-2.5310)
    """

    zeros: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("zeros", torch.zeros(length(shape, "SphereUniform")), persistent=False)

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The uniform distribution; a context is ignored."""
        return sphere.SphereUniform(self.zeros)
