"""Do the pictures of an answer belong together? Cosines of image embeddings: DINOv2, and CLIP-I of DreamBooth.

A picture's segment score is its likeness to the picture before it, the first one's to the last picture of the prompt.
The outcome is the mean over all pairs of the answer's pictures and that one, so that slow drift shows. Each picture
that the prompt says it wants (`meta["structure"]`, an outline) and the answer lacks has all its pairs at 0. Where the
prompt says nothing, an answer with nothing to compare has no score, and the hybrid's rule holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from math import comb
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoImageProcessor

from ...configs.registry import register
from ...models.documents.document import ImageSegment, Segment
from ..base import FAILED, Completion, RewardOutput
from .pictures import asked_pictures
from .pretrained import Encoder, batches, load_pretrained, preset_of


@dataclass(frozen=True, slots=True)
class Preset:
    model: str
    """On the Hub."""
    method: str
    """Of the model, whose `pooler_output` is the embedding [B, H]."""


PRESETS = {
    "dino": Preset("facebook/dinov2-base", "forward"),  # arXiv 2304.07193: the normed class token
    "clip": Preset("openai/clip-vit-base-patch32", "get_image_features"),  # CLIP-I of arXiv 2208.12242
}


class ImageEncoder:
    """Pictures to unit vectors [n, H], fp32, on the CPU."""

    def __init__(self, model: Any, processor: Any, method: str = "forward", batch_size: int = 32):
        self.model, self.processor, self.method, self.batch_size = model, processor, method, batch_size

    @classmethod
    def load(cls, name: str, encoder: Encoder, model: str = "") -> ImageEncoder:
        """model: folder or repository; empty is the preset's."""
        preset = preset_of(PRESETS, name)
        place = model or preset.model
        processor = load_pretrained(AutoImageProcessor, place)
        return cls(encoder.model(place), processor, preset.method, encoder.batch_size)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        parts = [torch.zeros(0, 1)]
        for batch in batches(images, self.batch_size):
            inputs = self.processor(images=list(batch), return_tensors="pt").to(self.model.device, self.model.dtype)
            features_BH = getattr(self.model, self.method)(**inputs).pooler_output
            parts.append(normalize(features_BH.float(), dim=-1).cpu())
        return torch.cat(parts[1:] or parts)


class ConsistencyReward:
    """Likeness of pictures, max(cosine, 0): 0 to 1. `encode` makes unit vectors [n, H]."""

    def __init__(self, name: str, encode: Any):
        self.name, self.encode = f"consistency_{name}", encode

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        failed: list[list[int | None]] = []
        rows: list[list[tuple[int | None, Image.Image]]] = []
        for completion in completions:
            anchor = [s for s in completion.prompt.segments if isinstance(s, ImageSegment)][-1:]
            places: list[tuple[int | None, Segment]] = [(None, segment) for segment in anchor]
            row, unreadable = _readable([*places, *enumerate(completion.answer.segments)])
            rows.append(row)
            failed.append(unreadable)
        vectors_NH = self.encode([image for row in rows for _, image in row])
        outcome: list[float | None] = []
        segments: list[list[float | None]] = []
        for completion, row, unreadable in zip(completions, rows, failed, strict=True):
            own_nH, vectors_NH = vectors_NH[: len(row)], vectors_NH[len(row) :]
            likeness = (own_nH @ own_nH.T).clamp(0, 1).tolist()
            scores: list[float | None] = [None] * len(completion.answer.segments)
            for (before, _), (now, (place, _)) in pairwise(enumerate(row)):
                if place is not None:
                    scores[place] = likeness[before][now]
            for place in unreadable:
                if place is not None:
                    scores[place] = FAILED
            pairs = [likeness[one][other] for one, other in combinations(range(len(row)), 2)]
            missing = max(0, asked_pictures(completion.prompt) - len(completion.answer.images))
            due = comb(len(row) + missing, 2)
            segments.append(scores)
            outcome.append(FAILED if unreadable and not pairs else sum(pairs) / due if due else None)
        count = sum(map(len, failed))
        return RewardOutput(outcome, segments, failed={"image": count} if count else {})


def _readable(
    places: Iterable[tuple[int | None, Segment]],
) -> tuple[list[tuple[int | None, Image.Image]], list[int | None]]:
    """(place, pixels) of the pictures, and the places of those that do not decode."""
    pictures, unreadable = [], []
    for place, segment in places:
        if isinstance(segment, ImageSegment):
            try:
                pictures.append((place, segment.pixels()))
            except ValueError:
                unreadable.append(place)
    return pictures, unreadable


@register("reward", "consistency/PRESET")
@dataclass
class PresetConsistency(ConsistencyReward):
    """Pictures of an answer against each other, by pretrained weights."""

    preset: str
    """dino or clip."""
    encoder: Encoder = field(default_factory=Encoder)
    """One of `encoders:`."""
    model: str = ""
    """Where the weights are, if not at the preset's: a folder, ORG/NAME or ORG/NAME@REVISION."""

    def __post_init__(self) -> None:
        super().__init__(self.preset, ImageEncoder.load(self.preset, self.encoder, self.model))
