"""Answers of a unified model: in one stream it writes, inserts candidates by marker, and draws its own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from PIL import Image

from ...configs.registry import register
from ...data.insertion.placements import read_markers
from ...models.chat.requests import fill
from ...models.checkpoints.hub import load_model
from ...models.documents.candidates import offer
from ...models.documents.document import TextSegment
from ...models.writing import Model
from ..answering import Answered, Means, candidates_of, in_reading_order, sources_of
from ..index.corpus import Hit
from ..placing import PlacementRules
from .asking import AnswerTemplate, context_of, load_template, wishes_of

UNIFIED = "unified"


@dataclass(frozen=True, slots=True)
class Unified:
    """A `Strategy`. The candidates come first in the prompt, each with its number; markers are escaped in all texts."""

    model: Model
    rules: PlacementRules = field(default_factory=PlacementRules)
    template: AnswerTemplate | None = None
    """The package's where there is none; of its places, {pictures} is empty here."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """What differs from the model's own settings."""

    def __call__(self, question: str, hits: Sequence[Hit]) -> Answered:
        candidates, _, faults = candidates_of(hits, decode=True)
        if self.rules.images == "generated":
            candidates = ()
        template = self.template or load_template(UNIFIED)
        places = {
            "question": [TextSegment(question)],
            "context": list(context_of(in_reading_order([hit.chunk for hit in hits]), {})),
            "pictures": [],
            "wishes": [TextSegment(wishes_of(self.rules))],
        }
        pictures = [(cast(Image.Image, candidate.image), candidate.caption) for candidate in candidates]
        answer = self.model.write(offer(fill(template.prompt, places, nothing="").text, pictures), **self._limits())
        segments = []
        for segment in answer.document.segments:
            if isinstance(segment, TextSegment):
                left = read_markers(segment.text, 0)
                segment = replace(segment, text=left.text)
                if candidates:  # then the model's reader has counted them already
                    del left.faults["out of range"]
                faults += left.faults
            segments.append(segment)
        faults += answer.faults
        faults["cut at the limit of tokens"] += not answer.ended
        document = replace(answer.document, segments=tuple(segments))
        sources = sources_of(hits, [hit.chunk.id for hit in hits], document, candidates)
        return Answered(document, candidates, +faults, sources)

    def _limits(self) -> dict[str, Any]:
        """The sampling, with as many drawn pictures as the rules allow."""
        own = self.sampling.get("max_images", self.model.sampling.max_images)
        limits = [limit for limit in (own, self.rules.max_images) if limit is not None]
        most = 0 if self.rules.images == "given" else min(limits, default=None)
        return {**self.sampling, "max_images": most}


@register("strategy", "unified")
class LoadedUnified(Unified):
    """A unified model writes, inserts candidates and draws pictures of its own, in one stream."""

    needs = ("model",)

    def __init__(self, means: Means):
        template = load_template(means.template) if means.template else None
        super().__init__(load_model(means.model, means.device), means.rules, template, dict(means.sampling))
