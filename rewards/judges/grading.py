"""A vision-language model as judge: prompt templates, the strict reading of scores, and the reward made of them.

A template is a YAML file: what it asks about (`unit`), the scale, and the prompt with places for documents:

    unit         asked once for               places in the prompt
    document     a whole answer               {prompt} {answer}
    text         each text of the answer      {prompt} {before} {text}
    image        each picture                 {prompt} {before} {text} {image}
    image_pair   each picture after another   {prompt} {previous} {image}

A picture's {text} is the one before it, else the one after it, else the prompt's. Templates of the package are named
`NAME.vN`: a version is never edited, its successor is a new file.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...configs import build, read_yaml
from ...configs.bounds import Factor, Share
from ...configs.errors import InputError, Unavailable
from ...configs.registry import register
from ...models.chat.requests import PLACE, Answer, ChatModel, Failure, Reply, Request, fill
from ...models.chat.tags import tagged
from ...models.documents.document import ImageSegment, Segment, TextSegment
from ..base import FAILED, Completion, RewardOutput, Server
from ..encoders.pictures import asked_pictures, known_scores, own_text
from ..rules.structure import words

PLACES = {
    "document": {"prompt", "answer"},
    "text": {"prompt", "before", "text"},
    "image": {"prompt", "before", "text", "image"},
    "image_pair": {"prompt", "previous", "image"},
}
"""What a prompt of each unit may refer to; the last one named it must."""
MUST = {"document": "answer", "text": "text", "image": "image", "image_pair": "previous"}

_NUMBER = re.compile(r"[\s*_]*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?[\s*_.]*")
REFUSAL = re.compile(
    r"\W*(?:i['\u2019]?m sorry|i am sorry|sorry|i can(?:no|['\u2019])t|i am unable|i['\u2019]m unable|as an ai)\b",
    re.IGNORECASE,
)


@dataclass
class Template:
    unit: Literal["document", "text", "image", "image_pair"]
    scale: tuple[Factor, Factor]
    """Lowest and highest score."""
    prompt: str
    system: str = ""
    absent: Share | None = None
    """Outcome, 0 to 1, of an answer that has nothing to ask about; null where the template then does not apply."""
    score: str = r"<score>(.*?)</score>"
    """Regular expression whose one group is the score in a reply."""
    name: str = field(default="", init=False)
    """The file's name without .yaml: `text_relevance.v1`."""
    sha256: str = field(default="", init=False)
    """Of the file."""

    def __post_init__(self) -> None:
        named = set(PLACE.findall(self.prompt))
        if unknown := named - PLACES[self.unit]:
            known = ", ".join(sorted(PLACES[self.unit]))
            raise InputError(f"prompt: no place {{{min(unknown)}}} for unit {self.unit}; there are {known}")
        if MUST[self.unit] not in named:
            raise InputError(f"prompt: names nothing to judge; put {{{MUST[self.unit]}}} where it is to stand")
        if not -math.inf < self.scale[0] < self.scale[1] < math.inf:
            raise InputError(f"scale: {list(self.scale)}; give the lowest and the highest score")
        if self.absent is not None and not 0 <= self.absent <= 1:
            raise InputError(f"absent: {self.absent}; an outcome goes from 0 to 1")
        try:
            groups = re.compile(self.score).groups
        except re.error as error:
            raise InputError(f"score: no regular expression: {error}") from None
        if groups != 1:
            raise InputError(f"score: {groups} groups; exactly one holds the score")

    @classmethod
    def named(cls, name_or_path: str) -> Template:
        return load_template(name_or_path)

    @property
    def label(self) -> str:
        """The name without its version, as it stands in metrics."""
        return re.sub(r"\W", "_", re.sub(r"\.v\d+$", "", self.name))

    @property
    def identity(self) -> str:
        return f"{self.name}@{self.sha256[:16]}"

    def manifest(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "unit": self.unit, "scale": list(self.scale)}


def packaged_templates() -> dict[str, Path]:
    """Name to file, `text_relevance.v1` and so on."""
    return {path.stem: path for path in sorted(Path(__file__).with_name("templates").glob("*.yaml"))}


def load_template(name_or_path: str) -> Template:
    """A file (its name ends in .yaml), or a packaged template by name; without `.vN` it is the latest version."""
    packaged = packaged_templates()
    versions = [name for name in packaged if re.fullmatch(re.escape(name_or_path) + r"\.v\d+", name)]
    if name_or_path in packaged:
        path = packaged[name_or_path]
    elif versions:
        path = packaged[max(versions, key=lambda name: int(name.rpartition(".v")[2]))]
    elif name_or_path.endswith(".yaml") and Path(name_or_path).is_file():
        path = Path(name_or_path)
    else:
        near = ", ".join(difflib.get_close_matches(name_or_path, packaged, n=2) or packaged)
        raise InputError(
            f"judge template {name_or_path!r}: neither a YAML file nor one of the package's; there are {near}"
        )
    template = build(Template, read_yaml(path), str(path))
    template.name, template.sha256 = path.stem, hashlib.sha256(path.read_bytes()).hexdigest()
    return template


# ---- questions ----


@dataclass(frozen=True, slots=True)
class Question:
    segment: int | None
    """Index of the answer's segment it is about; None for the whole."""
    request: Request


def questions(template: Template, completion: Completion) -> list[Question]:
    """What a template asks about an answer; nothing where the answer has none of its unit."""
    prompt, answer = completion.prompt.segments, completion.answer.segments
    asked = []
    for segment, places in _units(template.unit, prompt, answer):
        document = fill(template.prompt, {"prompt": prompt, **places})
        asked.append(Question(segment, Request(document, template.system, template.identity)))
    return asked


def _units(
    unit: str, prompt: Sequence[Segment], answer: Sequence[Segment]
) -> Iterator[tuple[int | None, dict[str, Sequence[Segment]]]]:
    """(segment, what stands at the places of its prompt)."""
    texts = {i: s for i, s in enumerate(answer) if isinstance(s, TextSegment) and words(s.text)}
    pictures = {i: s for i, s in enumerate(answer) if isinstance(s, ImageSegment)}
    if unit == "document" and (texts or pictures):
        yield None, {"answer": answer}
    elif unit == "text":
        for index, text in texts.items():
            yield index, {"before": answer[:index], "text": [text]}
    elif unit == "image":
        for index, picture in pictures.items():
            yield index, {"before": answer[:index], "text": own_text(index, prompt, answer), "image": [picture]}
    elif unit == "image_pair":
        previous = [segment for segment in prompt if isinstance(segment, ImageSegment)][-1:]
        for index, picture in pictures.items():
            if previous:
                yield index, {"previous": previous, "image": [picture]}
            previous = [picture]


def missing(unit: str, completion: Completion) -> int:
    """Questions that could not be asked because the answer lacks pictures that its prompt says it wants."""
    prompt, shown = completion.prompt, len(completion.answer.images)
    first = 0 if unit == "image" or prompt.images else 1  # of pairs, a first picture has none before it
    wanted = asked_pictures(prompt) if unit in ("image", "image_pair") else 0
    return max(0, max(wanted - first, 0) - max(shown - first, 0))


# ---- scores ----


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one question."""

    score: float | None
    """On the template's scale; None where there is none."""
    failure: str = ""
    """Why there is none: a kind of `models.chat.Failure`, or of `read_verdict`."""
    words: str = ""
    """The judge's, or the reason of the failure."""


def read_verdict(answer: Answer, template: Template) -> Verdict:
    """The score of a reply, strictly: exactly one (said twice it must be the same), a number, on the scale.

    Failures: `truncated` (by the length limit, whatever it holds), `refused`, `empty`, `no score`, `several scores`,
    `no number`, `out of range`. Reasoning before `</think>` is not read; code fences and prose around do not matter.
    """
    if isinstance(answer, Failure):
        return Verdict(None, answer.kind, answer.reason)
    return _read_score(answer, template)


def _read_score(reply: Reply, template: Template) -> Verdict:
    text = reply.text.rpartition("</think>")[2]
    if reply.finish == "length":
        return Verdict(None, "truncated", reply.text)
    if reply.finish in ("refusal", "content_filter"):
        return Verdict(None, "refused", reply.text)
    if not text.strip():
        return Verdict(None, "empty", reply.text)
    found = {score.strip() for score, _ in tagged(template.score, text)}
    if not found:
        return Verdict(None, "refused" if REFUSAL.match(text) else "no score", reply.text)
    if len(found) > 1:
        return Verdict(None, "several scores", reply.text)
    number = _NUMBER.fullmatch(found.pop())
    if number is None:
        return Verdict(None, "no number", reply.text)
    score, (low, high) = float(number[1]), template.scale
    if not low <= score <= high or (number[2] and float(number[2]) != high):
        return Verdict(None, "out of range", reply.text)
    return Verdict(score, "", reply.text)


class JudgeFailed(Exception):
    """No question of a call has a score."""


AWAY = {"timeout", "connection", "rate limit", "server error"}
"""Failures that are the server's, not the question's."""


def all_failed(kinds: Collection[Any], words: str) -> Exception:
    """What to raise where every question of a call has failed: Unavailable where the judge gave no answer at all."""
    return Unavailable(words) if {*kinds} <= AWAY else JudgeFailed(words)


def servers_of(*models: Any) -> list[Any]:
    """Those of the models that stand behind an address."""
    return [model for model in models if hasattr(model, "probe")]


@register("reward", "judge/TEMPLATE")
@dataclass
class JudgeReward:
    """A model's scores by a prompt template, each mapped from its scale to 0..1.

    Units below the document give process scores, and their mean, without those that failed, as the outcome; a picture,
    or a pair of them, that the prompt says it wants and the answer lacks counts as 0 in it (`missing`). Failures are
    counted by kind in the output's `failed`; where every question of a call fails, the call raises JudgeFailed, or
    Unavailable where the judge was away.
    """

    template: Template
    """One of the package's by name (helpfulness, text_relevance, ...), or a YAML file of yours."""
    endpoint: ChatModel
    """Who judges, one of `endpoints:`."""

    def __post_init__(self) -> None:
        self.name = f"judge_{self.template.label}"
        self.verdicts: Counter[str] = Counter()
        """Verdicts so far, by kind of failure; `scored` for those without."""

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        asked = [questions(self.template, completion) for completion in completions]
        answers = iter(self.endpoint.complete([question.request for row in asked for question in row]))
        verdicts = [[read_verdict(next(answers), self.template) for _ in row] for row in asked]
        failed = [verdict for row in verdicts for verdict in row if verdict.failure]
        kinds = Counter(verdict.failure for verdict in failed)
        total = sum(map(len, asked))
        self.verdicts.update(kinds)
        self.verdicts["scored"] += total - len(failed)
        if failed and len(failed) == total:
            words = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            raise all_failed(kinds, f"all {total} questions failed: {words}; last: {failed[-1].words}")
        outcome: list[float | None] = []
        segments: list[list[float | None]] = []
        for completion, row_asked, row in zip(completions, asked, verdicts, strict=True):
            scores = [self._normalised(verdict.score) for verdict in row]
            known, _ = known_scores(scores)
            due = len(known) + missing(self.template.unit, completion)
            lost = FAILED if row else 0.0 if due else self.template.absent
            outcome.append(sum(known) / due if known else lost)
            by_segment = {question.segment: score for question, score in zip(row_asked, scores, strict=True)}
            segments.append([by_segment.get(index) for index in range(len(completion.answer.segments))])
        return RewardOutput(outcome, segments, failed=dict(kinds))

    @property
    def servers(self) -> list[Server]:
        return servers_of(self.endpoint)

    def manifest(self) -> dict[str, Any]:
        """A JSON value: the template, and the judge with all settings its replies depend on."""
        return {"template": self.template.manifest(), "judge": self.endpoint.manifest()}

    def _normalised(self, score: float | None) -> float:
        low, high = self.template.scale
        return FAILED if score is None else (score - low) / (high - low)
