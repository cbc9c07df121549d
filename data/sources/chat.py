"""Chats about pictures, in the dialects that people have: a document an answer, what was said before it as its prompt.

    limner data from chat mix.json --images coco --out shards/chat

Rules of its own: no turns, unknown role, unknown part, placeholder mismatch, assistant picture, empty answer, no
answer, speech, rating, broken text; and those that let pass: placed first, placeholder as text, no picture, more turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...configs.bounds import Factor, OneOrMore
from ...configs.registry import register
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from .dialects import TURNS, Reference, Turn, conversation, factory_entry, of_factory, speaks
from .pictures import Picture, Pictures, PictureSettings, shown
from .report import Problem, Refused, Report
from .rows import Row, first_record, rows

Built = tuple[InterleavedDocument, list[bytes | None]]


@dataclass
class ChatSettings(PictureSettings):
    placeholder: str = "<image>"
    """What stands in a text for a picture: `<|image|>`, `<ImageHere>`, `<vis>` in some data."""
    pictures: str = ""
    """Field that lists a record's pictures; by default images, image, image_path."""
    assistant_images: Literal["refuse", "generate", "given"] = "refuse"
    """A picture in an answer: the record is refused, the picture is learnt, or it stands there without being learnt."""
    turns: Literal["each", "whole", "last"] = "each"
    """A document for each answer, one for the whole record, or one for its last answer."""
    max_turns: OneOrMore = 8
    """Most answers of a record; what comes later is counted as `more turns`."""
    text_only: Literal["keep", "drop"] = "keep"
    """Records without a picture: kept, so that language survives, or left out as `no picture`."""
    min_ratings: dict[str, Factor] = field(default_factory=dict)
    """Least rating of an answer by name, as FineVision has them: `{relevance: 3}`; one without a rating passes."""
    prompts: bool = False
    """Only what is asked, the last question of a record: it needs no answer."""


@register("source", "chat")
@dataclass
class Chat(ChatSettings):
    """Chats about pictures: LLaVA, EMOVA, ms-swift, LLaMA-Factory, TRL, OpenAI, Cauldron, FineVision; JSON, parquet."""

    kind: Literal["understanding", "interleaved", "text_to_image"] = "understanding"
    """Of the documents; one with a learnt picture is `interleaved` instead of `understanding`."""
    dataset: str = ""
    """Of LLaMA-Factory's `dataset_info.json`, which names its file and its columns."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        entry = factory_entry(path, self.dataset) if path.is_dir() else None
        names = [Path(entry["file_name"]).name] if entry else []
        gallery = self.gallery(path, report)
        for row in rows(path, report, names):
            value = of_factory(row.value, entry) if entry else row.value
            row.check_columns(self.pictures)
            if not any(name in value for name in TURNS):
                row.check_columns("messages")
            yield from chat_documents(value, row, gallery.of(row.folder), self, self.kind)

    @staticmethod
    def fits(path: Path) -> bool:
        record = first_record(path)
        return record is not None and speaks(record)


def chat_documents(
    value: Mapping[str, Any], row: Row, pictures: Pictures, settings: ChatSettings, kind: str
) -> Iterator[Built]:
    """The documents of a record; one that gives none is a problem of the report."""
    try:
        yield from _documents(value, row, pictures, settings, kind)
    except Refused as error:
        pictures.report.problems.append(Problem(row.file, row.number, error.rule, "", error.reason))


def _documents(
    value: Mapping[str, Any], row: Row, pictures: Pictures, settings: ChatSettings, kind: str
) -> Iterator[Built]:
    report = pictures.report
    turns = conversation(value, settings.placeholder, settings.pictures, report)
    _check_texts(turns)
    last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if settings.prompts:
        turns = turns[:last] if last == len(turns) - 1 else turns
        answers = [len(turns)]
    else:
        answers = _answers(value, turns, settings, row, report)
    seen = {id(part): _read(part, pictures) for turn in turns for part in turn.parts if isinstance(part, Reference)}
    if not seen:
        if settings.text_only == "drop":
            raise Refused("no picture", "text alone; --set text_only=keep keeps it")
        report.note("no picture")
    if settings.turns == "whole" and not settings.prompts:
        starts = [(answers, answers[-1] + 1)]
    else:
        starts = [([at], at + 1) for at in (answers[-1:] if settings.turns == "last" else answers)]
    name = row_id(value, row)
    for learnt, end in starts:
        segments, originals = _segments(turns[:end], set(learnt), seen, settings)
        drawn = any(isinstance(segment, ImageSegment) and segment.trainable for segment in segments)
        meta = {"kind": "interleaved" if drawn and kind == "understanding" else kind, "group": name}
        number = answers.index(learnt[0])
        yield InterleavedDocument(segments, name if number == 0 else f"{name}#{number + 1}", meta), originals


def row_id(value: Mapping[str, Any], row: Row) -> str:
    """`FILE:ID`; of a record without an id, its number."""
    own = value.get("id", value.get("question_id"))
    valid = isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip()
    return f"{row.file}:{own if valid else row.number}".encode("utf-8", "replace").decode()


def _check_texts(turns: Sequence[Turn]) -> None:
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, str):
                valid_text(part)


def valid_text(text: str) -> str:
    """Raises Refused for a lone surrogate, which JSON can carry and no text can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("broken text", "no valid Unicode (a lone surrogate)") from None
    return text


def _answers(
    value: Mapping[str, Any], turns: Sequence[Turn], settings: ChatSettings, row: Row, report: Report
) -> list[int]:
    """The turns that are to be learnt. Raises Refused where there is none."""
    said = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
    if not said:
        raise Refused("no answer", "no turn of the assistant; --set prompts=true reads what is asked")
    found, low = [], 0
    for number, at in enumerate(said):
        text = any(not isinstance(part, str) or part.strip() for part in turns[at].parts)
        drawn = any(isinstance(part, Reference) for part in turns[at].parts)
        if drawn and settings.assistant_images == "refuse":
            raise Refused("assistant picture", "an answer holds a picture; --set assistant_images=generate learns it")
        if _rated(value, number, settings.min_ratings):
            low += 1
        elif turns[at].learnt and text and at:
            found.append(at)
    if low:
        reason = f"{low} answers below {settings.min_ratings}"
        report.problems.append(Problem(row.file, row.number, "rating", "", reason))
    if not found and low:
        return []
    if not found:
        raise Refused("empty answer", "no answer with a text that is to be learnt")
    if len(found) > settings.max_turns:
        report.note("more turns")
    return found[: settings.max_turns]


def _rated(value: Mapping[str, Any], number: int, least: Mapping[str, float]) -> bool:
    """Is some rating of the answer below the least?"""
    for name, bound in least.items():
        listed = value.get(name, value.get(f"{name}_ratings"))
        rating = listed[number] if isinstance(listed, list) and number < len(listed) else None
        if isinstance(rating, int | float) and rating < bound:
            return True
    return False


def _read(part: Reference, pictures: Pictures) -> Picture:
    try:
        return pictures.read(part.value)
    except Refused as error:
        raise Refused(error.rule, f"{shown(part.value)}: {error.reason}") from None


def _segments(
    turns: Sequence[Turn], learnt: set[int], seen: Mapping[int, Picture], settings: ChatSettings
) -> tuple[tuple[Segment, ...], list[bytes | None]]:
    """Turns are parted by a line feed: roles have no sign of their own in a model's template."""
    segments: list[Segment] = []
    originals: list[bytes | None] = []
    for at, turn in enumerate(turns):
        train = at in learnt
        for part in turn.parts:
            if isinstance(part, Reference):
                picture = seen[id(part)]
                drawn = train and settings.assistant_images == "generate"
                segments.append(picture.learnt() if drawn else picture.given())
                originals.append(picture.original)
            elif text := str(part).strip():
                before = segments[-1] if segments else None
                if isinstance(before, TextSegment) and before.trainable == train:
                    segments[-1] = TextSegment(f"{before.text}\n{text}", train)
                else:
                    again = isinstance(before, TextSegment) and before.trainable
                    segments.append(TextSegment(f"\n{text}" if again else text, train))
    return tuple(segments), originals
