"""The report of a labelling as pictures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae import plots
from pyrovae.labelling.result import Labelling

__all__ = ["as_images", "draw"]

_ASKED = 20
_LEAST = 64  # numbers in a vector that may be an image
_LETTERS = 20


def draw(found: Labelling, directory: Path) -> list[Path]:
    """Write ``report.txt`` and every picture that the report has the numbers for; the files come back.

    Args:
        found: labels and their report.
        directory: is made if it is not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    report, written = found.report, []

    def drawn(name: str, picture: Any, *values: Any, **how: Any) -> None:
        picture(*values, directory / name, **how)
        written.append(directory / name)

    if report["methods"]:
        drawn("errors.png", plots.errors, report["methods"], chosen=report["method"])
    if "calibration" in report:
        bins, safe = report["calibration"], report["abstention"]
        drawn("calibration.png", plots.calibration, bins["confidence"], bins["accuracy"], bins["count"])
        limits = {"allowed": safe["error_rate"], "taken": safe["labelled_share"]}
        drawn("coverage.png", plots.risk_coverage, safe["curve"]["coverage"], safe["curve"]["error"], **limits)
        drawn("confusion.png", plots.confusion_matrix, report["confusion"], report["classes"])
    if report.get("learning_curve"):
        values = [report["learning_curve"][key] for key in ("labels", "error", "low", "high")]
        drawn("learning-curve.png", plots.error_by_labels, *values, title=report["method"])
    images = as_images(found.rows, found.label_column)
    rows = [row for row in np.argsort(found.ask, kind="stable") if found.ask[row] > 0][:_ASKED]
    if images is not None and rows:
        drawn("ask-next.png", plots.asked, images(rows), [_caption(found, row) for row in rows])
    text = directory / "report.txt"
    text.write_text(f"{found.text}\n", encoding="utf-8")
    return [text, *written]


class _Images:
    """Some rows as images ``(rows, C, H, W)`` from 0 to 1."""

    def __init__(self, rows: np.ndarray, shape: tuple[int, ...]) -> None:
        self.rows, self.shape = rows, shape
        largest = 255.0 if rows.dtype == np.uint8 else float(rows.max())
        self.largest = largest if largest > 1 else 1.0

    def __call__(self, chosen: Sequence[int]) -> np.ndarray:
        x = self.rows[list(chosen)].reshape(-1, *self.shape).astype(np.float32) / self.largest
        last = len(self.shape) == 3 and self.shape[0] not in (1, 3)
        return np.moveaxis(x, -1, 1) if last else x


def as_images(rows: Any, label_column: str | None = None) -> _Images | None:
    """What makes images of chosen rows, if rows are images; None where they are not.

    Images are arrays ``(rows, H, W)``, with one or three channels before or after H and W; and square vectors: of
    bytes, or columns such as ``pixel0``, ``pixel1``, ... of numbers from 0 to 1 or bytes.

    Args:
        rows: as a :class:`pyrovae.labelling.Labelling` holds them.
        label_column: which is no pixel.
    """
    if not isinstance(rows, np.ndarray):
        pixels = _pixels(rows.drop(columns=[label_column] if label_column in rows.columns else []))
        return None if pixels is None else as_images(pixels)
    shape = rows.shape[1:]
    if len(shape) == 1 and shape[0] >= _LEAST and round(shape[0] ** 0.5) ** 2 == shape[0]:
        side = round(shape[0] ** 0.5)
        return _Images(rows, (side, side))
    three = len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))
    return _Images(rows, shape) if three or len(shape) == 2 else None


def _pixels(df: Any) -> np.ndarray | None:
    """The array of a table whose columns are numbered pixels."""
    names = [re.fullmatch(r"(.*?)(\d+)", str(name)) for name in df.columns]
    if len(names) < _LEAST or not all(names) or len({m[1] for m in names if m}) > 1:
        return None
    places = [int(m[2]) for m in names if m]
    if places != list(range(places[0], places[0] + len(places))) or any(kind.kind not in "biuf" for kind in df.dtypes):
        return None
    x = df.to_numpy(dtype=np.float32)
    if not np.isfinite(x).all() or x.min() < 0 or x.max() > 255:
        return None
    return x.astype(np.uint8) if x.max() > 1 and (x == np.round(x)).all() else x if x.max() <= 1 else None


def _caption(found: Labelling, row: int) -> str:
    name = f"row {_index(found.rows, row)}" if found.files is None else found.files[row]
    name = name if len(name) <= _LETTERS else "…" + name[1 - _LETTERS :]
    return f"{name}\n{found.labels[row]}? {100 * found.probabilities[row].max():.0f} %"


def _index(rows: Any, row: int) -> Any:
    return rows.index[row] if hasattr(rows, "index") else row
