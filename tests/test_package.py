"""What holds for the package as a whole: imports, public names, size, manners."""

import ast
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ovss_refine
from ovss_refine import _moved

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ovss_refine"
# What a package, or a module at the top level, may import of the others. `values` are the checked
# inputs and results, `modes` the table of modes, `door` what users import.
MAY_IMPORT = {
    "checks": "",
    "tensors": "",
    "values": "checks folders images modes tensors upsamplers",
    "modes": "method values",
    "method": "checks images modes tensors upsamplers values",
    "upsamplers": "checks images method tensors values",
    "images": "checks folders",
    "folders": "",
    "baseline": "checks images values",
    "sources": "checks folders images tensors values",
    "door": "baseline checks folders images method modes sources tensors upsamplers values",
    "testing": "upsamplers values",
    "examples": "checks door folders images sources values",
    "segment": "checks door folders images sources upsamplers values",
    "evaluation": "baseline checks door folders images method modes sources upsamplers values",
    "reproduce": "checks door evaluation folders images sources upsamplers values",
    "app": "door examples folders images method modes segment sources values",
    "cli": "app checks door evaluation examples folders images reproduce segment sources values",
    "__main__": "cli",
    "adapters": "checks values door baseline folders images sources",
}
VALUES = {
    "attention",
    "config",
    "labels",
    "logits",
    "registry",
    "result",
    "segmentation",
    "__version__",
}
DOOR = {"__init__", "_moved", "export", "postprocess", "refiner", "segmenter"}
EXTRAS = (
    "timm",
    "open_clip",
    "diffusers",
    "transformers",
    "safetensors",
    "gradio",
    "torchmetrics",
    "numba",
    "rankseg",
    "pydensecrf",
)


def home(module):
    """Name the row of the table that `ovss_refine.x.y` belongs to."""
    parts = module.split(".")
    if parts[0] == "ovss_refine_adapters":
        return "adapters"
    if parts[1:3] == ["method", "modes"]:
        return "modes"
    first = parts[1] if len(parts) > 1 else "__init__"
    if first in VALUES:
        return "values"
    if first in MAY_IMPORT:
        return first
    assert first in DOOR or first in ovss_refine.__all__, module
    return "door"


def inner_imports(path):
    """Name the modules of ours that a file imports, at its top or anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            root = "ovss_refine" if node.level else None
            base = ".".join(filter(None, [root, node.module]))
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.partition(".")[0] in OURS]


OURS = ("ovss_refine", "ovss_refine_adapters")
FILES = {
    **{path: ROOT for path in PACKAGE.rglob("*.py")},
    **{path: ROOT / "adapters" for path in (ROOT / "adapters").rglob("*.py")},
}


def wrong_imports(path, own):
    """List the imports of a file that the table does not allow to the row `own`."""
    allowed = {own, *MAY_IMPORT[own].split()}
    return [name for name in inner_imports(path) if home(name) not in allowed]


def test_imports_go_one_way():
    wrong = {}
    for path, root in FILES.items():
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        if found := wrong_imports(path, home(module)):
            wrong[module] = found
    assert wrong == {}


def test_import_direction_can_fail(tmp_path):
    path = tmp_path / "x.py"
    for line in (
        "from ovss_refine.cli import y",
        "from ovss_refine import cli",
        "from .cli import y",
        "from . import cli",
        "import ovss_refine.cli",
        "def f():\n    from ovss_refine.cli.flags import y",
    ):
        path.write_text(line)
        assert len(wrong_imports(path, "method")) == 1, line
        assert wrong_imports(path, "cli") == []
    path.write_text("from ovss_refine_adapters.logits import clip")
    assert wrong_imports(path, "sources") == ["ovss_refine_adapters.logits.clip"]


def test_nothing_imports_the_adapters_but_themselves():
    assert not [row for row, allowed in MAY_IMPORT.items() if "adapters" in allowed.split()]


def test_import_loads_no_extra_and_no_adapter(forks):
    watched = (*EXTRAS, "ovss_refine_adapters", "PIL")
    code = (
        "import sys, ovss_refine; ovss_refine.Refiner; print([m for m in {} if m in sys.modules])"
    )
    assert forks.printed(code.format(watched)) == "[]"
    assert forks.printed(("import PIL; " + code).format(watched)) == "['PIL']"  # it can fail


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


@pytest.mark.parametrize(("old", "new"), _moved.MOVED.items())
def test_old_import_paths_give_the_new_modules(old, new, forks):
    code = (
        "import importlib, warnings; warnings.simplefilter('error', DeprecationWarning)\n"
        "import {new}\n"
        "try: importlib.import_module('{old}')\n"
        "except DeprecationWarning as warning: print(warning)\n"
        "warnings.simplefilter('ignore')\n"
        "print(importlib.import_module('{old}') is importlib.import_module('{new}'))"
    )
    if new.startswith("ovss_refine_adapters") and not find_spec("timm"):
        pytest.skip("the adapters' libraries are not installed ([models])")
    assert forks.printed(code.format(old=old, new=new)) == f"`{old}` has moved to `{new}`.\nTrue"


def test_sizes():
    lines = {path: path.read_text().count("\n") for path in FILES}
    assert {path: count for path, count in lines.items() if count > 300} == {}
    numerics = [
        PACKAGE / "attention.py",
        *(p for d in ("method", "tensors") for p in (PACKAGE / d).iterdir()),
    ]
    assert [path for path in numerics if lines.get(path, 0) > 270] == []
    assert len(list(PACKAGE.glob("*.py"))) <= 15
    # The kernels for a GPU do what the core does, faster; nothing else depends on them.
    kernels = [p for p in numerics if p.match("gpu_*.py") or p.match("*_gpu.py")]
    kernels += [p for p in numerics if p.match("*_triton.py")]
    assert sum(map(code_lines, kernels)) <= 340
    core = {"checks", "method", "modes", "tensors"}
    names = {"attention", "config", "logits", "refiner", "result"}
    code = sum(
        code_lines(path)
        for path in {*PACKAGE.rglob("*.py")} - {*kernels}
        if {path.parent.name, path.stem} & core or (path.parent == PACKAGE and path.stem in names)
    )
    assert code <= 2220


def code_lines(path):
    """Count the lines that are neither blank nor a comment nor of a docstring."""
    text = path.read_text()
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            skipped |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(map(str.strip, text.split("\n")), 1)
    return sum(bool(s) and s[0] != "#" and i not in skipped for i, s in lines)


def test_no_result_is_compared_with_equals():
    result = ovss_refine.RefineResult(*[torch.zeros(2)] * 5)
    assert result != ovss_refine.RefineResult(*[torch.zeros(2)] * 5)  # by identity: no __eq__


def test_import_leaves_torch_as_it_was(forks):
    settings = (
        "(torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), "
        "torch.initial_seed(), torch.get_float32_matmul_precision(), "
        "torch.are_deterministic_algorithms_enabled())"
    )
    code = (
        "import torch, importlib; torch.manual_seed(3); torch.set_num_threads(3); before = {0}; "
        "[importlib.import_module('ovss_refine.' + m) for m in {1}]; {2}; print(before == {0})"
    )
    modules = sorted(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.stem != "__init__"
        and (
            path.stem not in ("exp2", "loops", "transport_loop", "upsample_loop")
            or find_spec("numba")
        )
        and (path.stem not in ("gpu_loops", "upsample_triton") or find_spec("triton"))
    )
    assert forks.printed(code.format(settings, modules, "pass")) == "True"
    changed = forks.printed(code.format(settings, modules, "torch.manual_seed(4)"))
    assert changed == "False"  # it can fail


def test_no_two_classes_have_the_same_name():
    homes = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(path.name)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
