"""Text as sequences of characters: a likelihood that writes them one by one, and strings as numbers and back."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.conditional import Conditional, Context, NetBuilder, Shape, as_shape, several
from pyrovae.distributions.text import Strings
from pyrovae.errors import ConfigError, DataError
from pyrovae.nn import GRUDecoder, Join, SequenceDecoder, dims
from pyrovae.nn.shapes import is_size

__all__ = ["Text", "decode_text", "encode_text"]


class Text(Conditional):
    r"""Strings, one symbol after the other: ``log p(x|z, y) = sum_t log p(x_t | x_1 .. x_{t-1}, z, y)``.

    A string is a vector of T numbers, symbols from 1 to V and then 0: :func:`encode_text` makes such vectors. Symbols
    up to the end count, the end among them; what stands after it changes nothing, not by a bit. The context goes into
    every step, which is what makes a label matter for the whole string.

    Word dropout replaces symbols that the network reads, never those it writes, by one that stands for any: it must
    then ask the latent what comes next. It acts in training mode alone. Which symbols are hidden is drawn once for a
    row when the distribution is made, the same for all values of an enumerated label and all particles, which are
    thus compared on equal terms.

    The encoder of such rows is :class:`~pyrovae.nn.GRUEncoder`.

    Args:
        shape: T, the most symbols a string may have.
        context: shape conditioned on, several as a sequence of sequences; None for none.
        net: builder of the network, a :class:`~pyrovae.nn.SequenceDecoder`.
        vocabulary: V, the number of symbols.
        word_dropout: probability with which a symbol is hidden, from 0 and below 1.

    Raises:
        ConfigError: for another shape or network, or a probability that cannot be.

    References:
        Generating sentences from a continuous space (Bowman et al., 2016);
        Variational autoencoder for semi-supervised text classification (Xu, Sun, Deng and Tan, 2017)

    Example:
        >>> import pyrovae as pv
        >>> words, alphabet = ["never", "nooit", "always", "altijd"], "adefijlnorstvwy"
        >>> x = torch.tensor(encode_text(words, alphabet))
        >>> reader = functools.partial(pv.GRUEncoder, length=6, vocabulary=15)
        >>> m2 = pv.SemiSupervisedVAE(
        ...     labels=pv.OneHotCategorical(2),
        ...     prior=pv.StandardNormal(4),
        ...     likelihood=pv.Text(6, context=[(4,), (2,)], vocabulary=15, word_dropout=0.3),
        ...     posterior=pv.Normal(4, context=[(6,), (2,)], net=reader),
        ...     classifier=pv.OneHotCategorical(2, context=6, net=reader),
        ... )
        >>> loss = (pv.ELBO() + pv.Classification(10.0))(m2, x, torch.tensor([0, 1, -1, -1]))
        >>> len(decode_text(m2.reconstruct(x), alphabet))
        4
    """

    like: Tensor

    def __init__(
        self,
        shape: Shape,
        context: Context = None,
        net: NetBuilder = GRUDecoder,
        *,
        vocabulary: int,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.context, self.net = shape, context, net
        self.vocabulary, self.word_dropout = vocabulary, word_dropout
        _check_net(net)
        _check_dropout(word_dropout, context)
        length = _length(shape, "shape")
        if not is_size(vocabulary):
            raise ConfigError(f"vocabulary: expected the number of symbols, at least 1, received {vocabulary!r}")
        self.join = None if context is None else Join([as_shape(dims(s)) for s in several(context)])
        # it writes the end and every symbol; it reads the beginning, every symbol, and one that is hidden
        builder: Callable[..., Any] = net  # of one more argument than other networks
        self.network: SequenceDecoder = builder(
            None if self.join is None else self.join.shape, vocabulary + 1, vocabulary + 2
        )
        self.register_buffer("like", torch.zeros(length), persistent=False)

    def forward(self, *context: Tensor | None) -> Strings:
        """The strings given the context, which a prior without one ignores.

        Args:
            *context: tensors of shape ``(*batch, *shape)``; None is left out.
        """
        fixed = None
        if self.join is not None:
            fixed = self.join.feed(self.network, *(c.to(self.like) for c in context if c is not None))
        batch = () if fixed is None else fixed.shape[:-1]
        shown = self._shown(batch)

        def step(t: int, before: Tensor, state: Any) -> tuple[Tensor, Any]:
            read = torch.where(shown[..., t - 1], before, self.vocabulary + 1) if shown is not None and t else before
            return self.network.step(read, fixed, state)

        return Strings(step, self.like.expand(*batch, -1), self.vocabulary)

    def _shown(self, batch: Sequence[int]) -> Tensor | None:
        """Which symbols of a row are read, ``(rows, T)``, where some are hidden."""
        if not (self.training and self.word_dropout):
            return None
        rows = tuple(batch)[-1:]  # dimensions before it are labels and particles
        return torch.rand(*rows, len(self.like), dtype=self.like.dtype, device=self.like.device) >= self.word_dropout


def encode_text(strings: Iterable[str], alphabet: str, length: int | None = None) -> np.ndarray:
    """Strings as rows of numbers: the characters' places in the alphabet from 1, then 0.

    Args:
        strings: each of at most ``length`` characters.
        alphabet: every character once, at most 255; ``"".join(sorted(set("".join(strings))))`` has those that occur.
            Keep it with the model: another one gives other numbers.
        length: T; None for that of the longest string.

    Returns:
        Array of shape ``(rows, T)`` and type uint8.

    Raises:
        ConfigError: for an alphabet that is empty, too long, or has a character twice.
        DataError: for what is no text, a character that is not in the alphabet, or a string that is too long.

    Example:
        >>> encode_text(["bad", "a"], "abcd")
        array([[2, 1, 4],
               [1, 0, 0]], dtype=uint8)
    """
    _check_alphabet(alphabet)
    strings = [strings] if isinstance(strings, str) else list(strings)
    code = {character: i for i, character in enumerate(alphabet, 1)}
    rows = [_codes(string, code, row) for row, string in enumerate(strings)]
    longest = max(map(len, rows), default=0)
    length = max(longest, 1) if length is None else _length(length, "length")
    if longest > length:
        row = next(i for i, codes in enumerate(rows) if len(codes) > length)
        raise DataError(
            f"text: row {row} has {len(rows[row])} characters: expected at most {length}, cut it or give a larger "
            "length, which is the model's shape"
        )
    encoded = np.zeros((len(rows), length), np.uint8)
    for i, codes in enumerate(rows):
        encoded[i, : len(codes)] = codes
    return encoded


def decode_text(codes: Any, alphabet: str) -> list[str]:
    """Rows of numbers as strings: the way back from :func:`encode_text`; what stands after the first 0 is not read.

    Args:
        codes: array or tensor of shape ``(rows, T)``, whole numbers.
        alphabet: that of :func:`encode_text`.

    Raises:
        DataError: for a number beyond the alphabet, or another shape.

    Example:
        >>> decode_text(torch.tensor([[2.0, 1.0, 4.0], [1.0, 0.0, 3.0]]), "abcd")
        ['bad', 'a']
    """
    _check_alphabet(alphabet)
    rows = np.asarray(codes.detach().cpu() if isinstance(codes, Tensor) else codes)
    if rows.ndim != 2:
        raise DataError(f"text: codes of shape {rows.shape}: expected (rows, T)")
    there = np.cumsum(rows == 0, 1) == 0
    bad = there & ~((rows >= 1) & (rows <= len(alphabet)) & (rows == np.floor(rows)))
    if bad.any():
        row, place = np.argwhere(bad)[0]
        raise DataError(
            f"text: row {row} has the code {rows[row, place]:g} at place {place}: expected whole numbers up to "
            f"{len(alphabet)}, the characters of the alphabet; take the one that encoded the text"
        )
    return ["".join(alphabet[int(code) - 1] for code in row[read]) for row, read in zip(rows, there, strict=True)]


def _codes(string: Any, code: dict[str, int], row: int) -> list[int]:
    if not isinstance(string, str):
        raise DataError(f"text: row {row} is {string!r}: expected a string, drop the row or fill the cell")
    for place, character in enumerate(string):
        if character not in code:
            raise DataError(
                f"text: row {row}, {string[:40]!r}, has the character {character!r} (U+{ord(character):04X}) at place "
                f"{place}, which is not in the alphabet: add it there, or replace it in the text"
            )
    return [code[character] for character in string]


def _check_alphabet(alphabet: Any) -> None:
    if not isinstance(alphabet, str) or not 1 <= len(alphabet) <= 255 or len(set(alphabet)) < len(alphabet):
        raise ConfigError(
            f"alphabet: expected a string of 1 to 255 characters, each of them once, received {alphabet!r}"
        )


def _length(given: Any, name: str) -> int:
    sizes = dims(given, name)
    if len(sizes) != 1:
        raise ConfigError(f"{name}: expected the most symbols of a string, one int, received {given!r}")
    return sizes[0]


def _check_net(net: Any) -> None:
    kind = net.func if isinstance(net, functools.partial) else net
    built = isinstance(net, torch.nn.Module)
    if built or not callable(net) or (inspect.isclass(kind) and not issubclass(kind, SequenceDecoder)):
        raise ConfigError(
            f"net: expected a builder of a network that writes step by step, such as GRUDecoder, received {net!r}"
        )


def _check_dropout(word_dropout: Any, context: Context) -> None:
    if isinstance(word_dropout, bool) or not isinstance(word_dropout, (int, float)) or not 0 <= word_dropout < 1:
        raise ConfigError(f"word_dropout: expected a probability from 0 and below 1, received {word_dropout!r}")
    if word_dropout and context is None:
        raise ConfigError(
            f"word_dropout: expected 0 without a context, which it makes the network look at, received {word_dropout!r}"
        )
