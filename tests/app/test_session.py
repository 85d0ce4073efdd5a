"""What the server keeps for each visitor, and for how long."""

import stat
from types import SimpleNamespace

import numpy as np

from ovss_refine.app.session import MAX_IDLE_S, Result, Sessions
from ovss_refine.app.uploads import NamedImage


def test_each_session_has_an_unguessable_private_folder(tmp_path):
    sessions = Sessions(tmp_path)
    one, two = sessions.create("one"), sessions.create("two")
    assert sessions.create("one") is one
    assert one.folder != two.folder
    assert len(one.folder.name) == 32
    assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700
    assert "one" not in one.folder.name


def test_folder_names_do_not_depend_on_keys(tmp_path):
    assert Sessions(tmp_path).create("one").folder != Sessions(tmp_path).create("one").folder


def test_dropping_a_session_removes_its_files(tmp_path):
    sessions = Sessions(tmp_path)
    folder = sessions.create("one").folder
    (folder / "x.png").write_bytes(b"x")
    other = sessions.create("two").folder
    sessions.drop("one")
    sessions.drop("one")  # ignored
    assert not folder.exists()
    assert other.exists()
    assert sessions.create("one").folder != folder


def test_the_longest_idle_session_makes_room(tmp_path):
    sessions = Sessions(tmp_path, capacity=2)
    one, two = sessions.create("one"), sessions.create("two")
    sessions.find("one")
    sessions.create("three")
    assert sessions.create("one") is one
    assert not two.folder.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_looking_for_a_session_creates_none(tmp_path):
    sessions = Sessions(tmp_path, capacity=1)
    one = sessions.create("one")
    assert sessions.find("two") is None
    assert "two" not in sessions
    assert sessions.find("one") is one
    assert list(tmp_path.iterdir()) == [one.folder]


def test_idle_sessions_expire(tmp_path):
    now = [0.0]
    sessions = Sessions(tmp_path, clock=lambda: now[0])
    sessions.create("one")
    two = sessions.create("two")
    now[0] = MAX_IDLE_S
    sessions.find("two")
    now[0] += 1
    sessions.tidy()
    assert "one" not in sessions
    assert list(tmp_path.iterdir()) == [two.folder]


IMAGE_BYTES, RESULT_BYTES, FILE_BYTES = 300, 5000, 700


def filled(sessions, key, *, result=True):
    """A session with an image, and perhaps a result that costs 19 times as much."""
    session = sessions.create(key)
    session.image = NamedImage(key, np.zeros((10, 10, 3), np.uint8))
    if result:
        tensor = SimpleNamespace(nbytes=RESULT_BYTES)
        empty = SimpleNamespace(nbytes=0)
        made = SimpleNamespace(
            image=empty,
            labels=tensor,
            discrepancy=empty,
            baseline=None,
            attention=None,
            logits=None,
        )
        session.last = Result(session.image, made)
        (session.folder / "x.png").write_bytes(bytes(FILE_BYTES))
    return session


def test_a_session_costs_its_memory_and_its_files(tmp_path):
    sessions = Sessions(tmp_path)
    assert sessions.create("none").nbytes == 0
    assert filled(sessions, "one", result=False).nbytes == IMAGE_BYTES
    assert filled(sessions, "two").nbytes == IMAGE_BYTES + RESULT_BYTES + FILE_BYTES


def test_the_kept_logits_count_too(tmp_path):
    session = filled(Sessions(tmp_path), "one")
    session.last.made.logits = SimpleNamespace(values=SimpleNamespace(nbytes=40))
    assert session.nbytes == IMAGE_BYTES + RESULT_BYTES + FILE_BYTES + 40


def test_results_make_room_before_images_do(tmp_path):
    """Those who wait keep their images; the page used last keeps all."""
    sessions = Sessions(tmp_path, max_bytes=8000)
    one, waiting, three = (filled(sessions, key, result=key != "b") for key in "abc")
    sessions.tidy()
    assert one.result is None
    assert one.image is not None
    assert list(one.folder.iterdir()) == []
    assert sessions.find("b") is waiting
    assert three.result is not None
    sessions.max_bytes = 6400
    sessions.find("c")
    sessions.tidy()
    assert "a" not in sessions
    assert "b" in sessions
    assert three.result is not None
    sessions.max_bytes = 1
    sessions.find("c")
    sessions.tidy()
    assert [key for key in "abc" if key in sessions] == ["c"]
    assert three.result is not None


def test_folders_of_sessions_that_ended_while_they_were_written_are_removed(tmp_path):
    sessions = Sessions(tmp_path)
    one = sessions.create("one")
    sessions.drop("one")
    one.folder.mkdir()
    (one.folder / "late.png").write_bytes(b"x")
    (tmp_path / "other").mkdir()
    sessions.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_forgetting_a_result_removes_its_files(tmp_path):
    session = Sessions(tmp_path).create("one")
    session.image = object()
    session.last = Result(session.image, None)
    (session.folder / "x.png").write_bytes(b"x")
    assert session.result is session.last
    session.forget_result()
    assert session.result is None
    assert list(session.folder.iterdir()) == []


def test_a_result_belongs_to_its_image(tmp_path):
    session = Sessions(tmp_path).create("one")
    session.image = object()
    session.last = Result(session.image, None)
    session.image = object()
    assert session.result is None


def test_an_event_of_a_page_that_was_closed_keeps_no_session(tmp_path, monkeypatch):
    sessions = Sessions(tmp_path)
    for key in ("one", "two"):
        sessions.arrived(key)
    sessions.left("one")
    sessions.create("one")  # its first event was still waiting
    sessions.create("two")
    sessions.tidy()
    assert "one" not in sessions
    assert "two" in sessions
    sessions.arrived("one")  # a page that has a connection again
    sessions.create("one")
    sessions.arrived("two")
    sessions.left("two")  # the end of its first connection comes after the start of the second
    sessions.create("two")
    sessions.tidy()
    assert "one" in sessions
    assert "two" in sessions
    monkeypatch.setattr("ovss_refine.app.session.REMEMBERED", 3)
    for n in range(9):
        sessions.left(f"unknown {n}")
    assert len(sessions._left) == 3
    assert {*sessions._open} == {"one", "two"}
