"""Evaluation of insert or generate on the embedded world, plan by plan, by exact verifiers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...models.writing import Answer, write
from ..picture_stories.scenes import read_pictures
from .scenes import CHOICES, Choice, Plan, Step, candidate_question, insertion_prompt, read_steps

STORY_TOKENS = 224
"""Room for four steps and more; a longer answer is cut and scored as it stands."""
MAX_IMAGES = 8
"""Drawn; inserted ones do not count."""
DONE: tuple[str, ...] = ("insert", "insert another", "generate", "leave", "several", "missing")
"""What may stand at a step: the candidate that fits, another one, a drawn picture, none, more than one; no step."""
Confusion = dict[str, dict[str, int]]
"""Steps by what was wanted and what was done."""


@dataclass(frozen=True, slots=True)
class InsertionScores:
    """One entry a plan: 0 or 1, or the share of its steps to which it applies; None where it applies to none."""

    story_exact: list[float | None] = field(default_factory=list)
    """As many steps as planned, an end, and every choice, sentence and drawn picture right."""
    choice: list[float | None] = field(default_factory=list)
    """Steps where what was wanted was done."""
    insert: list[float | None] = field(default_factory=list)
    """The same of the steps that a candidate fits,"""
    generate: list[float | None] = field(default_factory=list)
    """of those that none fits,"""
    leave: list[float | None] = field(default_factory=list)
    """and of those that want no picture."""
    sentence_exact: list[float | None] = field(default_factory=list)
    picture_exact: list[float | None] = field(default_factory=list)
    """Of the steps that want a drawn picture, those where it was drawn as planned."""
    drawn_exact: list[float | None] = field(default_factory=list)
    """The same of those of them where one was drawn: how well it draws, whatever it chooses."""

    def rows(self) -> dict[str, list[float | None]]:
        return {name: getattr(self, name) for name in self.__slots__}


def score_insertion(
    policy: UnifiedPolicy, plans: Sequence[Plan], temperature: float, seed: int = 0
) -> tuple[InsertionScores, Confusion]:
    """Writes and verifies one story a plan; temperature 0 is greedy."""
    sampling = Sampling(max_new_tokens=STORY_TOKENS, temperature=temperature, max_images=MAX_IMAGES, seed=seed)
    return verify_insertion(write(policy, [insertion_prompt(plan) for plan in plans], sampling), plans)


def verify_insertion(answers: Sequence[Answer], plans: Sequence[Plan]) -> tuple[InsertionScores, Confusion]:
    drawn = [i for a in answers for i in a.document.images if i.origin == "generated"]
    shown = dict(zip(map(id, drawn), read_pictures([image.pixels() for image in drawn]), strict=True))
    scores, confusion = InsertionScores(), {wanted: dict.fromkeys(DONE, 0) for wanted in CHOICES}
    for answer, plan in zip(answers, plans, strict=True):
        steps = read_steps(answer.document.segments)
        right: dict[Choice, list[bool]] = {choice: [] for choice in CHOICES}
        drawn_right = []
        for number, scene in enumerate(plan.scenes):
            step, (wanted, _) = steps[number] if number < len(steps) else None, plan.wanted(number)
            done = done_at(step, plan, number)
            confusion[wanted][done] += 1
            right[wanted].append(done == wanted)
            if wanted == "generate":
                drawn_right.append(step is not None and done == wanted and shown[id(step.images[0])] == scene)
        said = [step.said == scene for step, scene in zip(steps, plan.scenes, strict=False)]
        choices = [held for row in right.values() for held in row]
        whole = answer.ended and len(steps) == len(plan.scenes) and all((*choices, *said, *drawn_right))
        scores.story_exact.append(float(whole))
        scores.choice.append(_share(choices))
        scores.sentence_exact.append(sum(said) / len(plan.scenes))
        scores.picture_exact.append(_share(drawn_right))
        scores.drawn_exact.append(_share(list(compress(drawn_right, right["generate"]))))
        for choice in CHOICES:
            getattr(scores, choice).append(_share(right[choice]))
    return scores, confusion


def done_at(step: Step | None, plan: Plan, number: int) -> str:
    """Which of DONE stands at a step of the plan."""
    if step is None:
        return "missing"
    if step.choice is None:
        return "several"
    choice, candidate = step.choice
    return "insert another" if choice == "insert" and (choice, candidate) != plan.wanted(number) else choice


def score_candidate_questions(policy: UnifiedPolicy, count: int, seed: int = 0) -> list[float]:
    """Which candidate shows a scene, and what all show: 1 where the sampled answer is right to the letter."""
    rng = random.Random(f"candidate questions {seed}")
    asked = [candidate_question(rng) for _ in range(count)]
    answers = write(policy, asked, Sampling(max_new_tokens=96, temperature=1.0, max_images=1, seed=seed))
    return [
        float(answer.document.text == question.completion.text) for answer, question in zip(answers, asked, strict=True)
    ]


def _share(held: Sequence[bool]) -> float | None:
    return sum(held) / len(held) if held else None
