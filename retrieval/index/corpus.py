"""Documents with pictures to chunks, the unit that is searched; and the folders that documents come from.

problems = []
for document in read_source(Path("recipes"), problems):     # Markdown, shards or MRAMG files
    chunks, faults = make_chunks(document)
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFile

from ...configs.terminal import one_line
from ...data.conversion import fitting_source, open_source, read
from ...data.insertion.placements import taken_out
from ...data.sentences import Block, blocks
from ...data.sources.mramg import PIC
from ...data.sources.report import Report
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment, encode_png, open_image, to_rgb

CHUNK_TOKENS = 256
"""A chunk ends with the sentence before the one that would make it longer."""
WHOLE_TOKENS = 8 * CHUNK_TOKENS
"""A table or a block of code is one chunk up to here."""
CHUNKING = 2
"""Goes up with every change of what chunks a document makes, so that an index makes them anew. The second keeps tables
and code whole: a document without either is as in the first, and has its hash."""
TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]{1,16}|[^\w\s]")
"""An estimate of a subword: a word of up to 16 letters, a Chinese or Japanese character, a sign."""
MAX_TITLE = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a chunk, as it was encoded."""

    id: str
    """`DOCUMENT#i`: the document's i-th picture, from 1; or the id that its dataset gives it."""
    data: bytes
    caption: str
    """Alt text or caption of the source; may be empty."""
    context: str
    """The sentences before and behind it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring sentences of a document, and the pictures among them."""

    id: str
    """`DOCUMENT:n`, n from 0."""
    document: str
    """Id of its document: the file, or the benchmark's id."""
    title: str
    text: str
    """`<PIC>` where a picture stands; the k-th is `pictures[k]`. One typed in the source is `< PIC>`."""
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found."""

    chunk: Chunk
    score: float
    """Of reciprocal-rank fusion: comparable within one search only."""
    found_by: tuple[str, ...]
    """The rankings that it is in: `full text`; `text vector`, of its text or a caption; `image vector` of the query's
    picture, `image vector by text` of its words."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something of the source that is not in the index."""

    place: str
    """The document, with the line or the picture."""
    kind: str
    reason: str

    def __str__(self) -> str:
        line = f"{self.place}: {self.kind}: {self.reason}"
        return one_line(line)  # names may hold terminal control codes


def by_kind(problems: Sequence[Problem]) -> str:
    """`3 problems (missing 2, corrupt 1)`"""
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(p.kind for p in problems).most_common())
    return some(len(problems), "problem") + (f" ({kinds})" if kinds else "")


def some(count: int, noun: str) -> str:
    """`1 picture`, `2 pictures`"""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# ---- sources ----


def read_source(folder: Path, problems: list[Problem], report: Report | None = None) -> Iterator[InterleavedDocument]:
    """The documents of a folder; what is wrong with files and pictures goes to `problems`, at the latest at the end.

    Of documents that answer a prompt, as Markdown and interleaved shards do, only what a reader sees. report: gets the
    source's counts, as `limner data from` has them. Raises InputError where the folder as a whole cannot be read.
    """
    source, report, images = open_source(fitting_source(folder)), report or Report(), 0
    for document, _ in read(source, folder, report):
        images += len(document.images)
        yield document.completion if document.meta["kind"] == "interleaved" else document
    report.images = images
    problems += [Problem(f"{p.file}:{p.line}", p.kind, f"{p.target} {p.reason}".strip()) for p in report.problems]


# ---- chunks ----


def make_chunks(document: InterleavedDocument) -> tuple[list[Chunk], list[Problem]]:
    """The chunks of a document, and the pictures that have no pixels or do not decode: those are left out."""
    text, placements, segments = taken_out(document)
    text = [valid_text(sentence).replace(PIC, "< PIC>") for sentence in text]
    names = _picture_names(document, len(segments))
    identifier = valid_text(document.id)
    pictures: dict[int, list[Picture]] = {}
    problems = []
    for placement, segment, name in zip(placements, segments, names, strict=True):
        around = text[max(placement.after - 1, 0) : placement.after + 1]
        try:
            data = encoded(segment)
            to_rgb(open_image(data))
        except ValueError as error:
            problems.append(Problem(name, "picture", str(error)))
            continue
        context = " ".join(" ".join(around).split())
        pictures.setdefault(placement.after, []).append(Picture(name, data, valid_text(segment.alt), context))
    pieces: list[str | Picture] = list(pictures.get(0, []))
    for number, sentence in enumerate(text, 1):
        pieces += _cut(sentence)
        pieces += pictures.get(number, [])
    title, found = title_of(document), []
    for group in _grouped(pieces):
        shown = tuple(piece for piece in group if isinstance(piece, Picture))
        if written := _text(group):
            found.append(Chunk(f"{identifier}:{len(found)}", identifier, title, written, shown))
    return found, problems


def content_hash(document: InterleavedDocument) -> str:
    """Of all that the chunks of a document are made of, pictures as they are encoded."""
    texts = [segment.text for segment in document.segments if isinstance(segment, TextSegment)]
    chunking = CHUNKING if any(map(blocks, texts)) else 1
    digest = hashlib.sha256(repr((chunking, CHUNK_TOKENS, title_of(document), document.meta.get("images"))).encode())
    for segment in document.segments:
        if isinstance(segment, TextSegment):
            parts = (b"text", segment.text.encode("utf-8", "replace"))
        else:
            try:
                data = encoded(segment)
            except ValueError:
                data = b""
            parts = (b"image", segment.alt.encode("utf-8", "replace"), data)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def encoded(segment: ImageSegment) -> bytes:
    """The file that a picture was opened from, while PIL still has it, else PNG. Raises ValueError without either."""
    image = segment.image
    if isinstance(image, ImageFile.ImageFile) and isinstance(image.fp, io.BytesIO):
        return image.fp.getvalue()
    return encode_png(segment.pixels())


def count_tokens(text: str) -> int:
    """Estimated: words, signs, and Chinese or Japanese characters."""
    return sum(1 for _ in TOKEN.finditer(text))


def title_of(document: InterleavedDocument) -> str:
    """The source's title, else a heading of the first level, else the first line if it is prose, else the id."""
    given = document.meta.get("title")
    lines = [line for line in map(str.strip, document.text.split("\n", 20)[:20]) if line]
    headings = [line.lstrip("# ") for line in lines if line.startswith("# ")]
    prose = [line.lstrip("# ") for line in lines[:1] if not line.startswith(("- ", "* ", "+ ", "|", ">", "<"))]
    named = given if isinstance(given, str) else ""
    title = next((line for line in (named, *headings, *prose) if line.strip()), document.id)
    return valid_text(" ".join(title.split())[:MAX_TITLE])


def valid_text(text: str) -> str:
    """A lone surrogate, which JSON can carry, has no UTF-8: `?` instead."""
    return text.encode("utf-8", "replace").decode()


def _picture_names(document: InterleavedDocument, count: int) -> list[str]:
    given = document.meta.get("images")
    if isinstance(given, list) and len(given) == count and all(isinstance(name, str) for name in given):
        return [valid_text(name) for name in given]
    return [f"{valid_text(document.id)}#{number}" for number in range(1, count + 1)]


def _cut(sentence: str) -> list[str]:
    """The sentence itself, or if it is longer than a chunk, pieces that are none; of a table or code, only if it is
    longer than WHOLE_TOKENS, and then each piece is a table or code for itself."""
    if (block := next(iter(blocks(sentence)), None)) and count_tokens(sentence) > CHUNK_TOKENS:
        return _cut_block(sentence, block)
    ends = [match.end() for match in TOKEN.finditer(sentence)][CHUNK_TOKENS - 1 : -1 : CHUNK_TOKENS]
    return [sentence[start:end] for start, end in zip([0, *ends], [*ends, len(sentence)], strict=True)]


def _cut_block(sentence: str, block: Block) -> list[str]:
    """Between lines. A single line that is too long stays."""
    lines = sentence[block.start : block.end].split("\n")
    head, foot = lines[: block.head], lines[len(lines) - block.foot :]
    pieces: list[list[str]] = [[]]
    size = 0
    for line in lines[block.head : len(lines) - block.foot]:
        tokens = count_tokens(line)
        if size and size + tokens > WHOLE_TOKENS:
            pieces.append([])
            size = 0
        pieces[-1].append(line)
        size += tokens
    made = ["\n" + "\n".join([*head, *piece, *foot]) for piece in pieces]
    made[0] = sentence[: block.start] + made[0].removeprefix("\n")
    made[-1] += sentence[block.end :]
    return made


def _grouped(pieces: Sequence[str | Picture]) -> list[list[str | Picture]]:
    """A picture stays with the sentence before it; one before all text, with the first."""
    groups: list[list[str | Picture]] = [[]]
    size = 0
    for piece in pieces:
        tokens = count_tokens(piece) if isinstance(piece, str) else 0
        if size and size + tokens > CHUNK_TOKENS:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += tokens
    return groups


def _text(group: Sequence[str | Picture]) -> str:
    """A picture stands on a line of its own."""
    lines = [""]
    for piece in group:
        if isinstance(piece, str):
            lines[-1] += piece
        else:
            lines += [PIC, ""]
    return "\n".join(line for line in map(str.strip, lines) if line)
