"""MRAMG-Bench (arXiv 2502.04176): questions whose answer is a text with pictures of the documents that hold it.

Six metrics by rule, of the pictures (precision, recall, F1, order) and of the text (ROUGE-L, BERTScore), and four by a
judge (`mramg_judge`), in percent. Answers come from a strategy of `limner answer` or from a file (`mramg_answers`).

Beside the figures of each group of questions stands the share of those whose candidates are all gold, where there is
nothing to choose; and under them three baselines that look at nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ....configs.bounds import NoneOrMore, Seed, Share
from ....configs.errors import InputError
from ....configs.registry import register
from ....configs.schema import check_ranges
from ....data.sources.mramg import DOMAINS, PIC, Gallery, read_questions
from ....data.sources.report import Problem, Refused, Report
from ....models.chat.requests import Answer
from ....models.documents.document import ImageSegment
from ....rewards.encoders.pretrained import Encoder
from ....rewards.encoders.text import BERTSCORE, BertScore, RougeL, TextEncoder
from ....rewards.judges.grading import Verdict
from ....rewards.rules.insertion import OrderingCosts, ordering_score, selection
from ...benchmark import Given, Item, Outcome, Table, Task
from ...entries import Entry, PictureFault, decoded, segments_of, spaced
from ...folder import Journal
from ...records import read_records
from .answers import Answering, Placed, Writer, entries_of_answer, own_answers, read_answer
from .judge import JUDGED, Judgements
from .table import BASELINES, CHOICE, PLACED, RECALLS, SIZES, WRITTEN, groups, scores, tables

MOST_LISTED = 20
"""Defects that are listed one by one; `limner index` lists those of the documents."""
NO_PICTURE = "no such picture"
"""A file that is not there."""


@dataclass
class MRAMGConfig(Answering):
    subsets: list[str] = field(default_factory=list)
    """Some of wit, wiki, web, arxiv, recipe, manual; by default all that are there."""
    judge: bool = False
    """Have the judge give its four metrics, a request each."""
    first_tag: bool = False
    """Of a reply the first score counts, as in the evaluator that is available, instead of the mean of all."""
    templates: dict[str, str] = field(default_factory=dict)
    """Judge prompts of your own, by metric: `{position: my/position.yaml}`."""
    bertscore: str = ""
    """Encoder of BERTScore, a folder or ORG/NAME; without one there is no BERTScore."""
    bertscore_layer: NoneOrMore = BERTSCORE.layer
    """The layer that is compared; 17 is meant for FacebookAI/roberta-large."""
    costs: OrderingCosts = field(default_factory=OrderingCosts)
    """Of the ordering score; the paper does not state its own."""
    seed: Seed = 0
    """Of the random baseline."""
    min_coverage: Share = 1.0
    """Share of each subset's questions that a file of answers must answer, at least."""

    def __post_init__(self) -> None:
        Answering.__post_init__(self)
        if unknown := [name for name in self.subsets if name not in DOMAINS]:
            raise InputError(f"subsets: {unknown[0]!r} is none of {', '.join(DOMAINS)}")
        if unknown := [name for name in self.templates if name not in JUDGED]:
            raise InputError(f"templates: {unknown[0]!r} is none of {', '.join(JUDGED)}")
        check_ranges(self.costs, "costs")


def read(path: Path, images: Path | None = None) -> list[tuple[Item, Given | None]]:
    """Questions of the benchmark's folder; or answers of a file, each to an item of which it knows the id alone."""
    if path.is_dir():
        return [
            (
                Item(
                    question.id,
                    question.subset,
                    (Entry(question.question),),
                    question.ground_truth,
                    {"gold": list(question.images), "provenance": list(question.provenance)},
                ),
                None,
            )
            for question in read_questions(path)
        ]
    rows: list[tuple[Item, Given | None]] = []
    for place, record in read_records(path):
        subset = record.get("subset")
        if isinstance(subset, str) and subset in DOMAINS:
            record = {**record, "id": f"{subset}/{record['id']}"}
        rows.append((Item(record["id"], "", ()), read_answer(record, place)))
    return rows


# ---- pure ----


def placed_scores(gold: Sequence[str], images: Sequence[str], costs: OrderingCosts) -> dict[str, float]:
    """Of `PLACED`, in percent."""
    chosen = selection(gold, images)
    scores = (chosen.precision, chosen.recall, chosen.f1, ordering_score(gold, images, costs))
    return {name: 100 * score for name, score in zip(PLACED, scores, strict=True)}


def baseline(name: str, candidates: Sequence[str], seed: str) -> list[str]:
    """What a baseline inserts: nothing, each candidate in the order offered, or each with probability 1/2, shuffled."""
    if name == "insert nothing":
        return []
    once = list(dict.fromkeys(candidates))
    if name == "insert all":
        return once
    rng = random.Random(seed)
    drawn = [key for key in once if rng.random() < 0.5]
    rng.shuffle(drawn)
    return drawn


# ---- the benchmark ----


@register("benchmark", "mramg")
class MRAMG:
    """Answers with pictures of the documents that hold them (MRAMG-Bench).

    data: the benchmark's folder. answers: the file that was read; without one a strategy writes them.
    """

    name = "mramg"
    records = staticmethod(read)
    takes_model = False
    title = "MRAMG-Bench"
    highest: float = 100

    def __init__(self, items: Sequence[Item], config: MRAMGConfig, data: Path, answers: Path | None = None):
        self.config, self.folder = config, data
        self.writes, self.label = answers is None, answers.name if answers else config.strategy
        self.items = [item for item in items if not config.subsets or item.category in config.subsets]
        if not self.items:
            raise InputError(f"{data}: no questions of {', '.join(config.subsets) or 'any subset'}")
        self.galleries = {subset: Gallery(data, subset) for subset in dict.fromkeys(i.category for i in self.items)}
        self.defects = self._defects()
        self.writer = Writer(config, data) if self.writes else None
        self.needs_judge = config.judge
        self.judgements = Judgements(config.templates, config.first_tag) if config.judge else None
        self.rouge = RougeL()
        self.bertscore: BertScore | None = None
        if config.bertscore:
            self.bertscore = BertScore(TextEncoder.load(config.bertscore, Encoder()), config.bertscore_layer)
        self.shown: dict[str, int] = {}
        """Pictures of each answer that is before the judge."""

    def _defects(self) -> Report:
        """Of the questions, and gold pictures that are not there: an answer cannot show those."""
        report = Report()
        read_questions(self.folder, list(self.galleries), report=report)
        for item in self.items:
            for key in item.meta["gold"]:
                try:
                    self._gallery(key).file(key.partition("/")[2])
                except Refused as refused:
                    report.problems.append(Problem(item.id, 1, f"gold image {refused.rule}", key, refused.reason))
        return report

    def _gallery(self, key: str) -> Gallery:
        subset = key.partition("/")[0]
        if subset not in self.galleries:
            self.galleries[subset] = Gallery(self.folder, subset)
        return self.galleries[subset]

    def _file(self, key: str) -> Path:
        try:
            return self._gallery(key).file(key.partition("/")[2])
        except Refused:
            return self.folder / NO_PICTURE

    def write(self, items: Sequence[Item], journal: Journal) -> Iterator[int]:
        """One record an item. Yields how many have been written."""
        assert self.writer is not None
        return self.writer.write(items, journal)

    def close(self) -> None:
        if self.writer:
            self.writer.close()

    def answers(self, folder: Path, imported: Mapping[str, Given] | None) -> dict[str, Given]:
        """Of the run's folder, or imported. Raises InputError for a candidate that is none of the benchmark's pictures,
        and where a file leaves more questions unanswered than it may."""
        found = own_answers(folder) if imported is None else imported
        answers = {item.id: self._with_pictures(item, found[item.id]) for item in self.items if item.id in found}
        if imported is not None:
            for subset, items in _by_subset(self.items).items():
                answered = sum(not answers[item.id].failure for item in items)
                if answered < self.config.min_coverage * len(items):
                    raise InputError(
                        f"answers: {answered} of {len(items)} questions of {subset} have one; give the others, or say "
                        f"that fewer will do (--options.min_coverage {int(1000 * answered / len(items)) / 1000})"
                    )
        return answers

    def _with_pictures(self, item: Item, given: Given) -> Given:
        if not isinstance(given, Placed):
            return given
        for key in given.candidates:
            if key.partition("/")[2] not in self._gallery(key):
                raise InputError(f"answer {item.id}: candidate {key!r} is none of the benchmark's pictures")
        return replace(given, entries=entries_of_answer(given, self._file))

    def manifest(self) -> dict[str, Any]:
        config = self.config
        encoder = {"model": config.bertscore, "layer": config.bertscore_layer, "rescaled": False}
        return {
            "subsets": list(self.galleries),
            "answering": self.writer.manifest() if self.writer else "a file",
            "costs": asdict(config.costs),
            "rouge_l": "rougeLsum F1, stemmed, without placeholders",
            "bertscore": encoder if config.bertscore else "none",
            "random_baseline": {"probability": 0.5, "seed": config.seed},
            "judged": self.judgements.manifest() if self.judgements else "not",
        }

    def aspects(self, item: Item) -> tuple[str, ...]:
        written = [] if self.writes and self.config.gold_text else [*WRITTEN][: 2 if self.bertscore else 1]
        compared = [f"{name}: {baseline}" for baseline in BASELINES for name in PLACED]
        recalls = RECALLS if self.writes and self.config.candidates == "retrieved" else ()
        judged = JUDGED if self.judgements else ()
        return (*PLACED, *written, *judged, CHOICE, *recalls, *compared)

    def tasks(self, item: Item, given: Given) -> list[Task]:
        if not isinstance(given, Placed):
            raise TypeError(f"{item.id}: an answer whose pictures have no ids")
        config, gold = self.config, item.meta["gold"]
        scores: dict[str, float | None] = {**placed_scores(gold, given.images, config.costs)}
        for name in BASELINES:
            drawn = baseline(name, given.candidates, f"{config.seed} {item.id}")
            others = placed_scores(gold, drawn, config.costs)
            scores |= {f"{metric}: {name}": score for metric, score in others.items()}
        scores[CHOICE] = 100.0 * (set(given.candidates) <= set(gold))
        sought = (item.meta["provenance"], given.documents), (gold, given.candidates)
        for name, (wanted, found) in zip(RECALLS, sought, strict=True):
            scores[name] = 100 * selection(wanted, found).recall
        wanted = self.aspects(item)
        texts = [given.text], [(item.reference or "").replace(PIC, "")]
        for name, compare in (("rouge_l", self.rouge), ("bertscore", self._bertscore)):
            if name in wanted:
                (share,) = compare(*texts)
                scores[name] = None if share is None else 100 * share
        tasks = [
            Task(name, Verdict(None, "does not apply", "") if scores[name] is None else Verdict(scores[name]))
            for name in wanted
            if name in scores
        ]
        tasks[0] = replace(tasks[0], notes=dict(given.faults))
        return [*tasks, *self._judged(item, given)]

    def _bertscore(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]:
        """F1 as it is, not rescaled: the published figures are of that size."""
        assert self.bertscore is not None
        return [f1 for _, _, f1 in self.bertscore.precision_recall_f1(candidates, references)]

    def _judged(self, item: Item, given: Given) -> list[Task]:
        if self.judgements is None:
            return []
        try:
            question, answer = (decoded(spaced(segments_of(entries))) for entries in (item.question, given.entries))
        except PictureFault as fault:
            return [Task(name, Verdict(None, fault.kind, str(fault))) for name in JUDGED]
        self.shown[item.id] = sum(isinstance(segment, ImageSegment) for segment in answer)
        return self.judgements.tasks(question, answer)

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        assert self.judgements is not None
        return self.judgements.read(aspect, answer, self.shown[item.id])

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        return scores(outcomes)

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        return tables(outcomes, self.label)

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Coverage first: figures are over the questions that have an answer."""
        config, said = self.config, []
        for subset, part in groups(outcomes, lambda subset: subset).items():
            answered = sum(outcome.aspect == CHOICE and outcome.score is not None for outcome in part)
            asked = sum(outcome.aspect == CHOICE for outcome in part)
            count = f"{subset}: {answered:,} of {asked:,} questions have an answer and count"
            said.append(
                f"{count}." if asked == SIZES[subset] else f"{count}; the published rows are of {SIZES[subset]:,}."
            )
        if self.writer:
            said += self.writer.caveats()
        else:
            said.append("Candidates are those that the file of answers names.")
        said.append(
            "Where all candidates are gold there is nothing to choose, and inserting all is right. Baselines insert "
            "nothing; all candidates in the order offered; each with probability 1/2 in random order "
            f"(seed {config.seed})."
        )
        if self.writes and config.gold_text:
            said.append("ROUGE-L and BERTScore are left out: the text is the ground truth's own.")
        elif not config.bertscore:
            said.append("No BERTScore: name its encoder with --options.bertscore.")
        if not config.judge:
            said.append("No judge was asked (--options.judge true).")
        elif config.first_tag:
            said.append("Position is that of the first picture alone, as in the evaluator that is available.")
        costs = config.costs
        said.append(
            f"Order: insert {costs.insert:g}, delete {costs.delete:g}, substitute {costs.substitute:g}, worst "
            f"{costs.worst:g}; the paper does not state its costs, so published values may have others."
        )
        if self.defects.problems:
            kinds = Counter(problem.kind for problem in self.defects.problems).most_common()
            listed = "; ".join(map(str, self.defects.problems[:MOST_LISTED]))
            more = ", ..." if len(self.defects.problems) > MOST_LISTED else ""
            said.append(f"In the data: {', '.join(f'{kind} {count}' for kind, count in kinds)} ({listed}{more}).")
        return said


def _by_subset(items: Sequence[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.category, []).append(item)
    return found
