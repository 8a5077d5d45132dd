"""Labelled rows as they are handed back."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.errors import DataError

if TYPE_CHECKING:
    from pyrovae.labelling.trained import TrainedLabeller

__all__ = ["Labelling"]


@dataclass(frozen=True, eq=False)
class Labelling:
    """Labels for all rows of a table, and how far to trust them.

    Args:
        rows: the table as it came, a DataFrame, or an array of images.
        classes: the labels that occur.
        given: place of the label among the classes, -1 where it was missing.
        probabilities: calibrated, shape ``(rows, classes)``; of given labels 1.
        sets: which classes are in the prediction set, booleans ``(rows, classes)``; given labels are alone.
        abstain: rows whose label is not safe; never those with a given one.
        novelty: share of training rows that are more probable under p(x).
        ask: ranks of rows by what their label would help, from 1; 0 for given ones.
        report: what was found out on held-out labels, plain values; ``report["text"]`` in words.
        labeller: labels other tables.
        label_column: name of the column that the labels came from, if they came from one.
        files: names of images in their folder, if they came from one.
    """

    rows: Any
    classes: Sequence[Any]
    given: np.ndarray
    probabilities: np.ndarray
    sets: np.ndarray
    abstain: np.ndarray
    novelty: np.ndarray
    ask: np.ndarray
    report: Mapping[str, Any]
    labeller: "TrainedLabeller"
    label_column: str | None = None
    files: Sequence[str] | None = None

    @property
    def labels(self) -> np.ndarray:
        """The given label, or the most probable one, of every row."""
        names = np.empty(len(self.classes), dtype=object)
        names[:] = list(self.classes)
        return names[np.where(self.given >= 0, self.given, self.probabilities.argmax(1))]

    @property
    def text(self) -> str:
        """The report in words."""
        return str(self.report["text"])

    def table(self) -> Any:
        """A DataFrame: the table's own columns, then what was found.

        ``label``, ``probability``, ``p_<class>`` for every class, ``prediction_set`` (classes between bars),
        ``abstain``, ``novelty`` and ``ask_next`` (missing where the label was given). A column of labels that is called
        ``label`` itself is completed instead of kept. Images of a folder have their names, ``file``, and no pixels.

        Raises:
            DataError: where another column of the table has one of these names.
        """
        import pandas as pd

        first = {} if self.files is None else {"file": list(self.files)}
        own = self.rows if isinstance(self.rows, pd.DataFrame) else pd.DataFrame(first, index=range(len(self.given)))
        if self.label_column == "label":
            own = own.drop(columns=["label"])
        named = [str(c) for c in self.classes]
        columns: dict[str, Any] = {"label": self.labels, "probability": self.probabilities.max(1)}
        columns |= {f"p_{name}": self.probabilities[:, i] for i, name in enumerate(named)}
        columns["prediction_set"] = [
            "|".join(n for n, inside in zip(named, row, strict=True) if inside) for row in self.sets
        ]
        columns |= {"abstain": self.abstain, "novelty": self.novelty}
        columns["ask_next"] = pd.arrays.IntegerArray(self.ask.astype(np.int64), self.ask == 0)
        taken = [name for name in columns if name in own.columns]
        if taken:
            raise DataError(f"table: has a column {taken[0]!r} already, where labels want to write one: rename it")
        return pd.concat([own, pd.DataFrame(columns, index=own.index)], axis=1)

    def save_pictures(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Draw the report into PNG files beside ``report.txt``.

        Error by method, calibration, error against coverage, confusion, the learning curve and, where rows are images,
        those to label next: each where the report holds its numbers.

        Args:
            directory: is made if it is not there; files of the same names are replaced.

        Returns:
            The files.
        """
        from pyrovae.labelling.pictures import draw

        return draw(self, Path(directory))

    def __str__(self) -> str:
        return self.text
