"""From the results of arms and seeds to the figures of a study: means over seeds, their intervals, gains, curves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..configs.schema import plain
from ..eval.statistics import nested_difference, nested_estimate
from .config import StudyConfig, homes
from .seed import REACH, first_reach

GAINS = ("sampled.story_exact", "greedy.story_exact")
"""Metrics of which a row shows the gain over another arm."""
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""arm -> seed -> what the arm left: items, seconds, steps, curve."""


def summarise(config: StudyConfig, results: Results) -> dict[str, Any]:
    """Everything the tables and the figure show, as JSON; what has not been run is named under `missing`.

    arms.<name>: label, kind, of, iterations, seeds (those done), figures.<metric> (a SeedEstimate), seconds {value,
    lowest, highest}, reach {seeds, of, step, seconds} or null, curve [{step, seconds, value, lowest, highest}]. tables:
    [{title, columns, note, rows: [{arm, marks, against, gain.<metric>}]}].
    """
    home = homes(config)
    found = {name: results.get(home[name], {}) for name in config.arms}
    missing = {name: [s for s in config.all_seeds if s not in by_seed] for name, by_seed in found.items()}
    return {
        "title": config.title,
        "created": time.strftime("%Y-%m-%d"),
        "seeds": config.all_seeds,
        "iterations": config.iterations,
        "reach": REACH,
        "arms": {name: {**_identity(config, name), **_figures(by_seed)} for name, by_seed in found.items()},
        "tables": [
            {
                "title": table.title,
                "columns": table.columns,
                "note": table.note,
                "rows": [
                    {"arm": row.arm, "marks": row.marks, "against": row.against, "gain": _gain(found, row)}
                    for row in table.rows
                ],
            }
            for table in config.tables
        ],
        "missing": {name: seeds for name, seeds in missing.items() if seeds},
        "settings": plain(config),
    }


def _identity(config: StudyConfig, name: str) -> dict[str, Any]:
    """`iterations`: rollout batches, where the arm has a number of its own."""
    arm = config.arms[name]
    return {"label": config.label(name), "kind": arm.kind, "of": arm.of, "iterations": arm.iterations}


def _figures(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    metrics = [metric for metric in runs[0]["items"] if all(metric in run["items"] for run in runs)] if runs else []
    curves = [run["curve"] for run in runs]
    return {
        "seeds": sorted(by_seed),
        "figures": {metric: nested_estimate([run["items"][metric] for run in runs]) for metric in metrics},
        "seconds": _spread([run["seconds"] for run in runs if run["seconds"] is not None]),
        "reach": _reach(curves),
        "curve": _curve(curves),
    }


def _gain(found: Results, row: Any) -> dict[str, Any]:
    """Over the seeds that both arms have."""
    if row.against is None:
        return {}
    mine, theirs = found[row.arm], found[row.against]
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return {}
    return {
        metric: nested_difference(
            [mine[seed]["items"][metric] for seed in seeds], [theirs[seed]["items"][metric] for seed in seeds]
        )
        for metric in GAINS
    }


def _reach(curves: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any] | None:
    """Rollout batches and seconds to the held-out score, over the seeds that reach it; None without a curve."""
    if not any(curves):
        return None
    reached = [point for curve in curves if (point := first_reach(curve))]
    return {
        "seeds": len(reached),
        "of": len(curves),
        "step": _spread([point["step"] for point in reached]),
        "seconds": _spread([point["seconds"] for point in reached]),
    }


def _curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Point by point over seeds, as far as all have points."""
    merged = []
    for points in zip(*curves, strict=False):
        scores = [point["sampled_story_exact"] for point in points]
        at = {name: sum(point[name] for point in points) / len(points) for name in ("step", "seconds")}
        merged.append({**at, "value": sum(scores) / len(scores), "lowest": min(scores), "highest": max(scores)})
    return merged


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"value": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
