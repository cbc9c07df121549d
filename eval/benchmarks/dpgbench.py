"""DPG-Bench (arXiv 2403.05135): 1,065 long prompts, each taken apart into propositions; which does a picture show?

Rules are those of `compute_dpg_bench.py` in github.com/TencentQQGYLab/ELLA. Each proposition is a question that is
answered with yes or no for each picture alone. In a picture's score, the share of yes, a yes counts as no where a
proposition that it depends on has failed; the overall figure is the mean over a prompt's pictures, then over prompts.
Categories count the answers as they were given. What answers is one of two:

- `judge`: a vision-language model, with the reward's prompt for questions about a picture;
- `replies`: the file of details that the official script writes, with what mPLUG said.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image

from ...configs.bounds import Range
from ...configs.errors import InputError, plain_file, reading
from ...configs.registry import register
from ...configs.schema import check_ranges
from ...models.chat.requests import Answer, Failure, Request
from ...models.documents.document import ImageSegment, TextSegment
from ...rewards.judges.grading import Verdict, fill
from ...rewards.judges.questions import load_template, read_answer
from ..benchmark import Given, Item, Outcome, Table, Task
from ..entries import Entry, decoded, leads_out, segments_of
from ..figures import Figure, Share, figure_estimate
from ..statistics import Estimate

PROMPTS = 1065
SAMPLES = 4
"""Pictures of a prompt: the quarters of a 2 x 2 grid, row by row."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
"""That are read of `dpg_bench.csv`."""
GROUPS = ("global", "entity", "attribute", "relation", "other")
_DETAIL = re.compile(r"(?>(.+?), \((\d+), (\d+), \d+, \d+\), )(.*), ([^,]*)")
"""Path, left and upper edge of the quarter, question, answer."""

SOURCE = "independent reproductions by TorchUMM at 083395e, with mPLUG"
PUBLISHED = (
    ("Bagel 14B", (84.11,)),
    ("Janus-Pro 7B", (83.73,)),
    ("Show-o2 7B", (82.81,)),
    ("Emu3 8B", (80.31,)),
    ("Show-o 1.3B", (78.74,)),
    ("Janus 1.3B", (73.53,)),
    ("MMaDA 8B", (64.55,)),
)
"""Overall."""


@dataclass
class DPGBenchConfig:
    by: Literal["judge", "replies"] = "judge"
    """What answers the questions."""
    replies: str = ""
    """`dpg-bench_..._detail.txt` of the official script: what mPLUG said."""
    mode: Literal["full", "official"] = "full"
    """All propositions and pictures, or what the official script takes: not the file's first proposition, and of each
    prompt the last picture alone in the categories."""
    samples: Annotated[int, Range(1, SAMPLES)] = SAMPLES
    """Pictures of each prompt, 1 to 4. A file of `answers` holds four in a grid; with 1 it is the picture itself."""
    template: str = "pictures.v1"
    """Prompts of the reward `questions`; `ask` is the one that counts here."""

    def __post_init__(self) -> None:
        if (self.by == "replies") != bool(self.replies):
            raise InputError("by, replies: by replies needs their file, and nothing else reads it")
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class Proposition:
    number: int
    """From 1, within its prompt."""
    parents: tuple[int, ...]
    """Numbers of the propositions that it depends on."""
    category: str
    """`entity - whole`."""
    question: str

    @property
    def aspect(self) -> str:
        return f"{self.number}. {self.question}"

    @property
    def group(self) -> str:
        return self.category.partition("-")[0].strip()


# ---- reading ----


def read(path: Path, images: Path | None = None) -> list[tuple[Item, Given | None]]:
    """Prompts of `dpg_bench.csv`, or of a folder the pictures, NAME.png for the prompt NAME: four items each, `NAME/0`.

    Raises InputError naming the line, or a name that two pictures have.
    """
    if not path.is_dir():
        return [
            (Item(f"{name}/{sample}", _category(sample), (Entry(text),), meta={"propositions": propositions}), None)
            for name, (text, propositions) in _prompts(path).items()
            for sample in range(SAMPLES)
        ]
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        name = file.name.partition(".")[0]  # the official script's rule
        if file.suffix.lower() not in SUFFIXES:
            continue
        if name in files:
            raise InputError(f"{path}: {files[name].name} and {file.name} are both of the prompt {name!r}")
        files[name] = file
    if not files:
        raise InputError(f"{path}: no pictures; expected one a prompt, named like it")
    return [
        (Item(f"{name}/{sample}", _category(sample), ()), _given(path, file))
        for name, file in files.items()
        for sample in range(SAMPLES)
    ]


def _given(folder: Path, file: Path) -> Given:
    if fault := leads_out(folder, file):
        return Given(failure="unreadable image", reason=fault)
    return Given((Entry(None, file),))


def _category(sample: int) -> str:
    """`limit` takes the first items of each category: so it takes prompts, with all of their pictures."""
    return f"picture {sample + 1}"


def _prompts(path: Path) -> dict[str, tuple[str, tuple[Proposition, ...]]]:
    """Text and propositions by name, in the file's order."""
    prompts: dict[str, tuple[str, tuple[Proposition, ...]]] = {}
    with reading(path), plain_file(path).open(encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file)
        if lacking := [name for name in COLUMNS if name not in (lines.fieldnames or ())]:
            raise InputError(f"{path}: no column `{lacking[0]}`; is it dpg_bench.csv?")
        for line in lines:
            place = f"{path}: line {lines.line_num}"
            if any(line[name] is None for name in COLUMNS):
                raise InputError(f"{place}: ends before its last column")
            try:
                number = int(line["proposition_id"])
                parents = tuple(int(part) for part in line["dependency"].split(",") if int(part))
            except ValueError:
                raise InputError(f"{place}: `proposition_id` and `dependency` are numbers, 0 for none") from None
            category = line["tuple"].partition("(")[0].strip()
            text, earlier = prompts.get(line["item_id"], (line["text"], ()))
            if any(number == other.number for other in earlier):
                raise InputError(f"{place}: {line['item_id']} has a proposition {number} already")
            own = Proposition(number, parents, category, line["question_natural_language"].strip())
            prompts[line["item_id"]] = text, (*earlier, own)
    if not prompts:
        raise InputError(f"{path}: holds no propositions")
    return prompts


def read_replies(path: Path) -> dict[tuple[str, str], bool]:
    """Was it yes, by item id and question. Raises InputError naming the line."""
    with reading(path):
        lines = plain_file(path).read_text(encoding="utf-8").splitlines()
    replies = {}
    for number, line in enumerate(lines, 1):
        match = _DETAIL.fullmatch(line)
        if match is None:
            raise InputError(f"{path}:{number}: expected picture, (quarter), question, answer; is it ..._detail.txt?")
        file, left, top, question, answer = match.groups()
        name = file.replace("\\", "/").rpartition("/")[2].partition(".")[0]
        replies[f"{name}/{(left != '0') + 2 * (top != '0')}", question.strip()] = answer == "yes"
    return replies


# ---- the rules ----


def holding(propositions: Sequence[Proposition], answers: Mapping[int, bool | None]) -> list[bool | None]:
    """Does each proposition hold: is the answer to it yes, and do those hold that it depends on?

    In the file's order, so a failed parent fails its children's children too, where it stands before them. None where
    a missing answer leaves it open.
    """
    holds = dict(answers)
    for one in propositions:
        needed = [holds[one.number], *(holds[parent] for parent in one.parents)]
        holds[one.number] = False if False in needed else None if None in needed else True
    return [holds[one.number] for one in propositions]


def dangling(propositions: Sequence[Proposition]) -> list[int]:
    """Numbers of the propositions with a parent that is not among them: the official script drops such a prompt."""
    numbers = {one.number for one in propositions}
    return [one.number for one in propositions if not numbers.issuperset(one.parents)]


def quarter(picture: Image.Image, number: int) -> Image.Image:
    """Of a 2 x 2 grid, row by row."""
    width, height = picture.width // 2, picture.height // 2
    left, top = number % 2 * width, number // 2 * height
    return picture.crop((left, top, left + width, top + height))


# ---- the benchmark ----


@register("benchmark", "dpgbench")
class DPGBench:
    """Pictures of dense prompts, asked about by yes/no questions (DPG-Bench).

    answers: where they were read from; those files hold four pictures each, not single ones.
    """

    name = "dpgbench"
    records = staticmethod(read)
    highest: float = 1

    def __init__(self, items: Sequence[Item], config: DPGBenchConfig, answers: Path | None = None):
        if unknown := [item.id for item in items if "propositions" not in item.meta]:
            raise InputError(f"dpgbench: what to ask about {unknown[0]!r} is not known; name dpg_bench.csv with --data")
        self.config, self.grids = config, answers is not None and config.samples > 1
        self.items = [item for item in items if _sample(item) < config.samples]
        if config.mode == "official" and items:
            self.items = [_without_first(item) if _name(item) == _name(items[0]) else item for item in self.items]
        self.title = f"DPG-Bench, {config.mode} mode, by {config.by}"
        self.needs_judge = config.by == "judge"
        self.template = load_template(config.template)
        self.replies: dict[tuple[str, str], bool] = {}
        if config.replies:
            self.replies = read_replies(Path(config.replies))
            self._sha256 = hashlib.sha256(plain_file(Path(config.replies)).read_bytes()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        settings = {"by": self.config.by, "mode": self.config.mode, "samples": self.config.samples}
        if self.needs_judge:
            return {**settings, "template": self.template.identity}
        return {**settings, "replies": {"sha256": self._sha256, "replies": len(self.replies)}}

    def aspects(self, item: Item) -> tuple[str, ...]:
        return tuple(one.aspect for one in _propositions(item))

    def tasks(self, item: Item, given: Given) -> list[Task]:
        """The first picture of an answer counts; without one nothing of the prompt is shown."""
        propositions = _propositions(item)
        if strange := dangling(propositions):
            reason = f"proposition {strange[0]} depends on one that is not there"
            return [Task(one.aspect, Verdict(None, "unknown parent", reason)) for one in propositions]
        if not self.needs_judge:
            return [Task(one.aspect, self._reply(item, one)) for one in propositions]
        pictures = [s for s in decoded(segments_of(given.entries)) if isinstance(s, ImageSegment)]
        if not pictures:
            nothing = Verdict(0.0, "", "no picture")
            return [Task(one.aspect, nothing, {"questions without a picture": 1}) for one in propositions]
        picture = pictures[0]
        if self.grids:
            picture = replace(picture, image=quarter(picture.pixels(), _sample(item)))
        return [Task(one.aspect, self._request(one, picture)) for one in propositions]

    def _request(self, one: Proposition, picture: ImageSegment) -> Request:
        places = {"question": [TextSegment(one.question)], "image": [picture]}
        return Request(fill(self.template.ask, places), template=self.template.identity)

    def _reply(self, item: Item, one: Proposition) -> Verdict:
        reply = self.replies.get((item.id, one.question))
        if reply is None:
            return Verdict(None, "no reply", f"{self.config.replies} has none to it about {item.id}")
        return Verdict(float(reply), "", "yes" if reply else "not yes")

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        seen, words = read_answer(answer), answer.reason if isinstance(answer, Failure) else answer.text
        return Verdict(float(seen), "", words) if isinstance(seen, bool) else Verdict(None, seen, words)

    def figures(self, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
        """Percent: overall over prompts, then the yes among the answers of each group and category."""
        answers: dict[str, dict[int, bool | None]] = {}
        items = {outcome.item.id: outcome.item for outcome in outcomes}
        for outcome in outcomes:
            number = int(outcome.aspect.partition(".")[0])
            said = None if outcome.score is None else bool(outcome.score)
            answers.setdefault(outcome.item.id, {})[number] = said
        pictures: dict[str, list[float]] = {}
        groups: dict[str, dict[str, tuple[float, float]]] = {}
        for identifier, item in items.items():
            propositions, found = _propositions(item), answers[identifier]
            known = [] if dangling(propositions) else [h for h in holding(propositions, found) if h is not None]
            if known:
                pictures.setdefault(_name(item), []).append(sum(known) / len(known))
            if self.config.mode == "full" or _sample(item) == self.config.samples - 1:
                _add(groups, _name(item), propositions, found)
        overall = {name: (sum(scores) / len(scores), 1.0) for name, scores in pictures.items()}
        ordered = [*(name for name in GROUPS if name in groups), *sorted(groups.keys() - set(GROUPS))]
        return {"overall": [Share(overall, 100)], **{name: [Share(groups[name], 100)] for name in ordered}}

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        estimates = {name: figure_estimate(figure) for name, figure in self.figures(outcomes).items()}
        return {name: value for name, value in estimates.items() if value}

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        scores = self.scores(outcomes)
        row: list[Estimate | None] = [scores.get("overall")]
        groups = tuple(name for name in GROUPS if name in scores)
        others = [(name, [scores[name]]) for name in scores if name not in ("overall", *GROUPS)]
        return [
            Table("Overall, percent", ("overall",), [("this run", row)], PUBLISHED, SOURCE),
            Table("Answers that are yes, percent", groups, [("this run", [scores[name] for name in groups])]),
            Table("Answers that are yes by category, percent", ("this run",), others),
        ]

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        prompts = len({_name(item) for item in self.items})
        said = []
        if prompts != PROMPTS:
            said.append(f"{prompts:,} prompts of {PROMPTS:,}: the published rows are of the whole set.")
        if self.needs_judge:
            said.append("A vision-language model was asked instead of mPLUG: not the published measure.")
        said.append("Overall counts a yes as no where what it depends on has failed; groups and categories do not.")
        if missing := sum(outcome.score is None for outcome in outcomes):
            said.append(f"{missing:,} questions have no answer and do not count, nor does what their answers decide.")
        return said


def _propositions(item: Item) -> tuple[Proposition, ...]:
    return item.meta["propositions"]


def _name(item: Item) -> str:
    return item.id.rpartition("/")[0]


def _sample(item: Item) -> int:
    return int(item.id.rpartition("/")[2])


def _add(
    groups: dict[str, dict[str, tuple[float, float]]],
    name: str,
    propositions: Sequence[Proposition],
    answers: Mapping[int, bool | None],
) -> None:
    """Counts a picture's yes and answers under the group and the category of each, by prompt."""
    for one in propositions:
        if (said := answers[one.number]) is not None:
            for group in {one.group, one.category}:
                yes, count = groups.setdefault(group, {}).get(name, (0.0, 0.0))
                groups[group][name] = yes + said, count + 1


def _without_first(item: Item) -> Item:
    """The official script skips a line after pandas has taken the header."""
    return replace(item, meta={"propositions": _propositions(item)[1:]})
