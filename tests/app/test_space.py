"""The files of a Hugging Face Space."""

import os
import re
import runpy
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed ([app])")

from ovss_refine.app import server
from ovss_refine.app.guard import Guard
from ovss_refine.app.request import AppRequest
from ovss_refine.app.uploads import Uploads

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "docs" / "space"


@pytest.fixture
def served(monkeypatch):
    """Run app.py; return what it would have served."""
    found = []
    monkeypatch.setattr(server, "serve", found.append)
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop("SPACE_HOST", None)
    os.environ.pop("GRADIO_ROOT_PATH", None)

    def run():
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
        return found.pop()

    return run


def test_in_a_space_the_page_answers_to_the_space_alone(served, tmp_path):
    os.environ["SPACE_HOST"] = "user-space.hf.space"
    request = served()
    assert request == AppRequest(host="0.0.0.0", browser=False)
    public = os.environ["GRADIO_ROOT_PATH"]
    assert public == "https://user-space.hf.space"
    guard = Guard(None, host=request.host, uploads=Uploads(tmp_path, 1), public=public)
    assert guard._is_ours("user-space.hf.space")
    assert not guard._is_ours("other.hf.space")


def test_anywhere_else_the_page_is_for_this_machine(served):
    assert served() == AppRequest()
    assert "GRADIO_ROOT_PATH" not in os.environ


def test_the_header_and_the_requirements_name_what_exists():
    header = (SPACE / "README.md").read_text(encoding="utf-8").split("---")[1]
    facts = dict(re.findall(r"^(\w+): (.+)$", header, re.MULTILINE))
    assert facts["sdk"] == "gradio"
    assert (SPACE / facts["app_file"]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extras = re.fullmatch(
        r"([\w-]+)\[([\w,]+)\]\n", (SPACE / "requirements.txt").read_text()
    ).groups()
    assert name == project["name"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    lowest = re.search(r"gradio>=(\d+)\.(\d+)", str(project["optional-dependencies"]["app"]))
    assert [int(n) for n in facts["sdk_version"].split(".")][:2] >= [
        int(n) for n in lowest.groups()
    ]
