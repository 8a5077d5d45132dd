"""The room ``data``: what files give, and what is refused with which words."""

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch.distributions import constraints

from pyrovae.data import Binarize, DrawNormal, Identity, Preprocess, Standardize, Threshold, datasets, rows
from pyrovae.data.datasets import load, names
from pyrovae.data.gate import Schema, check_cells, check_labels
from pyrovae.data.readers import Table, read
from pyrovae.errors import ConfigError, DataError, ModelFileError

X = np.arange(12, dtype=np.float32).reshape(4, 3)
PROPERTY = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


class Gadget:
    """Runs code when it is unpickled: creates the file ``canary``."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mknod, (str(self.canary),)


def refused(*words, call=read):
    """Call ``call`` and check that it raises one line which holds all ``words``."""

    def run(*args, **kwargs):
        with pytest.raises(DataError) as caught:
            call(*args, **kwargs)
        message = str(caught.value)
        assert message.isprintable(), message
        for word in words:
            assert str(word) in message, (word, message)
        return message

    return run


def table_or_refusal(path):
    """What a possibly damaged file gives: a table, or one line and None; never another exception."""
    said, table = "", None
    try:
        table = read(path)
    except DataError as error:
        said = str(error)
    assert said.isprintable()
    return table


def npy_bytes(x, **kwargs):
    stream = io.BytesIO()
    np.save(stream, x, **kwargs)
    return stream.getvalue()


def npz_bytes(compressed=False, **arrays):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def npy_header(text, version=1):
    head = text.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(head)) + head


CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(x):
    code = CODES[x.dtype.str[1:]]
    head = struct.pack(f">HBB{x.ndim}I", 0, code, x.ndim, *x.shape)
    return head + x.astype(x.dtype.newbyteorder(">")).tobytes()


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- files of any kind -----------------------------------------------------------------------------------------------


def test_missing_directory_and_special_files(tmp_path):
    refused("nope.npz", "no such file")(tmp_path / "nope.npz")
    refused(str(tmp_path), "is a directory")(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    refused("pipe.csv", "not a regular file")(tmp_path / "pipe.csv")
    refused("cannot be read")(tmp_path / ("a" * 3000 + ".csv"))
    refused("no such file")("nul\0name.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = put(tmp_path, "x.npy", npy_bytes(X))
    path.chmod(0)
    refused("x.npy", "cannot be read")(path)


@pytest.mark.parametrize("name", ["e.npz", "e.npy", "e.csv", "e.csv.gz", "e-idx3-ubyte", "e"])
def test_empty_file(tmp_path, name):
    refused(name, "the file is empty")(put(tmp_path, name, b""))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", npz_bytes(x=X), ["NPY format", "zip archive"]),
        ("a.npz", npy_bytes(X), ["zip archive (NPZ)", "NPY format"]),
        ("a.csv", npy_bytes(X), ["text (CSV)", "NPY format"]),
        ("a.npy", b"a,b\n1,2\n", ["NPY format", "text"]),
        ("a.csv", idx_bytes(X), ["text (CSV)", "IDX"]),
        ("a.csv", gzip.compress(b"a,b\n1,2\n"), ["gzipped but not named .gz"]),
        ("a.csv.gz", b"a,b\n1,2\n", ["named .gz but not gzipped"]),
        ("a.npy.gz", gzip.compress(npy_bytes(X)), ["gunzip"]),
        ("a.csv.gz", gzip.compress(gzip.compress(b"a\n1\n")), ["gzipped twice"]),
        ("a.txt", b"a,b\n1,2\n", ["unknown kind", ".csv"]),
        ("a.parquet", b"PAR1xxxxPAR1", ["truncated or damaged"]),
        ("a.csv", b"PAR1xxxxPAR1", ["named like text (CSV)", "Parquet"]),
        ("a.png", b"\x89PNG\r\n\x1a\n", ["PNG"]),
        ("a.h5", b"\x89HDF\r\n\x1a\n", ["HDF5"]),
    ],
)
def test_name_and_content_must_agree(tmp_path, name, content, words):
    refused(name, *words)(put(tmp_path, name, content))


@pytest.mark.parametrize(
    "name", ["p.npy", "p.npz", "p.csv", "p.csv.gz", "p-idx3-ubyte", "p-idx3-ubyte.gz", "p.pt", "p"]
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_never_loaded(tmp_path, name, protocol):
    content = pickle.dumps(Gadget(tmp_path / "canary"), protocol)
    path = put(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    refused("p")(path)
    assert not (tmp_path / "canary").exists()


def test_object_arrays_are_never_unpickled(tmp_path):
    gadget = np.array([Gadget(tmp_path / "canary")], dtype=object)
    refused("never unpickled")(put(tmp_path, "o.npy", npy_bytes(gadget, allow_pickle=True)))
    refused("never unpickled", '"x"')(put(tmp_path, "o.npz", npz_bytes(x=gadget)))
    refused("never unpickled", '"y"')(put(tmp_path, "y.npz", npz_bytes(x=X[:1], y=gadget)))
    assert not (tmp_path / "canary").exists()


def test_options_of_another_format_are_refused(tmp_path):
    path = put(tmp_path, "x.npy", npy_bytes(X))
    with pytest.raises(ConfigError, match="label_column is for CSV"):
        read(path, label_column="y")
    with pytest.raises(ConfigError, match=r"key is for \.npz"):
        read(path, key="x")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.npy", npy_bytes(X)),
        ("t.npz", npz_bytes(x=X)),
        ("c.npz", npz_bytes(True, x=X)),
        ("t-idx2-ubyte", idx_bytes(X)),
        ("t-idx2-ubyte.gz", gzip.compress(idx_bytes(X), mtime=0)),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n3,4\n", mtime=0)),
    ],
)
def test_every_truncation_is_an_error(tmp_path, name, content):
    read(put(tmp_path, name, content))
    for length in range(len(content)):
        refused(name)(put(tmp_path, name, content[:length]))


@pytest.mark.parametrize("compressed", [False, True])
def test_every_flipped_byte_of_an_npz_is_an_error_or_harmless(tmp_path, compressed):
    content = npz_bytes(compressed, x=X)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        table = table_or_refusal(put(tmp_path, "f.npz", bytes(flipped)))
        assert table is None or np.array_equal(table.x, X)


@PROPERTY
@given(st.binary(max_size=300), st.sampled_from(["npy", "npz", "csv", "idx", "idx.gz", "csv.gz"]))
def test_random_bytes_give_a_table_or_one_line(tmp_path, noise, ending):
    magic = {"npy": b"\x93NUMPY\x01\x00", "npz": b"PK\x03\x04", "idx": b"\0\0\x08\x01", "idx.gz": b"\0\0\x0d\x02"}
    content = magic.get(ending, b"") + noise
    path = put(tmp_path, f"noise.{ending}", gzip.compress(content) if ending.endswith(".gz") else content)
    table_or_refusal(path)


def test_control_characters_are_escaped(tmp_path):
    message = refused(r"\x1b[2J")(put(tmp_path, "e.csv", "a\x1b[2J,b\nx,2\n"))
    assert "\x1b" not in message
    refused(r"\x1b")(tmp_path / "a\x1b\nb.csv")


# ---- NPY and NPZ -----------------------------------------------------------------------------------------------------


def test_npy_is_memory_mapped_read_only(tmp_path):
    table = read(put(tmp_path, "x.npy", npy_bytes(X)))
    assert isinstance(table.x, np.memmap)
    assert not table.x.flags.writeable
    assert np.array_equal(table.x, X)
    assert (len(table), table.y, table.columns) == (4, None, None)


@PROPERTY
@given(
    hnp.arrays(
        st.sampled_from(["|b1", "|u1", "<i2", ">i4", "<i8", ">f4", "<f8", "<f2"]),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
    ),
    st.booleans(),
)
def test_npy_and_npz_round_trip(tmp_path, x, fortran):
    stored = np.asfortranarray(x) if fortran else x
    put(tmp_path, "x.npy", npy_bytes(stored))
    put(tmp_path, "x.npz", npz_bytes(x=stored))
    for name in ("x.npy", "x.npz"):
        back = read(tmp_path / name).x
        assert back.dtype.isnative
        assert back.dtype == x.dtype.newbyteorder("=")
        np.testing.assert_array_equal(back, x)


def test_python_2_header_and_format_2(tmp_path):
    old = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4L, 3L), }") + X.tobytes()
    new = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }", 2) + X.tobytes()
    for content in (old, new):
        assert np.array_equal(read(put(tmp_path, "x.npy", content)).x, X)


def test_absurd_npy_header_allocates_nothing(tmp_path):
    header = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2000000, 2000000), }")
    tracemalloc.start()
    refused("declares 14.6 TiB", "holds 8 bytes")(put(tmp_path, "big.npy", header + bytes(8)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", ["single number"]),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }", ["no values", "(0, 3)"]),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }", ["header is damaged"]),
        ("{'descr': '<f4', 'fortran_order': False}", ["header is damaged"]),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + "), }", ["axes"]),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 100 + "), }", ["100 axes"]),
        ("{'descr': '<f16', 'fortran_order': False, 'shape': (2, 3), }", ["unknown type"]),
        ("{'descr': '<f3', 'fortran_order': False, 'shape': (2, 3), }", ["unknown type"]),
        ("{'descr': '__import__', 'fortran_order': False, 'shape': (2, 3), }", ["unknown type"]),
        ("(" * 9000, ["header is damaged"]),
        (" " * 20000, ["20000 bytes long"]),
    ],
)
def test_bad_npy_headers(tmp_path, header, words):
    refused("h.npy", *words)(put(tmp_path, "h.npy", npy_header(header) + bytes(24)))


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (X.astype(np.complex64), "complex"),
        (np.zeros(3, "datetime64[s]"), "dates"),
        (np.zeros(3, "timedelta64[s]"), "time spans"),
        (np.zeros(3, [("a", "f4"), ("b", "f4")]), "records"),
        (np.array(["a", "b"]), "text"),
        (np.array([b"a"]), "bytes"),
    ],
)
def test_dtypes_without_numbers(tmp_path, x, word):
    refused(word)(put(tmp_path, "x.npy", npy_bytes(x)))
    refused(word)(put(tmp_path, "x.npz", npz_bytes(x=x)))


def test_two_arrays_in_one_npy(tmp_path):
    refused("bytes follow")(put(tmp_path, "x.npy", npy_bytes(X) + npy_bytes(X)))


def test_npz_choice_of_arrays(tmp_path):
    y = np.array([0, 1, 1, -1])
    table = read(put(tmp_path, "x.npz", npz_bytes(x=X, y=y)))
    assert np.array_equal(table.x, X)
    assert np.array_equal(table.y, y)
    assert np.array_equal(read(put(tmp_path, "only.npz", npz_bytes(images=X))).x, X)
    assert read(put(tmp_path, "named.npz", npz_bytes(images=X, y=["a", "b", "", "c"]))).y.tolist() == [
        "a",
        "b",
        "",
        "c",
    ]
    both = put(tmp_path, "both.npz", npz_bytes(x_train=X, x_test=X[:1], y=y))
    assert np.array_equal(read(both, key="x_train").x, X)
    refused('"x_train", "x_test", "y"', "key")(both)
    refused('did you mean "x_train"', '"x_test"')(both, key="xtrain")
    refused("1 rows but 4 labels")(both, key="x_test")
    refused("4 rows but 3 labels")(put(tmp_path, "l.npz", npz_bytes(x=X, y=y[:3])))


def test_zip_that_holds_no_arrays_or_strange_ones(tmp_path):
    def archive(*members, **options):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", **options) as z:
            for name, content in members:
                z.writestr(name, content)
        return stream.getvalue()

    refused("without arrays")(put(tmp_path, "a.npz", archive(("sheet.xml", "x"))))
    refused("without arrays")(put(tmp_path, "a.npz", archive()))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive(("x.npy", npy_bytes(X)), ("x.npy", npy_bytes(X)))
    refused("two arrays are named")(put(tmp_path, "a.npz", twice))
    refused("compressed in an unknown way")(
        put(tmp_path, "a.npz", archive(("x.npy", npy_bytes(X)), compression=zipfile.ZIP_BZIP2))
    )
    refused("NPY format")(put(tmp_path, "a.npz", archive(("x.npy", b"nothing"))))
    folder = tmp_path / "sub"
    folder.mkdir()
    up = put(folder, "up.npz", archive(("../x.npy", npy_bytes(X)), ("/tmp/y.npy", npy_bytes(X))))
    refused('"../x"')(up)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "sub"]
    assert [p.name for p in folder.iterdir()] == ["up.npz"]


def test_zip_bomb_is_measured_before_unpacking(tmp_path):
    bomb = put(tmp_path, "b.npz", npz_bytes(True, x=np.zeros((1 << 20, 8), np.uint8)))
    tracemalloc.start()
    refused("unpacks to 8.0 MiB", "limit of 1.0 MiB", "max_bytes")(bomb, max_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert len(read(bomb)) == 1 << 20


# ---- IDX -------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(hnp.arrays(st.sampled_from(sorted(CODES)), hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)), st.booleans())
def test_idx_round_trip(tmp_path, x, zipped):
    raw = idx_bytes(x)
    path = put(tmp_path, "a.idx.gz" if zipped else "a.idx", gzip.compress(raw) if zipped else raw)
    back = read(path).x
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x01\0\x08\x03" + bytes(12), ["wrong magic number 01000803"]),
        (b"\0\0\x07\x01\0\0\0\x01\0", ["unknown IDX type code 0x07"]),
        (b"\0\0\x08\0", ["no usable values"]),
        (b"\0\0\x08\x02" + bytes(8), ["(0, 0)"]),
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\1", ["no usable values"]),
        (struct.pack(">HBB3I", 0, 8, 3, 60000, 28, 28) + bytes(1000), ["47040000", "1000"]),
        (idx_bytes(X) + b"\0\0", ["more bytes follow"]),
        (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), ["declares 65536.0 YiB", "limit"]),
    ],
)
def test_bad_idx(tmp_path, content, words):
    refused("a-idx3-ubyte", *words)(put(tmp_path, "a-idx3-ubyte", content))
    refused("a-idx3-ubyte.gz", *words)(put(tmp_path, "a-idx3-ubyte.gz", gzip.compress(content)))


def test_gz_bombs_stop_early(tmp_path):
    idx = put(tmp_path, "b-idx1-ubyte.gz", gzip.compress(idx_bytes(np.zeros(9, np.uint8)) + bytes(1 << 25)))
    line = put(tmp_path, "line.csv.gz", gzip.compress(b"a,b\n" + b" " * (1 << 25)))
    rows = put(tmp_path, "rows.csv.gz", gzip.compress(b"a\n" + b"1\n" * (1 << 20)))
    tracemalloc.start()
    refused("more bytes follow the 9")(idx)
    refused("limit 10.0 KiB")(rows, max_bytes=10240)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22
    refused("limit 1.0 MiB")(line, max_bytes=1 << 20)


def test_images_find_their_labels(tmp_path):
    images, labels = np.arange(40, dtype=np.uint8).reshape(10, 2, 2), np.arange(10, dtype=np.uint8)
    path = put(tmp_path, "train-images-idx3-ubyte.gz", gzip.compress(idx_bytes(images)))
    assert read(path).y is None
    put(tmp_path, "train-labels-idx1-ubyte.gz", gzip.compress(idx_bytes(labels)))
    assert np.array_equal(read(path).y, labels)
    put(tmp_path, "train-labels-idx1-ubyte.gz", gzip.compress(idx_bytes(labels[:9])))
    refused("10 rows but 9 labels")(path)
    put(tmp_path, "train-labels-idx1-ubyte.gz", b"\1\2\3")
    refused("train-labels-idx1-ubyte.gz")(path)
    plain = put(tmp_path, "t10k-images-idx3-ubyte", idx_bytes(images))
    put(tmp_path, "t10k-labels-idx1-ubyte", idx_bytes(labels))
    assert np.array_equal(read(plain).y, labels)


# ---- CSV -------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(allow_infinity=False, width=32)
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
    st.data(),
)
def test_csv_round_trip(tmp_path, x, ending, quoting, bom, data):
    text = st.text(st.characters(blacklist_categories=("Cs", "Cc"))).map(lambda t: f"c{t}".strip())
    columns = data.draw(st.lists(text, min_size=x.shape[1], max_size=x.shape[1], unique=True))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=quoting, lineterminator=ending)
    writer.writerow(columns)
    writer.writerows([["" if np.isnan(v) else repr(float(v)) for v in row] for row in x])
    content = stream.getvalue().encode("utf-8-sig" if bom else "utf-8")
    assume(x.shape[1] > 1 or ";" not in columns[0])  # taken for another separator
    table = read(put(tmp_path, "t.csv", content))
    assert table.columns == tuple(columns)
    assert table.x.dtype == np.float32
    assert table.x.flags.c_contiguous
    np.testing.assert_array_equal(table.x, x)


def test_csv_details(tmp_path):
    content = '\ufeff"a, b",label,c\r\n\r\n"1.5"," cat ",\r\n 2 ,"do\ng",nan\r\n-3e2,"",+.5'  # no final newline
    table = read(put(tmp_path, "t.csv", content), label_column="label")
    assert table.columns == ("a, b", "c")
    np.testing.assert_array_equal(table.x, np.array([[1.5, np.nan], [2, np.nan], [-300, 0.5]], np.float32))
    assert table.y.tolist() == ["cat", "do\ng", ""]
    assert len(read(put(tmp_path, "t.csv.gz", gzip.compress(b"a,b\n1,2\n")))) == 1
    wide = ",".join(f"c{i}" for i in range(20_000)) + "\n" + ",".join(["1"] * 20_000) + "\n"
    assert read(put(tmp_path, "w.csv", wide)).x.shape == (1, 20_000)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "0", "1"], np.array([1, 0, 1])),
        (["1", "", "0"], np.array([1, -1, 0])),
        (["1.0", "nan", "2"], np.array([1, -1, 2])),
        (["1.5", "", "2"], np.array([1.5, np.nan, 2])),
        (["1", "b", ""], np.array(["1", "b", ""])),
        (["12345678901234567", "12345678901234568", ""], np.array(["12345678901234567", "12345678901234568", ""])),
        (["", "", ""], np.array([-1, -1, -1])),
    ],
)
def test_csv_labels(tmp_path, cells, expected):
    table = read(put(tmp_path, "t.csv", "a,y\n" + "".join(f"{i},{c}\n" for i, c in enumerate(cells))), label_column="y")
    assert table.y.dtype.kind == expected.dtype.kind
    np.testing.assert_array_equal(table.y, expected)
    assert table.columns == ("a",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n3\n", ["line 3 has 1 cells", "header has 2"]),
        (b"a,b\n1,2,3\n", ["line 2 has 3 cells"]),
        (b"a,b\n\n\n1,2,3\n", ["line 4"]),
        (b"a,b\n1,2\n3,abc\n", ['column "b"', "row 1 (line 3)", '"abc"']),
        (b"a,b\n1,NA\n", ['"NA" is not a number', "leave missing cells empty"]),
        (b"a,b\n1,1_000\n", ['"1_000" is not a number']),
        ("a,b\n1,١\n".encode(), ["not a number"]),
        (b"a,b\n1,0x10\n", ["not a number"]),
        (b"a,b\n1,1e400\n", ['"1e400"', "infinite", 'column "b"', "(line 2)"]),
        (b"a,b\n1e300,1\n", ['"1e300"', "float32"]),
        (b"a,b\n1,-inf\n", ["infinite"]),
        (b"a,b\n", ["0 rows"]),
        (b"\n\n\r\n", ["0 rows"]),
        (b"a,b,a\n1,2,3\n", ['2 columns are named "a"']),
        (b",a,b\n0,1,2\n", ["column 1 of the header has no name", "index=False"]),
        (b"1,2\n3,4\n", ["header"]),
        (b"a;b\n1,5;2\n", ["semicolons"]),
        (b"a\tb\n1\t2\n", ["tabs"]),
        (b"a,b\n1,\xe9\n", ["not UTF-8 at byte 6"]),
        (b"\xef\xbb\xbfa,b\n1,\xe9\n", ["not UTF-8 at byte 9"]),
        ("a,b\n1,2\n".encode("utf-16"), ["not UTF-8 at byte 0"]),
        (b"a,b\n1,\x002\n", ["NUL byte at byte 6"]),
        (b'a,b\n1,"2\n3,4\n', ["line 3", "quotes"]),
        (b'a,b\n1,"2"3\n', ["line 2", "quotes"]),
        (b"a,b\r1,2\r", ["line ends"]),
        (b"a,b\n1," + b"2" * 200_000, ["field"]),
    ],
)
def test_bad_csv(tmp_path, content, words):
    refused("t.csv", *words)(put(tmp_path, "t.csv", content))


def test_bad_label_columns(tmp_path):
    path = put(tmp_path, "t.csv", "length,species\n1,a\n")
    refused('"specis"', 'did you mean "species"', '"length"')(path, label_column="specis")
    refused("0 columns")(put(tmp_path, "y.csv", "species\na\n"), label_column="species")
    refused("line 2", "300 letters")(put(tmp_path, "l.csv", "a,y\n1," + "b" * 300), label_column="y")


def test_csv_error_beyond_the_first_block(tmp_path):
    lines = ["a,b"] + ["1,2"] * 200_000 + ["1,x"]
    refused("row 200000 (line 200002)")(put(tmp_path, "t.csv", "\n".join(lines)))


# ---- texts, Parquet --------------------------------------------------------------------------------------------------

PEOPLE = 'age,city,smokes,grade,kind\n31,Rome,yes,1,a\n,"New, York",,2,b\n64.5,,no,1,\n nan,Rome,nan,,a\n'


def same_tables(a, b):
    np.testing.assert_array_equal(a.x, b.x)
    assert (a.columns, a.texts) == (b.columns, b.texts)
    assert a.y.tolist() == b.y.tolist()


def test_texts_become_their_places_in_sorted_order(tmp_path):
    table = read(put(tmp_path, "t.csv", PEOPLE), label_column="kind", texts=())
    nan = np.nan
    np.testing.assert_array_equal(table.x, [[31, 1, 1, 1], [nan, 0, nan, 2], [64.5, nan, 0, 1], [nan, 1, nan, nan]])
    assert table.x.dtype == np.float32
    assert table.texts == {"city": ("New, York", "Rome"), "smokes": ("no", "yes")}
    assert table.y.tolist() == ["a", "b", "", "a"]
    part = table.take(np.array([2, 0])).take(slice(1, 2))
    assert part.texts == table.texts
    assert list(part.rows) == [0]


def test_named_columns_are_texts_whatever_they_look_like(tmp_path):
    table = read(put(tmp_path, "t.csv", PEOPLE), texts=["grade", "absent"])
    assert table.texts == {
        "city": ("New, York", "Rome"), "smokes": ("no", "yes"), "grade": ("1", "2"), "kind": ("a", "b"),
    }  # fmt: skip
    np.testing.assert_array_equal(table.x[:, 3], [0, 1, 0, np.nan])
    empty = read(put(tmp_path, "e.csv", "a,b\n1,\n2,\n"), texts=["b"])
    assert np.isnan(empty.x[:, 1]).all()
    assert empty.texts == {"b": ()}


def test_a_table_of_numbers_is_the_same_with_texts_allowed(tmp_path):
    path = put(tmp_path, "t.csv", "a,b\n1,\n2.5,-3e2\n")
    one, other = read(path), read(path, texts=())
    np.testing.assert_array_equal(one.x, other.x)
    assert one.texts is None
    assert other.texts is None


def test_texts_over_several_blocks(tmp_path):
    words = np.array(["c", "a", "b"])[np.arange(200_000) % 3]
    lines = [f"{i},{word}" for i, word in enumerate(words)]
    table = read(put(tmp_path, "t.csv", "\n".join(["n,word", *lines])), texts=())
    assert table.texts == {"word": ("a", "b", "c")}
    assert (np.array(table.texts["word"])[table.x[:, 1].astype(int)] == words).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,x\n2\n", ["line 3", "1 cells", "header has 2"]),
        ("a,b\n1,x\n2,y\nold,z\n", ['column "a", row 2 (line 4): "old" is not a number, as most cells']),
        ("a\n" + "x" * 300 + "\n", ["line 2", "300 letters"]),
    ],
)
def test_texts_are_read_strictly(tmp_path, content, words):
    refused("t.csv", *words)(put(tmp_path, "t.csv", content), texts=())


def test_parquet_and_csv_give_the_same_table(tmp_path):
    import pandas as pd

    path = put(tmp_path, "t.csv", PEOPLE)
    frame = pd.read_csv(path, skipinitialspace=True)
    frame.astype({"city": "category"}).to_parquet(tmp_path / "t.parquet")
    same_tables(*(read(tmp_path / f"t.{kind}", label_column="kind", texts=()) for kind in ("csv", "parquet")))
    refused('column "city"', "expected numbers")(tmp_path / "t.parquet", label_column="kind")


def test_numbers_and_truth_values_of_parquet(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"n": pd.array([1, None], "Int64"), "r": [0.5, 1e300], "t": [True, False]})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read(tmp_path / "t.parquet")
    np.testing.assert_array_equal(table.x, np.array([[1, 0.5, 1], [np.nan, np.inf, 0]], np.float32))
    assert read(tmp_path / "t.parquet", texts=()).texts == {"t": ("False", "True")}
    refused("2 rows of 3 columns", "max_bytes")(tmp_path / "t.parquet", max_bytes=40)
    refused("no label column", '"n"')(tmp_path / "t.parquet", label_column="kind")
    frame.assign(r=pd.Timestamp("2020-01-01")).to_parquet(tmp_path / "d.parquet")
    refused('column "r" holds timestamp')(tmp_path / "d.parquet")
    frame.iloc[:0].to_parquet(tmp_path / "z.parquet")
    refused("0 rows")(tmp_path / "z.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    for damaged in (content[:-20], content[:100] + content[120:], content[:4] + bytes(60) + content[64:]):
        refused("p.parquet")(put(tmp_path, "p.parquet", damaged))


# ---- batches ---------------------------------------------------------------------------------------------------------


def stream(seed):
    return torch.Generator().manual_seed(seed)


def passes(x, y=None, number=0, **options):
    """All batches of one pass, copied as they come."""
    return [tuple(t.clone() for t in b) for b in rows.batches(x, y, **options).epoch(number)]


@pytest.mark.parametrize("cells", [1, 100, 1 << 19])  # blocks of one batch, of a few, of them all
@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (1, 7), (50, 7), (50, 50), (50, 64), (48, 8)])
def test_batches_are_slices_of_the_permutation(monkeypatch, cells, n, batch_size):
    monkeypatch.setattr(rows, "_CELLS", cells)
    x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    for number in (0, 3):
        order = torch.randperm(n, generator=rows.generator(5, 1, 0, number))
        for shuffle, index in ((True, order), (False, torch.arange(n))):
            got = passes(x, np.arange(n), number, batch_size=batch_size, seed=(5, 1), shuffle=shuffle)
            assert len(got) == rows.batches(x, batch_size=batch_size).steps
            for (a, b), at in zip(got, index.split(batch_size), strict=True):
                assert torch.equal(a, torch.from_numpy(x)[at])
                assert torch.equal(b, at)


def test_every_storage_gives_the_same_batches(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (30, 4, 5)).astype(np.uint8)
    expected = torch.cat([b for (b,) in passes(x, batch_size=8)])
    np.save(tmp_path / "c.npy", x)
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    frozen = x.copy()
    frozen.setflags(write=False)
    odd = np.frombuffer(b"0" + x.astype(np.float32).tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not odd.flags.aligned
    kinds = ["?", "i1", "i2", ">i2", "i4", "i8", "f2", "f4", ">f4", "f8"]
    arrays = [x.astype(kind) for kind in kinds] + [frozen, odd, np.asfortranarray(x), x[::-1][::-1], x.tolist()]
    arrays += [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "cf"]
    types = [torch.bool, torch.int16, torch.int64, torch.bfloat16, torch.float16, torch.float32, torch.float64]
    tensors = [torch.from_numpy(x).to(dtype) for dtype in types]
    tensors += [torch.from_numpy(x.swapaxes(1, 2).copy()).transpose(1, 2), torch.tensor(x.tolist()).float()]
    tensors[-1].requires_grad_()
    for source in arrays + tensors:
        got = [b for (b,) in passes(source, batch_size=8)]
        assert all(b.dtype == torch.float32 and not b.requires_grad for b in got)
        assert torch.equal(torch.cat(got), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64, torch.bool])
def test_the_second_array_keeps_its_type(dtype):
    y = torch.arange(40).reshape(20, 2).to(dtype)
    order = torch.randperm(20, generator=rows.generator(0, 0, 0))
    for source in (y, y.numpy()):
        got = torch.cat([b for _, b in passes(X[[0] * 20], source, batch_size=3)])
        assert got.dtype == dtype
        assert torch.equal(got, y[order])


def test_batches_may_be_kept_and_changed():
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    before, copies = x.copy(), passes(x, x, batch_size=6)
    kept = list(rows.batches(x, x, batch_size=6).epoch(0))
    for (a, b), (one, two) in zip(kept, copies, strict=True):
        assert torch.equal(a, one)
        assert torch.equal(b, two)
        assert a.is_contiguous()
        a.fill_(-1)  # neither the next batch nor the caller's rows
    assert np.array_equal(x, before)


def test_a_step_may_see_several_batches_but_never_too_many_rows():
    seen = []

    class Spy(Preprocess):
        def __call__(self, x, generator=None):
            seen.append(tuple(x.shape))
            return x.float() + len(seen)  # a new number for every call

    x = np.zeros((40, 1 << 10), np.uint8)
    passes(x, batch_size=8, preprocess=Spy())
    assert seen == [(40, 1 << 10)]
    seen.clear()
    passes(np.zeros((2050, 1 << 10), np.uint8), batch_size=100, preprocess=Spy())
    assert [n for n, _ in seen] == [200] * 10 + [50]
    seen.clear()
    passes(np.zeros((3, 1 << 20), np.uint8), batch_size=2, preprocess=Spy())
    assert [n for n, _ in seen] == [2, 1]
    step = Standardize().fit(X)
    assert torch.equal(passes(X, batch_size=3, preprocess=step, shuffle=False)[0][0], step(torch.from_numpy(X[:3])))
    assert torch.equal(Threshold(3)(torch.arange(8).view(2, 4)), torch.tensor([[0.0] * 4, [1.0] * 4]))


def test_mapped_rows_are_read_block_by_block(tmp_path):
    """128 MiB on disk in small and in large batches, while NumPy and Python hold a few MiB."""
    mapped = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.uint8, shape=(2**17, 1024))
    mapped[:, 0] = np.arange(2**17) % 251
    mapped.flush()
    x = np.load(tmp_path / "big.npy", mmap_mode="r")
    for batch_size in (64, 4096):
        tracemalloc.start()
        total = sum(
            int(b[:, 0].sum()) for (b,) in rows.batches(x, batch_size=batch_size, preprocess=Identity()).epoch(0)
        )
        next(rows.batches(x, batch_size=batch_size, preprocess=Binarize()).epoch(0))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == (np.arange(2**17) % 251).sum()
        assert peak < 2**24


# ---- dynamic binarisation --------------------------------------------------------------------------------------------

LEVELS = torch.arange(256, dtype=torch.uint8)


def ones(x, repeats, seed):
    """How often every value of a row is 1."""
    noise, step = stream(seed), Binarize()
    block = x.expand(1 << 13, -1).contiguous()
    return sum(step(block, noise).sum(0, dtype=torch.float64) for _ in range(repeats)).numpy(), repeats << 13


def plausible(statistic, distribution):
    """Neither too far from what is claimed nor too close to it, for draws from a fixed seed."""
    assert 1e-3 < distribution.sf(statistic) < 1 - 1e-3, distribution.sf(statistic)


def test_every_byte_has_its_probability():
    """With 2^20 draws a value, x / 256 for x / 255 would be a statistic of thousands."""
    counts, n = ones(LEVELS, 128, seed=0)
    assert counts[0] == 0
    assert counts[255] == n
    p = np.arange(1, 255) / 255
    z = (counts[1:255] - n * p) / np.sqrt(n * p * (1 - p))
    plausible((z**2).sum(), stats.chi2(254))
    plausible(z.sum() / 254**0.5, stats.norm())
    plausible((z * np.sign(p - 0.5)).sum() / 254**0.5, stats.norm())
    assert abs(z).max() < 5


def test_the_bytes_next_to_the_ends_and_the_middle():
    """Where one byte of noise errs most, in a row of one kind, with 2^27 draws in all."""
    values = torch.tensor([1, 2, 126, 127, 128, 129, 253, 254], dtype=torch.uint8)
    counts, n = ones(values.repeat_interleave(64), 32, seed=1)
    counts, n, p = counts.reshape(8, 64).sum(1), n * 64, values.numpy() / 255
    z = (counts - n * p) / np.sqrt(n * p * (1 - p))
    plausible((z**2).sum(), stats.chi2(8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_in_other_types(dtype):
    p = torch.tensor([0, 1e-3, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.99, 1], dtype=dtype)
    counts, n = ones(p, 64, seed=2)
    assert counts[0] == 0
    assert counts[-1] == n
    p = p[1:-1].double().numpy()
    z = (counts[1:-1] - n * p) / np.sqrt(n * p * (1 - p))
    plausible((z**2).sum(), stats.chi2(7))


@pytest.mark.parametrize("scale", [1, 255])
def test_draws_are_independent_of_each_other(scale):
    """Correlation with neighbours, with the next draw and across the pieces in which bytes are drawn."""
    values = torch.tensor([20, 100, 127, 128, 129, 200], dtype=torch.uint8)
    x = values.repeat(700, 100).flatten()  # more than three pieces
    p, noise = (x / 255).double(), stream(3)
    source = x if scale == 1 else x.float() / 255
    first, second = (((Binarize()(source, noise) - p) / (p * (1 - p)).sqrt()).numpy() for _ in range(2))
    for lag in (1, 2, 3, 4, 7, 8, 16, 255, 256, 600, 1 << 16, 1 << 17):
        plausible((first[:-lag] * first[lag:]).sum() / (len(first) - lag) ** 0.5, stats.norm())
    for a, b in ((first, second), (first[1:], second[:-1]), (first[:-1], second[1:])):
        plausible((a * b).sum() / len(a) ** 0.5, stats.norm())


def test_batches_and_passes_are_independent_draws():
    x = np.tile(np.array([20, 100, 127, 128, 200], np.uint8), (1200, 80))
    p = torch.from_numpy(x[:200] / 255)
    one, two = (passes(x, number=k, batch_size=200, preprocess=Binarize()) for k in (0, 1))
    draws = [((b - p) / (p * (1 - p)).sqrt()).numpy() for (b,) in one + two]
    z = [(a * b).sum() / a.size**0.5 for i, a in enumerate(draws) for b in draws[:i]]
    plausible(np.square(z).sum(), stats.chi2(len(z)))
    plausible(np.sum(z) / len(z) ** 0.5, stats.norm())
    again = passes(x, number=1, batch_size=200, preprocess=Binarize())
    assert all(torch.equal(a, b) for (a,), (b,) in zip(two, again, strict=True))


def test_draws_of_a_normal_have_its_mean_and_scale():
    mean, scale = torch.tensor([-3.0, 0.0, 5.0]), torch.tensor([0.5, 0.0, 2.0])
    rows_ = torch.stack([mean, scale]).expand(20_000, 2, 3)
    x = DrawNormal()(rows_, stream(4))
    assert torch.equal(x, DrawNormal()(rows_, stream(4)))
    assert not torch.equal(x, DrawNormal()(rows_, stream(5)))
    assert ((x.mean(0) - mean).abs() <= 5 * scale / 20_000**0.5).all()
    assert ((x.std(0) - scale).abs() <= 5 * scale / 40_000**0.5).all()
    first, second = passes(rows_[:100].numpy(), number=1, batch_size=50, preprocess=DrawNormal())
    assert first[0].shape == second[0].shape == (50, 3)
    refused("DrawNormal", "(rows, 2, D)", call=DrawNormal())(torch.zeros(5, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_noise_is_the_generators(dtype):
    x = (torch.arange(999).view(3, 333) % 256).to(dtype)
    x = x if dtype == torch.uint8 else x / 255
    one, two = stream(4), stream(4)
    a, b = Binarize()(x, one), Binarize()(x, one)
    assert not torch.equal(a, b)
    Binarize()(torch.full((50,), 0.5), stream(9))  # another stream in between
    assert torch.equal(a, Binarize()(x, two))
    assert torch.equal(b, Binarize()(x, two))
    assert not torch.equal(a, Binarize()(x, stream(5)))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        assert torch.equal(a, Binarize()(x))
        assert torch.equal(b, Binarize()(x))
        state = torch.get_rng_state()
        Binarize()(x, one)
        assert torch.equal(state, torch.get_rng_state())
        Binarize()(x)
        assert not torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (7,), (3, 5), (2, 3, 4), ((1 << 17) + 1,)])
def test_form_of_a_draw(shape):
    for x in (torch.full(shape, 255, dtype=torch.uint8), torch.ones(shape), torch.ones(shape, requires_grad=True)):
        before = x.detach().clone()
        draw = Binarize()(x, stream(0))
        assert draw.shape == shape
        assert (draw.dtype, draw.is_contiguous(), draw.requires_grad) == (torch.float32, True, False)
        assert (draw == 1).all()
        assert torch.equal(x, before)


def test_layout_and_type_of_a_draw():
    x = torch.arange(256, dtype=torch.uint8).view(16, 16)
    expected = Binarize()(x.t().contiguous(), stream(0))
    assert torch.equal(Binarize()(x.t(), stream(0)), expected)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(Binarize()(x.t(), stream(0)), expected.double())
    finally:
        torch.set_default_dtype(torch.float32)
    for wrong in (torch.int64, torch.int8, torch.bool):
        refused("Binarize", "8-bit", wrong, call=Binarize())(x.to(wrong))


# ---- the gate --------------------------------------------------------------------------------------------------------

cells_refused = lambda *words: refused(*words, call=check_cells)  # noqa: E731
labels_refused = lambda *words: refused(*words, call=check_labels)  # noqa: E731


@pytest.mark.parametrize("dtype", ["u1", "i4", "i8", "?", "f2", "f4", "f8", ">f4", ">i2", "u8"])
def test_clean_cells_of_every_type_pass(dtype):
    x = np.eye(3).astype(dtype)
    check_cells(x, constraints.boolean)
    check_cells(x, constraints.independent(constraints.unit_interval, 1))
    check_cells(x, constraints.nonnegative_integer)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_clean_tensors_pass(dtype):
    check_cells(torch.eye(3, dtype=dtype).requires_grad_(dtype.is_floating_point), constraints.boolean)


def test_layouts_give_the_same_answer(tmp_path):
    x = np.random.default_rng(0).random((20, 3, 4))
    x[7, 1, 2] = 1.5
    put(tmp_path, "x.npy", npy_bytes(x))
    layouts = [
        x,
        np.asfortranarray(x),
        x[::-1, ::-1][::-1, ::-1],
        x.astype(">f8"),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        torch.from_numpy(x),
    ]
    said = {cells_refused("row 7, pixel (1, 2)", "1.5")(v, constraints.unit_interval, chunk_bytes=300) for v in layouts}
    assert len(said) == 1


def test_the_callers_array_is_never_changed():
    x = np.random.default_rng(0).random((50, 4))
    before = hashlib.sha256(x.tobytes()).digest()
    check_cells(x, constraints.unit_interval, chunk_bytes=64)
    Schema.of(Table(x)).apply(Table(x))
    x.flags.writeable = False
    check_cells(x.astype(np.float32), constraints.unit_interval)
    assert hashlib.sha256(x.tobytes()).digest() == before


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((0, 3)), ["0 rows"]),
        (np.zeros((3, 0)), ["0 columns"]),
        (np.float32(3), ["0 rows"]),
        (np.zeros(3), ["(3,)", "reshape"]),
        (np.zeros((2, 2), complex), ["complex128"]),
        (np.zeros((2, 2), "M8[s]"), ["datetime64"]),
        (np.array([["a", "b"]]), ["<U1"]),
        (np.array([[1, None]], object), ["object"]),
        (np.zeros((2, 2), np.longdouble), ["float"]),
        (torch.zeros(2, 2, dtype=torch.complex64), ["complex64"]),
        (torch.zeros(0, 2), ["0 rows"]),
    ],
)
def test_forms_which_are_refused(x, words):
    cells_refused("array", *words)(x)


@pytest.mark.parametrize("chunk_bytes", [1, 64, 1 << 20])
def test_missing_and_infinite_cells(chunk_bytes):
    x = np.zeros((9, 3), np.float32)
    x[4, 1] = np.nan
    x[5] = np.nan
    message = cells_refused("4 missing values", 'row 4, column "age"', "not supported by this model: wrap")(
        x, constraints.boolean, columns=["a", "age", "b"], chunk_bytes=chunk_bytes
    )
    assert message.count("row ") == 1
    cells_refused("4 missing values", "row 4 (line 6), column 1")(x, source="t.csv", chunk_bytes=chunk_bytes)
    x[8, 2] = -np.inf
    cells_refused("infinite", "row 8, column 2")(torch.from_numpy(x), chunk_bytes=chunk_bytes)
    x[8, 2] = 1e30
    cells_refused("absurd value 1e+30", "row 8, column 2")(x, chunk_bytes=chunk_bytes)
    cells_refused("absurd")(np.array([[1, -(2**62)]]))


def test_rows_are_called_by_their_place_in_the_file(tmp_path):
    lines = ["a,b", *(f"{i},{1e20 if i == 20 else i}" for i in range(50))]
    data = load(put(tmp_path, "t.csv", "\n".join(lines)))
    part = data.train if 20 in data.train.x[:, 0] else data.test
    cells_refused('row 20 (line 22), column "b"')(part.x, source="t.csv", columns=part.columns, rows=part.rows)


def test_the_ends_of_an_open_interval():
    inside = constraints.interval(0.0, 1.0)
    inside.check = lambda value: (value > 0) & (value < 1)
    cells_refused("0 at row 1, column 0", "ContinuousBernoulli scores 0 and 1")(np.array([[0.5], [0.0]]), inside)
    assert "Continuous" not in cells_refused("2 at row 1")(np.array([[0.5], [2.0]]), inside)


def test_advice_for_grey_values():
    x = np.zeros((3, 1, 2, 2))
    x[1, 0, 1, 0] = 0.25
    cells_refused(
        "grey values",
        "0.25 at row 1, pixel (0, 1, 0)",
        "--preprocess binarize",
        "Binarize()",
        "ContinuousBernoulli",
        "Normal",
    )(x, constraints.boolean)
    for support in (constraints.boolean, constraints.unit_interval):
        cells_refused("255", "0..255", "Rescale()")((x * 1020).astype(np.uint8), support)
    cells_refused("-1 at row 0", "0 or 1")(x - 1, constraints.boolean)


@pytest.mark.parametrize(
    ("support", "bad", "words"),
    [
        (constraints.nonnegative_integer, 1.5, "whole numbers from 0"),
        (constraints.nonnegative_integer, -1, "whole numbers from 0"),
        (constraints.positive, 0, "above 0"),
        (constraints.positive, 1e-60, "above 0"),  # 0 in float32
        (constraints.interval(0, 5), 6, "Interval"),
        (constraints.independent(constraints.independent(constraints.positive, 1), 1), -2, "above 0"),
    ],
)
def test_values_outside_the_support(support, bad, words):
    x = np.ones((4, 2))
    check_cells(x, support)
    x[2, 1] = bad
    cells_refused("row 2, column 1", words, f"{bad:g}")(x, support)


def test_supports_of_whole_rows_and_unknown_ones():
    x = np.full((3, 2), 0.5)
    check_cells(x, constraints.simplex)
    check_cells(x, constraints.dependent)
    check_cells(x, constraints.real_vector)
    x[1] = 1
    cells_refused("row 1", "Simplex")(x, constraints.simplex)


def test_names_must_fit_the_columns():
    cells_refused("2 names")(np.zeros((3, 3)), columns=["a", "b"])


@pytest.mark.parametrize(
    "y",
    [
        [0, 1, -1],
        [0.0, np.nan, 2.0],
        ["a", "", "b"],
        np.array(["a", None, np.nan], object),
        torch.tensor([0, 1, 2]),
        [True, False, True],
        np.zeros(3, np.uint8),
        [None, 1, 2],
    ],
)
def test_good_labels(y):
    check_labels(y, 3)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0, 1], ["2 labels for 3 rows"]),
        (np.eye(3, dtype=int), ["(3, 3)", "one-hot"]),
        ([0, 1.5, 2], ["row 1", "1.5"]),
        ([0, -3, 2], ["row 1", "-3"]),
        ([0, np.inf, 2], ["row 1", "inf"]),
        (np.zeros(3, complex), ["complex"]),
        (np.array([b"a"] * 3), ["S1"]),
        (["a", 1, "b"], ["partly"]),
        (np.array(["a", 1, "b"], object), ["partly"]),
        (np.array(["a", {}, "b"], object), ["row 1", "dict"]),
        ([[1], [2, 3], [4]], ["unequal"]),
        (np.array([0, None, 0.5], object), ["row 2", "0.5"]),
    ],
)
def test_bad_labels(y, words):
    labels_refused(*words)(y, 3)


def named(*columns, y=None):
    return Table(np.arange(2.0 * len(columns)).reshape(2, -1), y=y, source="t.csv", columns=columns)


def test_schema_matches_columns_by_name():
    schema = Schema.of(named("a", "b", "c"))
    shuffled = Table(np.array([[2.0, 0.0, 1.0]]), columns=("c", "a", "b"))
    again = schema.apply(shuffled)
    assert again.x.tolist() == [[0.0, 1.0, 2.0]]
    assert again.columns == ("a", "b", "c")
    assert schema.apply(Table(np.zeros((5, 3)))).columns is None
    same = named("a", "b", "c")
    assert schema.apply(same) is same
    apply = schema.apply
    refused("t.csv", 'no column "c"', 'did you mean "cc"', call=apply)(named("a", "b", "cc"))
    refused('no column "c"', call=apply)(named("a", "b"))
    refused('unknown column "d"', "label_column", call=apply)(named("a", "b", "c", "d"))
    refused("(2,)", "expected (3,)", call=apply)(Table(np.zeros((5, 2))))
    refused("(28, 28)", "expected (3,)", call=apply)(Table(np.zeros((5, 28, 28))))


@pytest.mark.parametrize(
    ("y", "classes", "codes"),
    [
        (np.array(["dog", "", "cat"]), ("cat", "dog"), [1, -1, 0]),
        (np.array([3, -1, 1]), (1, 3), [1, -1, 0]),
        (np.array([3.0, np.nan, 1.0]), (1, 3), [1, -1, 0]),
        (np.array([True, False, True]), (0, 1), [1, 0, 1]),
        (np.array(["b", None, "a"], object), ("a", "b"), [1, -1, 0]),
    ],
)
def test_classes_are_sorted_and_coded(y, classes, codes):
    schema = Schema.of(Table(np.zeros((3, 2)), y=y))
    assert schema.classes == classes
    assert schema.codes(y).tolist() == codes
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_labels_which_are_no_classes():
    x = np.zeros((2, 2))
    assert Schema.of(Table(x)).classes is None
    assert Schema.of(Table(x, y=np.array([0.5, 1.0]))).classes is None
    assert Schema.of(Table(x, y=np.array([-1, -1]))).classes is None
    assert Schema.of(Table(x, y=np.eye(2))).classes is None
    schema = Schema.of(Table(x, y=np.array(["cat", "dog"])))
    refused("row 1", '"dogs"', 'did you mean "dog"', call=schema.codes)(["cat", "dogs"])


def test_schema_dict_is_plain_and_checked():
    assert Schema.of(Table(np.zeros((2, 1, 8, 8)))).to_dict() == {"shape": [1, 8, 8]}
    for stored in ({}, {"shape": [2], "more": 1}, {"shape": [-1]}, {"shape": "2"}, {"shape": [2], "columns": [1]}):
        with pytest.raises(ModelFileError):
            Schema.from_dict(stored)


# ---- data sets -------------------------------------------------------------------------------------------------------


def test_digits_have_a_fixed_split():
    one, two = load("digits", seed=0), load("digits", seed=5, test_fraction=0.5)
    assert np.array_equal(one.train.x, two.train.x)
    assert one.train.x.shape == (1500, 1, 8, 8)
    assert one.test.x.dtype == np.float32
    assert (one.train.x.min(), one.train.x.max(), one.preprocess) == (0, 1, "Binarize")
    assert np.array_equal(one.train.x * 16, np.round(one.train.x * 16))
    assert set(one.test.y) == set(range(10))


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("iris", 150, 4), ("wine", 178, 13), ("breast-cancer", 569, 30), ("diabetes", 442, 10)],
)
def test_bundled_tables(name, rows, columns):
    data = load(name, test_fraction=0.2, seed=3)
    assert len(data.train) + len(data.test) == rows
    assert len(data.test) == round(0.2 * rows)
    assert data.train.x.shape[1] == columns == len(data.train.columns)
    assert data.preprocess == "Standardize"
    check_cells(data.train.x, columns=data.train.columns)
    again = load(name, test_fraction=0.2, seed=3)
    assert np.array_equal(data.test.x, again.test.x)
    assert not np.array_equal(data.test.x, load(name, test_fraction=0.2, seed=4).test.x)


def test_shapes_know_their_factors():
    data = load("shapes")
    table = data.train
    assert table.x.shape == (5400, 1, 32, 32)
    assert data.preprocess == "Identity"
    check_cells(table.x, constraints.boolean)
    assert table.factors.shape == (5400, 5)
    assert table.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert [len(np.unique(column)) for column in table.factors.T] == [3, 6, 40, 16, 16]
    assert not table.x[:, :, [0, -1]].any()  # nothing is cut at the border
    assert not table.x[:, :, :, [0, -1]].any()
    inside = table.x.sum((1, 2, 3))
    by_scale = [inside[table.factors[:, 1] == s].mean() for s in range(6)]
    assert by_scale == sorted(by_scale)
    middle = (table.x[:, 0].sum(1) * np.arange(32)).sum(1) / inside
    assert np.corrcoef(middle, table.factors[:, 3])[0, 1] > 0.98
    assert np.array_equal(load("shapes").test.x, data.test.x)
    assert not np.array_equal(load("shapes", seed=1).test.x, data.test.x)


def test_files_are_split(tmp_path):
    x = np.arange(40).reshape(20, 2)
    path = put(tmp_path, "x.npz", npz_bytes(x=x, y=x[:, 0]))
    data = load(path, test_fraction=0.25)
    assert (len(data.train), len(data.test), data.preprocess) == (15, 5, "Identity")
    together = np.concatenate([data.train.x, data.test.x])
    assert np.array_equal(together[np.argsort(together[:, 0])], x)
    assert np.array_equal(data.test.y, data.test.x[:, 0])
    assert len(load(put(tmp_path, "two.npy", npy_bytes(X[:2]))).test) == 1
    refused("at least 2 rows", call=load)(put(tmp_path, "one.npy", npy_bytes(X[:1])))
    csv_file = put(tmp_path, "t.csv", "a,y\n1,p\n2,q\n3,p\n")
    assert set(load(csv_file, label_column="y").train.y) <= {"p", "q"}


def test_large_tables_are_split_without_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_SHUFFLED_BYTES", 100)
    data = load(put(tmp_path, "x.npy", npy_bytes(np.arange(100.0).reshape(50, 2))))
    assert isinstance(data.train.x, np.memmap)
    assert data.test.x[:, 0].tolist() == [90, 92, 94, 96, 98]
    assert data.train.x.base is not None


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused('did you mean "mnist"', *names(), call=load)("mnits")
    refused("no such file", call=load)("nope.npz")
    refused("no such file", call=load)("folder/nope")
    put(tmp_path, "digits", npy_bytes(X))
    assert load("digits").name == "digits"
    assert len(load("./digits").train) == 3  # a file of that name, with a path
    for wrong in ({"test_fraction": 1.0}, {"label_column": "y"}, {"key": "x"}, {"test_fraction": float("nan")}):
        with pytest.raises(ConfigError):
            load("iris", **wrong)


@pytest.mark.parametrize(("name", "step"), [("mnist", "Binarize"), ("fashion-mnist", "Rescale")])
def test_mnist(name, step):
    root = os.environ.get("PYROVAE_DATA")
    if not root or not Path(root, name).is_dir():
        pytest.skip(f"PYROVAE_DATA names no folder with {name}")
    data = load(name)
    assert data.train.x.shape == (60000, 1, 28, 28)
    assert data.test.x.shape == (10000, 1, 28, 28)
    assert data.train.x.dtype == np.uint8
    assert data.preprocess == step
    assert np.bincount(data.test.y).sum() == 10000


# ---- the download, with a small set and a fake network ---------------------------------------------------------------


class Reply(io.BytesIO):
    """What a server sends, and whether anyone asked."""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A set of four tiny files, an empty cache, and the files as a server would send them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    monkeypatch.delenv("PYROVAE_OFFLINE", raising=False)
    raw = {}
    for part, n in (("train", 5), ("t10k", 3)):
        raw[f"{part}-images-idx3-ubyte"] = idx_bytes(np.full((n, 2, 2), n, np.uint8))
        raw[f"{part}-labels-idx1-ubyte"] = idx_bytes(np.arange(n, dtype=np.uint8))
    remote = datasets._Remote(
        "https://example.org/", "Binarize", {stem: hashlib.sha256(c).hexdigest() for stem, c in raw.items()}
    )
    monkeypatch.setitem(datasets._REMOTE, "mnist", remote)
    sent = {f"https://example.org/{stem}.gz": gzip.compress(c) for stem, c in raw.items()}
    monkeypatch.setattr(datasets, "_open", lambda url: Reply(sent[url]))
    return sent


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "pyrovae" / "mnist"


def test_download_fills_the_cache_once(small, cache, monkeypatch):
    data = load("mnist")
    assert (len(data.train), len(data.test)) == (5, 3)
    assert data.test.y.tolist() == [0, 1, 2]
    assert len(list(cache.iterdir())) == 4
    monkeypatch.setattr(datasets, "_open", None)  # a second download would fail
    assert len(load("mnist").train) == 5


def test_data_folder_comes_first(small, cache, tmp_path, monkeypatch):
    folder = tmp_path / "given" / "mnist"
    folder.mkdir(parents=True)
    for url, content in small.items():
        put(folder, url.rsplit("/", 1)[1].removesuffix(".gz"), gzip.decompress(content))  # unpacked ones serve as well
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "given"))
    assert len(load("mnist").train) == 5
    assert not cache.exists()


def test_poisoned_cache_is_refused(small, cache):
    load("mnist")
    put(cache, "t10k-labels-idx1-ubyte.gz", gzip.compress(idx_bytes(np.array([9, 9, 9], np.uint8))))
    refused("t10k-labels-idx1-ubyte.gz", "SHA-256", "remove", call=load)("mnist")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda c: gzip.compress(b"x" + gzip.decompress(c)[1:]), "magic"),
        (lambda c: gzip.compress(gzip.decompress(c)[:-1] + b"\xff"), "SHA-256"),
        (lambda c: c[:-9], "truncated"),
        (lambda c: b"<html>login</html>", "damaged"),
        (lambda c: bytes(1 << 20), "more than the expected"),
    ],
)
def test_bad_downloads_leave_nothing(small, cache, monkeypatch, spoil, word):
    monkeypatch.setattr(datasets, "_DOWNLOAD_BYTES", 1 << 19)
    for url in small:
        small[url] = spoil(small[url])
    refused(word, call=load)("mnist")
    assert list(cache.iterdir()) == []


def test_interrupted_download_leaves_nothing_and_can_be_repeated(small, cache, monkeypatch):
    class Broken(Reply):
        def read(self, size=-1):
            raise KeyboardInterrupt

    good = datasets._open
    monkeypatch.setattr(datasets, "_open", lambda url: Broken() if "t10k-images" in url else good(url))
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert sorted(p.name for p in cache.iterdir()) == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    monkeypatch.setattr(datasets, "_open", good)
    assert len(load("mnist").train) == 5


def test_offline_says_where_it_looked(small, cache, monkeypatch):
    def unreachable(url):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "_open", unreachable)
    refused(cache, "no route to host", "PYROVAE_DATA", call=load)("mnist")
    monkeypatch.setenv("PYROVAE_OFFLINE", "1")
    refused(cache, "PYROVAE_OFFLINE", call=load)("mnist")


def test_https_only():
    refused("https", call=datasets._check_https)("http://example.org/a.gz")
    refused("https", call=datasets._HttpsOnly().redirect_request)(None, None, 302, "", {}, "http://example.org/a.gz")
    assert all(remote.url.startswith("https://") for remote in datasets._REMOTE.values())
