"""Records of files that others have published: read in whatever form, their fields checked.

Nothing of a record is trusted: a field of another type is an InputError that names file, record and field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configs.errors import InputError
from ..data.prompts import read_values, records_in

Record = dict[str, Any]


def read_records(path: Path) -> list[tuple[str, Record]]:
    """(place, record) of a benchmark's file, each record with a string `id` that no other has.

    JSON lines or a JSON list (`data.prompts.read_lines`), or a mapping of ids to records or of categories to lists of
    records. An id (`id_of`) that comes again gets `#2`, `#3`. Raises InputError naming file and record.
    """
    whole, values = whole_or_records(path)
    if whole is not None:
        values = list(_flattened(whole, path))
    seen: Counter[str] = Counter()
    records = []
    for place, value in values:
        record = record_of(value, place)
        identifier = id_of(record, place)
        seen[identifier] += 1
        if seen[identifier] > 1:
            identifier = f"{identifier}#{seen[identifier]}"
        records.append((f"{place} ({identifier})", {**record, "id": identifier}))
    return records


def whole_or_records(path: Path) -> tuple[Record | None, list[tuple[str, Any]]]:
    """The one object that a file is, None where it is lines or a list; and its records as `read_lines` has them."""
    values = read_values(path)
    whole = values[0][1] if len(values) == 1 and isinstance(values[0][1], dict) else None
    return whole, records_in(values, path)


def _flattened(value: Record, path: Path) -> Iterator[tuple[str, Any]]:
    records: list[Any] = [value]
    if not {"id", "question_id"} & set(value):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        if len(lists) == len(value):
            records = [record for inner in lists for record in inner]
        else:
            records = [{"id": key, **inner} if isinstance(inner, dict) else inner for key, inner in value.items()]
    if not records:
        raise InputError(f"{path}: holds no records")
    for number, record in enumerate(records, 1):
        yield f"{path}: record {number}", record


# ---- fields ----


def record_of(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def id_of(record: Mapping[str, Any], place: str) -> str:
    """`id`, or `question_id` where there is none. A number is one as well: files of one benchmark differ in that."""
    name = "question_id" if "id" not in record and "question_id" in record else "id"
    if type(value := record.get(name)) not in (str, int):
        raise _fault(record, place, name, "missing or no string")
    return str(value)


def text_of(record: Mapping[str, Any], place: str, name: str) -> str:
    if not isinstance(value := record.get(name), str):
        raise _fault(record, place, name, "missing or no text")
    return value


def texts_of(record: Mapping[str, Any], place: str, name: str) -> list[str]:
    if not isinstance(value := record.get(name), list) or not all(isinstance(text, str) for text in value):
        raise _fault(record, place, name, "no list of texts")
    return value


def names_of(record: Mapping[str, Any], place: str, name: str) -> list[str]:
    """Files of pictures: one, a list of them, or none where there is no such field."""
    if name not in record:
        return []
    return [record[name]] if isinstance(record[name], str) else texts_of(record, place, name)


def answer_of(record: Mapping[str, Any], place: str, names: Sequence[str]) -> str | None:
    """What a system has said: the first of these fields that is there. None without one, or where it is null."""
    name = next((name for name in names if name in record), "")
    value = record.get(name)
    if value is not None and type(value) not in (str, int, float):
        raise _fault(record, place, name, "an answer is a text or a number")
    return None if value is None else str(value)


def _fault(record: Mapping[str, Any], place: str, name: str, what: str) -> InputError:
    found = f"it is {record[name]!r:.80}" if name in record else f"found {', '.join(map(repr, record)) or 'nothing'}"
    return InputError(f"{place}: field `{name}`: {what}; {found}")
