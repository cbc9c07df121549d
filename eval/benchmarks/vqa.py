"""Understanding: questions about pictures whose answers need no judge. POPE, MME, SEED-Bench, and any set as JSONL.

    vqa        {"id", "image": file or list, "question", "answer": text or list, "choices", "category"}, one a line
    pope       a file of github.com/AoiDragon/POPE: {"question_id", "image", "text", "label"}, one a line
    mme        a folder of `TASK.txt`, or one: image TAB question TAB Yes or No, maybe TAB the model's answer
    seedbench  `SEED-Bench.json`: {"questions": [...], "question_type": {name: number}}

Answers of a system: records of `id` or `question_id` and `prediction`, `answer` or `text`, as JSON lines or a list; for
pope in the questions' order where they have no `question_id`; for mme the fourth column. An answer that cannot be read
is wrong, as in the official scripts, and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...configs.errors import InputError, plain_file, reading
from ...configs.registry import register
from ...data.prompts import read_lines
from ...models.chat.requests import Answer
from ...rewards.judges.grading import Verdict
from ..benchmark import Given, Item, Outcome, Table, Task
from ..entries import Entry, inside
from ..figures import Figure, Share, figure_estimate, mean_of
from ..records import Record, answer_of, id_of, names_of, read_records, record_of, text_of, whole_or_records
from ..results import by_category

TITLES = {"vqa": "Visual questions", "pope": "POPE", "mme": "MME", "seedbench": "SEED-Bench"}
ASPECT = "correct"
LETTERS = "ABCDEFGHIJ"
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ANSWERS = ("prediction", "response", "output")
"""What files call the answer of a system, beside the names that are a question's own."""
UNREADABLE = "answers that name none of the possible ones"

Rows = list[tuple[Item, Given | None]]

# ---- readers ----


def read_vqa(path: Path, images: Path | None = None) -> Rows:
    """Items and answers; a record without a correct `answer` to its `question` is an answer alone."""
    rows: Rows = []
    for place, record in read_records(path):
        if "question" not in record or ("answer" not in record and {*ANSWERS} & set(record)):
            rows.append(_answer(record, place, ANSWERS if "question" in record else (*ANSWERS, "answer", "text")))
            continue
        gold, choices = record.get("answer"), record.get("choices", [])
        gold = [str(gold)] if isinstance(gold, str | int | float) else gold
        if not isinstance(gold, list) or not gold or not all(isinstance(text, str) for text in gold):
            raise InputError(f"{place}: field `answer` is missing, or neither a text nor a list of texts")
        if not isinstance(choices, list) or len(choices) > len(LETTERS):
            raise InputError(f"{place}: field `choices` is a list of at most {len(LETTERS)} texts")
        names, text = names_of(record, place, "image"), text_of(record, place, "question")
        meta = {"gold": gold, "choices": [str(choice) for choice in choices]}
        question = _question(names, text, choices, images or path.parent, place)
        item = Item(record["id"], str(record.get("category", "all")), question, "; ".join(gold), meta)
        rows.append((item, _given(record, place, ANSWERS)))
    return rows


def read_pope(path: Path, images: Path | None = None) -> Rows:
    split = next((name for name in ("random", "popular", "adversarial") if name in path.stem), "all")
    rows: Rows = []
    for number, (place, value) in enumerate(read_lines(path), 1):
        record = {"question_id": number, **record_of(value, place)}
        if "label" not in record:  # beside a picture `text` is the question, with none it is what LLaVA's scripts write
            said = ("answer", *ANSWERS, "text") if "image" not in record else ("answer", *ANSWERS)
            rows.append(_answer(record, place, said, split))
            continue
        if record["label"] not in ("yes", "no"):
            raise InputError(f"{place}: field `label` is {record['label']!r:.80}; yes or no")
        text = text_of(record, place, "text" if "text" in record else "question")
        question = _question(names_of(record, place, "image"), text, [], images or path.parent, place)
        identifier, label = id_of(record, place), record["label"]
        item = Item(identifier, split, question, label, {"gold": [label]})
        rows.append((item, _given(record, place, ("answer", *ANSWERS))))
    return _checked(rows, path)


def read_mme(path: Path, images: Path | None = None) -> Rows:
    """images: the folder of the tasks' folders, TASK/NAME or TASK/images/NAME; by default that of the files."""
    rows: Rows = []
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        with reading(file):
            lines = plain_file(file).read_text(encoding="utf-8-sig").splitlines()
        seen: Counter[str] = Counter()
        for number, line in enumerate(lines, 1):
            fields = line.split("\t")
            if not line.strip():
                continue
            if len(fields) not in (3, 4) or fields[2].strip().lower() not in ("yes", "no"):
                raise InputError(f"{file}:{number}: expected image, question, Yes or No, separated by tabs")
            root = (images or file.parent) / file.stem
            folder = root / "images" if (root / "images").is_dir() else root
            picture = inside(folder, fields[0], f"{file}:{number}")
            gold = fields[2].strip().lower()
            seen[fields[0]] += 1
            identifier = f"{file.stem}/{fields[0]}/{seen[fields[0]]}"
            meta = {"gold": [gold], "unit": f"{file.stem}/{fields[0]}"}
            item = Item(identifier, file.stem, (Entry(None, picture), Entry(fields[1])), gold, meta)
            rows.append((item, Given((Entry(fields[3]),)) if len(fields) == 4 else None))
    return _checked(rows, path)


def read_seedbench(path: Path, images: Path | None = None) -> Rows:
    """Questions, or answers: records without choices. The picture of a question is the file `data_id`."""
    whole, records = whole_or_records(path)
    names: dict[str, str] = {}
    if whole is not None and "questions" in whole:
        if not isinstance(whole["questions"], list):
            raise InputError(f"{path}: field `questions` is no list; is it SEED-Bench.json?")
        records = [(f"{path}: question {number}", record) for number, record in enumerate(whole["questions"], 1)]
        types = record_of(whole.get("question_type", {}), f"{path}: field `question_type`")
        names = {str(number): name for name, number in types.items()}
    rows: Rows = []
    for place, value in records:
        record = record_of(value, place)
        if "choice_a" not in record:
            rows.append(_answer(record, place, (*ANSWERS, "answer", "text")))
            continue
        kind = str(record.get("question_type_id", ""))
        choices = [str(record[name]) for name in ("choice_a", "choice_b", "choice_c", "choice_d") if name in record]
        if record.get("answer") not in list(LETTERS[: len(choices)]):
            raise InputError(f"{place}: field `answer` names none of its {len(choices)} choices")
        if "data_id" not in record:
            raise InputError(f"{place}: field `data_id`, the file of the picture, is missing")
        pictures, text = names_of(record, place, "data_id"), text_of(record, place, "question")
        question = _question(pictures, text, choices, images or path.parent, place)
        meta = {"gold": [record["answer"]], "choices": choices}
        identifier = id_of(record, place)
        item = Item(identifier, names.get(kind, kind or "all"), question, record["answer"], meta)
        rows.append((item, _given(record, place, ANSWERS)))
    return _checked(rows, path)


def _checked(rows: Rows, path: Path) -> Rows:
    if not rows:
        raise InputError(f"{path}: holds no records")
    identifier, count = Counter(item.id for item, _ in rows).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: {count} records are called {identifier!r}")
    return rows


def _question(names: Sequence[str], text: str, choices: Sequence[Any], root: Path, place: str) -> tuple[Entry, ...]:
    """The pictures, then the question with its lettered choices."""
    pictures = tuple(Entry(None, inside(root, name, place)) for name in names)
    lines = [text, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))]
    return (*pictures, Entry("\n".join(lines)))


def _answer(record: Record, place: str, names: Sequence[str], category: str = "all") -> tuple[Item, Given | None]:
    """Of a record that is an answer alone. Raises InputError where none of the fields is there."""
    identifier = id_of(record, place)
    if not set(names) & set(record):
        raise InputError(f"{place}: no field `{'`, `'.join(names)}`; found {', '.join(map(repr, record))}")
    asked = next((record[name] for name in ("question", "prompt") if isinstance(record.get(name), str)), "")
    return Item(identifier, category, (Entry(asked),) if asked else ()), _given(record, place, names)


def _given(record: Record, place: str, names: Sequence[str]) -> Given | None:
    said = answer_of(record, place, names)
    return None if said is None else Given((Entry(said),))


# ---- what an answer says ----


def pope_answer(text: str) -> str:
    """The official rule: `no` where the first sentence has the word No, no or not, else `yes`, whatever it says."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_answer(text: str) -> str | None:
    """The official rule: what the first four characters hold, in small letters; None is wrong."""
    beginning = text.lower()[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else None


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer begins with or announces, else that of the choice it repeats; None for neither."""
    letters = LETTERS[: len(choices)]
    bare = text.strip()
    match = re.match(rf"\(?([{letters}])(?:[).:,]|\s*$)", bare)
    match = match or re.search(rf"(?i:\banswer(?: is)?\s*+:?+\s*+)\(?([{letters}])\b", bare)
    if match:
        return match[1]
    same = [letter for letter, choice in zip(letters, choices, strict=True) if normalised(choice) == normalised(bare)]
    return same[0] if len(same) == 1 else None


def normalised(text: str) -> str:
    """Small letters, no articles, no punctuation, single spaces."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def verdict(kind: str, item: Item, text: str) -> tuple[bool, bool]:
    """(right, readable)"""
    gold = item.meta["gold"]
    if kind == "pope":
        return pope_answer(text) == gold[0], True
    if kind == "mme":
        said = mme_answer(text)
        return said == gold[0], said is not None
    if choices := item.meta["choices"]:
        letter = chosen_letter(text, choices)
        wanted = {answer if answer in LETTERS[: len(choices)] else chosen_letter(answer, choices) for answer in gold}
        return letter is not None and letter in wanted, letter is not None
    return normalised(text) in map(normalised, gold), bool(normalised(text))


# ---- figures, all in percent but MME's ----


def pope_figures(scored: Mapping[str, tuple[Outcome, float]]) -> dict[str, Figure]:
    """Accuracy, precision, recall, F1 and the share of yes; `yes` is what is to be found."""
    label = {unit: outcome.item.meta["gold"][0] == "yes" for unit, (outcome, _) in scored.items()}
    said = {unit: label[unit] == bool(score) for unit, (_, score) in scored.items()}
    hit = {unit: float(label[unit] and said[unit]) for unit in scored}

    def share(top: Mapping[str, float], bottom: Mapping[str, float]) -> Figure:
        return [Share({unit: (top[unit], bottom[unit]) for unit in scored}, 100)]

    return {
        "accuracy": mean_of({unit: score for unit, (_, score) in scored.items()}, 100),
        "precision": share(hit, {unit: float(value) for unit, value in said.items()}),
        "recall": share(hit, {unit: float(value) for unit, value in label.items()}),
        "f1": share({u: 2 * hit[u] for u in scored}, {u: float(said[u]) + float(label[u]) for u in scored}),
        "yes_ratio": mean_of({unit: float(value) for unit, value in said.items()}, 100),
    }


def mme_figures(scored: Mapping[str, tuple[Outcome, float]]) -> dict[str, Figure]:
    """accuracy + accuracy of pictures with all questions right, 0 to 200 a task; their sums for the tasks at hand."""
    tasks: dict[str, dict[str, list[float]]] = {}
    for outcome, score in scored.values():
        tasks.setdefault(outcome.item.category, {}).setdefault(outcome.item.meta["unit"], []).append(score)
    each: dict[str, list[Share]] = {}
    for task, pictures in tasks.items():
        single = Share({unit: (sum(scores), len(scores)) for unit, scores in pictures.items()}, 100)
        both = Share({unit: (float(all(scores)), 1) for unit, scores in pictures.items()}, 100)
        each[task] = [single, both]
    sums: dict[str, Figure] = {}
    for name, group in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if shares := [share for task in group for share in each.get(task, [])]:
            sums[name] = shares
    return {**sums, **{name: list(each[name]) for name in each}}


def accuracy_figures(scored: Mapping[str, tuple[Outcome, float]]) -> dict[str, Figure]:
    """Accuracy over all questions, then of each category."""
    groups: dict[str, dict[str, float]] = {"accuracy": {unit: score for unit, (_, score) in scored.items()}}
    for unit, (outcome, score) in scored.items():
        groups.setdefault(f"accuracy: {outcome.item.category}", {})[unit] = score
    return {name: mean_of(values, 100) for name, values in groups.items() if values}


FIGURES = {"vqa": accuracy_figures, "pope": pope_figures, "mme": mme_figures, "seedbench": accuracy_figures}


class VisualQuestions:
    """Questions about pictures, answered right or wrong by rule. Of one form of questions each, see below."""

    name: str
    needs_judge = False
    highest: float = 1

    def __init__(self, items: Sequence[Item]):
        if unknown := [item.id for item in items if "gold" not in item.meta]:
            unanswered = f"{self.name}: no correct answer to {unknown[0]!r} is known"
            raise InputError(f"{unanswered}; name the questions with --data")
        self.title, self.items = TITLES[self.name], list(items)

    def manifest(self) -> dict[str, Any]:
        return {"rule": f"eval.vqa {self.name}"}

    def aspects(self, item: Item) -> tuple[str, ...]:
        return (ASPECT,)

    def tasks(self, item: Item, given: Given) -> list[Task]:
        text = " ".join(entry.text for entry in given.entries if entry.text is not None)
        right, readable = verdict(self.name, item, text)
        return [Task(ASPECT, Verdict(float(right)), {} if readable else {UNREADABLE: 1})]

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        raise RuntimeError("the rules ask nobody")

    def figures(self, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
        scored = {outcome.item.id: (outcome, outcome.score) for outcome in outcomes if outcome.score is not None}
        return FIGURES[self.name](scored)

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        estimates = {name: figure_estimate(figure) for name, figure in self.figures(outcomes).items()}
        return {name: value for name, value in estimates.items() if value}

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        scores = self.scores(outcomes)
        if self.name == "pope":
            names = tuple(pope_figures({}))
            row = [("this run", [scores.get(name) for name in names])]
            return [Table("Scores, percent", names, row, main="accuracy")]
        title = "Accuracy + accuracy of whole pictures" if self.name == "mme" else "Accuracy, percent"
        return [Table(title, ("this run",), [(name, [value]) for name, value in scores.items()])]

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        said = []
        if missing := sum(outcome.score is None for outcome in outcomes):
            said.append(
                f"{missing:,} questions have no answer and do not count; the official scripts know no such case."
            )
        if self.name == "mme":
            groups = by_category(outcomes)
            absent = [task for task in (*PERCEPTION, *COGNITION) if task not in groups]
            if absent:
                said.append(f"Not among the questions: {', '.join(absent)}; the sums are over the others.")
            if other := [task for task in groups if task not in (*PERCEPTION, *COGNITION)]:
                said.append(f"Of no group, and in no sum: {', '.join(other)}.")
        if self.name == "seedbench":
            said.append("Letters are read from what the model writes; the official script ranks choices by likelihood.")
        return said


@register("benchmark", "vqa")
class VQA(VisualQuestions):
    """Questions about pictures of your own, as JSON lines."""

    name = "vqa"
    records = staticmethod(read_vqa)


@register("benchmark", "pope")
class POPE(VisualQuestions):
    """Is an object in the picture? (POPE)"""

    name = "pope"
    records = staticmethod(read_pope)


@register("benchmark", "mme")
class MME(VisualQuestions):
    """Yes/no questions of perception and cognition (MME)."""

    name = "mme"
    records = staticmethod(read_mme)


@register("benchmark", "seedbench")
class SEEDBench(VisualQuestions):
    """Questions with four choices (SEED-Bench)."""

    name = "seedbench"
    records = staticmethod(read_seedbench)
