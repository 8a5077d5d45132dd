"""Folders of images: pixels, names and labels as they were written; what is odd is refused by its file's name."""

import csv
import functools
import os
import sys

import numpy as np
import pytest
from PIL import Image

import pyrovae as pv
from pyrovae import cli
from pyrovae.cli import labels as commands
from pyrovae.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def put(folder, name, pixels, **how):
    """One file of pixels."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


def refused(folder, *words, **how):
    with pytest.raises((DataError, ConfigError)) as caught:
        pv.data.read(folder, **how)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_sub_folders_are_classes_and_rows_come_in_the_order_of_names(tmp_path):
    names = ["dog/b.png", "cat/z.PNG", "unlabelled/a.png", "dog/a.bmp", "loose.gif", "Unknown/c.tif"]
    for name, pixels in zip(names, GREY, strict=True):
        put(tmp_path, name, pixels)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "dog" / ".hidden.png").write_text("not one either")
    (tmp_path / "bird").mkdir()
    table = pv.data.read(tmp_path)
    assert table.files == ("Unknown/c.tif", "cat/z.PNG", "dog/a.bmp", "dog/b.png", "loose.gif", "unlabelled/a.png")
    assert table.y.tolist() == ["", "cat", "dog", "dog", "", ""]
    assert table.x.dtype == np.uint8
    np.testing.assert_array_equal(table.x, GREY[[names.index(f) for f in table.files]][:, None])
    some = table.take(np.array([3, 0]))
    assert some.files == ("dog/b.png", "Unknown/c.tif")
    assert table.take(slice(1, 2)).files == ("cat/z.PNG",)


@pytest.mark.parametrize(
    ("names", "y"),
    [
        (["0/a.png", "10/b.png", "unlabeled/c.png"], [0, 10, -1]),
        (["007/a.png", "10/b.png", "unknown/c.png"], ["007", "10", ""]),
        (["a.png", "b.png", "c.png"], None),
    ],
)
def test_classes_that_are_numbers_are_numbers_and_a_flat_folder_has_none(tmp_path, names, y):
    for name in names:
        put(tmp_path, name, GREY[0])
    found = pv.data.read(tmp_path).y
    assert (None if found is None else found.tolist()) == y


def test_a_table_of_labels_names_files_in_any_order(tmp_path):
    for name in ("a.png", "b.png", "more/c.png", "d.png"):
        put(tmp_path, name, GREY[0])
    (tmp_path / "labels.csv").write_text("label,by,file\ncat,Ann,more/c.png\ndog,Ben,a.png\n,Ben,b.png\n")
    assert pv.data.read(tmp_path).y.tolist() == ["dog", "", "", "cat"]
    (tmp_path / "labels.csv").write_text("file,label\nd.png,3\n")
    assert pv.data.read(tmp_path).y.tolist() == [-1, -1, 3, -1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,label\na.png,cat\n", ["labels.csv", 'no column "file"']),
        ("file,kind\na.png,cat\n", ["labels.csv", 'no label column "label"']),
        ("file,label\nA.png,cat\n", ['"A.png"', 'did you mean "a.png"']),
        ("file,label\na.png,cat\na.png,dog\n", ['"a.png" twice']),
        ("file,label\n,cat\n", ["row 0 names no file"]),
    ],
)
def test_a_table_of_labels_that_does_not_fit_is_refused(tmp_path, content, words):
    put(tmp_path, "a.png", GREY[0])
    (tmp_path / "labels.csv").write_text(content)
    refused(tmp_path, *words)


def test_one_image_of_colour_makes_all_of_three_channels(tmp_path):
    put(tmp_path, "a.png", GREY[0])
    put(tmp_path, "b.png", COLOUR[0])
    put(tmp_path, "c.png", GREY[1])
    x = pv.data.read(tmp_path).x
    assert x.shape == (3, 3, 5, 4)
    np.testing.assert_array_equal(x[1], np.moveaxis(COLOUR[0], -1, 0))
    np.testing.assert_array_equal(x[[0, 2]], GREY[:2, None].repeat(3, 1))


def test_bits_16_bits_palettes_transparency_and_turned_photographs(tmp_path):
    put(tmp_path, "a.png", GREY[0] > 127)
    put(tmp_path, "b.png", GREY[1].astype(np.uint16) * 257)
    shaded = np.stack([GREY[2], np.zeros_like(GREY[2])], -1)
    put(tmp_path, "c.png", shaded)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    put(tmp_path, "d.png", np.rot90(GREY[3]).copy(), exif=turned)
    x = pv.data.read(tmp_path).x
    np.testing.assert_array_equal(x[0, 0], np.where(GREY[0] > 127, 255, 0))
    np.testing.assert_array_equal(x[1:4, 0], [GREY[1], np.full_like(GREY[2], 255), GREY[3]])
    Image.fromarray(COLOUR[4]).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "e.gif")
    assert pv.data.read(tmp_path).x.shape == (5, 3, 5, 4)


def test_every_format_is_read(tmp_path):
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    for ending in ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp"):
        put(tmp_path, f"a.{ending}", smooth)
    x = pv.data.read(tmp_path).x
    assert x.shape == (8, 3, 16, 16)
    assert abs(x.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 3


def broken(folder):
    path = put(folder, "cat/b.png", np.zeros((64, 64), np.uint8) + RNG.integers(0, 9, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: put(p, "cat/b.png", GREY[0].T.copy()), ["cat/b.png: has 5 x 4 pixels", "cat/a.png has 4 x 5"]),
        (broken, ["cat/b.png", "truncated or damaged"]),
        (lambda p: (p / "cat" / "b.png").write_text("no image"), ["cat/b.png", "none of BMP", "take it out"]),
        (lambda p: (p / "cat" / "b.png").write_bytes(b""), ["cat/b.png", "none of BMP"]),
        (lambda p: put(p, "cat/more/b.png", GREY[0]), ["cat/more", "two folders deep", "name the folder"]),
        (lambda p: put(p, "cat/b.tif", GREY[0].astype(np.float32)), ["cat/b.tif", "fractions"]),
    ],
    ids=["size", "truncated", "text", "empty", "deep", "fractions"],
)
def test_an_image_that_does_not_fit_is_named(tmp_path, make, words):
    put(tmp_path, "cat/a.png", GREY[0])
    make(tmp_path)
    refused(tmp_path, *words)


def test_a_folder_without_images_and_options_for_files_are_refused(tmp_path):
    refused(tmp_path, "is a directory without images", "sub-folders named by class")
    put(tmp_path, "a.png", GREY[0])
    refused(tmp_path, "folder of images", label_column="kind")
    refused(tmp_path, "folder of images", key="x")


def test_sizes_are_checked_before_memory_is_asked_for(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        put(tmp_path, name, GREY[0])
    assert pv.data.read(tmp_path, max_bytes=40).x.nbytes == 40
    refused(tmp_path, "a.png", "limit of 39 bytes", "smaller first", max_bytes=39)
    put(tmp_path, "b.png", COLOUR[0])
    refused(tmp_path, "b.png", "limit of 100 bytes", max_bytes=100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    refused(tmp_path, "a.png", "far too many pixels")


def test_without_pillow_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    put(tmp_path, "a.png", GREY[0])
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(tmp_path, "pip install pillow")


# the command line


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """60 images of a bright half, 24 of them in folders of their class, and what labelling them wrote."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 80, (8, 8), dtype=np.uint8)
        pixels[:4] += np.uint8(150 * (i % 2))
        pixels[4:] += np.uint8(150 * (1 - i % 2))
        kind = "unlabelled" if i >= 24 else "top" if i % 2 else "foot"
        put(folder, f"photos/{kind}/{i:02d}.png", pixels)
        if i < 10:
            put(folder, f"later/{i:02d}.png", pixels)
    before = os.getcwd()
    os.chdir(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(commands, "label_rows", functools.partial(pv.label, steps=30, folds=2))
    try:
        assert cli._run(["label", "photos", "--method", "supervised"], debug=False) == 0
        assert cli._run(["label", "later", "--model", "runs/photos-labels", "--out", "later.csv"], debug=False) == 0
    finally:
        patch.undo()
        os.chdir(before)
    return folder


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_label_tells_files_and_labels_and_no_pixels(squares):
    rows = rows_of(squares / "labelled.csv")
    told = ["label", "probability", "p_foot", "p_top", "prediction_set", "abstain", "novelty", "ask_next"]
    assert list(rows[0]) == ["file", *told]
    assert [row["file"] for row in rows] == list(pv.data.read(squares / "photos").files)
    assert all(row["label"] == ("top" if int(row["file"][-6:-4]) % 2 else "foot") for row in rows)
    assert (
        "Rows to label next, the most useful first: unlabelled/"
        in (squares / "runs/photos-labels/report.txt").read_text()
    )


def test_the_labeller_labels_another_folder_even_in_colour(squares, tmp_path):
    rows = rows_of(squares / "later.csv")
    assert [row["file"] for row in rows] == [f"{i:02d}.png" for i in range(10)]
    assert [row["label"] for row in rows] == ["foot", "top"] * 5
    model = squares / "runs" / "photos-labels"
    put(tmp_path, "new/lily/a.png", GREY[0])
    out = ["--model", str(model), "--out", str(tmp_path / "o.csv")]
    assert cli._run(["label", str(tmp_path / "new"), *out], debug=False) == 3
    assert not (tmp_path / "o.csv").exists()


def test_grey_images_pass_where_colour_was_learned():
    features = pv.labelling.Pixels((3, 5, 4), 255.0)
    table = pv.data.Table(GREY[:, None], files=("a",) * 6)
    assert commands._in_colour(table, features).x.shape == (6, 3, 5, 4)
    assert commands._in_colour(table, pv.labelling.Pixels((1, 5, 4), 255.0)) is table


def test_label_asks_where_the_labels_are_and_fit_reads_a_folder(squares, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli._run(["label", str(squares / "later")], debug=False) == 2
    assert "sub-folders named by class" in capsys.readouterr().err
    quick = ["--epochs", "1", "--hidden", "8", "--latent", "2", "--k", "2", "--compile", "eager"]
    assert cli._run(["fit", str(squares / "photos"), "--out", "run", *quick], debug=False) == 0
    assert pv.load("run").schema.shape == (1, 8, 8)
