"""Sources by name, and imports that say how to install."""

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from ovss_refine import list_attention, list_logits, load_attention, load_logits, registry
from ovss_refine.registry import find, require
from ovss_refine.sources import listing


class Source:
    def __init__(self, size=1):
        self.size = size

    def attention(self, images):
        raise NotImplementedError

    def logits(self, images):
        raise NotImplementedError


@pytest.fixture
def third_party(monkeypatch):
    """A package that registers `mine` in both groups, and states facts about one of them."""
    package = types.ModuleType("their_package")
    package.Source = Source
    about = types.ModuleType("their_package.about")
    facts = ("their/weights", "Their-1.0", "2 M", "8 MB", "numpy, no_such_library")
    about.ABOUT = {"attention": {"mine": dict(zip(listing.COLUMNS, facts, strict=True))}}
    monkeypatch.setitem(sys.modules, "their_package", package)
    monkeypatch.setitem(sys.modules, "their_package.about", about)

    def points(group):
        return [
            EntryPoint(name, "their_package:Source", group) for name in ("mine", "yours", "ours")
        ]

    monkeypatch.setattr(registry, "entry_points", points)


@pytest.mark.usefixtures("third_party")
def test_third_party_sources_are_found_and_made():
    assert list_attention() == list_logits() == ["mine", "ours", "yours"]
    for load in (load_attention, load_logits):
        assert isinstance(load("mine"), Source)
        assert load("mine", size=3).size == 3
        with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
            load("mine", sise=3)


@pytest.mark.usefixtures("third_party")
def test_an_unknown_name_lists_the_known_ones():
    says = (
        r"`attention` must be one of \['mine', 'ours', 'yours'\]; got 'your'. Did you mean 'yours'"
    )
    with pytest.raises(ValueError, match=says):
        find("attention", "your")
    with pytest.raises(ValueError, match=r"`logits` must be one of .* got 'zzz'.$"):
        load_logits("zzz")


@pytest.mark.usefixtures("third_party")
def test_the_list_shows_the_facts_of_a_third_party():
    lines = listing.list_sources().splitlines()
    assert lines[0].split() == ["attention", *listing.COLUMNS]
    mine = "mine       their/weights  Their-1.0   2 M         8 MB        "
    assert lines[1] == mine + "numpy, no_such_library (missing: no_such_library)"
    assert lines[2].split("  ")[0] == "ours"
    assert lines[2].count("not stated") == 5
    assert lines[5].split() == ["logits", *listing.COLUMNS]
    assert lines[6].count("not stated") == 5  # stated for attention, not for logits


def test_a_package_without_facts_is_listed_too(monkeypatch):
    point = EntryPoint("mine", "no_such_package:Source", "ovss_refine.attention")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert listing.list_sources().splitlines()[1].count("not stated") == 5


def test_an_import_error_in_about_is_raised(monkeypatch, tmp_path):
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "__init__.py").write_text("")
    (tmp_path / "broken_package" / "about.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("mine", "broken_package:Source", "ovss_refine.attention")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        listing.list_sources()


def test_require_says_how_to_install(monkeypatch, tmp_path):
    assert require("json", "models").dumps({}) == "{}"
    with pytest.raises(ModuleNotFoundError, match=r"is not installed; .*'ovss-refine\[models\]'`"):
        require("no_such_library", "models")
    (tmp_path / "half_there.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_library'"):
        require("half_there", "models")
