"""How the documentation is built: `sphinx-build -W --keep-going -b html docs OUT`.

Nothing is downloaded: formulas are rendered during the build, and the gallery runs on the built-in
examples.
"""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import notebooks  # noqa: E402 - needs the path, like everything that Sphinx imports by name

import ovss_refine  # noqa: E402

project = "ovss_refine"
author = "the ovss_refine authors"
release = version = ovss_refine.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "formulas",
    "notebooks",
    "shown_images",
]
# Generated pages, files to upload, and files for Colab.
exclude_patterns = ["gallery", "space", "notebooks"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# `name` in a docstring is code, and a link where it is a public name.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields are listed once, with their shapes
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"ovss_refine {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "outlines"
html_show_copyright = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("shown_images.scrape",),
    "reset_modules": (),  # matplotlib is not used
    "download_all_examples": False,
    "show_signature": False,
    "first_notebook_cell": notebooks.FIRST_CELL,  # of the notebooks that the pages offer
    "write_computation_times": False,
}


def public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve the full name of a public class in a signature to its short one."""
    target = node.get("reftarget", "").rpartition(".")
    if not target[0].startswith("ovss_refine.") or target[2] not in ovss_refine.__all__:
        return None
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"ovss_refine.{target[2]}", node, contnode
    )


def setup(app: Any) -> None:
    """Register the reference resolver."""
    app.connect("missing-reference", public_name)
