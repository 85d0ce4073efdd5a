"""What a killed writer leaves is cleared at the next start; nothing else is."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.test_run import arguments
from evaluation.test_run import make as make_data_set
from fake_segmenter import FakeSegmenter
from ovss_refine.cli import main
from ovss_refine.folders import files
from ovss_refine.folders.files import clear_leftovers, write_whole
from ovss_refine.folders.results import ResultsFolder
from ovss_refine.segment.run import run_segment
from segment.test_run import make as make_photographs
from segment.test_run import request

LEFT = ".0123abcd.0123456789abcdef.part"  # as `write_whole` names a file that it is writing
OTHERS = (
    *("film.part", ".film.part", ".0123abcd.part", "0123abcd.0123456789abcdef.part"),
    *(f"{LEFT}.png", f".x{LEFT}", ".0123ABCD.0123456789abcdef.part"),
)
SLOW = """
import sys, time
from pathlib import Path
from ovss_refine.folders.files import write_whole

def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(300)

write_whole(Path(sys.argv[1]), write)
"""


def left(folder):
    return [path for path in folder.rglob("*") if files.TEMPORARY.fullmatch(path.name)]


def leave(folder, *names):
    for name in names or (LEFT,):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")


def test_a_live_writer_keeps_its_file_and_a_killed_one_does_not(tmp_path):
    line = [sys.executable, "-c", SLOW, str(tmp_path / "x.png")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "writing\n"
            (path,) = left(tmp_path)
            clear_leftovers(tmp_path)
            assert path.read_bytes() == b"half"
        finally:
            writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert left(tmp_path) == [path]
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_clearing_while_a_file_is_written_in_this_process(tmp_path):
    def write(file):
        file.write(b"whole")
        clear_leftovers(tmp_path)
        assert len(left(tmp_path)) == 1

    write_whole(tmp_path / "x", write)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_cleared_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, cleared = fcntl.flock, []

    def late(fd, how):
        if how == fcntl.LOCK_EX and not cleared:
            cleared.extend(left(tmp_path))
            clear_leftovers(tmp_path)
            assert left(tmp_path) == []
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_whole(tmp_path / "x", lambda file: file.write(b"whole"))
    assert len(cleared) == 1
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_locks_files_are_written_and_nothing_is_cleared(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    leave(tmp_path)
    write_whole(tmp_path / "x", lambda file: file.write(b"whole"))
    clear_leftovers(tmp_path)
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert len(left(tmp_path)) == 1


def test_only_regular_files_of_that_name_are_removed(tmp_path):
    leave(tmp_path, *OTHERS, "aim", f"sub/{LEFT}")
    (tmp_path / LEFT).symlink_to(tmp_path / "aim")
    (tmp_path / LEFT.replace("a", "b")).mkdir()
    os.mkfifo(tmp_path / LEFT.replace("a", "c"))
    before = sorted(tmp_path.rglob("*"))
    clear_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    clear_leftovers(tmp_path, deep=True)
    assert set(before) - set(tmp_path.rglob("*")) == {tmp_path / "sub" / LEFT}
    clear_leftovers(tmp_path / "missing", deep=True)


def start_segment(root):
    make_photographs(root, 2)
    run_segment(request(root), FakeSegmenter())
    leave(root / "out", LEFT, f"p1_masks/{LEFT}", "film.part")
    run_segment(request(root), FakeSegmenter())


def start_evaluate(root):
    make_data_set(root, "folder")
    assert main(arguments(root, "folder")) == 0
    leave(root / "out", LEFT, f"pictures/{LEFT}", "film.part")
    assert main(arguments(root, "folder")) == 0


def start_demo(root):
    leave(root / "out", LEFT, "film.part")
    assert main(["demo", "--out", str(root / "out")]) == 0


def start_convert(root):
    masks = root / "maps" / "val"
    masks.mkdir(parents=True)
    Image.fromarray(np.array([[0, 12]], np.uint8)).save(masks / "1.png")
    leave(root / "out", LEFT, f"val/{LEFT}", "film.part")
    assert main(["dataset", "convert", "coco-stuff", str(masks.parent), str(root / "out")]) == 0


def start_reproduce(root):
    leave(root / "out", LEFT, "film.part", f"sheets/{LEFT}")
    sheet = str(root / "out" / "sheets" / "x.csv")
    line = ["reproduce", "tau", "--plan", "--models-dir", str(root), "--data", str(root)]
    assert main([*line, "--out", str(root / "out"), "--csv", sheet]) == 0


@pytest.mark.parametrize(
    "start", [start_segment, start_evaluate, start_demo, start_convert, start_reproduce]
)
def test_every_command_clears_its_folder(tmp_path, start):
    start(tmp_path)
    assert left(tmp_path) == []
    assert (tmp_path / "out" / "film.part").read_bytes() == b"half"


def test_a_run_that_is_refused_clears_nothing(tmp_path):
    leave(tmp_path / "out", LEFT, "film.part")
    with pytest.raises(FileExistsError, match=r"has 'film\.part'"):
        ResultsFolder(tmp_path / "out", {})
    assert len(left(tmp_path)) == 1


def test_the_text_cache_is_cleared_as_well(tmp_path):
    text = pytest.importorskip("ovss_refine_adapters.text")
    leave(tmp_path, LEFT, "film.part")
    text._write(Path(tmp_path, "x.npy"), np.zeros(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.part", "x.npy"]
