"""The flags of `ovss-refine segment`, and whole runs of it."""

import json
import re
import socket
import sys
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forks import fresh
from ovss_refine import Attention, Logits, RefineConfig, registry
from ovss_refine.cli import main
from ovss_refine.images import MAX_PIXELS
from ovss_refine.images.read import read_image
from ovss_refine.segment import run as segment
from ovss_refine.segment.request import Outputs, SegmentRequest

LABELS = "cat, dog/puppy, background: wall/floor"
REQUIRED = ["segment", "x.png", "--labels", LABELS, "--out", "o"]


def test_help_imports_nothing_heavy(forks):
    code = """
import sys
from ovss_refine.cli import main
def loaded(): print("loaded", sorted({"torch", "numpy", "PIL", "tqdm"} & set(sys.modules)))
try: main(["segment", "--help"])
except SystemExit: loaded()
"""
    assert fresh(code).endswith("loaded []\n")
    code += "import ovss_refine.segment.run; loaded()"  # so that the check can fail
    assert forks.printed(code).endswith("loaded ['PIL', 'numpy', 'torch', 'tqdm']")


def asked(monkeypatch, *words):
    """Return the request made from flags."""
    requests = []
    monkeypatch.setattr(segment, "run_segment", lambda request: requests.append(request) or 0)
    assert main([*REQUIRED, *words]) == 0
    return requests[0]


def test_defaults(monkeypatch):
    request = asked(monkeypatch)
    assert request == SegmentRequest(images=("x.png",), labels=request.labels, out=Path("o"))
    assert request.labels.names == ("cat", "dog", "background")
    assert request.labels.prompts == ("cat", "dog/puppy", "wall/floor")
    assert (request.logits, request.attention) == ("kk-mean", "dinov2-b14-reg")
    assert (request.config, request.device) == (RefineConfig(mode="maximum_velocity"), "auto")
    assert request.outputs == Outputs(baseline=False, rle=True, masks=False, maps=False)


def test_the_limit_in_the_help_is_the_limit(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["segment", "--help"])
    shown = re.findall(r"larger images are refused \(default: ([\d_]+)\)", capsys.readouterr().out)
    assert [int(number) for number in shown] == [MAX_PIXELS]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--logits clip", "logits", "clip"),
        ("--attention sd2", "attention", "sd2"),
        ("--logits-option model=L/14", "logits_options", {"model": "L/14"}),
        ("--logits-option a=1 --logits-option b=null", "logits_options", {"a": 1, "b": None}),
        ("--attention-option size=[28,42]", "attention_options", {"size": [28, 42]}),
        ("--device cuda:1", "device", "cuda:1"),
        ("--device auto", "device", "auto"),
        ("--models-dir /m", "models_dir", Path("/m")),
        ("--dtype auto", "dtype", "auto"),
        ("--batch-size 4", "batch_size", 4),
        ("--max-pixels 300000000", "max_pixels", 300_000_000),
        ("--overwrite", "overwrite", True),
        ("--baseline", "outputs", Outputs(baseline=True)),
        ("--masks --maps --no-rle", "outputs", Outputs(masks=True, maps=True, rle=False)),
        ("--mode fusion --tau 0.4", "config", RefineConfig(mode="fusion", tau=0.4)),
        ("--background 2,0.3", "config", RefineConfig(background=(2, 0.3))),
    ],
)
def test_every_flag_is_read(monkeypatch, words, name, value):
    assert getattr(asked(monkeypatch, *words.split()), name) == value
    assert getattr(asked(monkeypatch), name) != value or value == "auto"


def test_labels_of_a_file(monkeypatch, tmp_path):
    (tmp_path / "l.txt").write_text("cat\ndog/puppy\nbackground: wall/floor\n", encoding="utf-8")
    requests = []
    monkeypatch.setattr(segment, "run_segment", lambda request: requests.append(request) or 1)
    words = ["segment", "a", "b", "--labels-file", f"{tmp_path}/l.txt", "--out", "o"]
    assert main(words) == 1  # the run's status is returned
    assert requests[0].images == ("a", "b")
    assert requests[0].labels == asked(monkeypatch).labels


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("segment x --out o", "one of the arguments --labels --labels-file is required"),
        ("segment x --labels a --labels-file b --out o", "not allowed with argument --labels"),
        ("segment --labels a --out o", "the following arguments are required: IMAGE"),
        ("segment x --labels a", "the following arguments are required: --out"),
        ("segment x --labels a --out o --logits-option z", "must be KEY=VALUE such as"),
        ("segment x --labels a --out o --mask", "unrecognized arguments: --mask"),
    ],
)
def test_unreadable_flags_are_a_usage_error(capsys, words, text):
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert text in capsys.readouterr().err


class Red:
    """Logits for redness and for its absence, on a grid of patches of 4 pixels."""

    def __init__(self, classes):
        self.classes = classes

    def logits(self, images):
        red = torch.nn.functional.avg_pool2d(images, 4, ceil_mode=True)[:, :1]
        prompts = [c for c, row in enumerate(self.classes) for _ in row.split("/")]
        signs = torch.tensor([1.0 if c == 0 else -1.0 for c in prompts]).view(1, -1, 1, 1)
        names = tuple(row.split("/")[0] for row in self.classes)
        return Logits(20 * signs * (red - 0.5), prompt_index=torch.tensor(prompts), names=names)


class Itself:
    """Attention of every patch of 4 pixels to itself, more or less."""

    def attention(self, images):
        gh, gw = -(-images.shape[2] // 4), -(-images.shape[3] // 4)
        N = gh * gw
        return Attention((torch.eye(N) * 0.9 + 0.1 / N).expand(len(images), N, N), (gh, gw))


@pytest.fixture
def registered(monkeypatch):
    """Register the two as `red` and `itself`, the only ones of their kinds."""
    module = type(sys)("their_sources")
    module.Red, module.Itself = Red, Itself
    monkeypatch.setitem(sys.modules, "their_sources", module)
    own = {"logits": ("red", "Red"), "attention": ("itself", "Itself")}

    def points(group, **more):
        if group.rpartition(".")[2] not in own:
            return entry_points(group=group, **more)
        name, value = own[group.rpartition(".")[2]]
        return EntryPoints([EntryPoint(name, f"their_sources:{value}", group)])

    monkeypatch.setattr(registry, "entry_points", points)


def halves(H=20, W=24, right=0):
    """An image whose left half is red."""
    pixels = np.full((H, W, 3), right, np.uint8)
    pixels[:, : W // 2] = 255, 0, 0
    return pixels


def run(tmp_path, *words, labels="tomato/apple, rest", sources=("red", "itself")):
    logits, attention = sources
    line = ["segment", *words, "--labels", labels, "--logits", logits, "--attention", attention]
    return main([*map(str, line), "--out", str(tmp_path / "out")])


@pytest.mark.usefixtures("registered")
def test_a_whole_run_on_an_image(tmp_path, capsys):
    Image.fromarray(halves()).save(tmp_path / "x.png")
    assert run(tmp_path, tmp_path / "x.png", "--baseline", "--masks", "--maps") == 0
    out = tmp_path / "out"
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert names == [
        *("areas.csv", "records.0.jsonl", "segment.json"),
        *("x_baseline.png", "x_comparison.png", "x_labels.png", "x_maps.png"),
        *("x_masks/000_tomato.png", "x_masks/001_rest.png", "x_overlay.png", "x_rle.json"),
    ]
    with Image.open(out / "x_labels.png") as image:
        labels = np.asarray(image)
    np.testing.assert_array_equal(labels, np.repeat([[0] * 12 + [1] * 12], 20, 0))
    entries = json.loads((out / "x_rle.json").read_text())
    assert [(e["category"], e["area"], e["bbox"]) for e in entries] == [
        ("tomato", 240, [0, 0, 12, 20]),
        ("rest", 240, [12, 0, 12, 20]),
    ]
    shown = capsys.readouterr()
    assert re.search(r"(?m)^x: tomato 50\.0%, rest 50\.0%; \d+\.\d\d s$", shown.out)
    assert re.search(r"(?m)^tomato +1 +240 +50\.0% +50\.0%$", shown.out)


def cmyk():
    return Image.fromarray(halves()).convert("CMYK")


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed rotated clockwise
    return {"exif": exif}


ODD = {
    "rgba.png": (Image.fromarray(np.dstack([halves(), halves()[..., 0]])), {}),
    "cmyk.jpg": (cmyk(), {"quality": 95}),
    "deep.png": (Image.fromarray(halves()[..., 0].astype(np.uint16) * 257), {}),
    "grey.png": (Image.fromarray(halves()[..., 0]), {}),
    "rotated.jpg": (Image.fromarray(halves()), {"quality": 95} | rotated()),
    "animated.gif": (
        Image.fromarray(halves()),
        {"save_all": True, "append_images": [Image.new("RGB", (24, 20), "blue")]},
    ),
    "palette.gif": (Image.fromarray(halves()), {}),
}


@pytest.mark.usefixtures("registered")
@pytest.mark.filterwarnings("default")  # as outside pytest, where a warning is no error
@pytest.mark.parametrize("name", ODD)
def test_images_of_every_kind_are_segmented(tmp_path, capsys, name):
    image, options = ODD[name]
    image.save(tmp_path / name, **options)
    assert run(tmp_path, tmp_path / name) == 0
    with Image.open(tmp_path / "out" / f"{Path(name).stem}_labels.png") as found:
        labels = np.asarray(found)
    left_and_right = np.repeat([[0] * 12 + [1] * 12], 20, 0)
    expected = np.rot90(left_and_right, -1) if name == "rotated.jpg" else left_and_right
    np.testing.assert_array_equal(labels, expected)
    said = "animated.gif` has 2 frames; the first is used." in capsys.readouterr().err
    assert said == (name == "animated.gif")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("mode", ["maximum_velocity", "optimal_path"])
def test_one_pixel(tmp_path, mode):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "x.png")
    assert run(tmp_path, tmp_path / "x.png", "--mode", mode, "--baseline", "--maps") == 0
    assert read_image(tmp_path / "out" / "x_labels.png").shape == (1, 1, 3)


def broken(path, content):
    """Make a file of bytes, or of a truncated image."""
    if content is None:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        content = path.read_bytes()[:900]
    path.write_bytes(content)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "content"),
    [("x.png", b"text, not an image"), ("x.jpg", None), ("x.png", b""), ("x.webp", b"RIFF")],
)
def test_broken_files_are_reported_in_one_line(tmp_path, capsys, name, content):
    broken(tmp_path / name, content)
    Image.fromarray(halves()).save(tmp_path / "good.png")
    assert run(tmp_path, tmp_path / name, tmp_path / "good.png") == 1
    shown = capsys.readouterr()
    says = rf"failed: `.*{name}` must be a readable image; got .*"
    assert [bool(re.fullmatch(says, x)) for x in shown.err.splitlines() if "failed" in x] == [True]
    assert "(1 of 2 images)" in shown.out
    assert (tmp_path / "out" / "good_labels.png").exists()


@pytest.mark.usefixtures("registered")
def test_too_large_an_image_is_refused_with_the_fix(tmp_path, capsys):
    Image.fromarray(halves()).save(tmp_path / "x.png")
    assert run(tmp_path, tmp_path / "x.png", "--max-pixels", 479) == 1
    says = r"must have at most 479 pixels; got 24 x 20 = 480\. `max_pixels` \(--max-pixels\) raises"
    assert re.search(says, capsys.readouterr().err)
    assert run(tmp_path, tmp_path / "x.png", "--max-pixels", 480) == 0


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("words", "labels", "text"),
    [
        (["{}/nothing.png"], "a, b", "IMAGE must be an existing file .*; got `.*nothing"),
        (["https://x.org/a.png"], "a, b", "IMAGE must be a file, .*; got 'https://x.org/a.png'"),
        (["{}/x.png"], "a, , b", "classes must have no empty name"),
        (["{}/x.png"], "a, b, A", "classes must have no name twice; got 'A' twice"),
        (["{}/x.png", "--background", "2,0.5"], "a, b", "one of the M=2 classes; got 2"),
        (["{}/x.png", "--keep-scores"], "a, b", "`keep_scores` must not be set"),
        (["{}/x.png", "--batch-size", "0"], "a, b", "`batch_size` must be at least 1; got 0"),
        (
            ["{}/x.png", "--logits", "blue"],
            "a, b",
            r"`logits` must be one of \['red'\]; got 'blue'",
        ),
        (["{}/x.png", "--device", "gpu"], "a, b", "device"),
        (["{}/x.png", "--tau", "2"], "a, b", r"`tau` must be in \(0, 1\); got 2\.0"),
        (["{}/x.png", "--out", "{}/x.png"], "a, b", "`out` must be a folder; "),
        (["{}/x.png", "--out", "{}/x.png/out"], "a, b", "`out` must be a folder; "),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, capsys, words, labels, text):
    Image.fromarray(halves()).save(tmp_path / "x.png")
    inputs = [word.replace("{}", str(tmp_path)) for word in words]
    line = ["segment", inputs[0], "--labels", labels, "--logits", "red", "--attention", "itself"]
    assert main([*line, "--out", f"{tmp_path}/out", *inputs[1:]]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"ovss-refine: error: .*\n", shown.err)
    assert re.search(text, shown.err)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.fixture
def models(tmp_path):
    """Folders of a tiny CLIP and a tiny vision transformer, as their libraries save them."""
    pytest.importorskip("open_clip", reason="needs the extra `models`")
    pytest.importorskip("timm", reason="needs the extra `models`")
    save_file = pytest.importorskip(
        "safetensors.torch", reason="needs the extra `models`"
    ).save_file
    from timm.models import save_for_hf

    from adapters.tiny_clip import CONFIG, tiny_clip
    from adapters.tiny_models import TINY, tiny_vit

    clip, vit = tmp_path / "clip", tmp_path / "vit"
    clip.mkdir()
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    save_file(tiny_clip().state_dict(), clip / "open_clip_model.safetensors")
    save_for_hf(tiny_vit("dino"), vit, model_args=TINY, safe_serialization=True)
    return [
        *("--logits-option", f"model=local-dir:{clip}", "--logits-option", "templates=single"),
        *("--logits-option", "cache_dir=null", "--logits-option", "short_side=32"),
        *("--attention-option", f"model=local-dir:{vit}"),
    ]


@pytest.mark.filterwarnings("default")
def test_models_of_the_real_libraries(tmp_path, capsys, models):
    """The weights are random: the labels mean nothing, but everything runs as with real ones."""
    for index, size in enumerate([(48, 64), (48, 64), (40, 33)]):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"p{index}.png")
    words = [tmp_path / "p*.png", *models, "--baseline", "--batch-size", 2]
    labels = "cat, dog/puppy, background: wall/floor"
    assert run(tmp_path, *words, labels=labels, sources=("kk-mean", "timm")) == 0
    shown = capsys.readouterr()
    assert re.search(r"loading kk-mean \(.*\), timm \(.*\); downloading what is", shown.err)
    assert "(3 of 3 images)" in shown.out
    for index, size in enumerate([(48, 64), (48, 64), (40, 33)]):
        assert read_image(tmp_path / "out" / f"p{index}_baseline.png").shape[:2] == size
    long = f"cat, {'very ' * 80}big dog"
    words += ["--overwrite"]
    assert run(tmp_path, *words, labels=long, sources=("kk-mean", "timm")) == 2
    assert re.search(r"error: .*77.*very", capsys.readouterr().err)


@pytest.mark.parametrize("offline", [True, False])
def test_missing_weights_are_one_sentence_with_fixes(tmp_path, capsys, monkeypatch, offline):
    pytest.importorskip("open_clip", reason="needs the extra `models`")
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra `models`")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no server
    monkeypatch.setattr("ovss_refine.sources.hub._silent", {})
    Image.fromarray(halves()).save(tmp_path / "x.png")
    words = [tmp_path / "x.png", "--models-dir", tmp_path / "models"]
    attempts, connect = [], socket.socket.connect
    count = lambda self, place: (attempts.append(place), connect(self, place))  # noqa: E731
    monkeypatch.setattr(socket.socket, "connect", count)
    assert run(tmp_path, *words, sources=("kk-mean", "dinov2-b14-reg")) == 2
    assert len(attempts) == (0 if offline else 1)  # the hub's library would retry for a minute
    first, last = capsys.readouterr().err.splitlines()
    assert first == (
        "loading kk-mean (0.6 GB), dinov2-b14-reg (0.3 GB); downloading what is not cached"
    )
    assert last.startswith("ovss-refine: error: kk-mean: the weights `timm/")
    for word in ("--models-dir", "HF_ENDPOINT", "`ovss-refine demo`", str(tmp_path / "models")):
        assert word in last
    assert ("HF_HUB_OFFLINE is set" in last) == offline
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("models_dir", [[], ["--models-dir", "models"]])
def test_missing_weights_in_a_fresh_process(tmp_path, forks, models_dir):
    pytest.importorskip("open_clip", reason="needs the extra `models`")
    Image.fromarray(halves()).save(tmp_path / "x.png")
    code = """
import os, sys
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": "home"}
from ovss_refine.cli import main
sys.exit(main())
"""
    words = ["segment", "x.png", "--labels", "a, b", "--out", "out", "--device", "cpu"]
    done = forks.run(code, *words, *models_dir, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "kk-mean: the weights `timm/" in done.stderr.splitlines()[-1]
    assert "--models-dir" in done.stderr.splitlines()[-1]
