"""What holds for the package as a whole: imports, public names, size, manners."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import ovss_refine

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ovss_refine"
MAY_IMPORT = {
    "_checks": set(),
    "config": {"_checks"},
    "files": set(),
    "hub": set(),
    "inputs": {"files"},
    "labels": set(),
    "rle": set(),
    "pictures": {"_fonts", "_palette", "files"},
    "_palette": set(),
    "_fonts": set(),
    "_tracing": set(),
    "_blocks": {"_tracing"},
    "_cells": {"_tracing"},
    "attention": {"_blocks", "_checks"},
    "logits": {"_checks"},
    "registry": {"attention", "logits"},
    "distribution": {"_tracing"},
    "divergence": set(),
    "transport": {"_blocks", "_tracing", "attention"},
    "markov": {"_blocks", "_tracing", "attention"},
    "upsample": {"_cells", "_checks", "_tracing"},
    "refiner": {
        "_checks",
        "attention",
        "config",
        "distribution",
        "divergence",
        "logits",
        "markov",
        "postprocess",
        "result",
        "transport",
        "upsample",
    },
    "result": {"_images", "pictures"},
    "_baseline": {"logits", "registry"},
    "_images": {"files", "upsample"},
    "_models": {"attention", "hub", "labels", "logits", "registry", "sources"},
    "segmentation": {"_checks", "attention", "pictures", "rle"},
    "segmenter": {
        "_baseline",
        "_checks",
        "_images",
        "_models",
        "attention",
        "config",
        "files",
        "labels",
        "logits",
        "refiner",
        "segmentation",
    },
    "outputs": {"files", "pictures", "segmentation"},
    "journal": {
        "evaluation",
        "evaluation.manifest",
        "evaluation.records",
        "files",
        "inputs",
        "outputs",
        "segmentation",
    },
    "segment": {
        "__version__",
        "_checks",
        "config",
        "files",
        "inputs",
        "journal",
        "labels",
        "outputs",
        "segmentation",
        "segmenter",
    },
    "segment_cli": {"config", "evaluation.cli", "files", "labels", "outputs", "segment"},
    "postprocess": {"_checks", "attention", "result", "upsample"},
    "export": {
        "attention",
        "config",
        "distribution",
        "files",
        "refiner",
        "registry",
    },
    "commands": {"_checks", "attention", "config", "files", "pictures", "refiner", "result"},
    "sources": set(),
    "app.choices": {"config", "registry", "sources"},
    "app.cli": {"app.server"},
    "app.downloads": {"files", "outputs", "segmentation"},
    "app.guard": set(),
    "app.handlers": {
        "app.choices",
        "app.downloads",
        "app.session",
        "app.uploads",
        "app.views",
        "app.work",
        "segmentation",
    },
    "app.page": {"app.choices", "app.downloads", "app.handlers", "app.work", "registry"},
    "app.server": {
        "app.guard",
        "app.handlers",
        "app.page",
        "app.session",
        "app.work",
        "registry",
        "segmenter",
    },
    "app.session": {"app.uploads", "segmentation"},
    "app.uploads": {"files"},
    "app.views": {"pictures", "segmentation"},
    "app.work": {
        "app.uploads",
        "attention",
        "commands",
        "logits",
        "segmentation",
        "segmenter",
    },
    "testing": {"_testing_logits", "_testing_models", "attention"},
    "_testing_logits": {"_testing_models", "logits"},
    "_testing_models": set(),
    "cli": {
        "__version__",
        "app.cli",
        "commands",
        "config",
        "evaluation.cli",
        "segment_cli",
        "sources",
    },
    "evaluation.dataset": {"files"},
    "evaluation.metric": set(),
    "evaluation.reading": {"evaluation.dataset", "files"},
    "evaluation.batches": {"attention", "logits"},
    "evaluation.records": {"evaluation.metric"},
    "evaluation.totals": {"evaluation.metric", "evaluation.records"},
    "evaluation.check": {"evaluation.dataset", "evaluation.reading"},
    "evaluation.convert": {
        "evaluation",
        "evaluation.dataset",
        "evaluation.reading",
        "files",
        "registry",
    },
    "evaluation.sources": {"_checks", "attention", "files", "logits", "registry"},
    "evaluation.team": {"registry"},
    "evaluation.rows": {
        "_checks",
        "attention",
        "config",
        "distribution",
        "logits",
        "refiner",
        "registry",
        "upsample",
    },
    "evaluation.manifest": {"files"},
    "evaluation.report": {
        "evaluation.batches",
        "evaluation.dataset",
        "evaluation.metric",
        "evaluation.totals",
        "files",
        "pictures",
    },
    "evaluation.engine": {
        "attention",
        "evaluation.batches",
        "evaluation.dataset",
        "evaluation.metric",
        "evaluation.reading",
        "evaluation.records",
        "evaluation.rows",
        "evaluation.sources",
        "evaluation.team",
        "evaluation.totals",
        "logits",
    },
    "evaluation.run": {
        "__version__",
        "_checks",
        "config",
        "evaluation",
        "evaluation.batches",
        "evaluation.dataset",
        "evaluation.engine",
        "evaluation.manifest",
        "evaluation.report",
        "evaluation.rows",
        "evaluation.sources",
        "evaluation.team",
    },
    "evaluation.reproduce": {
        "_checks",
        "evaluation.dataset",
        "evaluation.reproduce_cells",
        "evaluation.reproduce_inputs",
        "evaluation.reproduce_report",
        "evaluation.reproduce_tables",
        "evaluation.reproduce_tiny",
        "evaluation.run",
        "evaluation.team",
    },
    "evaluation.reproduce_cells": {
        "__version__",
        "evaluation.manifest",
        "evaluation.records",
        "evaluation.reproduce_inputs",
        "evaluation.reproduce_tables",
        "evaluation.reproduce_tiny",
        "evaluation.rows",
    },
    "evaluation.reproduce_cli": {
        "evaluation",
        "evaluation.dataset",
        "evaluation.reproduce",
        "evaluation.reproduce_report",
        "evaluation.reproduce_tables",
    },
    "evaluation.reproduce_inputs": {
        "attention",
        "evaluation.dataset",
        "evaluation.reproduce_tables",
        "evaluation.sources",
        "registry",
    },
    "evaluation.reproduce_plot": set(),
    "evaluation.reproduce_report": {
        "evaluation.reproduce_cells",
        "evaluation.reproduce_plot",
        "evaluation.reproduce_tables",
        "files",
        "pictures",
    },
    "evaluation.reproduce_tables": {"config"},
    "evaluation.reproduce_tiny": {"evaluation.dataset", "registry"},
    "evaluation.cli": {
        "config",
        "evaluation",
        "evaluation.check",
        "evaluation.convert",
        "evaluation.dataset",
        "evaluation.report",
        "evaluation.reproduce_cli",
        "evaluation.run",
        "evaluation.sources",
    },
}
EXTRAS = ("timm", "open_clip", "diffusers", "transformers", "safetensors", "gradio", "torchmetrics")


def inner_imports(path):
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            root = "ovss_refine" if node.level else None
            base = ".".join(filter(None, [root, node.module]))
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    assert not any(name.startswith("ovss_refine_adapters") for name in names), path
    return {module_of(name) for name in names if name.startswith("ovss_refine.")}


def module_of(name):
    """Cut what is imported down to its module: "evaluation.cli", or "upsample"."""
    parts = name.split(".")[1:]
    inner = PACKAGE.joinpath(*parts[:2]).with_suffix(".py")
    return ".".join(parts[:2]) if len(parts) > 1 and inner.is_file() else parts[0]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("stem", MAY_IMPORT)
def test_import_direction(stem):
    path = PACKAGE / f"{stem.replace('.', '/')}.py"
    assert inner_imports(path) <= MAY_IMPORT[stem]


def test_every_file_is_in_the_table():
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    assert {".".join(p.parts) for p in paths if p.name != "__init__"} == set(MAY_IMPORT)


def test_import_direction_can_fail(tmp_path):
    path = tmp_path / "x.py"
    for line in (
        "from ovss_refine.cli import y",
        "from ovss_refine import cli",
        "from .cli import y",
        "from . import cli",
        "import ovss_refine.cli",
    ):
        path.write_text(line)
        assert inner_imports(path) == {"cli"}, line
    for line in (
        "from ovss_refine.evaluation.cli import y",
        "from ovss_refine.evaluation import cli",
        "import ovss_refine.evaluation.cli",
    ):
        path.write_text(line)
        assert inner_imports(path) == {"evaluation.cli"}, line
    path.write_text("from ovss_refine.evaluation import ROWS")
    assert inner_imports(path) == {"evaluation"}


def test_import_loads_no_extra_and_no_adapter():
    watched = (*EXTRAS, "ovss_refine_adapters", "PIL")
    code = (
        "import sys, ovss_refine; ovss_refine.Refiner; print([m for m in {} if m in sys.modules])"
    )
    assert run(code.format(watched)) == "[]"
    assert run(("import PIL; " + code).format(watched)) == "['PIL']"  # it can fail


def test_adapters_folder_is_not_a_package():
    assert not (ROOT / "adapters" / "__init__.py").exists()
    assert (ROOT / "adapters" / "ovss_refine_adapters" / "__init__.py").exists()


def test_public_names():
    public = {
        "Attention",
        "AttentionSource",
        "Logits",
        "LogitsSource",
        "RefineConfig",
        "RefineResult",
        "Refiner",
        "Segmentation",
        "Segmenter",
        "joint_bilateral_upsample",
        "list_attention",
        "list_logits",
        "load_attention",
        "load_logits",
        "refine",
    }
    assert set(ovss_refine.__all__) == public
    for name in public:
        assert getattr(ovss_refine, name).__doc__
    assert public <= set(dir(ovss_refine))
    with pytest.raises(AttributeError, match="no attribute 'Refine'"):
        ovss_refine.Refine  # noqa: B018


def test_every_public_name_and_option_is_in_the_docs():
    docs = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    fields = ovss_refine.RefineConfig.__dataclass_fields__
    missing = [n for n in (*ovss_refine.__all__, *fields) if f"`{n}" not in docs]
    assert not missing


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.asname for node in block.body for alias in node.names}
    assert names == set(ovss_refine.__all__)


def test_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ovss_refine.__version__


def test_file_sizes():
    core = {"attention", "distribution", "divergence", "markov", "transport", "upsample"}
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "adapters").rglob("*.py")):
        lines = path.read_text().count("\n")
        assert lines <= (250 if path.stem in core else 400), f"{path}: {lines} lines"


def test_no_result_is_compared_with_equals():
    result = ovss_refine.RefineResult(*[torch.zeros(2)] * 5)
    assert result != ovss_refine.RefineResult(*[torch.zeros(2)] * 5)  # by identity: no __eq__


def test_import_leaves_torch_as_it_was():
    settings = (
        "(torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), "
        "torch.initial_seed(), torch.get_float32_matmul_precision(), "
        "torch.are_deterministic_algorithms_enabled())"
    )
    code = (
        "import torch, importlib; torch.manual_seed(3); before = {0}; import ovss_refine; "
        "[importlib.import_module('ovss_refine.' + m) for m in {1}]; {2}; print(before == {0})"
    )
    modules = sorted(MAY_IMPORT)
    assert run(code.format(settings, modules, "pass")) == "True"
    assert run(code.format(settings, modules, "torch.manual_seed(4)")) == "False"  # it can fail
