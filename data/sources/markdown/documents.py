"""A folder of Markdown with pictures: one interleaved document a file.

    report = convert(Markdown(), Path("recipes"), Path("shards/recipes"))
    print(report.summary())      # 29 documents, 38 images, 1 problem (duplicate 1)
                                 # pictures written: 39 = 38 kept + 1 not

Pictures are found where CommonMark and its dialects show them (in links, lists, tabs, HTML, template tags and wiki
embeds too, not in code); the source between them is kept as it stands, without the markup that belonged to them. Only
files inside the folder are read, and every picture that is written and not kept is a problem of the report, by file and
line.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path

from ....configs.errors import InputError
from ....configs.registry import register
from ....models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..report import Problem, Refused, Report
from .embedded import data_of, taken_out
from .files import PAGES, Folder, inside, locate, name_of, scan
from .front_matter import front_matter
from .leftovers import leftovers
from .page import Page, parse
from .pictures import Picture, decoded, read_picture
from .shown import EMBEDDED, Shown

MAX_FILE_BYTES = 2**20
"""A page with a text larger than this, not counting the pictures that are written into it, is refused."""
MAX_EMBEDDING_BYTES = 64 * 2**20
"""The same with those pictures."""
MAX_TARGET = 200
"""Of a longer picture reference the report shows this much."""
MARKUP_ONLY = re.compile(r"[\s\-*+>#_|\[\]()]*")
"""What stays around a picture that is alone in a list item, a quote or an emphasis: no text."""
STAND_IN = re.compile(rf"{EMBEDDED}[0-9]+")
INDENTED = ("in code", "indented by four, so it is code and no picture; indent it less")


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture as a page names it."""

    shown: Shown
    line: int


@dataclass(frozen=True, slots=True)
class Article:
    file: str
    title: str
    pieces: list[str | Reference]
    """Text and pictures in order."""
    unplaced: list[Reference]
    """Pictures that are problems and stay in the text."""
    doubtful: list[Reference]
    """In indented code: pictures if there is such a file."""
    embedded: list[str] = field(default_factory=list)
    """Base64 of the pictures that are written into the page."""


@register("source", "markdown")
class Markdown:
    """A folder of Markdown files with pictures: a document a file."""

    def documents(self, path: Path, report: Report) -> Iterator[tuple[InterleavedDocument, list[bytes | None]]]:
        return read_markdown(path, report)

    @staticmethod
    def fits(path: Path) -> bool:
        return bool(scan(path).pages)


def read_markdown(source: Path, report: Report) -> Iterator[tuple[InterleavedDocument, list[bytes | None]]]:
    """Every Markdown file under `source` as a document, by path, with the bytes of its pictures where those show them.

    The report gets all but the counts of what is kept: `written`, and a problem for each picture or file that gives
    nothing; notes; what was taken out of the texts, what was not read. Raises InputError where nothing is a document.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; name a folder of Markdown files")
    folder, first, found = scan(source), len(report.problems), False
    report.problems += [Problem(name, 1, "unreadable", "", f"no folder to list: {why}") for name, why in folder.faults]
    report.unread, report.left_out = dict(folder.unread), folder.left_out
    used: set[Path] = set()
    for path in folder.pages:
        name = name_of(path, folder.root)
        try:
            article = _read_article(path, folder, report)
        except Refused as error:
            report.problems.append(Problem(name, 1, error.rule, "", error.reason))
            continue
        references = [piece for piece in article.pieces if isinstance(piece, Reference)]
        report.written += len(references) + len(article.unplaced)
        built = _build(article, folder, report, used)
        if len(references) == len(article.pieces):
            report.problems += [] if references else [Problem(name, 1, "no text", "", "empty")]
            continue
        found = True
        yield built
    if not found:
        reason = (
            str(report.problems[first])
            if report.problems[first:]
            else f"no *.md file, nor any of {' '.join(PAGES[1:])}"
        )
        raise InputError(f"{source}: no document to convert ({reason})")
    unnamed = sum(Path(realpath(path)) not in used for paths in folder.pictures.values() for path in paths)
    report.unread |= {"pictures that no page shows": unnamed} if unnamed else {}


# ---- one page ----


def _read_article(path: Path, folder: Folder, report: Report) -> Article:
    """Text and pictures in order. Raises Refused; what is wrong with the front matter is a problem of the report."""
    name = name_of(path, folder.root)
    text, embedded = taken_out(_text(path, folder.root))
    if len(text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        raise Refused("unreadable", f"larger than {MAX_FILE_BYTES} bytes; split it")
    front = front_matter(text)
    if front.fault:
        report.problems.append(Problem(name, 1, "front matter", "", front.fault))
    try:
        page = parse(text, front.end)
    except (RecursionError, LookupError, ValueError) as error:
        raise Refused("unreadable", f"its Markdown does not parse ({type(error).__name__}: {error})") from None
    ends = [match.start() for match in re.finditer("\n", text)]
    article = Article(
        name,
        front.title or page.heading or Path(name).stem,
        _pieces(text, front.end, page, ends),
        [Reference(shown, _line(ends, at)) for at, shown in leftovers(text, front.end, page)],
        [Reference(shown, _line(ends, cut.start)) for cut in page.indented for shown in cut.shown],
        embedded,
    )
    removed = Counter(cut.what for cut in page.cuts if cut.what and not cut.shown)
    report.removed = dict(Counter(report.removed) + removed)
    shown = {piece.shown.target for piece in article.pieces if isinstance(piece, Reference)}
    covers = [target[:MAX_TARGET] for target in front.pictures if target not in shown]
    report.notes += [
        Problem(name, 1, "front matter", target, "a picture without a place in the text") for target in covers
    ]
    return article


def _text(path: Path, root: Path) -> str:
    """As CommonMark reads it, so that offsets in tokens are offsets here. Raises Refused."""
    try:
        if not inside(path, root):
            raise Refused("unreadable", "a link out of the folder, or no plain file")
        if path.stat().st_size > MAX_EMBEDDING_BYTES:
            raise Refused("unreadable", f"larger than {MAX_EMBEDDING_BYTES} bytes; split it")
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused("unreadable", "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def _pieces(text: str, start: int, page: Page, ends: Sequence[int]) -> list[str | Reference]:
    """The page without its cuts: text where there are words in it, and the pictures where they stood."""
    pieces: list[str | Reference] = [""]
    for cut in page.cuts:
        pieces[-1] = _joined(str(pieces[-1]), text[start : cut.start])
        pieces += [Reference(shown, _line(ends, cut.start)) for shown in cut.shown]
        pieces += [""] if cut.shown else []
        start = cut.end
    pieces[-1] = _joined(str(pieces[-1]), text[start:])
    bare = [STAND_IN.sub("", piece).strip() if isinstance(piece, str) else piece for piece in pieces]
    return [piece for piece in bare if isinstance(piece, Reference) or not MARKUP_ONLY.fullmatch(piece)]


def _joined(before: str, after: str) -> str:
    """Two ends of text between which something was taken out: no empty line, and no space, is left for it."""
    if not before.rstrip(" \t") or before.rstrip(" \t").endswith("\n"):
        bare = after.lstrip(" \t")
        if bare.startswith("\n"):
            return before.rstrip(" \t") + (bare.lstrip("\n") if before.rstrip(" \t").endswith("\n\n") else bare[1:])
    return before + (after[1:] if before.endswith(" ") and after.startswith(" ") else after)


def _line(ends: Sequence[int], offset: int) -> int:
    return bisect.bisect_left(ends, offset) + 1


# ---- its pictures ----


def _build(
    article: Article, folder: Folder, report: Report, used: set[Path]
) -> tuple[InterleavedDocument, list[bytes | None]]:
    """The document and the encoded bytes of its pictures; the references that gave none go to the report.

    So do all others where the page has no text: it is no document.
    """
    pictures = sum(isinstance(piece, Reference) for piece in article.pieces)
    segments: list[Segment] = [TextSegment(f"Write an illustrated article: {article.title}")]
    originals: list[bytes | None] = []
    lines: dict[Path | str, int] = {}
    for piece in article.pieces:
        if isinstance(piece, str):
            segments.append(TextSegment(piece, trainable=True))
            continue
        try:
            picture = _picture(article, piece, folder, lines, used)
        except Refused as error:
            report.problems.append(_problem(article, piece, error.rule, error.reason))
            continue
        if pictures == len(article.pieces):
            report.problems.append(_problem(article, piece, "no text", f"nothing but {pictures} pictures"))
            continue
        if picture.frames:
            reason = f"the first of {picture.frames} frames is kept"
            report.notes.append(_problem(article, piece, "animated", reason))
        segments.append(ImageSegment(picture.image, trainable=True, alt=piece.shown.alt))
        originals.append(picture.original)
    report.problems += [_problem(article, one, *(one.shown.fault or INDENTED)) for one in article.unplaced]
    for one in article.doubtful:
        try:
            used.add(locate(one.shown, folder.root / article.file, folder))
        except Refused:
            continue  # an example of Markdown
        report.written += 1
        report.problems.append(_problem(article, one, *INDENTED))
    meta = {"kind": "interleaved", "file": article.file, "title": article.title}
    return InterleavedDocument(tuple(segments), article.file, meta), originals


def _picture(
    article: Article, reference: Reference, folder: Folder, lines: dict[Path | str, int], used: set[Path]
) -> Picture:
    """Raises Refused. lines: where the pictures that are kept were first shown; gets this one."""
    shown = reference.shown
    if shown.fault:
        raise Refused(*shown.fault)
    try:
        data = data_of(shown.target, article.embedded)
    except ValueError:
        raise Refused("corrupt", "the picture that is written into the page is no valid base64") from None
    place = shown.target if data is not None else locate(shown, folder.root / article.file, folder)
    if isinstance(place, Path):
        used.add(place)
    if place in lines:
        raise Refused("duplicate", f"line {lines[place]} shows the same file")
    picture = read_picture(place) if isinstance(place, Path) else decoded(data or b"")
    lines[place] = reference.line
    return picture


def _problem(article: Article, reference: Reference, kind: str, reason: str) -> Problem:
    """Of a picture. One that is written into the page has no name to show."""
    target = STAND_IN.sub("data:image/...", reference.shown.target)
    return Problem(article.file, reference.line, kind, target[:MAX_TARGET], reason, pictures=1)
