"""Does a picture fit its text? CLIP-like models, each with its own weights, prompt and scale. A `Reward` per preset.

    score = (cosine - low) / (high - low), cut to 0..1        of the two normalised embeddings, or
    score = sigmoid(scale * cosine + bias)                    as SigLIP was trained

A picture is held against its own text (`pictures.own_text`), and each score is a process reward. Texts longer than the
text encoder reads are cut at their end. ImageReward, which is no CLIP, is in `imagereward.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoProcessor

from ...configs.registry import register
from ..base import Completion, RewardOutput
from .imagereward import ImageRewardScorer
from .pictures import mean_of_pictures, pictures_of
from .pretrained import Encoder, batches, load_pretrained, preset_of


@dataclass(frozen=True, slots=True)
class Preset:
    model: str
    """On the Hub; holds the processor too."""
    cosines: tuple[float, float] | None
    """Cosines that score 0 and 1; None: the model's own probability of a match."""
    prefix: str = ""
    """Before each text."""
    tokens: int = 77
    """What the text encoder was trained to read, padding included."""


PRESETS = {
    # arXiv 2104.08718 and jmhessel/clipscore: 2.5 * max(cosine, 0); here cut at 1.
    "clipscore": Preset("openai/clip-vit-base-patch32", (0, 0.4), prefix="A photo depicts "),
    # arXiv 2502.14786. Its card pads to 64 tokens, as it was trained.
    "siglip2": Preset("google/siglip2-so400m-patch14-384", None, tokens=64),
    # arXiv 2305.01569: 100 * cosine; divided by 26 as Flow-GRPO does (yifan123/flow_grpo).
    "pickscore": Preset("yuvalkirstain/PickScore_v1", (0, 0.26)),
    # arXiv 2306.09341, the cosine as it is. A conversion of HPS v2.0; v2.1 has none for transformers known to us.
    "hpsv2": Preset("adams-story/HPSv2-hf", (0, 1)),
}


class Scorer(Protocol):
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """A score from 0 to 1 for each pair."""
        ...


class ClipScorer:
    """Scores pairs by one CLIP-like model."""

    def __init__(self, model: Any, processor: Any, preset: Preset, batch_size: int = 32):
        self.model, self.processor, self.preset, self.batch_size = model, processor, preset, batch_size

    @classmethod
    def load(cls, name: str, encoder: Encoder, model: str = "") -> ClipScorer:
        """model: folder or repository; empty is the preset's."""
        preset = PRESETS[name]
        place = model or preset.model
        return cls(encoder.model(place), load_pretrained(AutoProcessor, place), preset, encoder.batch_size)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for pairs in batches(list(zip(images, texts, strict=True)), self.batch_size):
            inputs = self.processor(
                images=[image for image, _ in pairs],
                text=[self.preset.prefix + text for _, text in pairs],
                padding="max_length",
                max_length=self.preset.tokens,
                truncation=True,
                return_tensors="pt",
            )
            output = self.model(**inputs.to(self.model.device, self.model.dtype))
            if self.preset.cosines is None:
                scores += output.logits_per_image.diagonal().float().sigmoid().tolist()
            else:
                scores += cosine_scores(output.image_embeds, output.text_embeds, self.preset.cosines).tolist()
        return scores


def cosine_scores(images_BH: Tensor, texts_BH: Tensor, cosines: tuple[float, float]) -> Tensor:
    """Scores [B], 0 to 1, of pairs of embeddings of any length."""
    low, high = cosines
    cosine_B = (normalize(images_BH.float(), dim=-1) * normalize(texts_BH.float(), dim=-1)).sum(-1)
    return ((cosine_B - low) / (high - low)).clamp(0, 1)


class PictureTextReward:
    """Each picture of an answer against its own text, by a scorer. The rules are those of `pictures.py`."""

    def __init__(self, name: str, scorer: Scorer):
        self.name, self.scorer = name, scorer

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        pictures, failed = pictures_of(completions)
        pictures = [picture for picture in pictures if picture.text]
        scores = self.scorer([picture.image for picture in pictures], [picture.text for picture in pictures])
        return mean_of_pictures(completions, zip(pictures, scores, strict=True), failed)


LOADERS: dict[str, Callable[[str, Encoder, str], Scorer]] = {
    **dict.fromkeys(PRESETS, ClipScorer.load),
    "image_reward": ImageRewardScorer.load,
}


@register("reward", "image/PRESET")
@dataclass
class ImageReward(PictureTextReward):
    """Each picture against its own text, by pretrained weights."""

    preset: str
    """clipscore, siglip2, pickscore, hpsv2 or image_reward."""
    encoder: Encoder = field(default_factory=Encoder)
    """One of `encoders:`."""
    model: str = ""
    """Where the weights are, if not at the preset's: a folder, ORG/NAME or ORG/NAME@REVISION."""

    def __post_init__(self) -> None:
        super().__init__(self.preset, preset_of(LOADERS, self.preset)(self.preset, self.encoder, self.model))
