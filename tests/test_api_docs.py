"""The API reference has every public name, and every name says what it takes and raises."""

import doctest
import importlib
import inspect
import re
import tomllib
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import get_type_hints

import pytest

import ovss_refine
from doc_pages import ROOT, read
from ovss_refine import testing

DIRECTIVE = re.compile(r"^\.\. auto(class|function|module):: (\S+)$", re.MULTILINE)
# Names whose docstrings need no "Raises:".
RAISES_NOTHING = {
    "AttentionSource": "a protocol",
    "LogitsSource": "a protocol",
    "Upsampler": "a protocol",
    "RefineResult": "made by the refinement",
    "Segmentation": "made by the segmenter",
    "EvaluationResult": "made by `evaluate`",
    "Decision": "made by the decision",
    "Propagation": "made by `Lposs`",
    "Published": "made by the look-up",
    "DataSet": "made by `load_dataset`",
    "Scores": "made by `scores`",
    "scores": "takes the counts that an evaluation made",
    "TextProjection": "layers of PyTorch",
    "DinoiserHeads": "layers of PyTorch",
    "TclMasker": "layers of PyTorch",
    "list_attention": "takes nothing",
    "list_logits": "takes nothing",
    "list_upsamplers": "takes nothing",
}


# Names without an example of their own, each with the reason.
WITH_WEIGHTS = "stands for a pretrained model; the page of its kind has the call, which is run"
OPTIONS = "options of such a source, which takes them as keywords"
NO_EXAMPLE = {
    "AttentionSource": "a protocol; docs/writing_an_adapter.md has a whole source",
    "LogitsSource": "a protocol; docs/writing_an_adapter.md has a whole source",
    "Upsampler": "a protocol; docs/writing_an_adapter.md has a whole one",
    "check_upsampler": "docs/writing_an_adapter.md has one, which is run",
    "rankseg": "needs a package that no other part does",
    "DenseCrf": "needs a package that no other part does",
    "Decision": "returned by `decide`, whose example shows it",
    "Propagation": "returned by `Lposs`, whose example shows it",
    "Published": "returned by `DataSet.published`",
    "DataSet": "returned by `load_dataset`, whose example shows it",
    "Scores": "returned by `scores`, whose example shows it",
    "RefineModule": "docs/recipes.md exports it, which takes seconds",
    "export_onnx": "docs/recipes.md has one, which takes seconds",
    "export_program": "docs/recipes.md has one, which takes seconds",
    "check_attention_source": "docs/writing_an_adapter.md has one, which is run",
    "check_logits_source": "docs/writing_an_adapter.md has one, which is run",
    "from_hugging_face": "docs/attention.md has one, for a model of that library",
    "Segmenter": "loads weights; docs/quickstart.md has its calls, which are run",
    "load_attention": "loads weights; docs/attention.md has every call",
    "heat_maps": "a step of a source, on the tower's own outputs",
    "LastBlock": OPTIONS,
    "WindowOptions": OPTIONS,
    "ClipOptions": OPTIONS,
    "Calibration": OPTIONS,
    "Talk2DinoOptions": OPTIONS,
    "GroupVitOptions": OPTIONS,
    "PromptableOptions": OPTIONS,
    **dict.fromkeys(
        (
            *("ViTAttention", "StableDiffusionAttention", "CLIPAttention", "AffinityAttention"),
            *("timm_affinity", "TimmBackbone", "ClipLogits", "DenseClip", "ProxyClipLogits"),
            *("ScClipLogits", "CassLogits", "RfClipLogits", "GemLogits", "ClipSurgeryLogits"),
            *("CliptraseLogits", "LavgLogits", "Talk2DinoLogits", "TextProjection"),
            *("ClipDinoiserLogits", "DinoiserHeads", "GroupVitLogits", "PromptableLogits"),
            *("TclLogits", "TclMasker"),
        ),
        WITH_WEIGHTS,
    ),
}


def declared():
    """Return the full names in the API reference, those of modules with all they define."""
    found = []
    for kind, name in DIRECTIVE.findall(read("docs/api.md")):
        full = name if "." in name else f"ovss_refine.{name}"
        found += public_in(full) if kind == "module" else [full]
    return found


def public_in(module):
    """Return the full names of what a module defines for others."""
    members = inspect.getmembers(importlib.import_module(module))
    own = [
        name
        for name, value in members
        if getattr(value, "__module__", None) == module and not name.startswith("_")
    ]
    return [f"{module}.{name}" for name in own]


def load(full):
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(module), name)


NAMES = declared()


def test_every_public_name_is_in_the_reference():
    assert len(NAMES) == len(set(NAMES))
    assert {f"ovss_refine.{name}" for name in ovss_refine.__all__} <= set(NAMES)
    checks = {name for name in vars(testing) if name.startswith("check_") and "source" in name}
    assert {f"ovss_refine.testing.{name}" for name in checks} <= set(NAMES)
    assert len(checks) == 2
    table = set(re.findall(r"`~ovss_refine\.(\w+)`", read("docs/api.md")))
    assert table == set(ovss_refine.__all__)


@pytest.mark.parametrize("kind", ["attention", "logits"])
def test_every_registered_source_is_in_the_reference(kind):
    points = entry_points(group=f"ovss_refine.{kind}")
    ours = [point for point in points if point.module.startswith("ovss_refine_adapters.")]
    assert ours
    for point in ours:
        made = point.load()
        if inspect.isfunction(made):
            named = f"{made.__module__}.{made.__qualname__}"
            made = get_type_hints(made)["return"] if named not in NAMES else made
        assert f"{made.__module__}.{made.__qualname__}" in NAMES, point.name


def section(doc, title):
    """Return the entries of a section of a docstring: name to text."""
    match = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", f"{doc}\n", re.MULTILINE)
    if match is None:
        return {}
    entries = re.split(r"^    (?=[\w.]+(?:, [\w.]+)*:)", match[1], flags=re.MULTILINE)[1:]
    return {entry.partition(":")[0]: entry.partition(":")[2] for entry in entries}


def parameters(thing):
    """Return what a caller gives by name, with its annotation as text."""
    if is_dataclass(thing):
        return {field.name: str(field.type) for field in fields(thing)}
    made = thing.__init__ if inspect.isclass(thing) else thing
    if made is object.__init__ or getattr(thing, "_is_protocol", False):
        return {}
    found = inspect.signature(made).parameters.values()
    return {p.name: str(p.annotation) for p in found if p.name != "self"}


def what_it_says(doc):
    """Return what a docstring, or the ones that it refers to, says of arguments and exceptions."""
    told = section(doc, "Args") | section(doc, "Attributes")
    raises = section(doc, "Raises")
    if reference := re.search(r"[Aa]rguments and exceptions are those of (.*)\.", doc):
        for short in re.findall(r"`(\w+)`", reference[1]):
            (full,) = [name for name in NAMES if name.endswith(f".{short}")]
            more = what_it_says(inspect.getdoc(load(full)))
            told, raises = told | more[0], raises | more[1]
    return told, raises


@pytest.mark.parametrize("full", NAMES)
def test_docstring_says_what_goes_in_and_what_may_be_raised(full):
    thing, name = load(full), full.rpartition(".")[2]
    doc = inspect.getdoc(thing) or ""
    assert doc
    told, raises = what_it_says(doc)
    needed = parameters(thing)
    assert set(needed) - set(told) - {"options"} == set()
    # `**options` are described in words where they are another's: the class's, the producer's.
    assert "options" not in needed or "options" in told or "ptions" in doc
    for parameter, annotation in needed.items():
        if "Tensor" in annotation and not annotation.startswith("collections"):
            assert "[" in told[parameter], f"`{parameter}` must have its shape"
    if name not in RAISES_NOTHING:
        assert raises, "say what a caller can cause, or list it in RAISES_NOTHING"


@pytest.mark.parametrize("full", NAMES)
def test_docstring_has_an_example(full):
    """It is run below."""
    has_one = ">>> " in (inspect.getdoc(load(full)) or "")
    assert has_one != (full.rpartition(".")[2] in NO_EXAMPLE), "one of the two, and not both"


def with_examples():
    """Return the modules of both packages that have examples."""
    for top in (ROOT, ROOT / "adapters"):
        for path in sorted(top.glob("ovss_refine*/**/*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                yield ".".join(path.relative_to(top).with_suffix("").parts)


@pytest.mark.parametrize("module", [*with_examples()])
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted
    assert not done.failed


def methods():
    """Return the methods in the API reference, as (class, method)."""
    found = []
    for name, options in re.findall(
        r"^\.\. autoclass:: (\S+)\n((?:   :.*\n)*)", read("docs/api.md"), re.MULTILINE
    ):
        full = name if "." in name else f"ovss_refine.{name}"
        for field, names in re.findall(r":([\w-]*members):(.*)", options):
            own = [n for n in vars(load(full)) if n[0] != "_"] if field == "members" else []
            listed = [n.strip() for n in names.split(",") if n.strip()]
            found += [(full, n) for n in listed or own if callable(getattr(load(full), n, None))]
    return found


@pytest.mark.parametrize(("full", "name"), methods())
def test_docstring_of_a_method_names_what_goes_in(full, name):
    method = getattr(load(full), name)
    doc = inspect.getdoc(method) or ""
    told, _ = what_it_says(doc)
    if re.search(r"\bexceptions\s+are those of `\w+`", doc):
        return  # whose own docstring is tested
    for parameter, annotation in parameters(inspect.unwrap(method)).items():
        said = told.get(parameter, doc if f"`{parameter}`" in doc else "")
        assert said or parameter == "options", f"say what `{parameter}` is"
        if "Tensor" in annotation and not annotation.startswith("collections"):
            assert "[" in said, f"`{parameter}` must have its shape"


def test_sections_are_read():
    doc = "Do.\n\nArgs:\n    a: [N] one\n        more: yes.\n    b: 2.\n\nRaises:\n    E, F: if.\n"
    assert section(doc, "Args") == {"a": " [N] one\n        more: yes.\n", "b": " 2.\n\n"}
    assert section(doc, "Raises") == {"E, F": " if.\n\n"}
    assert section("Do.\n", "Args") == {}
    assert set(NO_EXAMPLE) <= {full.rpartition(".")[2] for full in NAMES}
    assert len(methods()) > 50
    assert len([*with_examples()]) > 15
    assert set(RAISES_NOTHING) <= {full.rpartition(".")[2] for full in NAMES}


def test_citation():
    yaml = pytest.importorskip("yaml", reason="reads CITATION.cff; PyYAML comes with [models]")
    cited = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type"} <= set(cited)
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    paper, readme = cited["preferred-citation"], " ".join(read("README.md").split())
    assert paper["title"] in readme
    assert paper["url"] in readme
    assert paper["authors"][0] == {"family-names": "Li", "given-names": "J."}
    assert f"arXiv:{paper['url'].rpartition('/')[2]}" == paper["identifiers"][0]["value"]
