"""Answers of two models: one writes, inserts candidates by marker and describes pictures, the other paints these.

What leads the benchmarks of interleaved answers today, in the place of a unified model: the same candidates, sources
and rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...configs.errors import InputError
from ...configs.registry import register
from ...data.insertion.placements import Candidate, compose, read_markers
from ...data.sentences import sentences
from ...models.chat.painters.marks import Described, Marks, read_marks
from ...models.chat.painters.painter import Painter
from ...models.chat.painters.painting import paint_all
from ...models.chat.requests import Answer, Failure
from ...models.documents.candidates import MARKER, marker
from ...models.documents.document import ImageSegment, InterleavedDocument
from ..answering import Answered, Means
from .asking import Asked, Asking, load_template, template_of, written

PIPELINE = "answer_pipeline"


@dataclass(frozen=True, slots=True)
class Pipeline(Asking):
    """A `Strategy`."""

    painter: Painter = field(kw_only=True)
    seed: int = field(default=0, kw_only=True)
    """Of the pictures."""

    def checked(self, asked: Asked) -> Asked:
        """Where no words tell of the pictures found, it has its own."""
        return asked

    def read(self, asked: Asked, reply: Answer) -> Answered:
        """As `Asking.read`; a described picture stands behind the sentence in which its mark is."""
        text, faults = written(reply)
        marks = read_marks(text)
        most = 0 if self.rules.images == "given" else self.rules.max_images
        (painted,) = paint_all(self.painter, [marks], [self.seed], most)
        if isinstance(painted, Failure):
            raise InputError(f"the painter gave no picture: {painted.kind}: {painted.reason}")
        offered = len(asked.candidates)
        numbered, strange = as_markers(marks, offered)
        marked = read_markers(numbered, offered + len(painted.images))
        own = [Candidate(image) for image in painted.images]
        shown = [
            placement
            for placement in marked.placements
            if placement.candidate <= offered or painted.images[placement.candidate - offered - 1]
        ]
        document = compose(sentences(marked.text), shown, [*asked.candidates, *own])
        document = generated(document, marks, offered)
        faults += asked.faults + painted.faults + marked.faults
        faults["out of range"] += strange
        return self.answered(asked, document, faults)


def as_markers(marks: Marks, offered: int) -> tuple[str, int]:
    """The text with a marker for each described picture, numbered behind the candidates; and markers of no candidate,
    which are taken out first: such a number would name a described picture now."""
    strange, number, pieces = 0, offered, []
    for piece in marks.pieces:
        if isinstance(piece, Described):
            number += 1
            pieces.append(marker(number))
            continue
        beyond = {match.group() for match in MARKER.finditer(piece) if int(match[1]) > offered}
        for other in beyond:
            strange += piece.count(other)
            piece = piece.replace(other, "")
        pieces.append(piece)
    return "".join(pieces), strange


def generated(document: InterleavedDocument, marks: Marks, offered: int) -> InterleavedDocument:
    """With the painted pictures as what they are: drawn for this answer, their description the alternative text."""
    words = [piece.words for piece in marks.pieces if isinstance(piece, Described)]
    segments = [
        replace(segment, origin="generated", candidate=None, alt=words[segment.candidate - offered - 1])
        if isinstance(segment, ImageSegment) and segment.candidate is not None and segment.candidate > offered
        else segment
        for segment in document.segments
    ]
    return replace(document, segments=tuple(segments))


@register("strategy", "pipeline")
class LoadedPipeline(Pipeline):
    """A language model writes, inserts candidates and describes pictures; a text-to-image model paints these."""

    needs = ("endpoint", "local")
    paints = True

    def __init__(self, means: Means):
        if strange := set(means.sampling) - {"seed"}:
            raise InputError(f"sampling.{min(strange)}: a pipeline's writer has its settings under endpoint or local")
        assert means.painter is not None  # `paints` says so
        super().__init__(
            means.chat(),
            means.rules,
            template=template_of(means) or load_template(PIPELINE),
            painter=means.painter(),
            seed=int(means.sampling.get("seed", 0)),
        )
