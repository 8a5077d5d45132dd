"""Rows whose labels are known: some kept for testing, the labels of the others hidden but for a few."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrovae.data import Table, load, names
from pyrovae.errors import ConfigError, DataError
from pyrovae.labelling.features import Features, as_rows, infer_features
from pyrovae.labelling.given import check_leak, class_codes, label_classes, label_values, split_column
from pyrovae.runs import fingerprint

__all__ = ["StudyRows", "any_order", "check_counts", "draw_labels"]

_TEST = 0.2  # of a file, kept for testing


@dataclass(frozen=True, eq=False)
class StudyRows:
    """Rows whose labels are known, some to learn from and some to be tested on.

    Args:
        name: in messages and records.
        features: of the rows.
        classes: the labels.
        x: float32, shape ``(rows, D)``.
        y: ints, shape ``(rows,)``, -1 where a label is missing: such a row is learned from and never asked about.
        test_x: float32, shape ``(test rows, D)``.
        test_y: ints, shape ``(test rows,)``.

    Example:
        >>> rows = StudyRows.read("digits")
        >>> rows.x.shape, rows.test_x.shape, len(rows.classes)
        ((1500, 64), (297, 64), 10)
    """

    name: str
    features: Features
    classes: Sequence[Any]
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    @classmethod
    def read(cls, data: str | os.PathLike[str], label_column: str | None = None) -> "StudyRows":
        """A data set by its name, with its own test rows, or a labelled file, divided as by :meth:`split`.

        Args:
            data: name of a data set, or a file.
            label_column: of a CSV or Parquet file.

        Raises:
            ConfigError: if nobody says which column holds the labels, or a data set has none.
            DataError: for a file that cannot be read, or labels from which nothing can be learned.
        """
        found = load(data, label_column=label_column, texts=(), test_fraction=_TEST)
        train, test = found.train, found.test
        if train.y is None or test.y is None:
            raise ConfigError(f"{found.name}: no labels are known: name their column, --label-column NAME")
        x, y = np.concatenate([train.x, test.x]), np.concatenate([train.y, test.y])
        rows = as_rows(Table(x, y, found.name, train.columns, texts=train.texts))
        own = np.arange(len(x)) >= len(train) if found.name in names() else None
        return cls._divided(rows, y, own, found.name)

    @classmethod
    def split(cls, table: Any, y: Any, source: str = "table") -> "StudyRows":
        """A fifth of the labelled rows of every class for testing, the same ones always; one label stays for training.

        Columns get their standard units from all rows, which takes no label.

        Args:
            table: as for :func:`pyrovae.labelling.label`.
            y: labels, empty, None, NaN or -1 where one is missing; or the name of their column.
            source: what the table is called.

        Raises:
            ConfigError: for a column that is not there.
            DataError: for labels from which nothing can be learned.
        """
        rows, given, _ = split_column(as_rows(table), y, source)
        return cls._divided(rows, given, None, source)

    @classmethod
    def _divided(cls, rows: Any, given: Any, test: np.ndarray | None, source: str) -> "StudyRows":
        values = label_values(given, len(rows), source)
        classes = label_classes(values, None, source)
        y = class_codes(values, classes, source)
        check_leak(rows, y, values, source)
        features = infer_features(rows, source)
        x, test = features.encode(rows, source), _a_fifth(y) if test is None else test
        asked = test & (y >= 0)
        found = cls(source, features, classes, x[~test], y[~test], x[asked], y[asked])
        if not len(found.test_y) or not found.counts.all():
            raise DataError(
                f"{source}: each class needs a label to learn from, and one of them a label to be tested on"
            )
        return found

    @property
    def counts(self) -> np.ndarray:
        """Labels of each class that are there to be drawn, shape ``(classes,)``."""
        return np.bincount(self.y[self.y >= 0], minlength=len(self.classes))

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells these rows from others, in records of finished runs."""
        return fingerprint((self.x, self.y, self.test_x, self.test_y))[:16]


def draw_labels(y: np.ndarray, labels: int, seed: int = 0) -> tuple[np.ndarray, str]:
    """Hide all labels but so many, drawn at random.

    Every class gets as many as the others, give or take one. Where a class has too few for that, each gets one and the
    rest by its share of the rows. Of one seed, a larger even draw holds the smaller ones but for the odd labels.

    Args:
        y: ints from 0, -1 where a label is missing, shape ``(rows,)``.
        labels: how many are kept, at least one for each class.
        seed: of the draw.

    Returns:
        Labels with -1 where one is hidden, and ``"even"`` or ``"shares"``.

    Raises:
        ConfigError: for fewer labels than classes, or more than there are.

    Example:
        >>> y = np.repeat([0, 1, 2], [50, 40, 10])
        >>> [np.bincount(hidden[hidden >= 0]).tolist() for hidden in (draw_labels(y, n)[0] for n in (9, 60))]
        [[3, 3, 3], [30, 24, 6]]
    """
    counts, rng = np.bincount(y[y >= 0]), np.random.default_rng(seed)
    check_counts([labels], counts)
    order = [rng.permutation(np.flatnonzero(y == k)) for k in range(len(counts))]
    quota = np.full(len(counts), labels // len(counts))
    quota[rng.permutation(len(counts))[: labels % len(counts)]] += 1
    how = "even" if (quota <= counts).all() else "shares"
    hidden = np.full(len(y), -1, dtype=np.int64)
    for k, number in enumerate(quota if how == "even" else _by_share(counts, labels)):
        hidden[order[k][:number]] = k
    return hidden, how


def any_order(y: np.ndarray, seed: int) -> list[int]:
    """Rows that have a label, in random order, one of each class before all others.

    Args:
        y: ints from 0, -1 where a label is missing.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(y >= 0))
    first = np.sort(np.unique(y[order], return_index=True)[1])
    return np.concatenate([order[first], np.delete(order, first)]).tolist()


def check_counts(labels: Sequence[int], counts: np.ndarray) -> None:
    """Refuse numbers of labels that cannot be drawn.

    Args:
        labels: how many are wanted.
        counts: how many there are of each class.

    Raises:
        ConfigError: for none, fewer than classes, or more than there are.
    """
    if not labels:
        raise ConfigError("labels: expected how many, such as 100,600, received none")
    if min(labels) < len(counts):
        raise ConfigError(
            f"labels: {len(counts)} classes and {min(labels)} labels: each class needs one label at least"
        )
    if max(labels) > counts.sum():
        raise ConfigError(f"labels: expected at most the {counts.sum()} labelled training rows, received {max(labels)}")


def _a_fifth(y: np.ndarray) -> np.ndarray:
    """Whether a row is kept for testing."""
    rng, test = np.random.default_rng(0), np.zeros(len(y), dtype=bool)
    for k in np.unique(y[y >= 0]):
        rows = rng.permutation(np.flatnonzero(y == k))
        test[rows[: min(len(rows) - 1, max(1, round(_TEST * len(rows))))]] = True
    return test


def _by_share(counts: np.ndarray, labels: int) -> np.ndarray:
    """One for each class, the rest by its share, rounded so that the sum is right."""
    exact = 1 + (counts - 1) * (labels - len(counts)) / (counts.sum() - len(counts))
    quota = np.minimum(exact.astype(int), counts)
    quota[np.argsort(quota - exact, kind="stable")[: labels - quota.sum()]] += 1
    return quota
