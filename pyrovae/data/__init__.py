"""Data: readers, named data sets, the gate every row passes, preprocessing, batches."""

from pyrovae.data.datasets import DataSet, load, names, split
from pyrovae.data.gate import Missing, Schema, check_cells, check_labels
from pyrovae.data.preprocess import Binarize, DrawNormal, Identity, Preprocess, Rescale, Standardize, Threshold
from pyrovae.data.readers import Table, read
from pyrovae.data.rows import Batches, batches

__all__ = [
    "Batches",
    "Binarize",
    "DataSet",
    "DrawNormal",
    "Identity",
    "Missing",
    "Preprocess",
    "Rescale",
    "Schema",
    "Standardize",
    "Table",
    "Threshold",
    "batches",
    "check_cells",
    "check_labels",
    "load",
    "names",
    "read",
    "split",
]
