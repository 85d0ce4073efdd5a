"""The manifest: keeps every start, refuses other settings by name."""

import json

import pytest

from ovss_refine.folders.manifest import digest, environment, plain, prepare

SETTINGS = {"mode": "kl", "rows": ("a", "b"), "limit": None, "tau": 0.3}


def test_every_start_is_kept(tmp_path):
    out = tmp_path / "new" / "folder"
    prepare(out, SETTINGS, {"command": ["first"]})
    prepare(out, SETTINGS, {"command": ["second"]})
    content = json.loads((out / "manifest.json").read_text())
    assert content["settings"] == plain(SETTINGS)
    assert [start["command"] for start in content["starts"]] == [["first"], ["second"]]


def test_other_settings_are_refused_by_name(tmp_path):
    prepare(tmp_path / "out", SETTINGS, {})
    before = (tmp_path / "out/manifest.json").read_bytes()
    other = {**SETTINGS, "tau": 0.5, "rows": ("a",), "more": 1}
    with pytest.raises(ValueError, match="must be a folder of the same settings") as err:
        prepare(tmp_path / "out", other, {})
    assert "rows was ['a', 'b'], is ['a']; tau was 0.3, is 0.5; more was absent, is 1" in str(
        err.value
    )
    assert "mode" not in str(err.value)
    assert (tmp_path / "out/manifest.json").read_bytes() == before


def test_a_setting_that_is_gone_is_a_difference(tmp_path):
    prepare(tmp_path / "out", SETTINGS, {})
    fewer = {key: value for key, value in SETTINGS.items() if key != "mode"}
    with pytest.raises(ValueError, match="mode was 'kl', is absent"):
        prepare(tmp_path / "out", fewer, {})


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="`out` must be a folder"):
        prepare(tmp_path / "file", SETTINGS, {})
    with pytest.raises(ValueError, match="must be a new folder"):
        prepare(tmp_path, SETTINGS, {})
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="must be the manifest of an evaluation; it is damaged"):
        prepare(tmp_path, SETTINGS, {})
    (tmp_path / "empty").mkdir()
    prepare(tmp_path / "empty", SETTINGS, {})


def test_digest_depends_on_settings_only():
    assert digest(SETTINGS) == digest(dict(reversed(SETTINGS.items())))
    assert digest(SETTINGS) != digest({**SETTINGS, "tau": 0.31})


def test_environment_names_versions_and_command():
    found = environment(["ovss-refine", "evaluate"])
    assert found["command"] == ["ovss-refine", "evaluate"]
    assert {"ovss-refine", "torch", "numpy"} <= set(found["versions"])
    assert found == plain(found)
