"""The tutorials as notebooks, in `docs/notebooks`, for Colab, which opens them from the repository.

`python docs/_ext/notebooks.py` writes them; a test compares them with their scripts.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
FOLDER = DOCS / "notebooks"
TUTORIALS = ("plot_a_quick_start", "plot_b_your_model", "plot_c_your_data")
# Colab has neither the package nor its models.
FIRST_CELL = "%pip install -q 'ovss-refine[models]'"
COLAB = (
    "https://colab.research.google.com/github/{repository}/blob/main/docs/notebooks/{name}.ipynb"
)


def notebook(name: str) -> str:
    """Return a tutorial as the text of a notebook, as the site's pages offer it."""
    from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF
    from sphinx_gallery.notebook import jupyter_notebook
    from sphinx_gallery.py_source_parser import split_code_and_text_blocks

    _, blocks = split_code_and_text_blocks(str(DOCS / "gallery" / f"{name}.py"))
    settings = {**DEFAULT_GALLERY_CONF, "first_notebook_cell": FIRST_CELL}
    return json.dumps(jupyter_notebook(blocks, settings, str(FOLDER)), indent=1) + "\n"


def address(name: str) -> str:
    """Return where Colab opens a tutorial; the repository is the one in `pyproject.toml`."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Homepage"].removeprefix("https://github.com/")
    return COLAB.format(repository=repository, name=name)


def add_badge(app: Any, page: str, source: list[str]) -> None:
    """Put a badge below the title of a tutorial's page."""
    name = page.rpartition("/")[2]
    if page.startswith("auto_gallery/") and name in TUTORIALS:
        badge = (
            f"\n.. image:: /images/badge_colab.svg\n   :target: {address(name)}\n"
            "   :alt: Open the notebook in Colab\n"
        )
        source[0] = re.sub(
            r"^(.+\n=+\n)", lambda title: title[1] + badge, source[0], count=1, flags=re.MULTILINE
        )


def setup(app: Any) -> dict[str, bool]:
    """Register the badge."""
    app.connect("source-read", add_badge)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in TUTORIALS:
        (FOLDER / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")
