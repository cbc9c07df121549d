"""README and docs as tests read them: headings, links, and code blocks with what a comment before them says.

    <!-- blocks: run by tests/test_walks.py -->                 once a page, below its title
    <!-- blocks: checked, not run: REASON -->
    <!-- file: NAME -->                                         before a block: the page asks for such a file
    <!-- not run: REASON -->                                    before a block of a page that is run
    <!-- not checked: REASON -->                                before any block

A block without a language is commands; what a block of `text` says is for people alone.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which quotes what was
COMMENT = re.compile(r"<!-- *(.*?) *-->", re.DOTALL)
READER = MarkdownIt("commonmark").enable("table")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    mark: str
    """Words of the comment before it: `not run: REASON`, `file: NAME`; else empty."""

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def file(self) -> str:
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""


def blocks_of(page: Path) -> list[Block]:
    found, before = [], ""
    for token in READER.parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map
            found.append(Block(page, token.map[0] + 1, token.info.strip() or "bash", token.content, before))
        comments = COMMENT.findall(token.content) if token.type == "html_block" else [""]
        before = comments[-1] if comments else ""
    return found


def promise_of(page: Path) -> str:
    """What the page says of its blocks: `run by TEST`, or `checked, not run: REASON`."""
    said = [words for words in COMMENT.findall(page.read_text(encoding="utf-8")) if words.startswith("blocks: ")]
    return said[0].removeprefix("blocks: ") if len(said) == 1 else ""


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them of its headings; one that comes again gets a number."""
    found: list[str] = []
    tokens = READER.parse(page.read_text(encoding="utf-8"))
    for opening, inline in zip(tokens, tokens[1:], strict=False):
        if opening.type == "heading_open":
            title = "".join(part.content for part in inline.children or ())
            found.append(re.sub(r"[^\w\- ]", "", title.lower().strip()).replace(" ", "-"))
    return {anchor if not (n := found[:at].count(anchor)) else f"{anchor}-{n}" for at, anchor in enumerate(found)}


def targets_of(page: Path) -> Iterator[str]:
    """Where links and pictures of a page lead, those of HTML as well; not what code blocks say."""
    for token in READER.parse(page.read_text(encoding="utf-8")):
        for part in [token, *(token.children or ())]:
            yield from (str(part.attrs[name]) for name in ("href", "src") if name in part.attrs)
            if part.type in ("html_inline", "html_block"):
                yield from re.findall(r"""(?:href|src)=["']([^"']+)""", part.content)


def commands_of(text: str) -> list[list[str]]:
    """The words of each command, as a shell has them: comments gone, continued lines one, `&&`, `|` and `;` between."""
    found: list[list[str]] = []
    pending = ""
    for line in text.splitlines():
        pending += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on
            pending += "\n"
            continue
        pending = ""
        command: list[str] = []
        for word in [*words, ";"]:
            command += [part] if (part := word.removesuffix(";")) and part not in ("&&", "|") else []
            if word.endswith(";") or word in ("&&", "|"):
                found += [command] if command else []
                command = []
    return found
