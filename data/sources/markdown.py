"""A folder of Markdown with pictures: one interleaved document a file.

    report = convert(Markdown(), Path("recipes"), Path("shards/recipes"))
    print(report.summary())      # 29 documents, 38 images, 1 problem (duplicate 1)

Pictures are found where CommonMark shows them (in links, lists and HTML too, not in code); the source between them is
kept as it stands. Only files inside the folder are read, and every reference that gives no picture is a problem of the
report, by file and line.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, html_inline, image, link
from markdown_it.token import Token
from PIL import Image, ImageOps

from ...configs.errors import InputError
from ...configs.registry import register
from ...models.documents.document import (
    MAX_IMAGE_BYTES,
    ImageSegment,
    InterleavedDocument,
    Segment,
    TextSegment,
    open_image,
    to_rgb,
)
from .report import Problem, Report

MAX_FILE_BYTES = 2**20
"""A Markdown file larger than this is refused."""
MAX_FRONT_MATTER = 50_000
"""YAML is slow to read: a megabyte takes half a minute."""
MAX_TARGET = 200
"""Of a longer picture reference (a data URI) the report shows this much."""
FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
MARKUP_ONLY = re.compile(r"[\s\-*+>#_|\[\]()]*")
"""What stays around a picture that is alone in a list item, a quote or an emphasis: no text."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture as a Markdown file names it; `start` and `end` are offsets in the file's text."""

    start: int
    end: int
    target: str
    alt: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Article:
    file: str
    title: str
    pieces: list[str | Reference]


class _Refused(Exception):
    """A file or picture that is not taken, with the kind and reason of its problem."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason


@register("source", "markdown")
class Markdown:
    """A folder of Markdown files with pictures: a document a file."""

    def documents(self, path: Path, report: Report) -> Iterator[tuple[InterleavedDocument, list[bytes | None]]]:
        return read_markdown(path, report.problems)

    @staticmethod
    def fits(path: Path) -> bool:
        return bool(markdown_files(path))


def read_markdown(source: Path, problems: list[Problem]) -> Iterator[tuple[InterleavedDocument, list[bytes | None]]]:
    """Every `*.md` under `source` as a document, by path, with the bytes of its pictures where those show them upright.

    What gives no document or picture goes to `problems`. Raises InputError where nothing gives a document.
    """
    return (_build(article, source.resolve(), problems) for article in _articles(source, problems))


def markdown_files(source: Path) -> list[Path]:
    """Sorted by path. Linked folders are not entered: they may leave the folder or lead back into it."""
    return sorted(
        Path(folder, name) for folder, _, names in os.walk(source) for name in names if name.lower().endswith(".md")
    )


def _articles(source: Path, problems: list[Problem]) -> Iterator[Article]:
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; name a folder of Markdown files")
    source, found, first = source.resolve(), False, len(problems)
    for path in markdown_files(source):
        try:
            yield _read_article(path, source, problems)
            found = True
        except _Refused as error:
            problems.append(Problem(_name(path, source), 1, error.kind, "", error.reason))
    if not found:
        reason = str(problems[first]) if problems[first:] else "no *.md file"
        raise InputError(f"{source}: no document to convert ({reason})")


def _name(path: Path, source: Path) -> str:
    """The path inside the folder as valid text (file names are bytes)."""
    return os.fsencode(path.relative_to(source).as_posix()).decode("utf-8", "replace")


# ---- one file ----


def _read_article(path: Path, source: Path, problems: list[Problem]) -> Article:
    """Text and picture references in order. Raises _Refused; adds what is wrong with the front matter to `problems`."""
    name = _name(path, source)
    try:
        if not _inside(path, source):
            raise _Refused("unreadable", "a link out of the folder, or no plain file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _Refused("unreadable", f"larger than {MAX_FILE_BYTES} bytes; split it")
        # As CommonMark reads it, so that offsets in tokens are offsets here.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    except (OSError, UnicodeDecodeError) as error:
        raise _Refused("unreadable", "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)) from None
    title, body_start, fault = _front_matter(text)
    if fault:
        problems.append(Problem(name, 1, "front matter", "", fault))
    try:
        references, heading = _parse(text, body_start)
    except (RecursionError, LookupError, ValueError) as error:
        raise _Refused("unreadable", f"its Markdown does not parse ({type(error).__name__}: {error})") from None
    pieces: list[str | Reference] = []
    end = body_start
    for reference in references:
        pieces += [text[end : reference.start], reference]
        end = reference.end
    pieces.append(text[end:])
    pieces = [piece.strip() if isinstance(piece, str) else piece for piece in pieces]
    pieces = [piece for piece in pieces if isinstance(piece, Reference) or not MARKUP_ONLY.fullmatch(piece)]
    if not any(isinstance(piece, str) for piece in pieces):
        raise _Refused("no text", f"nothing but {len(references)} pictures" if references else "empty")
    return Article(name, title or heading or Path(name).stem, pieces)


def _inside(path: Path, source: Path) -> bool:
    """Whether this is a plain file whose real place is inside the folder."""
    try:
        return path.resolve().is_relative_to(source) and path.is_file()
    except (OSError, RuntimeError):  # a loop of links
        return False


def _front_matter(text: str) -> tuple[str, int, str]:
    """Title, offset of the body, and what is wrong. What is no YAML mapping between two fences stays text."""
    match = FRONT_MATTER.match(text)
    if match is None:
        return "", 0, ""
    if len(match[1]) > MAX_FRONT_MATTER:
        return "", 0, f"longer than {MAX_FRONT_MATTER} characters, so kept as text"
    try:
        fields: Any = yaml.load(match[1], Loader=yaml.BaseLoader)  # strings, lists and mappings only
    except (yaml.YAMLError, RecursionError) as error:
        return "", 0, f"no valid YAML, so kept as text: {' '.join(str(error).split())}"
    if not isinstance(fields, dict):
        return "", 0, ""
    title = fields.get("title", "")
    title = " ".join(title.encode("utf-8", "replace").decode().split()) if isinstance(title, str) else ""
    return title, match.end(), ""


def _parse(text: str, body_start: int) -> tuple[list[Reference], str]:
    """The picture references after `body_start`, in order, and the first heading."""
    lines = text[body_start:].split("\n")
    starts = list(itertools.accumulate((len(line) + 1 for line in lines), initial=body_start))
    first_line = text.count("\n", 0, body_start) + 1
    references, heading, in_heading = [], "", False
    for token in _parser().parse(text[body_start:]):
        if token.type == "inline":
            if in_heading and not heading:
                heading = _plain(token.children or [])
            found = _in_inline(token.children or [])
        else:
            in_heading = token.type == "heading_open"
            found = _in_html(token.content) if token.type == "html_block" else []
        if not found:
            continue
        assert token.map is not None  # a block knows its lines
        rows = _rows(token.content, lines, starts, *token.map)
        for reference in found:
            row, start = _place(rows, reference.start)
            _, last = _place(rows, reference.end - 1)
            references.append(replace(reference, start=start, end=last + 1, line=first_line + row))
    return references, heading


def _rows(content: str, lines: list[str], starts: list[int], first: int, last: int) -> list[tuple[int, int, int]]:
    """For each line of a block's content: its offset there, its row in the file, and that offset in the file.

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
        rows.append((offset, row, starts[row] + lines[row].rfind(bare) - indent))
        offset, row = offset + len(line) + 1, row + 1
    return rows


def _place(rows: list[tuple[int, int, int]], offset: int) -> tuple[int, int]:
    """Row and offset in the file of an offset in the content."""
    begin, row, there = rows[bisect.bisect_right(rows, offset, key=lambda entry: entry[0]) - 1]
    return row, there + offset - begin


def _plain(children: list[Token]) -> str:
    """The words of a heading, or of a picture's description."""
    words = [" " if child.type == "softbreak" else child.content for child in children if child.type != "html_inline"]
    return " ".join("".join(words).split())


# ---- where the pictures are ----


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"maxNesting": 60})
    # References are judged here, not there: a refused scheme would make the picture plain text, unreported.
    parser.validateLink = lambda url: True
    parser.normalizeLink = lambda url: url
    for name, rule in (("image", image), ("html_inline", html_inline), ("link", link)):
        parser.inline.ruler.at(name, _recording(rule))
    return parser


def _recording(rule: Callable[[StateInline, bool], bool]) -> Callable[[StateInline, bool], bool]:
    """The same rule, which notes in its token where in the block's content it matched."""

    def record(state: StateInline, silent: bool) -> bool:
        start, first = state.pos, len(state.tokens)
        matched = rule(state, silent)
        if matched and not silent:
            token = next(t for t in state.tokens[first:] if t.type in ("image", "html_inline", "link_open"))
            token.meta["span"] = (start, state.pos)
        return matched

    return record


def _in_inline(children: list[Token]) -> list[Reference]:
    """A link around nothing but pictures goes with them; any other link stays, as text."""
    found: list[Reference] = []
    link_span, first, bare = (0, 0), 0, False
    for child in children:
        if child.type == "link_open":
            link_span, first = child.meta.get("span", (0, 0)), len(found)
            bare = "span" in child.meta  # an autolink has none
        elif child.type == "link_close":
            if bare and len(found) > first:
                found[first] = replace(found[first], start=link_span[0])
                found[-1] = replace(found[-1], end=link_span[1])
        elif child.type == "image":
            start, end = child.meta["span"]
            found.append(Reference(start, end, str(child.attrs.get("src", "")), _plain(child.children or [])))
        elif child.type == "html_inline":
            start = child.meta["span"][0]
            inside = _in_html(child.content)
            found += [
                replace(reference, start=start + reference.start, end=start + reference.end) for reference in inside
            ]
            bare = bare and bool(inside)
        elif child.content.strip():
            bare = False
    return found


def _in_html(content: str) -> list[Reference]:
    parser = _ImageTags(content)
    parser.feed(content)  # no close(): it would look into what an unclosed comment hides, in quadratic time
    return parser.found


class _ImageTags(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[Reference] = []
        self._starts = [0] + [match.end() for match in re.finditer("\n", content)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            row, column = self.getpos()
            start = self._starts[row - 1] + column
            values = dict(reversed(attrs))  # of an attribute given twice, HTML takes the first
            end = start + len(self.get_starttag_text() or "")
            self.found.append(
                Reference(start, end, (values.get("src") or "").strip(), (values.get("alt") or "").strip())
            )


# ---- the pictures themselves ----


def _build(article: Article, source: Path, problems: list[Problem]) -> tuple[InterleavedDocument, list[bytes | None]]:
    """The document and the encoded bytes of its pictures; the references that gave none go to `problems`."""
    segments: list[Segment] = [TextSegment(f"Write an illustrated article: {article.title}")]
    originals: list[bytes | None] = []
    lines: dict[Path, int] = {}
    for piece in article.pieces:
        if isinstance(piece, str):
            segments.append(TextSegment(piece, trainable=True))
            continue
        try:
            path = _resolve(piece.target, source / article.file, source)
            if path in lines:
                raise _Refused("duplicate", f"line {lines[path]} shows the same file")
            picture, original = _read_picture(path)
        except _Refused as error:
            problems.append(Problem(article.file, piece.line, error.kind, piece.target[:MAX_TARGET], error.reason))
            continue
        lines[path] = piece.line
        segments.append(ImageSegment(picture, trainable=True, alt=piece.alt))
        originals.append(original)
    meta = {"kind": "interleaved", "file": article.file, "title": article.title}
    return InterleavedDocument(tuple(segments), article.file, meta), originals


def _resolve(target: str, file: Path, source: Path) -> Path:
    """The picture's file: relative to the Markdown file, to the folder, or to `static/` in it. Raises _Refused."""
    try:
        parts = urlsplit(target)
    except ValueError as error:
        raise _Refused("missing", str(error)) from None
    if parts.scheme or parts.netloc:
        raise _Refused("remote", "only files of the folder are read; download it there")
    outside = False
    for path in _places(unquote(parts.path), file, source):
        try:
            real = path.resolve()
            outside = outside or not real.is_relative_to(source)
            if real.is_relative_to(source) and real.is_file():
                return real
        except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, a loop of links
            continue
    if outside:
        raise _Refused("outside", "not inside the folder; copy it there")
    raise _Refused("missing", "no such file" if parts.path else "no file named")


def _places(name: str, file: Path, source: Path) -> Iterator[Path]:
    bases = [source / "static", source] if name.startswith("/") else [file.parent, source, source / "static"]
    return (base / name.lstrip("/") for base in bases)


def _read_picture(path: Path) -> tuple[Image.Image, bytes | None]:
    """The picture upright, and its bytes where those show it so. Raises _Refused where its pixels do not decode."""
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise _Refused("too large", f"the limit is {MAX_IMAGE_BYTES} bytes")
        data = path.read_bytes()
        opened = open_image(data)
    except OSError as error:
        raise _Refused("unreadable", str(error)) from None
    except ValueError as error:
        raise _Refused("too large" if "limit" in str(error) else "corrupt", str(error)) from None
    try:
        to_rgb(opened)
    except ValueError as error:
        raise _Refused("corrupt", str(error)) from None
    try:
        turned = opened.getexif().get(0x0112, 1) != 1
        upright = ImageOps.exif_transpose(opened) if turned else opened
    except Exception:  # Pillow raises many types for malformed EXIF; the picture itself has decoded
        turned = False
    if turned:
        return upright, None
    return open_image(data), data  # opened anew: a document in memory need not hold pixels
