"""Codes whose variables depend on those before them: the second stage of a discrete model, or its prior at once."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.bridge import zuko
from pyrovae.conditional import Conditional, Context, Shape, as_shape, several
from pyrovae.distributions.codes import AutoregressiveOneHot
from pyrovae.errors import ConfigError
from pyrovae.nn import Join, dims

__all__ = ["Autoregressive"]


class Autoregressive(Conditional):
    r"""One-hot codes in order: ``p(z) = prod_i p(z_i | z_1 .. z_{i-1})``, by one masked network with SiLU.

    All classes of a variable see the variables before it, and the context where there is one. A density costs one
    pass, a draw one pass for each variable. Binary codes are codes of two classes. It is linear in each variable's
    code given those before, so relaxed codes (:class:`Concrete`) have a value too; in evaluation all codes are hard.
    Neither the marginal means nor the likeliest code have a closed form: ``mean`` is NaN, ``mode`` is greedy.

    Args:
        shape: ``(variables, classes)``, at least 2 of each.
        hidden: widths of the hidden layers, each at least as wide as there are variables.
        context: shape conditioned on, several as a sequence of sequences; None for none.

    Raises:
        ConfigError: for another shape, or a layer too narrow for every variable to reach those after it.

    References:
        MADE: masked autoencoder for distribution estimation (Germain et al., 2015);
        Neural discrete representation learning (van den Oord, Vinyals and Kavukcuoglu, 2017)

    Example:
        >>> prior = Autoregressive((3, 4), hidden=(32,))
        >>> d = prior()
        >>> d.log_prob(d.enumerate_support()).exp().sum().round(decimals=4)
        tensor(1., grad_fn=...)
    """

    like: Tensor

    def __init__(self, shape: Shape, hidden: Sequence[int] = (256, 256), context: Context = None) -> None:
        super().__init__()
        self.shape, self.hidden, self.context = shape, hidden, context
        variables, classes = _code_shape(shape)
        _check_widths(hidden, variables)
        self.join = None if context is None else Join([as_shape(dims(s)) for s in several(context)])
        features = 0 if self.join is None else math.prod(dims(self.join.shape))
        order = torch.arange(variables).repeat_interleave(classes)
        before = torch.cat([torch.ones(len(order), features, dtype=torch.bool), order[:, None] > order], -1)
        self.network = zuko().nn.MaskedMLP(before, list(hidden), nn.SiLU)
        self.register_buffer("like", torch.zeros(variables, classes), persistent=False)

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The codes given the context, which a prior without one ignores.

        Args:
            *context: tensors of shape ``(*batch, *shape)``; None is left out.
        """
        if self.join is None:
            return AutoregressiveOneHot(self._logits, self.like)
        seen = self.join(*(c for c in context if c is not None)).flatten(-len(dims(self.join.shape)))
        like = self.like.expand(*seen.shape[:-1], *self.like.shape)
        return AutoregressiveOneHot(lambda codes: self._logits(codes, seen), like)

    def _logits(self, codes: Tensor, *context: Tensor) -> Tensor:
        batch = codes.shape[:-2]
        parts = [c.expand(*batch, -1) for c in context]
        return self.network(torch.cat([*parts, codes.flatten(-2)], -1)).unflatten(-1, codes.shape[-2:])


def _code_shape(shape: Shape) -> tuple[int, ...]:
    sizes = dims(shape)
    if len(sizes) != 2 or min(sizes) < 2:
        raise ConfigError(
            f"shape: expected (variables, classes), at least 2 of each, received {shape!r}; a single variable has "
            "nothing before it, OneHotCategorical is its prior"
        )
    return sizes


def _check_widths(hidden: Sequence[int], variables: int) -> None:
    if not isinstance(hidden, Sequence) or any(isinstance(w, bool) or not isinstance(w, int) for w in hidden):
        raise ConfigError(f"hidden: expected a sequence of ints, received {hidden!r}")
    if any(width < variables for width in hidden):
        raise ConfigError(
            f"hidden: expected widths of at least {variables}, one unit for each variable, received {hidden!r}"
        )
