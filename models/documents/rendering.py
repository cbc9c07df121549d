"""Documents for people: Markdown, HTML, and files of either.

What a text holds is never trusted. HTML shows its Markdown (`markdown_html`); raw HTML in it is seen letter by letter.
Markdown keeps the text's own Markdown, links included (it is the author's, or the model's, to write) but no raw HTML: a
`<` that could open a tag becomes `&lt;`, which every renderer shows as `<`. Code, fenced, indented or between
backticks, stays as it is: there a renderer shows `<` itself, and would show the entity letter by letter.
"""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ...configs.errors import InputError, writing
from ...configs.whole import alone, remove_folder, whole_directory, write_atomically
from .document import ImageSegment, InterleavedDocument, Segment, TextSegment, data_uri, encode_png

SMALL_PICTURE = 64
"""Pictures of at most this many pixels a side are enlarged, with their pixels left sharp."""

TITLE = 70
"""Most letters of a page's title."""
FILE_NAMES = re.compile(
    "cimg|dcim|dsc[fn]?|file|foto|gif|gopr|heic|images?|img|jpe?g|mvi|photo|pic|picture|png|pxl|scan|screenshot|"
    "untitled|vid|wa|webp|"
)
"""What cameras and programs call any picture, and endings of such names."""

OURS = ".limner"
"""File that marks a folder of pictures as written with a Markdown file, and for it alone."""

CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""A page of ours may fetch nothing and run nothing, whatever gets into it."""

PAGE_CSS = """
:root {
  color-scheme: light dark;
  --paper: #fcfaf5; --raised: #fffefb; --ink: #26231e; --muted: #6c665b; --line: #e3ddd0; --accent: #a5342a;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #181714; --raised: #201f1b; --ink: #e9e4d8; --muted: #a49d8f; --line: #38352e; --accent: #ec8276; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); overflow-wrap: break-word; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.1rem 4rem; }
h1 { font: 600 2rem/1.2 var(--serif); letter-spacing: -0.01em; margin: 0 0 1rem; text-wrap: balance; }
.document { display: grid; gap: 1.1rem; }
.step { display: flex; flex-wrap: wrap; gap: 0.6rem 1rem; align-items: flex-start; }
.step.prompt { border-left: 3px solid var(--line); padding-left: 0.8rem; color: var(--muted); }
.step .text { flex: 1 1 100%; min-width: 0; max-width: 46rem; }
.text { overflow-wrap: anywhere; }
.text > * { max-width: none; margin: 0 0 0.7rem; }
.text > :last-child { margin-bottom: 0; }
.text :is(h3, h4, h5, h6) { font: 600 1.15rem/1.3 var(--serif); margin: 0.6rem 0 0.5rem; }
.text :is(h4, h5, h6) { font-size: 1rem; }
.text :is(ul, ol) { padding-left: 1.5rem; }
.text li > p { margin: 0.3rem 0; }
.text blockquote { margin-left: 0; padding-left: 0.8rem; border-left: 3px solid var(--line); color: var(--muted); }
.text pre { white-space: pre-wrap; }
.text table { border-collapse: collapse; font-size: 0.9rem; }
.text :is(th, td) { padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; border: 1px solid var(--line); }
.text a { color: var(--accent); }
.step figure { margin: 0; max-width: 100%; }
.step img { display: block; max-width: 100%; height: auto; border-radius: 4px; outline: 1px solid var(--line); }
.step img.pixelated { image-rendering: pixelated; }
.step figcaption { font-size: 0.75rem; line-height: 1.4; color: var(--muted); margin-top: 0.3rem; }
.placeholder { display: grid; place-items: center; min-width: 8rem; min-height: 8rem; max-width: 12rem;
  padding: 0.75rem; border: 1px dashed var(--muted); border-radius: 4px; color: var(--muted); font-size: 0.8rem;
  text-align: center; }
.origin { display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 0.45em; }
.origin.generated { color: var(--accent); }
"""


def to_markdown(document: InterleavedDocument, image_dir: Path | None = None) -> str:
    """Texts and pictures as blocks, a blank line between.

    Pictures are data URIs, or with `image_dir` files `<n>.png` written there and referenced from the folder above it.
    """
    texts = [segment.text if isinstance(segment, TextSegment) else None for segment in document.segments]
    harmless, blocks, numbers = iter(_without_html(texts)), [], itertools.count(1)
    for segment in document.segments:
        if isinstance(segment, TextSegment):
            blocks.append(next(harmless))
            continue
        number = next(numbers)
        if missing := _missing(segment):
            blocks.append(f"> Picture {number}: {missing}.")
        elif image_dir is None:
            blocks.append(f"![{_markdown_alt(segment, number)}]({data_uri(segment.pixels())})")
        else:
            write_atomically(image_dir / f"{number}.png", encode_png(segment.pixels()))
            blocks.append(f"![{_markdown_alt(segment, number)}]({quote(image_dir.name)}/{number}.png)")
    return _joined(blocks) + "\n"


def markdown_html(text: str) -> str:
    """The HTML of a text's Markdown, its line breaks kept; whatever the text holds, it loads and runs nothing.

    Raw HTML is escaped. Of links only http and https lead anywhere, of pictures the alt text stands; headings begin at
    h3, below those of the page.
    """
    return next(iter(texts_html([text])))


def texts_html(texts: Iterable[str]) -> Iterator[str]:
    """`markdown_html` of each of the texts of a page, between which pictures stand.

    What is indented by four spaces is code. Where a text goes on with a list that a picture has cut, and where it
    begins with an item of one, its indented beginning is of the list instead.
    """
    listed = False
    for text in texts:
        text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text).rstrip()
        inside = text and (listed or _ITEM.match(text))
        own = _outdented(text) if inside else text
        tokens = _MARKDOWN.parse(own)
        yield _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}).rstrip("\n")
        whole = inside and all(line[:1].isspace() for line in text.split("\n") if line)
        listed = bool(whole or (tokens and tokens[-1].type.endswith("list_close")) or (listed and not text))


def beginning(text: str, most: int = TITLE) -> str:
    """One line of at most that many letters, cut between words where there is more."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    return (line[: most - 3].rpartition(" ")[0] or line[: most - 4]) + " ..."


def caption_of(alt: str) -> str:
    """The alt text, or nothing where it is a file name that says nothing: `IMG_1234.jpg`, a number, a hash."""
    parts = re.findall(r"[^\W_]+", alt.casefold())
    hashed = re.compile(r"(?=.*\d)[0-9a-f]{4,}")
    named = any(not hashed.fullmatch(part) and not FILE_NAMES.fullmatch(part.rstrip("0123456789")) for part in parts)
    return alt if named else ""


def document_html(
    document: InterleavedDocument, *, image_scale: int = 4, notes: Mapping[int, str] | None = None
) -> str:
    """An HTML fragment, steps of text and pictures; `PAGE_CSS` styles it.

    image_scale: how many times larger small pictures are shown.
    notes: HTML to stand with a segment, by its index in the document.
    """
    notes = notes or {}
    indices, numbers = itertools.count(), itertools.count(1)
    answered = bool(document.completion.segments)
    parts = ((document.prompt, "step prompt"), (document.completion, "step")) if answered else ((document, "step"),)
    steps = []
    for part, style in parts:
        texts = texts_html(segment.text for segment in part.segments if isinstance(segment, TextSegment))
        for step in part.steps():
            inner = "".join(_segment_html(s, texts, numbers, image_scale, notes.get(next(indices), "")) for s in step)
            if inner:
                steps.append(f'<div class="{style}">{inner}</div>')
    return f'<div class="document">{"".join(steps)}</div>'


def to_html(document: InterleavedDocument, title: str = "") -> str:
    """A whole self-contained page. Where the title says all of the prompt, or begins it, it does not stand twice."""
    title = title or document.id or "Document"
    asked = document.prompt if document.completion.segments else None
    heading, shown = f"<h1>{html.escape(title)}</h1>", document
    if asked and not asked.images and " ".join(asked.text.split()) == title:
        shown = document.completion
    elif asked and beginning(asked.text) == title:
        heading = ""
    return html_page(title, f"<main>{heading}{document_html(shown)}</main>")


def html_page(title: str, body: str, css: str = "") -> str:
    """The frame of every page of ours: it reads on a phone, in light and dark, and asks the network for nothing."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(CONTENT_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{html.escape(title)}</title>
<style>{PAGE_CSS}{css}</style>
</head>
<body>
{body}
</body>
</html>
"""


def save(document: InterleavedDocument, path: Path) -> None:
    """Writes .html, .md (with its pictures, see `save_markdown`) or .json, whole or not at all."""
    check_suffix(path)
    if path.suffix == ".html":
        write_atomically(path, to_html(document, document.id or beginning(document.prompt.text) or path.stem))
    elif path.suffix == ".md":
        save_markdown(document, path)
    else:
        write_atomically(path, json.dumps(document.to_json()) + "\n")


def save_markdown(document: InterleavedDocument, path: Path) -> None:
    """Writes the file, and its pictures in a folder beside it; both change in one step, whenever this is killed.

    First the folder appears, whole: `<stem>_images`, or `<stem>_images-2` while that is of the file before. Then the
    new file, which names it, replaces the one before, and the folder of that goes. Folders of others are left alone.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    first = f"{path.stem}_images"
    with writing(path), alone(path):
        before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        numbered = re.compile(rf"{re.escape(first)}(-[0-9]+)?")
        there = {file.name for file in path.parent.iterdir() if numbered.fullmatch(file.name)}
        ours = {name for name in there if _is_ours(path.with_name(name), before)}
        free = ours - {name for name in ours if _names_folder(before, name)}
        names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
        if any(not _missing(image) for image in document.images):
            with whole_directory(path.with_name(next(n for n in names if n in free or n not in there))) as folder:
                (folder / OURS).write_text(f"Pictures of {path.name}: limner removes them when it writes that again.\n")
                text = to_markdown(document, folder)
        else:
            text = to_markdown(document)
        write_atomically(path, text)
        for name in ours:
            if not _names_folder(text, name):
                remove_folder(path.with_name(name))


def _names_folder(markdown: str, name: str) -> bool:
    return f"]({quote(name)}/" in markdown


def _is_ours(folder: Path, before: str) -> bool:
    """Pictures of an earlier file: the folder says so, or is as limner 0.1 left it, which had no such mark."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    names = [file.name for file in folder.iterdir()]
    plain = all(re.fullmatch(r"[0-9]+\.png", name) for name in names)
    return OURS in names or (plain and _names_folder(before, folder.name))


def check_suffix(path: Path) -> None:
    """Raises InputError for a name that `save` would not know what to do with: ask before the work, not after."""
    if path.suffix not in (".html", ".md", ".json"):
        raise InputError(f"{path}: cannot tell the form of the document; end the name in .html, .md or .json")


def _outdented(text: str) -> str:
    """Without the indentation of its first line, in that and in those below it, up to one that has less."""
    lines = text.split("\n")
    pad = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    size = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith(pad)), len(lines))
    return "\n".join([*(line.removeprefix(pad) for line in lines[:size]), *lines[size:]])


def _without_html(texts: Sequence[str | None]) -> list[str]:
    """The texts of one page so that none of it is raw HTML; None stands for a picture between them.

    Whether a line is in a fence says the whole page: a fence that one text opens ends in another. What is kept is then
    read once more, as a renderer would; should anything in it be HTML after all, every `<` of a tag is escaped.
    """
    page = [_PICTURE if text is None else re.sub(r"\r\n?", "\n", text).strip("\n").rstrip() for text in texts]
    blocks = ((token.map, _CODE[token.type]) for token in _COMMONMARK.parse(_joined(page)) if token.type in _CODE)
    code = {line for place, opening in blocks if place for line in range(place[0] + opening, place[1])}
    kept, number = [], 0
    for block in page:
        lines = block.split("\n")
        kept.append("\n".join(line if at in code else _tags_escaped(line) for at, line in enumerate(lines, number)))
        number += len(lines) + 1 if block else 0
    tokens = _HTML_TOO.parse(_joined(kept))
    if any(token.type.startswith("html") for token in itertools.chain(tokens, *(t.children or () for t in tokens))):
        kept = [_TAG.sub("&lt;", block) for block in page]
    return [block for text, block in zip(texts, kept, strict=True) if text is not None]


def _joined(blocks: Sequence[str]) -> str:
    return "\n\n".join(block for block in blocks if block)


def _tags_escaped(line: str) -> str:
    """But for those in code, between two equally long runs of backticks."""
    runs = list(re.finditer(r"(?<!\\)(\\*+)(`+)", line))
    last = {len(run[2]): number for number, run in enumerate(runs)}
    kept, at, number = "", 0, 0
    while number < len(runs):
        size, start = len(runs[number][2]), runs[number].start(2)
        typed = len(runs[number][1]) % 2  # behind a backslash a backtick opens nothing
        opened, number = number, number + 1
        if last[size] > opened and not typed:
            number = next(n for n in range(number, len(runs)) if len(runs[n][2]) == size) + 1
            kept += _TAG.sub("&lt;", line[at:start]) + line[start : runs[number - 1].end()]
            at = runs[number - 1].end()
    return kept + _TAG.sub("&lt;", line[at:])


def _segment_html(
    segment: Segment, texts: Iterator[str], numbers: itertools.count[int], image_scale: int, note: str
) -> str:
    if isinstance(segment, TextSegment):
        text = next(texts)
        return f'<div class="text">{text}{note}</div>' if text or note else ""
    number = next(numbers)
    if missing := _missing(segment):
        picture = f'<div class="placeholder">Picture {number}: {html.escape(missing)}</div>'
    else:
        image = segment.pixels()
        small = max(image.size) <= SMALL_PICTURE
        width, height = (side * image_scale if small else side for side in image.size)
        alt = html.escape(caption_of(segment.alt) or f"Picture {number}, {_origin(segment)}")
        style = ' class="pixelated"' if small else ""
        picture = f'<img src="{data_uri(image)}" alt="{alt}" width="{width}" height="{height}"{style}>'
    badge = f'<span class="origin {segment.origin}">{html.escape(_origin(segment))}</span>'
    said = html.escape(caption_of(segment.alt))
    return f"<figure>{picture}<figcaption>{badge} {said}</figcaption>{note}</figure>"


def _missing(segment: ImageSegment) -> str:
    """Why there is no picture to show, empty if there is one."""
    if segment.image is None:
        count = 0 if segment.codes_N is None else len(segment.codes_N)
        return f"{count} image codes, not decoded"
    try:
        segment.pixels()
    except ValueError as error:
        return str(error)
    return ""


def _origin(segment: ImageSegment) -> str:
    return segment.origin if segment.candidate is None else f"{segment.origin}, candidate {segment.candidate}"


def _markdown_alt(segment: ImageSegment, number: int) -> str:
    said = caption_of(segment.alt)
    alt = said or f"Picture {number}, {_origin(segment)}"
    if said and segment.candidate is not None:
        alt += f" (candidate {segment.candidate})"
    alt = " ".join(alt.split())
    return re.sub(r"[\\\[\]<>&`*_!]", r"\\\g<0>", alt)


def _link(_: Any, tokens: Sequence[Token], at: int, __: Any, state: dict[str, Any]) -> str:
    token = tokens[at]
    if token.nesting > 0:  # links do not nest
        address = str(token.attrs.get("href", ""))
        state["link"] = address.lower().startswith(("http://", "https://"))
        return f'<a href="{html.escape(address)}" rel="nofollow noopener">' if state["link"] else ""
    return "</a>" if state["link"] else ""


def _heading(_: Any, tokens: Sequence[Token], at: int, __: Any, ___: Any) -> str:
    token = tokens[at]
    return f"<{'/' * (token.nesting < 0)}h{min(int(token.tag[1]) + 2, 6)}>"


def _alt_text(_: Any, tokens: Sequence[Token], at: int, __: Any, ___: Any) -> str:
    return html.escape(_plain(tokens[at].children or ()))  # its own content is as typed: an `&amp;` would stay one


def _plain(tokens: Sequence[Token]) -> str:
    """The words of inline tokens, entities read."""
    return "".join(" " if "break" in t.type else _plain(t.children) if t.children else t.content for t in tokens)


def _renderer() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # type: ignore[method-assign]  # `_link` decides; refused, a link shows as typed
    rules = {"link_open": _link, "link_close": _link, "heading_open": _heading, "heading_close": _heading}
    for name, rule in {**rules, "image": _alt_text}.items():
        parser.add_render_rule(name, rule)
    return parser


_MARKDOWN = _renderer()
_COMMONMARK = MarkdownIt("commonmark", {"html": False})
_HTML_TOO = MarkdownIt("commonmark")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
"""What a renderer may take for HTML."""
_PICTURE = "![picture](address)"
_CODE = {"fence": 1, "code_block": 0}
"""Tokens of code, and how many lines come before it."""
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s")
"""How an item of a list begins."""
