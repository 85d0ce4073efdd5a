"""A URL or no text given as a path is one sentence, and writes nowhere."""

import re

import numpy as np
import pytest

from ovss_refine.cli.main import main
from ovss_refine.evaluation import evaluate
from ovss_refine.folders.paths import local_path
from ovss_refine.images.convert import as_rgb
from ovss_refine.images.draw import save
from ovss_refine.labels import read_labels
from ovss_refine.sources.lazy import check_models_dir

URLS = ["https://hub.example/a", "HTTP://hub.example/a", "file:///a", "s3://bucket/a", "https:/a"]


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]


@pytest.mark.parametrize("url", [*URLS, "data:image/png;base64,iVBORw0KGgo"])
def test_a_url_is_no_path(url):
    with pytest.raises(ValueError, match=r"^`x` must be a local path; got the URL '.*'\. D.*\.$"):
        local_path("x", url)


@pytest.mark.parametrize(
    "path", ["a:b", "C:/a", "C:\\a", "/a/b:c/d", "a b/c", "./https:/x", "~/a", "."]
)
def test_paths_with_colons_are_paths(path):
    assert str(local_path("x", path)) in (path, path.removeprefix("./"))


def test_no_text_is_no_path():
    with pytest.raises(
        ValueError, match=r"^`x` must be a path; got ''\. The current folder is `\.`\.$"
    ):
        local_path("x", "")
    with pytest.raises(ValueError, match=r"^`out` must be a path; got ''"):
        evaluate(abs, abs, dataset=[(0, 0)], names="a, b", out="")


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("image", lambda url: as_rgb(url, "image")),
        ("path", lambda url: save(url, np.zeros((1, 1, 3), np.uint8))),
        ("path", read_labels),
        ("models_dir", check_models_dir),
    ],
)
def test_python(name, use, url):
    with pytest.raises(ValueError, match=rf"^`{name}` must be a local path; got the URL '{url}"):
        use(url)


COMMANDS = pytest.mark.parametrize(
    ("argument", "command"),
    [
        ("out", "demo --out {}"),
        ("out", "segment a.png --labels a,b --out {}"),
        ("path", "segment a.png --labels-file {} --out out"),
        ("models_dir", "segment a.png --labels a,b --models-dir {} --out out"),
        ("image", "refine --image {} --logits a.npz --attention a.npz --out out"),
        ("logits", "refine --image a.png --logits {} --attention a.npz --out out"),
        ("attention", "refine --image a.png --logits a.npz --attention {} --out out"),
        ("labels", "refine --image a.png --logits a.npz --attention a.npz --labels {} --out out"),
        ("out", "refine --image a.png --logits a.npz --attention a.npz --out {}"),
        ("root", "dataset check voc21 {}"),
        ("source", "dataset convert context {} out --names a"),
        ("out", "evaluate voc21 . --out {}"),
        ("out", "reproduce main --out {}"),
    ],
)


def refusal(command, path, capsys):
    """Return the last line that a command prints when one of its paths is `path`."""
    try:
        code = main([word.format(path) for word in command.split()])
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    return capsys.readouterr().err.splitlines()[-1]


@COMMANDS
def test_commands(argument, command, capsys):
    last = refusal(command, "https://hub.example/a", capsys)
    assert re.search(rf"`?{argument}`? must be a local path; got the URL 'https://hub", last), last


@COMMANDS
def test_commands_need_some_text(argument, command, capsys, tmp_path):
    last = refusal(command, "", capsys)
    assert re.search(rf"`?{argument}`? must be a path; got ''", last), last
    assert not [*tmp_path.iterdir()]


def test_an_image_to_segment(capsys):
    assert main(["segment", "https://hub.example/a.png", "--labels", "a,b", "--out", "out"]) == 2
    assert "got 'https://hub.example/a.png'. Download the image first." in capsys.readouterr().err
