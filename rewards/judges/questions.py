"""Question-decomposed alignment: a model turns a prompt into yes/no questions, another answers them about each picture.

A single grade hardly tells a failed picture from a good one; the share of questions answered with yes does (TIFA, arXiv
2303.11897; as a reward AlphaGRPO, arXiv 2605.12495). Questions are about one picture each, by its number or `each` of
them, so the shares are process rewards. They are written once for a prompt and call, and kept by the model's reply
cache: with one cache file, all ranks ask the same.

The score of a picture is the share of yes among its questions. The outcome is that share over all of them, where each
question about a picture that the prompt asks for and the answer lacks counts as no. A question without an answer counts
for nothing; failures are counted by kind.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...configs import build, read_yaml
from ...configs.errors import InputError
from ...configs.registry import register
from ...models.chat.requests import PLACE, Answer, ChatModel, Failure, Request, fill
from ...models.chat.tags import between
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ..base import FAILED, Completion, RewardOutput, Server
from ..rules.structure import planned_pictures
from .grading import REFUSAL, all_failed, servers_of

MOST = 32
"""Questions about a prompt; a reply with more is none."""
_QUESTION, _QUESTION_END = re.compile(r'<question picture="(each|[1-9]\d?)">'), re.compile("</question>")
_ANSWER = re.compile(r"<answer>\s*(yes|no)\s*</answer>", re.IGNORECASE)


@dataclass
class QuestionTemplate:
    """A YAML file, `pictures.v1` of the package or one's own. A version is never edited."""

    write: str
    """Asks for questions about the request at {prompt}."""
    ask: str
    """Asks {question} about {image}."""
    identity: str = field(default="", init=False)
    """Name and sha256, for the key of a cached reply."""

    @classmethod
    def named(cls, name_or_path: str) -> QuestionTemplate:
        return load_template(name_or_path)

    def __post_init__(self) -> None:
        for name, text, places in (("write", self.write, {"prompt"}), ("ask", self.ask, {"question", "image"})):
            if set(PLACE.findall(text)) != places:
                raise InputError(f"{name}: refers to {{{'} and {'.join(sorted(places))}}}, each of them and no other")


class Question(NamedTuple):
    picture: int | None
    """Index of the picture in the answer; None for each of them."""
    text: str

    def about(self, picture: int) -> bool:
        return self.picture is None or self.picture == picture


@register("reward", "questions")
@dataclass
class QuestionsReward:
    """Share of yes among questions about each picture that a model makes of the prompt.

    Raises JudgeFailed, or Unavailable, where no question at all could be written or answered.
    """

    viewer: ChatModel
    """Who answers the questions, a vision-language model of `endpoints:`."""
    writer: ChatModel | None = None
    """Who writes them; the viewer by default. It sees the prompt's pictures, if there are any."""
    template: QuestionTemplate = field(default_factory=lambda: QuestionTemplate.named("pictures.v1"))
    """Its prompts: one of the package's by name, or a YAML file of yours."""

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        written = self._write([completion.prompt for completion in completions])
        kinds = [kind for kind in written if isinstance(kind, str)]
        failed = Counter(f"questions: {kind}" for kind in kinds)
        if failed and failed.total() == len(written):
            raise all_failed(kinds, f"no questions for any prompt: {_counted(failed)}")
        shown = [_pictures(completion.answer) for completion in completions]
        asked = [
            (row, number, self._request(question, picture))
            for row, questions in enumerate(written)
            if isinstance(questions, list)
            for number, (_, picture) in enumerate(shown[row])
            for question in questions
            if question.about(number)
        ]
        answers: dict[tuple[int, int], list[bool]] = {}
        replies = self.viewer.complete([request for _, _, request in asked])
        for (row, number, _), reply in zip(asked, replies, strict=True):
            verdict = read_answer(reply)
            if isinstance(verdict, bool):
                answers.setdefault((row, number), []).append(verdict)
            else:
                failed[verdict] += 1
        if asked and not answers:
            raise all_failed({*failed}, f"all {len(asked)} questions failed: {_counted(failed)}")
        outcome: list[float | None] = []
        segments: list[list[float | None]] = []
        for row, (completion, questions) in enumerate(zip(completions, written, strict=True)):
            votes = [answers.get((row, number), []) for number in range(len(shown[row]))]
            scores: list[float | None] = [None] * len(completion.answer.segments)
            for number, ((place, _), vote) in enumerate(zip(shown[row], votes, strict=True)):
                unknown = isinstance(questions, str) or any(question.about(number) for question in questions)
                scores[place] = sum(vote) / len(vote) if vote else FAILED if unknown else None
            segments.append(scores)
            outcome.append(_outcome(questions, votes, planned_pictures(completion.prompt)))
        return RewardOutput(outcome, segments, failed=dict(failed))

    @property
    def servers(self) -> list[Server]:
        return servers_of(self.viewer, self.writer)

    def manifest(self) -> dict[str, Any]:
        """A JSON value: the prompts, and both models with all settings their replies depend on."""
        return {
            "template": self.template.identity,
            "writer": (self.writer or self.viewer).manifest(),
            "viewer": self.viewer.manifest(),
        }

    def _write(self, prompts: Sequence[InterleavedDocument]) -> list[list[Question] | str]:
        """Questions for each prompt, or why there are none; rows of a group share their prompt, and are asked once."""
        distinct = {id(prompt): prompt for prompt in prompts}
        requests = [
            Request(fill(self.template.write, {"prompt": prompt.segments}), template=self.template.identity)
            for prompt in distinct.values()
        ]
        replies = dict(zip(distinct, (self.writer or self.viewer).complete(requests), strict=True))
        return [read_questions(replies[id(prompt)]) for prompt in prompts]

    def _request(self, question: Question, picture: ImageSegment) -> Request:
        places = {"question": [TextSegment(question.text)], "image": [picture]}
        return Request(fill(self.template.ask, places), template=self.template.identity)


def read_questions(answer: Answer) -> list[Question] | str:
    """The questions of a reply, none after `<none/>`; or the kind of failure."""
    text = _said(answer)
    if isinstance(text, _Fault):
        return text.kind
    questions = [
        Question(None if tag.opening[1] == "each" else int(tag.opening[1]) - 1, tag.inside.strip())
        for tag in between(_QUESTION, _QUESTION_END, text)
    ]
    if not questions and "<none/>" not in text:
        return "refused" if REFUSAL.match(text) else "none written"
    if len(questions) > MOST:
        return f"more than {MOST}"
    return questions if all(question.text for question in questions) else "an empty one"


def read_answer(answer: Answer) -> bool | str:
    """Is it yes? Or the kind of failure: exactly one answer, given twice it must be the same."""
    text = _said(answer)
    if isinstance(text, _Fault):
        return text.kind
    found = {word.lower() for word in _ANSWER.findall(text)}
    if len(found) == 1:
        return found == {"yes"}
    return "several answers" if found else "refused" if REFUSAL.match(text) else "no answer"


class _Fault(NamedTuple):
    kind: str


def _said(answer: Answer) -> str | _Fault:
    """What a model said after its thoughts, where it said all of it."""
    if isinstance(answer, Failure):
        return _Fault(answer.kind)
    if answer.finish == "length":
        return _Fault("truncated")
    if answer.finish in ("refusal", "content_filter"):
        return _Fault("refused")
    return answer.text.rpartition("</think>")[2]


def _pictures(answer: InterleavedDocument) -> list[tuple[int, ImageSegment]]:
    """(index of its segment, picture)."""
    return [(i, segment) for i, segment in enumerate(answer.segments) if isinstance(segment, ImageSegment)]


def _outcome(questions: list[Question] | str, votes: Sequence[Sequence[bool]], planned: int) -> float | None:
    """Share of yes; questions about pictures that were asked for and are not there are a no each."""
    if isinstance(questions, str):
        return FAILED
    shown, given = len(votes), sum(map(len, votes))
    numbered = sum(question.picture is not None and question.picture >= shown for question in questions)
    missing = numbered + max(0, planned - shown) * sum(question.picture is None for question in questions)
    if given or (missing and not shown):
        return sum(map(sum, votes)) / (given + missing)
    return FAILED if any(question.about(number) for question in questions for number in range(shown)) else None


def _counted(failed: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in failed.items())


def load_template(name_or_path: str) -> QuestionTemplate:
    """A YAML file, or a packaged one by name. Raises InputError."""
    packaged = Path(__file__).with_name("templates") / "questions"
    path = packaged / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not (path.suffix == ".yaml" and path.is_file()):
        names = ", ".join(sorted(found.stem for found in packaged.glob("*.yaml")))
        raise InputError(f"questions template {name_or_path!r}: neither a YAML file nor one of the package's: {names}")
    template = build(QuestionTemplate, read_yaml(path), str(path))
    template.identity = f"{path.stem}@{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return template
