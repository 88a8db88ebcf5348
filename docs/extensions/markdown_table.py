"""``.. markdown-table:: PATTERN``: a table of Markdown files, so that no recorded figure is copied by hand.

PATTERN is relative to the page and must match at least one file; ``:table: 2`` takes the second table of each.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RULE = re.compile(r"^\|[ :|-]+\|$")


def cells(line: str) -> list[str]:
    """Return what is between the bars of a line."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[list[str]]:
    """Return the lines of each table: a heading, a rule and rows."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text)]
    lines = [[line for line in block if line.startswith("|")] for block in blocks]
    return [block for block in lines if len(block) > 2 and RULE.match(block[1])]


def as_node(lines: list[str]) -> nodes.table:
    """Return a table node of the lines of a Markdown table."""
    heading, rows = cells(lines[0]), [cells(line) for line in lines[2:]]
    group = nodes.tgroup(cols=len(heading))
    group += [nodes.colspec(colwidth=1) for _ in heading]
    for part, content in ((nodes.thead(), [heading]), (nodes.tbody(), rows)):
        group += part
        for texts in content:
            row = nodes.row()
            row += [nodes.entry("", nodes.paragraph("", text)) for text in texts]
            part += row
    table = nodes.table()
    table += group
    return table


class MarkdownTable(SphinxDirective):
    """The directive."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"table": directives.positive_int}

    def run(self) -> list[nodes.Node]:
        """Read the files and return their tables, each under its name."""
        folder = Path(self.env.doc2path(self.env.docname)).parent
        files = sorted((folder / self.arguments[0]).parent.glob(Path(self.arguments[0]).name))
        if not files:
            raise self.error(f"no file is called {self.arguments[0]}")
        found: list[nodes.Node] = []
        for file in files:
            self.env.note_dependency(str(file.resolve()))
            of_file = tables(file.read_text(encoding="utf-8"))
            number = self.options.get("table", 1)
            if number > len(of_file):
                raise self.error(f"{file.name} has {len(of_file)} tables")
            caption = nodes.paragraph()
            caption += nodes.literal("", f"{file.resolve().parent.name}/{file.name}")
            found += [caption, as_node(of_file[number - 1])]
        return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("markdown-table", MarkdownTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
