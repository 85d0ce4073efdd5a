"""What the server keeps for each visitor, and for how long."""

import stat

from ovss_refine.app.session import Result, Sessions


def test_each_session_has_an_unguessable_private_folder(tmp_path):
    sessions = Sessions(tmp_path)
    one, two = sessions.of("one"), sessions.of("two")
    assert sessions.of("one") is one
    assert one.folder != two.folder
    assert len(one.folder.name) == 32
    assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700
    assert "one" not in one.folder.name


def test_folder_names_do_not_depend_on_keys(tmp_path):
    assert Sessions(tmp_path).of("one").folder != Sessions(tmp_path).of("one").folder


def test_dropping_a_session_removes_its_files(tmp_path):
    sessions = Sessions(tmp_path)
    folder = sessions.of("one").folder
    (folder / "x.png").write_bytes(b"x")
    other = sessions.of("two").folder
    sessions.drop("one")
    sessions.drop("one")  # ignored
    assert not folder.exists()
    assert other.exists()
    assert sessions.of("one").folder != folder


def test_the_longest_idle_session_makes_room(tmp_path):
    sessions = Sessions(tmp_path, capacity=2)
    one, two = sessions.of("one"), sessions.of("two")
    one.image = "kept"
    sessions.of("one")
    sessions.of("three")
    assert sessions.of("one") is one
    assert not two.folder.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_forgetting_a_result_removes_its_files(tmp_path):
    session = Sessions(tmp_path).of("one")
    session.image = object()
    session.last = Result(session.image, None, "")
    (session.folder / "x.png").write_bytes(b"x")
    assert session.result is session.last
    session.forget_result()
    assert session.result is None
    assert list(session.folder.iterdir()) == []


def test_a_result_belongs_to_its_image(tmp_path):
    session = Sessions(tmp_path).of("one")
    session.image = object()
    session.last = Result(session.image, None, "")
    session.image = object()
    assert session.result is None
