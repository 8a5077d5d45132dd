"""The command ``label``: a table with a few labels in, the same table with all of them out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae import data as datasets
from pyrovae import runs
from pyrovae.cli.using import write_frame
from pyrovae.errors import ConfigError, DataError
from pyrovae.labelling import Features, Labelling, Pixels, as_rows, load_labeller
from pyrovae.labelling import label as label_rows

__all__ = ["label"]

_IMAGES = "images of a folder have theirs in sub-folders named by class, or in a labels.csv"


def label(data: str, label_column: str | None, model: Path | None, save: Path | None, out: Path, **how: Any) -> None:
    """Label all rows of a file, by methods compared on its own labels or by a labeller that was saved."""
    if model is not None:
        found = _by_model(data, label_column, model)
    else:
        rows, y = _read(data, label_column)
        if y is None:
            raise ConfigError(f"{data}: which column holds the labels? Name it, --label-column NAME; {_IMAGES}")
        directory = runs.free(f"{Path(data).resolve().name.split('.')[0]}-labels") if save is None else save
        found = label_rows(rows, y, directory=directory, source=data, **how)
        print(found.text)
        pictures = found.save_pictures(directory)[1:]
        runs.seal(directory, {"kind": "labeller"})
        print(
            f"\nlabeller, report.txt and {len(pictures)} pictures written to {directory}; for later files: pyrovae "
            f"label FILE --model {directory}"
        )
    _write(out, found)
    given, unsure = found.given >= 0, int(found.abstain.sum())
    print(f"{len(given):,} rows written to {out}: {given.sum():,} had a label, {unsure:,} are better looked at")


def _by_model(data: str, label_column: str | None, model: Path) -> Labelling:
    labeller = load_labeller(model)
    rows, y = _read(data, label_column)
    found = labeller.label(_in_colour(rows, labeller.features), y, source=data)
    print(f"labelled by {model} ({labeller.method})")
    return found


def _read(data: str, label_column: str | None) -> tuple[Any, Any]:
    """Rows as they will be written again, and their labels, or the name of their column."""
    if data in datasets.names():
        table = datasets.load(data, label_column=label_column).train
    else:
        table = datasets.read(data, label_column=label_column, texts=())
    if table.files is not None:
        return table, table.y
    rows = as_rows(table)
    if label_column is None or table.y is None:
        return rows, table.y
    if label_column in rows.columns:
        raise DataError(f"{data}: the column {label_column!r} is there twice")
    rows[label_column] = np.asarray(table.y)
    return rows, label_column


def _in_colour(rows: Any, features: Features) -> Any:
    """Grey images as colour images, if the labels were learned from such."""
    grey = isinstance(rows, datasets.Table) and rows.x.shape[1] == 1
    coloured = isinstance(features, Pixels) and len(features.shape) == 3 and features.shape[0] == 3
    return replace(rows, x=rows.x.repeat(3, axis=1)) if grey and coloured else rows


def _write(out: Path, found: Labelling) -> None:
    if out.suffix == ".parquet":
        found.table().to_parquet(out, index=False)
    else:
        write_frame(out, found.table(), index=False)
