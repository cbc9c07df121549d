"""The embedded world as a benchmark: its exact verifiers are the judge, so that nothing is asked and nothing fails.

Every outline is written twice, sampled at temperature 1 and greedily. Item i of a way draws from row i of the run's
seed, as in `worlds.picture_stories.figures.score_stories`: the figures are those of `limner demo --score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...configs.registry import register
from ...eval.benchmark import Given, Item, Outcome, Table, Task
from ...eval.entries import Entry, segments_of
from ...eval.figures import Figure, mean_of
from ...eval.results import by_category
from ...eval.statistics import Estimate, estimate
from ...models.chat.requests import Answer
from ...models.documents.document import InterleavedDocument, TextSegment
from ...models.writing import Answer as Written
from ...rewards.judges.grading import Verdict
from .figures import StoryScores, verify_stories
from .prompts import read_outlines
from .scenes import parse_scene, story_prompt

WAYS = {"sampled": 1.0, "greedy": 0.0}
"""Temperature."""
ASPECTS = tuple(StoryScores([], [], [], []).rows())


def read(path: Path, images: Path | None = None) -> list[tuple[Item, Given | None]]:
    """Items of a JSONL file of outlines; pictures there are none."""
    prompts = [story_prompt(outline) for outline in read_outlines(path)]
    rows: list[tuple[Item, Given | None]] = []
    for way, temperature in WAYS.items():
        for row, prompt in enumerate(prompts):
            question = tuple(Entry(segment.text) for segment in prompt.segments if isinstance(segment, TextSegment))
            item = Item(f"{way}/{row}", way, question, meta=prompt.meta, temperature=temperature, row=row)
            rows.append((item, None))
    return rows


@register("benchmark", "picture_stories")
class PictureStories:
    """Stories of the embedded world, read back by exact verifiers."""

    name = "picture_stories"
    records = staticmethod(read)
    takes_answers = False
    title = "Picture stories"
    needs_judge = False
    highest: float = 1

    def __init__(self, items: Sequence[Item]):
        self.items = list(items)

    def manifest(self) -> dict[str, Any]:
        return {"verifiers": "eval.picture_stories"}

    def aspects(self, item: Item) -> tuple[str, ...]:
        return ASPECTS

    def tasks(self, item: Item, given: Given) -> list[Task]:
        outline = tuple(parse_scene(words) for words in item.meta["outline"])
        document = InterleavedDocument(segments_of(given.entries, trainable=True, origin="generated"))
        scores = verify_stories([Written(document, given.ended, cut_image=False)], [outline]).rows()
        return [Task(aspect, Verdict(values[0])) for aspect, values in scores.items()]

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        raise RuntimeError("the verifiers ask nobody")

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """`{"sampled": {"story_exact": ...}, "greedy": ...}`."""
        nested: dict[str, dict[str, Estimate]] = {}
        for way, part in by_category(outcomes).items():
            for aspect in ASPECTS:
                known = [o.score for o in part if o.aspect == aspect and o.score is not None]
                if known:
                    nested.setdefault(way, {})[aspect] = estimate(known)
        return nested

    def figures(self, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
        """`sampled.story_exact` and so on, the mean over stories: what is sampled can be compared alone."""
        units: dict[str, dict[str, float]] = {}
        for outcome in outcomes:
            if outcome.score is not None:
                figure = units.setdefault(f"{outcome.item.category}.{outcome.aspect}", {})
                figure[outcome.item.id] = outcome.score
        return {name: mean_of(values) for name, values in units.items()}

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        scores = self.scores(outcomes)
        rows = [(way, [scores.get(way, {}).get(aspect) for aspect in ASPECTS]) for way in WAYS]
        return [Table("Shares of stories, sentences and pictures that are right", ASPECTS, rows, main=ASPECTS[0])]

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        return []
