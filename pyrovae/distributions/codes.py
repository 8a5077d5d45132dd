"""One-hot codes: exact, relaxed, and one variable given those before."""

import abc
from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl

__all__ = [
    "AutoregressiveOneHot",
    "OneHotCategorical",
    "RelaxedOneHot",
    "StraightThroughOneHot",
    "all_codes",
    "one_hot_or_relaxed",
]

_MOST_CODES = 2**16


class _OneHotOrRelaxed(constraints.Constraint):
    """One-hot vectors, and the points of the simplex between them, up to the rounding of a softmax over many."""

    is_discrete = True  # pyright: ignore[reportAssignmentType]
    event_dim = 1  # pyright: ignore[reportAssignmentType]

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector is one."""
        return (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < 1e-4)

    def __repr__(self) -> str:
        return "one-hot vectors"


one_hot_or_relaxed = _OneHotOrRelaxed()


class _Codes(TorchDistribution, abc.ABC):
    """Abstract: probabilities of one-hot codes, whose events are ``(*variables, classes)``.

    ``log p(y) = sum_i sum_k y_ik log p_ik``, with ``p_ik`` the probability of class k of variable i, perhaps given
    other variables. The formula is linear in each ``y_i``, so that relaxed codes between the one-hot ones have a value
    too; this is no density of theirs.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore
    has_rsample = False
    has_enumerate_support = True

    @property
    def support(self) -> constraints.Constraint:
        """One-hot vectors; relaxed ones are let through."""
        return constraints.independent(one_hot_or_relaxed, self.event_dim - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, shape ``(*batch,)``; of relaxed codes its linear extension."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.log_probs(value)).flatten(-self.event_dim).sum(-1)

    @abc.abstractmethod
    def log_probs(self, value: Tensor) -> Tensor:
        """Normalised logarithms for every class, broadcasting with codes ``(*batch, *variables, classes)``."""

    def enumerate_support(self, expand: bool = True) -> Tensor:  # noqa: FBT001, FBT002
        """All codes, shape ``(count, *batch, *event)``, or with 1 for every dimension of the batch.

        Raises:
            NotImplementedError: for more than 2^16 codes.
        """
        classes = self.event_shape[-1]
        variables = self.event_shape.numel() // classes
        if classes**variables > _MOST_CODES:
            raise NotImplementedError(f"{classes}^{variables} codes: too many to enumerate")
        codes = all_codes(variables, classes).to(self._like)
        codes = codes.reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return codes.expand(-1, *self.batch_shape, *self.event_shape) if expand else codes

    @property
    @abc.abstractmethod
    def _like(self) -> Tensor:
        """A tensor of the type and on the device of codes."""


class _Factorized(_Codes):
    """Abstract: variables that know nothing of each other."""

    def __init__(self, logits: Tensor, event_dim: int = 1, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        split = logits.dim() - event_dim
        super().__init__(logits.shape[:split], logits.shape[split:], validate_args=validate_args)

    @abc.abstractmethod
    def _at(self, logits: Tensor) -> "_Factorized":
        """The same distribution with other logits."""

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_Factorized":
        """The same distribution over a larger batch shape."""
        return self._at(self.logits.expand(*batch_shape, *self.event_shape))

    def log_probs(self, value: Tensor) -> Tensor:
        """Of every class, shape ``(*batch, *event)``, whatever the value."""
        return self.logits.log_softmax(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws without gradients."""
        with torch.no_grad():
            return self._draw(self._extended_shape(sample_shape))

    @abc.abstractmethod
    def _draw(self, shape: torch.Size) -> Tensor:
        """Codes of this shape, with what gradient there is."""

    @property
    def mean(self) -> Tensor:
        """The probabilities of the classes, shape ``(*batch, *event)``."""
        return self.logits.softmax(-1)

    @property
    def mode(self) -> Tensor:
        """The likeliest code."""
        return _one_hot(self.logits)

    def entropy(self) -> Tensor:
        """In nats, shape ``(*batch,)``."""
        return -(self.mean * self.log_probs(self.logits)).flatten(-self.event_dim).sum(-1)

    @property
    def _like(self) -> Tensor:
        return self.logits


class OneHotCategorical(_Factorized):
    r"""Independent variables of K classes each: ``log p(y) = sum_i sum_k y_ik log p_ik``.

    torch's class of the same name scores a relaxed code as the nearest one-hot one, or refuses it; this one is linear.

    Args:
        logits: shape ``(*batch, *variables, K)``.
        event_dim: dimensions of an event, the classes among them.

    Example:
        >>> d = OneHotCategorical(torch.zeros(3, 4), event_dim=2)
        >>> d.log_prob(d.enumerate_support()).exp().sum()
        tensor(1.)
    """

    def _at(self, logits: Tensor) -> "OneHotCategorical":
        return OneHotCategorical(logits, self.event_dim, validate_args=False)

    def _draw(self, shape: torch.Size) -> Tensor:
        return _one_hot(_perturbed(self.logits, shape))


class RelaxedOneHot(_Factorized):
    r"""Draws ``softmax((logits + Gumbel noise) / temperature)``, scored as categorical: ``sum_i sum_k y_ik log p_ik``.

    Args:
        logits: shape ``(*batch, *variables, K)``.
        temperature: positive scalar.
        event_dim: dimensions of an event, the classes among them.

    References:
        Categorical reparameterization with Gumbel-softmax (Jang, Gu and Poole, 2017)

    Example:
        >>> RelaxedOneHot(torch.zeros(3, 4), torch.tensor(0.5), event_dim=2).rsample().sum(-1).round()
        tensor([1., 1., 1.])
    """

    has_rsample = True

    def __init__(
        self, logits: Tensor, temperature: Tensor, event_dim: int = 1, *, validate_args: bool | None = None
    ) -> None:
        self.temperature = temperature
        super().__init__(logits, event_dim, validate_args=validate_args)

    def _at(self, logits: Tensor) -> "RelaxedOneHot":
        return RelaxedOneHot(logits, self.temperature, self.event_dim, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Relaxed draws with their own gradients."""
        return self._draw(self._extended_shape(sample_shape))

    def _draw(self, shape: torch.Size) -> Tensor:
        return (_perturbed(self.logits, shape) / self.temperature).softmax(-1)


class StraightThroughOneHot(_Factorized):
    r"""One-hot draws, exactly those of :class:`OneHotCategorical`, with the gradients of relaxed ones.

    Args:
        logits: shape ``(*batch, *variables, K)``.
        temperature: positive scalar, of the gradients.
        event_dim: dimensions of an event, the classes among them.

    References:
        Categorical reparameterization with Gumbel-softmax (Jang, Gu and Poole, 2017)

    Example:
        >>> StraightThroughOneHot(torch.tensor([0.0, 90.0]), torch.tensor(0.5)).rsample()
        tensor([0., 1.])
    """

    has_rsample = True

    def __init__(
        self, logits: Tensor, temperature: Tensor, event_dim: int = 1, *, validate_args: bool | None = None
    ) -> None:
        self.temperature = temperature
        super().__init__(logits, event_dim, validate_args=validate_args)

    def _at(self, logits: Tensor) -> "StraightThroughOneHot":
        return StraightThroughOneHot(logits, self.temperature, self.event_dim, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """One-hot draws with the gradients of relaxed ones."""
        return self._draw(self._extended_shape(sample_shape))

    def _draw(self, shape: torch.Size) -> Tensor:
        noisy = _perturbed(self.logits, shape)
        soft = (noisy / self.temperature).softmax(-1)
        return _one_hot(noisy.detach()) + (soft - soft.detach())


class AutoregressiveOneHot(_Codes):
    r"""Each variable given those before: ``log p(y) = sum_i sum_k y_ik log p(class k of variable i | y_1 .. y_{i-1})``.

    Args:
        logits: maps codes ``(*batch, variables, classes)`` to logits of the same shape, those of variable i being a
            function of variables before i alone.
        like: logits of one set of codes, shape ``(*batch, variables, classes)``; its shape, type and device count.

    Example:
        >>> d = AutoregressiveOneHot(lambda y: torch.roll(y, 1, -2).cumsum(-2) * 0, torch.zeros(2, 3))
        >>> d.sample().shape
        torch.Size([2, 3])
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], like: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits, self.like = logits, like
        super().__init__(like.shape[:-2], like.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "AutoregressiveOneHot":
        """The same distribution over a larger batch shape."""
        like = self.like.expand(*batch_shape, *self.event_shape)
        return AutoregressiveOneHot(self.logits, like, validate_args=False)

    def log_probs(self, value: Tensor) -> Tensor:
        """Of every class given the variables before, shape ``(*batch, variables, classes)``."""
        return self.logits(value.expand(torch.broadcast_shapes(value.shape, self.like.shape))).log_softmax(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, one variable after the other."""
        shape = self._extended_shape(sample_shape)
        return self._unroll(shape, lambda logits: _one_hot(_perturbed(logits, logits.shape)))

    @property
    def mean(self) -> Tensor:
        """NaN, as for classes: there is no closed form of the marginals; ``mode`` stands in for a centre."""
        return torch.full_like(self.like, torch.nan)

    @property
    def mode(self) -> Tensor:
        """Each variable's likeliest class given those before: not always the likeliest code."""
        return self._unroll(self.like.shape, _one_hot)

    @torch.no_grad()
    def _unroll(self, shape: torch.Size, choose: Callable[[Tensor], Tensor]) -> Tensor:
        codes = torch.zeros(shape, dtype=self.like.dtype, device=self.like.device)
        for i in range(shape[-2]):
            chosen = choose(self.logits(codes)[..., i : i + 1, :])
            codes = torch.cat([codes[..., :i, :], chosen, codes[..., i + 1 :, :]], -2)
        return codes

    @property
    def _like(self) -> Tensor:
        return self.like


@register_kl(_Factorized, _Factorized)
def _kl(q: _Factorized, p: _Factorized) -> Tensor:
    """``sum_i sum_k q_ik (log q_ik - log p_ik)``: between the categoricals, however they are drawn from."""
    difference = q.log_probs(q.logits) - p.log_probs(p.logits)
    return (q.mean * difference).flatten(-q.event_dim).sum(-1)


def all_codes(variables: int, classes: int) -> Tensor:
    """Every one-hot code once, shape ``(classes^variables, variables, classes)``.

    Example:
        >>> all_codes(2, 2).argmax(-1).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    place = classes ** torch.arange(variables - 1, -1, -1)
    digits = torch.arange(classes**variables)[:, None] // place % classes
    return (digits[..., None] == torch.arange(classes)).to(torch.get_default_dtype())


def _perturbed(logits: Tensor, shape: torch.Size) -> Tensor:
    """Logits plus Gumbel noise: the largest is class k with probability ``softmax(logits)_k``."""
    uniform = torch.rand(shape, dtype=logits.dtype, device=logits.device)
    return logits - torch.log(-torch.log(uniform.clamp(min=torch.finfo(logits.dtype).tiny)))


def _one_hot(scores: Tensor) -> Tensor:
    """One where the score is largest; torch's one_hot looks at the numbers, which a captured program cannot."""
    classes = torch.arange(scores.shape[-1], device=scores.device)
    return (scores.argmax(-1, keepdim=True) == classes).to(scores.dtype)
