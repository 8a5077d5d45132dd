"""Networks of sequences of symbols: one that reads them, one that writes them."""

import abc
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as look_up
from torch.nn.functional import linear

from pyrovae.nn.dense import MLP
from pyrovae.nn.joining import Splittable
from pyrovae.nn.shapes import Shape, batched, dims, is_size, shapes_of

__all__ = ["GRUDecoder", "GRUEncoder", "SequenceDecoder"]

_State: TypeAlias = tuple[Tensor, Tensor]


class SequenceDecoder(Splittable):
    """Abstract: a recurrent network that writes a sequence, step by step, given the symbols before and a context.

    A builder is called ``net(in_shape, out_shape, symbols)``: the shape of the context, or None where there is none;
    the size of what every step puts out; the number of symbols it reads. Subclass it to write one of your own.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """What the steps need of the context, ``(*batch, size)``, computed once for all of them.

        Args:
            x: The context ``(rows, *in_shape)``, or the first part of a vector ``(*batch_1, size_1)``.
            *more: The other parts ``(*batch_i, size_i)``.
        """

    @abc.abstractmethod
    def step(self, symbols: Tensor, context: Tensor | None, state: Any = None) -> tuple[Tensor, Any]:
        """One step.

        Args:
            symbols: Those before, ints from 0, shape ``(*lead)``, which broadcasts with the batch shape.
            context: As ``forward`` put it out, or None.
            state: What the step before gave, None at the first.

        Returns:
            Output ``(*batch, out_shape)``, and the state.
        """


class GRUDecoder(SequenceDecoder):
    r"""A gated recurrent unit that is given the context at every step: its input is ``[embedding(symbol); z; y]``.

    ``W [x; z; y] = W_x x + W_z z + W_y y``: the parts of the context are multiplied once, not at every step, and
    ``W_x x`` once for each symbol that there is. What the label adds to the gates is thus never forgotten.

    Args:
        in_shape: Shape of the context, None for none.
        out_shape: Size of the output at every step.
        symbols: The number of symbols it reads.
        hidden: Units of the state.
        embedding: Size of a symbol's vector.

    Raises:
        ValueError: If a size is not a positive int.

    References:
        - *Learning phrase representations using RNN encoder-decoder for statistical machine translation (Cho et al.,
          2014)*
        - *Variational autoencoder for semi-supervised text classification (Xu, Sun, Deng and Tan, 2017)*

    Example:
        >>> decoder = GRUDecoder(7, 5, symbols=6)
        >>> out, state = decoder.step(torch.zeros(4, dtype=torch.long), decoder(torch.zeros(4, 7)))
        >>> out.shape
        torch.Size([4, 5])
    """

    def __init__(
        self, in_shape: Shape | None, out_shape: Shape, symbols: int, hidden: int = 128, embedding: int = 32
    ) -> None:
        super().__init__()
        _check_sizes(symbols=symbols, hidden=hidden, embedding=embedding)
        self.in_shape, self.out_shape, self.symbols = in_shape, out_shape, symbols
        self.hidden, self.embedding = hidden, embedding
        self.vectors = nn.Embedding(symbols, embedding)
        self.inputs = nn.Linear(embedding, 3 * hidden, bias=False)
        self.context = None if in_shape is None else MLP(in_shape, 3 * hidden, hidden=())
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        (size,) = dims(out_shape, "out_shape")
        self.output = nn.Linear(hidden, size)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """``W_z z + W_y y``, shape ``(*batch, 3 * hidden)``."""
        if self.context is None:
            raise ValueError("GRUDecoder: expected no context, which in_shape=None says, received one")
        return self.context(x, *more)

    def step(self, symbols: Tensor, context: Tensor | None, state: _State | None = None) -> tuple[Tensor, _State]:
        """One step; the state is ``W_x x`` of every symbol, and the hidden units."""
        table, h = self._start() if state is None else state
        inputs = look_up(symbols, table)
        h = _gated(inputs if context is None else inputs + context, self.recurrent(h), h)
        return self.output(h), (table, h)

    def _start(self) -> _State:
        table = linear(self.vectors.weight, self.inputs.weight)
        return table, table.new_zeros(self.hidden)


class GRUEncoder(Splittable):
    """A gated recurrent unit that reads a sequence from both ends, then an MLP of its last states and of what else.

    The first ``length`` numbers of an input are a sequence: symbols from 1 to ``vocabulary`` up to the first 0, after
    which nothing is read; a likelihood such as Text refuses numbers beyond, here they count as the last symbol. Others,
    such as a label, come after the sequence and join the states, so that it is read once for all values of an
    enumerated label.

    Args:
        in_shape: Size of the input, ``length`` and that of all vectors after the sequence.
        out_shape: Shape of one output.
        length: Places of the sequence.
        vocabulary: The number of symbols.
        hidden: Units of the state in either direction, and of the MLP's hidden layer.
        embedding: Size of a symbol's vector.

    Raises:
        ValueError: If a size is not a positive int, or the input has no room for the sequence.

    References:
        - *Learning phrase representations using RNN encoder-decoder for statistical machine translation (Cho et al.,
          2014)*

    Example:
        >>> words, labels = torch.tensor([[3, 1, 0, 0], [2, 2, 1, 4]]), torch.eye(5)[:, None]
        >>> GRUEncoder(4 + 5, 16, length=4, vocabulary=4)(words, labels).shape
        torch.Size([5, 2, 16])
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, length: int, vocabulary: int, hidden: int = 128, embedding: int = 32
    ) -> None:
        super().__init__()
        _check_sizes(length=length, vocabulary=vocabulary, hidden=hidden, embedding=embedding)
        self.in_shape, self.out_shape, self.length, self.vocabulary = in_shape, out_shape, length, vocabulary
        self.hidden, self.embedding = hidden, embedding
        size, *others = dims(in_shape, "in_shape")
        if others or size < length:
            raise ValueError(f"in_shape: expected at least the {length} numbers of the sequence, received {in_shape}")
        self.vectors = nn.Embedding(vocabulary + 1, embedding)
        self.inputs = nn.Linear(embedding, 2 * 3 * hidden, bias=False)
        bound = hidden**-0.5
        self.weight = nn.Parameter(torch.empty(2, hidden, 3 * hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 1, 3 * hidden).uniform_(-bound, bound))
        self.readout = MLP(2 * hidden + size - length, out_shape, hidden=(hidden,))

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Map ``(rows, in_shape)`` to ``(rows, *out_shape)``, or the sequence and vectors to ``(*batch, *out_shape)``.

        Args:
            x: The whole input, or the sequence ``(*batch_1, length)``.
            *more: The vectors ``(*batch_i, size_i)``.
        """
        if not more and x.shape[-1] > self.length:
            x, *rest = x.split([self.length, x.shape[-1] - self.length], -1)
            more = tuple(rest)
        if x.shape[-1] != self.length:
            raise ValueError(
                f"GRUEncoder: expected a sequence of {self.length} numbers before everything else, received "
                f"{shapes_of((x, *more))}"
            )
        return self.readout(batched(self._read, x, 1), *more)

    def _read(self, codes: Tensor) -> Tensor:
        """The last states of both directions, ``(rows, 2 * hidden)``; the way back begins at the last symbol."""
        there = (codes == 0).cumsum(-1) == 0
        codes = torch.where(there, codes, 0).long().clamp(0, self.vocabulary).mT
        # a table of W_x x for either direction, one below the other; directions are a dimension, which halves the calls
        table = linear(self.vectors.weight, self.inputs.weight).unflatten(-1, (2, -1)).transpose(0, 1).flatten(0, 1)
        inputs = look_up(torch.stack([codes, codes.flip(0) + self.vocabulary + 1], 1), table)
        there = torch.stack([there.mT, there.mT.flip(0)], 1)[..., None]
        h = table.new_zeros(2, codes.shape[-1], self.hidden)
        for x, reads in zip(inputs.unbind(0), there.unbind(0), strict=True):
            h = torch.where(reads, _gated(x, torch.baddbmm(self.bias, h, self.weight), h), h)
        return torch.cat([*h], -1)


def _gated(inputs: Tensor, from_state: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU, from what input and state each contribute to reset gate, update gate and candidate."""
    size = h.shape[-1]
    gates = (inputs[..., : 2 * size] + from_state[..., : 2 * size]).sigmoid()
    reset, update = gates.chunk(2, -1)
    candidate = torch.tanh(inputs[..., 2 * size :] + reset * from_state[..., 2 * size :])
    return candidate + update * (h - candidate)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not is_size(size):
            raise ValueError(f"{name}: expected a positive int, received {size!r}")
