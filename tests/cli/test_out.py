"""Where results cannot be written: one line in every command, before any model is loaded."""

import errno
import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.test_run import arguments
from evaluation.test_run import make as make_data_set
from ovss_refine.cli import main
from ovss_refine.evaluation.request import Chosen
from ovss_refine.segmenter import Segmenter

LOGITS = Chosen.logits
COMMANDS = ("demo", "refine", "segment", "evaluate", "reproduce", "convert")


@pytest.fixture(autouse=True)
def no_models(monkeypatch):
    """Fail where a model would be loaded."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Segmenter, "prepare", load)
    monkeypatch.setattr(Chosen, "logits", load)


def command(name, root, out):
    """Return the arguments of a command that writes into `out`."""
    (root / "photos").mkdir()
    Image.fromarray(np.full((16, 12, 3), 90, np.uint8)).save(root / "photos" / "x.png")
    if name == "demo":
        return ["demo", "--out", out]
    if name == "refine":
        arrays = {"logits": 9 * np.eye(2, dtype=np.float32)[..., None], "attention": np.eye(2)}
        np.savez(root / "x.npz", **arrays)
        files = [f"--{kind}={root / 'x.npz'}" for kind in arrays]
        return ["refine", f"--image={root / 'photos'}", *files, "--out", out]
    if name == "segment":
        return ["segment", str(root / "photos"), "--labels", "a, b", "--out", out]
    if name == "evaluate":
        make_data_set(root, "folder")
        return [*arguments(root, "folder")[:-1], out]
    if name == "reproduce":
        line = ["reproduce", "tau", "--plan", f"--data={root}", f"--models-dir={root}"]
        return [*line, "--out", out]
    (root / "maps").mkdir()
    Image.fromarray(np.array([[0, 12]], np.uint8)).save(root / "maps" / "1.png")
    return ["dataset", "convert", "coco-stuff", str(root / "maps"), out]


def check_one_line(capsys, *texts):
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("ovss-refine: error: ")]
    assert len(lines) == 1
    assert error.endswith(f"{lines[0]}\n")
    for text in texts:
        assert text in lines[0]
    assert "[Errno" not in error
    assert "Traceback" not in error
    assert ".part" not in error


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("out", ["/dev/null", "file", "file/below/it", "/proc/self/nowhere"])
def test_places_that_are_no_folder(tmp_path, capsys, name, out):
    file = tmp_path / "file"
    file.write_text("mine")
    place = str(tmp_path / out)  # an absolute path remains
    assert main(command(name, tmp_path, place)) == 2
    argument = "`target`" if name == "convert" else "`out`"
    check_one_line(capsys, f"{argument} must be a folder", out.partition("/below")[0])
    assert file.read_text() == "mine"
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", COMMANDS)
def test_links_that_lead_nowhere(tmp_path, capsys, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert main(command(name, tmp_path, str(tmp_path / "loop"))) == 2
    check_one_line(capsys, "must be a folder", f"{tmp_path}/loop")


@contextmanager
def failing(number):
    """Let no file be created, as on a full disk or in a folder that cannot be written."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        yield


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_folders_that_cannot_be_written(tmp_path, capsys, name, number):
    words = command(name, tmp_path, str(tmp_path / "out"))
    with failing(number):
        assert main(words) == 2
    check_one_line(capsys, f"must be a folder that can be written; `{tmp_path}/out`: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_that_no_folder_can_have(tmp_path, capsys, name):
    assert main(command(name, tmp_path, str(tmp_path / ("x" * 300)))) == 2
    check_one_line(capsys, "must be a folder that can be written; ", ": File name too long.")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fills_up(tmp_path, capsys, name, monkeypatch):
    """Not simulated: the kernel does not let a file grow."""
    monkeypatch.setattr(Chosen, "logits", LOGITS)  # arrays in files are no model
    words = command(name, tmp_path, str(tmp_path / "out"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_one_line(capsys, "must be a file that can be written; got File too large.")
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path for path in left if path.stat().st_size] == []


def test_a_folder_of_other_files_is_refused_before_models_are_loaded(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert main(command("evaluate", tmp_path, str(tmp_path / "out"))) == 2
    check_one_line(capsys, "`out` must be a new or empty folder", "'thesis.tex'")


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_result_that_is_a_folder(tmp_path, capsys, overwrite):
    (tmp_path / "out" / "coffee_before_after.png").mkdir(parents=True)
    assert main([*command("demo", tmp_path, str(tmp_path / "out")), *overwrite]) == 2
    check_one_line(capsys, "coffee_before_after.png` must be a new or regular file; got a folder.")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_table_does_not_take_the_place_of_a_device(tmp_path, capsys):
    words = command("reproduce", tmp_path, str(tmp_path / "out"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main([*words, "--csv", str(pipe)]) == 2
    check_one_line(capsys, "pipe` must be a new or regular file; got a device.")
    assert pipe.is_fifo()
    assert not (tmp_path / "out").exists()
