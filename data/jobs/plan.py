"""`limner data from ... --tasks N --task K`: work that is cut once, and done by any number of processes, in any order.

    DIR.parts/plan.json       the source, its options, and the units: stretches of its files, fixed when it is planned
    DIR.parts/00017/          what a unit gave: shards, and part.json with its report; appears whole or not at all
    DIR                       all of them, once they are merged

A unit does not depend on another, nor on how many tasks there are: whoever runs it writes the same bytes. A task that
is killed begins again with the first of its units that is not there.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...configs.errors import InputError, reading
from ...configs.registry import find
from ...configs.whole import write_atomically
from ..sources.pairs.tars import tar_files
from ..sources.report import Stretch
from ..sources.rows import record_files, suffix_of

PLAN = "plan.json"
VERSION = 1
"""Goes up with every change of what a unit gives."""
UNIT_BYTES = 64 * 2**20
"""Of JSON lines that are one unit unless asked otherwise, of a parquet file of row groups. A tar is one."""
LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Plan:
    source: str
    path: str
    options: dict[str, Any]
    heldout_share: float
    unit_bytes: int
    code: str
    """Of the source, and the version of what units give."""
    units: tuple[Stretch, ...] = field(default_factory=tuple)

    @property
    def first_key(self) -> int:
        """Records of a unit are numbered from a place of its own, so that parts can be put together as they are."""
        return 10**9 // max(len(self.units), 1)


def parts_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def open_plan(
    source: str,
    path: Path,
    options: Mapping[str, Any],
    target: Path,
    heldout_share: float,
    unit_bytes: int = UNIT_BYTES,
) -> Plan:
    """The plan beside the target, made where there is none. Raises InputError where it is of something else."""
    file = parts_of(target) / PLAN
    asked = Plan(source, str(path), dict(options), heldout_share, unit_bytes, code_of(source))
    if file.is_file():
        plan = read_plan(file)
        for name in ("source", "path", "options", "heldout_share", "unit_bytes", "code"):
            was, now = getattr(plan, name), getattr(asked, name)
            if was != now:
                raise InputError(
                    f"{file}: another plan: {name} was {was!r} and is {now!r}; finish that one, or remove {file.parent}"
                )
        return plan
    units = tuple(units_of(path, unit_bytes)) if getattr(find("source", source).thing, "cuts", False) else ()
    if not units:
        raise InputError(
            f"{path}: {source} has nothing here that is cut into units (JSON lines, parquet, tars); "
            "run it without --tasks"
        )
    plan = Plan(**{**asdict(asked), "units": units})
    write_atomically(file, json.dumps({**asdict(plan), "units": [asdict(unit) for unit in units]}, indent=1) + "\n")
    return plan


def read_plan(file: Path) -> Plan:
    """Raises InputError where it cannot be read, or an older version of limner made it."""
    with reading(file):
        value = json.loads(file.read_text(encoding="utf-8"))
        try:
            return Plan(**{**value, "units": tuple(Stretch(**unit) for unit in value["units"])})
        except (TypeError, KeyError):
            raise InputError(
                f"{file}: no plan of this version of limner; remove {file.parent}, or finish with the old one"
            ) from None


def code_of(source: str) -> str:
    """A hash of the source's own file, so that half of a folder is not of another version."""
    thing = find("source", source, "source").thing
    text = Path(inspect.getfile(thing)).read_bytes()
    return f"{VERSION} {hashlib.sha256(text).hexdigest()[:16]}"


def units_of(path: Path, unit_bytes: int) -> Iterator[Stretch]:
    """Stretches of the files of records, or else the tars, by path."""
    base = path if path.is_dir() else path.parent
    files = record_files(path)
    for file in files:
        name = file.relative_to(base).as_posix()
        if suffix_of(file) in LINES and file.suffix != ".gz":
            yield from _of_lines(file, name, unit_bytes)
        elif suffix_of(file) == ".parquet":
            yield from _of_row_groups(file, name, unit_bytes)
        else:
            yield Stretch(name)
    for tar in tar_files(path) if not files or path.is_dir() else []:
        yield Stretch(tar.relative_to(base).as_posix())


def _of_lines(file: Path, name: str, unit_bytes: int) -> Iterator[Stretch]:
    """Cut behind the first line feed after so many bytes; counts the lines before each."""
    start = at = 0
    before = lines = 0
    with reading(file), file.open("rb") as opened:
        for line in opened:
            at, lines = at + len(line), lines + 1
            if at - start >= unit_bytes:
                yield Stretch(name, start, at, before)
                start, before = at, lines
    if at > start:
        yield Stretch(name, start, at, before)


def _of_row_groups(file: Path, name: str, unit_bytes: int) -> Iterator[Stretch]:
    import pyarrow.parquet

    with reading(file):
        table = pyarrow.parquet.ParquetFile(file).metadata
    start = size = before = rows = 0
    for group in range(table.num_row_groups):
        size, rows = size + table.row_group(group).total_byte_size, rows + table.row_group(group).num_rows
        if size >= unit_bytes or group == table.num_row_groups - 1:
            yield Stretch(name, start, group + 1, before)
            start, size, before = group + 1, 0, rows


def task_units(plan: Plan, tasks: int, task: int) -> Sequence[int]:
    """Every so many-th; none where there are more tasks than units. Raises InputError for a task that there is not."""
    if not 0 <= task < tasks:
        raise InputError(f"--task {task}: tasks are numbered from 0 to {tasks - 1}")
    return range(task, len(plan.units), tasks)
