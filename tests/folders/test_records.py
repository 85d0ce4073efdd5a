"""Records on disk: whole lines, durable, one writer."""

import errno
import os
import resource
import zlib

import pytest

from ovss_refine.folders.records import Records, encode, iterate, read_all


def record(id, value=1):
    return {"id": id, "counts": {"a": [[0, 3], [value, 2]]}, "seconds": {"a": 0.5}}


def write(folder, *records, rank=0):
    kept = Records(folder, rank)
    for one in records:
        kept.append(one)
    kept.close()
    return kept.path


def test_records_are_read_as_written(tmp_path):
    path = write(tmp_path, record("x"), record("ü\n\u2028"))
    assert [one["id"] for one in read_all(tmp_path)] == ["x", "ü\n\u2028"]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("cut", range(1, len(encode(record("last")))))
def test_a_torn_last_line_is_cut_off_at_every_byte(tmp_path, cut):
    path = write(tmp_path, record("x"))
    whole = path.read_bytes()
    path.write_bytes(whole + encode(record("last"))[:cut])
    assert [one["id"] for one in read_all(tmp_path)] == ["x"]
    write(tmp_path, record("y"))
    assert [one["id"] for one in read_all(tmp_path)] == ["x", "y"]
    assert path.read_bytes() == whole + encode(record("y"))


def test_a_last_line_of_garbage_is_cut_off(tmp_path):
    path = write(tmp_path, record("x"))
    path.write_bytes(path.read_bytes() + bytes(50) + b"\n")
    write(tmp_path)
    assert path.read_bytes() == encode(record("x"))


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = write(tmp_path, record("x"), record("y"), record("z"))
    data = path.read_bytes()
    at = len(encode(record("x")))
    path.write_bytes(data.replace(b'"y"', b'"w"'))
    with pytest.raises(ValueError, match=f"must have whole lines; the one at byte {at} is damaged"):
        list(iterate(path))
    with pytest.raises(ValueError, match="whole lines"):
        Records(tmp_path)


def test_one_writer_at_a_time(tmp_path):
    first = Records(tmp_path)
    with pytest.raises(BlockingIOError, match="must be written by one run at a time"):
        Records(tmp_path)
    Records(tmp_path, rank=1).close()
    first.close()
    Records(tmp_path).close()


def test_records_are_on_the_disk_before_the_next(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda fd, *a, n=name, real=real: (calls.append(n), real(fd, *a))[1]
        )
    kept = Records(tmp_path)
    calls.clear()
    kept.append(record("x"))
    kept.append(record("y"))
    kept.close()
    assert calls == ["write", "fsync"] * 2


def test_a_partial_write_is_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    write(tmp_path, record("x"), record("y"))
    assert [one["id"] for one in read_all(tmp_path)] == ["x", "y"]


def test_a_full_disk_leaves_the_earlier_records(tmp_path, monkeypatch):
    real, kept = os.write, Records(tmp_path)
    kept.append(record("x"))
    room = [10]

    def write_a_little(fd, data):
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[: room.pop()])

    monkeypatch.setattr(os, "write", write_a_little)
    with pytest.raises(OSError, match=r"No space left on device.*earlier results are safe") as err:
        kept.append(record("y"))
    assert err.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "write", real)
    assert kept.path.read_bytes() == encode(record("x"))
    kept.append(record("y"))  # there is space again
    kept.close()
    assert [one["id"] for one in read_all(tmp_path)] == ["x", "y"]


def test_a_file_size_limit_leaves_the_earlier_records(tmp_path):
    """Not simulated: the kernel does not let the file grow."""
    kept = Records(tmp_path)
    kept.append(record("x"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(encode(record("x"))) + 20, hard))
    try:
        with pytest.raises(OSError, match="could not be written"):
            kept.append(record("y"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept.close()
    assert kept.path.read_bytes() == encode(record("x"))


def test_records_can_be_appended_after_clearing(tmp_path):
    kept = Records(tmp_path)
    kept.append(record("x"))
    kept.clear()
    assert kept.path.read_bytes() == b""
    kept.append(record("y"))
    kept.close()
    assert kept.path.read_bytes() == encode(record("y"))


@pytest.mark.parametrize(("mark", "count"), [(b"[", 200_000), (b"9", 5000)])
def test_a_record_that_cannot_be_read_is_refused(tmp_path, mark, count):
    body = mark * count
    path = tmp_path / "records.0.jsonl"
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(body), body))
    with pytest.raises(ValueError, match=r"`.*records\.0\.jsonl` must be readable JSON; got "):
        Records(tmp_path)


def test_a_line_of_a_terabyte_is_cut_off_without_being_read(tmp_path):
    kept = Records(tmp_path)
    kept.append(record("x"))
    kept.close()
    size = kept.path.stat().st_size
    os.truncate(kept.path, 1 << 40)  # takes no space on the disk
    with pytest.raises(ValueError, match=rf"must have whole lines; the one at byte {size} is dam"):
        Records(tmp_path)
