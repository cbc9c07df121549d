"""`limner data decontaminate DIR --against NAME=FILE ... --out DIR2`: training data without what a benchmark asks.

    limner data decontaminate DIR --against geneval=prompts.jsonl mmie=mmie --out DIR2

A document goes where its text equals a question of the benchmark, or shares eight words in a row with one (`benchmark
text`), or where one of its pictures looks like one of the benchmark's (`benchmark picture`, at most 4 bits of 64 of a
perceptual hash). GenEval's own wording ("a photo of ...") is no copy: such documents stay, and are counted apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..configs.errors import ArgumentParser, InputError
from ..configs.registry import find
from ..configs.terminal import say, say_next
from ..data.jobs.subsets import documents_of, normal, perceptual_hash
from ..data.shards import SPLITS, ShardIndex, ShardWriter, read_index
from ..models.documents.document import ImageSegment, InterleavedDocument
from .benchmark import Item
from .entries import segments_of

WORDS = 8
"""In a row that two texts share by chance but seldom."""
NEAR = 4
"""Bits by which the hashes of two pictures differ that look the same, at most."""
BANDS = 5
"""Of 64 bits: hashes that differ in 4 agree in one of 5 bands at least."""
LISTED = 1000
TEMPLATE = re.compile(r"\ba photo of\b")
"""GenEval's."""


@dataclass
class Known:
    """What benchmarks ask and show."""

    texts: dict[str, str] = field(default_factory=dict)
    """Normal text to the benchmark's name."""
    grams: dict[tuple[str, ...], str] = field(default_factory=dict)
    bands: dict[tuple[int, int], list[tuple[int, str]]] = field(default_factory=dict)
    template: bool = False

    def add_text(self, text: str, name: str) -> None:
        words = normal(text)
        if words:
            self.texts.setdefault(words, name)
            self.grams |= {gram: name for gram in _grams(words) if gram not in self.grams}

    def add_picture(self, pixels: Image.Image, name: str) -> None:
        found = perceptual_hash(pixels)
        for key in _bands(found):
            self.bands.setdefault(key, []).append((found, name))

    def text(self, text: str) -> str:
        """The benchmark that asks it; empty where none does."""
        words = normal(text)
        return self.texts.get(words, "") or next((self.grams[gram] for gram in _grams(words) if gram in self.grams), "")

    def picture(self, pixels: Image.Image) -> str:
        """The benchmark that shows it; empty where none does."""
        found = perceptual_hash(pixels) if self.bands else 0
        near = (name for key in _bands(found) for other, name in self.bands.get(key, ()) if _close(found, other))
        return next(near, "")


def _grams(words: str) -> Iterable[tuple[str, ...]]:
    listed = words.split()
    return (tuple(listed[at : at + WORDS]) for at in range(len(listed) - WORDS + 1))


def _bands(found: int) -> list[tuple[int, int]]:
    """(band, its bits): 64 bits as 13, 13, 13, 13 and 12."""
    return [(band, (found >> (13 * band)) & 0x1FFF) for band in range(BANDS)]


def _close(one: int, other: int) -> bool:
    return (one ^ other).bit_count() <= NEAR


def known_of(against: Sequence[str], images: Path | None = None) -> Known:
    """Of `NAME=FILE`, as `limner eval --benchmark NAME --data FILE` reads it. Raises InputError."""
    known = Known()
    for words in against:
        name, equals, path = words.partition("=")
        if not equals or not path:
            raise InputError(f"--against {words}: give NAME=FILE, a benchmark and what it asks")
        benchmark = find("benchmark", name, "--against").thing
        known.template = known.template or name.startswith("geneval")
        for item, _ in benchmark.records(Path(path), images):
            _add(known, item, name)
    return known


def _add(known: Known, item: Item, name: str) -> None:
    for segment in segments_of(item.question):
        if isinstance(segment, ImageSegment):
            known.add_picture(segment.pixels(), name)
        else:
            known.add_text(segment.text, name)


def decontaminate(directory: str | Path, target: Path, known: Known, overwrite: bool = False) -> ShardIndex:
    """Writes what no benchmark asks or shows; the report counts by rule and benchmark, and lists ids."""
    index = read_index(directory)
    dropped, hits, templates = Counter[str](), list[str](), 0
    with ShardWriter(target, overwrite=overwrite, fingerprint=index.fingerprint, report=index.report) as writer:
        for name in (name for name in SPLITS if index.of(name)):
            for document, originals in documents_of(index, name):
                if found := hit(document, known):
                    dropped[found] += 1
                    hits += [f"{document.id}: {found}"] * (len(hits) < LISTED)
                    continue
                templates += known.template and TEMPLATE.search(normal(document.text)) is not None
                writer.write(document, name, originals)
        counts = {"left out": dict(dropped), "same template, kept": templates, "listed": hits}
        writer.report = {**index.report, "decontamination": counts}
    return read_index(target)


def hit(document: InterleavedDocument, known: Known) -> str:
    """`benchmark text (NAME)`, `benchmark picture (NAME)`, or nothing. Raises InputError for a damaged picture."""
    # A prompt may stand behind an instruction of ours: without its first word or words, too.
    asked = document.prompt.text
    for text in (document.text, asked, asked.partition(":")[2]):
        if text.strip() and (name := known.text(text)):
            return f"benchmark text ({name})"
    for segment in document.images if known.bands else ():
        try:
            name = known.picture(segment.pixels())
        except ValueError as error:
            raise InputError(f"document {document.id!r}: {error}") from None
        if name:
            return f"benchmark picture ({name})"
    return ""


def main(argv: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="limner data decontaminate", description="Copy a shard folder without what benchmarks ask or show."
    )
    parser.add_argument("directory", metavar="DIR", help="folder of shards, or the address of one")
    parser.add_argument("--against", nargs="+", required=True, metavar="NAME=FILE", help="a benchmark and its data")
    parser.add_argument("--images", type=Path, metavar="ROOT", help="folder of the benchmark's pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR2", help="folder of shards to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that DIR2 holds")
    arguments = parser.parse_args(argv)
    known = known_of(arguments.against, arguments.images)
    index = decontaminate(arguments.directory, arguments.out, known, arguments.overwrite)
    counts = index.report["decontamination"]
    gone = ", ".join(f"{rule} {count}" for rule, count in counts["left out"].items()) or "nothing"
    kept = counts["same template, kept"]
    template = f"; {kept} kept that are worded as GenEval words its prompts" if kept else ""
    total = sum(sum(kinds.values()) for kinds in index.kinds.values())
    say(f"{arguments.out}: {total} documents; left out: {gone}{template}")
    say_next("limner", "warmup", "--config", "warmup/documents", "--data", arguments.out)
