"""Answers of two models, written for a benchmark as a unified model's would be: one writes and describes pictures, the
other paints them.

    question -> what the writer is asked -> its reply -> marks -> pictures -> a record of the journal

What the painter refuses leaves its place empty and is counted with the marks that are none. A failure of either model
is no property of the answer: the item has none yet, and the next call tries it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configs.errors import InputError
from ..data.insertion.placements import INVENTED
from ..models.chat.choice import ChatConfig, chat_model
from ..models.chat.choice import settings_of as chat_settings
from ..models.chat.painters.choice import PainterConfig, check_painter, make_painter
from ..models.chat.painters.choice import settings_of as painter_settings
from ..models.chat.painters.marks import Marks, read_marks
from ..models.chat.painters.painter import Painter
from ..models.chat.painters.painting import Pictures, paint_all
from ..models.chat.requests import Answer, Failure, Request, fill
from ..models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..retrieval.index.corpus import some
from ..retrieval.strategies.asking import AnswerTemplate, load_template, said
from .benchmark import Item, prompt_of, record_of, row_of
from .entries import PictureFault
from .folder import Journal

UNSEEN = "pictures of the question that the writer cannot see"


@dataclass
class PipelineConfig(ChatConfig):
    """Two models that answer together: a writer, by `endpoint` or `local`, and a painter."""

    painter: PainterConfig = field(default_factory=PainterConfig)
    template: str = "pipeline_question"
    """Prompt around the question, with the form of the marks: the package's, or a YAML file."""

    def __post_init__(self) -> None:
        if (self.endpoint is None) == (self.local is None):
            raise InputError(
                "pipeline: who writes? Give one of --pipeline.endpoint.base_url URL --pipeline.endpoint.model NAME and "
                "--pipeline.local.model DIR"
            )
        check_painter(self.painter, "pipeline.painter")

    @property
    def label(self) -> str:
        """What answers."""
        writer, painter = self.endpoint or self.local, self.painter.endpoint or self.painter.local
        assert writer and painter
        return f"{writer.model} with {painter.model}"


def manifest(config: PipelineConfig) -> dict[str, Any]:
    """All that answers depend on beside the question; nothing is loaded or asked for it."""
    return {
        "name": config.label,
        "writer": chat_settings(config),
        "painter": painter_settings(config.painter),
        "template": load_template(config.template).identity,
    }


@dataclass(frozen=True, slots=True)
class Wishes:
    """What holds for every answer of a run."""

    prompt: str
    """Of the run, the item's question in its place."""
    max_images: int | None
    seed: int
    batch_size: int
    """Answers written before their pictures are painted."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A writer's reply, read; or why there is none."""

    marks: Marks | Failure
    faults: Counter[str]
    ended: bool = True


def write_answers(config: PipelineConfig, items: Sequence[Item], wishes: Wishes, journal: Journal) -> Iterator[int]:
    """One record an item. Yields how many have been written.

    Raises InputError for a model that cannot be had, for a server that only fails, and for items that set a temperature
    of their own, which a writer has not.
    """
    if any(item.temperature is not None for item in items):
        raise InputError("pipeline: this benchmark sets the temperature of each answer itself; it takes --model alone")
    template = load_template(config.template)
    with (
        closing(chat_model(config, "pipeline")) as writer,
        closing(make_painter(config.painter, "pipeline.painter")) as painter,
    ):
        sees = getattr(writer, "sees", True)  # of a server one cannot know
        for start in range(0, len(items), wishes.batch_size):
            batch = items[start : start + wishes.batch_size]
            asked = list(_usable(batch, template, wishes, sees, journal))
            replies = writer.complete([request for _, request, _ in asked])
            readings = [read_reply(reply, faults) for reply, (_, _, faults) in zip(replies, asked, strict=True)]
            for record in illustrated([item for item, _, _ in asked], readings, painter, wishes, journal.path.parent):
                journal.append(record)
            yield start + len(batch)


def _usable(
    items: Sequence[Item], template: AnswerTemplate, wishes: Wishes, sees: bool, journal: Journal
) -> Iterator[tuple[Item, Request, Counter[str]]]:
    """Items with what is asked; of one that has nothing to ask the journal gets the reason."""
    for item in items:
        try:
            request, faults = request_of(item, template, wishes, sees)
        except InputError as error:
            kind = error.kind if isinstance(error, PictureFault) else "unusable prompt"
            journal.append({"id": item.id, "failure": kind, "reason": str(error)})
        else:
            yield item, request, faults


def request_of(item: Item, template: AnswerTemplate, wishes: Wishes, sees: bool) -> tuple[Request, Counter[str]]:
    """What the writer is asked, and what of the question it is not shown. Raises InputError as `prompt_of`."""
    faults: Counter[str] = Counter()
    segments = list(prompt_of(item, wishes.prompt).segments)
    if not sees:
        faults[UNSEEN] += sum(isinstance(segment, ImageSegment) for segment in segments)
        segments = [TextSegment("[a picture]") if isinstance(one, ImageSegment) else one for one in segments]
    most = "" if wishes.max_images is None else f"Use at most {some(wishes.max_images, 'picture')}."
    places = {"question": segments, "wishes": [TextSegment(most)], "context": [], "pictures": []}
    return Request(fill(template.prompt, places, nothing=""), template.system, template.identity), faults


def read_reply(reply: Answer, faults: Counter[str]) -> Reading:
    """faults: of the question, to which those of the reply are added. An empty reply is an empty answer."""
    if isinstance(reply, Failure):
        return Reading(reply, faults)
    text, ended = said(reply)
    marks = read_marks(text)
    found = faults + ended
    found["invented picture"] += sum(len(INVENTED.findall(piece)) for piece in marks.pieces if isinstance(piece, str))
    return Reading(marks, +found, reply.finish != "length")


def illustrated(
    items: Sequence[Item], readings: Sequence[Reading], painter: Painter, wishes: Wishes, folder: Path
) -> Iterator[dict[str, Any]]:
    """A record an item, once the pictures of all are painted."""
    to_paint = [(item, one.marks) for item, one in zip(items, readings, strict=True) if isinstance(one.marks, Marks)]
    seeds = [wishes.seed + (row_of(item.id) if item.row is None else item.row) for item, _ in to_paint]
    painted = iter(paint_all(painter, [marks for _, marks in to_paint], seeds, wishes.max_images))
    for item, reading in zip(items, readings, strict=True):
        marks = reading.marks
        pictures = next(painted) if isinstance(marks, Marks) else marks
        if isinstance(pictures, Failure):
            yield {"id": item.id, "failure": pictures.kind, "reason": pictures.reason}
            continue
        assert isinstance(marks, Marks)
        document = InterleavedDocument(segments_of(marks, pictures), item.id)
        notes = reading.faults + pictures.faults
        yield record_of(item, document, reading.ended, folder) | {"notes": dict(notes)}


def segments_of(marks: Marks, pictures: Pictures) -> tuple[Segment, ...]:
    """Texts as they are, and each described picture that was painted, in its place."""
    images = iter(pictures.images)
    segments: list[Segment] = []
    for piece in marks.pieces:
        if isinstance(piece, str):
            segments.append(TextSegment(piece))
        elif image := next(images):
            segments.append(ImageSegment(image, origin="generated", alt=piece.words))
    return tuple(segments)
