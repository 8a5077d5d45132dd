"""Joint densities of vectors, for events of any shape."""

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["reshaped"]


def reshaped(base: TorchDistribution, shape: tuple[int, ...]) -> TorchDistribution:
    """A distribution of vectors as one of events of another shape; as it is where the shape is a vector's."""
    return base if len(shape) == 1 else _Reshaped(base, torch.Size(shape))


class _Reshaped(TorchDistribution):
    """Events of a distribution of vectors in another shape.

    Args:
        base: of real vectors.
        shape: of an event.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, base: TorchDistribution, shape: torch.Size) -> None:
        self.base = base
        super().__init__(base.batch_shape, shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore
        """As the base has it."""
        return self.base.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """Real tensors of the event's shape."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_Reshaped":
        """The same distribution over a larger batch shape."""
        return _Reshaped(self.base.expand(batch_shape), self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(*batch,)``."""
        return self.base.log_prob(value.flatten(-self.event_dim))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of the base in the event's shape, reparameterised if the base's are."""
        return self.base.rsample(sample_shape).unflatten(-1, self.event_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of the base in the event's shape."""
        return self.base.sample(sample_shape).unflatten(-1, self.event_shape)

    @property
    def mean(self) -> Tensor:
        """Shape ``(*batch, *shape)``."""
        return self.base.mean.unflatten(-1, self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Of each element, shape ``(*batch, *shape)``."""
        return self.base.variance.unflatten(-1, self.event_shape)
