"""Answers to MRAMG-Bench: read from a file or from the run's folder, written by the strategies of `limner answer`.

    {"id": "recipe/12", "answer": "Peel the apples. <img2>", "candidates": ["apple-1", "apple-2"], "documents": []}
    {"id": "recipe/12", "document": {"segments": [...]}, "candidates": [...]}

`<imgK>`, or an inserted image of candidate K, is the K-th of `candidates`, the ids of all pictures that were offered.
The question's own id will do where the record has a `subset`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from ....configs.bounds import OneOrMore
from ....configs.errors import InputError
from ....configs.schema import check_ranges
from ....data.insertion.placements import ANY_MARKER, InsertionTask, Placement, read_markers
from ....data.sources.mramg import DOMAINS, read_corpus
from ....models.chat.choice import ChatConfig, chat_model
from ....models.chat.requests import ChatModel, Failure, Request
from ....models.documents.candidates import MARKER, escape_markers
from ....models.documents.document import InterleavedDocument, TextSegment
from ....retrieval.answering import Answered, Illustrate, candidates_of, without_pictures
from ....retrieval.index.corpus import Chunk, Hit, make_chunks
from ....retrieval.strategies.asking import Asked, Asking
from ....retrieval.strategies.rule import RuleInserter
from ...benchmark import Given, Item
from ...entries import Entry
from ...folder import Journal, read_journals

Found = tuple[Item, list[Hit]]
Strategy = Literal["rule", "inserter", "llm", "vlm"]
NOT_FOUND = {"failure": "nothing found", "reason": "the search found no text to answer from"}


@dataclass
class Answering:
    strategy: Strategy = "rule"
    """What answers where no file of answers is given."""
    text: Literal["gold", "own"] = "gold"
    """What rule and inserter illustrate: the ground truth, pictures taken out, or an extract of what was found."""
    inserter: str = ""
    """Folder or ORG/NAME of the inserter."""
    writer: ChatConfig = field(default_factory=ChatConfig)
    """The model of llm and vlm, which write their own text."""
    candidates: Literal["retrieved", "gold"] = "retrieved"
    """Pictures of what is found among all documents; or those of the documents that hold the answer."""
    index: str = ""
    """Folder of `limner index`, made of the benchmark's folder."""
    top_k: OneOrMore = 10
    """Chunks that are found for a question."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def gold_text(self) -> bool:
        return self.strategy in ("rule", "inserter") and self.text == "gold"


@dataclass(frozen=True, slots=True)
class Placed(Given):
    """An answer whose pictures are known by id."""

    marked: str = ""
    """The text with `<imgK>`."""
    candidates: tuple[str, ...] = ()
    """Ids of the pictures offered, `recipe/apple-1`."""
    documents: tuple[str, ...] = ()
    """Of the chunks that were found, the best first."""
    faults: dict[str, int] = field(default_factory=dict)
    """Markers that place nothing, by kind, and what else went wrong."""

    @property
    def images(self) -> list[str]:
        """Ids in the order of the answer, repeated ones again: what the metrics are of."""
        numbers = [int(match[1]) for match in MARKER.finditer(self.marked)]
        return [self.candidates[number - 1] for number in numbers if number <= len(self.candidates)]

    @property
    def text(self) -> str:
        return read_markers(self.marked, len(self.candidates)).text


# ---- reading ----


def read_answer(record: Mapping[str, Any], place: str) -> Given:
    """Raises InputError naming record and field."""
    if "failure" in record:
        return Given(failure=str(record["failure"]), reason=str(record.get("reason", "")))
    subset = record["id"].partition("/")[0]
    lists = {"candidates": record.get("candidates"), "documents": record.get("documents", [])}
    for name, value in lists.items():
        if not isinstance(value, list) or not all(type(key) in (str, int) for key in value):
            raise InputError(f"{place}: field `{name}` is no list of ids")
    if "document" in record:
        try:
            marked = marked_text(InterleavedDocument.from_json(record["document"]))
        except ValueError as error:
            raise InputError(f"{place}: field `document`: {error}") from None
    elif isinstance(record.get("answer"), str):
        marked = record["answer"]
    else:
        raise InputError(f"{place}: neither a text `answer` nor a `document`; found {', '.join(map(repr, record))}")
    candidates, documents = (tuple(_key(str(key), subset) for key in value) for value in lists.values())
    faults = record.get("faults", read_markers(marked, len(candidates)).faults)
    if not isinstance(faults, Mapping) or not all(type(number) is int for number in faults.values()):
        raise InputError(f"{place}: field `faults` is no object of numbers")
    return Placed(marked=marked, candidates=candidates, documents=documents, faults=dict(faults))


def _key(key: str, subset: str) -> str:
    """A file may name pictures and documents as the benchmark does, without their subset."""
    return key if key.partition("/")[0] in DOMAINS else f"{subset}/{key}"


def marked_text(document: InterleavedDocument) -> str:
    """`<imgK>` where candidate K stands. Markers typed in a text are none, and other pictures, which the benchmark
    does not know, are left out."""
    parts = []
    for segment in document.segments:
        if isinstance(segment, TextSegment):
            parts.append(escape_markers(segment.text))
        elif segment.candidate is not None:
            parts.append(f"<img{segment.candidate}>")
    return "".join(parts)


def own_answers(folder: Path) -> dict[str, Given]:
    """Those of the run's folder; one that was written comes before a failure to write it."""
    answers: dict[str, Given] = {}
    for record in read_journals(folder, "answers"):
        if "failure" not in record or record["id"] not in answers:
            answers[record["id"]] = read_answer(record, f"{folder}: answer of {record['id']}")
    return answers


def entries_of_answer(given: Placed, file: Callable[[str], Path]) -> tuple[Entry, ...]:
    """Texts and pictures. file: of a picture by id."""
    entries: list[Entry] = []
    at = 0
    for match in [*MARKER.finditer(given.marked), None]:
        text = ANY_MARKER.sub("", given.marked[at : match.start() if match else None])
        if text.strip():
            entries.append(Entry(text))
        if match and int(match[1]) <= len(given.candidates):
            entries.append(Entry(None, file(given.candidates[int(match[1]) - 1])))
        at = match.end() if match else at
    return tuple(entries)


# ---- writing ----


class Writer:
    """A strategy with what it answers from. Raises InputError where one of the two is not there."""

    def __init__(self, config: Answering, folder: Path):
        self.config, self.folder = config, folder
        self.index: Any = None
        if config.candidates == "retrieved":
            if not config.index:
                raise InputError("options.index: missing; name a folder of limner index, or --options.candidates gold")
            from ....retrieval.index.store import Index  # needs LanceDB

            self.index = Index.open(config.index)
            strange = [name for name in self.index.documents if name.partition("/")[0] not in DOMAINS]
            if strange:
                raise InputError(f"{config.index}: {strange[0]!r} is no document of the benchmark; index {folder}")
        if config.strategy == "inserter" and not config.inserter:
            raise InputError("options.inserter: missing; name the inserter's folder")
        self.model = chat_model(config.writer, "options.writer") if config.strategy in ("llm", "vlm") else None

    def manifest(self) -> dict[str, Any]:
        config = self.config
        said: dict[str, Any] = {"strategy": config.strategy, "text": "gold" if config.gold_text else "own"}
        if config.strategy == "inserter":
            said["inserter"] = config.inserter
        if self.model:
            said["model"] = self.model.manifest()
        said["candidates"] = config.candidates
        if self.index:
            entries = sorted((name, entry.sha256) for name, entry in self.index.documents.items())
            digest = hashlib.sha256(repr(entries).encode()).hexdigest()
            index = {"documents": len(entries), "sha256": digest, "encoders": self.index.encoders.describe()}
            said |= {"top_k": config.top_k, "index": index}
        return said

    def caveats(self) -> list[str]:
        config = self.config
        source = "Candidates are the pictures of the documents that hold the answer."
        if self.index:
            source = (
                f"Candidates are the pictures of the {config.top_k} best chunks among {len(self.index.documents):,} "
                "documents."
            )
        text = "the ground truth's, pictures taken out" if config.gold_text else "the strategy's own"
        return [source, f"The text of the answers is {text}."]

    def write(self, items: Sequence[Item], journal: Journal) -> Iterator[int]:
        """One record an item. Yields how many have been written."""
        config, found = self.config, self._found(items)
        if self.model:
            yield from ask(found, Asking(self.model, pixels=config.strategy == "vlm"), self.model, journal)
        elif config.strategy == "inserter":
            from ....retrieval.strategies.inserter import load_inserter

            yield from illustrate(found, load_inserter(config.inserter).place, config.gold_text, journal)
        else:
            encoder = self.index.encoders.text if self.index else None  # as `limner answer` does: it is all English
            rule = RuleInserter(encode=encoder.passages if encoder else None)
            yield from illustrate(found, rule.place, config.gold_text, journal)

    def _found(self, items: Sequence[Item]) -> Iterator[Found]:
        if self.index is None:
            return provenance_hits(items, self.folder)
        return (
            (item, self.index.search(question, limit=self.config.top_k) if (question := question_of(item)) else [])
            for item in items
        )

    def close(self) -> None:
        if self.model:
            self.model.close()


def provenance_hits(items: Sequence[Item], folder: Path) -> Iterator[Found]:
    """Every chunk of the documents that hold the answer; one subset's documents are in memory at a time."""
    for subset in dict.fromkeys(item.category for item in items):
        mine = [item for item in items if item.category == subset]
        wanted = {document for item in mine for document in item.meta["provenance"]}
        chunks: dict[str, list[Chunk]] = {}
        for document in read_corpus(folder, [subset]):
            if document.id in wanted:
                chunks[document.id], _ = make_chunks(document)
        for item in mine:
            found = [chunk for document in item.meta["provenance"] for chunk in chunks.get(document, [])]
            yield item, [Hit(chunk, 1.0, ("provenance",)) for chunk in found]


def illustrate(
    found: Iterator[Found], place: Callable[[InsertionTask], Sequence[Placement]], gold_text: bool, journal: Journal
) -> Iterator[int]:
    """A finished text, the ground truth's or an extract, gets its pictures."""
    for written, (item, hits) in enumerate(found, 1):
        if not hits and not gold_text:
            journal.append({"id": item.id, **NOT_FOUND})
        else:
            text = without_pictures(item.reference or "") if gold_text else ""
            try:
                journal.append(record_of(item, hits, Illustrate(place, text)(question_of(item), hits)))
            except InputError as error:  # its prompt has more tokens than the inserter has positions
                journal.append({"id": item.id, "failure": "no answer", "reason": str(error)})
        yield written


def ask(found: Iterator[Found], asking: Asking, model: ChatModel, journal: Journal) -> Iterator[int]:
    """The model writes text and markers, as many answers at a time as it takes."""
    waiting: dict[int, tuple[Item, list[Hit], Asked]] = {}
    numbers = count()

    def requests() -> Iterator[Request]:
        for item, hits in found:
            if not hits:
                journal.append({"id": item.id, **NOT_FOUND})
            else:
                asked = asking.prepare(question_of(item), hits)
                waiting[next(numbers)] = item, hits, asked
                yield asked.request

    for written, (number, reply) in enumerate(model.as_completed(requests()), 1):
        item, hits, asked = waiting.pop(number)
        if isinstance(reply, Failure):
            journal.append({"id": item.id, "failure": reply.kind, "reason": reply.reason})
        else:
            try:
                journal.append(record_of(item, hits, asking.read(asked, reply)))
            except InputError as error:
                journal.append({"id": item.id, "failure": "no answer", "reason": str(error)})
        yield written


def question_of(item: Item) -> str:
    return item.question[0].text or ""


def record_of(item: Item, hits: Sequence[Hit], answered: Answered) -> dict[str, Any]:
    """What `read_answer` reads. Of pictures that are the same byte for byte, of which one was offered, a gold one
    lends its id."""
    pool, numbers, _ = candidates_of(hits)
    gold = {pool[numbers[key] - 1].id: key for key in item.meta["gold"] if key in numbers}
    return {
        "id": item.id,
        "answer": marked_text(answered.document),
        "candidates": [gold.get(candidate.id, candidate.id) for candidate in answered.candidates],
        "documents": list(dict.fromkeys(hit.chunk.document for hit in hits)),
        "faults": dict(answered.faults),
    }
