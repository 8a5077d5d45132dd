"""The likelihood of a row whose columns are of different kinds."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyrovae.columns.column import Column, Likelihood, as_columns, grouped, in_units, units
from pyrovae.columns.frames import from_codes, inferred, to_codes
from pyrovae.columns.network import ColumnAware
from pyrovae.conditional import Context, Head
from pyrovae.data.gate import Missing, check_cells
from pyrovae.distributions.columns import ColumnWise
from pyrovae.distributions.masked import MaskedCells
from pyrovae.errors import ConfigError, DataError
from pyrovae.nn import MLP, NetBuilder

__all__ = ["Columns"]


class Columns(Head):
    r"""A row of a table, with one likelihood per column: ``log p(x) = sum_d log p_d(x_d)`` over the observed cells.

    One network gives the parameters of all columns. A missing cell is NaN and is skipped, as by
    :class:`pyrovae.Masked`. Numbers are scored in the units of the data while the network works in standard units,
    ``(x - shift) / scale``: with ``x`` in cents instead of euros log p(x) falls by log 100.

    Columns of equal likelihood form one head: what that shares over its elements (``SharedScale``, a learned ``df``)
    they share.

    Args:
        columns: likelihoods by name, or :class:`Column` objects, which can have units and categories.
        context: shape conditioned on, or None for learned constants.
        net: network builder.

    Attributes:
        shape: number of columns.
        columns: the :class:`Column` objects.
        kinds: of each column: ``"real"``, ``"positive"``, ``"count"``, ``"binary"``, ``"ordinal"``, ``"categorical"``,
            ``"angle"`` or ``"fraction"``.
        groups: places of the columns that share a head.

    Raises:
        ConfigError: for a likelihood that is no head with independent cells, naming the column.

    References:
        Handling incomplete heterogeneous data using VAEs (Nazabal, Olmos, Ghahramani and Valera, 2020)

    Example:
        >>> import torch, pyrovae as pv
        >>> likelihood = Columns({"age": pv.Normal, "city": functools.partial(pv.Categorical, classes=7)}, context=2)
        >>> q = pv.Normal(2, context=likelihood.shape, net=likelihood.encoder())
        >>> vae = pv.VAE(pv.StandardNormal(2), likelihood, q)
        >>> x = torch.tensor([[31.0, 6.0], [torch.nan, 2.0], [64.0, torch.nan]])
        >>> vae.log_prob(x, k=5).shape
        torch.Size([3])
        >>> print(likelihood)
        age   real         Normal()
        city  categorical  Categorical(classes=7)
    """

    order: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        columns: Mapping[str, Likelihood] | Sequence[Column],
        context: Context = None,
        net: NetBuilder = MLP,
    ) -> None:
        listed = as_columns(columns)
        groups = grouped(listed)
        super().__init__(len(listed), context, net, sizes=[group.size for group in groups])
        self.columns, self.groups = listed, [group.places for group in groups]
        self.heads = nn.ModuleList(group.head for group in groups)
        kinds = {i: group.kind for group in groups for i in group.places}
        self.kinds = [kinds[i] for i in range(len(listed))]
        supports = {i: group.support for group in groups for i in group.places}
        cells = [in_units(supports[i], column, self.kinds[i]) for i, column in enumerate(listed)]
        self._support = constraints.independent(constraints.cat(cells, dim=-1), 1)
        for name, buffer in units(listed, groups).items():
            self.register_buffer(name, buffer, persistent=False)

    def family(self, *params: Tensor) -> TorchDistribution:
        """The columns' distributions, of the cells that are not NaN."""
        parts = [head.at(p) for head, p in zip(self.heads, params, strict=True)]  # pyright: ignore[reportCallIssue]
        return MaskedCells(ColumnWise(parts, self.order, self.shift, self.scale, self._support))

    def encoder(self, net: NetBuilder = MLP) -> NetBuilder:
        """A builder of networks that read rows of this table: ``Normal(8, context=p.shape, net=p.encoder())``.

        Args:
            net: builder of the network behind, see :class:`ColumnAware`.
        """
        return functools.partial(ColumnAware, columns=self, net=net)

    @classmethod
    def infer(
        cls,
        df: Any,
        context: Context = None,
        net: NetBuilder = MLP,
        overrides: Mapping[str, Likelihood] | None = None,
    ) -> "Columns":
        """Likelihoods guessed from a DataFrame; print them, and override what is wrong.

        ==================================================================  ====================================
        column                                                              kind and likelihood
        ==================================================================  ====================================
        booleans; two distinct texts, categories or whole numbers           binary, Bernoulli
        texts; a pandas category                                            categorical, Categorical
        an ordered pandas category; 3 to 10 distinct whole numbers          ordinal, Ordinal
        more whole numbers from 0, of a variance not below their mean       count, NegativeBinomial
        positive numbers that are not whole, of a skewness above 1          positive, LogNormal
        other numbers                                                       real, Normal
        ==================================================================  ====================================

        Angles look like other numbers: override them with ``VonMises``, in radians from -pi to pi.

        Args:
            df: the table, missing cells NaN or None.
            context: shape conditioned on, or None for learned constants.
            net: network builder.
            overrides: likelihoods by column, as in :class:`Columns`; ``classes`` and units are filled in.

        Raises:
            DataError: for a column nothing can be learned about, naming it: all missing, constant, dates, mixed types,
                a different text in every row.

        Example:
            >>> import pandas as pd
            >>> from pyrovae import Normal
            >>> df = pd.DataFrame({"age": [31.5, None, 64.0], "smokes": [True, False, None], "grade": [1, 2, 4]})
            >>> print(Columns.infer(df, overrides={"grade": Normal}))
            age     real    Normal(shift=47.75, scale=16.25), 33.3 % missing
            smokes  binary  Bernoulli(), [False, True], 33.3 % missing
            grade   real    Normal(shift=2.33333, scale=1.24722), 0 % missing
        """
        chosen = dict(overrides or {})
        unknown = [name for name in chosen if name not in df.columns]
        if unknown:
            raise ConfigError(f"overrides: the table has no column {unknown[0]!r}")
        if not df.columns.is_unique:
            raise DataError(f"table: two columns are named {df.columns[df.columns.duplicated()][0]!r}: rename one")
        return cls([inferred(str(name), df[name], chosen.get(name)) for name in df.columns], context, net)

    def to_array(self, df: Any, *, source: str = "table") -> np.ndarray:
        """Rows as the model sees them, float64: numbers as they are, codes of categories, NaN where a cell is missing.

        Columns are found by name, in any order; others are left out.

        Args:
            df: a DataFrame; messages call its rows as its index does.
            source: where it came from, for messages.

        Raises:
            DataError: for a missing column, an unknown category or a number outside its column's support, with its row.
        """
        absent = [c.name for c in self.columns if c.name not in df.columns]
        if absent:
            raise DataError(
                f"{source}: no column {absent[0]!r}: the model needs {', '.join(c.name for c in self.columns)}"
            )
        x = np.stack([to_codes(df[column.name], column, source) for column in self.columns], -1)
        names = [column.name for column in self.columns]
        check_cells(x, self._support, source=source, columns=names, missing=Missing.COLUMNS, rows=df.index)
        return x

    def to_frame(self, x: Any) -> Any:
        """The inverse of :meth:`to_array`: a DataFrame, of samples and imputations too, with categories and counts.

        Args:
            x: array or tensor, shape ``(rows, D)``.
        """
        import pandas as pd

        rows = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            raise DataError(f"x: expected shape (rows, {len(self.columns)}), received {rows.shape}")
        series = {c.name: from_codes(rows[:, i], c, self.kinds[i]) for i, c in enumerate(self.columns)}
        return pd.DataFrame(series)

    def __str__(self) -> str:
        names, kinds = (max(map(len, words)) for words in ([c.name for c in self.columns], self.kinds))
        lines = zip(self.columns, self.kinds, strict=True)
        return "\n".join(f"{c.name:<{names}}  {kind:<{kinds}}  {c}" for c, kind in lines)
