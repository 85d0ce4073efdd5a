"""Formulas as pictures within the page, drawn while the site is built.

MathJax would be a script of megabytes, to be fetched or kept here; MathML is drawn well only where
the reader has a font for mathematics. Outlines look the same everywhere, and need neither script
nor network. Their label is the formula's TeX, to be read aloud.
"""

import re
from html import escape
from typing import Any

import ziafont
import ziamath
from docutils import nodes
from sphinx.util import logging

LOG = logging.getLogger(__name__)
# Letters of the formulas' font are smaller than those of the text, 16 pixels, at the same size.
SIZE_PX = 18


def inline(translator: Any, node: nodes.Element) -> None:
    """Write a formula within a line, on the line's baseline."""
    svg, depth = drawn(node, inline=True)
    translator.body.append(f'<span class="formula" style="--depth: {depth}px">{svg}</span>')
    raise nodes.SkipNode


def block(translator: Any, node: nodes.Element) -> None:
    """Write a formula on a line of its own, which scrolls where the window is narrow."""
    translator.body.append(f'<div class="formula">{drawn(node, inline=False)[0]}</div>\n')
    raise nodes.SkipNode


def drawn(node: nodes.Element, *, inline: bool) -> tuple[str, float]:
    """Return a formula as SVG, and how far it reaches below the baseline: pixels, <= 0."""
    tex = node.astext().strip()
    try:
        formula = ziamath.Latex(tex, size=SIZE_PX, inline=inline, color="currentColor")
        svg = formula.svg()
    except Exception as error:  # it has no exception of its own
        LOG.warning("formula cannot be drawn: %s: %r", tex, error, location=node)
        return "", 0.0
    # A command that it does not know is drawn as it stands.
    if unknown := re.findall(r"\\\w+", formula.mathmlstr()):
        LOG.warning("formula has unknown commands: %s", unknown, location=node)
    # The baseline is at y = 0 of the box x, y, width, height.
    _, top, _, height = map(float, formula.svgxml().attrib["viewBox"].split())
    label = escape(tex, quote=True).replace("\n", " ")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return svg, round(-top - height, 2)


def setup(app: Any) -> dict[str, bool]:
    """Offer the renderer under the name "outlines"."""
    # Paths, not references: a page has many formulas, whose references would share their names.
    ziafont.config.svg2 = False
    ziafont.config.precision = 2  # of a pixel: a third fewer bytes
    app.add_html_math_renderer("outlines", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
