"""Inserters against each other on one file of tasks: what they choose, where they put it, and what chance would.

for inserter in rule, written, likelihood: place every task, a line of OUT/placements.RANK.jsonl each
random: as many as the rule, 50 draws a task; all: every candidate, evenly spread; nothing

python -m limner.train.inserter.figures --tasks runs/tasks/heldout.jsonl --model DIR --out runs/inserter/figures

A second call with the same folder goes on from there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...configs import parse
from ...configs.bounds import Limit
from ...configs.errors import InputError, keeping, run_or_exit
from ...configs.schema import check_ranges
from ...configs.terminal import say
from ...data.insertion.placements import InsertionTask, Placement
from ...data.insertion.prompt import Answer
from ...data.insertion.tasks import read_tasks
from ...eval.folder import Journal, keep_manifest, read_journals
from ...eval.run import fingerprint, sha256
from ...eval.statistics import Estimate, estimate, paired_difference
from ...retrieval.index.corpus import some
from ...retrieval.strategies.inserter import load_inserter, load_model
from ...retrieval.strategies.likelihood import LikelihoodInserter
from ...retrieval.strategies.rule import RuleInserter
from ...rewards.rules.insertion import selection
from ...rewards.rules.placement import place_score

DRAWS = 50
Place = Callable[[InsertionTask], Sequence[Placement]]
Scores = tuple[float, float, float]


@dataclass
class FiguresConfig:
    tasks: str = ""
    """Tasks, as `limner data insertion` writes them."""
    model: str = ""
    """A causal language model with a chat template: a folder, or a name on the Hub. Without one the rule alone."""
    limit: Limit = 0
    """The first so many tasks; 0 takes all."""
    out: str = "runs/inserter/figures"
    """Folder of what was placed."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((FiguresConfig,), argv, prog="python -m limner.train.inserter.figures")
    if not config.tasks:
        raise InputError("tasks: missing; give --tasks FILE, of limner data insertion")
    tasks = read_tasks(Path(config.tasks))[: config.limit or None]
    out = Path(config.out)
    weights = fingerprint(Path(config.model)) if Path(config.model).is_dir() else ""
    keep_manifest(out, {"tasks": sha256(Path(config.tasks)), "model": config.model, "weights": weights})
    makers: dict[str, Callable[[], Place]] = {"rule": lambda: RuleInserter().place}
    if config.model:
        makers |= {"written": lambda: load_inserter(config.model).place, "likelihood": lambda: likelihood(config.model)}
    with keeping(f"{out} keeps what is placed; the same command goes on from there"):
        placed = {name: place_all(name, make, tasks, out) for name, make in makers.items()}
    say("\n".join(table(tasks, placed)))


def likelihood(model: str) -> Place:
    read, prompter = load_model(model)
    return LikelihoodInserter(read.eval(), prompter.tokenizer).place


def place_all(name: str, make: Callable[[], Place], tasks: Sequence[InsertionTask], out: Path) -> list[list[Placement]]:
    """Of every task, in order; what the folder holds is not placed again, and without more the model is not loaded."""
    found = {
        record["id"]: [Placement(after, number) for after, number in record["placed"]]
        for record in read_journals(out, name)
    }
    if waiting := [task for task in tasks if task.id not in found]:
        place = make()
        with Journal(out, name) as journal:
            for task in waiting:
                found[task.id] = list(place(task))
                kept = [(one.after, one.candidate) for one in found[task.id]]
                journal.append({"id": task.id, "placed": kept})
    return [found[task.id] for task in tasks]


def scores(task: InsertionTask, placed: Sequence[Placement]) -> Scores:
    """(F1, place, wholly right), each 0 to 1; place of a task without gold is whether nothing was placed."""
    wanted, got = ([one.candidate for one in those] for those in (task.gold, placed))
    place = place_score(Answer(tuple(placed), Counter(), True), task.gold, len(task.sentences), len(task.candidates))
    exact = float(sorted(placed) == sorted(task.gold))
    return selection(wanted, got).f1, float(not placed) if place is None else place, exact


def spread(task: InsertionTask) -> list[Placement]:
    """Every candidate, in the order of their numbers, at equal distances."""
    count = len(task.candidates)
    return [Placement(round(number * len(task.sentences) / count), number + 1) for number in range(count)]


def drawn(task: InsertionTask, count: int, rng: random.Random) -> list[Placement]:
    """So many candidates, each anywhere."""
    chosen = rng.sample(range(1, len(task.candidates) + 1), min(count, len(task.candidates)))
    return [Placement(rng.randint(0, len(task.sentences)), number) for number in chosen]


def table(tasks: Sequence[InsertionTask], placed: dict[str, list[list[Placement]]], seed: int = 0) -> list[str]:
    """Rows of Markdown: means with 95 % bootstrap intervals over tasks, and F1 against the rule's, task by task."""
    rows = {name: [scores(*pair) for pair in zip(tasks, those, strict=True)] for name, those in placed.items()}
    rows["all"] = [scores(task, spread(task)) for task in tasks]
    rows["nothing"] = [scores(task, []) for task in tasks]
    rng = random.Random(seed)
    rows["random, as many as the rule"] = [
        _mean([scores(task, drawn(task, len(rule), rng)) for _ in range(DRAWS)])
        for task, rule in zip(tasks, placed["rule"], strict=True)
    ]
    rule = [f1 for f1, _, _ in rows["rule"]]
    lines = ["| | F1 | place | wholly right | F1 - rule's |", "|---|---|---|---|---|"]
    for name, those in rows.items():
        cells = [_cell(estimate(column)) for column in zip(*those, strict=True)]
        cells.append(_cell(paired_difference([f1 for f1, _, _ in those], rule)) if name != "rule" else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, some(len(tasks), "task")]


def _mean(draws: Sequence[Scores]) -> Scores:
    f1, place, exact = (sum(column) / len(draws) for column in zip(*draws, strict=True))
    return f1, place, exact


def _cell(one: Estimate) -> str:
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


if __name__ == "__main__":
    run_or_exit(main)
