"""MMIE (arXiv 2410.10139): 20,103 questions in three categories, each answer judged from 0 to 6.

`full` mode lets the judge see the whole answer, with prompts of ours. `official` mode does what the scorer of
github.com/Lillianwei-h/MMIE does, with the rubrics of the user's checkout of it:

- the category is the first of the rubrics' markers that occurs anywhere in the id: "PBL-SALAD-1" is SA;
- what the judge sees of an answer ends with the third picture, those of the question included; later text is cut too;
- an item with more than four pictures is dropped, a picture whose file is missing is left out;
- the score is the first number after `### Score`, rounded half to even; without one from 0 to 6 an item does not count.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...configs.errors import InputError, plain_file, reading
from ...configs.registry import register
from ...models.chat.requests import Answer, Failure, Request
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ...rewards.base import Completion
from ...rewards.judges.grading import Template, Verdict, fill, questions, read_verdict
from ..benchmark import Given, Item, Outcome, Table, Task, judge_template
from ..entries import Entry, open_picture, read_entries, segments_of, spaced
from ..records import read_records
from ..results import by_category
from ..statistics import Estimate, estimate

COUNTS = {"SA": 5005, "PBL": 11482, "MSR": 3616}
"""Items of situational analysis, project-based learning and multi-step reasoning."""
NAMES = {"situational analysis": "SA", "project-based learning": "PBL", "multi-step reasoning": "MSR"}
UNKNOWN = "unknown"
HIGHEST = 6
JUDGED_IMAGES = 3
MOST_IMAGES = 4
PLACES = {"question", "answer", "gt_answer"}
ASPECT = "score"

SOURCE = (
    "MMIE-Score with the official scorer, percent: mmie-bench.github.io at 2287883; the two U-GRPO rows are from "
    "arXiv 2603.09538. MSR needs no picture, so the rows of one language model share it"
)
PUBLISHED = (
    ("MiniGPT-5", (47.63, 55.12, 42.17, 50.92)),
    ("EMU-2", (39.65, 46.12, 50.75, 45.33)),
    ("GILL", (46.72, 57.57, 39.33, 51.58)),
    ("Anole", (48.95, 59.05, 51.72, 55.22)),
    ("U-GRPO, QLoRA", (53.12, 60.34, 53.28, 57.27)),
    ("U-GRPO", (56.87, 62.28, 54.31, 59.50)),
    ("GPT-4o + Openjourney", (53.05, 71.4, 53.67, 63.65)),
    ("GPT-4o + SD-3", (53.0, 71.2, 53.67, 63.52)),
    ("GPT-4o + SD-XL", (56.12, 73.25, 53.67, 65.47)),
    ("GPT-4o + Flux", (54.97, 68.8, 53.67, 62.63)),
    ("Gemini-1.5 + Openjourney", (48.08, 67.93, 60.05, 61.57)),
    ("Gemini-1.5 + SD-3", (47.48, 68.7, 60.05, 61.87)),
    ("Gemini-1.5 + SD-XL", (49.43, 71.85, 60.05, 64.15)),
    ("Gemini-1.5 + Flux", (47.07, 68.33, 60.05, 61.55)),
    ("LLaVA-34b + Openjourney", (54.12, 73.47, 47.28, 63.93)),
    ("LLaVA-34b + SD-3", (54.72, 72.55, 47.28, 63.57)),
    ("LLaVA-34b + SD-XL", (55.97, 74.6, 47.28, 65.05)),
    ("LLaVA-34b + Flux", (54.23, 71.32, 47.28, 62.73)),
    ("Qwen-VL-70b + Openjourney", (52.73, 71.63, 55.63, 64.05)),
    ("Qwen-VL-70b + SD-3", (54.98, 71.87, 55.63, 64.75)),
    ("Qwen-VL-70b + SD-XL", (52.58, 73.57, 55.63, 65.12)),
    ("Qwen-VL-70b + Flux", (54.23, 69.47, 55.63, 63.18)),
)
"""SA, PBL, MSR, AVG."""


@dataclass
class MMIEConfig:
    mode: Literal["full", "official"] = "full"
    """What the judge sees: the whole answer, or what the official scorer shows it."""
    rubrics: str = ""
    """`prompts.py` in a checkout of github.com/Lillianwei-h/MMIE; official mode reads it, and runs none of it."""
    templates: dict[str, str] = field(default_factory=dict)
    """Judge prompts of your own in full mode, by category: `{SA: my/sa.yaml}`."""

    def __post_init__(self) -> None:
        if self.mode == "official" and not self.rubrics:
            raise InputError("rubrics: official mode needs prompts.py of a checkout of github.com/Lillianwei-h/MMIE")
        if self.mode == "official" and self.templates:
            raise InputError("templates: official mode uses the rubrics; leave them out")
        if self.mode == "full" and self.rubrics:
            raise InputError("rubrics: read in official mode alone; add mode official, or leave them out")
        if unknown := set(self.templates) - set(COUNTS):
            raise InputError(f"templates: {min(unknown)!r} is no category; there are {', '.join(COUNTS)}")


def read(path: Path, images: Path | None = None) -> list[tuple[Item, Given | None]]:
    """Items of MMIE's `data.json`, or of outputs in the scorer's schema, with the answers that are there.

    images: the folder that pictures are relative to, by default that of the file.
    """
    root = images or path.parent
    rows = []
    for place, record in read_records(path):
        if "question" not in record:
            raise InputError(f"{place}: field `question` is missing; found {', '.join(map(repr, record))}")
        values = {
            name: read_entries(record.get(name), root, f"{place}: field `{name}`")
            for name in ("question", "answer", "gt_answer")
        }
        reference = values["gt_answer"][0].text if values["gt_answer"] else None
        category = category_of(record["id"], str(record.get("category", "")))
        meta = {"has_reference": bool(values["gt_answer"])}
        item = Item(record["id"], category, values["question"], reference, meta)
        rows.append((item, Given(values["answer"]) if "answer" in record else None))
    return rows


def category_of(identifier: str, said: str = "") -> str:
    """SA, PBL or MSR: what the id begins with, else a word in it, else what the record's own `category` says."""
    beginning = re.match("|".join(COUNTS), identifier)
    named = [beginning[0]] if beginning else [word for word in re.split(r"[^A-Za-z0-9]+", identifier) if word in COUNTS]
    if named:
        return named[0]
    return said if said in COUNTS else NAMES.get(said.lower().replace("_", " "), UNKNOWN)


# ---- official mode ----


@dataclass(frozen=True, slots=True)
class Rubrics:
    prompts: dict[str, str]
    """Marker in the id -> prompt with places {question}, {answer} and maybe {gt_answer}; in the scorer's order."""
    sha256: str

    def category_of(self, identifier: str) -> str:
        return next((marker for marker in self.prompts if marker in identifier), UNKNOWN)


def read_rubrics(path: Path) -> Rubrics:
    """What `get_prompt` returns for each marker, from its syntax tree. Raises InputError where it looks otherwise."""
    with reading(path):
        data = plain_file(path).read_bytes()
        tree = ast.parse(data)
    constants: dict[str, str] = {}
    prompts: dict[str, str] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=ast.Constant(str(text))):
                constants[name] = text
            case ast.FunctionDef(name="get_prompt"):
                for branch in ast.walk(node):
                    match branch:
                        case ast.If(
                            test=ast.Compare(left=ast.Constant(str(marker)), ops=[ast.In()]),
                            body=[ast.Return(value=ast.expr() as said)],
                        ):
                            prompts[marker] = _text(said, constants, path)
    if set(prompts) != set(COUNTS):
        raise InputError(f"{path}: get_prompt returns no prompt for each of {', '.join(COUNTS)}; is it MMIE's?")
    for marker, prompt in prompts.items():
        named = set(re.findall(r"\{(\w+)\}", prompt))
        if not {"question", "answer"} <= named <= PLACES:
            raise InputError(f"{path}: the prompt of {marker} has the places {', '.join(sorted(named))}")
    return Rubrics(prompts, hashlib.sha256(data).hexdigest())


def _text(node: ast.expr, constants: Mapping[str, str], path: Path) -> str:
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.Name(name) if name in constants:
            return constants[name]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, constants, path) + _text(right, constants, path)
    raise InputError(f"{path}:{node.lineno}: expected a text, got {ast.unparse(node)[:60]!r}")


@dataclass(frozen=True, slots=True)
class View:
    """What the official scorer shows its judge."""

    question: list[Segment]
    answer: list[Segment]
    images: int
    notes: dict[str, int]


def official_view(question: Sequence[Entry], answer: Sequence[Entry]) -> View:
    """Raises PictureFault for a picture that is there and does not open."""
    shown: dict[str, list[Segment]] = {"question": [TextSegment("")], "answer": [TextSegment("")]}
    images = missing = used = 0

    def put(part: str, entry: Entry) -> None:
        nonlocal images, missing
        if entry.image is None:
            return
        if not entry.image.exists():
            missing += 1
            return
        shown[part] += [TextSegment(f"Image-{images}: "), ImageSegment(open_picture(entry.image)), TextSegment("\n")]
        images += 1

    for entry in question:
        if entry.text is not None:
            shown["question"].append(TextSegment(entry.text + "\n"))
        put("question", entry)
    cut: list[Entry] = []
    for entry in answer:
        used += 1
        if entry.text is not None:
            shown["answer"].append(TextSegment(entry.text + "\n"))
        if images >= JUDGED_IMAGES:
            cut.append(Entry(None, entry.image))
            break
        put("answer", entry)
        if images >= JUDGED_IMAGES:
            break
    cut += answer[used:]
    notes = {
        "missing pictures": missing,
        "cut pictures": sum(entry.image is not None for entry in cut),
        "cut texts": sum(entry.text is not None for entry in cut),
    }
    return View(shown["question"], shown["answer"], images, {name: count for name, count in notes.items() if count})


def official_score(text: str) -> int | None:
    """The first number after `### Score`, rounded as Python does; it may be out of range."""
    score = re.search(r"-?\d+(?:\.\d+)?", text.partition("### Score")[2])
    number = float(score[0]) if score else math.nan
    return round(number) if math.isfinite(number) else None


def official_verdict(answer: Answer) -> Verdict:
    if isinstance(answer, Failure):
        return Verdict(None, answer.kind, answer.reason)
    score = official_score(answer.text)
    if score is None:
        return Verdict(None, "no score", answer.text)
    if not 0 <= score <= HIGHEST:
        return Verdict(None, "out of range", answer.text)
    return Verdict(float(score), "", answer.text)


# ---- the benchmark ----


def export(items: Sequence[Item], answers: Mapping[str, Given], model: str, name: Callable[[Path], str]) -> list[dict]:
    """Records in the scorer's schema, of the items that have an answer. name: what a picture is called there."""

    def entries(values: Iterable[Entry]) -> list[dict[str, str | None]]:
        return [{"text": entry.text, "image": entry.image and name(entry.image)} for entry in values]

    return [
        {
            "id": item.id,
            "question": entries(item.question),
            "answer": entries(answers[item.id].entries),
            "model": model,
            "gt_answer": entries([Entry(item.reference)]),
        }
        for item in items
        if not answers[item.id].failure
    ]


@register("benchmark", "mmie")
class MMIE:
    """Interleaved answers, graded by a judge (MMIE)."""

    name = "mmie"
    records = staticmethod(read)
    export = ("data.json", export)
    needs_judge = True
    highest: float = HIGHEST

    def __init__(self, items: Sequence[Item], config: MMIEConfig):
        self.config = config
        self.title = f"MMIE, {config.mode} mode"
        self.templates: dict[str, Template] = {}
        self.rubrics: Rubrics | None = None
        if config.mode == "official":
            self.rubrics = read_rubrics(Path(config.rubrics))
            items = [replace(item, category=self.rubrics.category_of(item.id)) for item in items]
        else:
            named = {category: config.templates.get(category, f"mmie_{category.lower()}") for category in COUNTS}
            self.templates = {category: judge_template(name, (0, HIGHEST)) for category, name in named.items()}
        self.items = list(items)

    def manifest(self) -> dict[str, Any]:
        if self.rubrics:
            rubrics = {"file": Path(self.config.rubrics).name, "sha256": self.rubrics.sha256}
            return {"mode": "official", "rubrics": rubrics}
        return {"mode": "full", "templates": {name: template.manifest() for name, template in self.templates.items()}}

    def aspects(self, item: Item) -> tuple[str, ...]:
        return (ASPECT,)

    def tasks(self, item: Item, given: Given) -> list[Task]:
        if item.category == UNKNOWN:
            return [Task(ASPECT, Verdict(None, "unknown category", "the id names none of SA, PBL, MSR"))]
        return [self._official(item, given) if self.rubrics else self._full(item, given)]

    def _official(self, item: Item, given: Given) -> Task:
        assert self.rubrics is not None
        prompt = self.rubrics.prompts[item.category]
        if "{gt_answer}" in prompt and not item.meta["has_reference"]:
            raise InputError(f"{item.id}: field `gt_answer` is missing; official mode shows it to the judge")
        view = official_view(item.question, given.entries)
        if view.images > MOST_IMAGES:
            words = f"{view.images} pictures; the official scorer takes {MOST_IMAGES}"
            return Task(ASPECT, Verdict(None, "more than 4 images", words))
        places = {"question": view.question, "answer": view.answer, "gt_answer": [TextSegment(str(item.reference))]}
        template = f"mmie-official@{self.rubrics.sha256[:16]}"
        return Task(ASPECT, Request(fill(prompt, places), template=template), view.notes)

    def _full(self, item: Item, given: Given) -> Task:
        question = spaced(segments_of(item.question))
        if item.category == "MSR" and item.reference is not None:
            question += (TextSegment(f"\n\nThe correct answer is: {item.reference}"),)
        answer = InterleavedDocument(spaced(segments_of(given.entries)))
        asked = questions(self.templates[item.category], Completion(InterleavedDocument(question), answer, given.ended))
        if not asked:
            return Task(ASPECT, Verdict(0.0, "", "the answer is empty"), {"empty answers": 1})
        return Task(ASPECT, asked[0].request)

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        return official_verdict(answer) if self.rubrics else read_verdict(answer, self.templates[item.category])

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Percent: SA, PBL, MSR, and AVG over all items that have a score."""
        groups = {**{name: [] for name in COUNTS}, **by_category(outcomes), "AVG": outcomes}
        scores: dict[str, Any] = {}
        for name, group in groups.items():
            if values := [outcome.score / HIGHEST * 100 for outcome in group if outcome.score is not None]:
                scores[name] = estimate(values)
        return scores

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        scores = self.scores(outcomes)
        columns = (*COUNTS, "AVG")
        row: list[Estimate | None] = [scores.get(name) for name in columns]
        return [Table("Scores, percent", columns, [("this run", row)], PUBLISHED, SOURCE, main="AVG")]

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        total, scored = sum(COUNTS.values()), sum(outcome.score is not None for outcome in outcomes)
        said = []
        if len(self.items) != total:
            said.append(f"{len(self.items):,} items of {total:,}: the published rows are of the whole set.")
        said.append(
            "The judge saw what the official scorer shows, with the official rubrics; with MMIE-Score as the judge the "
            "published rows are comparable."
            if self.rubrics
            else "The judge saw whole answers, with prompts of limner: not the measure of the published rows."
        )
        if missing := len(outcomes) - scored:
            said.append(f"AVG is over the {scored:,} items that have a score; {missing:,} have none and do not count.")
        scores = self.scores(outcomes)
        if set(COUNTS) <= set(scores):
            weighted = weighted_average({name: scores[name]["value"] for name in COUNTS})
            said.append(f"At the benchmark's counts of items (5,005, 11,482, 3,616) AVG is {weighted:.2f}.")
        return said


def weighted_average(scores: Mapping[str, float]) -> float:
    """AVG of the leaderboard: each category weighs as much as the benchmark has items of it."""
    return sum(count * scores[name] for name, count in COUNTS.items()) / sum(COUNTS.values())
