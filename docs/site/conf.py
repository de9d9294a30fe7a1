"""The site of the docs, made by Sphinx: every page of the repository, with search, offline.

`make docs` builds it. A new page or folder below docs/ is in the navigation by itself. Pages are
read where they are, so their links to each other are those of the repository.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FIRST = ("tutorials", "notebooks", "how-to", "operations", "reference")
"""Folders below docs/ that come first in the navigation; the others follow, by name."""

project = "cprec"
author = "the authors of cprec"
html_title = "cprec"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/**"]
exclude_patterns = ["docs/site/**"]
templates_path = ["templates"]
myst_heading_anchors = 6
suppress_warnings = ["toc.empty_glob"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "py:obj"
napoleon_numpy_docstring = False
html_theme = "furo"
html_additional_pages = {"index": "index.html"}
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False


class NotebookParser(MystParser):
    """Reads a notebook, which has no outputs, as Markdown."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parses the cells one after the other."""
        super().parse(notebook_to_markdown(inputstring), document)


def notebook_to_markdown(text: str) -> str:
    """Returns the cells of a notebook as Markdown."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
    parts = (f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)
    return "\n\n".join(parts)


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Adds the list of all pages to the first one, which the navigation is made of."""
    if docname != root_doc:
        return
    folders = {path.name for path in DOCS.iterdir() if path.is_dir()} - {"images", "site"}
    ordered = [name for name in FIRST if name in folders] + sorted(folders - {*FIRST})
    trees = {"About": "docs/*\nCHANGELOG\nCONTRIBUTING"}
    trees |= {
        name.capitalize(): f"docs/{name}/README\n" * (DOCS / name / "README.md").exists()
        + f"docs/{name}/*"
        for name in ordered
    }
    for caption, pages in trees.items():
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{pages}\n```\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds notebooks and navigation; diagrams are shown as the text that they are."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", add_navigation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
