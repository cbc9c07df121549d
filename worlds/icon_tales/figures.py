"""Evaluation of icon tales, item by item: tales by kind of request, and pictures alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...models.documents.document import TextSegment
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...models.writing import Answer, write
from .icons import SHOWN, Icons, Shown
from .tales import Request, kind_of, read_sentence, text_to_image

TALE_TOKENS = 128
"""Room for three steps and more; a longer answer is cut and scored as it stands."""
MAX_IMAGES = 6
Scores = dict[str, list[float]]


def score_tales(
    policy: UnifiedPolicy,
    requests: Sequence[Request],
    icons: Icons,
    temperature: float,
    seed: int = 0,
    guidance: float = 1.0,
) -> Scores:
    """Writes and verifies a tale a request; temperature 0 is greedy."""
    sampling = Sampling(TALE_TOKENS, temperature, max_images=MAX_IMAGES, guidance=guidance, seed=seed)
    return verify_tales(write(policy, [request.prompt() for request in requests], sampling), requests, icons)


def verify_tales(answers: Sequence[Answer], requests: Sequence[Request], icons: Icons) -> Scores:
    """An entry a request, 0 or 1, or the share of its steps.

    story_exact: a sentence and a picture for each thing and an end, each sentence of its thing and one place, each
    picture of just that; also of each kind of request alone, `story_exact_KIND`. sentence_exact, image_exact: a
    picture is right where it shows what was asked for, in the place that its sentence says. structure: the layout.
    """
    seen = iter(icons.read([image.pixels() for answer in answers for image in answer.document.images]))
    scores: Scores = {name: [] for name in ("story_exact", "sentence_exact", "image_exact", "structure")}
    by_kind: Scores = {}
    for answer, request in zip(answers, requests, strict=True):
        layout: list[bool] = []
        told: list[Shown | None] = []
        drawn: list[bool] = []
        for segment in answer.document.segments:
            layout.append(isinstance(segment, TextSegment))
            if isinstance(segment, TextSegment):
                told.append(read_sentence(segment.text).shown)
            else:
                shown, said = next(seen), told[-1] if told else None
                drawn.append(shown is not None and shown == said and shown.noun in request.nouns[len(drawn) :][:1])
        number = len(request.nouns)
        named = [one is not None and one.noun == noun for one, noun in zip(told, request.nouns, strict=False)]
        structure = answer.ended and layout == [True, False] * number
        exact = float(structure and sum(named) == sum(drawn) == number)
        scores["structure"].append(float(structure))
        scores["sentence_exact"].append(sum(named) / number)
        scores["image_exact"].append(sum(drawn[:number]) / number)
        scores["story_exact"].append(exact)
        by_kind.setdefault(f"story_exact_{kind_of(request)}", []).append(exact)
    return scores | dict(sorted(by_kind.items()))


def score_pictures(policy: UnifiedPolicy, icons: Icons, seed: int = 0, draws: int = 2) -> list[float]:
    """Text-to-image of every thing in every place, sampled at temperature 1: whether the picture shows just that."""
    rng, wanted = random.Random(seed), [shown for _ in range(draws) for shown in SHOWN]
    prompts = [text_to_image(shown, rng, icons).prompt for shown in wanted]
    answers = write(policy, prompts, Sampling(max_new_tokens=64, max_images=1, seed=seed))
    seen = iter(icons.read([answer.document.images[0].pixels() for answer in answers if answer.document.images]))
    return [float(bool(a.document.images) and next(seen) == shown) for a, shown in zip(answers, wanted, strict=True)]
