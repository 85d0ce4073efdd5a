"""A reader's path takes as many commands as the documents say, and they run in an empty folder.

The environment is made by the path's own command. What `pip install` would put there is what these
tests run in, together with the scripts that `pyproject.toml` lists; no weights are found.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from doc_pages import PAGES, ROOT, blocks, read, split
from doc_world import write_world
from test_docs import PROJECT, check_pip

WORDS = ("no", "one", "two", "three", "four", "five", "six")
STATED = re.compile(
    rf"\b({'|'.join(WORDS[1:])}) commands?\b[^\n]*\n\n```bash\n(.*?)```", re.DOTALL | re.IGNORECASE
)
INSTALLED = """\
import site, sys
sys.path[1:1] = {first!r}
site.addsitedir({packages!r})
"""


def paths():
    """Return the paths in the table of docs/index.md: the page read first, and its commands."""
    found = {}
    for line in read("docs/index.md").splitlines():
        if match := re.match(r"\| [^|]+ \| (\w+) commands \| .*?\]\((\w+\.md)", line):
            found[f"docs/{match[2]}"] = WORDS.index(match[1])
    return found


def stated(page):
    """Return the scripts of a page before which it says how many commands they are."""
    return [
        (WORDS.index(number.lower()), list(split(script)))
        for number, script in STATED.findall(read(page))
    ]


def path_of(page):
    """Return the commands of a path: those that begin with an environment of their own."""
    (script,) = [script for _, script in stated(page) if "venv" in script[0]]
    return script


def test_the_paths_are_those_of_the_table():
    assert list(paths()) == [
        "docs/quickstart.md",
        "docs/recipes.md",
        "docs/reproduce.md",
        "docs/writing_an_adapter.md",
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if stated(page)])
def test_a_script_has_as_many_commands_as_its_page_says(page):
    for number, script in stated(page):
        assert number == len(script), script


@pytest.mark.parametrize("page", paths())
def test_a_path_has_as_many_commands_as_the_table_says(page):
    script = path_of(page)
    assert len(script) == paths()[page]
    assert script[0] == ("python3", "-m", "venv", ".venv")
    for program, *_ in script[1:]:
        assert program.startswith(".venv/bin/"), "nobody has to activate the environment"


def test_the_first_command_of_readme_is_that_of_the_quick_start():
    assert blocks("README.md", "bash")[0].text == blocks("docs/quickstart.md", "bash")[0].text


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that has what the paths name, and nothing else."""
    (tmp_path / "temporary").mkdir()
    write_world(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    code = [block.text for block in blocks("docs/writing_an_adapter.md", "python")]
    (tmp_path / "test_mine.py").write_text("\n\n".join(code))
    for name in [name for name in os.environ if name.startswith(("PYTEST_", "PYTHON"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no_weights"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.delenv("DISPLAY", raising=False)
    return tmp_path


def install(folder):
    """Do what `pip install` does, with the packages that are here."""
    site = next((folder / ".venv" / "lib").glob("python*")) / "site-packages"
    packages = sysconfig.get_paths()["purelib"]
    first = [str(ROOT), str(ROOT / "adapters")]  # this checkout, before any other
    (site / "installed_here.py").write_text(INSTALLED.format(first=first, packages=packages))
    (site / "installed.pth").write_text("import installed_here\n")
    scripts = PROJECT["scripts"] | {"pytest": "pytest:main"}
    for name, entry in scripts.items():
        module, function = entry.split(":")
        script = folder / ".venv" / "bin" / name
        python = folder / ".venv" / "bin" / "python"
        script.write_text(f"#!{python}\nfrom {module} import {function}\nexit({function}())\n")
        script.chmod(0o755)


def run(words, folder):
    """Run a command of a path; return what it prints."""
    program, *more = words
    if Path(program).name == "pip":
        check_pip(type("Command", (), {"words": words}))
        install(folder)
        return ""
    if program == "python3":
        program, more = sys.executable, [*more, "--without-pip"]
    done = subprocess.run([program, *more], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


LEAVES = {
    "docs/quickstart.md": "ovss-refine-demo",
    "docs/recipes.md": "of the pixels changed",
    "docs/reproduce.md": "missing",
    "docs/writing_an_adapter.md": "3 passed",
}


@pytest.mark.slow(reason="up to four processes, each of which imports torch")
@pytest.mark.parametrize("page", LEAVES)
def test_a_path_runs_from_an_empty_environment(page, checkout):
    printed = [run(words, checkout) for words in path_of(page)]
    assert LEAVES[page] in printed[-1]
    if page == "docs/quickstart.md":
        assert list((checkout / "ovss-refine-demo").glob("*.png"))
