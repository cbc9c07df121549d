"""Runs the units of a plan, and puts their parts together."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ...configs.errors import InputError, reading
from ...configs.terminal import say
from ...configs.whole import Staging, alone, whole_directory
from ..conversion import named_once, open_source, read, split_of
from ..shards.index import INDEX, SPLITS, Shard, ShardIndex, unpacked_offsets
from ..shards.keyed import members_of
from ..shards.writing import OpenShard, ShardFiles, check_target, write_index
from ..sources.report import LISTED, Problem, Problems, Report
from .plan import PLAN, Plan, parts_of, read_plan

PART = "part.json"


def run_units(
    plan: Plan, target: Path, units: Iterable[int], workers: int = 1, say: Callable[[str], None] = say
) -> int:
    """Runs those that are not there yet; returns how many. Raises InputError for the first that cannot be."""
    waiting = [unit for unit in units if not _done(target, unit)]
    if workers == 1 or len(waiting) < 2:
        for unit in waiting:
            run_unit(plan, target, unit)
            say(f"unit {unit} of {len(plan.units)}")
        return len(waiting)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(run_unit, plan, target, unit) for unit in waiting]:
            say(f"unit {future.result()} of {len(plan.units)}")
    return len(waiting)


def run_unit(plan: Plan, target: Path, unit: int) -> int:
    """Converts a stretch into `DIR.parts/UNIT`, which appears whole or not at all."""
    report = Report(problems=Problems(LISTED), stretch=plan.units[unit])
    source = open_source(plan.source, plan.options)
    found = Counter[str]()
    ids: list[int] = []
    with whole_directory(_part(target, unit)) as folder:
        with ShardFiles(folder, first_key=unit * plan.first_key) as files:
            for document, originals in named_once(read(source, Path(plan.path), report), report, False, ids):
                split = split_of(document, plan.heldout_share)
                try:
                    files.write(document, split, originals)
                except InputError as error:
                    report.problems.append(Problem(document.id, 1, "refused", "", str(error)))
                    ids.pop()
                    continue
                found.update(documents=1, images=len(document.images))
            shards, kinds = files.finish()
        report.documents, report.images = found["documents"], found["images"]
        value = {
            "shards": [{name: getattr(shard, name) for name in Shard.__slots__} for shard in shards],
            "kinds": kinds,
            "report": report.to_json(),
            "ids": [f"{one:016x}" for one in ids],
        }
        (folder / PART).write_text(json.dumps(value), encoding="utf-8")
    return unit


def _part(target: Path, unit: int) -> Path:
    return parts_of(target) / f"{unit:05d}"


def _done(target: Path, unit: int) -> bool:
    return (_part(target, unit) / PART).is_file()


def merge(target: Path, overwrite: bool = False, keep_parts: bool = False) -> ShardIndex:
    """Puts all parts together as DIR, ids that two units have but once, and removes them.

    Raises InputError where parts are missing, naming them.
    """
    parts = parts_of(target)
    plan = read_plan(parts / PLAN)
    if lacking := [unit for unit in range(len(plan.units)) if not _done(target, unit)]:
        names = ", ".join(map(str, lacking[:10]))
        raise InputError(f"{parts}: {len(lacking)} of {len(plan.units)} units are missing ({names}); run their tasks")
    check_target(target, overwrite)
    with alone(parts):
        staging = Staging(target)
        try:
            index = _put_together(plan, target, staging.written, keep_parts)
            if not index.shards:
                raise InputError(f"{plan.path}: gives no document")
            write_index(staging.written / INDEX, index)
            check_target(target, overwrite)
            staging.publish(replace=overwrite)
        finally:
            staging.close()
        if not keep_parts:
            shutil.rmtree(parts)
    return index


def _put_together(plan: Plan, target: Path, written: Path, keep: bool) -> ShardIndex:
    values = [_read_part(_part(target, unit)) for unit in range(len(plan.units))]
    again = _again([value["ids"] for value in values])
    shards: list[Shard] = []
    kinds = {split: Counter[str]() for split in SPLITS}
    rules: dict[str, dict[str, int]] = {"kept": {}, "left out": {}}
    report: dict[str, Any] = {"records": 0, "documents": 0, "images": 0, "rules": rules, "problems": []}
    numbers = Counter[str]()
    for unit, value in enumerate(values):
        dropped = Counter[tuple[str, str]]()
        for own in value["shards"]:
            shard = Shard(**own)
            name = f"{shard.split}-{numbers[shard.split]:06d}.tar"
            file = _part(target, unit) / shard.file
            made: Shard | None
            if again[unit]:
                made = _without(file, shard, written / name, again[unit], unit * plan.first_key, dropped)
            else:
                made = replace(shard, file=name)
                (shutil.copyfile if keep else os.replace)(file, written / name)
            if made is not None:
                shards.append(made)
                numbers[shard.split] += 1
        for split, counts in value["kinds"].items():
            kinds[split].update(counts)
        for (split, kind), count in dropped.items():
            kinds[split][kind] -= count
        _add(report, value["report"], dropped.total())
    counted = {split: dict(sorted((+counts).items())) for split, counts in kinds.items()}
    return ShardIndex(target, tuple(sorted(shards, key=lambda shard: shard.file)), counted, None, report)


def _read_part(folder: Path) -> dict[str, Any]:
    with reading(folder / PART):
        return json.loads((folder / PART).read_text(encoding="utf-8"))


def _again(ids: list[list[str]]) -> list[set[int]]:
    """Of each unit, the numbers of its documents whose id an earlier unit has: a sorted pass over all."""
    every = np.array([int(one, 16) for own in ids for one in own], np.uint64)
    order = np.argsort(every, kind="stable")
    twice = order[1:][every[order][1:] == every[order][:-1]] if len(every) else order
    ends = np.cumsum([len(own) for own in ids])
    found: list[set[int]] = [set() for _ in ids]
    for place in twice.tolist():
        unit = int(np.searchsorted(ends, place, side="right"))
        found[unit].add(place - (int(ends[unit - 1]) if unit else 0))
    return found


def _without(
    file: Path, shard: Shard, target: Path, again: set[int], first: int, dropped: Counter[tuple[str, str]]
) -> Shard | None:
    """A shard without the documents of these numbers; None where none is left."""
    made = OpenShard(target, shard.split)
    data = file.read_bytes()
    starts = unpacked_offsets(shard)
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        record = members_of(data[int(start) : int(end)])
        if int(record["__key__"]) - first in again:
            dropped[shard.split, json.loads(record["json"])["meta"]["kind"]] += 1
        else:
            made.write(record)
    finished = made.finish()
    if finished.records:
        return finished
    target.unlink()
    return None


def _add(report: dict[str, Any], part: dict[str, Any], dropped: int) -> None:
    for name in ("records", "documents", "images"):
        report[name] += part[name]
    report["documents"] -= dropped
    for what, rules in part["rules"].items():
        for rule, count in rules.items():
            report["rules"][what][rule] = report["rules"][what].get(rule, 0) + count
    if dropped:
        rules = report["rules"]["left out"]
        rules["duplicate id"] = rules.get("duplicate id", 0) + dropped
    listed = Counter(problem["kind"] for problem in report["problems"])
    for problem in part["problems"]:
        if listed[problem["kind"]] < LISTED:
            listed[problem["kind"]] += 1
            report["problems"].append(problem)
