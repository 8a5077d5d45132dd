"""Variables of which some rows are known: labels, above all."""

import abc

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrovae.errors import ConfigError

__all__ = ["Clamped", "Known", "clamped", "known", "split"]

_NEVER = -1e4  # log 0 for a probability: its exponential is 0 in every type, and 0 times it is 0


def clamped(base: TorchDistribution, y: Tensor | None) -> TorchDistribution:
    """``p(y)`` as a program draws it when some y are given; the base where none is.

    Args:
        base: the distribution of all rows.
        y: see :func:`known`.
    """
    return base if y is None else Clamped(base, *split(base, y))


def known(base: TorchDistribution, y: Tensor | None) -> TorchDistribution:
    """``q(y|x)`` for rows with and without labels: the point mass at a label, the base where there is none.

    Args:
        base: the distribution of all rows.
        y: shape ``(batch, *event)``, NaN where it is missing; of one-hot vectors also the places of the ones, shape
            ``(batch,)``, any negative number where it is missing; of events of one number ``(batch,)`` too.

    Raises:
        ConfigError: for another shape.
    """
    return base if y is None else Known(base, *split(base, y))


class _Given(TorchDistribution):
    """Abstract: draws are the given values where there are any.

    Args:
        base: the distribution of all rows.
        value: shape ``(*batch, *event)``, any number where it is not given.
        given: shape ``(*batch,)``, whether it is.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self, base: TorchDistribution, value: Tensor, given: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.base, self.value, self.given = base, value, given
        shape = torch.broadcast_shapes(base.batch_shape, given.shape)
        super().__init__(shape, base.event_shape, validate_args=validate_args)

    @abc.abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, shape ``(*batch,)``."""

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base has."""
        return self.base.has_rsample

    @property
    def has_enumerate_support(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the base has."""
        return self.base.has_enumerate_support

    @property
    def support(self) -> constraints.Constraint:
        """That of the base."""
        return self.base.support  # pyright: ignore[reportReturnType]

    @property
    def mean(self) -> Tensor:
        """The given values, the base's mean elsewhere."""
        return self._fill(self.base.mean)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_Given":
        """The same distribution over a larger batch shape."""
        return type(self)(self.base.expand(torch.Size(batch_shape)), self.value, self.given, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """The given values, the base's draws elsewhere."""
        return self._fill(self.base.rsample(sample_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """The given values, the base's draws elsewhere."""
        return self._fill(self.base.sample(sample_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:  # noqa: FBT001, FBT002
        """All values of the base, in rows whose value is given too."""
        return self.base.enumerate_support(expand)

    def _fill(self, draws: Tensor) -> Tensor:
        return torch.where(self._column(self.given), self.value, draws)

    def _column(self, flags: Tensor) -> Tensor:
        return flags.reshape(*flags.shape, *[1] * self.event_dim)


class Clamped(_Given):
    """Draws the given values; scores as the base does.

    A program that is conditioned on some rows: its joint density at given values is that of the program.

    Args:
        base: the distribution of all rows.
        value: shape ``(*batch, *event)``, any number where it is not given.
        given: shape ``(*batch,)``, whether it is.

    Example:
        >>> import pyro.distributions as dist
        >>> d = Clamped(dist.Normal(torch.zeros(2), 1.0), torch.tensor([3.0, 0.0]), torch.tensor([True, False]))
        >>> d.sample()[0], d.log_prob(torch.zeros(2))
        (tensor(3.), tensor([-0.9189, -0.9189]))
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Of the base."""
        return self.base.log_prob(value)


class Known(_Given):
    """The point mass at the given values, the base elsewhere.

    At a given value the log-probability is 0, and, of a discrete variable, at any other one so low that its
    probability is 0; of a continuous one nothing else is ever drawn.

    Args:
        base: the distribution of all rows.
        value: shape ``(*batch, *event)``, any number where it is not given.
        given: shape ``(*batch,)``, whether it is.

    Example:
        >>> import pyro.distributions as dist
        >>> base = dist.OneHotCategorical(torch.ones(2, 2) / 2)
        >>> d = Known(base, torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([True, False]))
        >>> d.log_prob(torch.tensor([1.0, 0.0])).exp()
        tensor([0.0000, 0.5000])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """0 at the given values, that of the base in other rows."""
        equal = value == self.value
        equal = equal.flatten(-self.event_dim).all(-1) if self.event_dim else equal
        return torch.where(self.given, torch.where(equal, 0.0, _NEVER), self.base.log_prob(value))


def split(base: TorchDistribution, y: Tensor) -> tuple[Tensor, Tensor]:
    """Given values ``(batch, *event)``, any number where they are missing, and where they are not, ``(batch,)``.

    Args:
        base: whose values they are.
        y: as for :func:`known`.

    Raises:
        ConfigError: for another shape.
    """
    like = y if y.is_floating_point() else y.to(torch.get_default_dtype())
    if base.event_dim == 1 and y.dim() == 1 and base.has_enumerate_support:
        given = like >= 0  # NaN is not
        classes = torch.arange(base.event_shape[0], device=y.device)
        return (torch.where(given, like, 0.0)[:, None] == classes).to(like), given
    if base.event_shape == (1,) and y.dim() == 1:
        like = like[:, None]
    if like.shape[1:] != base.event_shape:
        wanted = ("batch", *base.event_shape)
        raise ConfigError(f"y: expected the shape {wanted}, received {tuple(y.shape)}".replace("'", ""))
    missing = like.isnan()
    return torch.where(missing, 0.0, like), ~missing.flatten(1).any(1) if like.dim() > 1 else ~missing
