"""Questions to illustrated answers: retrieve, answer, place, one document with its sources.

    hits = Index.open(DIR).search(question, None)
    answered = answer(question, hits, Illustrate(RuleInserter().place))
    save(answered, Path("answer.html"))

A strategy is any function (question, hits) -> Answered:

    Illustrate(place)    a finished text, given or extracted, and whatever places pictures in it: a rule, an inserter
    Asking(model)        a language model writes from the hits and sets markers; with `pixels` it sees the pictures
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..configs.errors import InputError
from ..configs.whole import write_atomically
from ..data.insertion.placements import Candidate, InsertionTask, Placement, compose, settled
from ..data.sentences import sentences
from ..models.chat.painters.painter import Painter
from ..models.chat.requests import ChatModel
from ..models.documents.document import InterleavedDocument, TextSegment, open_image, to_rgb
from ..models.documents.rendering import beginning, check_suffix, document_html, html_page, save_markdown
from .index.corpus import PIC, Chunk, Hit, some
from .index.encoders import TextEncoder
from .index.matching import Fit, Matching
from .index.tables import searched_text
from .placing import Encode, PlacementRules, absent, restricted, words

EXTRACT_WORDS = 600
"""Longest extract: about three chunks."""
GOES_ON = "[...]"
PAGE_CSS = """
.sources { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; font-size: 0.9rem; }
.sources h2 { font-size: 1rem; margin: 0 0 0.5rem; }
.sources ol { margin: 0; padding-left: 1.4rem; }
.sources .where, .note { color: var(--muted); font-size: 0.8rem; }
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A document that an answer draws on."""

    document: str
    title: str
    chunks: tuple[str, ...]
    """Ids of those whose text was used."""
    pictures: tuple[int, ...]
    """Candidates from it that stand in the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    document: InterleavedDocument
    """Texts and pictures; `answer` puts question, sources, faults and removals into its meta."""
    candidates: tuple[Candidate, ...]
    """Those offered, in the order of their numbers."""
    faults: Counter[str]
    """Placements and markers that place nothing, by kind, and what else went wrong."""
    sources: tuple[Source, ...]
    removed: Counter[str] = field(default_factory=Counter)
    """Pictures that the placement rules took out, by reason."""
    told: Counter[str] = field(default_factory=Counter)
    """Candidates that a model read of in words, by what told it of them; empty where it saw them, or read of none."""


class Strategy(Protocol):
    """One is registered, or named by file, as a function, or as a class. A class is made from `means`, if it names
    that, and from its options; `needs` says which settings of the command it takes exactly one of, `paints` that it
    takes a painter."""

    def __call__(self, question: str, hits: Sequence[Hit]) -> Answered: ...


@dataclass(frozen=True, slots=True)
class Means:
    """What `limner answer` hands to the strategy that it makes."""

    rules: PlacementRules
    chat: Callable[[], ChatModel]
    """The model behind `endpoint` or `local`."""
    painter: Callable[[], Painter] | None = None
    """The model behind `painter`, for a strategy that says `paints = True`."""
    encode: Encode | None = None
    """The text encoder of the index."""
    document: Callable[[str], Sequence[Chunk]] | None = None
    """All chunks of a document."""
    text: str = ""
    """A finished answer that gets its pictures."""
    own: bool = True
    """An extract is offered the pictures that stand in it in its document, no others."""
    model: str = ""
    """Folder or ORG/NAME."""
    device: str | None = None
    think: int = 0
    template: str = ""
    """Name or file of a prompt; empty for the strategy's own."""
    sampling: Mapping[str, Any] = field(default_factory=dict)


def answer(
    question: str,
    hits: Sequence[Hit],
    strategy: Strategy,
    rules: PlacementRules | None = None,
    matching: Matching | None = None,
    min_match: float | None = None,
) -> Answered:
    """The strategy's answer, held to the rules.

    matching: that of the index (`Index.matching`); its encoder is used for `placing.relevance` too, where it reads what
    was found. min_match: least fit of the question and some chunk, by default the floor of `matching`; 0 takes whatever
    was found. Raises InputError for an empty question, where nothing was found, and where nothing that was found
    answers it.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if not hits:
        raise InputError(f"nothing in the index fits {question[:80]!r}; ask in its words, or index more documents")
    matching = matching or Matching()
    fit, chunk = best_match(question, hits, matching, min_match)
    if fit.margin < 1:
        said = f"the best chunk, {chunk.id} ({beginning(chunk.title)}), fits to {fit.value:.2f} by {fit.by}"
        said += f", below {fit.least:.2f}"
        raise InputError(f"nothing in the index answers {question[:80]!r}: {said}; ask otherwise, or lower --min_match")
    written = strategy(question, hits)
    rules = rules or PlacementRules()
    document, removed = restricted(written.document, written.candidates, rules, encoding(matching.encoder, hits))
    sources = _still_used(written.sources, document)
    faults = written.faults + Counter(f"no section {name!r}" for name in absent(document, rules.sections))
    meta = {
        **document.meta,
        "question": question,
        "match": {"by": fit.by, "fit": round(fit.value, 4), "floor": round(fit.least, 4)},
        "searched": matching.ways(),
        "sources": [asdict(source) for source in sources],
        "faults": dict(faults),
        "removed": dict(removed),
        **({"told": dict(written.told)} if written.told else {}),
    }
    document = replace(document, meta=meta)
    return replace(written, document=document, faults=faults, sources=sources, removed=removed)


def best_match(
    question: str, hits: Sequence[Hit], matching: Matching, min_match: float | None = None
) -> tuple[Fit, Chunk]:
    """How well the best of the chunks fits the question, and which that is.

    Title and captions belong to a chunk, as in the search. Not against one floor for all: chunks in a language that the
    encoder does not read are compared by letters.
    """
    fits = matching.fits(question, [searched_text(hit.chunk) for hit in hits], min_match)
    best = max(range(len(hits)), key=fits.__getitem__)
    return fits[best], hits[best].chunk


def encoding(encoder: TextEncoder | None, hits: Sequence[Hit]) -> Encode | None:
    """The encoder's vectors, for pictures and places, where it reads the best of what was found."""
    read = encoder is not None and hits and encoder.reads([searched_text(hits[0].chunk)])[0]
    return encoder.passages if encoder and read else None


# ---- what a strategy is made of ----


def candidates_of(
    hits: Sequence[Hit], decode: bool = False
) -> tuple[tuple[Candidate, ...], dict[str, int], Counter[str]]:
    """Pictures of the hits to candidates, the number of each by picture id, and pictures that do not open.

    Documents in the order in which they were found, pictures in the order of their document. A picture that is there
    more than once, by id or byte for byte, is one candidate, with a line of context for each place. decode: all pixels
    are read now, as a model needs that sees them; without it those of placed pictures, by `answer`.
    """
    found: dict[bytes, Candidate] = {}
    digests: dict[str, bytes] = {}
    faults: Counter[str] = Counter()
    for chunk in in_reading_order([hit.chunk for hit in hits]):
        for picture in chunk.pictures:
            digest = digests.setdefault(picture.id, hashlib.sha256(picture.data).digest())
            if same := found.get(digest):
                found[digest] = replace(same, context=f"{same.context}\n{_line(picture.context)}")
                continue
            try:
                image = open_image(picture.data)
                image = to_rgb(image) if decode else image
            except ValueError:
                faults["unreadable"] += 1
            else:
                found[digest] = Candidate(image, picture.caption, _line(picture.context), picture.id, chunk.document)
    numbers = {digest: number for number, digest in enumerate(found, 1)}
    by_id = {id: numbers[digest] for id, digest in digests.items() if digest in numbers}
    return tuple(found.values()), by_id, faults


def in_reading_order(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Documents in the order given, the chunks of each in its own (`DOCUMENT:n`), each once."""
    rank = {document: place for place, document in enumerate(dict.fromkeys(chunk.document for chunk in chunks))}
    once = {chunk.id: chunk for chunk in chunks}
    return sorted(once.values(), key=lambda chunk: (rank[chunk.document], number_of(chunk)))


def extract(chunks: Sequence[Chunk], best: Chunk) -> tuple[str, tuple[Chunk, ...]]:
    """The text of a chunk and of those around it, without a gap, as long as it is short; and the chunks it is of.

    chunks: what there is, better ones first; of the two neighbours the better one is taken. `[...]` says where the
    document goes on. One document, whole chunks: sentences picked by the words of a question leave out the steps of an
    instruction, which do not repeat them, and several documents would need somebody to write the transitions.
    """
    mine: dict[int, Chunk] = {}
    for chunk in chunks:
        if chunk.document == best.document:
            mine.setdefault(number_of(chunk), chunk)
    better_first = list(mine)
    first = last = number_of(best)
    length = len(words(best.text))
    while beside := [number for number in (first - 1, last + 1) if number in mine]:
        nearest = min(beside, key=better_first.index)
        length += len(words(mine[nearest].text))
        if length > EXTRACT_WORDS:
            break
        first, last = min(first, nearest), max(last, nearest)
    taken = tuple(mine[number] for number in range(first, last + 1))
    parts = [without_pictures(chunk.text).strip() for chunk in taken]
    return "\n\n".join([GOES_ON] * (first > 0) + parts + [GOES_ON] * (max(mine) > last)), taken


def number_of(chunk: Chunk) -> int:
    """Its place in the document, which its id ends with."""
    return int(chunk.id.rpartition(":")[2])


def without_pictures(text: str) -> str:
    """A line that a picture had for itself goes with it."""
    return re.sub(rf"(?:(?<=\n)|^)[ \t]*{PIC}[ \t]*(?:\n|$)", "", text).replace(PIC, "")


def sources_of(
    hits: Sequence[Hit], used: Sequence[str], document: InterleavedDocument, candidates: Sequence[Candidate]
) -> tuple[Source, ...]:
    """Documents whose text (chunk ids `used`) or pictures stand in the answer, in the order of the hits."""
    titles = {hit.chunk.document: hit.chunk.title for hit in reversed(hits)}
    owner = {hit.chunk.id: hit.chunk.document for hit in hits}
    shown = [picture.candidate for picture in document.images if picture.candidate is not None]
    found = []
    for name in dict.fromkeys(owner.values()):
        chunks = tuple(chunk for chunk in dict.fromkeys(used) if owner[chunk] == name)
        pictures = tuple(number for number in shown if candidates[number - 1].source == name)
        if chunks or pictures:
            found.append(Source(name, titles[name], chunks, pictures))
    return tuple(found)


def _still_used(sources: Sequence[Source], document: InterleavedDocument) -> tuple[Source, ...]:
    """Those whose text or pictures stand in the document after the rules have taken pictures out."""
    shown = {picture.candidate for picture in document.images}
    left = [replace(source, pictures=tuple(n for n in source.pictures if n in shown)) for source in sources]
    return tuple(source for source in left if source.chunks or source.pictures)


@dataclass(frozen=True, slots=True)
class Illustrate:
    """A finished text gets its pictures from whatever places them. A `Strategy`."""

    place: Callable[[InsertionTask], Sequence[Placement]]
    text: str = ""
    """To be illustrated; without one it is extracted from the hits."""
    decode: bool = False
    """Whoever places the pictures looks at them."""
    document: Callable[[str], Sequence[Chunk]] | None = None
    """All chunks of a document (`Index.chunks_of`): an extract may then hold more of the best than what was found."""
    own: bool = False
    """Only pictures that stand in the extract in its document are candidates."""

    def __call__(self, question: str, hits: Sequence[Hit]) -> Answered:
        text, chunks = self.text, ()
        if not text:
            best = hits[0].chunk
            if self.document:
                hits = [*hits, *(Hit(chunk, 0.0, ("its document",)) for chunk in self.document(best.document))]
            text, chunks = extract([hit.chunk for hit in hits], best)
            if self.own:
                taken = {chunk.id for chunk in chunks}
                hits = [hit for hit in hits if hit.chunk.id in taken]
        candidates, _, faults = candidates_of(hits, self.decode)
        pieces = tuple(sentences(text))
        task = InsertionTask(question, pieces, candidates)
        placements, others = settled(self.place(task), len(pieces), len(candidates))
        document = compose(pieces, placements, candidates)
        sources = sources_of(hits, [chunk.id for chunk in chunks], document, candidates)
        return Answered(document, candidates, faults + others, sources)


# ---- for people ----


def described(answered: Answered) -> str:
    """One line: pictures, and what was left out and why."""
    origins = Counter(picture.origin for picture in answered.document.images)
    parts = [f"{some(len(answered.document.images), 'picture')} ({_counts(origins)})" if origins else "no pictures"]
    parts[0] += f", {some(len(answered.candidates), 'candidate')}, {some(len(answered.sources), 'source')}"
    if answered.told:
        parts.append(f"candidates told by words alone: {_counts(answered.told)}")
    if answered.faults:
        parts.append(f"faults: {_counts(answered.faults)}")
    if answered.removed:
        parts.append(f"taken out by the rules: {_counts(answered.removed)}")
    return "; ".join(parts)


def save(answered: Answered, path: Path) -> None:
    """Writes .html, .md (with its pictures, see `save_markdown`) or .json, with the sources, whole or not at all."""
    check_suffix(path)
    if path.suffix == ".html":
        write_atomically(path, to_html(answered))
    elif path.suffix == ".md":
        lines = [
            f"{number}. {_markdown(' '.join(_source_line(source)))}"
            for number, source in enumerate(answered.sources, 1)
        ]
        title = TextSegment(f"# {_markdown(_question(answered))}")
        end = TextSegment("\n".join(["## Sources", "", *lines]))
        save_markdown(InterleavedDocument((title, *answered.document.segments, end)), path)
    else:
        write_atomically(path, json.dumps(answered.document.to_json()) + "\n")


def to_html(answered: Answered) -> str:
    """A self-contained page: the question, the answer, the sources as a list, and what was left out."""
    title = _question(answered)
    items = "".join(
        f'<li>{html.escape(title)} <span class="where">{html.escape(where)}</span></li>'
        for title, where in map(_source_line, answered.sources)
    )
    return html_page(
        title,
        f"<main><h1>{html.escape(title)}</h1>{document_html(answered.document)}"
        f'<section class="sources"><h2>Sources</h2><ol>{items}</ol>'
        f'<p class="note">{html.escape(described(answered))}</p></section></main>',
        PAGE_CSS,
    )


def _source_line(source: Source) -> tuple[str, str]:
    """Title, and file or address with what is taken from there; where there is no title, the file stands for it."""
    count = len(source.pictures)
    taken = [*["text"] * bool(source.chunks), *[some(count, "picture")] * bool(count)]
    title, name, used = beginning(source.title), _line(source.document), f"({', '.join(taken)})"
    return (name, used) if title in ("", name) else (title, f"{name} {used}")


def _question(answered: Answered) -> str:
    return _line(str(answered.document.meta.get("question") or "Answer"))


def _line(text: str) -> str:
    return " ".join(text.split())


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _markdown(line: str) -> str:
    """Text that is to show letter by letter; `to_markdown` takes care of `<`."""
    return re.sub(r"[\\\[\]*_`!#|~]", r"\\\g<0>", line)
