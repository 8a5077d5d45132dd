"""The one noun: a conditional distribution is a module whose ``forward(*context)`` returns a distribution."""

import abc
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.nn import MLP, Constant, Join, NetBuilder, dims

__all__ = ["Conditional", "Context", "Head", "NetBuilder", "Shape", "as_shape", "several"]

Shape = int | Sequence[int]
Context = Shape | Sequence[Sequence[int]] | None


class Conditional(nn.Module, abc.ABC):
    """p(a | context), with no role of its own: it serves as prior, likelihood or posterior.

    ``forward(*context)`` returns a distribution whose batch shape broadcasts with the context's leading dimensions.
    A context that is None counts as absent; a distribution without context ignores what it is given.

    To write one, subclass and return a Pyro distribution whose event dimensions are declared with ``to_event``. Keep
    every constructor argument as an attribute of the same name: that is how a model is written to ``model.toml``.
    Classes are abstract or final: wrap a finished one rather than subclass it.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> class Cube(Conditional):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.size = size
        ...
        ...     def forward(self, *context):
        ...         return dist.Uniform(-torch.ones(self.size), torch.ones(self.size)).to_event(1)
        >>> Cube(3)().event_shape
        torch.Size([3])

    If a network computes the parameters, subclass :class:`Head`: say how many parameters an element has, and turn them
    into a distribution. That is a new likelihood, posterior and learned prior at once:

        >>> from pyrovae.distributions import positive
        >>> class Exponential(Head):
        ...     def __init__(self, shape, context=None, net=MLP):
        ...         super().__init__(shape, context, net, n_params=1)
        ...
        ...     def family(self, *params):
        ...         return dist.Exponential(positive(params[0])).to_event(self.event_dim)
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), Exponential(5, context=2), pv.Normal(2, context=5))
        >>> history = pv.fit(vae, torch.rand(64, 5), epochs=1)
        >>> vae.sample(3).shape
        torch.Size([3, 5])

    To make it a part of the library takes four places: the class in the file of ``families`` where its values belong,
    with its name in that file's ``__all__``; the export in ``pyrovae/__init__.py``; one line in the table of
    ``tests/test_contract.py``, which then demands everything else of it; one row in the README. The command line and
    TOML find it by its name.
    """

    @abc.abstractmethod
    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The distribution given the context.

        Args:
            *context: tensors of shape ``(*batch, *shape)``, or None.
        """


class Head(Conditional):
    """A network sized by the family: ``network(context) -> n_params tensors of shape (*batch, *shape) -> family``.

    The network puts out the event with its first dimension ``n_params`` times as long, so that swapping the family
    never touches the line of the network. Without a context the parameters are learned constants: a learned prior.

    Contexts whose leading dimensions differ, as an image and every value of its label, are not concatenated when they
    are vectors and the network is an MLP or GatedMLP: ``W [x; y] = W_x x + W_y y``, and ``W_x x`` is computed once.

    To add a family, write ``family`` and call this constructor with the number of parameters per element, or, where
    parameters are not shaped as the event, with the length of each.

    Args:
        shape: of one event, an int for vectors, such as ``(1, 28, 28)`` for images.
        context: the shape conditioned on; several as a sequence of sequences, ``[(16,), (10,)]``; None for none.
        net: called as ``net(in_shape, out_shape)``, an int for vectors; ``torch.nn.Linear`` is one.
        n_params: parameters of the family for each element of the event.
        sizes: lengths of the parameters, where these are vectors of another length than the event: the network's
            output is a vector of their sum, and ``n_params`` does not count.

    Raises:
        ValueError: for a shape that is not positive, or a network that is already built.
    """

    def __init__(
        self,
        shape: Shape,
        context: Context = None,
        net: NetBuilder = MLP,
        *,
        n_params: int = 1,
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_builder(net)
        self.shape, self.context, self.net = shape, context, net
        self.event_dim = len(dims(shape))
        self._n_params, self._sizes = n_params, None if sizes is None else list(sizes)
        out = as_shape((n_params * dims(shape)[0], *dims(shape)[1:])) if sizes is None else sum(sizes)
        self.join = None if context is None else Join([as_shape(dims(s)) for s in several(context)])
        self.network = Constant(out) if self.join is None else net(self.join.shape, out)

    @abc.abstractmethod
    def family(self, *params: Tensor) -> TorchDistribution:
        """The distribution of one event per row.

        Args:
            *params: ``n_params`` tensors of shape ``(*batch, *shape)``, or one of shape ``(*batch, size)`` for each of
                ``sizes``.
        """

    def forward(self, *context: Tensor | None) -> TorchDistribution:
        """The family at the parameters the network computes.

        Args:
            *context: tensors of shape ``(*batch, *shape)``; None is left out.
        """
        return self.at(self.params(*context))

    def at(self, params: Tensor) -> TorchDistribution:
        """The family at given parameters, as ``params`` puts them out."""
        if self._sizes is not None:
            return self.family(*params.split(self._sizes, -1))
        return self.family(*params.chunk(self._n_params, -self.event_dim))

    def params(self, *context: Tensor | None) -> Tensor:
        """The network's output, ``(*batch, n_params * shape[0], *shape[1:])``, or ``(*batch, sum(sizes))``."""
        if self.join is None:
            return self.network()
        return self.join.feed(self.network, *(_floating(c) for c in context if c is not None))


def _floating(context: Tensor) -> Tensor:
    """Classes and counts as numbers a network can read."""
    return context if context.is_floating_point() else context.to(torch.get_default_dtype())


def as_shape(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """What a network builder is given: an int for vectors, a tuple for everything else."""
    return sizes[0] if len(sizes) == 1 else sizes


def several(context: Shape | Sequence[Sequence[int]]) -> Sequence[Shape]:
    """One context as a list of one; ``[(16,), (10,)]`` as it is."""
    nested = isinstance(context, Sequence) and len(context) > 0 and isinstance(context[0], Sequence)
    return context if nested else [context]  # pyright: ignore[reportReturnType]


def _check_builder(net: object) -> None:
    if isinstance(net, nn.Module):
        raise ConfigError(
            f"net: expected a function (in_shape, out_shape) -> module, received a {type(net).__name__} that is built; "
            "pass the class, a functools.partial of it, or lambda i, o: module"
        )
