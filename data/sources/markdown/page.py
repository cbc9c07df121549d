"""A page's text: where it shows pictures, what is markup around them, and what is code.

page = parse("# Lamp\n\n![lamp](lamp.png){width=50%}\n", 0)
page.heading                 # Lamp
page.cuts                    # what is taken out of the text, in order, with the pictures that stood there
page.quiet                   # code and comments: nothing there is a picture
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, backtick, html_inline, image, link
from markdown_it.token import Token
from mdit_py_plugins.deflist import deflist_plugin
from mdit_py_plugins.footnote import footnote_plugin

from . import blocks, inlines
from .shown import DRAWING, VERSION, Shown, in_html, is_picture, literals

ATTRIBUTES = re.compile(r"[ \t]{0,8}(?:\n[ \t]{0,8})?\{(?![{%<]|# )[^{}\n]{1,500}\}(?!\})")
"""Directly behind a picture: `{ width=300 }` of pandoc and MkDocs, `{: .right}` of kramdown, on the next line too."""
EMPTY = re.compile(r"\s*(?:\{[^{}]*\}\s*)?")
"""Between a picture and the end of a link around it: nothing, or its attributes."""
IMPORT = re.compile(r"""^import[ \t]+([A-Za-z_$][\w$]{0,80})[ \t]+from[ \t]+["']([^"'\n]{1,500})["'];?[ \t]*$""", re.M)
"""Of an MDX page."""
TABLE = re.compile(r"^(?:[ \t:-]*\|[ \t:|-]*(?:\n|\Z))+", re.M)
"""Rows without a word."""
SHELL = re.compile(r"</?(picture|source|figure|figcaption|video)\b", re.IGNORECASE)
"""HTML around a picture, that says nothing without it."""
SIZE_IN_ALT = re.compile(r"\|\d{1,5}(?:x\d{1,5})?$")
CHUNK = re.compile(r"(?:include_graphics\(([^)\n]{0,500})\)|^[ \t]*\.\. (?:image|figure)::[ \t]*(\S{1,500}))", re.M)
"""A picture that code shows: R's knitr, and reStructuredText in `{eval-rst}`."""
CHUNK_ONLY = re.compile(r"[ \t]*(?:#.*|:[\w-]+:.*|\.\. (?:image|figure)::.*|(?:knitr::)?include_graphics\(.*)?")
VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr")
"""Tags that no other closes."""
CODE_TAGS = ("code", "pre", "script", "style", "textarea")
UNUSED = ("unused", "the page defines it and shows it nowhere")


@dataclass(frozen=True, slots=True)
class Cut:
    """What is taken out of a text, from `start` to `end`, and the pictures that stood there."""

    start: int
    end: int
    shown: tuple[Shown, ...] = ()
    what: str = ""
    """What it is where it shows none: `template tag`, `shell tag`, `definition`, `import`, `empty table`."""


@dataclass(slots=True)
class Page:
    heading: str = ""
    cuts: list[Cut] = field(default_factory=list)
    quiet: list[tuple[int, int]] = field(default_factory=list)
    """Code, comments, definitions."""
    indented: list[Cut] = field(default_factory=list)
    """What would be a picture, had it not been indented to be code."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Offsets in the content of a block."""

    start: int
    end: int
    shown: tuple[Shown, ...] = ()
    what: str = ""
    quiet: bool = False
    attributes: bool = False
    """Whether a list of attributes may follow."""


def parse(text: str, body_start: int) -> Page:
    """Raises ValueError where a line of a block is not found in the text, RecursionError where it nests too deeply."""
    lines = text[body_start:].split("\n")
    starts = list(itertools.accumulate((len(line) + 1 for line in lines), initial=body_start))
    page, in_heading = Page(), False
    parser = _parser()
    env: dict[str, Any] = {"imports": {name: path for name, path in IMPORT.findall(text) if is_picture(path)}}
    definitions: list[tuple[Token, int, int]] = []
    labels: dict[str, set[str]] = {"image": set(), "link_open": set()}
    for token in parser.parse(text[body_start:], env):
        in_heading = token.type == "heading_open" or (in_heading and token.type == "inline")
        if token.map is None:
            continue
        start, end = starts[token.map[0]], min(starts[token.map[1]] - 1, len(text))
        found: list[_Found] = []
        if token.type == "inline":
            children = token.children or []
            page.heading = page.heading or (plain(children) if in_heading else "")
            found = _in_inline(children, env)
            for child in children:
                labels.get(child.type, set()).add(child.meta.get("label", ""))
        elif token.type == "html_block":
            found, quiet = _in_html_block(token.content, parser, env)
            page.quiet += [(start, end)] if quiet else []
        elif token.type in ("fence", "colon_fence"):
            page.quiet.append((start, end))
            page.cuts += _in_code(token, start, end)
            found = _in_inline(_inline(token.content, parser, env), env) if "{=html}" in token.info else []
        elif token.type == "code_block":
            page.quiet.append((start, end))
            if any(mark in token.content for mark in ("![", "<", "{{", "{%", "[[")):
                page.indented += _placed(_in_inline(_inline(token.content, parser, env), env), token, lines, starts)
        elif token.type == "definition":
            definitions.append((token, start, end))
        elif token.type == "shown":
            cut_from = start if token.meta["whole"] else end
            page.cuts.append(Cut(cut_from, end, tuple(token.meta["shown"]), token.meta["what"]))
        for item, cut in zip(found, _placed(found, token, lines, starts), strict=True):
            if item.quiet:
                page.quiet.append((cut.start, cut.end))
            else:
                behind = ATTRIBUTES.match(text, cut.end) if item.attributes else None
                page.cuts.append(replace(cut, end=behind.end()) if behind else cut)
    cuts, kept = _of_definitions(definitions, labels, text)
    cuts += _of_imports(text, page)
    page.cuts, page.quiet = _apart(page.cuts + cuts), page.quiet + kept
    page.cuts = _apart([*page.cuts, *empty_tables(text, page.cuts, page.quiet)])
    return page


def empty_tables(text: str, cuts: list[Cut], quiet: list[tuple[int, int]]) -> list[Cut]:
    """What is left of tables that held pictures and no word: the spans between these."""
    bare, code = blanked(text, [(cut.start, cut.end) for cut in cuts]), sorted(quiet)
    found: list[Cut] = []
    for match in TABLE.finditer(bare):
        start, end = match.span()
        before, behind = (
            bare[bare.rfind("\n", 0, max(0, start - 1)) + 1 : start],
            bare[end : bare.find("\n", end) + 1 or None],
        )
        at = bisect.bisect(code, (end, 0))
        if "-" not in match[0] or "|" in before + behind or (at and code[at - 1][1] > start):
            continue
        number, what = bisect.bisect_right(cuts, start, key=lambda cut: cut.end), "empty table"
        while start < end:
            inner = cuts[number] if number < len(cuts) and cuts[number].start < end else None
            if start < (stop := inner.start if inner else end):
                found.append(Cut(start, stop, what=what))
                what = ""
            start, number = inner.end if inner else end, number + 1
    return found


def blanked(text: str, gone: list[tuple[int, int]]) -> str:
    """The text with spaces where something is cut out or is code, by offsets."""
    left, end = [], 0
    for first, last in sorted(gone):
        left += [text[end:first], " " * (max(last, end) - max(first, end))]
        end = max(end, last)
    return "".join((*left, text[end:]))


def plain(children: list[Token]) -> str:
    """The words of a heading, or of a picture's description."""
    words = [" " if child.type == "softbreak" else child.content for child in children if child.type != "html_inline"]
    return " ".join("".join(words).split())


# ---- the parser ----


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"maxNesting": 60, "inline_definitions": True, "store_labels": True})
    # References are judged later, not there: a refused scheme would make the picture plain text, unreported.
    parser.validateLink = lambda url: True
    parser.normalizeLink = lambda url: url
    parser.use(footnote_plugin, inline=False, move_to_end=False).use(deflist_plugin)
    blocks.dialects(parser)
    inlines.dialects(parser)
    rules = {"image": image, "html_inline": html_inline, "link": link, "backticks": backtick}
    for name, rule in rules.items():
        parser.inline.ruler.at(name, _recording(rule))
    return parser


def _recording(rule: Callable[[StateInline, bool], bool]) -> Callable[[StateInline, bool], bool]:
    """The same rule, which notes in its token where in the block's content it matched."""

    def record(state: StateInline, silent: bool) -> bool:
        start, first = state.pos, len(state.tokens)
        matched = rule(state, silent)
        if matched and not silent:
            kinds = ("image", "html_inline", "link_open", "code_inline")
            if token := next((t for t in state.tokens[first:] if t.type in kinds), None):
                token.meta["span"] = (start, state.pos)
        return matched

    return record


def _inline(content: str, parser: MarkdownIt, env: dict[str, Any]) -> list[Token]:
    tokens: list[Token] = []
    parser.inline.parse(content, parser, env, tokens)
    return tokens


# ---- where the pictures are ----


def _in_inline(children: list[Token], env: dict[str, Any], html_only: bool = False) -> list[_Found]:
    """A link around nothing but pictures goes with them; any other link stays, as text."""
    found: list[_Found] = []
    link_start, first, bare = 0, 0, False
    region = _Region()
    for child in children:
        start, end = child.meta.get("span", (0, 0))
        item: _Found | None = None
        if child.type == "link_open":
            link_start, first, bare = start, len(found), "span" in child.meta  # an autolink has none
        elif child.type == "link_close":
            if bare and len(found) > first:
                found[first] = replace(found[first], start=link_start)
                found[-1] = replace(found[-1], end=region.link_end)
        elif child.type == "html_inline":
            item = region.enter(child.content, start, end, env, found)
        elif child.type == "code_inline":
            item = _Found(start, end, quiet=True)
        elif child.type == "image" and not (html_only or region.name):
            alt = SIZE_IN_ALT.sub("", plain(child.children or []))
            item = _Found(start, end, (Shown(str(child.attrs.get("src", "")), alt),), attributes=True)
        elif child.type == "shown" and not region.name:
            shown, what = tuple(child.meta["shown"]), child.meta["what"]
            item = _Found(start, end, shown, what, child.meta["quiet"], attributes=not what)
        if child.type == "link_open":
            region.link_end = end
        elif child.type != "link_close":
            alone = item is not None and not item.quiet and (item.shown or item.what == "shell tag")
            bare = bare and bool(alone or (child.type in ("text", "softbreak") and EMPTY.fullmatch(child.content)))
        found += [item] if item else []
    return found + region.leave()


class _Region:
    """Where in the HTML of a block we are: in code, in a drawing, in a `<picture>`."""

    def __init__(self) -> None:
        self.name = ""
        """The element whose content is no Markdown; empty outside of one."""
        self.start = self.end = self.link_end = 0
        self.in_picture = False
        self.sources: list[int] = []

    def enter(self, tag: str, start: int, end: int, env: dict[str, Any], found: list[_Found]) -> _Found | None:
        """What a tag is, which stands there; the versions of a `<picture>` that are in `found` are marked as such."""
        self.end = end
        named = re.match(r"<(/?)([A-Za-z][\w.:-]*)", tag)
        closing, name = (bool(named[1]), named[2].lower()) if named else (False, "")
        if self.name:
            if closing and name == self.name:
                return next(iter(self.leave()), None)
            if self.name not in ("pre", "code"):
                return None
        elif name in (*CODE_TAGS, "svg") and not closing and not tag.endswith("/>"):
            self.name, self.start = name, start
            return None
        if not named:
            return _Found(start, end, quiet=True)  # a comment
        shown = tuple(in_html(tag, inlines.imports_of(env)))
        if name == "picture":
            self._versions(found, 1 if closing else 0)
            self.in_picture = not closing
        elif name == "source" and self.in_picture and shown:
            self.sources.append(len(found))
        elif name == "img" and self.in_picture:
            self._versions(found, 0)
        opened: list[bool] = env.setdefault("open tags", {}).setdefault(name, [])
        gone = closing and bool(opened) and opened.pop()
        if not closing and name not in VOID and not tag.endswith("/>"):
            opened.append(bool(shown))
        if shown:
            return _Found(start, end, shown)
        return _Found(start, end, what="shell tag") if gone or SHELL.match(tag) else None

    def leave(self) -> list[_Found]:
        """At the end of an element whose content is no Markdown, or of the block."""
        name, self.name = self.name, ""
        if name == "svg":
            return [_Found(self.start, self.end, (Shown("<svg>", fault=DRAWING),))]
        return [_Found(self.start, self.end, quiet=True)] if name else []

    def _versions(self, found: list[_Found], kept: int) -> None:
        for index in self.sources[kept:]:
            shown = tuple(replace(one, fault=VERSION) for one in found[index].shown)
            found[index] = replace(found[index], shown=shown)
        self.sources = []


def _in_html_block(content: str, parser: MarkdownIt, env: dict[str, Any]) -> tuple[list[_Found], bool]:
    """What is in it, Markdown too (`<figure markdown>`), and whether the rest of it is code or a comment."""
    head = content.lstrip().lower()
    if head.startswith(("<script", "<style", "<textarea")) or (head.startswith("<!--") and "-->" not in head):
        return [], True
    raw = head.startswith("<pre")
    return _in_inline(_inline(content, parser, env), env, raw), raw


def _in_code(token: Token, start: int, end: int) -> list[Cut]:
    """The pictures that a code chunk shows. The chunk goes with them where it does nothing else."""
    if not token.info.strip().startswith("{"):
        return []
    shown: list[Shown] = []
    for arguments, path in CHUNK.findall(token.content):
        shown += [
            Shown(target, by_name=True) for target in ([path] if path else filter(is_picture, literals(arguments)))
        ]
    alone = all(CHUNK_ONLY.fullmatch(line) for line in token.content.split("\n"))
    return [Cut(start if alone else end, end, tuple(shown))] if shown else []


def _of_definitions(
    definitions: list[tuple[Token, int, int]], used: dict[str, set[str]], text: str
) -> tuple[list[Cut], list[tuple[int, int]]]:
    """Those of pictures go, whether or not one uses them; those of links stay, and hold no picture."""
    cuts, kept = [], []
    for token, start, end in definitions:
        label, url = token.meta["id"], token.meta["url"]
        start = text.index("[", start)
        if label in used["link_open"]:
            kept.append((start, end))
        elif label in used["image"]:
            cuts.append(Cut(start, end, what="definition"))
        elif is_picture(url):
            cuts.append(Cut(start, end, (Shown(url, fault=UNUSED),)))
    return cuts, kept


def _of_imports(text: str, page: Page) -> list[Cut]:
    """The lines of an MDX page that name its pictures go, whether or not a tag shows them."""
    shown = {shown.target for cut in page.cuts for shown in cut.shown}
    cuts = []
    for match in IMPORT.finditer(blanked(text, page.quiet)):
        if is_picture(match[2]):
            unused = () if match[2] in shown else (Shown(match[2], fault=UNUSED),)
            cuts.append(Cut(match.start(), match.end(), unused, "import"))
    return cuts


# ---- from a block to the page ----


def _placed(found: list[_Found], token: Token, lines: list[str], starts: list[int]) -> list[Cut]:
    """Offsets in the content of a block, as offsets in the page."""
    if not found:
        return []
    assert token.map is not None  # a block knows its lines
    first, last = token.map
    rows, cuts = _rows(token.content, lines, starts, first, max(last, first + 1)), []  # deflist_plugin's may be empty
    for item in found:
        start = _place(rows, item.start)
        cuts.append(
            Cut(start, _place(rows, item.end - 1) + 1 if item.end > item.start else start, item.shown, item.what)
        )
    return cuts


def _rows(content: str, lines: list[str], starts: list[int], first: int, last: int) -> list[tuple[int, int]]:
    """For each line of a block's content: its offset there, and that offset in the file.

    The parser takes list indents and quote marks away and strips the ends, so a content line is found as the last
    occurrence in its row, in order. Raises ValueError where it is not found.
    """
    rows, row, offset = [], first, 0
    for line in content.rstrip("\n").split("\n"):
        bare = line.strip()
        while row < last and bare not in lines[row]:
            row += 1
        if row >= last:
            raise ValueError(f"lost line {bare[:40]!r}")
        indent = len(line) - len(line.lstrip())
        rows.append((offset, starts[row] + lines[row].rfind(bare) - indent))
        offset, row = offset + len(line) + 1, row + 1
    return rows


def _place(rows: list[tuple[int, int]], offset: int) -> int:
    begin, there = rows[bisect.bisect_right(rows, offset, key=lambda entry: entry[0]) - 1]
    return there + offset - begin


def _apart(cuts: list[Cut]) -> list[Cut]:
    """In order, and none over another: of two, the later begins where the earlier ends."""
    apart, end = [], 0
    for cut in sorted(cuts, key=lambda cut: (cut.start, cut.end)):
        end = max(end, cut.end)
        apart.append(replace(cut, start=max(cut.start, apart[-1].end if apart else 0), end=end))
    return apart
