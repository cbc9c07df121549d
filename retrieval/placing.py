"""Where pictures may stand: what the user allows, how well a picture fits a place, and the holding to both.

S sentences of an answer have S + 1 places: place i is behind the first i sentences. K candidates.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..configs.bounds import NoneOrMore, Share
from ..configs.schema import check_ranges
from ..data.insertion.placements import Candidate, taken_out
from ..models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts to their vectors of length 1, [texts, width]."""

HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]++(.*)$", re.MULTILINE)
IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+")
"""Chinese and Japanese put no space between words; there each character counts as one."""


@dataclass
class PlacementRules:
    """What the user allows; every strategy is held to it."""

    max_images: NoneOrMore | None = None
    """Most pictures of an answer."""
    sections: list[str] = field(default_factory=list)
    """Headings of the answer under which pictures may stand, subsections included; without any, everywhere."""
    min_relevance: Share | None = None
    """Least relevance of an inserted picture to the text around it, 0 to 1."""
    images: Literal["given", "generated", "both"] = "both"
    """Pictures of the documents, pictures the model draws, or both."""

    def __post_init__(self) -> None:
        check_ranges(self)


def words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def relevance(
    sentences: Sequence[str], candidates: Sequence[Candidate], encode: Encode | None = None
) -> np.ndarray:  # (S + 1, K)
    """0 to 1: how well each candidate fits each place.

    The better of two cosines: the sentence before the place with the caption, and the sentences on both sides of it
    with the text around the picture where it was found (a line of its context for each such place, the best counts).
    Vectors are of weighted words (tf-idf, rare words of these very texts weigh more); with `encode` the mean of that
    cosine and the encoder's, which keeps one threshold usable for encoders whose unrelated texts have cosines of 0.1
    or of 0.5.
    """
    before = ["", *sentences]
    behind = [*sentences, ""]
    around = [f"{former} {latter}" for former, latter in zip(before, behind, strict=True)]
    captions = [candidate.caption for candidate in candidates]
    contexts = [candidate.context.split("\n") for candidate in candidates]
    flat = [line for lines in contexts for line in lines]
    rarity = inverse_frequency([*sentences, *captions, *flat])
    fits, by_line = _cosines(before, captions, rarity, encode), _cosines(around, flat, rarity, encode)
    column = 0
    for index, lines in enumerate(contexts):
        fits[:, index] = np.maximum(fits[:, index], by_line[:, column : column + len(lines)].max(1))
        column += len(lines)
    return fits.clip(0, 1)


def inverse_frequency(texts: Sequence[str]) -> dict[str, float]:
    """ln((1 + n) / (0.5 + texts that hold the word)) of each word."""
    found = Counter(word for text in texts for word in set(words(text)))
    return {word: math.log((1 + len(texts)) / (0.5 + count)) for word, count in found.items()}


def word_vectors(texts: Sequence[str], rarity: dict[str, float]) -> np.ndarray:  # (texts, words)
    """Rows of length 1; a text without a known word is a row of zeros."""
    columns = {word: column for column, word in enumerate(rarity)}
    vectors = np.zeros((len(texts), len(columns)))
    for row, text in enumerate(texts):
        for word, count in Counter(words(text)).items():
            if word in columns:
                vectors[row, columns[word]] = (1 + math.log(count)) * rarity[word]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def _cosines(
    rows: Sequence[str], columns: Sequence[str], rarity: dict[str, float], encode: Encode | None
) -> np.ndarray:
    cosines = word_vectors(rows, rarity) @ word_vectors(columns, rarity).T
    if encode and rows and columns:
        filled = np.outer([bool(words(text)) for text in rows], [bool(words(text)) for text in columns])
        cosines = (cosines + filled * (encode(rows) @ encode(columns).T).clip(0, 1)) / 2
    return cosines


def open_places(sentences: Sequence[str], sections: Sequence[str]) -> np.ndarray:  # (S + 1,) of bool
    """Which places are under one of the headings (Markdown's, any case); without sections all."""
    wanted = {_plain(section) for section in sections}
    text, ends = "".join(sentences), [0]
    for sentence in sentences:
        ends.append(ends[-1] + len(sentence))
    headings = [(match.start(), len(match[1]), _plain(match[2])) for match in HEADING.finditer(text)]
    places = []
    for end in ends:
        above: list[tuple[int, str]] = []  # the heading that holds, and those it is a subsection of
        for start, level, title in headings:
            if start < end:
                above = [*(outer for outer in above if outer[0] < level), (level, title)]
        places.append(not wanted or any(title in wanted for _, title in above))
    return np.asarray(places)


def absent(document: InterleavedDocument, sections: Sequence[str]) -> list[str]:
    """Those of the sections that are no heading of the document."""
    headings = {_plain(match[2]) for match in HEADING.finditer("".join(taken_out(document)[0]))}
    return [section for section in sections if _plain(section) not in headings]


def restricted(
    document: InterleavedDocument,
    candidates: Sequence[Candidate],
    rules: PlacementRules,
    encode: Encode | None = None,
) -> tuple[InterleavedDocument, Counter[str]]:
    """The document without pictures that the rules forbid, and the number of those by reason.

    In this order: pictures that do not decode, of the wrong origin, outside the sections, below the least relevance;
    of what is left the least relevant are too many, of equals the later. A generated picture has no caption to
    compare: it counts as relevant.
    """
    sentences, placements, pictures = taken_out(document)
    fits = relevance(sentences, candidates, encode) if rules.min_relevance or rules.max_images is not None else None
    open_at = open_places(sentences, rules.sections)
    removed: dict[int, str] = {}
    worth: dict[int, float] = {}
    for number, (placement, picture) in enumerate(zip(placements, pictures, strict=True)):
        worth[number] = 1.0
        if fits is not None and picture.candidate is not None:
            worth[number] = float(fits[placement.after, picture.candidate - 1])
        if not _decodes(picture):
            removed[number] = "unreadable"
        elif rules.images == "given" and picture.origin == "generated":
            removed[number] = "generated"
        elif rules.images == "generated" and picture.origin != "generated":
            removed[number] = "given"
        elif not open_at[placement.after]:
            removed[number] = "outside the sections"
        elif worth[number] < (rules.min_relevance or 0):
            removed[number] = "not relevant"
    if rules.max_images is not None:
        left = sorted((number for number in worth if number not in removed), key=lambda number: -worth[number])
        removed |= dict.fromkeys(left[rules.max_images :], "too many")
    gone = {pictures[number] for number in removed}
    kept = [segment for segment in document.segments if segment not in gone]
    return replace(document, segments=_joined(kept)), Counter(removed.values())


def _joined(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Neighbouring texts become one; where only a picture kept two words apart, a line break does."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if isinstance(segment, TextSegment) and isinstance(last, TextSegment) and segment.trainable == last.trainable:
            apart = not last.text or last.text[-1].isspace() or segment.text[:1].isspace()
            joined[-1] = replace(last, text=last.text + ("" if apart else "\n") + segment.text)
        else:
            joined.append(segment)
    return tuple(joined)


def _decodes(picture: ImageSegment) -> bool:
    try:
        picture.pixels()
    except ValueError:
        return picture.image is None  # codes, which its model paints
    return True


def _plain(heading: str) -> str:
    return " ".join(re.sub(r"[*_`:]", "", heading.rstrip(" \t#")).split()).casefold()
