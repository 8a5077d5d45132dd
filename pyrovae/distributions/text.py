"""Strings of symbols, each given those before it, as long as they happen to be."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["Strings", "counted"]

Step = Callable[[int, Tensor, Any], tuple[Tensor, Any]]


class Strings(TorchDistribution):
    r"""Strings of at most T symbols: ``log p(x) = sum_t log p(x_t | x_1 .. x_{t-1})`` up to their end.

    A string is a vector of T numbers: symbols from 1, then 0. The first 0 is the end, whose probability counts; what
    stands after it does not and changes nothing. A string of T symbols has no end to count. Over all strings, the
    empty one among them, the probabilities sum to 1. There is no mean; ``mode`` is greedy.

    Args:
        step: called as ``step(t, before, state)`` with the symbols before place t, ints of shape ``(*lead)``, 0 at the
            first, and what it returned for the place before, None at the first; returns logits of 0 and of every
            symbol, shape ``(*lead, 1 + vocabulary)`` broadcast with the batch shape, and its state.
        like: shape ``(*batch, T)``; its shape, type and device count.
        vocabulary: the number of symbols.

    Example:
        >>> d = Strings(lambda t, before, state: (torch.zeros(*before.shape, 3), None), torch.zeros(4), vocabulary=2)
        >>> x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0], [2.0, 1.0, 1.0, 2.0]])
        >>> d.log_prob(x).exp() * torch.tensor([3.0, 27.0, 81.0])
        tensor([1.0000, 1.0000, 1.0000])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore
    has_rsample = False

    def __init__(self, step: Step, like: Tensor, vocabulary: int, *, validate_args: bool | None = None) -> None:
        self.step, self.like, self.vocabulary = step, like, vocabulary
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Ints from 0 to ``vocabulary``."""
        return constraints.independent(constraints.integer_interval(0, self.vocabulary), 1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Strings":
        """The same distribution over a larger batch shape."""
        like = self.like.expand(*batch_shape, *self.event_shape)
        return Strings(self.step, like, self.vocabulary, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, shape ``(*batch,)``."""
        if self._validate_args:
            self._validate_sample(value)
        scored = counted(value)
        codes = torch.where(scored, value, 0).long().clamp(0, self.vocabulary)  # a table has no place for more
        logits, state = [], None
        before = torch.zeros_like(codes[..., 0])
        for t in range(self.event_shape[0]):
            step, state = self.step(t, before, state)
            logits.append(step)
            before = codes[..., t]
        log_probs = torch.stack(logits, -2).log_softmax(-1)
        chosen = codes[..., None].expand(*log_probs.shape[:-1], 1)
        total = torch.where(scored, log_probs.gather(-1, chosen)[..., 0], 0.0).sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, one symbol after the other."""
        return self._written(self._extended_shape(sample_shape), _drawn)

    @property
    def mean(self) -> Tensor:
        """NaN, as for classes; ``mode`` stands in for a centre."""
        return torch.full_like(self.like, torch.nan)

    @property
    def mode(self) -> Tensor:
        """The likeliest symbol at every place, given those before: not always the likeliest string."""
        return self._written(self.like.shape, lambda logits: logits.argmax(-1))

    @torch.no_grad()
    def _written(self, shape: torch.Size, choose: Callable[[Tensor], Tensor]) -> Tensor:
        before = torch.zeros(shape[:-1], dtype=torch.long, device=self.like.device)
        codes, state = [], None
        ended = torch.zeros_like(before, dtype=torch.bool)
        for t in range(shape[-1]):
            logits, state = self.step(t, before, state)
            before = torch.where(ended, 0, choose(logits))
            ended = before == 0
            codes.append(before)
        return torch.stack(codes, -1).to(self.like.dtype)


def counted(codes: Tensor) -> Tensor:
    """Which places belong to a string: up to and including the first 0.

    Example:
        >>> counted(torch.tensor([3, 0, 7, 0]))
        tensor([ True,  True, False, False])
    """
    ends = (codes == 0).long()
    return ends.cumsum(-1) == ends


def _drawn(logits: Tensor) -> Tensor:
    """Class k with probability ``softmax(logits)_k``, by Gumbel noise."""
    uniform = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
    return (logits - torch.log(-torch.log(uniform))).argmax(-1)
