"""The four metrics of MRAMG-Bench that a judge gives, in percent: with prompts of ours, and tags read as they came.

The paper's judge ends its reply with a tag, `<relevance_score>4</relevance_score>`, for the position with one for each
picture, `<img_2_score>1</img_2_score>`. Here the scores of all tags are averaged, and where a picture has no tag the
reply has no score. The evaluator that is available reads the first tag alone, so that the position is that of the first
picture: `first_tag`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....models.chat.requests import Answer, Failure
from ....models.chat.tags import tagged
from ....models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ....rewards.base import Completion
from ....rewards.judges.grading import Template, Verdict, questions, read_verdict
from ...benchmark import Task, judge_template

UNREAD = ("truncated", "refused", "empty", "no score")
"""Failures of a reply as a whole."""


@dataclass(frozen=True, slots=True)
class Metric:
    column: str
    """Its name in tables."""
    scale: tuple[float, float]
    of_pictures: bool = True
    """An answer without pictures gets 0 and is not shown to the judge."""
    each: bool = False
    """One tag a picture."""


JUDGED = {
    "comprehensive": Metric("Comp", (1, 5), of_pictures=False),
    "effectiveness": Metric("Eff", (1, 5)),
    "position": Metric("Pos", (0, 1), each=True),
    "relevance": Metric("Rel", (1, 5)),
}
"""In the order of the published columns."""


class Judgements:
    """What the judge is asked, and what its replies say. templates: prompts of the user's, by metric."""

    def __init__(self, templates: Mapping[str, str], first_tag: bool):
        self.first_tag = first_tag
        self.templates = {
            name: judge_template(templates.get(name, f"mramg_{name}"), metric.scale) for name, metric in JUDGED.items()
        }

    def manifest(self) -> dict[str, Any]:
        tags = "the first" if self.first_tag else "all, averaged"
        return {"tags": tags, "templates": {name: template.manifest() for name, template in self.templates.items()}}

    def tasks(self, question: Sequence[Segment], answer: Sequence[Segment]) -> list[Task]:
        shown = InterleavedDocument(tuple(numbered(answer)))
        completion = Completion(InterleavedDocument(tuple(question)), shown)
        tasks = []
        for name, metric in JUDGED.items():
            asked = questions(self.templates[name], completion)
            if not asked or (metric.of_pictures and not shown.images):
                tasks.append(Task(name, Verdict(0.0, "", "nothing to judge"), {"zero, nothing to judge": 1}))
            else:
                tasks.append(Task(name, asked[0].request))
        return tasks

    def read(self, metric: str, answer: Answer, pictures: int) -> Verdict:
        """In percent. pictures: how many the answer shows."""
        template, kind = self.templates[metric], JUDGED[metric]
        verdict = read_tags(answer, template, pictures if kind.each else None, self.first_tag)
        return verdict if verdict.score is None else replace(verdict, score=verdict.score / kind.scale[1] * 100)


def numbered(answer: Sequence[Segment]) -> list[Segment]:
    """With `[img 1]` before the first picture and so on: the numbers that the judge's tags name."""
    shown: list[Segment] = []
    for segment in answer:
        if isinstance(segment, ImageSegment):
            number = sum(isinstance(other, ImageSegment) for other in shown) + 1
            shown.append(TextSegment(f"\n[img {number}] "))
        shown.append(segment)
    return shown


def read_tags(answer: Answer, template: Template, pictures: int | None, first: bool) -> Verdict:
    """The mean of the scores of all tags, or the first; on the template's scale.

    pictures: there is to be one tag for each of so many, numbered from 1; None where tags have no numbers. Failures are
    those of `read_verdict`; `no score` also where a picture has no tag, `several scores` where it has two that differ.
    """
    whole = read_verdict(answer, template)
    if isinstance(answer, Failure) or whole.failure in UNREAD:
        return whole
    text = answer.text.rpartition("</think>")[2]
    tags = [whole for _, whole in tagged(template.score, text)]
    if first:
        tags = tags[:1]
    elif pictures is not None:
        tags = list(dict.fromkeys(tags))
        numbers = [int(found[1]) for tag in tags if (found := re.match(r"<\D*(\d{1,9})", tag))]
        if set(numbers) != set(range(1, pictures + 1)):
            return Verdict(None, "no score", answer.text)
        if len(numbers) > pictures:
            return Verdict(None, "several scores", answer.text)
    verdicts = [read_verdict(replace(answer, text=tag), template) for tag in tags]
    if failed := [verdict.failure for verdict in verdicts if verdict.failure]:
        return Verdict(None, failed[0], answer.text)
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    return Verdict(sum(scores) / len(scores), "", answer.text)
