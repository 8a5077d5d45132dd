"""Elements that are classes, and codes of one-hot vectors."""

import abc

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.conditional import Context, Head, NetBuilder, Shape
from pyrovae.distributions import codes
from pyrovae.distributions.basics import positive
from pyrovae.distributions.levels import ordinal_logits
from pyrovae.errors import ConfigError
from pyrovae.families.levels import at_least_two
from pyrovae.families.scale import positive_number
from pyrovae.nn import MLP, dims

__all__ = ["Bernoulli", "Categorical", "Concrete", "OneHotCategorical", "Ordinal", "Relaxed", "StraightThrough"]


class Bernoulli(Head):
    r"""Binary data: ``log p(x) = sum_d [x_d l_d - softplus(l_d)]`` with logits l.

    Grey values are no data of this family: cross-entropy on them is not a log density. Binarise them, or use
    :class:`ContinuousBernoulli` or :class:`Normal`.

    Args:
        shape: of one event.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Example:
        >>> Bernoulli((1, 4, 4), context=2)(torch.zeros(5, 2)).event_shape
        torch.Size([1, 4, 4])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(shape, context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """Bernoulli with logits, which do not saturate as probabilities do."""
        return dist.Bernoulli(logits=params[0]).to_event(self.event_dim)


class Categorical(Head):
    r"""One of K classes in every element: ``log p(x) = sum_d [l_{d, x_d} - logsumexp_k l_{d, k}]``.

    Args:
        shape: of one event, whose elements are ints from 0 to ``classes - 1``.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        classes: K, at least 2.

    Example:
        >>> Categorical(3, context=2, classes=5)(torch.zeros(7, 2)).sample().max() < 5
        tensor(True)
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, classes: int = 2) -> None:
        if classes < 2:
            raise ConfigError(f"classes: expected at least 2, received {classes!r}")
        super().__init__(shape, context, net, n_params=classes)
        self.classes = classes

    def family(self, *params: Tensor) -> TorchDistribution:
        """Categorical with one tensor of logits per class."""
        return dist.Categorical(logits=torch.stack(params, -1)).to_event(self.event_dim)


class Ordinal(Head):
    r"""One of K ordered classes in every element: ``P(x_d <= k) = sigmoid(c_{d, k} - loc_d)``, such as grades.

    The network gives the location; the K - 1 cut points are learned, for each element of the event, as the lowest and
    the distances between neighbours, so that they stay in order. They start where a location of 0 makes all classes
    equally likely.

    Args:
        shape: of one event, whose elements are ints from 0 to ``classes - 1``.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        classes: K, at least 2.

    Raises:
        ConfigError: for fewer than 2 classes.

    References:
        Regression models for ordinal data (McCullagh, 1980)

    Example:
        >>> Ordinal(3, context=2, classes=5)(torch.zeros(7, 2)).sample().max() < 5
        tensor(True)
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, classes: int = 2) -> None:
        at_least_two(classes, "classes")
        super().__init__(shape, context, net)
        self.classes = classes
        cuts = (torch.arange(1, classes) / classes).logit()
        raw = 10 * torch.atanh(cuts.diff().log() / 10)  # what ``positive`` undoes
        self.raw_cuts = nn.Parameter(torch.cat([cuts[:1], raw]).expand(*dims(shape), -1).clone())

    def family(self, *params: Tensor) -> TorchDistribution:
        """Categorical of the classes' log-probabilities at a location."""
        logits = ordinal_logits(params[0], self.raw_cuts[..., :1], positive(self.raw_cuts[..., 1:]))
        return dist.Categorical(logits=logits).to_event(self.event_dim)


class OneHotCategorical(Head):
    r"""Codes of one-hot vectors: ``log p(y) = sum_i sum_k y_ik log p_ik``, variables i of K classes k each.

    A discrete latent: prior, likelihood, or a posterior that is trained by the score function or by enumeration
    (``infer={"enumerate": "parallel"}`` in a program of your own; events of up to 2^16 codes are enumerated whole,
    whatever the number of their variables). The formula is linear in y and takes relaxed codes too, which is what
    :class:`Concrete` and :class:`StraightThrough` need of a prior.

    Args:
        shape: of one event, ``(variables, classes)``; an int is one variable of so many classes.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Raises:
        ConfigError: for fewer than 2 classes.

    Example:
        >>> OneHotCategorical((20, 10))().sample().sum(-1).unique()
        tensor([1.])
    """

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP) -> None:
        super().__init__(_code_shape(shape), context, net)

    def family(self, *params: Tensor) -> TorchDistribution:
        """One-hot categorical with logits."""
        return codes.OneHotCategorical(params[0], self.event_dim)


class Relaxed(Head):
    r"""Abstract: a posterior over one-hot codes that has gradients, ``y ~ softmax((logits + Gumbel) / temperature)``.

    In training mode draws have gradients; in evaluation mode the distribution is the exact
    :class:`OneHotCategorical`, so that log p(x) and the ELBO that are reported come from hard codes and are true
    bounds. Codes are scored by ``sum_i sum_k y_ik log p_ik`` in both, the categorical's log-probability: the prior is
    a discrete one, and no density of relaxed codes, which overflows at low temperatures, is computed.

    ``temperature`` is where the temperature starts; :meth:`anneal` moves it while training, in captured programs too.
    It is no part of a model's weights: a model that is read back starts at the argument again.

    Args:
        shape: of one event, ``(variables, classes)``; an int is one variable of so many classes.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        temperature: positive; small ones give little bias and much variance.

    Raises:
        ConfigError: for fewer than 2 classes, or a temperature that is not positive.
    """

    current_temperature: Tensor

    def __init__(self, shape: Shape, context: Context = None, net: NetBuilder = MLP, temperature: float = 0.5) -> None:
        super().__init__(_code_shape(shape), context, net)
        self.temperature = positive_number(temperature, "temperature")
        self.register_buffer("current_temperature", torch.tensor(float(temperature)), persistent=False)

    @torch.no_grad()
    def anneal(self, temperature: float) -> None:
        """Draw at this temperature from now on.

        Raises:
            ConfigError: if it is not positive.
        """
        self.current_temperature.fill_(positive_number(temperature, "temperature"))

    def family(self, *params: Tensor) -> TorchDistribution:
        """Draws with gradients in training mode, the exact distribution in evaluation mode."""
        if self.training:
            return self.reparameterized(params[0])
        return codes.OneHotCategorical(params[0], self.event_dim)

    @abc.abstractmethod
    def reparameterized(self, logits: Tensor) -> TorchDistribution:
        """The distribution of training.

        Args:
            logits: shape ``(*batch, *shape)``.
        """


class Concrete(Relaxed):
    r"""Relaxed codes: ``y = softmax((logits + Gumbel) / temperature)`` in training, exact one-hot codes in evaluation.

    Biased: in training the decoder sees points of the simplex and the loss is no bound; both gaps close as the
    temperature goes to 0. Exact: gradients of that relaxed loss; everything in evaluation mode.

    Args:
        shape: of one event, ``(variables, classes)``; an int is one variable of so many classes.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        temperature: positive, at the start; :meth:`anneal` moves it.

    Raises:
        ConfigError: for fewer than 2 classes, or a temperature that is not positive.

    References:
        Categorical reparameterization with Gumbel-softmax (Jang, Gu and Poole, 2017);
        The concrete distribution: a continuous relaxation of discrete random variables
        (Maddison, Mnih and Teh, 2017)

    Example:
        >>> q = Concrete((20, 10), context=784)
        >>> q(torch.zeros(3, 784)).rsample().shape
        torch.Size([3, 20, 10])
        >>> q.anneal(0.1)
        >>> q.eval()(torch.zeros(3, 784)).sample().unique()
        tensor([0., 1.])
    """

    def reparameterized(self, logits: Tensor) -> TorchDistribution:
        """Relaxed one-hot vectors."""
        return codes.RelaxedOneHot(logits, self.current_temperature, self.event_dim)


class StraightThrough(Relaxed):
    r"""Hard codes with soft gradients: ``y = onehot(argmax(logits + Gumbel))``, derived as the softmax is.

    Biased: gradients, at any temperature, less so at low ones. Exact: draws and so the value of the ELBO, in training
    as well; everything in evaluation mode.

    Args:
        shape: of one event, ``(variables, classes)``; an int is one variable of so many classes.
        context: shape conditioned on, or None for learned constants.
        net: network builder.
        temperature: positive, of the gradients at the start; :meth:`anneal` moves it.

    Raises:
        ConfigError: for fewer than 2 classes, or a temperature that is not positive.

    References:
        Categorical reparameterization with Gumbel-softmax (Jang, Gu and Poole, 2017)

    Example:
        >>> StraightThrough((20, 10), context=784)(torch.zeros(3, 784)).rsample().unique()
        tensor([0., 1.], grad_fn=...)
    """

    def reparameterized(self, logits: Tensor) -> TorchDistribution:
        """Straight-through one-hot vectors."""
        return codes.StraightThroughOneHot(logits, self.current_temperature, self.event_dim)


def _code_shape(shape: Shape) -> Shape:
    if dims(shape)[-1] < 2:
        raise ConfigError(f"shape: expected (variables, classes) with at least 2 classes, received {shape!r}")
    return shape
