"""FTII-Bench (arXiv 2410.12564): news articles, 318 Chinese and 307 English; which picture belongs after a paragraph?

The form of the released files is not known to us. This one is ours, one object a line; convert what you have to it:

    {"id": "en-7", "paragraphs": ["...", "..."], "images": ["a.jpg", "b.jpg"], "gold": [null, "b.jpg"]}  flow insertion
    {"id": "en-8", "paragraphs": ["..."], "images": ["a.jpg", "b.jpg", "c.jpg"], "gold": "c.jpg"}        single choice

maybe with `language`. A gold picture is a name or a number from 1; null or 0 is none. In flow insertion every paragraph
is asked about on its own, with those before it. Answers: `{"id": "en-7", "prediction": [0, 2]}`, or of one paragraph
`{"id": "en-7/2", "prediction": "2"}`. An answer without a readable number is wrong, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...configs.errors import InputError
from ...configs.registry import register
from ...models.chat.requests import Answer
from ...rewards.judges.grading import Verdict
from ..benchmark import Given, Item, Outcome, Table, Task
from ..entries import Entry, inside
from ..figures import Figure, Share, figure_estimate
from ..records import read_records

FLOW, CHOICE = "flow insertion", "single choice"
CORRECT, INSERTED = "correct", "inserted"
ARTICLES = 625
NUMBER = re.compile(r"(?<![\d.])\d{1,3}(?!\d|\.\d)")
UNREADABLE = "answers without one number of a picture"

Rows = list[tuple[Item, Given | None]]


def read(path: Path, images: Path | None = None) -> Rows:
    """Items, one a paragraph of flow insertion, and answers. images: the folder of the pictures, by default the file's.

    Raises InputError naming record and field.
    """
    rows: Rows = []
    for place, record in read_records(path):
        if "paragraphs" in record:
            rows += _questions(record, images or path.parent, place)
        elif "prediction" not in record:
            raise InputError(f"{place}: neither `paragraphs` nor `prediction`; found {', '.join(map(repr, record))}")
        else:
            rows += _answers(record, place)
    return rows


def _answers(record: Mapping[str, Any], place: str) -> Rows:
    said = record["prediction"]
    if isinstance(said, list):
        return [(Item(f"{record['id']}/{n}", "", ()), _given(one, place)) for n, one in enumerate(said, 1)]
    return [(Item(record["id"], "", ()), _given(said, place))]


def _given(said: Any, place: str) -> Given:
    if said is not None and type(said) not in (str, int, float):
        raise InputError(f"{place}: field `prediction`: {said!r:.80} is neither a text, a number nor null")
    return Given((Entry("0" if said is None else str(said)),))


def _questions(record: Mapping[str, Any], root: Path, place: str) -> Rows:
    paragraphs, names, gold = (record.get(name) for name in ("paragraphs", "images", "gold"))
    for field, value in (("paragraphs", paragraphs), ("images", names)):
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            raise InputError(f"{place}: field `{field}` is no list of texts")
    assert isinstance(paragraphs, list) and isinstance(names, list)
    files = [inside(root, name, f"{place}: field `images`") for name in names]
    flow = isinstance(gold, list)
    wanted = [_number(one, names, place) for one in (gold if flow else [gold])]
    if flow and len(wanted) != len(paragraphs):
        raise InputError(f"{place}: field `gold` has {len(wanted)} entries for {len(paragraphs)} paragraphs")
    if not flow and not wanted[0]:
        raise InputError(f"{place}: field `gold` names no picture")
    kind = FLOW if flow else CHOICE
    category = f"{kind}, {record['language']}" if isinstance(record.get("language"), str) else kind
    said = record.get("prediction")
    answers = dict(enumerate(said if isinstance(said, list) else [said], 1)) if "prediction" in record else {}
    rows: Rows = []
    for number, right in enumerate(wanted, 1):
        read_so_far = paragraphs[:number] if flow else paragraphs
        meta = {"gold": right, "images": len(files), "kind": kind, "article": record["id"]}
        identifier = f"{record['id']}/{number}" if flow else record["id"]
        item = Item(identifier, category, _question(read_so_far, files, flow), str(right), meta)
        rows.append((item, _given(answers[number], place) if number in answers else None))
    return rows


def _number(gold: Any, names: Sequence[str], place: str) -> int:
    """From 1, 0 for none."""
    if gold is None:
        return 0
    if isinstance(gold, str) and gold in names:
        return names.index(gold) + 1
    if type(gold) is int and 0 <= gold <= len(names):
        return gold
    raise InputError(f"{place}: field `gold`: {gold!r} is neither one of its {len(names)} images nor null")


def _question(paragraphs: Sequence[str], files: Sequence[Path], flow: bool) -> tuple[Entry, ...]:
    pictures = [Entry(f"\nPicture {number}:", file) for number, file in enumerate(files, 1)]
    none = ", or 0 where none of them does" if flow else ""
    asked = f"\nWhich picture belongs after the last paragraph? Answer with its number{none}."
    return (Entry("\n\n".join(paragraphs)), *pictures, Entry(asked))


def chosen(text: str, images: int) -> int | None:
    """The one number from 0 to `images` that an answer names, said twice or not; None without one."""
    found = {int(number) for number in NUMBER.findall(text)}
    number = found.pop() if len(found) == 1 else None
    return number if number is not None and number <= images else None


@register("benchmark", "ftii")
class FTII:
    """Which picture belongs into a news text (FTII-Bench)."""

    name = "ftii"
    records = staticmethod(read)
    title = "FTII-Bench"
    needs_judge = False
    highest: float = 1

    def __init__(self, items: Sequence[Item]):
        if unknown := [item.id for item in items if "gold" not in item.meta]:
            raise InputError(f"ftii: nothing is known of {unknown[0]!r} but an answer; name the questions with --data")
        self.items = list(items)

    def manifest(self) -> dict[str, Any]:
        return {"rule": "the one number of a picture that an answer names"}

    def aspects(self, item: Item) -> tuple[str, ...]:
        return (CORRECT, INSERTED) if item.meta["kind"] == FLOW else (CORRECT,)

    def tasks(self, item: Item, given: Given) -> list[Task]:
        number = chosen(" ".join(entry.text for entry in given.entries if entry.text), item.meta["images"])
        scores = {CORRECT: number == item.meta["gold"], INSERTED: bool(number)}
        notes = {UNREADABLE: 1} if number is None else {}
        return [
            Task(aspect, Verdict(float(scores[aspect])), notes if aspect == CORRECT else {})
            for aspect in self.aspects(item)
        ]

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        raise RuntimeError("the rule asks nobody")

    def figures(self, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
        """In percent, over articles: accuracy of each kind, of each kind and language, and F1 of the pictures inserted.

        F1 counts a picture as found where it stands after its own paragraph.
        """
        right = {o.item.id: o for o in outcomes if o.aspect == CORRECT and o.score is not None}
        groups: dict[str, dict[str, tuple[float, float]]] = {}
        for outcome in right.values():
            for name in dict.fromkeys((outcome.item.meta["kind"], outcome.item.category)):
                _add(groups.setdefault(f"accuracy, {name}", {}), outcome, float(outcome.score or 0), 1.0)
        found: dict[str, Figure] = {name: [Share(units, 100)] for name, units in groups.items()}
        pictures: dict[str, tuple[float, float]] = {}
        for outcome in outcomes:
            if outcome.aspect == INSERTED and outcome.item.id in right:
                wanted = bool(outcome.item.meta["gold"])
                hit = bool(right[outcome.item.id].score) and wanted
                _add(pictures, outcome, 2.0 * hit, float(outcome.score or 0) + wanted)
        return {**found, f"F1, {FLOW}": [Share(pictures, 100)]} if pictures else found

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        estimates = {name: figure_estimate(figure) for name, figure in self.figures(outcomes).items()}
        return {name: value for name, value in estimates.items() if value}

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        return [Table("Percent", ("this run",), [(name, [value]) for name, value in self.scores(outcomes).items()])]

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        articles = len({item.meta["article"] for item in self.items})
        said = [
            f"{articles:,} records; the benchmark is made of {ARTICLES} articles. Its released form and rules are not "
            "known to us: questions, prompt and figures are ours, and no published row stands beside them."
        ]
        if missing := sum(o.aspect == CORRECT and o.score is None for o in outcomes):
            said.append(f"{missing:,} questions have no answer and do not count.")
        return said


def _add(units: dict[str, tuple[float, float]], outcome: Outcome, top: float, bottom: float) -> None:
    article = outcome.item.meta["article"]
    former = units.get(article, (0.0, 0.0))
    units[article] = former[0] + top, former[1] + bottom
