"""Names in any script: drawn, or numbered with a warning; never silently as boxes."""

import warnings

import pytest
from PIL import ImageFont

from ovss_refine.images import fonts as _fonts
from ovss_refine.images.fonts import default, fitting, has, writable

CAT = "\u732b"  # in Chinese and Japanese; no default font has it


def test_latin_needs_no_other_font():
    assert writable("traffic light", 14) == ("traffic light", default(14))
    assert writable(" two\n lines ", 14)[0] == "two lines"


def test_a_missing_letter_is_detected():
    assert has(default(14), "a")
    assert has(default(14), " ")
    assert not has(default(14), CAT)


def test_a_system_font_is_used_if_it_has_the_letters(monkeypatch):
    wanted = object()
    monkeypatch.setattr(_fonts, "_system", lambda name, px: wanted if "CJK" in name else None)
    monkeypatch.setattr(_fonts, "has", lambda font, letter: font is wanted or letter < "\u0100")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert writable(f"cat {CAT}", 14) == (f"cat {CAT}", wanted)
        assert writable("cat", 14) == ("cat", default(14))


def test_without_any_font_letters_are_numbered_with_a_warning(monkeypatch):
    monkeypatch.setattr(_fonts, "_system", lambda name, px: None)
    with pytest.warns(UserWarning, match=r"no font .* for '.*'; .* as 'cat \[U\+732B\]'"):
        text, font = writable(f"cat {CAT}", 14)
    assert (text, font) == ("cat [U+732B]", default(14))


def test_fonts_of_this_system_are_found_by_name():
    try:
        there = ImageFont.truetype("DejaVuSans.ttf", 14)
    except OSError:
        pytest.skip("the system has no DejaVu Sans")
    text, font = writable("\u0436\u0443\u043a", 14)  # a beetle, in Russian
    assert text == "\u0436\u0443\u043a"
    assert font.getname() == there.getname()


def test_long_texts_are_truncated_to_the_width():
    text, font = fitting("w" * 100, 14, 90)
    assert text.endswith("...")
    assert 70 < font.getlength(text) <= 90
    assert fitting("short", 14, 90)[0] == "short"
    assert fitting("short", 14, 3)[0] == ""


@pytest.mark.parametrize("letters", [1_000, 100_000])
def test_a_long_text_is_measured_a_few_times(letters, monkeypatch):
    measured = []
    text, font = fitting("word " * (letters // 5), 14, 200)
    assert text.endswith("...")
    assert font.getlength(text) <= 200 < font.getlength(text[:-3] + "wo...")

    class Counted:
        def getlength(self, text):
            measured.append(len(text))
            return font.getlength(text)

    def writable(text, px):
        assert len(text) <= 501  # every letter is looked up in a font
        return text, Counted()

    monkeypatch.setattr("ovss_refine.images.fonts.writable", writable)
    assert fitting("word " * (letters // 5), 14, 200)[0] == text
    assert len(measured) <= 10
    assert max(measured) <= 504


def test_a_text_for_which_there_is_no_room_is_left_out():
    assert fitting("cat", 14, 2)[0] == ""
