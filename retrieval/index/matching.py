"""How well a text fits a question, and from where on it answers it: measured on the index itself.

    matching = calibrated(sample, encoder)              # of an Index: index.matching()
    best = max(matching.fits(question, texts))

A text that the encoder reads is compared by vectors, any other by the letters that it shares with the question; how
rare letters are, and how many are shared by chance, is counted for each script by itself. Neither number means anything
alone: cosines of what has nothing to do with each other are 0.1 with one encoder and 0.8 with another, and texts on one
subject share more letters. So the least fit of an answer is what sentences of the index reach with chunks of other
documents, which they do not ask for.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ...data.sentences import sentences
from .corpus import Hit
from .encoders import TextEncoder
from .letters import runs_of, script_of
from .tables import PLACE, among, asked_runs, few, rows, searched_text

By = Literal["vectors", "letters"]
QUANTILES: dict[By, float] = {"vectors": 0.85, "letters": 0.95}
"""Part of the unrelated pairs that stay below the floor. Chosen on the corpora of docs/answering.md."""
BOUNDS: dict[By, tuple[float, float]] = {"vectors": (0.3, 0.95), "letters": (0.15, 0.5)}
"""A floor is never outside: documents that have nothing in common say too little, those that repeat each other too
much."""
WITHOUT: dict[By, float] = {"vectors": 0.35, "letters": 0.2}
"""The floors of an index that is too small to be measured. That of vectors is MiniLM's."""
PAIRS = 20
"""Fewer are too few."""
SAMPLE, QUESTIONS = 200, 64
"""Chunks that are compared, at most, and sentences of them."""
SHORTEST = 12
"""Runs of letters of a sentence that is taken for a question."""


@dataclass(frozen=True, slots=True, order=True)
class Fit:
    margin: float
    """The value over the floor: at least 1 answers."""
    value: float
    least: float
    by: By


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chunk of the sample."""

    document: int
    text: str
    vector_W: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class Floor:
    least: float
    pairs: int = 0
    """Unrelated pairs that it is of; 0 where there were too few."""

    def __str__(self) -> str:
        return f"{self.least:.2f} ({f'of {self.pairs} unrelated pairs' if self.pairs else 'too little to measure it'})"


@dataclass(frozen=True, slots=True)
class Letters:
    """Of the texts of one script."""

    floor: Floor = Floor(WITHOUT["letters"])
    rarity: Mapping[str, float] = field(default_factory=dict)
    """Of runs of letters; of others the largest."""
    texts: int = 0
    """In the sample."""


@dataclass(frozen=True, slots=True)
class Matching:
    encoder: TextEncoder | None = None
    vectors: Floor = Floor(WITHOUT["vectors"])
    letters: Mapping[str, Letters] = field(default_factory=dict)
    """By script, of texts that the encoder does not read."""
    read: int = 0
    """Texts of the sample that it reads."""

    def fits(self, question: str, texts: Sequence[str], least: float | None = None) -> list[Fit]:
        """least: instead of the floors; with 0 everything answers."""
        read = [False] * len(texts)
        if self.encoder and self.encoder.reads([question], question=True)[0]:
            read = self.encoder.reads(texts)
        asked, found = asked_runs(question), []
        for text in texts:
            letters = self.letters.get(script_of(text), Letters())
            found.append(_fit(share(asked, set(runs_of(text)), letters.rarity), letters.floor, "letters", least))
        if self.encoder and any(read):
            places = np.flatnonzero(read).tolist()
            cosines = self.encoder.passages([texts[place] for place in places]) @ self.encoder.queries([question])[0]
            for place, cosine in zip(places, cosines.tolist(), strict=True):
                found[place] = _fit(cosine, self.vectors, "vectors", least)
        return found

    def ways(self) -> str:
        """By what the texts are found, and why."""
        unread = sum(letters.texts for letters in self.letters.values())
        whole = max(self.read + unread, 1)
        scripts = ", ".join(f"{name} {letters.texts / whole:.0%}" for name, letters in self.letters.items())
        if not self.encoder:
            return f"by letters ({scripts}): there is no text encoder"
        if not unread:
            return f"by words and by vectors of {self.encoder.name}"
        why = f"{self.encoder.name} is for another language"
        if not self.read:
            return f"by letters ({scripts}), without vectors: {why}"
        return (
            f"by words and by vectors of {self.encoder.name} {self.read / whole:.0%}; by letters {scripts}: there {why}"
        )

    def floors(self) -> str:
        """`by vectors 0.36 (of 4032 unrelated pairs), by letters of Han 0.15 (too little to measure it)`"""
        parts = [f"by vectors {self.vectors}"] if self.read else []
        return ", ".join([*parts, *(f"by letters of {name} {letters.floor}" for name, letters in self.letters.items())])


def _fit(value: float, floor: Floor, by: By, least: float | None) -> Fit:
    least = floor.least if least is None else least
    return Fit(value / least if least else math.inf, value, least, by)


def share(asked: Iterable[str], there: set[str], rarity: Mapping[str, float]) -> float:
    """Of the weight of what is asked, that of what is there; 1 for a question that names nothing."""
    unknown = max(rarity.values(), default=1.0)
    weights = {run: rarity.get(run, unknown) for run in asked}
    whole = sum(weights.values())
    return sum(weight for run, weight in weights.items() if run in there) / whole if whole else 1.0


def fitting_first(matching: Matching, question: str, hits: Sequence[Hit]) -> list[Hit]:
    """Chunks found by letters have ranks apart from those of others: the kind that the best fit is of comes first."""
    fits = matching.fits(question, [searched_text(hit.chunk) for hit in hits])
    best = hits[max(range(len(hits)), key=fits.__getitem__)]
    return sorted(hits, key=lambda hit: ("letters" in hit.found_by) != ("letters" in best.found_by))


def drawn(chunks: Any, generations: Collection[int]) -> list[Sampled]:
    """From the table of chunks those of these documents, or some, always the same."""
    places = sorted((row["generation"], row["number"]) for row in rows(chunks, PLACE))
    places = [place for place in places if place[0] in generations]
    chosen = set(random.Random(0).sample(places, min(SAMPLE, len(places))))
    columns = [*PLACE, "searched", *(name for name in chunks.schema.names if name == "text_vector")]
    found = [
        row
        for batch in few({generation for generation, _ in chosen})
        for row in rows(chunks, columns, among("generation", batch))
        if (row["generation"], row["number"]) in chosen
    ]
    found.sort(key=lambda row: row["searched"])  # generations are random numbers
    return [Sampled(row["generation"], row["searched"], row.get("text_vector")) for row in found]


def calibrated(sample: Sequence[Sampled], encoder: TextEncoder | None) -> Matching:
    """The floors from sentences of the sample against its chunks of other documents.

    A sentence that stands in a chunk of another document asks for it: no such pair counts. Nor does a pair without a
    letter in common, as in two languages of one script.
    """
    read = encoder.reads([one.text for one in sample]) if encoder else [False] * len(sample)
    by_vectors = [one for one, reads in zip(sample, read, strict=True) if reads]
    by_script: dict[str, list[Sampled]] = {}
    for script, one in ((script_of(one.text), one) for one, reads in zip(sample, read, strict=True) if not reads):
        by_script.setdefault(script, []).append(one)
    vectors = _floor("vectors", _cosines(by_vectors, encoder) if encoder else [])
    letters = {script: _letters(some) for script, some in by_script.items()}
    return Matching(encoder, vectors, letters, len(by_vectors))


def _letters(sample: Sequence[Sampled]) -> Letters:
    runs = {one.text: set(runs_of(one.text)) for one in sample}
    counts = Counter(run for mine in runs.values() for run in mine)
    rarity = {run: math.log((1 + len(runs)) / (0.5 + count)) for run, count in counts.items()}
    shares = []
    for sentence, others in _asked(sample):
        wanted = asked_runs(sentence)
        shares += [share(wanted, runs[other.text], rarity) for other in others]
    return Letters(_floor("letters", [one for one in shares if one]), rarity, len(sample))


def _cosines(sample: Sequence[Sampled], encoder: TextEncoder) -> list[float]:
    asked = _asked([one for one in sample if one.vector_W is not None])
    vectors_QW = encoder.queries([sentence for sentence, _ in asked])
    found: list[float] = []
    for vector_W, (_, others) in zip(vectors_QW, asked, strict=True):
        chunks_NW = np.asarray([other.vector_W for other in others], np.float32).reshape(-1, encoder.width)
        found += (chunks_NW @ vector_W).tolist()
    return found


def _floor(by: By, values: Sequence[float]) -> Floor:
    if len(values) < PAIRS:
        return Floor(WITHOUT[by])
    low, high = BOUNDS[by]
    return Floor(min(max(float(np.quantile(values, QUANTILES[by])), low), high), len(values))


def _asked(sample: Sequence[Sampled]) -> list[tuple[str, list[Sampled]]]:
    """Sentences, each with the chunks of other documents that do not hold it."""
    asked = [(one, sentence) for one in sample if (sentence := _question(one.text))][:QUESTIONS]
    return [
        (sentence, [other for other in sample if other.document != one.document and sentence not in other.text])
        for one, sentence in asked
    ]


def _question(text: str) -> str:
    """A sentence from the middle of a chunk, without its title; empty where none is long enough."""
    found = [piece.strip() for piece in sentences(text.partition("\n")[2])]
    long = [piece for piece in found if len(asked_runs(piece)) >= SHORTEST and "\n" not in piece]
    return long[len(long) // 2] if long else ""
