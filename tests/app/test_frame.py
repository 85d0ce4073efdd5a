"""The page in a frame of another site, which only the site that shows Spaces may make."""

import time

import pytest

from app.conftest import serving

pytest.importorskip("playwright", reason="playwright is not installed ([browser])")

SPACES, OTHER = "https://huggingface.co/", "https://frames.example/"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The page as a Space serves it."""
    with serving(tmp_path_factory.mktemp("space"), SPACE_ID="user/space") as found:
        yield found


@pytest.fixture
def framed(chromium):
    """Open a page of a site that frames an address; return the frame and what went wrong."""
    contexts = []

    def show(site, address):
        # The sites are made up here and the page is local, for which the browser would ask.
        context = chromium.new_context(permissions=["local-network-access"])
        contexts.append(context)
        page, problems = context.new_page(), []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        html = f'<iframe src="{address}" width="1200" height="800"></iframe>'
        page.route(f"{site}*", lambda route: route.fulfill(body=html, content_type="text/html"))
        page.goto(site)
        return page, problems

    yield show
    for context in contexts:
        context.close()


def test_a_space_works_in_a_frame_of_its_host(framed, space):
    page, problems = framed(SPACES, space.address)
    frame = page.frame_locator("iframe")
    frame.locator("#status").get_by_text("astronaut").wait_for()
    frame.get_by_role("button", name="A cup of coffee").click()
    frame.locator("#status").get_by_text("coffee, 512 x 341").wait_for()
    assert problems == []


@pytest.mark.parametrize(
    ("site", "as_space"), [(SPACES, False), (OTHER, False), (OTHER, True), ("port", True)]
)
def test_other_frames_are_refused(site, as_space, framed, space, server):
    address = (space if as_space else server).address
    site = server.address.replace("127.0.0.1", "localhost") if site == "port" else site
    page, problems = framed(site, address)
    limit = time.monotonic() + 20
    while not problems:
        assert time.monotonic() < limit
        page.wait_for_timeout(50)
    assert any("frame-ancestors" in text for text in problems), problems
    assert not page.frames[1].url.startswith("http")
