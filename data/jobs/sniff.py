"""`limner data sniff SRC`: which source fits, told by the first records, and the command that reads them.

Every registered source that has `fits(path)` is asked; those that fit are tried on the first records.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ...configs.errors import InputError
from ...configs.registry import entries
from ...configs.schema import did_you_mean
from ..conversion import fitting, open_source, try_source
from ..sources.report import Report
from ..sources.rows import record_files, rows

DATA = (".json", ".jsonl", ".parquet", ".csv", ".tar", ".zip", ".md", ".html", ".gz", ".zst")
"""Endings that no dataset's name has."""
TRIED = 20
"""Records that a source is tried on."""


def sniff(path: Path, images: str = "") -> str:
    """What to say, a command last. Raises InputError where no source fits, naming what was seen."""
    check_there(path)
    found = sorted(fitting(path), key=lambda name: name == "hf")  # which reads the tables of any form
    if not found:
        kinds = "; ".join(f"{name}: {entry.doc}" for name, entry in entries("source").items())
        raise InputError(f"{path}: no source fits: {_seen(path)} ({kinds}); or write a source of your own")
    tried = [(name, *_tried(name, path, images)) for name in found]
    best = max(tried, key=lambda one: one[1].documents if one[1] else -1)
    lines = []
    for name, report, fault in tried:
        lines.append(f"{name}: {entries('source')[name].doc}")
        lines += [f"  {line}" for line in (report.table().splitlines() if report else [fault])]
    name, report, _ = best
    if report and not report.documents and {"missing", "outside"} & {*report.problems.counts}:
        lines.append("No picture is found: say where they are.")
        images = images or "FOLDER_OF_PICTURES"
    extra = ["--images", images] if images else []
    out = f"shards/{path.name.partition('.')[0] or 'data'}"
    lines.append("limner data from " + shlex.join([name, str(path), *extra, "--out", out]))
    return "\n".join(lines)


def check_there(path: Path) -> None:
    """Raises InputError for a path that is not there and can be no name on the Hub: it has an ending of a data file,
    or its first part is a folder here."""
    if path.exists() or (len(path.parts) == 2 and path.suffix not in DATA and not path.parent.is_dir()):
        return
    near = did_you_mean(path.name, [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else [])
    raise InputError(f"{path}: no such file or folder{'; ' + near if near else ''}")


def _tried(name: str, path: Path, images: str) -> tuple[Report | None, str]:
    try:
        source = open_source(name, {"images": images} if images else {})
        return try_source(source, path, TRIED), ""
    except InputError as error:
        return None, str(error)


def _seen(path: Path) -> str:
    if files := record_files(path):
        try:
            row = next(rows(files[0], Report()), None)
        except InputError as error:
            return str(error)
        return f"{files[0].name} has {', '.join(sorted(map(str, row.value))[:20])}" if row else f"{files[0]} is empty"
    if path.is_dir():
        suffixes = sorted({file.suffix for file in path.rglob("*") if file.is_file()})[:12]
        return f"it holds files of {', '.join(suffixes) or 'no kind'}"
    return f"a file of kind {path.suffix or 'unknown'}"
