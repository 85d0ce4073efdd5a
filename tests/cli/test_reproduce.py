"""The arguments of `reproduce`: errors before any work, and what needs no weights or data."""

import pytest

from ovss_refine.reproduce import inputs as reproduce_inputs
from ovss_refine.reproduce import run as reproduce
from reproduce.test_run import nothing_in_the_cache, run  # noqa: F401 - for all tests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "`data` must be an existing folder; got `nowhere`"),
        (["--root", "voc21=nowhere"], "`root` must be an existing folder; got `nowhere` for voc21"),
        (["--datasets", "voc20"], r"`datasets` must be some of ['voc21', 'coco-stuff', "),
        (["--limit", "0"], "`limit` must be at least 1; got 0"),
        (["--models-dir", "nowhere"], "`models_dir` must be an existing folder; got `nowhere`"),
        (["--published", "--limit", "0"], "`limit` must be at least 1; got 0"),
        (["--published", "--csv", "x.csv"], "`csv` must be left out with `published`"),
        (["--csv", "."], "`csv` must be a file; `.` is a folder"),
        (["--csv", f"{__file__}/x.csv"], "the folder of `csv` must be a folder; "),
        (["--out", __file__], f"`out` must be a folder; `{__file__}` is a file"),
        (["--out", "/proc/self/nowhere"], "`out` must be a folder that can be written; "),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, tmp_path, capsys):
    run("tau", tmp_path, *arguments, code=2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("root", ["voc21", "voc21=", "folder=x", "voc=x"])
def test_invalid_roots_are_refused(root, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("tau", tmp_path, "--root", root)
    assert "must be NAME=PATH, NAME one of ade20k, " in capsys.readouterr().err


def test_published_measures_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "run_evaluate", None)
    run("cost", tmp_path / "out", "--published")
    assert "| ViT-B/16 | CASS      |    3.11 |" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_libraries_that_are_missing_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce_inputs, "LIBRARIES", ("no_such_library",))
    run("tau", tmp_path)
    wanted = "libraries (no_such_library): run `pip install 'ovss-refine[models]'`"
    assert f"- {wanted} (kk-mean + sd2)" in capsys.readouterr().out


def test_without_weights_and_data_the_published_values_are_shown(tmp_path, capsys):
    run("main", tmp_path / "out")
    text = capsys.readouterr().out
    assert "| ViT-B/16 | Ours M.V.     | 67.8 / - / - | 38.3 / - / - |" in text
    assert "not refined" not in text  # rows of this library that are not measured
    for name in ("clip-b16", "clip-l14", "dino-b8", "sd2"):
        assert f"- weights `{name}`" in text
    assert "its code has no licence, nor is what it works from free to use (FreeDA, ReCo" in text
    assert not (tmp_path / "out/cells").exists()
