"""InterleavedBench (arXiv 2406.14643): 815 prompts of ten use cases, five aspects of each answer judged from 0 to 5.

The pictures of a record are one list: the first N, one for each `<image>` of the prompt, are the prompt's; the others
are the reference's and never reach the model. An aspect whose modality the answer lacks is 0 and is not asked. AVG is
the mean of the five aspect means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...configs.errors import InputError
from ...configs.registry import register
from ...models.chat.requests import Answer
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ...rewards.base import Completion
from ...rewards.judges.grading import Template, Verdict, questions, read_verdict
from ..benchmark import Given, Item, Outcome, Table, Task, judge_template
from ..entries import Entry, decoded, inside, segments_of, spaced
from ..records import read_records
from ..results import by_category
from ..statistics import RESAMPLES, Estimate, estimate
from .official_prompts import read_prompts

TOTAL = 815
HIGHEST = 5
TOKEN = "<image>"
BEGIN = "<BEGIN>"
ASPECTS = {
    "text_quality": "TQ",
    "perceptual_quality": "PQ",
    "image_coherence": "IC",
    "text_image_coherence": "TIC",
    "helpfulness": "Help",
}
TEXT_ASPECTS = ("text_quality", "text_image_coherence")
SKIP_WORDS = {"editing": ("edit",), "subject_driven": ("subject", "concept", "compos")}
"""What the name of a task holds that belongs to a group; the names of all ten tasks are not published."""

PROMPT_NAMES = {
    "text_quality": r"text quality|\btq\b",
    "perceptual_quality": r"percept|image quality|\bpq\b",
    "image_coherence": r"(?<!text )image coherence|\bic\b",
    "text_image_coherence": r"text image coherence|\btic\b",
    "helpfulness": r"\bhelp",
}
"""What the names of an aspect's prompt hold in the official script, whose form is not published elsewhere."""

SOURCE = "judge GPT-4o, 0 to 5: arXiv 2406.14643; the two U-GRPO rows are from arXiv 2603.09538"
PUBLISHED = (
    ("MiniGPT-5", (1.22, 2.45, 1.62, 2.03, 1.77, 1.82)),
    ("GILL", (0.75, 3.21, 2.25, 1.53, 1.48, 1.84)),
    ("EMU-2", (1.26, 2.28, 1.89, 1.34, 1.64, 1.68)),
    ("EMU-2 + gold text", (1.56, 3.35, 2.89, 1.43, 2.10, 2.27)),
    ("Gemini-1.5 + SDXL", (4.40, 3.99, 3.64, 4.13, 3.62, 3.96)),
    ("GPT-4o + DALL-E 3", (4.37, 4.36, 3.51, 4.55, 3.88, 4.13)),
    ("U-GRPO, QLoRA", (2.33, 3.39, 3.01, 2.75, 2.85, 2.87)),
    ("U-GRPO", (2.86, 3.58, 3.25, 3.02, 2.94, 3.13)),
)
"""TQ, PQ, IC, TIC, Help, AVG."""


@dataclass
class InterleavedBenchConfig:
    text_aspect_skip: list[Literal["editing", "subject_driven"]] = field(
        default_factory=lambda: ["editing", "subject_driven"]
    )
    """Kinds of tasks whose text quality and text-image coherence are left out; the official rule is ambiguous."""
    skip_tasks: list[str] = field(default_factory=list)
    """Further tasks to leave out there, by their `task_name`."""
    templates: dict[str, str] = field(default_factory=dict)
    """Judge prompts of your own, by aspect: `{helpfulness: my/helpfulness.yaml}`."""
    prompts: str = ""
    """`src/interleavedeval_gpt4o.py` of the download: the official judge prompts are read from it; it is never run."""
    prompt_names: dict[str, str] = field(default_factory=dict)
    """Names in that file of an aspect's prompt, where they do not tell: `{helpfulness: INSTRUCTION + HELP}`."""
    prompt_score: str = (
        r"(?i)(?:\bscore\b\W{0,20}(?:\d\s*(?:-|to)\s*\d\W{0,10})?|\A(?=\s*[\d.]+\s*\Z)\s*)"
        r"(-?\d+(?:\.\d+)?)(?![\d.]*\s*(?:-|to)\s*\d)"
    )
    """Regular expression whose one group is the score in a reply to such a prompt."""

    def __post_init__(self) -> None:
        for name in ("templates", "prompt_names"):
            if unknown := set(getattr(self, name)) - set(ASPECTS):
                raise InputError(f"{name}: {min(unknown)!r} is no aspect; there are {', '.join(ASPECTS)}")
        if self.prompts and self.templates:
            raise InputError("templates: with prompts the official ones are used; leave one of the two out")
        if self.prompt_names and not self.prompts:
            raise InputError("prompt_names: name the file they stand in with prompts")


def read(path: Path, images: Path | None = None) -> list[tuple[Item, Given | None]]:
    """Items of `interleaved_bench.json`, with the answer of the second turn where there is one.

    images: the folder that pictures are relative to, by default that of the file.
    """
    root = images or path.parent
    rows = []
    for place, record in read_records(path):
        turns, names, task = (record.get(name) for name in ("conversations", "image", "task_name"))
        if not isinstance(turns, list) or not turns or not all(isinstance(_value(turn), str) for turn in turns):
            raise InputError(f"{place}: field `conversations` is no list of turns with a text `value`")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{place}: field `image` is no list of paths")
        if not isinstance(task, str):
            raise InputError(f"{place}: field `task_name` is missing or no string")
        files = [inside(root, name, f"{place}: field `image`") for name in names]
        own = _value(turns[0]).count(TOKEN)
        if own > len(files):
            raise InputError(f"{place}: the prompt has {own} times {TOKEN}, and field `image` {len(files)} pictures")
        question = entries_of_text(_value(turns[0]).removeprefix(BEGIN).lstrip(), files[:own])
        item = Item(record["id"], task, question)
        rows.append((item, _answer(_value(turns[1]), files[own:]) if len(turns) > 1 else None))
    return rows


def _value(turn: Any) -> Any:
    return turn.get("value") if isinstance(turn, dict) else None


def _answer(text: str, files: Sequence[Path]) -> Given:
    if text.count(TOKEN) != len(files):
        reason = f"{text.count(TOKEN)} times {TOKEN} in the text, {len(files)} pictures"
        return Given(failure="unusable answer", reason=reason)
    return Given(entries_of_text(text, files))


def entries_of_text(text: str, files: Sequence[Path]) -> tuple[Entry, ...]:
    """Text with a picture for each `<image>`; `text_of_entries` is the inverse."""
    parts = text.split(TOKEN)
    pairs = zip(parts, (*files, None), strict=True)
    return tuple(Entry(part or None, file) for part, file in pairs if part or file)


def text_of_entries(entries: Sequence[Entry]) -> tuple[str, list[Path]]:
    """A literal `<image>` in a text, which the format cannot hold, becomes `image`."""
    texts = [(entry.text or "").replace(TOKEN, "image") + TOKEN * (entry.image is not None) for entry in entries]
    return "".join(texts), [entry.image for entry in entries if entry.image is not None]


def export(items: Sequence[Item], answers: Mapping[str, Given], model: str, name: Callable[[Path], str]) -> list[dict]:
    """Records in the benchmark's schema, of the items that have an answer. name: what a picture is called there."""
    records = []
    for item in items:
        if answers[item.id].failure:
            continue
        asked, own = text_of_entries(item.question)
        said, painted = text_of_entries(answers[item.id].entries)
        turns = [{"from": "human", "value": f"{BEGIN} {asked}"}, {"from": "gpt", "value": said}]
        pictures = [name(path) for path in (*own, *painted)]
        records.append(
            {"id": item.id, "image": pictures, "task_name": item.category, "conversations": turns, "model": model}
        )
    return records


@register("benchmark", "interleavedbench")
class InterleavedBench:
    """Interleaved answers, graded by a judge in five aspects (InterleavedBench)."""

    name = "interleavedbench"
    records = staticmethod(read)
    export = ("interleaved_bench.json", export)
    title = "InterleavedBench"
    needs_judge = True
    highest: float = HIGHEST

    def __init__(self, items: Sequence[Item], config: InterleavedBenchConfig):
        self.config = config
        self.items = list(items)
        self.official: dict[str, Any] = {}
        if config.prompts:
            self.templates, self.official = official_templates(config)
        else:
            named = {aspect: config.templates.get(aspect, f"interleavedbench_{aspect}") for aspect in ASPECTS}
            self.templates = {aspect: judge_template(name, (0, HIGHEST)) for aspect, name in named.items()}
        self.tasks_skipped = {item.category for item in self.items if self._skips(item.category)}

    def _skips(self, task: str) -> bool:
        words = [word for group in self.config.text_aspect_skip for word in SKIP_WORDS[group]]
        return task in self.config.skip_tasks or any(word in task.lower() for word in words)

    def manifest(self) -> dict[str, Any]:
        return {
            "text_aspect_skip": sorted(self.config.text_aspect_skip),
            "skip_tasks": sorted(self.config.skip_tasks),
            "templates": {name: template.manifest() for name, template in self.templates.items()},
            **({"prompts": self.official} if self.official else {}),
        }

    def aspects(self, item: Item) -> tuple[str, ...]:
        skipped = TEXT_ASPECTS if item.category in self.tasks_skipped else ()
        return tuple(aspect for aspect in ASPECTS if aspect not in skipped)

    def tasks(self, item: Item, given: Given) -> list[Task]:
        question, answer = (decoded(spaced(segments_of(entries))) for entries in (item.question, given.entries))
        completion = Completion(InterleavedDocument(question), InterleavedDocument(answer), given.ended)
        text = any(isinstance(segment, TextSegment) and segment.text.strip() for segment in answer)
        image = any(isinstance(segment, ImageSegment) for segment in answer)
        holds = {
            "text_quality": text,
            "perceptual_quality": image,
            "image_coherence": image,
            "text_image_coherence": text and image,
            "helpfulness": text or image,
        }
        return [
            Task(aspect, questions(self.templates[aspect], completion)[0].request)
            if holds[aspect]
            else Task(aspect, Verdict(0.0, "", "the answer has nothing of the kind"), {"zero, nothing to judge": 1})
            for aspect in self.aspects(item)
        ]

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        return read_verdict(answer, self.templates[aspect])

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Each aspect over the items that have it, and AVG."""
        columns = {name: [o.score for o in outcomes if o.aspect == name and o.score is not None] for name in ASPECTS}
        scores: dict[str, Any] = {name: estimate(values) for name, values in columns.items() if values}
        return {**scores, "AVG": average(outcomes)} if scores else {}

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        columns = (*ASPECTS.values(), "AVG")

        def row(part: Sequence[Outcome]) -> list[Estimate | None]:
            scores = self.scores(part)
            return [scores.get(name) for name in (*ASPECTS, "AVG")]

        tasks = [(name, row(part)) for name, part in by_category(outcomes).items()]
        return [
            Table("Scores, 0 to 5", columns, [("this run", row(outcomes))], PUBLISHED, SOURCE, main="AVG"),
            Table("By task", columns, tasks),
        ]

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        said = []
        if len(self.items) != TOTAL:
            said.append(f"{len(self.items)} items of {TOTAL}: the published rows are of the whole set.")
        said.append(
            "The judge's prompts are the official ones; what stands around them, and how a score is read, may not be."
            if self.official
            else "The judge's prompts are limner's own; the published rows have the official ones and GPT-4o."
        )
        skipped = sum(item.category in self.tasks_skipped for item in self.items)
        groups = ", ".join(self.config.text_aspect_skip) or "none"
        tasks = f" ({', '.join(sorted(self.tasks_skipped))})" if skipped else ""
        said.append(f"Text aspects are left out for {groups}: {skipped} items{tasks}.")
        for group in self.config.text_aspect_skip:
            if not any(word in task.lower() for task in self.tasks_skipped for word in SKIP_WORDS[group]):
                said.append(f"No task is called like {group}; if the data have such items, name them in skip_tasks.")
        return said


def official_templates(config: InterleavedBenchConfig) -> tuple[dict[str, Template], dict[str, Any]]:
    """A template for each aspect from the official script, and what the manifest says of them."""
    path = Path(config.prompts)
    prompts, sha256 = read_prompts(path, PROMPT_NAMES, config.prompt_names)
    templates = {}
    for aspect, prompt in prompts.items():
        try:
            template = Template("document", (0, HIGHEST), prompt.text, score=config.prompt_score)
        except InputError as fault:
            raise InputError(f"{path}: {prompt.names}: {fault}") from None
        template.name = f"interleavedbench_official_{aspect}"
        template.sha256 = hashlib.sha256(f"{prompt.text}\n{config.prompt_score}".encode()).hexdigest()
        templates[aspect] = template
    names = {aspect: prompt.names for aspect, prompt in prompts.items()}
    return templates, {"file": path.name, "sha256": sha256, "names": names}


def average(outcomes: Sequence[Outcome]) -> Estimate:
    """Mean of the means of the aspects that have scores, with a bootstrap 95 % interval over items."""
    rows = {identifier: row for row, identifier in enumerate(dict.fromkeys(o.item.id for o in outcomes))}
    columns = list(dict.fromkeys(o.aspect for o in outcomes if o.score is not None))
    values_IA = np.full((len(rows), len(columns)), np.nan)
    for outcome in outcomes:
        if outcome.score is not None:
            values_IA[rows[outcome.item.id], columns.index(outcome.aspect)] = outcome.score
    known_IA = ~np.isnan(values_IA)
    drawn_RI = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    means = []
    for values_I, known_I in zip(np.nan_to_num(values_IA).T, known_IA.T, strict=True):
        counts_R = known_I[drawn_RI].sum(1)
        means.append(np.where(counts_R, values_I[drawn_RI].sum(1) / np.maximum(counts_R, 1), np.nan))
    means_AR = np.array(means)
    means_AR = means_AR[:, ~np.isnan(means_AR).all(0)]  # a resample may hold nothing but items without scores
    low, high = np.quantile(np.nanmean(means_AR, axis=0), (0.025, 0.975))
    value = np.nanmean(values_IA, axis=0).mean()
    return {"value": float(value), "low": float(low), "high": float(high), "n": len(rows)}
