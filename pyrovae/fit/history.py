"""What happened in training, one row per pass over the data."""

import os
from typing import Any

__all__ = ["History"]


class History:
    """A table of epochs that prints and plots itself.

    Attributes:
        rows: one dict per epoch with ``epoch`` (from 1), ``step`` (updates so far), ``loss`` and, where there is
            validation data, ``validation`` (both nats per row), ``lr``, ``gradient_norm`` (mean over the epoch),
            ``seconds`` (so far) and ``rows_per_second``.
        stopped: why training ended before its last epoch, or None.

    Example:
        >>> history = History()
        >>> history.append({"epoch": 1, "loss": 206.5})
        >>> history["loss"]
        [206.5]
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stopped: str | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Add one epoch."""
        self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        """One column, from the first epoch to the last."""
        return [row[column] for row in self.rows]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.rows[-1]) if self.rows else []

    def to_pandas(self) -> Any:
        """The table as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Loss against epochs as a matplotlib figure, written to ``path`` if given."""
        from pyrovae import plots

        return plots.loss_curve(self.rows, path)

    def __repr__(self) -> str:
        shown = self.rows if len(self.rows) <= 12 else [*self.rows[:5], None, *self.rows[-5:]]
        width = [max(10, len(name)) for name in self.columns]
        lines = ["  ".join(name.rjust(w) for name, w in zip(self.columns, width, strict=True))]
        for row in shown:
            cells = ["..."] * len(width) if row is None else [_cell(row.get(name)) for name in self.columns]
            lines.append("  ".join(cell.rjust(w) for cell, w in zip(cells, width, strict=True)))
        return "\n".join(lines + ([f"stopped: {self.stopped}"] if self.stopped else []))


def _cell(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1e3
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
