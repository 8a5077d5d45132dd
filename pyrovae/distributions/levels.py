"""Grey levels, and ordered classes: masses of intervals under a logistic, without cancellation."""

import abc

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["CategoricalLevels", "DiscretizedLogistic", "DiscretizedLogisticMixture", "Levels", "ordinal_logits"]


class Levels(constraints.Constraint):
    """The numbers ``0, 1 / (L - 1), ..., 1``, up to a fiftieth of a step for the rounding of float32.

    Args:
        levels: L.

    Example:
        >>> Levels(256), Levels(256).check(torch.tensor([0.0, 0.2, 0.3, 2.0]))
        (levels(256), tensor([ True,  True, False, False]))
    """

    is_discrete = True  # pyright: ignore[reportAssignmentType]

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each number is a level."""
        step = value * (self.levels - 1)
        return ((step - step.round()).abs() < 0.02) & (step > -0.5) & (step < self.levels - 0.5)

    def __repr__(self) -> str:
        return f"levels({self.levels})"


class _OnLevels(TorchDistribution, abc.ABC):
    """Abstract: probabilities of the numbers ``0, 1 / (L - 1), ..., 1``; values are scored as the nearest of them."""

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore
    has_rsample = False
    has_enumerate_support = True

    def __init__(self, levels: int, batch_shape: torch.Size, *, validate_args: bool | None = None) -> None:
        self.levels = levels
        super().__init__(batch_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The grid."""
        return Levels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_mass((value * (self.levels - 1)).round().clamp(0, self.levels - 1))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws on the grid."""
        with torch.no_grad():
            return self._draw(self._extended_shape(sample_shape)) / (self.levels - 1)

    def enumerate_support(self, expand: bool = True) -> Tensor:  # noqa: FBT001, FBT002
        """All levels, shape ``(L, *batch)``, or ``(L, 1, ..., 1)``."""
        steps = torch.arange(self.levels, dtype=self._like.dtype, device=self._like.device)
        grid = (steps / (self.levels - 1)).reshape(-1, *[1] * len(self.batch_shape))
        return grid.expand(-1, *self.batch_shape) if expand else grid

    @property
    @abc.abstractmethod
    def _like(self) -> Tensor:
        """A parameter, for its type and device."""

    @abc.abstractmethod
    def _log_mass(self, step: Tensor) -> Tensor:
        """Of levels counted from 0, which come as whole floating numbers."""

    @abc.abstractmethod
    def _draw(self, shape: torch.Size) -> Tensor:
        """Levels counted from 0, as floating numbers."""


class DiscretizedLogistic(_OnLevels):
    r"""A logistic rounded to the grid: ``P(j) = sigmoid((j + 1/2 - m) / s) - sigmoid((j - 1/2 - m) / s)``.

    Here j counts levels, ``m = (L - 1) loc`` and ``s = (L - 1) scale``. The lowest bin reaches down to minus infinity
    and the highest up to infinity, so that the probabilities sum to one. In logarithms an inner bin is
    ``log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u))`` between its edges l < u, which cancels nothing; with
    edges counted in levels neighbours share theirs exactly, in float32 too.

    Args:
        loc: location, as values are, shape ``(*batch,)``.
        scale: as values are, shape ``(*batch,)``.
        levels: L, at least 2.

    References:
        Improved variational inference with inverse autoregressive flow (Kingma et al., 2016)

    Example:
        >>> d = DiscretizedLogistic(torch.tensor(0.5), torch.tensor(0.1))
        >>> d.log_prob(d.enumerate_support()).exp().sum()
        tensor(1.0000)
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012  # pyright: ignore

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(levels, self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "DiscretizedLogistic":
        """The same distribution over a larger batch shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return DiscretizedLogistic(loc, scale, self.levels, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``sum_j P(J > j) / (L - 1)``, exact, without a dimension for the levels."""
        m, s = self._in_steps
        mean = torch.zeros_like(m)
        for j in range(self.levels - 1):
            mean = mean + torch.sigmoid((m - (j + 0.5)) / s)
        return mean / (self.levels - 1)

    @property
    def mode(self) -> Tensor:
        """The likeliest level: that of the location, or an end, where the open bins gather much."""
        top = self.levels - 1
        nearest = self._in_steps[0].round().clamp(0, top)
        candidates = torch.stack([nearest, torch.zeros_like(nearest), torch.full_like(nearest, top)])
        best = self._log_mass(candidates).argmax(0, keepdim=True)
        return candidates.gather(0, best).squeeze(0) / top

    @property
    def _like(self) -> Tensor:
        return self.loc

    @property
    def _in_steps(self) -> tuple[Tensor, Tensor]:
        return self.loc * (self.levels - 1), self.scale * (self.levels - 1)

    def _log_mass(self, step: Tensor) -> Tensor:
        m, s = self._in_steps
        lowest, highest = step == 0, step == self.levels - 1
        below = logsigmoid((step + 0.5 - m) / s).masked_fill(highest, 0.0)
        above = logsigmoid((m - (step - 0.5)) / s).masked_fill(lowest, 0.0)
        return below + above + _log1mexp(1 / s).masked_fill(lowest | highest, 0.0)

    def _draw(self, shape: torch.Size) -> Tensor:
        m, s = self._in_steps
        noise = torch.rand(shape, dtype=m.dtype, device=m.device).logit()
        return (m + s * noise).round().clamp(0, self.levels - 1)


class DiscretizedLogisticMixture(_OnLevels):
    r"""A mixture of K discretized logistics: ``P(j) = sum_k w_k P_k(j)``.

    Args:
        logits: unnormalised log weights, shape ``(*batch, K)``.
        loc: locations, shape ``(*batch, K)``.
        scale: shape ``(*batch, K)``.
        levels: L, at least 2.

    References:
        PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and other modifications
        (Salimans et al., 2017)

    Example:
        >>> d = DiscretizedLogisticMixture(torch.zeros(2), torch.tensor([0.2, 0.8]), torch.tensor([0.01, 0.01]))
        >>> d.log_prob(torch.tensor([0.2, 0.8])).exp(), d.mean
        (tensor([0.0489, 0.0489]), tensor(0.5000))
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        levels: int = 256,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = logits
        self.components = DiscretizedLogistic(loc, scale, levels, validate_args=validate_args)
        super().__init__(levels, logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "DiscretizedLogisticMixture":
        """The same distribution over a larger batch shape."""
        shape = (*batch_shape, self.logits.shape[-1])
        loc, scale = self.components.loc.expand(shape), self.components.scale.expand(shape)
        return DiscretizedLogisticMixture(self.logits.expand(shape), loc, scale, self.levels, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``sum_k w_k mean_k``."""
        return (self.logits.softmax(-1) * self.components.mean).sum(-1)

    @property
    def _like(self) -> Tensor:
        return self.logits

    def _log_mass(self, step: Tensor) -> Tensor:
        return (self.components._log_mass(step[..., None]) + self.logits.log_softmax(-1)).logsumexp(-1)

    def _draw(self, shape: torch.Size) -> Tensor:
        k = dist.Categorical(logits=self.logits, validate_args=False).expand(shape).sample()[..., None]
        whole = (*shape, self.logits.shape[-1])
        loc, scale = (t.expand(whole).gather(-1, k)[..., 0] for t in (self.components.loc, self.components.scale))
        return DiscretizedLogistic(loc, scale, self.levels, validate_args=False)._draw(shape)


class CategoricalLevels(_OnLevels):
    """Any probabilities on the grid: ``log P(j) = l_j - logsumexp(l)``.

    Args:
        logits: shape ``(*batch, L)``.

    Example:
        >>> CategoricalLevels(torch.zeros(3, 256)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  # pyright: ignore

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[-1], logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "CategoricalLevels":
        """The same distribution over a larger batch shape."""
        return CategoricalLevels(self.logits.expand(*batch_shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``sum_j P(j) j / (L - 1)``."""
        return self.logits.softmax(-1) @ torch.linspace(0, 1, self.levels).to(self.logits)

    @property
    def mode(self) -> Tensor:
        """The likeliest level."""
        return self.logits.argmax(-1).to(self.logits.dtype) / (self.levels - 1)

    @property
    def _like(self) -> Tensor:
        return self.logits

    def _log_mass(self, step: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(step.shape, self.logits.shape[:-1])
        chosen = self.logits.expand(*shape, -1).gather(-1, step.long().expand(shape)[..., None])[..., 0]
        return chosen - self.logits.logsumexp(-1)

    def _draw(self, shape: torch.Size) -> Tensor:
        steps = dist.Categorical(logits=self.logits, validate_args=False)
        return steps.expand(shape).sample().to(self.logits.dtype)


def ordinal_logits(loc: Tensor, first: Tensor, widths: Tensor) -> Tensor:
    r"""Log-probabilities of ordered classes: ``P(x <= k) = sigmoid(c_k - loc)`` with cut points ``c_0 < c_1 < ...``.

    Args:
        loc: shape ``(*batch,)``.
        first: the lowest cut point ``c_0``, broadcasts to ``(*batch, 1)``.
        widths: distances ``c_k - c_{k-1} > 0``, broadcasts to ``(*batch, K - 2)``; given apart, as a difference of
            large cut points would lose them.

    Returns:
        Shape ``(*batch, K)``.

    References:
        Regression models for ordinal data (McCullagh, 1980)

    Example:
        >>> ordinal_logits(torch.tensor(0.0), torch.tensor([-1.0]), torch.tensor([2.0])).exp()
        tensor([0.2689, 0.4621, 0.2689])
    """
    edges = torch.cat([first, widths], -1).cumsum(-1) - loc[..., None]
    below, above = logsigmoid(edges), logsigmoid(-edges)
    inner = below[..., 1:] + above[..., :-1] + _log1mexp(widths)
    return torch.cat([below[..., :1], inner, above[..., -1:]], -1)


def _log1mexp(a: Tensor) -> Tensor:
    """``log(1 - exp(-a))`` for a > 0."""
    return torch.log(-torch.expm1(-a))
