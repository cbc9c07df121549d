"""The engine of every benchmark: write answers, score them, count what came of it.

    items -> answers.RANK.jsonl + images/      one line an item, once its pictures are written
          -> verdicts.RANK.jsonl               one line an item and aspect, once the judge has replied
          -> results.json, samples.json        when every item has a score or a reason why it has none

Both stages go by item id: what stands in a file is not done again. What has no reply (a timeout, a picture that is
missing) is tried again by the next call. Item i belongs to process i mod n, and the last process to finish aggregates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

from PIL import Image

from ..configs.errors import InputError
from ..configs.whole import write_atomically
from ..models.chat.requests import Answer, ChatModel, FailureKind, Reply, Request, fill
from ..models.documents.document import InterleavedDocument, encode_png
from ..models.policy import PromptTooLong, UnifiedPolicy
from ..models.sampler.generation import Sampling
from ..models.writing import write
from ..rewards.judges.grading import Template, Verdict, load_template
from .entries import Entry, PictureFault, decoded, entries_json, entries_of, read_entries, segments_of, spaced
from .folder import Journal, read_journals
from .statistics import Estimate

TRIED_AGAIN = {*get_args(FailureKind), "missing image", "unreadable image"}
"""Failures that are no property of the answer."""
IMAGES = "images"


@dataclass(frozen=True, slots=True)
class Item:
    id: str
    category: str
    question: tuple[Entry, ...]
    reference: str | None = None
    """The correct answer, where the judge is to know it."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Of the prompt: what a verifier needs."""
    temperature: float | None = None
    """Instead of the run's."""
    row: int | None = None
    """Of its random numbers, instead of one made from the id."""


@dataclass(frozen=True, slots=True)
class Given:
    """An answer on record, or why there is none."""

    entries: tuple[Entry, ...] = ()
    ended: bool = True
    failure: str = ""
    reason: str = ""
    notes: dict[str, int] = field(default_factory=dict)
    """What went wrong while it was written, counted."""


@dataclass(frozen=True, slots=True)
class Task:
    """One score that an answer is to get: what to ask the judge, or the verdict where no judge is needed."""

    aspect: str
    ask: Request | Verdict
    notes: dict[str, int] = field(default_factory=dict)
    """What of the answer the judge does not see, counted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one item and aspect."""

    item: Item
    aspect: str
    score: float | None
    failure: str = ""
    words: str = ""
    replied: bool = False
    """The judge was asked and said something."""
    notes: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Figures beside published ones."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, list[Estimate | None]]]
    published: tuple[tuple[str, tuple[float, ...]], ...] = ()
    source: str = ""
    """Of the published rows."""
    main: str = ""
    """The column that is the benchmark's figure: in the first table, the one that a reader is told first."""


class Benchmark(Protocol):
    """What a registered benchmark offers.

    Its class has a static `records(path, images)`: the items of its file or folder, each with the answer that stands
    there, or None. It is made from `items`, and if it names them from `data` and `answers`, where they were read from;
    further parameters are its options. Of what is below it needs `aspects`, `tasks` and `scores`, with a judge `read`;
    `completed` adds the rest. What a class may say of itself beside that:

        takes_model = False       it has its answers written itself (`AnswersItself`)
        takes_answers = False     there is no file of answers for it
        export = (FILE, records)  answers can be written in its own format
    """

    name: str
    title: str
    items: list[Item]
    needs_judge: bool
    highest: float
    """Score of a perfect answer, before any percentage is made of it."""

    def manifest(self) -> dict[str, Any]:
        """A JSON value: the data and every setting that scores depend on."""
        ...

    def aspects(self, item: Item) -> tuple[str, ...]:
        """The scores that the item gets."""
        ...

    def tasks(self, item: Item, given: Given) -> list[Task]:
        """One task an aspect. Raises PictureFault."""
        ...

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict: ...

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The figures by name, `Estimate`s, maybe nested."""
        ...

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]: ...

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        """What a reader must know before he compares the figures; plain sentences."""
        ...


def completed(benchmark: Any, name: str) -> Benchmark:
    """With what a class of somebody's own left unsaid: no judge, 1 for a perfect answer, a row for each score."""

    def tables(outcomes: Sequence[Outcome]) -> list[Table]:
        return [
            Table(benchmark.title, ("this run",), [(n, [value]) for n, value in benchmark.scores(outcomes).items()])
        ]

    plain = {"name": name, "title": name, "needs_judge": False, "highest": 1.0}
    made = {"manifest": dict, "tables": tables, "caveats": lambda outcomes: []}
    for attribute, value in (plain | made).items():
        if not hasattr(benchmark, attribute):
            setattr(benchmark, attribute, value)
    return benchmark


@runtime_checkable
class AnswersItself(Protocol):
    """A benchmark whose answers are no model's alone: it reads them in a form of its own, or has them written."""

    writes: bool
    label: str
    """What answers."""

    def write(self, items: Sequence[Item], journal: Journal) -> Iterator[int]:
        """One record an item. Yields how many have been written."""
        ...

    def answers(self, folder: Path, imported: Mapping[str, Given] | None) -> Mapping[str, Given]:
        """By item id: imported, or those of the run's folder."""
        ...

    def close(self) -> None: ...


def judge_template(name_or_path: str, scale: tuple[float, float]) -> Template:
    """One of the folder's judge prompts by name without its version, or a file. Raises InputError for another scale."""
    packaged = sorted(Path(__file__).with_name("templates").glob(f"{name_or_path}.v*.yaml"))
    template = load_template(str(packaged[-1]) if packaged else name_or_path)
    if template.unit != "document" or tuple(template.scale) != scale:
        raise InputError(f"{name_or_path}: a judge prompt of this benchmark has unit document and scale {list(scale)}")
    return template


# ---- writing answers ----


@dataclass(frozen=True, slots=True)
class Writing:
    """How answers are written."""

    sampling: Sampling
    prompt: str = "{question}"
    """What the model is asked, the item's question in its place."""
    batch_size: int = 16


def write_answers(policy: UnifiedPolicy, items: Sequence[Item], writing: Writing, journal: Journal) -> Iterator[int]:
    """One record an item. Yields how many have been written.

    Item i draws from the random numbers of (seed, its id): its answer depends on no other item.
    """
    written = 0
    for batch in batches(_usable(policy, items, writing.prompt, journal), writing):
        sampling = replace(writing.sampling, temperature=temperature_of(batch[0][0], writing))
        rows = [row_of(item.id) if item.row is None else item.row for item, _ in batch]
        answers = write(policy, [prompt for _, prompt in batch], sampling, writing.batch_size, rows)
        for (item, _), answer in zip(batch, answers, strict=True):
            journal.append(record_of(item, answer.document, answer.ended, journal.path.parent))
        written += len(batch)
        yield written


def _usable(
    policy: UnifiedPolicy, items: Sequence[Item], prompt: str, journal: Journal
) -> Iterator[tuple[Item, InterleavedDocument]]:
    """Items with their prompts; of one that has none the journal gets the reason."""
    for item in items:
        try:
            document = prompt_of(item, prompt)
            policy.check_prompt(policy.processor.length_of(document))
        except InputError as error:
            failure = error.kind if isinstance(error, PictureFault | PromptTooLong) else "unusable prompt"
            journal.append({"id": item.id, "failure": failure, "reason": str(error)})
        else:
            yield item, document


def prompt_of(item: Item, prompt: str = "{question}") -> InterleavedDocument:
    """What the model is asked. Raises PictureFault, and InputError where there is nothing to ask."""
    segments = decoded(spaced(segments_of(item.question)))
    if not segments:
        raise InputError(f"{item.id}: the question is empty")
    return replace(fill(prompt, {"question": segments}), id=item.id, meta=item.meta)


def batches(
    prompts: Iterable[tuple[Item, InterleavedDocument]], writing: Writing
) -> Iterator[list[tuple[Item, InterleavedDocument]]]:
    """Neighbours of one temperature."""
    for _, group in groupby(prompts, key=lambda pair: temperature_of(pair[0], writing)):
        while batch := list(islice(group, writing.batch_size)):
            yield batch


def temperature_of(item: Item, writing: Writing) -> float:
    return writing.sampling.temperature if item.temperature is None else item.temperature


def row_of(identifier: str) -> int:
    """Row of an item's random numbers, 0 <= row < 2^63."""
    return int.from_bytes(hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def record_of(item: Item, document: InterleavedDocument, ended: bool, folder: Path) -> dict[str, Any]:
    """An answer as the journal keeps it, its pictures written into the folder."""
    stem = hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).hexdigest()[:20]

    def save(picture: Image.Image, number: int) -> Path:
        path = folder / IMAGES / f"{stem}-{number}.png"
        write_atomically(path, encode_png(picture))
        return path

    entries = entries_json(entries_of(document, save), folder)
    return {"id": item.id, "entries": entries, "ended": ended}


def read_answers(folder: Path) -> dict[str, Given]:
    """Answers on record by item id; one that was written comes before a failure to write it."""
    answers: dict[str, Given] = {}
    for record in read_journals(folder, "answers"):
        identifier = record["id"]
        if "failure" in record:
            answers.setdefault(identifier, Given(failure=record["failure"], reason=record["reason"]))
        else:
            entries = read_entries(record["entries"], folder, f"{folder}: answer of {identifier}")
            answers[identifier] = Given(entries, record["ended"], notes=record.get("notes", {}))
    return answers


# ---- scoring ----


def score_answers(
    benchmark: Benchmark, items: Sequence[Item], answers: Mapping[str, Given], judge: ChatModel | None, journal: Journal
) -> Iterator[int]:
    """One record an item and aspect that has none yet. Yields how many of the items are done."""
    settled = {key for key, record in read_verdicts(journal.path.parent).items() if is_settled(record)}
    asked: dict[int, tuple[Item, Task]] = {}
    numbers = count()
    done = 0

    def questions() -> Iterator[Request]:
        """What only the judge can settle; the rest goes into the journal on the way."""
        nonlocal done
        for item in items:
            done += 1
            given = answers.get(item.id)
            wanted = [aspect for aspect in benchmark.aspects(item) if (item.id, aspect) not in settled]
            if not wanted or given is None or given.failure:
                continue
            for task in _tasks(benchmark, item, given):
                if task.aspect not in wanted:
                    continue
                if isinstance(task.ask, Verdict):
                    journal.append(_verdict_record(item, task, task.ask))
                else:
                    asked[next(numbers)] = item, task
                    yield task.ask

    if judge is None:
        for _ in questions():
            raise InputError(f"judge: missing; {benchmark.name} needs judge.endpoint or judge.local")
    else:
        for number, answer in judge.as_completed(questions()):  # each reply is on the disk before the next is taken
            item, task = asked.pop(number)
            journal.append(_verdict_record(item, task, benchmark.read(item, task.aspect, answer), answer))
            yield done
    yield len(items)


def _tasks(benchmark: Benchmark, item: Item, given: Given) -> list[Task]:
    try:
        return benchmark.tasks(item, given)
    except PictureFault as fault:
        return [Task(aspect, Verdict(None, fault.kind, str(fault))) for aspect in benchmark.aspects(item)]


def _verdict_record(item: Item, task: Task, verdict: Verdict, answer: Answer | None = None) -> dict[str, Any]:
    reply = answer if isinstance(answer, Reply) else None
    tokens = (reply.prompt_tokens, reply.completion_tokens) if reply else (0, 0)
    return {
        "id": item.id,
        "aspect": task.aspect,
        "score": verdict.score,
        "failure": verdict.failure,
        "words": verdict.words,
        "replied": reply is not None,
        "tokens": tokens,
        "notes": task.notes,
    }


def is_settled(record: Mapping[str, Any]) -> bool:
    return record["failure"] not in TRIED_AGAIN


def read_verdicts(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The verdict of each (item id, aspect); a settled one comes before one that was to be tried again."""
    verdicts: dict[tuple[str, str], dict[str, Any]] = {}
    for record in read_journals(folder, "verdicts"):
        key = (record["id"], record["aspect"])
        if key not in verdicts or is_settled(record):
            verdicts[key] = record
    return verdicts
