"""What came of a run, counted: its figures, where every missing score has gone, and samples for people."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..configs.errors import InputError
from ..configs.whole import write_atomically
from ..models.documents.document import ImageSegment, InterleavedDocument
from .benchmark import Benchmark, Given, Item, Outcome, prompt_of, read_verdicts
from .entries import segments_of
from .figures import Measured, figures_json
from .folder import MANIFEST, locked, read_json

RESULTS = "results.json"
SAMPLES = "samples.json"
FIGURES = "figures.json"
NO_ANSWER = "no answer: "
SAMPLE_SIDE = 320
"""Pixels of the longer side of a picture among the samples."""


def write_results(folder: Path, benchmark: Benchmark, answers: Mapping[str, Given], samples: int) -> bool:
    """Aggregates what the folder holds; False, and nothing written, while another process still works on some item."""
    with locked(folder):
        found = outcomes(benchmark, answers, read_verdicts(folder))
        if found is None:
            return False
        results = {
            "benchmark": benchmark.name,
            "title": benchmark.title,
            "highest": benchmark.highest,
            "finished": time.strftime("%Y-%m-%d"),
            "scores": benchmark.scores(found),
            "tables": [asdict(table) for table in benchmark.tables(found)],
            "accounting": accounting(benchmark, found, answers),
            "caveats": benchmark.caveats(found),
            "manifest": read_json(folder / MANIFEST),
        }
        write_atomically(folder / SAMPLES, json.dumps(shown(found, answers, samples)) + "\n")
        if isinstance(benchmark, Measured):
            write_atomically(folder / FIGURES, json.dumps(figures_json(benchmark.figures(found))) + "\n")
        write_atomically(folder / RESULTS, json.dumps(results, indent=1) + "\n")
    return True


def outcomes(
    benchmark: Benchmark, answers: Mapping[str, Given], verdicts: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[Outcome] | None:
    """One an item and aspect, in the benchmark's order; None while another process still works on some."""
    found = []
    for item in benchmark.items:
        given = answers.get(item.id)
        if given is None:
            return None
        for aspect in benchmark.aspects(item):
            if given.failure:
                found.append(Outcome(item, aspect, None, NO_ANSWER + given.failure, given.reason))
            elif (record := verdicts.get((item.id, aspect))) is None:
                return None
            else:
                said = (record["score"], record["failure"], record["words"], record["replied"], record["notes"])
                found.append(Outcome(item, aspect, *said, *record["tokens"]))
    return found


def accounting(benchmark: Benchmark, found: Sequence[Outcome], answers: Mapping[str, Given]) -> dict[str, Any]:
    """Where every score and every missing one has gone.

    `parse_rate` is the share of the judge's replies that hold a score; `notes` says of how many scores the judge saw
    less than the answer, and how much less; `first` has what was said of the first score that failed so.
    """
    replied = [outcome for outcome in found if outcome.replied]
    notes: dict[str, dict[str, int]] = {}
    for outcome in found:
        for name, count in outcome.notes.items():
            total = notes.setdefault(name, {"scores": 0, "total": 0})
            total["scores"] += 1
            total["total"] += count
    given = [answers[item.id] for item in benchmark.items]
    return {
        "items": len(benchmark.items),
        "answered": sum(not answer.failure for answer in given),
        "not_ended": sum(not answer.failure and not answer.ended for answer in given),
        "scores_wanted": len(found),
        "scored": sum(outcome.score is not None for outcome in found),
        "replies": len(replied),
        "parse_rate": sum(outcome.score is not None for outcome in replied) / len(replied) if replied else None,
        "failed": dict(Counter(outcome.failure for outcome in found if outcome.failure).most_common()),
        "first": {outcome.failure: outcome.words for outcome in reversed(found) if outcome.failure},
        "notes": notes,
        "writing": dict(sum((Counter(answer.notes) for answer in given), Counter())),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in found),
        "completion_tokens": sum(outcome.completion_tokens for outcome in found),
    }


def by_category(found: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """In the order in which categories first come."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in found:
        groups.setdefault(outcome.item.category, []).append(outcome)
    return groups


# ---- samples ----


def shown(found: Sequence[Outcome], answers: Mapping[str, Given], count: int) -> list[dict[str, Any]]:
    """At most so many items with prompt, answer and the judge's words: of each category from its worst to its best."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in found:
        rows.setdefault(outcome.item.id, []).append(outcome)
    groups: dict[str, list[list[Outcome]]] = {}
    for row in rows.values():
        groups.setdefault(row[0].item.category, []).append(row)
    each = max(1, count // max(1, len(groups)))
    chosen = [row for group in groups.values() for row in _spread(sorted(group, key=_rank), each)][:count]
    return [_sample(row, answers[row[0].item.id]) for row in chosen]


def _rank(row: Sequence[Outcome]) -> tuple[float, str]:
    """Items without a score come first."""
    scores = [outcome.score for outcome in row if outcome.score is not None]
    return sum(scores) / len(scores) if scores else float("-inf"), row[0].item.id


def _spread(rows: Sequence[list[Outcome]], count: int) -> list[list[Outcome]]:
    """So many of the rows at equal distances, the first and the last among them."""
    if len(rows) <= count or count < 2:
        return list(rows[:count])
    return [rows[round(k * (len(rows) - 1) / (count - 1))] for k in range(count)]


def _sample(row: Sequence[Outcome], given: Given) -> dict[str, Any]:
    item = row[0].item
    return {
        "id": item.id,
        "category": item.category,
        "prompt": _small(item, None),
        "answer": _small(item, given),
        "reference": item.reference,
        "verdicts": [
            {name: getattr(outcome, name) for name in ("aspect", "score", "failure", "words", "notes")}
            for outcome in row
        ],
    }


def _small(item: Item, given: Given | None) -> dict[str, Any] | None:
    """Document of the question, or of the answer, with small pictures; None where a picture cannot be shown."""
    try:
        if given is None:
            document = prompt_of(item)
        else:
            document = InterleavedDocument(segments_of(given.entries, trainable=True, origin="generated"), item.id)
        segments = []
        for segment in document.segments:
            if isinstance(segment, ImageSegment):
                picture = segment.pixels()
                picture.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))
                segment = replace(segment, image=picture)
            segments.append(segment)
    except (InputError, ValueError):
        return None
    return replace(document, segments=tuple(segments), meta={}).to_json()
