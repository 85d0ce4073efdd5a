"""Arrays are read if they are there and what their headers say; nothing else takes memory."""

import io
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from ovss_refine.cli import main
from ovss_refine.folders import arrays
from ovss_refine.folders.arrays import read_array, read_arrays

TERABYTES = (1_000_000, 1_000_000)


def npy(shape, data=b"", descr="'<f4'", version=(1, 0), more=""):
    """Make an .npy file of any header."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}{more}\n".encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def archive(path, content, method=zipfile.ZIP_STORED, name="logits.npy"):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)


def patched(path, field, value):
    """Change a field of 4 bytes of the central directory, at an offset from its start."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + field
    data[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(data)


class Run:
    """A pickle that would say so if it ran."""

    def __reduce__(self):
        return print, ("a pickle ran",)


def object_array():
    file = io.BytesIO()
    np.savez(file, logits=np.array([Run()], dtype=object))
    return file.getvalue()


HEADERS = {
    "four terabytes": npy(TERABYTES),
    "four terabytes with some data": npy(TERABYTES, bytes(400)),
    "exabytes": npy((10**9, 10**9, 10**9)),
    "more than 64 bits": npy((10**30,)),
    "nothing of more than 64 bits": npy((0, 10**30)),
    "negative": npy((-1, 4), bytes(16)),
    "negative twice": npy((-2, -2), bytes(16)),
    "a hundred dimensions": npy((1,) * 100, bytes(4)),
    "a shape of thousands of digits": npy(f"({'9' * 5000},)"),
    "a shape that is no tuple": npy("4", bytes(16)),
    "a shape of fractions": npy("(2.0, 2)", bytes(16)),
    "less than it holds": npy((1,), bytes(4_000_000)),
    "more than it holds": npy((1000,), bytes(40)),
    "an object": npy((1,), pickle.dumps(Run()), "'|O'"),
    "fields": npy((1,), bytes(8), "[('x', '<f4'), ('y', '<f4')]"),
    "an inner array": npy((1,), bytes(8), "('<f4', (2**15, 2**15, 2**15))"),
    "text": npy((1,), bytes(8), "'<U2'"),
    "a type of a gigabyte": npy((1,), bytes(8), "'|V2147483647'"),
    "an unknown type": npy((1,), bytes(8), "'nonsense'"),
    "nested brackets": npy("(" * 4000 + ")" * 4000),
    "nested signs": npy(f"({'-' * 9000}1,)"),
    "a header that is too long": npy((1,), bytes(4), more=" " * 60_000),
    "a header of gigabytes": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "no header": b"\x93NUMPY",
    "version 9": npy((1,), bytes(4), version=(9, 0)),
    "no magic": b"text",
    "nothing": b"",
}


def check_refused(path, capsys, read=lambda path: read_arrays(path, ["logits"])):
    """Reading fails in one sentence, and takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"`.*a\{path.suffix}` must be .*\.$") as err:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    text = str(err.value)
    assert "\n" not in text
    assert len(text) < 500 + len(str(path))
    assert not text.endswith("..")
    assert "a pickle ran" not in capsys.readouterr().out


def test_the_first_key_that_exists_is_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, b=np.ones(2), a=np.zeros(3), c=np.ones(1), d=np.ones(1))
    assert list(read_arrays(path, ["x", "b"], ["a", "b"], optional=["y", "d"])) == ["b", "a", "d"]
    np.testing.assert_array_equal(read_arrays(path, ["a"])["a"], np.zeros(3))
    with pytest.raises(ValueError, match=r"array 'x' or 'y'; got \['a', 'b', 'c', 'd'\]\."):
        read_arrays(path, ["a"], ["x", "y"])


@pytest.mark.parametrize("kind", ["empty", "objects", "checksum", "compression"])
def test_damaged_archives_are_refused(tmp_path, kind):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{}], dtype=object) if kind == "objects" else np.zeros(30))
    data = bytearray(path.read_bytes())
    data[data.index(b"NUMPY") + 200] ^= kind == "checksum"
    data[data.index(b"PK\x01\x02") + 10] ^= 99 * (kind == "compression")  # an unknown method
    path.write_bytes(b"" if kind == "empty" else data)
    with pytest.raises(ValueError, match=r"`.*a\.npz` must be a readable \.npz file; got "):
        read_arrays(path, ["a"])


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_lie_are_refused(tmp_path, capsys, kind, method):
    archive(tmp_path / "a.npz", HEADERS[kind], method)
    check_refused(tmp_path / "a.npz", capsys)


@pytest.mark.parametrize("kind", HEADERS)
def test_single_arrays_that_lie_are_refused(tmp_path, capsys, kind):
    (tmp_path / "a.npy").write_bytes(HEADERS[kind])
    check_refused(tmp_path / "a.npy", capsys, read_array)


@pytest.mark.parametrize("descr", ["'<f4'", "'>f4'", "'<f2'", "'<u2'", "'|b1'", "'<i8'"])
def test_numbers_of_any_kind_and_order_are_read(tmp_path, descr):
    dtype = np.dtype(descr.strip("'"))
    expected = np.arange(6).astype(dtype).reshape(2, 3)
    for version in ((1, 0), (2, 0)):
        content = npy((2, 3), expected.tobytes(), descr, version)
        archive(tmp_path / "a.npz", content, zipfile.ZIP_DEFLATED)
        (tmp_path / "a.npy").write_bytes(content)
        for read in (
            read_arrays(tmp_path / "a.npz", ["logits"])["logits"],
            read_array(tmp_path / "a.npy"),
        ):
            np.testing.assert_array_equal(read, expected)
            assert read.dtype.isnative


def test_transposed_and_empty_arrays_are_read(tmp_path):
    made = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.zeros((0, 5)), "c": np.array(3)}
    np.savez_compressed(tmp_path / "a.npz", **made)
    read = read_arrays(tmp_path / "a.npz", *([key] for key in made))
    for key, expected in made.items():
        np.testing.assert_array_equal(read[key], expected, strict=True)


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    path = tmp_path_factory.mktemp("bombs") / "a.npz"
    small = 1 << 20
    archive(path, npy((small // 4,), bytes(small)), zipfile.ZIP_DEFLATED)
    return path


def test_what_inflates_to_gigabytes_is_refused(bombs, capsys, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(bombs.read_bytes())
    assert len(read_arrays(path, ["logits"])["logits"]) == 1 << 18  # small, it is an array of zeros
    patched(path, 24, (1 << 30) + 1)  # the inflated size
    check_refused(path, capsys)


def test_an_honest_array_that_inflates_too_much_is_refused(bombs, capsys, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(bombs.read_bytes())
    monkeypatch.setattr(arrays, "INFLATED", 1 << 19)  # of 1 << 20
    check_refused(path, capsys)
    np.savez_compressed(path, logits=np.random.default_rng(0).normal(size=1 << 17))
    assert len(read_arrays(path, ["logits"])["logits"]) == 1 << 17  # as large, but real


def test_a_size_that_lies_is_refused(bombs, capsys, tmp_path):
    path = tmp_path / "a.npz"
    for field, value in ((24, 100), (24, 1 << 19), (24, 1 << 29), (20, 1 << 31), (20, 10)):
        path.write_bytes(bombs.read_bytes())
        patched(path, field, value)
        check_refused(path, capsys)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, capsys, method):
    archive(tmp_path / "a.npz", npy((4,), bytes(16)), method)
    check_refused(tmp_path / "a.npz", capsys)


@pytest.mark.parametrize("make", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("share", [0, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_archives_are_refused(tmp_path, capsys, make, share):
    path = tmp_path / "a.npz"
    make(path, logits=np.random.default_rng(0).normal(size=(3, 40, 50)), other=np.ones(9))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    check_refused(path, capsys)


def test_pickles_do_not_run(tmp_path, capsys):
    for content in (object_array(), pickle.dumps(Run())):
        (tmp_path / "a.npz").write_bytes(content)
        check_refused(tmp_path / "a.npz", capsys)
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Run()))
    check_refused(tmp_path / "a.npy", capsys, read_array)


def test_damaged_bytes_raise_valueerror_or_nothing(tmp_path):
    path, rng, refused = tmp_path / "a.npz", np.random.default_rng(2), 0
    np.savez_compressed(path, logits=np.arange(200.0))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(400):
        data = whole.copy()
        data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        try:
            read_arrays(path, ["logits"])
        except ValueError as err:
            refused += str(err).startswith(f"`{path}` must ")
    assert refused > 100


def test_many_arrays_are_listed_in_part(tmp_path):
    np.savez(tmp_path / "a.npz", **{f"x{n:03}": np.zeros(1) for n in range(300)})
    with pytest.raises(ValueError, match=r"the array 'logits'; got \['x000', .* and 290 more\.$"):
        read_arrays(tmp_path / "a.npz", ["logits"])


@pytest.mark.parametrize("flag", ["logits", "attention"])
@pytest.mark.parametrize("kind", ["four terabytes", "negative", "an object"])
def test_the_command_says_so_in_one_line(tmp_path, capsys, flag, kind):
    bad, image = tmp_path / "a.npz", tmp_path / "x.png"
    made = {"logits": np.ones((2, 2, 2), np.float32), "attention": np.full((4, 4), 0.25)}
    np.savez(tmp_path / "good.npz", **made)
    archive(bad, HEADERS[kind], name=f"{flag}.npy")
    Image.new("RGB", (8, 8)).save(image)
    given = dict.fromkeys(made, tmp_path / "good.npz") | {flag: bad}
    flags = [word for key, path in given.items() for word in (f"--{key}", str(path))]
    assert main(["refine", "--image", str(image), *flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ovss-refine: error: ")
    assert error.count("\n") == 1
    assert f"`{bad}` must be a readable .npz file; got " in error
