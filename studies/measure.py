"""Figures of a trained policy on held-out prompts, item by item, and the samples people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..eval.statistics import estimate, nested_difference, paired_difference
from ..models.policy import UnifiedPolicy
from ..models.sampler.generation import Sampling
from ..models.writing import write
from ..rewards.base import Completion
from ..rewards.hybrid import HybridReward
from ..worlds.picture_stories.figures import MAX_IMAGES, STORY_TOKENS
from ..worlds.picture_stories.scenes import Outline, story_prompt
from .subjects import Items, Subject

SWEEP = (0.2, 0.4, 0.6, 0.8)
"""Temperatures between greedy and sampled: would colder sampling alone do?"""
WAYS = {"sampled": 1.0, "greedy": 0.0}
"""Temperature."""


def measure(
    subject: Subject, policy: UnifiedPolicy, root: Path, heldout: Sequence[Any], sweep: bool, seed: int
) -> tuple[Items, float | None]:
    """Scores of every item by dotted metric name, and the best temperature where a sweep was asked for."""
    items, best = measure_stories(subject, policy, heldout, seed), None
    if sweep:
        by_temperature = {t: subject.score(policy, heldout, t, seed)["story_exact"] for t in SWEEP}
        best = max(by_temperature, key=lambda t: sum(by_temperature[t]))
        items["best_temperature.story_exact"] = by_temperature[best]
    return items | subject.abilities(policy, root, seed), best


def measure_stories(
    subject: Subject,
    policy: UnifiedPolicy,
    heldout: Sequence[Any],
    seed: int,
    guidance: float = 1.0,
    ways: Mapping[str, float] = WAYS,
) -> Items:
    """Sampled and greedy stories, item by item; `ways` has the temperature of each."""
    return {
        f"{way}.{name}": rows
        for way, temperature in ways.items()
        for name, rows in subject.score(policy, heldout, temperature, seed, guidance).items()
    }


def figures(items: Items) -> dict[str, Any]:
    """Nested `{"sampled": {"story_exact": {"value", "low", "high", "n"}}, ...}`."""
    nested: dict[str, Any] = {}
    for name, scores in items.items():
        group, metric = name.split(".")
        nested.setdefault(group, {})[metric] = estimate(scores)
    return nested


def comparisons(items: Mapping[str, Items], against: str) -> list[dict[str, Any]]:
    """Every arm minus `against`, paired by item."""
    return [
        {"arm": arm, "against": against, "metric": metric, **paired_difference(scores, items[against][metric])}
        for arm, own in items.items()
        if arm != against
        for metric, scores in own.items()
        if metric in items[against] and not metric.startswith("best_temperature")
    ]


def gains(seeds: Sequence[Mapping[str, Items]], arm: str) -> list[dict[str, Any]]:
    """An arm minus each of the others, item by item; the interval draws seeds, then items within each."""

    def of(name: str, metric: str) -> list[list[float]]:
        return [items[name][metric] for items in seeds]

    return [
        {"arm": arm, "against": name, "metric": metric, **nested_difference(of(arm, metric), of(name, metric))}
        for name in seeds[0]
        if name != arm
        for metric in ("sampled.story_exact", "greedy.story_exact")
    ]


def samples(
    policy: UnifiedPolicy, outlines: Sequence[Outline], reward: HybridReward, seed: int
) -> list[dict[str, Any]]:
    """Sampled answers to a few prompts, with the reward of each segment and its parts."""
    prompts = [story_prompt(outline, f"held-out {number + 1}") for number, outline in enumerate(outlines)]
    sampling = Sampling(max_new_tokens=STORY_TOKENS, max_images=MAX_IMAGES, seed=seed)
    completions = [
        Completion(prompt, answer.document, answer.ended)
        for prompt, answer in zip(prompts, write(policy, prompts, sampling), strict=True)
    ]
    output = reward(completions)
    rows = []
    for i, completion in enumerate(completions):
        parts = reward.segment_breakdown(completion)
        segments = [
            {
                "index": k,
                "type": "image" if segment in completion.answer.images else "text",
                "reward": output.segments[i][k],
                "parts": parts[k],
            }
            for k, segment in enumerate(completion.answer.segments)
        ]
        rows.append(
            {
                "id": completion.prompt.id,
                "prompt": completion.prompt.to_json(),
                "pictures": len(outlines[i]),
                "answer": {
                    "document": completion.answer.to_json(),
                    "outcome": output.outcome[i],
                    "components": {name: scores[i] for name, scores in output.breakdown.items()},
                    "segments": segments,
                },
            }
        )
    return rows
