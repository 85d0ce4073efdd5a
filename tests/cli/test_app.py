"""The flags of `ovss-refine app`."""

import re
import socket
import sys
from pathlib import Path

import pytest

from forks import fresh
from ovss_refine.app import server
from ovss_refine.app.request import AppRequest
from ovss_refine.cli import main, parser


def test_the_flags_reach_the_server(monkeypatch):
    seen = []
    monkeypatch.setattr(server, "serve", seen.append)
    assert main(["app"]) == 0
    assert seen.pop() == AppRequest(
        host="127.0.0.1",
        port=7860,
        device="auto",
        dtype=None,
        models_dir=None,
        max_bytes=32_000_000,
        max_pixels=16_000_000,
        browser=True,
    )
    words = "app --host 0.0.0.0 --port 0 --device cpu --dtype bfloat16 --models-dir m"
    words += " --max-bytes 5 --max-pixels 6"
    assert main([*words.split(), "--no-browser"]) == 0
    assert seen.pop() == AppRequest(
        host="0.0.0.0",
        port=0,
        device="cpu",
        dtype="bfloat16",
        models_dir=Path("m"),
        max_bytes=5,
        max_pixels=6,
        browser=False,
    )


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "many"])
def test_a_limit_must_be_a_positive_whole_number(word, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["app", "--max-pixels", word])
    assert f"must be a whole number of at least 1; got '{word}'" in capsys.readouterr().err


def test_help_imports_neither_torch_nor_gradio():
    code = (
        "import sys, ovss_refine.cli as c\n"
        "try: c.main(['app', '--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'gradio', 'PIL') if m in sys.modules])"
    )
    printed = fresh(code)
    assert printed.strip().endswith("[]")
    assert "127.0.0.1" in printed


def test_a_port_in_use_is_said(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--no-browser", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"a free port; got 127.0.0.1 and {port}: .*in use.*another --port", said)


@pytest.mark.parametrize("port", ["-1", "70000"])
def test_a_port_out_of_range_is_said(port, capsys):
    assert main(["app", "--no-browser", "--port", port]) == 2
    assert f"got 127.0.0.1 and {port}" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "--no-browser", "--port", "0"]) == 2
    assert "pip install 'ovss-refine[app]'" in capsys.readouterr().err


def test_a_browser_opens_only_where_it_can_be_seen(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not server._has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert server._has_display()
    monkeypatch.delenv("WAYLAND_DISPLAY")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert server._has_display()
