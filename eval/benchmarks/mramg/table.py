"""The figures of MRAMG-Bench: metrics, baselines and recall by subset and domain, beside the published rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ....data.sources.mramg import DOMAINS
from ...benchmark import Outcome, Table
from ...statistics import Estimate, estimate
from ..interleavedbench import average
from .judge import JUDGED

SIZES = {"wit": 600, "wiki": 500, "web": 750, "arxiv": 200, "recipe": 2360, "manual": 390}
"""Questions of each subset."""
PLACED = {"precision": "P", "recall": "R", "f1": "F1", "order": "Ord"}
WRITTEN = {"rouge_l": "R-L", "bertscore": "BERT"}
COLUMNS = {**PLACED, **WRITTEN, **{name: metric.column for name, metric in JUDGED.items()}}
"""Metrics and their names in tables, in the order of the published ones."""
BASELINES = ("insert nothing", "insert all", "insert at random")
CHOICE = "no choice"
"""100 for a question whose candidates are all gold, else 0; "only right pictures" in the tables."""
RECALLS = ("context recall", "visual recall")
"""Shares of the provenance's documents and of the gold pictures that are among what was found."""

SOURCE = (
    "GPT-4o as the model, probably, and as the judge; a transcription of arXiv 2502.04176 by github.com/QUNING1/MRAMG "
    "at 2d36fbf. Candidates, encoder of BERTScore and judge prompts are not ours. Average is ours, of the columns shown"
)
AVERAGE = "Average"
"""Column of the mean of the metrics that `averaged` names."""
STYLES = ("rule", "MLLM", "LLM")
PUBLISHED: dict[str, tuple[tuple[float | None, ...], ...]] = {
    "arxiv": (
        (55.42, 63.04, 57.70, None, 44.96, 94.67, 84.2, 67.3, 75.75, 69.1),
        (60.39, 74.29, 64.23, None, 44.25, 95.15, 87.5, 86.2, 90.39, 89.4),
        (65.28, 76.54, 68.54, None, 44.13, 95.23, 88.9, 82.7, 84.84, 86.0),
    ),
    "manual": (
        (36.45, 47.97, 38.32, 32.1, 50.82, 91.51, 79.08, 73.44, 71.66, 75.79),
        (35.07, 33.78, 32.44, 24.5, 44.68, 91.16, 79.59, 73.28, 73.38, 75.49),
        (34.02, 46.48, 36.78, 35.8, 45.99, 91.46, 78.05, 75.64, 71.65, 77.59),
    ),
    "recipe": (
        (48.79, 66.11, 52.76, 45.3, 51.80, 92.10, 79.19, 74.64, 78.04, 77.80),
        (45.20, 46.49, 42.25, 33.7, 45.74, 92.72, 81.65, 74.64, 78.01, 77.31),
        (49.70, 65.03, 51.91, 43.59, 44.75, 92.42, 81.02, 79.38, 81.88, 82.58),
    ),
    "web": (
        (32.47, 16.93, 22.11, None, 39.17, 90.56, 73.87, 27.81, 32.80, 29.47),
        (89.78, 83.80, 85.47, None, 52.09, 95.14, 91.25, 90.08, 93.74, 94.27),
        (86.18, 78.73, 81.15, None, 54.87, 95.96, 89.52, 82.37, 87.02, 86.21),
    ),
    "wiki": (
        (53.00, 53.00, 53.00, None, 54.62, 95.15, 82.24, 42.56, 53.00, 46.60),
        (71.30, 71.60, 71.40, None, 53.34, 95.70, 83.32, 58.28, 71.40, 63.32),
        (81.40, 81.60, 81.47, None, 51.53, 95.66, 83.72, 65.76, 81.40, 72.28),
    ),
    "wit": (
        (49.50, 49.67, 49.56, None, 56.23, 92.27, 77.00, 39.50, 50.08, 43.67),
        (83.50, 84.00, 83.67, None, 54.84, 93.32, 81.50, 68.13, 84.33, 74.67),
        (73.75, 73.83, 73.78, None, 52.80, 93.02, 82.70, 60.03, 74.42, 66.13),
    ),
}
"""The columns of `COLUMNS` for each of `STYLES`."""


def averaged(domain: str) -> list[str]:
    """Metrics of the column Average: web and academic, with few questions of several pictures, leave out the order."""
    return [name for name in COLUMNS if name != "order" or domain == "lifestyle"]


def published_rows(subset: str) -> list[tuple[str, tuple[float, ...]]]:
    """Of a subset, with the columns of its domain and their average."""
    wanted = averaged(DOMAINS[subset])
    rows = []
    for style, row in zip(STYLES, PUBLISHED[subset], strict=True):
        figures = [figure for name, figure in zip(COLUMNS, row, strict=True) if name in wanted and figure is not None]
        rows.append((f"{subset}, {style}-based", (*figures, sum(figures) / len(figures))))
    return rows


# ---- figures ----


def scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Every metric over all questions, by subset, and by domain with its Average where all of that is there."""
    if not outcomes:
        return {}
    return {
        **_means(outcomes),
        "subsets": {subset: _means(part) for subset, part in groups(outcomes, lambda subset: subset).items()},
        "domains": {
            domain: _means(part) | _average(part, domain)
            for domain, part in groups(outcomes, DOMAINS.__getitem__).items()
        },
    }


def groups(outcomes: Sequence[Outcome], key: Callable[[str], str]) -> dict[str, list[Outcome]]:
    """By subset or domain, in the order of `DOMAINS`."""
    found: dict[str, list[Outcome]] = {key(subset): [] for subset in DOMAINS}
    for outcome in outcomes:
        found[key(outcome.item.category)].append(outcome)
    return {name: part for name, part in found.items() if part}


def _means(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.score is not None:
            values.setdefault(outcome.aspect, []).append(outcome.score)
    return {name: estimate(found) for name, found in values.items()}


def _average(outcomes: Sequence[Outcome], domain: str) -> dict[str, Estimate]:
    wanted = averaged(domain)
    mine = [outcome for outcome in outcomes if outcome.aspect in wanted]
    complete = {outcome.aspect for outcome in mine if outcome.score is not None} == set(wanted)
    return {AVERAGE: average(mine)} if complete else {}


def tables(outcomes: Sequence[Outcome], label: str) -> list[Table]:
    """All questions, where they are of several domains; each domain beside the published rows of its subsets; and what
    the search has found."""
    found: list[Table] = []
    domains = groups(outcomes, DOMAINS.__getitem__)
    if len(domains) != 1:
        found.append(Table("Scores, percent", tuple(COLUMNS.values()), _rows(outcomes, label, [*COLUMNS])))
    for domain, part in domains.items():
        wanted = averaged(domain)
        subsets = groups(part, lambda subset: subset)
        rows = _rows(part, f"{label}, {domain}", [*wanted, AVERAGE], domain)
        for subset, mine in subsets.items():
            rows += _rows(mine, f"{label}, {subset}", [*wanted, AVERAGE], domain) if len(subsets) > 1 else []
        columns = (*(COLUMNS[name] for name in wanted), AVERAGE)
        published = tuple(row for subset in subsets for row in published_rows(subset))
        found.append(Table(f"{domain.capitalize()}, percent", columns, rows, published, SOURCE, main=AVERAGE))
    if any(outcome.aspect in RECALLS for outcome in outcomes):
        by_subset = groups(outcomes, lambda subset: subset)
        recall = {**({"all": outcomes} if len(by_subset) > 1 else {}), **by_subset}
        rows = [(name, [_means(part).get(column) for column in RECALLS]) for name, part in recall.items()]
        found.append(Table("Found by the search, percent", RECALLS, rows))
    return found


def _rows(
    outcomes: Sequence[Outcome], label: str, wanted: Sequence[str], domain: str = ""
) -> list[tuple[str, list[Estimate | None]]]:
    """The run's row and those of the baselines, each with the share of questions that leave nothing to choose."""
    means: Mapping[str, Estimate] = _means(outcomes) | (_average(outcomes, domain) if domain else {})
    share = "no answers"
    if CHOICE in means:
        share = f"{means[CHOICE]['value']:.1f} % of questions offer only right pictures"
    rows: list[tuple[str, list[Estimate | None]]] = [(f"{label} ({share})", [means.get(name) for name in wanted])]
    for name in BASELINES:
        rows.append((f"{name} ({share})", [means.get(f"{metric}: {name}") for metric in wanted]))
    return rows
