"""The server as a process: its output, its address, and that it leaves nothing behind."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

pytest.importorskip("gradio", reason="gradio is not installed ([app])")

from ovss_refine.app.folder import LOCK, private_folder

REFUSED = 403
RUN = "import sys; from ovss_refine.cli import main; sys.exit(main(sys.argv[1:]))"


def test_sigterm_stops_the_server_and_removes_its_folder(tmp_path):
    command = [sys.executable, "-c", RUN, "app", "--port", "0", "--device", "cpu"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    env.pop("DISPLAY", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as process:
        line = process.stdout.readline()
        address = re.fullmatch(r"The page is at (http://127\.0\.0\.1:\d+/) .*\n", line)
        (root,) = tmp_path.glob("ovss-refine-app-*")
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        with urllib.request.urlopen(address[1]) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "ovss-refine: stopped"
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    others = [tmp_path / name for name in ("ovss-refine-app-link", "ovss-refine-app-no-lock")]
    others[0].symlink_to(tmp_path / "elsewhere")
    others[1].mkdir()
    (tmp_path / "elsewhere" / LOCK).touch()
    with private_folder() as alive, private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        dead = tmp_path / "ovss-refine-app-dead"
        shutil.copytree(folder, dead)  # its lock is a file that nobody holds
        (dead / "upload.png").touch()
        with private_folder() as last:
            assert not dead.exists()
            assert {alive, folder, last, *others} <= {*tmp_path.iterdir()}
    assert {*tmp_path.iterdir()} == {*others, tmp_path / "elsewhere"}


def ask(server, path, data=None, **headers):
    request = urllib.request.Request(server.address + path, data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_urls_are_not_fetched(server):
    # TEST-NET-1: a request to it would hang.
    status, text = ask(server, "gradio_api/file=http://192.0.2.1/x.png")
    assert (status, text) == (REFUSED, "URLs are not fetched.")


def test_urls_are_not_fetched_in_place_of_an_upload(server):
    _, text = ask(server, "config")
    config = json.loads(text)
    drop = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "drop")
    upload = next(d["id"] for d in config["dependencies"] if d["targets"] == [[drop, "upload"]])
    file = {"path": "http://192.0.2.1/x.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": upload, "session_hash": "urls", "trigger_id": drop}
    kind = {"Content-Type": "application/json"}
    status, _ = ask(server, "gradio_api/queue/join?", json.dumps(body).encode(), **kind)
    assert status == 200
    _, text = ask(server, "gradio_api/queue/data?session_hash=urls")
    (done,) = re.findall(r'\{"msg":"process_completed".*?\n', text)
    assert json.loads(done)["success"] is False
    assert "URLs and other files are not read" in json.loads(done)["output"]["error"]


def test_requests_under_another_host_name_are_refused(server):
    status, text = ask(server, "", Host="evil.example:7860")
    assert status == REFUSED
    assert "its own machine" in text


def test_gradio_reports_no_usage_and_has_no_public_endpoints(server):
    _, text = ask(server, "config")
    config = json.loads(text)
    assert config["analytics_enabled"] is False
    assert not config.get("run_history", False)
    _, text = ask(server, "gradio_api/info")
    info = json.loads(text)
    assert info["named_endpoints"] == {}
    assert info["unnamed_endpoints"] == {}
