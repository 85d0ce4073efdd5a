"""The files around the package agree with each other and with `pyproject.toml`."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture
def jobs():
    return load(".github/workflows/ci.yml")["jobs"]


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def classified():
    """List the versions of Python among the classifiers."""
    start = "Programming Language :: Python :: 3."
    return ["3." + c.removeprefix(start) for c in PROJECT["classifiers"] if c.startswith(start)]


def test_the_workflow_runs_the_check_on_every_supported_python(jobs):
    assert commands(jobs["check"]) == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert jobs["check"]["strategy"]["matrix"]["python-version"] == classified()
    assert PROJECT["requires-python"] == f">={classified()[0]}"


def test_the_workflow_tests_the_lowest_versions_of_all_that_users_install(jobs):
    lowest = jobs["lowest"]
    setup = next(s["with"] for s in lowest["steps"] if "setup-python" in s.get("uses", ""))
    assert setup["python-version"] == classified()[0]
    assert any("--resolution lowest-direct" in command for command in commands(lowest))
    legs = [leg.split(",") for leg in lowest["strategy"]["matrix"]["extras"]]
    assert all(leg[0] == "dev" for leg in legs)
    users = set(EXTRAS) - {"all", "bench", "browser", "docs"}
    assert {extra for leg in legs for extra in leg} == users


def test_every_dependency_has_a_lowest_version():
    needs = [PROJECT["dependencies"], *EXTRAS.values()]
    for need in (need for group in needs for need in group):
        assert re.search(r">=|==", need) or need.startswith(PROJECT["name"]), need


def test_the_workflow_may_only_read_and_ends(jobs):
    workflow = load(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"]
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    for job in jobs.values():
        assert 0 < job["timeout-minutes"] <= 90
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


def test_hooks_use_the_same_ruff():
    hooks = {
        repo["repo"].rpartition("/")[2]: repo for repo in load(".pre-commit-config.yaml")["repos"]
    }
    ruff = hooks["ruff-pre-commit"]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in EXTRAS["dev"]
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]


def test_files_end_with_a_line_and_lines_without_blanks():
    folders = (".github", ".ci", "docs", "ovss_refine", "adapters", "tests", "benchmarks")
    suffixes = (".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".css")
    found = [*ROOT.glob("*.*"), *(p for folder in folders for p in (ROOT / folder).rglob("*"))]
    files = [p for p in found if p.suffix in suffixes and "auto_gallery" not in p.parts]
    assert len(files) > 200
    for path in files:
        text = path.read_text()
        assert not re.search(r"[ \t]$", text, re.M), path
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), path


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates(path):
    """What GitHub requires of a form: names, and fields with ids that differ."""
    form = load(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) > 0
    for field in form["body"]:
        assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_command_in_the_bug_report_prints_the_versions(capsys):
    text = next(f for f in load(TEMPLATES[0])["body"] if f["id"] == "versions")
    code = re.search(r'python -c "(.*?)"', text["attributes"]["description"])[1]
    exec(code, {})
    assert PROJECT["version"] in capsys.readouterr().out


def test_the_other_files_for_github_are_read():
    assert [path.stem for path in TEMPLATES] == ["bug_report", "feature_request"]
    assert load(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}
    (update,) = load(".github/dependabot.yml")["updates"]
    assert update["package-ecosystem"] == "github-actions"
    assert update["schedule"]["interval"]


def test_the_source_archive_has_the_files_at_the_top():
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {path.name for path in ROOT.glob("*.md")} <= {name[1:] for name in included}
    assert [name for name in included if not (ROOT / name[1:]).exists()] == []


def test_the_citation_is_that_of_the_package_and_of_readme():
    cited, readme = load("CITATION.cff"), (ROOT / "README.md").read_text()
    assert cited["abstract"] == PROJECT["description"] + "."
    assert [author["name"] for author in cited["authors"]] == [
        a["name"] for a in PROJECT["authors"]
    ]
    paper = cited["preferred-citation"]
    first, *others = paper["authors"]
    assert others == [{"name": "others"}]
    bibtex = re.search(r"^```bibtex\n(.*?)^```", readme, re.M | re.S)[1]
    for value in (
        paper["title"],
        f"{first['family-names']}, {first['given-names']} and others",
        f"{{{paper['year']}}}",
        f"{{{PROJECT['version']}}}",
    ):
        assert value in bibtex
    assert PROJECT["urls"]["Paper"] == paper["url"]


def test_the_license_is_an_expression_without_a_classifier():
    assert PROJECT["license"] == "Apache-2.0"
    assert not [c for c in PROJECT["classifiers"] if c.startswith("License")]


def test_the_address_of_the_repository_stands_in_one_place():
    address = PROJECT["urls"]["Homepage"].removeprefix("https://")
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
    for path in (*ROOT.glob("*.*"), *(ROOT / ".github").rglob("*.*")):
        if path.is_file() and path.name != "pyproject.toml":
            assert address not in path.read_text(), path


def test_the_gpu_script_is_bounded_and_names_what_there_is():
    script = ROOT / "benchmarks" / "gpu.sh"
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    limits = re.findall(r"^step \w+ (\d+) ", text, re.M)
    assert len(limits) == 5
    assert sum(int(limit) + 3 for limit in limits) < 6 * 60  # 3: until a step is killed
    for name in re.findall(r"\b(?:benchmarks|tests)/[\w./]+", text):
        assert (ROOT / name).exists(), name
