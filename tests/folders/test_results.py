"""Which folders may be used for results, their manifest, and what an empty run leaves behind."""

import json

import pytest

from ovss_refine.folders.manifest import plain
from ovss_refine.folders.records import Records, encode, read_all
from ovss_refine.folders.results import ResultsFolder, check_writable, prepare_folder

SETTINGS = {"mode": "kl", "rows": ("a", "b"), "limit": None, "tau": 0.3}
RECORD = {"id": "x"}


def start(path, settings=SETTINGS, started=None, finish=True, **more):
    """Start a run that finishes an image."""
    folder = ResultsFolder(path, settings, started, **more)
    if finish:
        folder.records.append(RECORD)
    folder.close()


def names(path):
    return sorted(one.name for one in path.iterdir())


def manifest(path, name="manifest.json"):
    return json.loads((path / name).read_text())


def test_every_start_is_kept(tmp_path):
    out = tmp_path / "new" / "folder"
    start(out, started={"root": "first"})
    start(out, started={"root": "second"})
    assert manifest(out)["settings"] == plain(SETTINGS)
    starts = manifest(out)["starts"]
    assert [one["root"] for one in starts] == ["first", "second"]
    assert starts[0]["versions"]["torch"]
    assert len(list(read_all(out))) == 2


def test_other_settings_are_refused_by_name(tmp_path):
    start(tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = {**SETTINGS, "tau": 0.5, "rows": ("a",), "more": 1}
    with pytest.raises(ValueError, match="must be a folder of the same settings") as err:
        start(tmp_path / "out", other)
    assert "rows was ['a', 'b'], is ['a']; tau was 0.3, is 0.5; more was absent, is 1." in str(
        err.value
    )
    assert "mode" not in str(err.value)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    start(tmp_path / "out")  # it is unlocked


def test_a_removed_setting_is_a_difference_unless_it_was_none(tmp_path):
    start(tmp_path / "out")
    fewer = {key: value for key, value in SETTINGS.items() if key != "mode"}
    with pytest.raises(ValueError, match=r"mode was 'kl', is absent\. Take another folder\.$"):
        start(tmp_path / "out", fewer)
    start(tmp_path / "out", {key: value for key, value in SETTINGS.items() if key != "limit"})
    assert len(list(read_all(tmp_path / "out"))) == 2


def test_other_settings_are_refused_from_the_first_record_on(tmp_path):
    folder = ResultsFolder(tmp_path, SETTINGS, {"root": "killed"})
    folder.records.close()  # a kill does no more
    start(tmp_path, SETTINGS | {"tau": 0.5}, {"root": "other"})
    assert [one["root"] for one in manifest(tmp_path)["starts"]] == ["other"]
    with pytest.raises(ValueError, match=r"tau was 0\.5, is 0\.3"):
        start(tmp_path)


def test_records_of_any_process_fix_the_settings(tmp_path):
    folder = ResultsFolder(tmp_path, SETTINGS)
    other = Records(tmp_path, rank=1)
    other.append(RECORD)
    other.close()
    folder.close()
    with pytest.raises(ValueError, match=r"tau was 0\.3, is 0\.5"):
        start(tmp_path, SETTINGS | {"tau": 0.5})


def test_overwriting_discards_results_of_other_settings_only(tmp_path):
    start(tmp_path / "out", overwrite=True)
    start(tmp_path / "out", overwrite=True)
    assert len(list(read_all(tmp_path / "out"))) == 2
    other = SETTINGS | {"tau": 0.5}
    with pytest.raises(ValueError, match=r"is 0\.5\. Take another folder, or pass --overwrite\.$"):
        start(tmp_path / "out", other, overwrite=False)
    start(tmp_path / "out", other, overwrite=True)
    assert len(list(read_all(tmp_path / "out"))) == 1
    assert manifest(tmp_path / "out")["settings"] == plain(other)
    assert len(manifest(tmp_path / "out")["starts"]) == 1


def test_folders_with_other_files_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match=r"`out` must be a folder; `.*file` is a file"):
        start(tmp_path / "file")
    says = r"a new or empty folder, or one with `manifest\.json`; `.*` has 'file'\. Take another"
    with pytest.raises(FileExistsError, match=says + r" folder\.$"):
        start(tmp_path)
    with pytest.raises(FileExistsError, match=says + r" folder, or pass --overwrite to write am"):
        start(tmp_path, overwrite=False)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"json` must be the manifest of a .*; it is damaged"):
        start(tmp_path)
    assert names(tmp_path) == ["file", "manifest.json"]
    assert (tmp_path / "manifest.json").read_text() == "{}"
    start(tmp_path, overwrite=True)
    assert manifest(tmp_path)["settings"] == plain(SETTINGS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").touch()  # of the system, not the user's
    start(tmp_path / "empty")


def test_a_kill_before_the_manifest_is_written_does_no_harm(tmp_path):
    Records(tmp_path).close()
    start(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match=r"has 'records\.0\.jsonl'"):
        start(tmp_path)  # whose results these are is unknown


@pytest.mark.parametrize("before", [(), ("a",), ("a", "a/b"), ("a", "a/b", "a/b/.hidden")])
def test_an_empty_run_leaves_nothing(tmp_path, before):
    for name in before:
        (tmp_path / name).mkdir()
    start(tmp_path / "a" / "b", finish=False)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == set(before)


def test_an_empty_run_leaves_what_is_not_its_own(tmp_path):
    start(tmp_path)
    start(tmp_path, finish=False)
    assert len(list(read_all(tmp_path))) == 1
    assert len(manifest(tmp_path)["starts"]) == 2
    (tmp_path / "records.0.jsonl").write_text("")
    (tmp_path / "x_labels.png").touch()
    start(tmp_path, finish=False)
    assert (tmp_path / "manifest.json").exists()


def test_one_run_at_a_time(tmp_path):
    folder = ResultsFolder(tmp_path, SETTINGS)
    before = manifest(tmp_path)
    with pytest.raises(BlockingIOError, match="must be written by one run at a time"):
        ResultsFolder(tmp_path, SETTINGS | {"tau": 0.5})
    assert manifest(tmp_path) == before
    folder.close()


# Written by the first version of `segment`, which kept the last start alone.
SEGMENT_JSON = b"""{
 "settings": {
  "mode": "kl",
  "rows": [
   "a",
   "b"
  ],
  "limit": null,
  "tau": 0.3
 },
 "started": {
  "command": [
   "ovss-refine"
  ],
  "processes": 1
 }
}
"""
MANIFEST_JSON = SEGMENT_JSON.replace(b'"started": {', b'"starts": [{').replace(b" }\n}", b" }]\n}")
LINE = b'89537ebc {"id":"x"}\n'


@pytest.mark.parametrize(
    ("name", "content"), [("segment.json", SEGMENT_JSON), ("manifest.json", MANIFEST_JSON)]
)
@pytest.mark.parametrize("torn", [b"", LINE[:12]])
def test_an_older_folder_is_resumed(tmp_path, name, content, torn):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "records.0.jsonl").write_bytes(LINE + torn)
    with pytest.raises(ValueError, match=r"tau was 0\.3, is 0\.5"):
        start(tmp_path, SETTINGS | {"tau": 0.5}, manifest=name)
    folder = ResultsFolder(tmp_path, SETTINGS, manifest=name)
    folder.records.append({"id": "y"})
    folder.close()
    assert [record["id"] for record in read_all(tmp_path)] == ["x", "y"]
    first, second = manifest(tmp_path, name)["starts"]
    assert first == {"command": ["ovss-refine"], "processes": 1}
    assert second["versions"]["torch"]


def test_the_line_above_has_the_current_format():
    assert encode(RECORD) == LINE


@pytest.mark.parametrize("path", ["file", "file/below/it", "/proc/self/nowhere"])
def test_unwritable_folders_are_reported_at_once(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="`csv` must be a folder"):
        check_writable(tmp_path / path, "csv")
    with pytest.raises(OSError, match="`out` must be a folder"):
        prepare_folder(tmp_path / path, [], overwrite=True)
    check_writable(tmp_path / "new" / "folder")
    assert names(tmp_path) == ["file"]


def test_existing_files_are_replaced_on_request_only(tmp_path):
    out = tmp_path / "out"
    prepare_folder(out, [out / "a", out / "b"], overwrite=False)
    (out / "b").touch()
    says = r"`.*b` exists \(1 of 2 results do\); pass --overwrite to replace them, or take another"
    with pytest.raises(FileExistsError, match=says):
        prepare_folder(out, [out / "a", out / "b"], overwrite=False)
    prepare_folder(out, [out / "a", out / "b"], overwrite=True)
    assert names(out) == ["b"]


DAMAGED = {"nested": b"[" * 200_000, "digits": b"9" * 5000, "list": b"[]", "not UTF-8": b"\xff"}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, kind):
    (tmp_path / "manifest.json").write_bytes(DAMAGED[kind])
    with pytest.raises(ValueError, match=r"must be the manifest of a .*; it is damaged"):
        start(tmp_path)
