"""The documents say what is so: their commands run, their code runs, their names exist.

Commands and code run in a folder of tiny files, with tiny random models of the real libraries in
the place of pretrained ones (`doc_world`).
"""

import importlib
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from conftest import MISSING
from doc_pages import PAGES, ROOT, all_commands, blocks, read, split
from doc_world import install_tiny_models, scene, write_world
from ovss_refine.cli import main
from ovss_refine.method.modes import MODES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMMANDS = all_commands()
# Commands that are not run here, with the reason. Each must occur in a document.
NOT_RUN = {
    "torchrun --nproc-per-node 4 -m ovss_refine evaluate ...": (
        "cut short; tests/sources/test_processes.py runs two processes"
    ),
    (
        "torchrun --nproc-per-node 4 -m ovss_refine segment photos --labels-file classes.txt "
        "--out results"
    ): "starts processes; tests/segment/test_processes.py runs two and three",
    ".venv/bin/pytest test_mine.py": "tests/test_paths.py writes that file and runs it",
}
# How commands begin that are cut short, with what makes them whole.
COMPLETED = {
    "ovss-refine evaluate --attention sd2 --attention-option block_weights=": (
        "--dataset voc21 --root VOCdevkit --logits clip --rows refined"
    ),
}
# Blocks of Python that another test runs: the page, what the block contains, and where.
RUN_ELSEWHERE = [
    ("docs/logits.md", "def redness", "tests/adapters/logits/test_own.py"),
    ("docs/logits.md", "AutoModelForSemanticSegmentation", "tests/adapters/logits/test_own.py"),
    ("docs/logits.md", "from mmseg", "tests/adapters/logits/test_own.py"),
    ("docs/recipes.md", "", "tests/test_recipes.py"),
    ("docs/evaluation.md", "", "tests/adapters/test_evaluate_examples.py"),
    ("docs/scaling.md", "", "tests/test_scaling.py"),
    ("docs/attention.md", "from_hugging_face", "tests/adapters/attention/test_outputs.py"),
    ("docs/attention.md", "timm_model", "tests/adapters/attention/test_outputs.py"),
    ("docs/writing_an_adapter.md", "torch.hub.load", "tests/upsamplers/test_own.py"),
    ("docs/attention.md", "Parts(", "tests/adapters/attention/test_outputs.py"),
    ("docs/attention.md", "own_model", "tests/adapters/attention/test_outputs.py"),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root)
    return root


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    """A folder of one's own with all files, as the current one, and tiny models by name."""
    root = tmp_path / "world"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if not MISSING:
        install_tiny_models(monkeypatch)
    return root


# Commands.


def is_mention(command):
    """Whether a command in a line of text only says which command is meant."""
    words = command.words[1:]
    return command.inline and all(map(str.isalpha, words)) and words != ("sources",)


def names_models(words):
    """Whether a command loads a model by name."""
    given = [
        words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--logits", "--attention")
    ]
    files = [name.startswith("npz:") or name.endswith(".npz") for name in given]
    return words[1] in ("segment", "reproduce") or (bool(given) and not all(files))


def run_ours(command, world, capsys):
    words = command.words[1:]
    if is_mention(command):
        with pytest.raises(SystemExit) as stop:
            main([*[word for word in words if not word.isupper()], "--help"])
        assert stop.value.code == 0
        return
    if names_models(command.words) and MISSING:
        pytest.skip(f"needs {', '.join(MISSING)} ([models])")
    more = next((m for start, m in COMPLETED.items() if str(command).startswith(start)), "").split()
    assert main([*words, *more]) == 0, capsys.readouterr().err


def check_pip(command, *_):
    """An install names this project, by name or folder, and extras that it has."""
    install, *words = command.words[1:]
    assert install == "install"
    for word in (w for w in words if not w.startswith("-")):
        name, _, extras = word.partition("[")
        assert name in (".", PROJECT["name"])
        assert set(filter(None, extras.rstrip("]").split(","))) <= set(EXTRAS)


def check_python(command, *_):
    """Python makes an environment, or runs a script of ours with flags that it has."""
    first, *words = command.words[1:]
    if first == "-m":
        importlib.import_module(words[0])
        return
    text = (ROOT / first).read_text()
    assert [flag for flag in words if flag.startswith("--") and flag not in text] == []


def check_tool(command, *_):
    """A tool comes with an extra, and the paths that it is given exist."""
    tools = {"sphinx-build": "sphinx"}
    wanted = tools.get(command.program, command.program)
    assert any(re.match(rf"{wanted}\b", need) for need in EXTRAS["dev"] + EXTRAS["docs"])
    paths = [word for word in command.words[1:] if (ROOT / word).suffix or "/" in word]
    assert [p for p in paths if not (ROOT / p).exists() and p.split("/")[0] != "build"] == []


CHECKS = {
    "ovss-refine": run_ours,
    "pip": check_pip,
    "python": check_python,
    "python3": check_python,
    **dict.fromkeys(("pytest", "pre-commit", "ruff", "mypy", "sphinx-build"), check_tool),
}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command(command, world, capsys):
    if str(command) in NOT_RUN:
        pytest.skip(NOT_RUN[str(command)])
    assert command.program in CHECKS, "say in CHECKS or NOT_RUN how this is tested"
    CHECKS[command.program](command, world, capsys)


def test_commands_are_found():
    assert {command.program for command in COMMANDS} >= {"ovss-refine", "pip", "torchrun"}
    assert set(NOT_RUN) <= {str(command) for command in COMMANDS}
    assert all(any(str(c).startswith(start) for c in COMMANDS) for start in COMPLETED)
    script = "A=1 x -a \\\n  'b c' && y  # not this\n# nor this\nz"
    assert list(split(script)) == [("x", "-a", "b c"), ("y",), ("z",)]
    with pytest.raises(ValueError, match="pipes"):
        list(split("x | y"))


# Code.


def usual():
    logits, attn, image = scene()
    return {
        "logits": logits,
        "attn": attn,
        "image": image,
        "images": image[None].repeat(2, 1, 1, 1),
    }


def for_readme():
    logits, attn, image = scene(grid=(64, 48), size=(96, 72))
    return usual() | {"logits": logits, "attn": attn, "image": image}


def for_modes():
    return usual() | {"features": torch.rand(8, 6, 9)}


def for_logits():
    images = usual()["images"].clone()
    images[1] = images[1].flip(-1)
    return usual() | {"images": images, "names": ["cat", "dog"], "my_open_clip_model": None}


PREPARED = {
    "README.md": for_readme,
    "docs/modes.md": for_modes,
    "docs/logits.md": for_logits,
    "docs/logits_proxies.md": for_logits,
    "docs/logits_trained.md": for_logits,
    "docs/logits_promptable.md": for_logits,
}
WITHOUT_MODELS = (
    "docs/usage.md",
    "docs/index.md",
    "docs/modes.md",
    "docs/writing_an_adapter.md",
)


def elsewhere(block):
    """Return the test that runs a block, or None."""
    for page, part, test in RUN_ELSEWHERE:
        if block.page == page and part in block.text:
            return test
    return None


@pytest.mark.parametrize("guide", [page for page in PAGES if blocks(page, "python")])
def test_code(guide, world):
    if MISSING and guide not in WITHOUT_MODELS:
        pytest.skip(f"needs {', '.join(MISSING)} ([models])")
    names = PREPARED.get(guide, usual)()
    for block in blocks(guide, "python"):
        if elsewhere(block):
            continue
        known = set(names)
        code = compile("\n" * (block.line - 1) + block.text, guide, "exec")
        exec(code, names)
        for name in set(names) - known:
            if name.startswith("test_"):
                names[name]()


def test_readme_begins_with_code_that_runs_as_pasted():
    names = {}
    exec(blocks("README.md", "python")[0].text, names)
    H, W, _ = names["example"].image.shape
    assert names["labels"].shape == (H, W)
    assert len(names["labels"].unique()) > 1


def test_what_runs_elsewhere_is_there():
    for page, part, test in RUN_ELSEWHERE:
        assert any(part in block.text for block in blocks(page, "python")), (page, part)
        assert Path(page).name in (ROOT / test).read_text(), test


@pytest.mark.parametrize("guide", [page for page in PAGES if blocks(page, "toml")])
def test_toml(guide):
    for block in blocks(guide, "toml"):
        groups = tomllib.loads(block.text)["project"]["entry-points"]
        assert set(groups) <= set(PROJECT["entry-points"])


def test_every_block_says_its_language():
    known = {"bash", "bibtex", "python", "toml", "text", "math", ""}
    for page in PAGES:
        found = [(block.line, block.language) for block in blocks(page)]
        assert {language for _, language in found} <= known, (page, found)
        bare = [b.text for b in blocks(page, "")]
        assert all(page.startswith("docs/") for _ in bare), page  # only directives of the site


# Links.


def anchors(text):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("guide", PAGES)
def test_links(guide):
    text = re.sub(r"^```.*?^```", "", read(guide), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith(
            ("https://", "../../actions/", "auto_gallery/")
        ):  # tests/test_links.py
            continue
        file = (ROOT / guide).parent / path if path else ROOT / guide
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def rows(page):
    """Return the numbers in a page's tables by the first cell of their row."""
    found = {}
    for line in re.findall(r"^\|(.*)\|$", read(page), re.M):
        name, *cells = (cell.strip().replace("`", "").replace("_", " ") for cell in line.split("|"))
        numbers = {cell for cell in cells if re.fullmatch(r"\d+\.\d+", cell)}
        found.setdefault(name, set()).update(numbers)
    return {name: numbers for name, numbers in found.items() if numbers}


def test_numbers_that_a_page_repeats_are_those_of_the_page_they_come_from():
    measured, repeated = rows("docs/performance.md"), rows("docs/modes.md")
    costs = {name: repeated[name] for name in (mode.replace("_", " ") for mode in MODES)}
    for name, numbers in costs.items():
        assert numbers <= measured[name], name


QUOTED_CELLS = [f"{x} | last" for x in ("VOC frequent | weak", "VOC frequent | strong")]
QUOTED_CELLS += [f"{x} | last" for x in ("CamVid | weak", "CamVid | strong")]
QUOTED_ROWS = {
    "`Refiner()`": "default",
    "without the vote": "default without the vote",
    "`Refiner.paper()`, maximum velocity": "paper, maximum velocity",
    '`Refiner.paper("optimal_path")`': "paper, optimal path",
    '`Refiner.paper("kl")`': "paper, KL",
    "`propagation`, k = 3": "propagation, k = 3",
    "`anchored`, k = 3": "anchored, k = 3",
    "LPOSS, of probabilities": "lposs, probabilities",
}


@pytest.mark.parametrize("page", ["README.md", "docs/modes.md"])
@pytest.mark.parametrize("name", QUOTED_ROWS)
def test_differences_are_those_that_the_benchmark_saved(page, name):
    cells = json.loads(read("benchmarks/results/real_data.json"))["cells"]
    left_out = ("probe", "COCO", "| -")
    core = [cell for key, cell in cells.items() if not any(word in key for word in left_out)]
    every = [cell[QUOTED_ROWS[name]]["difference"] for cell in core]
    quoted = [cells[key][QUOTED_ROWS[name]]["difference"] for key in QUOTED_CELLS]
    line = next(x for x in read(page).splitlines() if x.startswith(f"| {name} |"))
    expected = [f"{x:+.1f}" for x in (*quoted, sum(every) / len(every), min(every))]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == expected


def test_pages_agree_with_the_table_of_modes():
    lines = [line for line in read("docs/modes.md").splitlines() if line.startswith("| `")]
    assert lines[: len(MODES)] == [f"| `{name}` | {m.summary} |" for name, m in MODES.items()]
    titles = {f"### {mode.title}" for mode in MODES.values() if mode.has_seeds}
    assert titles <= set(read("docs/method.md").splitlines())


def test_every_page_is_on_the_site():
    text = read("docs/index.md")
    trees = "".join(re.findall(r"^```\{toctree\}\n(.*?)^```", text, flags=re.M | re.S))
    lines = [line for line in trees.splitlines() if line and not line.startswith(":")]
    entries = {re.sub(r"^.*<(.*)>$", r"\1", line) for line in lines}  # with a title of its own
    pages = {Path(page).stem for page in PAGES if page.startswith("docs/")} - {"index"}
    assert entries == pages | {"auto_gallery/index"}
    scripts = sorted((ROOT / "docs" / "gallery").glob("*.py"))
    assert len(scripts) == 5
    assert all(script.name.startswith("plot_") for script in scripts)  # else they are not run
