"""The documentation: sphinx-build -W docs build/site.

Pages are Markdown (MyST), the notebook is executed, and the reference is made from the docstrings of all modules.
"""

import pathlib
import re
import shutil
import textwrap
from typing import Any

import jtasks

project, author, version = "jtasks", "The jtasks authors", jtasks.__version__
copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
html_theme = "sphinx_book_theme"
html_title = "jtasks"
html_sidebars = {"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}  # the header has the search field

default_role = "code"  # docstrings have `names` in single backticks
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
napoleon_use_ivar = True  # fields of a class are described once
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell; a busy machine needs some of them
nb_merge_streams = True


def setup(app: Any) -> None:
    """Let docstrings have tables as Markdown writes them, and generate the reference from scratch."""
    shutil.rmtree(pathlib.Path(app.srcdir) / "reference", ignore_errors=True)  # pages of modules that have moved
    app.connect("autodoc-process-docstring", _keep_tables)


def _keep_tables(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    literal = re.sub(
        r"(^ *\|.*\n)+",
        lambda table: f"\n::\n\n{textwrap.indent(table[0], '    ')}\n",
        "".join(f"{line}\n" for line in lines),
        flags=re.MULTILINE,
    )
    lines[:] = literal.split("\n")
