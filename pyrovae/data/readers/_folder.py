"""Folders of images, read through Pillow: labels are the names of sub-folders, or stand in a table beside the files."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.readers._common import Table, guarded, listing, nearest, place, quoted, shown, size
from pyrovae.data.readers._csv import read_csv
from pyrovae.data.readers._texts import checked, typed
from pyrovae.errors import DataError

_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_UNLABELLED = ("unknown", "unlabeled", "unlabelled")
_LABELS = "labels.csv"
_WHOLE = re.compile(r"-1|0|[1-9]\d*", re.ASCII)  # a class 007 keeps its zeros
_GREY = ("1", "L", "LA")
_WIDE = 257  # by which 65535 becomes 255


def read_folder(folder: Path, source: str, max_bytes: int) -> Table:
    """All images of a folder and of its sub-folders, in the order of their names."""
    _needs_pillow(source)
    with guarded(source):
        files = _files(folder, source)
        x = _pixels(folder, files, max_bytes)
        beside = folder / _LABELS
        y = _of_table(beside, files, max_bytes) if beside.is_file() else _of_folders(files, source)
    return Table(x, y, source, files=tuple(files))


def _needs_pillow(source: str) -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError(f"{source}: images are read by Pillow, which is not installed: pip install pillow") from error


def _files(folder: Path, source: str) -> list[str]:
    """Names relative to the folder, in sorted order."""
    found: list[str] = []
    for entry in _visible(folder):
        if entry.is_dir():
            inside = _visible(Path(entry.path))
            found += [f"{entry.name}/{e.name}" for e in inside if _is_image(e)]
            deep = next((e for e in inside if e.is_dir() and any(map(_is_image, _visible(Path(e.path))))), None)
            if deep is not None:
                raise DataError(
                    f"{source}: {shown(f'{entry.name}/{deep.name}')} holds images two folders deep, and a class is one "
                    f"folder: name the folder of classes, such as {shown(Path(source, entry.name))}"
                )
        elif _is_image(entry):
            found.append(entry.name)
    if not found:
        raise DataError(
            f"{source}: is a directory without images ({', '.join(e[1:] for e in _ENDINGS)}): name one file, or a "
            "folder with images, in sub-folders named by class or beside a labels.csv"
        )
    return sorted(found)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(_ENDINGS) and entry.is_file()


# ---- labels ----------------------------------------------------------------------------------------------------------


def _of_folders(files: Sequence[str], source: str) -> np.ndarray | None:
    """The sub-folder of each file, if there are any."""
    if not any("/" in name for name in files):
        return None
    classes = [name.partition("/")[0] if "/" in name else "" for name in files]
    labels = ["" if c.lower() in _UNLABELLED else checked(c, source) for c in classes]
    return typed(labels) if all(_WHOLE.fullmatch(label) for label in labels if label) else np.array(labels)


def _of_table(file: Path, files: Sequence[str], max_bytes: int) -> np.ndarray:
    """The labels that a table gives to names of files; files that it does not name have none."""
    source = place(file)
    table = read_csv(lambda: file.open("rb"), source, "label", ("file",), max_bytes)
    if "file" not in (table.columns or ()):
        raise DataError(f'{source}: no column "file": the columns must be file and label')
    cells = table.x[:, (table.columns or ()).index("file")]
    if np.isnan(cells).any():
        raise DataError(f"{source}: row {int(np.isnan(cells).argmax())} names no file: mend the row")
    names = np.array((table.texts or {})["file"], dtype=object)[cells.astype(np.int64)]
    at, given = {name: i for i, name in enumerate(files)}, table.y
    assert given is not None  # a table without the column is refused
    y = np.full(len(files), {"i": -1, "f": np.nan}.get(given.dtype.kind, ""), given.dtype)
    for row, name in enumerate(names):
        if name not in at:
            raise DataError(
                f"{source}: row {row} names {quoted(name)}, which is no image beside it{nearest(name, files)}: the "
                f"images are {listing(files, 3)}"
            )
        y[at[name]] = given[row]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{source}: names {quoted(twice)} twice: leave one row of each file")
    return y


# ---- pixels ----------------------------------------------------------------------------------------------------------


def _pixels(folder: Path, files: Sequence[str], max_bytes: int) -> np.ndarray:
    """Bytes of shape ``(files, 1 or 3, H, W)``: grey as long as every image is."""
    x, channels = np.empty((len(files), 0, 0, 0), np.uint8), 0
    for i, name in enumerate(files):
        source = place(folder / name)
        with _opened(folder / name, source) as image:
            _check_bytes(len(files) * math.prod(image.size), source, max_bytes)
            pixels = _decoded(image, source)
        if i == 0:
            _check_bytes(len(files) * pixels.size, source, max_bytes)
            x = np.empty((len(files), *pixels.shape), np.uint8)
        elif pixels.shape[1:] != x.shape[2:]:
            raise DataError(
                f"{source}: has {_extent(pixels)} pixels, and {shown(files[0])} has {_extent(x[0])}: bring all images "
                "to one size first, such as 64 x 64"
            )
        if len(pixels) > channels > 0:
            _check_bytes(3 * x.size, source, max_bytes)
            x = np.concatenate([x, x, x], axis=1)
        channels = max(channels, len(pixels))
        x[i] = pixels  # grey is the same in every channel
    return x


def _extent(pixels: np.ndarray) -> str:
    """Width and height."""
    return f"{pixels.shape[2]} x {pixels.shape[1]}"


def _check_bytes(wanted: int, source: str, max_bytes: int) -> None:
    if wanted > max_bytes:
        raise DataError(
            f"{source}: all images of its size would take {size(wanted)}, more than the limit of {size(max_bytes)} "
            "(max_bytes): make them smaller first, such as 64 x 64"
        )


@contextmanager
def _opened(file: Path, source: str) -> Iterator[Any]:
    """An image, whose format is one of six; whatever its decoder raises becomes a DataError."""
    from PIL import Image, UnidentifiedImageError

    too_large = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of details beside the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with file.open("rb") as stream, Image.open(stream, formats=_FORMATS) as image:
                yield image
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(
                f"{source}: its content is none of {', '.join(_FORMATS)}: save it again, or take it out of the folder"
            ) from error
        except too_large as error:
            raise DataError(f"{source}: far too many pixels: make the images smaller first") from error
        except Exception as error:  # decoders are not known to raise anything in particular
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise DataError(
                f"{source}: the image is truncated or damaged ({shown(error)}): save it again, or take it out of the "
                "folder"
            ) from error


def _decoded(image: Any, source: str) -> np.ndarray:
    """Bytes of shape ``(1 or 3, H, W)``, upright; what is transparent becomes white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        return (np.asarray(image).astype(np.int64).clip(0, 65535) // _WIDE).astype(np.uint8)[None]
    if image.mode == "F":
        raise DataError(f"{source}: its pixels are fractions, which have no natural white: save the data as .npz")
    grey = image.mode in _GREY or (image.mode == "P" and not np.ptp(np.reshape(image.getpalette(), (-1, 3)), 1).any())
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else np.moveaxis(pixels, -1, 0)
