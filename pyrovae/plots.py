"""Pictures: functions that draw what they are given and return a matplotlib figure, which is loaded on first use."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.evaluation.labels import error_interval

__all__ = [
    "asked",
    "calibration",
    "confusion_matrix",
    "error_by_labels",
    "errors",
    "images",
    "is_image",
    "latent",
    "learning_curves",
    "loss_curve",
    "manifold",
    "marginals",
    "reconstructions",
    "risk_coverage",
]

Path = str | os.PathLike[str] | None
_BLUE, _ORANGE, _GREY, _FAINT = "#1f5fa8", "#d9731a", "#555555", "#dddddd"
_TOLD = 30  # classes, up to which a confusion tells its counts


def loss_curve(rows: Sequence[Mapping[str, Any]], path: Path = None) -> Any:
    """Loss, and validation loss where there is one, against epochs.

    Args:
        rows: dicts with ``epoch``, ``loss`` and perhaps ``validation``.
        path: file to write, or None.
    """
    figure, axes = _figure(6.0, 3.6)
    epochs = [row["epoch"] for row in rows]
    axes.plot(
        epochs, [row["loss"] for row in rows], color=_BLUE, label="training", marker="o" if len(rows) < 3 else None
    )
    if rows and "validation" in rows[-1]:
        axes.plot(epochs, [row["validation"] for row in rows], color=_ORANGE, label="validation")
    axes.set(xlabel="epoch", ylabel="loss (nats per row)")
    axes.set_xlim(0, max(epochs, default=0) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return _finish(figure, path)


def images(x: Tensor, path: Path = None, *, columns: int | None = None, title: str = "", gap: int = 1) -> Any:
    """A grid of images.

    Args:
        x: shape ``(rows, C, H, W)`` or ``(rows, H, W)``, values in [0, 1]; one or three channels.
        path: file to write, or None.
        columns: of the grid; None makes it square.
        title: above the grid.
        gap: pixels between images.
    """
    tiles = _tiles(x)
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    canvas = _canvas(tiles, columns, gap)
    height = 6.0 * canvas.shape[0] / canvas.shape[1]
    figure, axes = _figure(6.0, height + (0.35 if title else 0.05))
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, color=_GREY)
    return _finish(figure, path)


def reconstructions(x: Tensor, reconstructed: Tensor, path: Path = None) -> Any:
    """Images above their reconstructions; for vectors, reconstructed against given values.

    Args:
        x: shape ``(rows, *shape)``.
        reconstructed: same shape.
        path: file to write, or None.
    """
    if is_image(x):
        pairs = [
            row for start in range(0, len(x), 8) for row in (x[start : start + 8], reconstructed[start : start + 8])
        ]
        return images(_stack(pairs), path, columns=min(8, len(x)), title="data, and below it the reconstruction")
    figure, axes = _figure(4.5, 4.5)
    a, b = _numpy(x).ravel(), _numpy(reconstructed).ravel()
    axes.plot([a.min(), a.max()], [a.min(), a.max()], color=_GREY, linewidth=0.8)
    axes.plot(a, b, ".", color=_BLUE, alpha=0.3, markersize=3)
    axes.set(xlabel="data", ylabel="reconstruction")
    return _finish(figure, path)


def marginals(
    x: Tensor, samples: Tensor, path: Path = None, *, names: Sequence[str] | None = None, title: str = ""
) -> Any:
    """Histogram of every column (at most twelve) of the data and of samples from the model.

    Args:
        x: shape ``(rows, columns)``.
        samples: shape ``(rows, columns)``.
        path: file to write, or None.
        names: of the columns.
        title: above the histograms.
    """
    a, b = _numpy(x).reshape(len(x), -1), _numpy(samples).reshape(len(samples), -1)
    count = min(12, a.shape[1])
    across = min(4, count)
    figure, grid = _figures(2.0 * across + 0.5, 1.7 * math.ceil(count / across), math.ceil(count / across), across)
    for i, axes in enumerate(grid.ravel()):
        axes.set_axis_off() if i >= count else _histogram(axes, a[:, i], b[:, i], names[i] if names else f"column {i}")
    grid.ravel()[0].legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=9, color=_GREY)
    return _finish(figure, path)


def latent(z: Tensor, labels: np.ndarray | None = None, path: Path = None) -> Any:
    """The mean codes of a two-dimensional latent space, coloured by label: up to 20 classes, or a number.

    Args:
        z: shape ``(rows, 2)``.
        labels: shape ``(rows,)``, or None.
        path: file to write, or None.
    """
    figure, axes = _figure(5.8, 4.6)
    points = _numpy(z)
    size = float(np.clip(600 / max(1, len(points)) ** 0.5, 4, 30))
    classes = np.unique(labels) if labels is not None else np.empty(0)
    if labels is not None and 0 < len(classes) <= 20:
        for i, label in enumerate(classes):
            chosen = points[labels == label]
            axes.scatter(
                *chosen.T,
                s=size,
                color=_colour(i, len(classes)),
                alpha=0.6,
                linewidths=0,
                label=str(label).replace("$", r"\$"),
            )
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    elif labels is not None and labels.dtype.kind in "iuf":
        figure.colorbar(axes.scatter(*points.T, s=size, c=labels, alpha=0.7, linewidths=0), label="label")
    else:
        axes.scatter(*points.T, s=size, color=_BLUE, alpha=0.5, linewidths=0)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    axes.set_aspect("equal", adjustable="datalim")
    return _finish(figure, path)


def manifold(decoded: Tensor, path: Path = None) -> Any:
    """What a grid over a two-dimensional latent space decodes to, as images in that grid.

    Args:
        decoded: shape ``(side, side, *image)``: first dimension downwards, second to the right.
        path: file to write, or None.
    """
    side = decoded.shape[0]
    return images(decoded.flatten(0, 1), path, columns=side, title="decoded grid over the latent plane", gap=0)


def errors(methods: Mapping[str, Mapping[str, Any]], path: Path = None, *, chosen: str | None = None) -> Any:
    """Error of every method with its interval, the best one at the top.

    Args:
        methods: by name, shares from 0 to 1: ``error``, ``low``, ``high``; and ``uses_unlabelled``.
        path: file to write, or None.
        chosen: the method that is set off.
    """
    ranked = sorted(methods, key=lambda name: methods[name]["error"])
    figure, axes = _figure(6.4, 1.3 + 0.36 * len(ranked))
    end = max(100 * methods[name]["high"] for name in ranked)
    for place, name in enumerate(ranked):
        found = {key: 100 * methods[name][key] for key in ("error", "low", "high")}
        colour = _BLUE if methods[name]["uses_unlabelled"] else _ORANGE
        axes.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(found["error"], place, "o", color=colour, markersize=7)
        axes.text(1.02 * end, place, f"{found['error']:.1f} %", va="center", fontsize=9, color=colour)
    axes.set_yticks(range(len(ranked)), [_plain(name) for name in ranked])
    for tick, name in zip(axes.get_yticklabels(), ranked, strict=True):
        tick.set_fontweight("bold" if name == chosen else "normal")
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.set_xlim(0, end)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("error on held-out labels, in %, with its rough 95 % interval")
    kinds = {bool(methods[name]["uses_unlabelled"]) for name in ranked}
    handles = [_dot(_BLUE, "labels and other rows")] * (True in kinds) + [_dot(_ORANGE, "labels alone")] * (
        False in kinds
    )
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return _finish(figure, path)


def calibration(confidence: Sequence[float], accuracy: Sequence[float], count: Sequence[int], path: Path = None) -> Any:
    """How often predictions are right against how sure they are, with exact 95 % intervals; dots are large for many.

    Args:
        confidence: mean probability of each bin.
        accuracy: share of right predictions.
        count: rows.
        path: file to write, or None.
    """
    sure, right, rows = (np.asarray(values, dtype=float) for values in (confidence, accuracy, count))
    figure, grid = _figures(4.6, 5.4, 2, 1, heights=[4, 1])
    axes, below = grid[:, 0]
    axes.plot([0, 100], [0, 100], color=_GREY, linewidth=0.8)
    hits = np.round(right * rows).astype(int)
    bounds = np.array([error_interval(int(hit), int(n)) for hit, n in zip(hits, rows, strict=True)]).T
    axes.vlines(100 * sure, *(100 * bounds), color=_BLUE, linewidth=1.5, alpha=0.4)
    axes.scatter(
        100 * sure, 100 * right, s=8 + 80 * rows / rows.max(), color=_BLUE, linewidths=0, zorder=3, clip_on=False
    )
    gap = float((rows * np.abs(right - sure)).sum() / rows.sum())
    axes.set_title(f"expected calibration error {gap:.3f}", fontsize=10, color=_GREY)
    axes.set(ylabel="right, in %", xlim=(0, 102), ylim=(0, 102))
    axes.tick_params(labelbottom=False)
    below.bar(100 * sure, rows, width=3, color=_GREY, alpha=0.6)
    below.set(xlabel="how sure, in %", ylabel="labels", xlim=(0, 102))
    return _finish(figure, path)


def risk_coverage(
    coverage: Sequence[float],
    error: Sequence[float],
    path: Path = None,
    *,
    allowed: float | None = None,
    taken: float | None = None,
) -> Any:
    """Error of the labels that remain when the least sure ones are left open.

    Args:
        coverage: shares of rows that get a label, rising.
        error: among them.
        path: file to write, or None.
        allowed: largest error that is wanted.
        taken: share of rows that gets a label.
    """
    figure, axes = _figure(6.0, 3.8)
    share, wrong = 100 * np.asarray(coverage, dtype=float), 100 * np.asarray(error, dtype=float)
    top = max(1.0, 1.25 * wrong.max(), 0.0 if allowed is None else 140 * allowed)
    axes.plot(share, wrong, color=_BLUE, linewidth=2, marker="o" if len(share) < 3 else None)
    if allowed is not None:
        axes.axhline(100 * allowed, color=_ORANGE, linewidth=1, linestyle=(0, (4, 3)))
        left, right = (abs(np.interp(at, share, wrong) - 100 * allowed) for at in (12, 88))
        at, side = (0.5, "left") if left > right else (100, "right")  # where the curve is far
        told = f"wanted: at most {100 * allowed:g} %"
        axes.text(at, 100 * allowed + 0.015 * top, told, ha=side, color=_ORANGE, fontsize=9)
    if taken:
        height = float(np.interp(100 * taken, share, wrong))
        axes.plot(100 * taken, height, "o", color=_BLUE, markersize=8, clip_on=False)
        axes.annotate(
            f"shown to be safe: {100 * taken:.0f} % of rows",
            (100 * taken, height),
            xytext=(-6, 22),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=_BLUE,
            arrowprops={"arrowstyle": "-", "color": _BLUE, "linewidth": 0.8, "shrinkB": 5},
        )
    axes.set(xlabel="rows that get a label, in %, the surest first", ylabel="wrong among them, in %")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, top)
    return _finish(figure, path)


def confusion_matrix(counts: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[Any], path: Path = None) -> Any:
    """How many rows of each class were called what; colours are shares of the class, right blue and wrong orange.

    Up to 30 classes each cell tells its count.

    Args:
        counts: shape ``(classes, classes)``, the true class first.
        classes: their names.
        path: file to write, or None.
    """
    from matplotlib.colors import LinearSegmentedColormap

    counts, size = np.asarray(counts), len(classes)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [_short(name, 16) for name in classes]
    longest = max(map(len, names))
    side = float(np.clip(0.36 * size, 2.4, 9.0))
    figure, axes = _figure(side + 0.8 + 0.07 * longest, side + 0.8 + (0.07 * longest if longest > 3 else 0.0))
    for colour, chosen in ((_BLUE, np.eye(size, dtype=bool)), (_ORANGE, ~np.eye(size, dtype=bool))):
        shades = LinearSegmentedColormap.from_list("", ["#ffffff", colour])
        axes.imshow(np.ma.masked_array(share, ~chosen), cmap=shades, vmin=0, vmax=1 if colour == _BLUE else 0.5)
    if size <= _TOLD:
        for row, column in np.argwhere(counts > 0):
            dark = share[row, column] > (0.55 if row == column else 0.35)
            axes.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=9 if size <= 12 else 7,
                color="white" if dark else "#222222",
            )
    step = math.ceil(size / 50)
    axes.set_xticks(range(0, size, step), names[::step], rotation=90 if longest > 3 else 0)
    axes.set_yticks(range(0, size, step), names[::step])
    axes.tick_params(labelsize=9 if size <= 12 else 7, length=0)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_FAINT, linewidth=0.6 if size <= _TOLD else 0.2)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="labelled as", ylabel="true class")
    axes.spines[["left", "bottom"]].set_visible(False)
    return _finish(figure, path)


def error_by_labels(
    labels: Sequence[int],
    error: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    path: Path = None,
    *,
    title: str = "",
) -> Any:
    """Error of one method against the number of labels that it learned from, with intervals.

    Args:
        labels: rising.
        error: shares from 0 to 1.
        low: lower bound of each.
        high: upper bound of each.
        path: file to write, or None.
        title: above the curve.
    """
    figure, axes = _figure(5.4, 3.6)
    count, wrong, floor, top = (np.asarray(values, dtype=float) for values in (labels, error, low, high))
    axes.vlines(count, 100 * floor, 100 * top, color=_BLUE, linewidth=2, alpha=0.5)
    axes.plot(count, 100 * wrong, color=_BLUE, marker="o", markersize=7)
    for x, y in zip(count, 100 * wrong, strict=True):
        axes.annotate(f"{y:.1f} %", (x, y), xytext=(7, 5), textcoords="offset points", fontsize=9, color=_BLUE)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(count, [f"{int(n):,}" for n in count])
    axes.set_xlim(count.min() / 1.15, count.max() * 1.35)
    axes.set_ylim(0, 108 * top.max() or 1)
    axes.set(xlabel="labels learned from", ylabel="error on held-out labels, in %")
    axes.set_title(title, fontsize=10, color=_GREY)
    return _finish(figure, path)


def asked(x: Tensor | np.ndarray, captions: Sequence[str], path: Path = None, *, columns: int = 5) -> Any:
    """Images that want a label, each above its caption, grey ones white on black as in a file.

    Args:
        x: as for :func:`images`.
        captions: one for each, of one or two lines.
        path: file to write, or None.
        columns: of the grid.
    """
    tiles = _tiles(torch.as_tensor(x))
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height = 1.3 * float(np.clip(tiles.shape[1] / tiles.shape[2], 0.5, 2))
    figure, grid = _figures(1.5 * columns + 0.1, (height + 0.5) * rows + 0.35, rows, columns)
    for axes in grid.ravel()[len(tiles) :]:
        axes.set_axis_off()
    for axes, tile, caption in zip(grid.ravel(), tiles, captions, strict=False):
        axes.imshow(tile, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(_plain(caption), fontsize=8)
    figure.suptitle("to label next, the most useful first", fontsize=10, color=_GREY)
    return _finish(figure, path)


def _dot(colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", linewidth=2, label=label)


def _plain(text: Any) -> str:
    """Text in which matplotlib finds no formula."""
    return str(text).replace("$", r"\$")


def _short(text: Any, letters: int) -> str:
    whole = str(text)
    return _plain(whole if len(whole) <= letters else whole[: letters - 1] + "…")


def learning_curves(
    curves: Mapping[str, Mapping[int, Sequence[float]]],
    path: Path = None,
    *,
    xlabel: str = "labels",
    ylabel: str = "error on test rows (%)",
) -> Any:
    """Means and their intervals against numbers of labels, on a logarithmic axis, a line for each curve.

    Args:
        curves: by name, then by number: mean, lower and upper bound; bounds that are NaN are not drawn.
        path: file to write, or None.
        xlabel: of the axis of numbers.
        ylabel: of the other axis.
    """
    figure, axes = _figure(6.4, 4.0)
    for i, (name, curve) in enumerate(curves.items()):
        numbers = sorted(curve)
        mean, low, high = np.array([curve[n] for n in numbers], dtype=np.float64).T
        colour = _colour(i, len(curves))
        axes.plot(numbers, mean, color=colour, label=name, marker="o", markersize=3.5, linewidth=1.5)
        axes.fill_between(numbers, np.maximum(low, 0), high, color=colour, alpha=0.15, linewidth=0)
    ticks = sorted({n for curve in curves.values() for n in curve})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(figure, path)


def _colour(i: int, count: int) -> Any:
    from matplotlib import colormaps

    return f"C{i}" if count <= 10 else colormaps["tab20"](i)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, grid = _figures(width, height, 1, 1)
    return figure, grid[0, 0]


def _figures(
    width: float, height: float, rows: int, columns: int, *, heights: Sequence[float] | None = None
) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axes in grid.ravel():
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _finish(figure: Any, path: Path) -> Any:
    if path is not None:
        figure.savefig(path)
    return figure


def _histogram(axes: Any, a: np.ndarray, b: np.ndarray, name: str) -> None:
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    ends = np.concatenate(
        [np.percentile(a, (0, 100)), np.percentile(b, (1, 99))]
    )  # some samples lie in any case inside
    low, high = ends.min(), ends.max()
    if np.all(a == np.round(a)) and high - low < 40:
        bins = np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    else:
        bins = np.linspace(low, high if high > low else low + 1, int(np.clip(len(a) ** 0.5, 8, 30)))
    axes.hist(a, bins, density=True, color=_GREY, alpha=0.4, label="data")
    axes.hist(b, bins, density=True, histtype="step", color=_BLUE, label="samples")
    axes.set_title(name.replace("$", r"\$"), fontsize=8)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)


def is_image(x: Tensor) -> bool:
    """Whether rows are images: ``(rows, H, W)``, or ``(rows, C, H, W)`` with one or three channels."""
    return x.dim() == 3 or (x.dim() == 4 and x.shape[1] in (1, 3))


def _tiles(x: Tensor) -> np.ndarray:
    """Images as ``(rows, H, W)`` or ``(rows, H, W, 3)``."""
    if not is_image(x):
        raise ValueError(f"images: expected shape (rows, 1 or 3, H, W) or (rows, H, W), received {tuple(x.shape)}")
    tiles = _numpy(x).clip(0, 1)
    if tiles.ndim == 4:
        tiles = tiles[:, 0] if tiles.shape[1] == 1 else np.moveaxis(tiles, 1, -1)
    return tiles


def _canvas(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Tiles side by side with a light line between them; small ones are magnified, so that the line stays thin."""
    zoom = max(1, 32 // max(tiles.shape[1:3]))
    tiles = tiles.repeat(zoom, 1).repeat(zoom, 2)
    line = 0.15 if tiles.ndim == 3 else 0.85  # grey values are drawn as ink, colours as light
    padding = [(0, gap), (0, gap)] + [(0, 0)] * (tiles.ndim - 3)
    framed = np.stack([np.pad(tile, padding, constant_values=line) for tile in tiles])
    missing = -len(framed) % columns
    blank = 0.0 if tiles.ndim == 3 else 1.0
    framed = np.concatenate([framed, np.full((missing, *framed.shape[1:]), blank, framed.dtype)])
    rows = [np.concatenate(list(framed[i : i + columns]), axis=1) for i in range(0, len(framed), columns)]
    canvas = np.concatenate(rows, axis=0)
    return canvas[: canvas.shape[0] - gap, : canvas.shape[1] - gap]


def _stack(pairs: Sequence[Tensor]) -> Tensor:
    width = max(len(p) for p in pairs)
    return torch.cat(
        [p if len(p) == width else torch.cat([p, p.new_zeros((width - len(p), *p.shape[1:]))]) for p in pairs]
    )


def _numpy(x: Tensor | np.ndarray) -> np.ndarray:
    return x.numpy(force=True) if isinstance(x, torch.Tensor) else np.asarray(x)
