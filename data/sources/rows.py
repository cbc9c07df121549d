"""The records of files that people keep records in, one at a time, however large the file.

    for row in rows(Path("mix.json"), report):      # .json, .jsonl, .csv, .tsv, .parquet, a folder of them
        row.file, row.number, row.value             # mix.json, 3, {...}

A line that is none is a problem of the report (`broken line`); a file that is none raises InputError, as does a folder
without any.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs.errors import InputError, nothing_to_read, plain_file, reading
from ...configs.json_text import json_at, parse_json
from .report import Enough, Problem, Report, Stretch

MAX_LINE = 256 * 2**20
"""Characters of a record that is text; pictures may stand in it as base64."""
CHUNK = 2**20
TRIED = 10
"""Records of which the first good one says of what form a file is."""
TABLES = (".csv", ".tsv", ".parquet")
PARQUET_BATCH = 64
"""Rows read at a time: they may hold pictures."""
NO_RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json")
"""Files that say something of a data set, and hold none of its records."""


@dataclass(frozen=True, slots=True)
class Row:
    file: str
    """Relative to what was named."""
    number: int
    """Line or row, from 1."""
    value: dict[str, Any]
    folder: Path
    """Of its file."""
    table: bool = False
    """Whether all records of its file have the same fields."""

    def check_columns(self, *names: str) -> None:
        """Raises InputError where a table lacks a column; an empty name is none."""
        if lacking := [name for name in names if self.table and name and name not in self.value]:
            raise InputError(f"{self.file}: no column {lacking[0]!r}; it has {', '.join(map(str, self.value))}")


def rows(path: Path, report: Report, names: Collection[str] = ()) -> Iterator[Row]:
    """The records of a file, or of all files of a folder, by path. names: those files of the folder alone.

    Raises InputError where there is no file of records, or where one cannot be read.
    """
    files = record_files(path)
    if names:
        files = [file for file in files if file.name in names]
    if not files:
        raise InputError(f"{path}: no file of records; expected {', '.join(READERS)}")
    base = path if path.is_dir() else path.parent
    stretch = report.stretch
    for file in files:
        name = _valid(file.relative_to(base).as_posix())
        if stretch is not None and stretch.file != name:
            continue
        parts = CUT.get(suffix_of(file)) if stretch is not None and stretch.stop else None
        read = parts(file, stretch) if parts and stretch else READERS[suffix_of(file)](file)
        for number, value in read:
            report.record()
            if isinstance(value, dict):
                yield Row(name, number, value, file.parent, suffix_of(file) in TABLES)
                continue
            rule, reason = "no record", f"a {type(value).__name__}; a record is an object"
            if isinstance(value, _Broken):
                rule, reason = "broken line", str(value)
            report.problems.append(Problem(name, number, rule, "", reason))


def first_record(path: Path) -> dict[str, Any] | None:
    """The first record of a file or folder; None where there is none to read."""
    try:
        return next((row.value for row in rows(path, Report(most_records=TRIED))), None)
    except (InputError, Enough):
        return None


def record_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder, by path; hidden ones and links to folders are passed over."""
    if path.is_file():
        return [path] if suffix_of(path) in READERS else []
    if not path.is_dir():
        raise nothing_to_read(path)
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith((".", "_")) and name not in NO_RECORDS]
    return sorted(file for file in found if suffix_of(file) in READERS and file.is_file() and _inside(file, path))


def suffix_of(path: Path) -> str:
    """`.jsonl`, and that of `a.jsonl.gz`, too."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and suffixes[:-1] else (suffixes[-1:] or [""])[0]


def _inside(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _valid(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


# ---- text ----


class _Broken(str):
    """Why a line is no record."""


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    with (
        reading(file),
        gzip.open(plain_file(file), "rb") if file.suffix == ".gz" else plain_file(file).open("rb") as opened,
    ):
        yield opened


def _lines(file: Path, stretch: Stretch | None = None) -> Iterator[tuple[int, Any]]:
    """Of JSON lines. A line ends at a line feed alone: texts hold all other separators."""
    with _opened(file) as opened:
        number = 0
        if stretch is not None:
            opened.seek(stretch.start)
            number = stretch.before
        while (stretch is None or opened.tell() < stretch.stop) and (line := opened.readline(MAX_LINE)):
            number += 1
            if len(line) == MAX_LINE:
                raise InputError(f"{file}:{number}: a line of more than {MAX_LINE} bytes")
            if line.strip():
                try:
                    yield number, parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    yield number, _Broken(f"not JSON: {error}")


def _array(file: Path) -> Iterator[tuple[int, Any]]:
    """Of a JSON array, read as a stream, or of JSON lines that are called .json."""
    with _opened(file) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig")
        stream = _Stream(text, file)
        first = stream.peek()
        if first != "[":
            if first == "{" and stream.is_lines():
                yield from _lines(file)
                return
            raise InputError(f"{file}: is neither a JSON array nor JSON lines; name the file that holds the records")
        stream.skip(1)
        number = 0
        while (sign := stream.peek()) != "]":
            if number and sign != ",":
                raise InputError(f"{file}: after record {number}: expected `,` or `]`; the file is cut or no JSON")
            stream.skip(number > 0)
            number += 1
            yield number, stream.value(number)


class _Stream:
    """JSON values of a text that is read a piece at a time."""

    def __init__(self, text: io.TextIOBase, file: Path) -> None:
        self.text, self.file = text, file
        self.buffer, self.at, self.ended = "", 0, False

    def peek(self) -> str:
        """The next sign that is no space, empty at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at].isspace():
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more(CHUNK):
                return ""

    def skip(self, signs: int) -> None:
        self.at += signs

    def is_lines(self) -> bool:
        """Is the first line a value of its own?"""
        line, newline, _ = self.buffer[self.at :].partition("\n")
        try:
            parse_json(line)
        except (ValueError, RecursionError):
            return not newline
        return True

    def value(self, number: int) -> Any:
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = json_at(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:  # a number at the end may go on
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended or isinstance(error, RecursionError):
                    raise InputError(f"{self.file}: record {number}: not JSON: {error}") from None
            if len(self.buffer) > MAX_LINE:
                raise InputError(f"{self.file}: record {number}: more than {MAX_LINE} characters, or not JSON")
            self._more(size)
            size *= 2  # a long record is tried again but a few times

    def _more(self, size: int) -> bool:
        piece = self.text.read(size)
        self.ended = not piece
        self.buffer, self.at = self.buffer[self.at :] + piece, 0
        return bool(piece)


def _table(file: Path) -> Iterator[tuple[int, Any]]:
    """Of CSV or TSV with a header."""
    with _opened(file) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, delimiter="\t" if suffix_of(file) == ".tsv" else ",")
        for value in reader:
            extra = value.pop(None, None)  # type: ignore[call-overload]
            cut = extra or None in value.values()
            yield reader.line_num, _Broken("another number of cells than the header") if cut else value


def _parquet(file: Path, stretch: Stretch | None = None) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    with reading(file), pyarrow.parquet.ParquetFile(plain_file(file, None)) as table:
        number = stretch.before if stretch else 0
        groups = range(stretch.start, stretch.stop) if stretch else range(table.num_row_groups)
        for batch in table.iter_batches(PARQUET_BATCH, row_groups=[*groups]):
            for value in batch.to_pylist():
                number += 1
                yield number, value


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _array,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
CUT: dict[str, Callable[[Path, Stretch], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".parquet": _parquet,
}
"""Of files that can be read from the middle."""
