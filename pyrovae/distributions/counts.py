"""Counts, scored in double precision: the terms of their log-probabilities cancel."""

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["InDouble", "Multinomial", "ZeroInflated"]


class InDouble(TorchDistribution):
    """A distribution of float64 parameters whose values and log-probabilities have another type.

    ``x log r - r - log x!`` is a few nats left over from terms of ``x log x``: at a rate of 2e4 float32 is off by 0.03
    nats, and a negative binomial near its Poisson limit by more.

    Args:
        base: with parameters in float64, and events of no dimension.
        dtype: of values and log-probabilities.

    Example:
        >>> import pyro.distributions as dist
        >>> d = InDouble(dist.Poisson(torch.tensor(3.0).double()), torch.float32)
        >>> d.log_prob(torch.tensor(2.0))
        tensor(-1.4959)
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore
    has_rsample = False

    def __init__(self, base: TorchDistribution, dtype: torch.dtype) -> None:
        self.base, self.dtype = base, dtype
        super().__init__(base.batch_shape, validate_args=False)  # the base validates

    @property
    def support(self) -> constraints.Constraint:
        """The base's."""
        return self.base.support  # pyright: ignore[reportReturnType]

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "InDouble":
        """The same distribution over a larger batch shape."""
        return InDouble(self.base.expand(batch_shape), self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, shape ``(*batch,)``."""
        return self.base.log_prob(value.double()).to(self.dtype)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws; above 2^24 float32 rounds them."""
        return self.base.sample(sample_shape).to(self.dtype)

    @property
    def mean(self) -> Tensor:
        """The base's."""
        return self.base.mean.to(self.dtype)

    @property
    def variance(self) -> Tensor:
        """The base's."""
        return self.base.variance.to(self.dtype)


class ZeroInflated(TorchDistribution):
    r"""Counts with more zeros: ``p(x) = g [x = 0] + (1 - g) base(x)``, the gate g known by its logits alone.

    Pyro's ZeroInflatedNegativeBinomial turns to the rounded probability g once a sample or a mean was asked of it:
    where that is 1, counts above 0 are then scored as minus infinity, and it cannot be expanded.

    Args:
        base: over counts, with events of no dimension.
        gate_logits: shape ``(*batch,)``, as the base's.

    Example:
        >>> import pyro.distributions as dist
        >>> d = ZeroInflated(dist.Poisson(torch.tensor(1.0)), torch.tensor(90.0))
        >>> d.log_prob(torch.tensor([0.0, 1.0])).round()
        tensor([ -0., -91.])
    """

    arg_constraints = {"gate_logits": constraints.real}  # noqa: RUF012  # pyright: ignore
    support = constraints.nonnegative_integer  # pyright: ignore
    has_rsample = False

    def __init__(self, base: TorchDistribution, gate_logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.base, self.gate_logits = base, gate_logits
        super().__init__(base.batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "ZeroInflated":
        """The same distribution over a larger batch shape."""
        return ZeroInflated(self.base.expand(batch_shape), self.gate_logits.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        passed = logsigmoid(-self.gate_logits) + self.base.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), passed), passed)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of the base, some of them set to 0."""
        with torch.no_grad():
            return self.base.sample(sample_shape) * torch.bernoulli(
                self._pass.expand(self._extended_shape(sample_shape))
            )

    @property
    def mean(self) -> Tensor:
        """``(1 - g) base mean``."""
        return self._pass * self.base.mean

    @property
    def variance(self) -> Tensor:
        """``(1 - g) (base variance + g base mean^2)``."""
        return self._pass * (self.base.variance + self.gate_logits.sigmoid() * self.base.mean**2)

    @property
    def _pass(self) -> Tensor:
        return (-self.gate_logits).sigmoid()


class Multinomial(TorchDistribution):
    r"""N things over K kinds: ``log p(x | N) = log N! - sum_k log x_k! + sum_k x_k log p_k``, N the sum of the value.

    Every value is scored given its own total, so rows of different totals stand together; torch's class of the same
    name knows one total. Over all values of one total the probabilities sum to one.

    Args:
        logits: unnormalised ``log p``, shape ``(*batch, *event)``; all elements of an event are kinds.
        total: N of draws and of the mean.
        event_dim: dimensions of an event.

    Example:
        >>> Multinomial(torch.zeros(2)).log_prob(torch.tensor([[1.0, 1.0], [0.0, 0.0]])).exp()
        tensor([0.5000, 1.0000])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore
    has_rsample = False

    def __init__(
        self, logits: Tensor, total: int = 100, event_dim: int = 1, *, validate_args: bool | None = None
    ) -> None:
        self.logits, self.total = logits, total
        split = logits.dim() - event_dim
        super().__init__(logits.shape[:split], logits.shape[split:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers from 0."""
        return constraints.independent(constraints.nonnegative_integer, self.event_dim)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Multinomial":
        """The same distribution over a larger batch shape."""
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return Multinomial(logits, self.total, self.event_dim, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability given the value's total, in nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        x, logits = value.flatten(-self.event_dim).double(), self.logits.flatten(-self.event_dim).double()
        ways = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
        return (ways + (x * logits.log_softmax(-1)).sum(-1)).to(self.logits.dtype)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of ``total`` things."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            rows = self._probs.expand(*shape[: len(shape) - self.event_dim], -1).reshape(-1, self.event_shape.numel())
            kinds = torch.multinomial(rows, self.total, replacement=True)
            return (
                torch.zeros_like(rows)
                .scatter_add(-1, kinds, torch.ones_like(rows[:, :1]).expand_as(kinds))
                .reshape(shape)
            )

    @property
    def mean(self) -> Tensor:
        """``total p``."""
        return self.total * self._probs.unflatten(-1, self.event_shape)

    @property
    def _probs(self) -> Tensor:
        return self.logits.flatten(-self.event_dim).softmax(-1)
