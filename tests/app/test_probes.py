"""What strangers may try on a running page: every route, event, file name, origin and crowd."""

import gc
import io
import itertools
import json
import os
import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed ([app])")
import httpx
from gradio import processing_utils

from app.tiny_page import LIMITS, about, sources
from ovss_refine import registry
from ovss_refine.app import server
from ovss_refine.app.choices import HYPERPARAMETERS
from ovss_refine.app.guard import ROUTES
from ovss_refine.app.leftovers import Leftovers
from ovss_refine.app.request import AppRequest
from ovss_refine.sources import listing

OK, REFUSED = 200, 403
VALUES = ["maximum_velocity", *(one.default for one in HYPERPARAMETERS)]
RUN = ["models", "fire, grass", "kk-mean", "dinov2-b14-reg", *VALUES]
FILE_META = {"_type": "gradio.FileData"}
# TEST-NET-1: a request to it would hang.
URL = "http://192.0.2.1/x.png"

# The routes of gradio that the page uses, and all others; a new one must be put into one of the
# two. The guard serves what its own table names, whatever gradio offers.
SERVED = [
    "/",
    "/config",
    "/static/{path:path}",
    "/assets/{path:path}",
    "/favicon.ico",
    "/robots.txt",
    "/theme.css",
    "/gradio_api/theme.css",
    "/gradio_api/info",
    "/gradio_api/startup-events",
    "/gradio_api/queue/data",
    "/gradio_api/upload_progress",
    "/gradio_api/heartbeat/{session_hash}",
    "/gradio_api/file={path_or_url:path}",
    "/gradio_api/queue/join",
    "/gradio_api/upload",
]
OFF = [
    "/config/",
    "/login",
    "/login/",
    "/logout",
    "/svelte/{path:path}",
    "/manifest.json",
    "/pwa_icon",
    "/pwa_icon/{size}",
    "/monitoring",
    "/monitoring/summary",
    "/monitoring/{key}",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
    "/gradio_api/user",
    "/gradio_api/user/",
    "/gradio_api/login_check",
    "/gradio_api/login_check/",
    "/gradio_api/token",
    "/gradio_api/token/",
    "/gradio_api/app_id",
    "/gradio_api/app_id/",
    "/gradio_api/dev/reload",
    "/gradio_api/runs",
    "/gradio_api/runs/",
    "/gradio_api/run-history/connect",
    "/gradio_api/run-history/buckets",
    "/gradio_api/run-history/records",
    "/gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}",
    "/gradio_api/deep_link",
    "/gradio_api/info/",
    "/gradio_api/openapi.json",
    "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}",
    "/gradio_api/proxy={url_path:path}",
    "/gradio_api/stream/{event_id}",
    "/gradio_api/stream/{event_id}/close",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file",
    "/gradio_api/file/{path:path}",
    "/gradio_api/reset",
    "/gradio_api/reset/",
    "/gradio_api/run/{api_name}",
    "/gradio_api/run/{api_name}/",
    "/gradio_api/api/{api_name}",
    "/gradio_api/api/{api_name}/",
    "/gradio_api/call/v2/{api_name}",
    "/gradio_api/call/v2/{api_name}/",
    "/gradio_api/call/{api_name}",
    "/gradio_api/call/{api_name}/",
    "/gradio_api/cancel",
    "/gradio_api/queue/status",
    "/gradio_api/call/v2/{api_name}/{event_id}",
    "/gradio_api/call/{api_name}/{event_id}",
    "/gradio_api/component_server",
    "/gradio_api/component_server/",
    "/gradio_api/process_recording",
    "/gradio_api/vibe-edit",
    "/gradio_api/vibe-edit/",
    "/gradio_api/undo-vibe-edit",
    "/gradio_api/undo-vibe-edit/",
    "/gradio_api/vibe-code",
    "/gradio_api/vibe-code/",
    "/gradio_api/vibe-starter-queries",
    "/gradio_api/vibe-starter-queries/",
]
NAMES = [one.name.replace("_", "-") for one in HYPERPARAMETERS]
# Two events of several parts: a change of the refinement, and one of the labels or models.
TUNE = ", ".join(
    ["mode input", *(f"{name} {kind}" for name in NAMES for kind in ("input", "release"))]
)
CHECK = "labels change, source input, logits input, attention input"
# The events, as "part event", and how many values each takes.
EVENTS = {
    "load": [8, 2],
    "example-astronaut click": [8],
    "example-coffee click": [8],
    "example-hopper click": [8],
    "example-raccoon click": [8],
    "drop upload": [1],
    "source input": [1],
    "mode input": [1],
    "logits input": [2],
    "attention input": [2],
    "run click": [12],
    "labels submit": [12],
    TUNE: [12],
    CHECK: [12],
    "column input": [2],
    "row input": [2],
    "photo select": [0],
    "then": [12, 0] * 8,  # after each of those that make a result
    "unload": [0],
}


# Gradio leaves event loops and sockets open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def page():
    """The page as `ovss-refine app` serves it, with tiny models, in this process."""
    kept = SimpleNamespace()

    def build(handlers, uploads):
        kept.handlers, kept.sessions, kept.uploads = handlers, handlers.sessions, uploads
        kept.blocks = built(handlers, uploads)
        return kept.blocks

    def watch(*arguments):
        kept.leftovers = Leftovers(*arguments)
        return kept.leftovers

    built, environment = server.build_page, dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", sources)
        patch.setattr(listing, "_about", about)
        patch.setattr(server, "build_page", build)
        patch.setattr(server, "Leftovers", watch)
        with (
            server.running(AppRequest(port=0, device="cpu", **LIMITS)) as kept.address,
            httpx.Client(base_url=kept.address, timeout=60) as kept.client,
        ):
            kept.root = kept.sessions.root
            yield kept
    assert not kept.root.exists()
    os.environ.clear()
    os.environ.update(environment)
    del kept.blocks, kept.handlers, kept.leftovers
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def name_of(blocks, event):
    def one(part, kind):
        alone = kind in ("load", "unload", "then")
        return kind if alone else f"{blocks.blocks[part].elem_id} {kind}"

    return ", ".join(one(*target) for target in event.targets)


def index_of(page, name, n=0):
    found = [i for i, one in page.blocks.fns.items() if name_of(page.blocks, one) == name]
    return found[n]


def join(page, index, values, key, event_data=None):
    body = {"data": values, "fn_index": index, "session_hash": key, "event_data": event_data}
    return page.client.post("/gradio_api/queue/join", json=body)


def stream(page, key):
    """Yield the messages to a visitor."""
    with page.client.stream("GET", f"/gradio_api/queue/data?session_hash={key}") as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                yield message
                if message["msg"] == "close_stream":
                    return


def ends(page, key):
    """The ends of the events that a visitor has started, by their identifiers; and all messages."""
    messages = [*stream(page, key)]
    return {m["event_id"]: m for m in messages if m["msg"] == "process_completed"}, messages


def call(page, name, values, key, n=0):
    """Run one event to its end."""
    event = join(page, index_of(page, name, n), values, key).json()["event_id"]
    done, _ = ends(page, key)
    return done[event]


def png(seed=0, size=(64, 48)):
    W, H = size
    pixels = np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(page, content, name="photo.png", **headers):
    files = {"files": (name, content, "image/png")}
    return page.client.post("/gradio_api/upload", files=files, headers=headers)


def stored(page):
    return [path for path in page.root.rglob("*") if path.is_file()]


def routes(router):
    """All routes, those of included routers too."""
    for route in router.routes:
        if inner := getattr(route, "original_router", None):
            yield from routes(inner)
        else:
            yield route


def test_every_route_of_this_gradio_is_known(page):
    found = {route.path for route in routes(page.blocks.app)}
    assert len(found) > 50
    assert found <= {*SERVED, *OFF}
    assert not {*SERVED} & {*OFF}


def test_no_route_upgrades_to_a_websocket(page):
    assert {type(route).__name__ for route in routes(page.blocks.app)} <= {"APIRoute", "Route"}


def concrete(path):
    return re.sub(r"\{.*?\}", "x", path)


@pytest.mark.parametrize("path", OFF)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
def test_routes_without_a_use_are_off(page, path, method):
    answer = page.client.request(method, concrete(path), content=b"{}")
    assert answer.status_code == REFUSED


@pytest.mark.parametrize("path", SERVED)
def test_routes_in_use_are_in_the_guards_table(path):
    assert any(route.fullmatch(concrete(path)) for route in ROUTES.values())


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api//dev/reload",
        "/gradio_api/dev/reload/",
        "/gradio_api/%64ev/reload",
        "/gradio_api/queue/../dev/reload",
        "/monitoring%2Fsummary",
        "//monitoring/summary",
        "/MONITORING/summary",
        "/gradio_api/queue/join/",
        "/gradio_api/heartbeat/a/b",
        "/x/gradio_api/upload",
    ],
)
def test_other_spellings_are_off_too(page, path):
    for method in ("GET", "POST"):
        answer = page.client.request(method, path, content=b"{}")
        assert answer.status_code in (REFUSED, 404)


def test_every_event_of_the_page_is_known(page):
    found = {}
    for event in page.blocks.fns.values():
        found.setdefault(name_of(page.blocks, event), []).append(len(event.inputs))
    assert found == EVENTS


def file_data(path, **more):
    return {"path": path, "meta": FILE_META, **more}


def hostile_values(page):
    """Values that name a URL, a folder, another's file or nothing of use."""
    session = page.sessions.create("another visitor")
    (session.folder / "secret.png").write_bytes(png())
    paths = [
        URL,
        "https://192.0.2.1/x.png",
        " http://192.0.2.1/x.png",
        "HTTP:/192.0.2.1/x.png",
        "ftp://192.0.2.1/x.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "/etc/passwd",
        "..",
        "",
        "\0",
        "a" * 5000,
        str(page.root),
        str(page.root / ".."),
        str(session.folder),
        str(session.folder / "secret.png"),
    ]
    plain = [file_data(path) for path in paths]
    nested = [
        [file_data(URL)],
        {"value": file_data(URL)},
        {"a": {"b": [0, {"c": file_data(URL)}]}},
        {"path": "x.png", "url": URL, "meta": FILE_META},
        {"path": "x.png", "is_stream": True, "meta": FILE_META},
        {"url": URL},
        {},
        [],
        None,
        1e300,
        10**40,
    ]
    return plain + nested


@pytest.fixture
def reached(monkeypatch):
    """The values that gradio has been given to look for files in."""
    values, original = [], processing_utils.async_move_files_to_cache

    async def move(data, block, postprocess=False, **options):
        if not postprocess:
            values.append(data)
        return await original(data, block, postprocess, **options)

    monkeypatch.setattr(processing_utils, "async_move_files_to_cache", move)
    return values


@pytest.mark.parametrize("name", [name for name, counts in EVENTS.items() if max(counts)])
def test_no_value_of_an_event_names_a_file_to_gradio(page, reached, name):
    """Some hostile values in each place, all of them over the places."""
    index, before = index_of(page, name), len(stored(page))
    good = {8: VALUES, 12: RUN}
    good |= {1: [None], 2: [1, 1]}
    count = EVENTS[name][0]
    for place in range(count):
        for value in hostile_values(page)[place::count]:
            if name == "drop upload" and value is None:
                continue
            values = [*good[count]]
            values[place] = value
            answer = join(page, index, values, "stranger")
            assert answer.status_code == OK, answer.text
        done, _ = ends(page, "stranger")
        assert not any(message["success"] for message in done.values())
        errors = {message["output"]["error"] for message in done.values()}
        assert all(re.match(r"An image must|A value must", error) for error in errors)
    assert reached == []
    assert len(stored(page)) <= before + 1


@pytest.mark.parametrize("count", [0, 1, 7, 9, 200])
def test_too_many_or_too_few_values_are_refused(page, reached, count):
    end = call(page, "load", ["x"] * count, "stranger")
    assert "must have 8 values" in end["output"]["error"]
    assert reached == []


@pytest.mark.parametrize(
    "event_data", [None, 1, "x", [], {}, {"index": None}, {"index": ["a", "b"]}, file_data(URL)]
)
def test_a_click_may_carry_anything(page, reached, event_data):
    answer = join(page, index_of(page, "photo select"), [], "clicker", event_data)
    if answer.status_code == OK:
        ends(page, "clicker")
    assert reached == []
    assert page.client.get("/config").status_code == OK


@pytest.mark.parametrize(
    "values",
    [
        [*RUN[:4], "unknown", *VALUES[1:]],
        [*RUN[:4], 7, *VALUES[1:]],
        RUN[:5] + ["0.5"] * len(HYPERPARAMETERS),
        RUN[:5] + [""] * len(HYPERPARAMETERS),
        RUN[:5] + [-1e6] * len(HYPERPARAMETERS),
        RUN[:5] + [True] * len(HYPERPARAMETERS),
        [1, 2, 3, 4, *VALUES],
        ["<script>"] * 4 + VALUES,
    ],
    ids=repr,
)
def test_settings_that_gradio_has_not_checked_end_with_a_sentence(page, values):
    call(page, "example-coffee click", VALUES, "tuner")
    join(page, index_of(page, TUNE), values, "tuner")
    done, messages = ends(page, "tuner")
    assert all(message["success"] for message in done.values())
    assert "terminal" not in json.dumps(messages)
    assert "<script>" not in json.dumps(messages)


@pytest.mark.parametrize("fn_index", [None, -1, 10**6, "x", {}])
def test_unknown_events_are_refused(page, fn_index):
    body = {"data": [], "fn_index": fn_index, "session_hash": "stranger"}
    with suppress(httpx.ReadError):  # gradio breaks the connection for some; it is not used again
        assert httpx.post(f"{page.address}gradio_api/queue/join", json=body).status_code >= 400
    assert page.client.get("/config").status_code == OK


def test_only_the_path_of_an_upload_reaches_gradio(page, reached):
    (path,) = upload(page, png()).json()
    end = call(page, "drop upload", [file_data(path, url=URL, orig_name="../x")], "visitor")
    assert end["success"]
    assert reached == [{"path": path, "meta": FILE_META}]


def test_an_upload_is_removed_once_it_has_been_read(page):
    before = stored(page)
    (path,) = upload(page, png(5)).json()
    assert page.uploads.holds(path)
    assert call(page, "drop upload", [file_data(path)], "visitor")["success"]
    assert stored(page) == before
    again = call(page, "drop upload", [file_data(path)], "visitor")
    assert "must be uploaded first" in again["output"]["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "etc/passwd",
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "/proc/self/environ",
        "file:///etc/passwd",
        "http://192.0.2.1/x.png",
        "https:192.0.2.1",
        "data:text/html,x",
        "{root}",
        "{root}/",
        "{root}/../",
        "{root}/.",
        "{file}",
        "{cwd}/pyproject.toml",
        "x" * 3000,
        "%00",
    ],
)
def test_files_of_the_server_are_not_served(page, path):
    path = path.format(root=page.root, file=__file__, cwd=Path.cwd())
    assert page.client.get(f"/gradio_api/file={path}").status_code in (REFUSED, 404)


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "https://evil.example:7860"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "file://"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://{host}.evil.example"},
    {"Origin": "http://evil.example@{host}"},
    {"Origin": "http://{host}/"},
    {"Origin": "chrome-extension://{host}x"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    {"Host": "evil.example"},
    {"Host": "evil.example:7860", "Origin": "http://evil.example:7860"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "localhost.evil.example"},
    {"Host": "localhost:1@evil.example"},
    {"Host": "192.0.2.1"},
    {"Host": "0.0.0.0"},
    {"Host": "[::ffff:192.0.2.1]:80"},
    {"Host": "evil.example", "X-Forwarded-Host": "localhost"},
]
STATEFUL = [
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("GET", "/gradio_api/heartbeat/x"),
    ("GET", "/gradio_api/startup-events"),
    ("GET", "/config"),
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize(("method", "path"), STATEFUL)
def test_other_sites_are_refused(page, method, path, headers):
    before = stored(page)
    host = page.address.split("/")[2]
    headers = {name: value.format(host=host) for name, value in headers.items()}
    if "upload" in path:
        answer = upload(page, png(), **headers)
    else:
        answer = page.client.request(method, path, headers=headers)
    assert answer.status_code == REFUSED
    assert stored(page) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://{host}"},
        {"Origin": "http://{host}", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Host": "localhost:{port}", "Origin": "http://localhost:{port}"},
        {"Host": "localhost:9000", "Origin": "http://localhost:9000"},  # a forwarded port
    ],
    ids=str,
)
def test_the_page_itself_is_served(page, headers):
    host = page.address.split("/")[2]
    port = host.partition(":")[2]
    headers = {name: value.format(host=host, port=port) for name, value in headers.items()}
    (path,) = upload(page, png(), **headers).json()
    assert page.uploads.holds(path)
    page.uploads.was_read(path)
    assert page.client.get("/config", headers=headers).status_code == OK


def test_a_link_from_another_site_opens_the_page(page):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert page.client.get("/", headers=headers).status_code == OK


def test_uploads_are_bounded_one_by_one_and_in_sum(page):
    most = page.uploads.max_bytes
    assert upload(page, bytes(most + 1)).status_code == 413
    assert upload(page, bytes(most + 100_000)).status_code == 413
    for n in range(40):
        assert upload(page, bytes([n]) * (most // 2)).status_code == OK
        assert sum(path.stat().st_size for path in stored(page)) < 17 * most
    several = [("files", (f"{n}.png", bytes(most // 2), "image/png")) for n in range(9)]
    assert page.client.post("/gradio_api/upload", files=several).status_code == 413
    page.uploads.clock = lambda: time.time() + 601
    page.uploads.tidy()
    page.uploads.clock = time.time
    assert not [path for path in page.root.iterdir() if len(path.name) == 64]


def test_a_body_needs_a_length_and_a_bound(page):
    def pieces():
        yield b"{}"

    assert page.client.post("/gradio_api/queue/join", content=pieces()).status_code == 411
    assert page.client.post("/gradio_api/upload", content=pieces()).status_code == 411
    long = b" " * 4_000_001
    assert page.client.post("/gradio_api/queue/join", content=long).status_code == 413


@pytest.mark.parametrize(
    "name",
    [
        "../../x.png",
        "a/b.png",
        ".png",
        "x" * 300 + ".png",
        "<script>.png",
        "con.png",
        "é\n.png",
        "x",
    ],
)
def test_names_of_uploads_stay_in_the_folder(page, name):
    answer = upload(page, png(9), name)
    for path in answer.json() if answer.status_code == OK else ():
        assert page.uploads.holds(path)
        end = call(page, "drop upload", [file_data(path)], "namer")
        assert end["success"]
        assert "<script>" not in json.dumps(end["output"])
    assert not [path for path in page.root.parent.glob("x*.png")]


LONG = 100_000
LABELS = {
    "one name": "a" * LONG,
    "one name of many words": "a " * (LONG // 2),
    "wide letters": "漢" * LONG,
    "combined": "e\u0301" * (LONG // 2),
    "spaces": " " * LONG,
    "lines": "\n" * LONG,
    "commas": "," * LONG,
    "slashes": "a/" * (LONG // 2),
    "colons": ":" * LONG,
    "back quotes": "`a" * (LONG // 2),
    "markup": "<script>" * (LONG // 8),
    "ampersands": "&" * LONG,
    "nulls": "\0" * LONG,
    "prompts": "a: " + "/".join(f"p{n}" for n in range(LONG // 6)),
    "right to left": "\u202e" * LONG,
    "percent": "%s{0}" * (LONG // 5),
}


@pytest.mark.filterwarnings("ignore:no font was found:UserWarning")
@pytest.mark.parametrize("text", LABELS.values(), ids=LABELS)
def test_long_labels_end_with_a_result_or_a_sentence(page, text):
    (path,) = upload(page, png()).json()
    assert call(page, "drop upload", [file_data(path)], "writer")["success"]
    join(page, index_of(page, "run click"), [RUN[0], text, *RUN[2:]], "writer")
    done, messages = ends(page, "writer")
    assert all(message["success"] for message in done.values())
    shown = json.dumps(messages)
    assert "Internal error" not in shown
    assert "<script>" not in shown


def visit(page, n):
    """Upload an image, join the queue, and stay for the result, or only for the place."""
    key, messages = f"visitor{n}", []
    with httpx.Client(base_url=page.address, timeout=60) as client:
        mine = SimpleNamespace(blocks=page.blocks, client=client)
        with client.stream("GET", f"/gradio_api/heartbeat/{key}") as heart:
            beats = heart.iter_lines()  # closes the connection when it is deleted
            next(beats)
            (path,) = upload(mine, png(n % 5)).json()  # ten bring the same image
            assert call(mine, "drop upload", [file_data(path)], key)["success"]
            assert join(mine, index_of(mine, "run click"), RUN, key).status_code == OK
            for message in stream(mine, key):
                messages.append(message)
                if n % 10 and message["msg"] == "estimation":
                    break
    return messages


def test_a_crowd_gets_results_or_places_and_leaves_nothing(page):
    """Fifty visitors at once."""
    for key in [*page.sessions._kept]:
        page.sessions.drop(key)
    before = stored(page)
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda n: visit(page, n), range(50)))
    places = [one for messages in found for one in messages if one["msg"] == "estimation"]
    assert len({json.dumps(messages) for messages in found}) == 50
    assert max(place["queue_size"] for place in places) > 1
    for messages in found[::10]:
        assert messages[-2]["success"]
        assert "2 classes" in json.dumps(messages)
    limit = time.monotonic() + 30
    while any(key.startswith("visitor") for key in [*page.sessions._kept]):
        assert time.monotonic() < limit
        time.sleep(0.05)
    page.sessions.tidy()  # as every half minute
    for _ in range(2):
        page.leftovers.tidy()
    assert stored(page) == before
    assert not page.blocks.state_holder.session_data
    queue = page.blocks._queue
    assert not queue.pending_messages_per_session
    assert not queue.pending_event_ids_session


@pytest.mark.slow("two crowds, one after the other")
def test_a_second_crowd_may_have_the_keys_of_the_first(page):
    """Also of visitors who left while their event was under way, whose end nobody has read."""
    for _ in range(2):
        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda n: visit(page, n), range(20)))
        for messages in found[::10]:
            assert messages[-2]["success"]


def test_calls_of_pages_without_a_session_create_none(page):
    before = dict(page.sessions._kept)
    events = {
        "source input": ["own"],
        "mode input": ["kl"],
        "logits input": ["kk-mean", "dino-b8"],
        "run click": RUN,
        "labels submit": RUN,
        "column input": [1, 1],
        "row input": [1, 1],
        TUNE: RUN,
        CHECK: RUN,
        "then": RUN,
    }
    for n, (name, values) in itertools.product(range(3), events.items()):
        call(page, name, values, f"gone{n}")
    assert page.sessions._kept == before


def test_housekeeping_goes_on_while_the_page_is_served(monkeypatch):
    calls = []
    monkeypatch.setattr(server, "TIDY_S", 0.01)
    with server._repeated(lambda: calls.append("a"), lambda: calls.append("b")):
        limit = time.monotonic() + 10
        while len(calls) < 6:
            assert time.monotonic() < limit
            time.sleep(0.01)
    assert calls[:4] == ["a", "b", "a", "b"]


def test_shutting_down_clears_folders_that_were_named_as_files(page):
    """Last: the fixture then stops the server, and sees that its folder is gone."""
    call(page, "drop upload", [file_data(str(page.root))], "stranger")
    (page.root / ("0" * 64)).mkdir()
    assert all(not files for files in page.blocks.temp_file_sets if str(page.root) in files)
