"""Sphinx: `make docs` builds the site. Nothing in it is fetched from elsewhere when it is read."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from generate import toctree, write_pages  # noqa: E402

project, author = "limner", "the authors of limner"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["conf.py", "generate.py"]
html_theme = "furo"
html_title = "limner"
html_show_copyright = html_copy_source = html_show_sphinx = False
html_static_path = ["site"]
html_css_files = ["site.css"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # as GitHub names them
highlight_language = "bash"  # of blocks without a language: they are commands
default_role = "code"
smartquotes = False  # they would make one dash of the two of an option
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True


def contents(_: Any, name: str, source: list[str]) -> None:
    """The order of the pages is that of the links on the first one, a part of the site for each of its sections.
    A page that it does not link is there as well, at the end."""
    if name != "index":
        return
    linked = {"index"}
    for title, section in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", source[0], re.MULTILINE | re.DOTALL):
        pages = [page for page in re.findall(r"\]\((\w+)\.md\)", section) if page not in linked]
        linked |= {*pages}
        source[0] += "\n" + toctree(pages, title)
    others = sorted({page.stem for page in HERE.glob("*.md")} - linked)
    kinds = sorted(f"generated/names/{page.stem}" for page in (HERE / "generated/names").glob("*.md"))
    source[0] += "\n" + (toctree(others, "More") if others else "")
    source[0] += "\n" + toctree(["generated/commands", "generated/python", *kinds], "Reference")


def as_rst(_: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings here are plain words: `argument: what it is`, a line each, and stars that are no markup."""
    try:
        arguments = {*inspect.signature(thing).parameters}
    except (TypeError, ValueError):
        arguments = set()
    found: list[str] = []
    for line in lines:
        word, colon, rest = line.partition(": ")
        plain = re.sub(r"(?<!`)(\*|\|)(?!`)", r"\\\1", line)
        argument = bool(colon) and word in arguments
        if found and found[-1] and argument != found[-1].startswith((":param", " ")) and not line.startswith(" "):
            found.append("")
        found.append(f":param {word}: {rest}" if argument else plain)
    lines[:] = found


def setup(app: Any) -> None:
    write_pages(HERE / "generated")
    app.connect("source-read", contents)
    app.connect("autodoc-process-docstring", as_rst)
