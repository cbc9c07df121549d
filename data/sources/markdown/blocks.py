"""Block rules for markdown-it: what other Markdowns indent or fence, and show nevertheless.

    === "Linux"                a tab or an admonition of MkDocs (`!!! tip`, `??? tip`): its body is indented by four
    ```{figure} lamp.png       a directive of MyST or Quarto, of backticks or colons: its body is Markdown
    {{< figure                 a template tag of several lines, the last of which would begin a quotation
      src="lamp.png" >}}

admon_plugin ends an admonition at the second of two empty lines, colon_fence_plugin takes every `:::` for code; so the
first is not used here, and of the second what holds code.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from mdit_py_plugins.colon_fence import colon_fence_plugin

from .inlines import CLOSERS, MAX_TAG, path_in
from .shown import Shown, in_options, is_picture

INDENTED = re.compile(r"""===[!+]?\s+["']|(?:!!!|\?\?\?\+?)\s*[\w"']""")
FENCE = re.compile(r"(`{3,}|~{3,}|:{3,})[ \t]*(?:\{([A-Za-z][\w:.-]*)([^}]*)\}[ \t]*)?(.*)")
BARE = re.compile(r":{3,}+[ \t]*+(?:\{[^{}]*+\}|[\w-]++)?+[ \t]*+:*+[ \t]*+")
"""A line of colons that says no more than a class: no words of the text."""
DEFINITION = re.compile(r"\[([^\]\n]{1,300})\]:[ \t]*(\S.{0,1000})$")
OPTION = re.compile(r":([\w-]+):[ \t]*(.*)")
MOST_OPTIONS = 50
_CODE = (
    "asis bash c cat cell code code-block code-cell cpp css csv-table diagram dot doctest eval-rst exec fortran go "
    "graphviz html java javascript js json julia latex literalinclude make math mermaid ocaml octave ojs perl "
    "plantuml prompt python python-repl r raw rcpp ruby rust scss sh sourcecode sql stan stata tex tikz toml yaml "
    "typescript verbatim xml zsh"
)
CODE = frozenset(_CODE.split())
"""Directives and engines whose body is no Markdown; all others', known or not, is read as such."""
PICTURES = ("figure", "image")
BREAKS: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
"""These rules end a paragraph."""


def dialects(parser: MarkdownIt) -> None:
    """The rules of this file. A token of type `shown` has the pictures of a directive."""
    parser.use(colon_fence_plugin)
    parser.block.ruler.before("colon_fence", "directive", directive, BREAKS)
    parser.block.ruler.before("directive", "indented", indented, BREAKS)
    parser.block.ruler.before("indented", "template_block", template_block, BREAKS)
    parser.block.ruler.after("reference", "definition", definition)


def indented(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A tab or an admonition: the lines below that are indented by four are blocks of their own."""
    if state.is_code_block(start) or not INDENTED.match(_line(state, start)):
        return False
    if silent:
        return True
    indent = state.blkIndent + 4
    after = start + 1
    while after < end and (state.isEmpty(after) or state.sCount[after] >= indent):
        after += 1
    _inline(state, start, start + 1)
    before = state.parentType, state.lineMax, state.blkIndent, state.level
    state.parentType, state.lineMax, state.blkIndent, state.level = "admonition", after, indent, state.level + 1
    state.md.block.tokenize(state, start + 1, after)
    state.parentType, state.lineMax, state.blkIndent, state.level = before
    state.line = after
    return True


def directive(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A line that opens or closes a directive; what is between is read as if the two were not there."""
    if state.is_code_block(start) or (match := FENCE.match(_line(state, start))) is None:
        return False
    fence, name, more, argument = match[1], (match[2] or "").lower(), match[3] or "", match[4].strip()
    opened: list[tuple[str, bool]] = state.env.setdefault("directives", [])
    closes = not name + argument and opened and opened[-1][0][0] == fence[0] and len(fence) >= len(opened[-1][0])
    code = name.partition(":")[0] in CODE or "`" in argument if fence[0] != ":" or name else False
    if not closes and (code or (not name and fence[0] != ":")):
        return False
    if silent:
        return True
    after, shown, whole = start + 1, [], False
    if closes:
        _, whole = opened.pop()
    elif name:
        options, after = _options(state, start + 1, end)
        shown = in_options(argument, options)
        if not shown and name in PICTURES:
            shown = [Shown(argument, options.get("alt", ""))]
        whole = name in PICTURES
        opened.append((fence, whole))
    if whole:
        _show(state, start, after, shown)
        state.line = after
    elif not shown and BARE.fullmatch(_line(state, start)):
        _show(state, start, start + 1, [], what="template tag")
        state.line = start + 1
    else:
        _inline(state, start, start + 1, argument or more)
        if is_picture(argument):
            _show(state, start, start + 1, shown[:1], cut=False)
        state.line = start + 1
        while shown and state.line < after:  # a card has its picture among its options
            if (option := OPTION.match(_line(state, state.line))) and is_picture(option[2]):
                _show(state, state.line, state.line + 1, in_options(option[2], {}))
            state.line += 1
    return True


def template_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A template tag that begins a line and ends on a later one."""
    line = _line(state, start)
    if not line.startswith(("{{", "{%")) or state.is_code_block(start):
        return False
    closer = next(closer for opener, closer in CLOSERS.items() if line.startswith(opener))
    if closer in line:
        return False
    after, length = start + 1, len(line)
    while after < end and closer not in (line := _line(state, after)):
        length, after = length + len(line), after + 1
        if length > MAX_TAG or line.startswith(("{{", "{%")):
            return False
    if after >= end:
        return False
    if not silent:
        _inline(state, start, after + 1)
        state.line = after + 1
    return True


def definition(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """`[lamp]: my lamp.png`, or one with a template tag in its path: CommonMark knows no path with spaces."""
    if silent or state.is_code_block(start) or (match := DEFINITION.match(_line(state, start))) is None:
        return False
    path, label = path_in(match[2]), normalizeReference(match[1])
    if not is_picture(path):
        return False
    state.env.setdefault("references", {}).setdefault(label, {"title": "", "href": path, "map": [start, start + 1]})
    token = state.push("definition", "", 0)
    token.map, token.meta = [start, start + 1], {"id": label, "url": path}
    state.line = start + 1
    return True


def _show(state: StateBlock, start: int, after: int, shown: list[Shown], cut: bool = True, what: str = "") -> None:
    token = state.push("shown", "", 0)
    token.map, token.meta = [start, after], {"shown": shown, "whole": cut, "what": what}


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _inline(state: StateBlock, start: int, after: int, content: str | None = None) -> None:
    token = state.push("inline", "", 0)
    found = state.getLines(start, after, state.blkIndent, False).strip() if content is None else content
    token.content, token.map, token.children = found, [start, after], []


def _options(state: StateBlock, start: int, end: int) -> tuple[dict[str, str], int]:
    """The options of a directive, `:alt: A lamp` or between two `---`, and the line behind them."""
    fenced = start < end and _line(state, start).rstrip() == "---"
    options: dict[str, str] = {}
    for number in range(start + fenced, min(end, start + MOST_OPTIONS)):
        line = _line(state, number)
        if fenced and line.rstrip() == "---":
            return options, number + 1
        if found := OPTION.match(line if not fenced else f":{line}"):
            options[found[1].lower()] = found[2].strip().strip("\"'")
        elif not fenced:
            return options, number
    return ({}, start) if fenced else (options, min(end, start + MOST_OPTIONS))
