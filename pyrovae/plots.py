"""Pictures: functions that draw what they are given and return a matplotlib figure, which is loaded on first use."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["images", "is_image", "latent", "loss_curve", "manifold", "marginals", "reconstructions"]

Path = str | os.PathLike[str] | None
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9731a", "#555555"


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


def _colour(i: int, count: int) -> Any:
    from matplotlib import colormaps

    return f"C{i}" if count <= 10 else colormaps["tab20"](i)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, grid = _figures(width, height, 1, 1)
    return figure, grid[0, 0]


def _figures(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    grid = figure.subplots(rows, columns, squeeze=False)
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
