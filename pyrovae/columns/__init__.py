"""Tables whose columns are of different kinds: one likelihood for each, and the way from a DataFrame and back."""

from pyrovae.columns.column import Column
from pyrovae.columns.likelihood import Columns
from pyrovae.columns.network import ColumnAware

__all__ = ["Column", "ColumnAware", "Columns"]
