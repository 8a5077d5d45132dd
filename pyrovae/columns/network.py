"""A network that reads rows whose columns are of different kinds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.columns.column import Column, as_columns, grouped, units
from pyrovae.conditional import Head, as_shape
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP, NetBuilder, Shape, dims

__all__ = ["ColumnAware"]


def _ends(u: Tensor, low: float, high: float) -> Tensor:
    return (2 * (u - low) / (high - low) - 1)[..., None]


# what a network reads of columns of a kind, (*batch, count) -> (*batch, count, width); a missing cell comes as 1
_READ: dict[str, Callable[[Tensor, int], Tensor]] = {
    "real": lambda u, classes: u[..., None],
    "positive": lambda u, classes: u.clamp(min=1e-6).log()[..., None],
    "count": lambda u, classes: u.clamp(min=0).log1p()[..., None],
    "binary": lambda u, classes: _ends(u, 0, 1),
    "fraction": lambda u, classes: _ends(u, 0, 1),
    "ordinal": lambda u, classes: _ends(u, 0, classes - 1),
    "categorical": lambda u, classes: (u[..., None] == torch.arange(classes, device=u.device)).to(u.dtype),
    "angle": lambda u, classes: torch.stack([u.sin(), u.cos()], -1),
}
_WIDTH = {"angle": 2} | {kind: 1 for kind in _READ if kind not in ("angle", "categorical")}


class ColumnAware(nn.Module):
    """A network for rows of :class:`Columns`: every column in a form a network can read, and which cells are there.

    Real numbers come in standard units, positive ones as logarithms, counts as ``log(1 + x)``, classes one-hot, ordered
    classes and fractions from -1 to 1, angles as sine and cosine. A missing cell is 0 in all of that.

    Args:
        in_shape: columns, and behind them whatever else the network is to see.
        out_shape: of one output.
        columns: a :class:`Columns` likelihood, or what it is made of; in TOML ``"$likelihood"``.
        net: builder of the network behind.

    Example:
        >>> from pyrovae import Normal, VonMises
        >>> columns = [Column("age", Normal, shift=40.0, scale=10.0), Column("wind", VonMises)]
        >>> ColumnAware(2, 3, columns=columns)(torch.tensor([[50.0, torch.nan]])).shape
        torch.Size([1, 3])
    """

    order: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, in_shape: Shape, out_shape: Shape, columns: Any, net: NetBuilder = MLP) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.net = in_shape, out_shape, net
        self.columns: list[Column] = as_columns(columns.columns if isinstance(columns, Head) else columns)
        self._groups = [(g.kind, g.classes, len(g.places)) for g in grouped(self.columns)]
        size, *image = dims(in_shape, "in_shape")
        if image or size < len(self.columns):
            raise ConfigError(f"in_shape: expected at least the {len(self.columns)} columns, received {in_shape!r}")
        for name, buffer in units(self.columns, grouped(self.columns)).items():
            self.register_buffer(name, buffer, persistent=False)
        width = sum(count * (1 + _WIDTH.get(kind, classes)) for kind, classes, count in self._groups)
        self.network = net(as_shape((width + size - len(self.columns),)), out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, D + more)``, NaN where a cell of the D columns is missing, to ``(rows, *out_shape)``."""
        cells, more = x[..., : len(self.columns)], x[..., len(self.columns) :]
        standard = ((cells - self.shift) / self.scale).index_select(-1, self.order)
        missing = standard.isnan()
        parts, start = [(~missing).to(x.dtype), more], 0
        for kind, classes, count in self._groups:
            u, absent = (t[..., start : start + count] for t in (standard, missing))
            seen = _READ[kind](torch.where(absent, 1.0, u), classes)
            parts.append(torch.where(absent[..., None], 0.0, seen).flatten(-2))
            start += count
        return self.network(torch.cat(parts, -1))
