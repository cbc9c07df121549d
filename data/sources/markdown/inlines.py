"""Inline rules for markdown-it: pictures and tags that CommonMark does not know, each noted with where it stands.

    ![[pump.png|200]]                   wiki embeds; [[File:pump.png]]
    ![lamp](my lamp.png =200x100)       spaces in a path, a size, a template tag
    {{< figure src="lamp.png" >}}       template tags: Hugo, Jekyll, Hexo, liquid, Jinja
    <Image src={lamp} />                JSX, which is no HTML

A token of type `shown` holds in its `meta` the span, the pictures, and what the markup is. No rule looks further than
MAX_TAG characters, so that a page of opening marks alone takes time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.html_re import HTML_TAG_RE
from markdown_it.rules_inline import StateInline

from .shown import NO_PICTURE, Shown, in_html, in_template, is_picture

MAX_TAG = 2000
"""Characters of the longest tag or path that is looked for."""
TEMPLATE_TAG = "template tag"
"""What is taken out of a text without a picture."""
CLOSERS = {"{{<": ">}}", "{{%": "%}}", "{%": "%}", "{{": "}}", "{# ": " #}"}
"""Of template tags, the longer openers first."""
SIZE = re.compile(r"\s=(?:\d{1,5}(?:px|%)?)?(?:x(?:\d{1,5}(?:px|%)?|auto)?)?$", re.IGNORECASE)
"""`=200x100` behind a path, as HackMD and others have it."""
WIKI_SIZE = re.compile(r"\d{1,5}(?:x\d{1,5})?(?:px)?|left|right|center|thumb|frame", re.IGNORECASE)
COMPONENT = re.compile(r"<(?:img|[A-Za-z][\w.:-]{0,60})(?=\s)")


def dialects(parser: MarkdownIt) -> None:
    """The rules of this file. `env["imports"]` of a parse is what an MDX page calls its picture files."""
    parser.inline.ruler.before("image", "wiki", wiki)
    parser.inline.ruler.after("image", "loose", loose)
    parser.inline.ruler.before("link", "template", template)
    parser.inline.ruler.after("html_inline", "component", component)


def wiki(state: StateInline, silent: bool) -> bool:
    """`![[file|size or text]]`, and `[[File:...]]` of MediaWiki."""
    start = state.pos
    if state.src[start] not in "![":
        return False
    head = next((h for h in ("![[", "[[File:", "[[Image:", "[[file:") if state.src.startswith(h, start)), None)
    if head is None:
        return False
    line = state.src[start : min(start + MAX_TAG, state.posMax)].partition("\n")[0]
    end = line.find("]]")
    if end < 0:
        return False
    target, *rest = (part.strip() for part in line[len(head) : end].replace("\\|", "|").split("|"))
    if not is_picture(target):
        shown = Shown(target, fault=NO_PICTURE)
    else:
        shown = Shown(target, " ".join(part for part in rest if not WIKI_SIZE.fullmatch(part)), by_name=True)
    return _note(state, silent, start + end + 2, [shown])


def loose(state: StateInline, silent: bool) -> bool:
    """`![text](path)` where CommonMark sees no picture because the path has spaces, a size or a template tag."""
    start = state.pos
    if not state.src.startswith("![", start) or state.src.find("](", start, start + MAX_TAG) < 0:
        return False
    label_end = state.md.helpers.parseLinkLabel(state, start + 1)
    if label_end < 0 or not state.src.startswith("(", label_end + 1):
        return False
    inside = _in_brackets(state.src[label_end + 2 : min(label_end + 2 + MAX_TAG, state.posMax)])
    if inside is None:
        return False
    alt = " ".join(state.src[start + 2 : label_end].split())
    return _note(state, silent, label_end + 3 + len(inside), [Shown(path_in(inside), alt)])


def path_in(destination: str) -> str:
    """The path without the size and the title behind it."""
    target = SIZE.sub("", destination.strip())
    for quote in ('"', "'"):
        opened = target.find(f" {quote}")
        if target.endswith(quote) and 0 < opened < len(target) - 2 and is_picture(target[:opened]):
            target = SIZE.sub("", target[:opened].strip())
    return target.strip().removeprefix("<").removesuffix(">")


def template(state: StateInline, silent: bool) -> bool:
    """A template tag, with the pictures that it names. `${{ x }}` is none, nor are the braces of a formula."""
    start, src = state.pos, state.src
    if src[start] != "{":
        return False
    opener = next((opener for opener in CLOSERS if src.startswith(opener, start)), None)
    before = src[start - 1 : start]
    if opener is None or before == "$":
        return False
    glued = before.isalnum() or before in ("}", "^", "_", "\\")
    if opener == "{{" and before and glued and not src[start + 2 : start + 3].isspace():
        return False
    end = src.find(CLOSERS[opener], start + len(opener), min(start + MAX_TAG, state.posMax))
    if end < 0:
        return False
    inside = src[start + len(opener) : end]
    end += len(CLOSERS[opener])
    if inside.startswith("/*") and inside.endswith("*/"):  # Hugo: to be shown as it is written
        return _note(state, silent, end, [], quiet=True)
    return _note(state, silent, end, in_template(inside.strip().strip("-")), what=TEMPLATE_TAG)


def component(state: StateInline, silent: bool) -> bool:
    """A JSX tag, or one of HTML with a template tag among its attributes, that shows a picture."""
    start = state.pos
    if state.src[start] != "<" or not COMPONENT.match(state.src, start):
        return False
    if HTML_TAG_RE.match(state.src[start : start + MAX_TAG]):
        return False
    end = _tag_end(state.src[start : min(start + MAX_TAG, state.posMax)])
    if end < 0:
        return False
    shown = in_html(state.src[start : start + end], imports_of(state.env))
    return bool(shown) and _note(state, silent, start + end, shown)


def imports_of(env: Mapping[str, Any]) -> Mapping[str, str]:
    found = env.get("imports", {})
    assert isinstance(found, Mapping)
    return found


def _note(
    state: StateInline, silent: bool, end: int, shown: list[Shown], *, what: str = "", quiet: bool = False
) -> bool:
    if not silent:
        state.push("shown", "", 0).meta = {"span": (state.pos, end), "shown": shown, "what": what, "quiet": quiet}
    state.pos = end
    return True


def _in_brackets(text: str) -> str | None:
    """What stands before the bracket that closes, on one line; None where none does. A template tag may hold any."""
    text = text.partition("\n")[0].partition("![")[0]  # the next picture is another's
    depth, at = 0, 0
    while at < len(text):
        opener = next((opener for opener in CLOSERS if text.startswith(opener, at)), None)
        if opener is not None and (closed := text.find(CLOSERS[opener], at + len(opener))) >= 0:
            at = closed + len(CLOSERS[opener])
            continue
        if text[at] == ")":
            if not depth:
                return text[:at]
            depth -= 1
        depth += text[at] == "("
        at += 1
    last = text.rfind(")")
    return text[:last] if last >= 0 else None  # `my lamp (1.png`


def _tag_end(text: str) -> int:
    """Behind the `>` that closes a tag: not one in quotes or braces. -1 where none does."""
    depth, quote = 0, ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'`":
            quote = char
        elif char in "{}":
            depth += 1 if char == "{" else -1
        elif char == ">" and depth <= 0:
            return at + 1
        elif char == "<" and at:  # the next tag
            return -1
    return -1
