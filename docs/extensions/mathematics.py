"""Formulas as MathML, which browsers show by themselves: the pages load nothing from other sites."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

# docutils sets the index of a letter with an accent below the letter; so it is given to an empty group.
ACCENT = re.compile(r"(\\(?:tilde|hat|bar)) ([a-z])_")


def as_mathml(node: nodes.Element, *, block: bool) -> str:
    """Return the formula of a node; one that cannot be translated raises, and the build fails."""
    return str(latex2mathml.tex2mathml(ACCENT.sub(r"{\1 \2}{}_", node.astext()), as_block=block))


def inline(translator: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(as_mathml(node, block=False))
    raise nodes.SkipNode


def displayed(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own line."""
    translator.body.append(f'<div class="math" style="margin: 0.5em 0">{as_mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
