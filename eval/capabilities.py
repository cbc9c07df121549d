"""`limner guard`: what training has cost. Figures of evaluations before it against those after it, item by item.

limner guard runs/before runs/after --config guard/capabilities
limner guard runs/before/pope runs/after/pope --limits '{pope.f1: 1.0}'

Each folder is a run of `limner eval`, or holds one folder a run, named alike in both. Exit code 1 where a limit is
crossed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..configs import parse
from ..configs.bounds import Share, Weight
from ..configs.errors import InputError
from ..configs.schema import check_ranges
from ..configs.terminal import say
from ..configs.whole import write_atomically
from .benchmark import read_verdicts
from .figures import Comparison, Figure, compare, figures_of, mean_of
from .folder import read_json
from .results import FIGURES, RESULTS

COMPARED = ("benchmark", "data", "limit", "prompt", "sampling", "scoring", "judge")
"""Parts of a manifest that must be the same before and after."""
MAY_DIFFER = ("file", "records", "base_url", "detections", "replies")
"""What may differ within them."""
SHARE_DIGITS = 4
"""Decimals of a figure that is a share of 1; percents and points have two."""


@dataclass
class GuardConfig:
    before: str = ""
    """Folder of the run, or of the runs, before training."""
    after: str = ""
    limits: dict[str, Weight] = field(default_factory=dict)
    """Largest loss that is allowed, in the figure's own unit: `{pope.f1: 1.0, "mme.*": 20}`. RUN.FIGURE, * for any;
    of several that fit the longest holds. Figures without a limit are shown alone."""
    certain: bool = False
    """Only a loss whose whole 95 % interval is beyond the limit crosses it."""
    unpaired: Share = 0.01
    """Largest share of the questions or prompts of a limited figure that may be missing before or after."""
    out: str = ""
    """JSON file of the table."""

    def __post_init__(self) -> None:
        if not self.before or not self.after:
            raise InputError("before, after: give both folders, limner guard BEFORE AFTER")
        if faulty := [name for name, limit in self.limits.items() if not limit >= 0]:
            raise InputError(f"limits: {faulty[0]}: a loss is given as a number of at least 0")
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    """RUN.FIGURE"""
    comparison: Comparison
    limit: float | None
    crossed: str
    """Why the guard stops here; empty where it does not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 where a limit is crossed."""
    words = list(argv or ())
    if len(words) > 1 and not any(word.startswith("-") for word in words[:2]):
        words = ["--before", words[0], "--after", words[1], *words[2:]]
    (config,) = parse((GuardConfig,), words, prog="limner guard")
    rows = guard(config)
    if config.out:
        table = {"before": config.before, "after": config.after, "rows": [asdict(row) for row in rows]}
        write_atomically(Path(config.out), json.dumps(table, indent=1) + "\n")
    say(table_text(rows))
    say(verdict(rows) + (f"; wrote {config.out}" if config.out else ""))
    return int(any(row.crossed for row in rows))


def guard(config: GuardConfig) -> list[Row]:
    """A row a figure. Raises InputError where before and after are not comparable, or a limit names nothing."""
    runs = [_runs(Path(config.before)), _runs(Path(config.after))]
    if lacking := runs[0].keys() ^ runs[1].keys():
        raise InputError(f"{config.before}, {config.after}: only one of them has {min(lacking)!r}; evaluate both")
    rows = []
    for name, before in runs[0].items():
        after = runs[1][name]
        _check_comparable(before, after)
        own = all((folder / FIGURES).is_file() for folder in (before, after))  # an earlier limner may have left none
        old, new = _figures(before, own), _figures(after, own)
        for figure in (figure for figure in old if figure in new):
            limit = _limit(f"{name}.{figure}", config.limits)
            try:
                comparison = compare(old[figure], new[figure])
            except ValueError as error:
                raise InputError(f"{name}.{figure}: {before} against {after}: {error}") from None
            if comparison is not None:
                rows.append(Row(f"{name}.{figure}", comparison, limit, _crossed(comparison, limit, config)))
    for pattern in config.limits:
        if not any(fnmatchcase(row.name, pattern) for row in rows):
            known = ", ".join(row.name for row in rows)
            raise InputError(f"limits: {pattern!r} fits no figure that both have; there are {known or 'none'}")
    return rows


def table_text(rows: Sequence[Row]) -> str:
    """Aligned columns: before, after, difference with its 95 % interval, units, limit, verdict."""
    cells = [["figure", "before", "after", "change", "95 % interval", "n", "unpaired", "limit", ""]]
    for row in rows:
        c = row.comparison
        change = c.difference
        said = row.crossed or ("" if row.limit is None else "ok")
        digits = SHARE_DIGITS if max(abs(c.before), abs(c.after)) <= 1 else 2
        numbers = [f"{c.before:.{digits}f}", f"{c.after:.{digits}f}", f"{change['value']:+.{digits}f}"]
        interval = f"{change['low']:+.{digits}f} to {change['high']:+.{digits}f}"
        limit = "" if row.limit is None else f"{-row.limit:g}"
        cells.append([row.name, *numbers, interval, str(change["n"]), str(c.unpaired), limit, said])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(_aligned(line, widths)).rstrip() for line in cells]
    return "\n".join(lines)


def verdict(rows: Sequence[Row]) -> str:
    """The last line: whether what is limited was kept."""
    limited = [row for row in rows if row.limit is not None]
    if not limited:
        name = rows[0].name if rows else "RUN.FIGURE"
        return (
            f"no figure is held; next: the same command with --limits '{{{name}: LOSS}}', as large a loss as you allow"
        )
    lost = [row.name for row in limited if row.crossed]
    return f"beyond its limit: {', '.join(lost)}" if lost else f"within their limits: all {len(limited)} that have one"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words, first and last, to the left; numbers to the right."""
    last = len(line) - 1
    return [
        text.ljust(width) if column in (0, last) else text.rjust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def _runs(folder: Path) -> dict[str, Path]:
    """By name: the run's benchmark, or the name of its folder among others."""
    if (folder / RESULTS).is_file():
        return {read_json(folder / RESULTS)["benchmark"]: folder}
    runs = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RESULTS}"))}
    if not runs:
        raise InputError(f"{folder}: holds no {RESULTS}, neither itself nor in a folder; run limner eval --out there")
    return runs


def _check_comparable(before: Path, after: Path) -> None:
    manifests = [read_json(folder / RESULTS)["manifest"] for folder in (before, after)]
    for part in COMPARED:
        values = [_without(manifest.get(part)) for manifest in manifests]
        if values[0] != values[1]:
            raise InputError(f"{before}, {after}: not comparable, {part} was {values[0]!r} and is {values[1]!r}")


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name not in MAY_DIFFER}
    return value


def _figures(folder: Path, own: bool) -> dict[str, Figure]:
    """The benchmark's own; of one that has none the mean of each aspect over its items."""
    if own:
        return figures_of(read_json(folder / FIGURES))
    scores: dict[str, dict[str, float]] = {}
    for (identifier, aspect), record in read_verdicts(folder).items():
        if record["score"] is not None:
            scores.setdefault(aspect, {})[identifier] = record["score"]
    return {aspect: mean_of(values) for aspect, values in scores.items()}


def _limit(name: str, limits: Mapping[str, float]) -> float | None:
    fitting = [pattern for pattern in limits if fnmatchcase(name, pattern)]
    return limits[max(fitting, key=len)] if fitting else None


def _crossed(comparison: Comparison, limit: float | None, config: GuardConfig) -> str:
    if limit is None:
        return ""
    change = comparison.difference
    if comparison.unpaired > config.unpaired * (change["n"] + comparison.unpaired):
        return "UNPAIRED"
    return "CROSSED" if change["high" if config.certain else "value"] < -limit else ""
