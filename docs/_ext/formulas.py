"""Formulas as inline SVG, rendered when the site is built.

MathJax is a script of megabytes to download or bundle; MathML renders well only with a mathematics
font. Outlines look the same everywhere and need neither script nor network. Their label, for screen
readers, is the formula's TeX.
"""

import re
from html import escape
from typing import Any

import ziafont
import ziamath
from docutils import nodes
from sphinx.util import logging

LOG = logging.getLogger(__name__)
# At equal size the formulas' font looks smaller than the text's, which has 16 pixels.
SIZE_PX = 18


def inline(translator: Any, node: nodes.Element) -> None:
    """Write an inline formula, aligned with the baseline."""
    svg, depth = drawn(node, inline=True)
    translator.body.append(f'<span class="formula" style="--depth: {depth}px">{svg}</span>')
    raise nodes.SkipNode


def block(translator: Any, node: nodes.Element) -> None:
    """Write a display formula, which scrolls in a narrow window."""
    translator.body.append(f'<div class="formula">{drawn(node, inline=False)[0]}</div>\n')
    raise nodes.SkipNode


def drawn(node: nodes.Element, *, inline: bool) -> tuple[str, float]:
    """Return a formula as SVG, and its depth below the baseline: pixels, <= 0."""
    tex = node.astext().strip()
    try:
        formula = ziamath.Latex(tex, size=SIZE_PX, inline=inline, color="currentColor")
        svg = formula.svg()
    except Exception as error:  # ziamath has no exception class
        LOG.warning("formula cannot be rendered: %s: %r", tex, error, location=node)
        return "", 0.0
    # Unknown commands are rendered verbatim.
    if unknown := re.findall(r"\\\w+", formula.mathmlstr()):
        LOG.warning("formula has unknown commands: %s", unknown, location=node)
    # The baseline is at y = 0 of the box x, y, width, height.
    _, top, _, height = map(float, formula.svgxml().attrib["viewBox"].split())
    label = escape(tex, quote=True).replace("\n", " ")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return svg, round(-top - height, 2)


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer as "outlines"."""
    # Paths, not references: those of several formulas on a page would have the same names.
    ziafont.config.svg2 = False
    ziafont.config.precision = 2  # decimals of a pixel: a third fewer bytes
    app.add_html_math_renderer("outlines", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
