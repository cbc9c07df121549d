"""Pairs of answers of which one should be preferred: what people chose, and documents against damaged copies of them.

    form        a record
    jsonl       {"prompt": D, "a": D, "b": D, "preferred": "a", "b" or "tie"} a line; D: a text or a document as JSON
    mmrb2       `interleaved.json` of MMRB2 (arXiv 2512.16899), built by the benchmark's own script
    opening     `Interleaved_Arena/judge_modelAB_results.json` in a checkout of OpenING (arXiv 2411.18499)

A pair whose answers or pictures are not there is skipped and says why; a record of another form is an InputError.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ...configs.errors import InputError
from ...data.prompts import read_lines, read_values
from ...data.shards import read_documents
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..entries import Entry, PictureFault, inside, segments_of
from ..records import Record, record_of, whole_or_records

Preference = Literal["a", "b", "tie"]
Form = Literal["jsonl", "mmrb2", "opening"]
Corruption = Literal["shuffled_pictures", "blank_pictures", "exchanged_texts"]

PREFERENCES = "preferences"
"""Group of the pairs that people compared; a sanity pair's group is its corruption."""
BENCHMARK_FOLDER, OUTPUTS = "OpenING-Benchmark", "gen_outputs"


@dataclass(frozen=True, slots=True)
class Pair:
    id: str
    group: str
    prompt: InterleavedDocument
    a: InterleavedDocument
    b: InterleavedDocument
    preferred: Preference


@dataclass(frozen=True, slots=True)
class Skipped:
    """A pair that cannot be compared."""

    id: str
    kind: str
    reason: str


# ---- what people preferred ----


def read_pairs(path: Path, form: Form, images: Path | None = None) -> Iterator[Pair | Skipped]:
    """One after the other, so that the pictures of all of them need not fit in memory.

    images: folder that pictures are relative to. By default that of the file; for `opening` the folder above it, which
    holds `OpenING-Benchmark/`, and `MODEL_output/` itself or in `gen_outputs/`. Raises InputError naming file and
    record.
    """
    if form == "jsonl":
        return (_own(value, place) for place, value in read_lines(path))
    if form == "mmrb2":
        return (_mmrb2(record, images or path.parent, place) for place, record in _records(path))
    return (_opening(record, images or path.resolve().parent.parent, place) for place, record in _records(path))


def _own(value: Any, place: str) -> Pair:
    if not isinstance(value, dict) or (missing := {"prompt", "a", "b", "preferred"} - set(value)):
        lacks = f"lacks {min(missing)!r}" if isinstance(value, dict) else "is no object"
        raise InputError(f'{place}: {lacks}; a line is {{"prompt": ..., "a": ..., "b": ..., "preferred": "a"}}')
    prompt, a, b = (_document(value[name], f"{place}: {name}") for name in ("prompt", "a", "b"))
    preferred = _preferred(value["preferred"], f"{place}: preferred")
    return Pair(str(value.get("id", place)), PREFERENCES, prompt, a, b, preferred)


def _document(value: Any, place: str) -> InterleavedDocument:
    if isinstance(value, str):
        return InterleavedDocument((TextSegment(value),))
    try:
        return InterleavedDocument.from_json(value)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None


def _mmrb2(record: dict[str, Any], root: Path, place: str) -> Pair | Skipped:
    """Its scorer calls the fields `id` and `chosen`, its documentation `pair_id` and `human_preference`."""
    identifier = str(record.get("id", record.get("pair_id", place)))
    if not record.get("prompt_content"):
        raise InputError(f"{place}: no `prompt_content`; build the file with the benchmark's run_release.sh first")
    contents = [record["prompt_content"]]
    for name in ("response_a", "response_b"):
        response = record.get(name)
        contents.append(response.get("response_content") if isinstance(response, dict) else None)
    preferred = _preferred(record.get("chosen", record.get("human_preference")), f"{place}: chosen")
    entries = [_content(content, root, place) for content in contents]
    try:
        prompt, a, b = (InterleavedDocument(segments_of(row)) for row in entries)
    except PictureFault as fault:
        return Skipped(identifier, fault.kind, str(fault))
    return Pair(identifier, PREFERENCES, prompt, a, b, preferred)


def _content(content: Any, root: Path, place: str) -> list[Entry]:
    """`[["text", "Peel them."], ["image", "images/peel.png"]]`"""
    entries = []
    for part in content if isinstance(content, list) else [None]:
        match part:
            case ["text", str(text)]:
                entries.append(Entry(text))
            case ["image", str(name)]:
                entries.append(Entry(None, inside(root, name, place)))
            case _:
                raise InputError(
                    f'{place}: a content is a list of ["text", TEXT] and ["image", FILE], not {part!r:.80}'
                )
    return entries


def _opening(record: dict[str, Any], root: Path, place: str) -> Pair | Skipped:
    models = [record.get(key) for key in ("model_A", "model_B")]
    names = [model.get("name") if isinstance(model, dict) else None for model in models]
    if not isinstance(record.get("data_id"), str | int) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{place}: expected `data_id`, and `model_A` and `model_B` with a `name`")
    uid, preferred = str(record["data_id"]), _preferred(record.get("winner"), f"{place}: winner")
    identifier = f"{uid} {names[0]} {names[1]}"
    files = [_output(root, f"{name}_output", uid, place) for name in names]
    for name, file in zip(names, files, strict=True):
        if file is None:
            sought = f"{name}_output/{uid}.json or .jsonl"
            return Skipped(identifier, "missing answer", f"{sought}: neither in {root} nor in its {OUTPUTS}")
    found = [file for file in files if file is not None]
    turns = [_turns(file) for file in found]
    try:
        prompt = _turn(turns[0], "input", _folder(root, BENCHMARK_FOLDER, place), found[0])
        a, b = (_turn(turn, "output", file.parent, file) for turn, file in zip(turns, found, strict=True))
    except PictureFault as fault:
        return Skipped(identifier, fault.kind, str(fault))
    return Pair(identifier, PREFERENCES, prompt, a, b, preferred)


def _output(root: Path, folder: str, uid: str, place: str) -> Path | None:
    """A model's answer, beside the benchmark or, as in the released repository, in `gen_outputs`, some as `.jsonl`."""
    for base in (root, root / OUTPUTS):
        for suffix in (".json", ".jsonl"):
            file = inside(_folder(base, folder, place), f"{uid}{suffix}", place)
            with suppress(OSError):  # a name too long
                if file.is_file():
                    return file
    return None


def _folder(root: Path, name: str, place: str) -> Path:
    """The folder of that name, in whatever case: the release was made on a system that does not tell them apart."""
    folder = inside(root, name, place)
    with suppress(OSError):
        if not folder.is_dir() and root.is_dir():
            return next((path for path in sorted(root.iterdir()) if path.name.lower() == name.lower()), folder)
    return folder


def _turns(file: Path) -> dict[str, Any]:
    """`{"conversations": [{"input": [...]}, {"output": [...]}]}` -> `{"input": [...], "output": [...]}`"""
    values = read_values(file)
    turns = record_of(values[0][1], str(file)).get("conversations") if len(values) == 1 else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{file}: expected one object with a list `conversations` of `input` and `output`")
    return {name: turn for both in turns for name, turn in both.items()}


def _turn(turns: dict[str, Any], name: str, folder: Path, file: Path) -> InterleavedDocument:
    """Outputs name their pictures by paths of the machine that made them: the file's own name counts."""
    entries = []
    steps = turns.get(name) or []
    if not isinstance(steps, list):
        raise InputError(f"{file}: `{name}` is no list of steps")
    for step in steps:
        text, image = (record_of(step, f"{file}: a step of `{name}`").get(key) for key in ("text", "image"))
        if not isinstance(text, str | None) or not isinstance(image, str | None):
            raise InputError(f"{file}: a step of `{name}`: `text` and `image` are strings or null")
        text = (text or "").replace("<BEGIN>", "").replace("<image>", "").strip()
        picture = image if name == "input" or not image else image.replace("\\", "/").rpartition("/")[2]
        entries.append(Entry(text or None, inside(folder, picture, str(file)) if picture else None))
    return InterleavedDocument(segments_of(entries))


def _preferred(value: Any, place: str) -> Preference:
    """`A`, `b`, `Tie`; `Tie(A)`, which leans to A, is a tie."""
    word = value.lower() if isinstance(value, str) else ""
    if word == "a" or word == "b":
        return word
    if word.startswith("tie"):
        return "tie"
    raise InputError(f"{place}: {value!r:.80} is none of A, B and tie")


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    """(place, record) of a JSON list or lines, or of the list `pairs` of an object."""
    whole, records = whole_or_records(path)
    if whole and isinstance(pairs := whole.get("pairs"), list):
        records = [(f"{path}: record {number}", pair) for number, pair in enumerate(pairs, 1)]
    return ((place, record_of(record, place)) for place, record in records)


# ---- the sanity set ----


def read_answered(path: Path, split: str, limit: int) -> list[InterleavedDocument]:
    """The first documents of a split of shards, or of a JSONL file of documents. Raises InputError."""
    if path.is_dir():
        documents = read_documents(path, split, shuffle_seed=None)
    else:
        documents = (_document(value, place) for place, value in read_lines(path))
    found = list(itertools.islice(documents, limit))
    if len(found) < 2:
        where = f"{path}, split {split}" if path.is_dir() else str(path)
        raise InputError(f"{where}: {len(found)} documents; two or more have something to exchange")
    return found


def sanity_pairs(
    documents: Sequence[InterleavedDocument], corruptions: Sequence[Corruption]
) -> Iterator[Pair | Skipped]:
    """Each document's answer (a, preferred) against a copy of it with one thing damaged (b); the prompt stays.

    shuffled_pictures: the pictures of another document's answer, in their order, as many as there were.
    blank_pictures: white ones of the same size. exchanged_texts: the texts of another document's answer.
    A document is skipped where that changes nothing: it has no such segment, or no other document differs in them.
    """
    answers = [document.completion for document in documents]
    for index, (document, answer) in enumerate(zip(documents, answers, strict=True)):
        others = [*answers[index + 1 :], *answers[:index]]
        for corruption in corruptions:
            identifier = f"{document.id or index} {corruption}"
            try:
                damaged = CORRUPTIONS[corruption](answer, others)
            except ValueError as error:
                yield Skipped(identifier, "unreadable image", str(error))
                continue
            if damaged is None:
                yield Skipped(identifier, f"no {corruption}", "it would change nothing")
            else:
                yield Pair(identifier, corruption, document.prompt, answer, damaged, "a")


def _shuffled(answer: InterleavedDocument, others: Sequence[InterleavedDocument]) -> InterleavedDocument | None:
    own = [segment.pixels() for segment in answer.images]
    for other in others:
        pictures = [ImageSegment(segment.pixels(), True, "generated") for segment in other.images]
        replaced = _replaced(answer, ImageSegment, pictures)
        if replaced and any(_differ(x, y.pixels()) for x, y in zip(own, replaced.images, strict=True)):
            return replaced
    return None


def _blank(answer: InterleavedDocument, others: Sequence[InterleavedDocument]) -> InterleavedDocument | None:
    sizes = [segment.pixels().size for segment in answer.images]
    white = [ImageSegment(Image.new("RGB", size, "white"), True, "generated") for size in sizes]
    seen = any(segment.pixels().getcolors(1) is None for segment in answer.images)  # more than one colour
    return _replaced(answer, ImageSegment, white) if seen else None


def _exchanged(answer: InterleavedDocument, others: Sequence[InterleavedDocument]) -> InterleavedDocument | None:
    for other in others:
        texts = [segment for segment in other.segments if _is(segment, TextSegment)]
        replaced = _replaced(answer, TextSegment, texts)
        if replaced and replaced.text != answer.text:
            return replaced
    return None


CORRUPTIONS: dict[
    Corruption, Callable[[InterleavedDocument, Sequence[InterleavedDocument]], InterleavedDocument | None]
] = {"shuffled_pictures": _shuffled, "blank_pictures": _blank, "exchanged_texts": _exchanged}


def _replaced(
    answer: InterleavedDocument, kind: type[Segment], substitutes: Sequence[Segment]
) -> InterleavedDocument | None:
    """With its segments of one kind replaced in order, from the first substitute again where they are fewer."""
    if not substitutes or not any(_is(segment, kind) for segment in answer.segments):
        return None
    supply = itertools.cycle(substitutes)
    return replace(
        answer, segments=tuple(next(supply) if _is(segment, kind) else segment for segment in answer.segments)
    )


def _is(segment: Segment, kind: type[Segment]) -> bool:
    """Of that kind; a text of white space alone is none."""
    return isinstance(segment, kind) and not (isinstance(segment, TextSegment) and not segment.text.strip())


def _differ(one: Image.Image, other: Image.Image) -> bool:
    return one.size != other.size or one.tobytes() != other.tobytes()
