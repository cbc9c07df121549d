"""GenEval's files: prompts, a folder of pictures in the official layout, and what a detector found in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs.errors import InputError
from ...data.prompts import read_lines, read_values
from ..benchmark import Given, Item
from ..entries import Entry
from ..records import Record, id_of, record_of, text_of

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True)
class Detection:
    name: str
    """Class."""
    score: float
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels, y downwards."""
    color: str | None = None
    """One of COLORS, where it is known."""


def read(path: Path, images: Path | None = None) -> list[tuple[Item, Given | None]]:
    """Prompts of `evaluation_metadata.jsonl`, or of a folder in the official layout with its pictures as answers.

    The layout is `00000/metadata.jsonl` and `00000/samples/0000.png`; there a sample is an item, `00000/0`, and one
    that another prompt has is missing where it is not there. A prompt of the file is one item, `00000`, of which
    `samples_of` makes as many as are to be written.
    """
    if not path.is_dir():
        return [(_item(f"{number:05}", value, place), None) for number, (place, value) in enumerate(read_lines(path))]
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name.isdigit())
    if not folders:
        raise InputError(f"{path}: no folders 00000, 00001 of pictures")
    numbered = {folder: _numbered(folder / "samples") for folder in folders}
    samples = sorted({number for files in numbered.values() for number in files})
    if not samples:
        raise InputError(f"{path}: no pictures; looked for {folders[0].name}/samples/0000.png")
    rows: list[tuple[Item, Given | None]] = []
    for folder, files in numbered.items():
        file = folder / "metadata.jsonl"
        values = read_values(file)
        if len(values) != 1:
            raise InputError(f"{file}: holds {len(values)} prompts; a folder is of one")
        prompt = _item(folder.name, values[0][1], str(file))
        for number in samples:
            rows.append((_sample(prompt, number), _given(folder, files.get(number, []))))
    return rows


def _numbered(samples: Path) -> dict[int, list[Path]]:
    """The files of each number; the folder need not exist."""
    files: dict[int, list[Path]] = {}
    for file in sorted(samples.glob("*")):
        if file.stem.isdecimal():
            files.setdefault(int(file.stem), []).append(file)
    return files


def _given(folder: Path, files: Sequence[Path]) -> Given:
    """The official script reads PNG files alone; so the figure is not one of other pictures."""
    pictures = [file for file in files if file.suffix == ".png"]
    if len(pictures) == 1:
        return Given((Entry(None, pictures[0]),))
    found = f"found {', '.join(file.name for file in files) or 'nothing'}"
    return Given(failure="missing sample", reason=f"{folder}/samples: expected one PNG of that number, {found}")


def _item(identifier: str, value: Any, place: str) -> Item:
    record = record_of(value, place)
    tag, prompt = text_of(record, place, "tag"), text_of(record, place, "prompt")
    include, exclude = (_clauses(record, place, name) for name in ("include", "exclude"))
    if not include:
        raise InputError(f"{place}: field `include` names no object")
    return Item(
        identifier, tag, (Entry(prompt),), meta={"metadata": {**record, "include": include, "exclude": exclude}}
    )


def _clauses(record: Record, place: str, name: str) -> list[Record]:
    """Raises InputError naming the clause, for a class or a count that is none, an unknown colour or place."""
    clauses = record.get(name, [])
    if not isinstance(clauses, list):
        raise InputError(f"{place}: field `{name}` is no list of objects")
    for earlier, clause in enumerate(clauses):
        where = f"{place}: field `{name}`, object {earlier}"
        text_of(record_of(clause, where), where, "class")
        if type(clause.get("count")) is not int or clause["count"] < 1:
            raise InputError(f"{where}: field `count` is no number of at least 1")
        match clause.get("position", [RELATIONS[0], -1]):
            case [str(relation), int(target)] if relation in RELATIONS and -1 <= target < earlier:
                if clause.get("color", COLORS[0]) in COLORS and not ("position" in clause and target < 0):
                    continue
        raise InputError(f"{where}: an unknown colour or place: {clause!r:.120}")
    return clauses


def _sample(item: Item, number: int) -> Item:
    return Item(f"{item.id}/{number}", item.category, item.question, meta=item.meta)


def samples_of(items: Sequence[Item], count: int) -> list[Item]:
    """Each prompt so many times, `00000/0` and on, with random numbers of its own; what is a sample stays as it is."""
    return [
        sample
        for item in items
        for sample in ([item] if "/" in item.id else [_sample(item, number) for number in range(count)])
    ]


def read_detections(path: Path) -> dict[str, list[Detection]]:
    """By item id. Raises InputError naming the line."""
    found: dict[str, list[Detection]] = {}
    for place, value in read_lines(path):
        record = record_of(value, place)
        identifier, objects = id_of(record, place), record.get("objects")
        if not isinstance(objects, list):
            raise InputError(f"{place}: field `objects` is missing or no list")
        found[identifier] = [_detection(one, f"{place}: object {number}") for number, one in enumerate(objects, 1)]
    return found


def _detection(value: Any, place: str) -> Detection:
    record = record_of(value, place)
    name, color = text_of(record, place, "class"), record.get("color")
    if color is not None:
        color = text_of(record, place, "color")
    try:
        return Detection(name, float(record["score"]), _box(record["box"]), color)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{place}: expected `score`, and `box` [x0, y0, x1, y1], as numbers") from None


def _box(value: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, value)
    return x0, y0, x1, y1
