"""Rewards of icon tales, by rule or by a model that stands still: no server is asked.

Sentences and pictures are read back (`read_sentence`, `Icons.read`). Steps past the request earn 0, and a step that it
asks for and the answer lacks counts as 0 in the outcome.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...configs.bounds import Factor, OneOrMore
from ...configs.errors import InputError
from ...configs.registry import register
from ...models.checkpoints.folder import load
from ...models.checkpoints.hub import find_checkpoint
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ...models.policy import UnifiedPolicy
from ...models.tokens.sequence import collate
from ...rewards.base import Completion, RewardOutput
from .icons import NOUNS, PLACES, Icons, Shown, open_icons
from .tales import Said, read_nouns, read_sentence

Scores = list[float | None]


def nouns_of(prompt: InterleavedDocument) -> tuple[str, ...]:
    """Raises InputError where the prompt is not one of this world."""
    return read_nouns(prompt.meta.get("outline"), f"prompt {prompt.id!r} is no request for an icon tale: ")


@register("reward", "icon_tales/text_plan")
class SentenceReward:
    """Each sentence against the thing whose turn it is: three quarters for naming it and no other, one for a place."""

    name = "icon_tales_text_plan"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        rows: list[Scores] = []
        for completion in completions:
            plan = nouns_of(completion.prompt)
            number, row = 0, Scores()
            for segment in completion.answer.segments:
                if isinstance(segment, TextSegment):
                    row.append(_told(read_sentence(segment.text), plan[number]) if number < len(plan) else 0.0)
                    number += 1
                else:
                    row.append(None)
            rows.append(row)
        return RewardOutput([_share(row, c) for row, c in zip(rows, completions, strict=True)], rows)


def _told(said: Said, noun: str) -> float:
    return (0.75 + 0.25 * (said.place is not None)) * (said.noun == noun)


@register("reward", "icon_tales/image_sentence")
@dataclass
class PictureReward:
    """Each picture against the model's own sentence before it: half for its thing, half for its place.

    A card that is an icon in part earns a part: the first pictures of a model are right in a quarter or two.
    """

    icons: str = ""
    """A folder of NOUN.png or a font; those that come with limner if empty."""
    name = "icon_tales_image_sentence"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        icons = open_icons(self.icons)
        rows: list[Scores] = []
        for completion in completions:
            planned = len(nouns_of(completion.prompt))
            said, number, row = Said(None, None), 0, Scores()
            for segment in completion.answer.segments:
                if isinstance(segment, ImageSegment):
                    row.append(_drawn(icons, segment, said) if number < planned else 0.0)
                    number += 1
                else:
                    said = read_sentence(segment.text)
                    row.append(None)
            rows.append(row)
        return RewardOutput([_share(row, c) for row, c in zip(rows, completions, strict=True)], rows)


def _drawn(icons: Icons, picture: ImageSegment, said: Said) -> float:
    """No picture is faithful to what a sentence does not say."""
    anything = Shown(said.noun or NOUNS[0], said.place or next(iter(PLACES)))
    noun, place = icons.faithful(picture.pixels(), anything)
    return 0.5 * noun * (said.noun is not None) + 0.5 * place * (said.place is not None)


@register("reward", "icon_tales/fluency")
@dataclass
class FluencyReward:
    """How likely the model as it was released finds an answer's words: log-likelihood a token, from `worst` to `best`.

    It is bounded, so that past plain English nothing is gained by the likeliest words of all.
    """

    model: str = ""
    """Checkpoint of the model before any training."""
    worst: Factor = -6.0
    """Mean log-likelihood, in nats a token, that earns 0."""
    best: Factor = -3.0
    """One that earns 1, as all above it do."""
    batch_size: OneOrMore = 16
    name = "icon_tales_fluency"

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("icon_tales/fluency: model is missing; name the checkpoint before any training")
        if not self.worst < self.best <= 0:
            raise InputError(f"icon_tales/fluency: worst {self.worst} < best {self.best} <= 0 is asked for")

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        texts = [completion.answer.text for completion in completions]
        outcome: Scores = [0.0] * len(texts)
        told = [i for i, text in enumerate(texts) if text.strip()]
        for start in range(0, len(told), self.batch_size):
            chosen = told[start : start + self.batch_size]
            for i, nats in zip(chosen, self._likelihoods([texts[i] for i in chosen]), strict=True):
                outcome[i] = min(1.0, max(0.0, (nats - self.worst) / (self.best - self.worst)))
        return RewardOutput(outcome, [[None] * len(completion.answer.segments) for completion in completions])

    @torch.no_grad()
    def _likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Mean log-likelihood of each text as an answer to nothing in particular, nats a token."""
        policy = _standing_still(self.model)
        documents = [InterleavedDocument((TextSegment("Tell."), TextSegment(text, trainable=True))) for text in texts]
        batch = collate([[tokens] for tokens in policy.processor.encode_all(documents)], policy.vocabulary)
        logp_BT, _ = policy.log_probs(policy.model, batch.to(policy.model.device))
        trained_BT = batch.trainable_BT.to(logp_BT.device)
        return ((logp_BT * trained_BT).sum(1) / trained_BT.sum(1)).tolist()


@functools.lru_cache(maxsize=1)
def _standing_still(model: str) -> UnifiedPolicy:
    """In 16 bits, the head in float32 as everywhere."""
    policy = load(find_checkpoint(model))
    policy.model.bfloat16()  # type: ignore[attr-defined]
    return policy


def _share(row: Scores, completion: Completion) -> float:
    """Mean over the steps planned (a missing one is 0) or written, whichever are more."""
    scores = [score for score in row if score is not None]
    return sum(scores) / max(len(nouns_of(completion.prompt)), len(scores))
