"""The page in a real browser, as people use it."""

import io
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from ovss_refine.app.choices import HYPERPARAMETERS

pytest.importorskip("gradio", reason="gradio is not installed ([app])")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

REFUSED = 403


def disc_png(size=(320, 240), seed=0):
    """A PNG of a red disc on green, with some noise."""
    W, H = size
    pixels = np.random.default_rng(seed).integers(0, 20, (H, W, 3), dtype=np.uint8)
    y, x = np.mgrid[:H, :W]
    disc = (x - W / 2) ** 2 + (y - H / 2) ** 2 < (min(H, W) / 3) ** 2
    pixels[..., 0] += 200 * disc.astype(np.uint8)
    pixels[..., 1] += 200 * (~disc).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def blank_png(size):
    """A PNG of any size in a few bytes."""
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def upload(page, content=None, name="holiday.png"):
    file = {"name": name, "mimeType": "image/png", "buffer": content or disc_png()}
    page.locator("#drop input[type=file]").set_input_files(file)


def done(page, text):
    """Wait until the status contains `text`."""
    expect(page.locator("#status")).to_contain_text(text)


def segment(page, labels=None):
    if labels is not None:
        page.locator("#labels textarea").fill(labels)
    page.get_by_role("button", name="Segment", exact=True).click()  # waits until it is enabled


def sources_of(page, where="#result"):
    """The sources of the images in a part of the page."""
    return page.locator(f"{where} img").evaluate_all("images => images.map(i => i.src)")


def layers(page):
    """The sources of baseline and refined result."""
    return [page.locator(f"#result .{kind}").get_attribute("src") for kind in ("before", "after")]


def changed(page, old):
    """Wait until the refined result is no longer `old`."""
    page.wait_for_function("old => document.querySelector('#result .after').src != old", arg=old)


def style_of(page, selector, name):
    return page.locator(selector).evaluate("(e, name) => getComputedStyle(e)[name]", name)


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def test_an_example_is_shown_at_once(visit):
    page = visit()
    done(page, "astronaut, 512 x 512 pixels, 37 x 37 patches, 3 classes")
    expect(page.locator("#status")).to_contain_text(re.compile(r"refinement\s*[\d.]+ s"))
    assert page.locator("#result .photo").get_attribute("src").startswith("data:image/jpeg")
    before, after = layers(page)
    assert before.startswith("data:image/png")
    assert before != after
    expect(page.get_by_role("row", name=re.compile("person"))).to_be_visible()
    expect(page.locator("#labels")).to_be_hidden()
    expect(page.locator("#fixed")).to_contain_text("3 classes: person, wall, other")


def test_another_example_and_another_mode(visit):
    page = visit()
    done(page, "astronaut")
    page.get_by_role("button", name="coffee").click()
    done(page, "coffee, 512 x 341")
    expect(page.get_by_role("row", name=re.compile("cup"))).to_be_visible()
    first = layers(page)
    page.get_by_label("Refinement").click()
    page.get_by_role("option", name="Optimal path").click()
    changed(page, first[1])  # nothing was pressed
    assert layers(page)[0] == first[0]  # the baseline is the same
    expect(page.locator("#status")).to_contain_text("refinement")
    expect(page.locator("#status")).not_to_contain_text("logits")
    page.get_by_role("button", name="Hyperparameters").click()
    expect(page.locator("#epsilon")).to_be_visible()
    expect(page.locator("#tau")).to_be_hidden()
    segment(page)
    done(page, re.compile(r"logits\s*[\d.]+ s"))


def test_an_upload_with_my_labels(visit):
    page = visit()
    done(page, "astronaut")
    upload(page)
    done(page, "holiday, 320 x 240 pixels, is loaded")
    expect(page.locator("#result img")).to_have_count(1)
    expect(page.locator("#about")).to_contain_text("The first run loads kk-mean (0.6 GB)")
    segment(page, "fire, grass/lawn, background: sea/sky")
    done(page, "holiday, 320 x 240 pixels, 16 x 12 patches, 3 classes")
    for name in ("fire", "grass"):
        expect(page.get_by_role("rowheader", name=name)).to_be_visible()
    before, after = layers(page)
    assert before != after
    expect(page.locator("#about")).to_contain_text("Loaded: no further downloads")
    tab(page, "Maps")
    expect(page.get_by_alt_text(re.compile("^Map of fire"))).to_be_visible()


def slider(page, name):
    return page.locator(f"#{name} input[type=range]")


def number(page, name):
    return page.locator(f"#{name} input[type=number]")


def test_a_moved_slider_a_typed_number_and_a_reset_change_the_result(visit):
    page = visit()
    done(page, "astronaut")
    page.get_by_role("button", name="Hyperparameters").click()
    _, first = layers(page)
    slider(page, "tau").focus()
    for _ in range(5):
        slider(page, "tau").press("ArrowRight")
    changed(page, first)
    expect(page.locator("#status")).not_to_contain_text("baseline")
    tab(page, "Files")
    expect(page.locator("#file-all")).to_be_enabled()  # written anew
    tab(page, "Result")
    _, second = layers(page)
    number(page, "tau").fill("")
    expect(page.locator("#stale")).to_contain_text("Reach must be a number from 0.05 to 0.95.")
    assert float(style_of(page, ".stack", "opacity")) < 0.5
    number(page, "tau").fill("0.05")
    changed(page, second)
    expect(page.locator("#stale")).to_have_text("")
    expect(page.locator(".stack")).to_have_css("opacity", "1")
    page.locator("#tau").get_by_role("button", name="Reset").click()
    page.wait_for_function("old => document.querySelector('#result .after').src == old", arg=first)


def test_the_border_moves_by_slider_keyboard_and_on_the_image(visit):
    page = visit()
    done(page, "astronaut")
    border = page.get_by_label("Baseline or refined")
    assert style_of(page, ".stack .after", "clipPath") == "inset(0px 0px 0px 50%)"
    border.fill("20")
    assert style_of(page, ".stack .after", "clipPath") == "inset(0px 0px 0px 20%)"
    assert style_of(page, ".stack .before", "clipPath") == "inset(0px 80% 0px 0px)"
    border.press("ArrowRight")
    assert style_of(page, ".stack .after", "clipPath") == "inset(0px 0px 0px 21%)"
    box = page.locator(".stack").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60)
    page.mouse.up()
    assert border.input_value() == "75"
    page.get_by_label("Opacity").fill("10")
    assert style_of(page, ".stack .after", "opacity") == "0.1"
    page.get_by_label("Refinement").click()  # and they stay where they are
    page.get_by_role("option", name="KL").click()
    done(page, "refinement")
    expect(page.locator("#status")).not_to_contain_text("baseline")
    assert style_of(page, ".stack .after", "clipPath") == "inset(0px 0px 0px 75%)"
    assert style_of(page, ".stack .after", "opacity") == "0.1"


def test_the_pixel_under_the_pointer_is_described(visit):
    page = visit()
    done(page, "astronaut")
    expect(page.locator("#under")).to_contain_text("Point at the image")
    upload(page)
    done(page, "holiday")
    segment(page, "fire, grass/lawn")
    done(page, "2 classes")
    box = page.locator(".stack").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#under")).to_have_text(
        # The disc is 209 of 255 red, no green but noise: 8 * (0.82 - 0.04) in favour of fire.
        re.compile(r"^Refined: fire, confidence 100%\. Baseline: fire, confidence 100%\.$")
    )
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    expect(page.locator("#under")).to_contain_text("Refined: grass, confidence")
    page.mouse.move(1, 1)
    page.get_by_role("tab", name="Result").hover()
    expect(page.locator("#under")).to_contain_text("Point at the image")


def test_results_for_other_labels_are_marked_until_segment_is_pressed(visit):
    page = visit()
    done(page, "astronaut")
    upload(page)
    done(page, "holiday")
    segment(page, "fire, grass")
    done(page, "2 classes")
    expect(page.locator("#stale")).to_have_text("")
    page.locator("#labels textarea").fill("fire, grass, sea")
    expect(page.locator("#stale")).to_contain_text("Out of date")
    assert float(style_of(page, ".stack", "opacity")) < 0.5
    segment(page)
    done(page, "3 classes")
    expect(page.locator("#stale")).to_have_text("")
    expect(page.locator(".stack")).to_have_css("opacity", "1")


def test_a_photograph_of_24_megapixels_is_scaled_down(visit):
    page = visit()
    done(page, "astronaut")
    upload(page, blank_png((6000, 4000)), "large.png")
    done(page, "large, 670 x 447 pixels, is loaded. It was scaled down from 6000 x 4000 pixels")
    segment(page, "fire, grass")
    done(page, "large, 670 x 447 pixels, 16 x 12 patches, 2 classes")


def test_a_thousand_labels(visit):
    page = visit()
    done(page, "astronaut")
    upload(page)
    done(page, "holiday")
    segment(page, ", ".join(f"thing {n}" for n in range(1000)))
    done(page, "1000 classes")
    box = page.locator(".stack").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#under")).to_contain_text(re.compile(r"Refined: thing \d+, confidence"))
    page.get_by_label("Refinement").click()
    page.get_by_role("option", name="Propagation").click()
    expect(page.locator("#status")).not_to_contain_text("baseline")
    done(page, "1000 classes")
    tab(page, "Maps")
    expect(page.locator("#maps")).to_contain_text("No patch is sure of: thing")
    assert 1 <= page.locator("#maps img").count() <= 48


def test_maps_can_be_read_and_have_a_colour_bar(visit):
    for width, least in ((1280, 320), (390, 300)):
        page = visit(width, 844)
        done(page, "astronaut")
        tab(page, "Maps")
        expect(page.get_by_role("img", name=re.compile("^Colours from"))).to_be_visible()
        assert page.locator("#maps img").first.bounding_box()["width"] >= least


def test_two_visitors_change_settings_at_once(visit):
    one, two = visit(), visit()
    for page, name in ((one, "A cup of coffee"), (two, "A raccoon")):
        done(page, "astronaut")
        page.get_by_role("button", name=name).click()
    done(one, "coffee")
    done(two, "raccoon")
    first = [layers(page) for page in (one, two)]
    for page in (one, two):
        page.get_by_role("button", name="Hyperparameters").click()
        slider(page, "sigma-range").focus()
    for _ in range(4):
        for page in (one, two):
            slider(page, "sigma-range").press("ArrowRight")
    for page, (before, after) in zip((one, two), first, strict=True):
        changed(page, after)
        assert layers(page)[0] == before
    done(one, "coffee")
    done(two, "raccoon")


def test_a_bad_file_is_explained(visit):
    page = visit()
    done(page, "astronaut")
    for content, message in (
        (b"not an image", "broken.png must be a readable image"),
        (disc_png()[:5000], "broken.png must be a readable image; got image file is truncated"),
        (blank_png((8000, 7000)), "at most 50,000,000 pixels; got 8000 x 7000"),
    ):
        upload(page, content, "broken.png")
        expect(page.get_by_role("alert")).to_contain_text(message)
    upload(page)  # and the next is accepted
    done(page, "holiday, 320 x 240")


def test_too_many_bytes_are_not_sent(visit):
    page = visit()
    done(page, "astronaut")
    upload(page, blank_png((9, 9)) + bytes(400_000), "large.png")
    expect(page.get_by_text("exceed the maximum allowed size")).to_be_visible()


def test_bad_labels_are_explained(visit):
    page = visit()
    done(page, "astronaut")
    upload(page)
    done(page, "holiday")
    for labels, message in (
        ("cat, dog, Cat", "got 'Cat' twice"),
        ("cat,, dog", "Check for a comma at"),
        ("dog: puppy/", "no empty prompt; got one in 'dog'"),
    ):
        segment(page, labels)
        expect(page.get_by_role("alert")).to_contain_text(message)


def test_unavailable_weights_are_explained(visit):
    page = visit()
    done(page, "astronaut")
    page.get_by_label("Models, with my labels").check()
    page.get_by_label("Logits from").click()
    page.get_by_role("option", name="clip", exact=True).click()
    segment(page, "cat")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("weights of a model are missing on the server")
    expect(alert.get_by_text("tiny/clip must be available")).to_be_hidden()
    alert.get_by_text("For whoever runs this page").click()
    expect(alert.get_by_text("tiny/clip must be available")).to_be_visible()


def test_a_clicked_patch_shows_its_attention(visit):
    page = visit()
    done(page, "astronaut")
    tab(page, "Attention")
    expect(page.locator("#patch img")).to_be_visible()
    (first,) = sources_of(page, "#patch")
    photo = page.locator("#photo img")
    # Before it is decoded it has another size, and the place to click lies beside it.
    page.wait_for_function("document.querySelector('#photo img')?.naturalWidth > 0")
    box = photo.bounding_box()
    photo.click(position={"x": box["width"] * 0.05, "y": box["height"] * 0.95})
    expect(page.locator("#patch")).to_contain_text("column 2, row 36")
    (second,) = sources_of(page, "#patch")
    assert first != second
    # The same from the keyboard.
    slider = page.get_by_role("slider", name=re.compile("Patch column"))
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator("#patch")).to_contain_text("column 3, row 36")


def fetch(page, name):
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name).click()
    path = waiting.value.path()
    return waiting.value.suggested_filename, path.read_bytes()


def test_downloads(visit):
    page = visit()
    done(page, "astronaut")
    upload(page)
    done(page, "holiday")
    segment(page, "fire, grass")
    done(page, "2 classes")
    tab(page, "Files")
    expect(page.locator("#file-all")).to_be_enabled()
    name, content = fetch(page, "Label map")
    assert name == "holiday_labels.png"
    with Image.open(io.BytesIO(content)) as labels:
        assert (labels.mode, labels.size) == ("P", (320, 240))
        assert set(np.unique(labels)) == {0, 1}
    name, content = fetch(page, "Masks")
    assert name == "holiday_rle.json"
    assert [entry["category"] for entry in json.loads(content)] == ["fire", "grass"]
    name, content = fetch(page, "All files")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {"holiday_labels.png", "holiday_overlay.png"} <= set(archive.namelist())
        assert archive.testzip() is None


def status_of(server, path):
    """Request a file as gradio serves it; return the status."""
    address = f"{server.address}gradio_api/file={urllib.parse.quote(str(path))}"
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_two_visitors_do_not_see_each_other(visit, server):
    one, two = visit(), visit()
    done(one, "astronaut")
    done(two, "astronaut")
    upload(one)
    done(one, "holiday")
    upload(two, disc_png(seed=1, size=(200, 280)), "secret.png")
    done(two, "secret")
    segment(one, "fire, grass")
    segment(two, "poppies, lawn, sea")
    done(one, "holiday, 320 x 240 pixels, 16 x 12 patches, 2 classes")
    done(two, "secret, 200 x 280 pixels, 16 x 12 patches, 3 classes")
    expect(one.get_by_role("rowheader", name="poppies")).to_have_count(0)
    expect(two.get_by_role("rowheader", name="fire")).to_have_count(0)
    tab(one, "Attention")
    expect(one.locator("#photo img")).to_have_js_property("naturalWidth", 320)
    tab(two, "Attention")
    expect(two.locator("#photo img")).to_have_js_property("naturalWidth", 200)


def test_files_are_private_and_removed_when_the_visitor_leaves(visit, server):
    before = set(server.root.glob("*/astronaut_all.zip"))  # of visitors who have just left
    page = visit()
    done(page, "astronaut")
    tab(page, "Files")
    expect(page.locator("#file-all")).to_be_enabled()
    archives = set(server.root.glob("*/astronaut_all.zip")) - before
    (archive,) = [path for path in archives if status_of(server, path) == 200]
    folder = archive.parent
    assert re.fullmatch("[0-9a-f]{32}", folder.name)  # 128 random bits
    guesses = [
        server.root,
        folder,
        server.root / "astronaut_all.zip",
        folder / ".." / "astronaut_all.zip",
        server.root.parent / "log",
        "/etc/passwd",
        __file__,
    ]
    assert [status_of(server, path) for path in guesses] == [REFUSED] * len(guesses)
    page.context.close()
    limit = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert status_of(server, archive) == REFUSED


def test_the_queue_says_how_many_wait(visit, server):
    values = ["maximum_velocity", *(one.default for one in HYPERPARAMETERS)]
    for n in range(6):
        body = {"data": values, "fn_index": 0, "session_hash": f"early{n}"}
        address = f"{server.address}gradio_api/queue/join"
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers))
    page = visit()
    expect(page.locator("#status")).to_contain_text(re.compile(r"queue: \d/\d"))
    done(page, "astronaut")
    expect(page.locator("#status")).not_to_contain_text("queue")


def test_on_a_phone_the_status_scrolls_into_view(visit):
    page = visit(390, 844)
    done(page, "astronaut")
    page.get_by_label("Models, with my labels").check()
    segment(page, "cat, cat")
    expect(page.get_by_role("alert")).to_be_in_viewport()


def test_a_narrow_page_is_one_column(visit):
    page = visit(390, 844)
    done(page, "astronaut")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    viewing, image, legend = boxes(page)
    assert viewing["y"] + viewing["height"] <= image["y"]
    assert image["y"] + image["height"] <= legend["y"]
    assert image["width"] >= 300


def boxes(page):
    """Where the viewer's controls, its image and the legend are."""
    places = ("#viewing", ".stack", "#result .legend")
    return [page.locator(place).bounding_box() for place in places]


def test_a_wide_page_keeps_the_result_in_view_beside_long_controls(visit):
    page = visit()
    done(page, "astronaut")
    viewing, image, _ = boxes(page)
    assert image["y"] + image["height"] <= viewing["y"] + viewing["height"] + 0.85 * 900
    page.get_by_role("button", name="Hyperparameters").click()
    slider(page, "sigma-range").scroll_into_view_if_needed()
    slider(page, "sigma-range").focus()
    expect(page.locator(".stack")).to_be_in_viewport(ratio=0.7)


def test_every_field_has_a_name(visit):
    page = visit()
    done(page, "astronaut")
    page.get_by_label("Models, with my labels").check()
    page.get_by_role("button", name="Hyperparameters").click()
    expect(page.locator("#tau")).to_be_visible()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button, img')].filter(e => {
            if (e.closest('[hidden], .hidden, .hide') || !e.checkVisibility()) return false
            const label = e.labels?.[0]?.innerText || e.ariaLabel || e.innerText || e.alt
                || document.getElementById(e.getAttribute('aria-labelledby'))?.innerText || e.title
            return !label?.trim()
        }).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
