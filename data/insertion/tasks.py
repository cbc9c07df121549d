"""Insertion tasks from documents with pictures: the pictures taken out, wrong ones put among them, the gold kept.

    DIR/train.jsonl, heldout.jsonl    a task a line
    DIR/pictures/NAME.png             a picture of a candidate, named after its content

    {"id": "soup.md", "question": "Write an illustrated article: Soup", "sentences": ["Cut the onion.", " Fry it."],
     "candidates": [{"id": "soup.md#1", "caption": "a cut onion", "context": "", "source": "soup.md", "image":
     "pictures/0f3a.png"}], "gold": [{"img": 1, "after": 1}], "meta": {}}

The same documents, settings and seed make the same tasks; a task depends on the order of the others only through the
pictures that are drawn as distractors.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...configs.errors import InputError, plain_file, reading
from ...configs.whole import take_back, whole_directory
from ...models.documents.document import MAX_IMAGE_BYTES, InterleavedDocument, encode_png, open_image, to_rgb
from ..conversion import fitting_source, open_source, read, split_of
from ..prompts import read_lines
from ..shards import INDEX, SPLITS, read_documents, read_index
from ..sources.report import Problem, Report
from .placements import Candidate, InsertionTask, Placement, settled, taken_out

MAX_SIDE = 1024
"""A picture is kept with at most this many pixels on its longer side."""
LOSSLESS_SIDE = 256
"""Up to this size as PNG, above as JPEG: photographs as PNG take ten times the space."""
PICTURE_FILE = re.compile(r"pictures/[0-9a-f]{24}\.(?:png|jpg)")
FIELDS = {"id": str, "question": str, "sentences": list, "candidates": list, "gold": list, "meta": dict}
CANDIDATE_FIELDS = ("id", "caption", "context", "source")

Hard = Callable[[str, int], Sequence[Candidate]]
"""Pictures of the corpus that come near a text, best first: what an index finds."""
Documents = Sequence[InterleavedDocument]


# ---- making ----


def make_tasks(
    documents: Documents, *, distractors: int = 6, abstain_share: float = 0.1, seed: int = 0, hard: Hard | None = None
) -> tuple[list[InsertionTask], Counter[str]]:
    """A task for each document that has text and pictures, and counts: tasks, without gold, and what was left out.

    distractors: pictures of other documents in a task; with `hard` up to half of them are those it finds for the
    sentences where the gold stood. abstain_share: of tasks from which the gold is withheld, so that the right answer
    is to insert nothing; distractors stand in for it, so that the number of candidates says nothing. A candidate's
    context is empty: its neighbours are the very sentences it is to be found for. Raises InputError for settings that
    cannot be, and where no document gives a task.
    """
    if distractors < 0:
        raise InputError(f"distractors: {distractors}; at least 0")
    if not 0 <= abstain_share <= 1:
        raise InputError(f"abstain share: {abstain_share}; between 0 and 1")
    counts: Counter[str] = Counter()
    taken = [(document, *_answer(document)) for document in documents]
    pool = [candidate for document, _, _, _, gold in taken for candidate in gold]
    tasks = []
    for document, question, text, placements, gold in taken:
        if not text or not gold:
            counts["without pictures" if text else "without text"] += 1
            continue
        counts["pictures without a caption"] += sum(not candidate.caption for candidate in gold)
        rng = random.Random(f"{seed} {document.id}")
        abstain = rng.random() < abstain_share
        kept, wanted = ([], distractors + len(gold)) if abstain else (gold, distractors)
        wrong = _hard(hard, text, placements, gold, wanted // 2) if hard else []
        counts["hard distractors"] += len(wrong)
        wrong += _random(rng, pool, [*gold, *wrong], wanted - len(wrong))
        counts["distractors missing"] += wanted - len(wrong)
        if not kept and not wrong:
            counts["without candidates"] += 1
            continue
        tasks.append(_shuffled(rng, question, text, kept, placements, wrong, document.id))
        counts["tasks"] += 1
        counts["tasks without gold"] += not kept
    if not tasks:
        raise InputError(f"no document gives an insertion task ({_said(counts) or 'there are none'})")
    return tasks, +counts


def _answer(
    document: InterleavedDocument,
) -> tuple[str, tuple[str, ...], tuple[Placement, ...], list[Candidate]]:
    """(question, sentences, placements, the document's pictures) of what its author wrote."""
    answer = document.completion if document.completion.segments else document
    question = document.prompt.text if answer is not document else str(document.meta.get("title", ""))
    text, placements, pictures = taken_out(answer)
    gold = [
        Candidate(picture.image, picture.alt, id=f"{document.id}#{number}", source=document.id)
        for number, picture in enumerate(pictures, 1)
    ]
    return question, text, placements, gold


def _hard(
    find: Hard, text: Sequence[str], placements: Sequence[Placement], gold: Sequence[Candidate], count: int
) -> list[Candidate]:
    """What the index finds for the gold places, in turn, of other documents."""
    found: list[Candidate] = []
    for placement in placements:
        where = max(0, placement.after - 1)
        near = find(" ".join(text[where : where + 2]).strip(), 2 * count + len(gold))
        fresh = [candidate for candidate in near if _is_other(candidate, [*gold, *found])]
        found += [replace(candidate, context="") for candidate in fresh[: -(-count // len(placements))]]
    return found[:count]


def _random(rng: random.Random, pool: Sequence[Candidate], taken: Sequence[Candidate], count: int) -> list[Candidate]:
    found: list[Candidate] = []
    # Enough draws to pass over those that may not be taken, without shuffling the pictures of all documents.
    for place in rng.sample(range(len(pool)), min(len(pool), 8 * (count + len(taken)))):
        if len(found) == count:
            break
        if _is_other(pool[place], [*taken, *found]):
            found.append(pool[place])
    return found


def _is_other(candidate: Candidate, taken: Sequence[Candidate]) -> bool:
    """Neither of the same document as the gold nor with a caption that stands there already: it could be right."""
    return all(
        candidate.id != other.id
        and candidate.source != taken[0].source
        and (not candidate.caption or candidate.caption != other.caption)
        for other in taken
    )


def _shuffled(
    rng: random.Random,
    question: str,
    text: tuple[str, ...],
    kept: Sequence[Candidate],
    placements: Sequence[Placement],
    wrong: Sequence[Candidate],
    identifier: str,
) -> InsertionTask:
    offered = [*kept, *wrong]
    order = rng.sample(range(len(offered)), len(offered))
    number = {place: new for new, place in enumerate(order, 1)}
    gold = tuple(Placement(p.after, number[p.candidate - 1]) for p in placements) if kept else ()
    return InsertionTask(question, text, tuple(offered[place] for place in order), gold, identifier)


def read_source(source: Path, heldout_share: float = 0.1) -> tuple[dict[str, list[InterleavedDocument]], list[Problem]]:
    """(documents by split, problems) of shards, or of any folder that a source knows: MRAMG-Bench's files, Markdown.

    All are in memory, pictures encoded. Shards have their splits; of the others a document is held out by its group
    or else its id alone. Raises InputError.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; name shards, MRAMG-Bench's files or a folder of Markdown")
    if not 0 <= heldout_share < 1:
        raise InputError(f"held-out share {heldout_share}: give a number from 0 up to, not including, 1")
    if (source / INDEX).is_file():
        splits = [split for split in SPLITS if read_index(source).of(split)]
        return {split: list(read_documents(source, split, shuffle_seed=None)) for split in splits}, []
    report = Report()
    parts: dict[str, list[InterleavedDocument]] = {"train": [], "heldout": []}
    for document, _ in read(open_source(fitting_source(source)), source, report):
        parts[split_of(document, heldout_share)].append(document)
    return {split: part for split, part in parts.items() if part}, report.problems


# ---- on disk ----


def write_tasks(tasks: Mapping[str, Iterable[InsertionTask]], directory: Path) -> Counter[str]:
    """A file of tasks a split (`train`, `heldout`) and their pictures: whole, or not at all. Returns what was written.

    Raises InputError for a picture that does not decode.
    """
    counts: Counter[str] = Counter()
    with whole_directory(directory) as staging:
        (staging / "pictures").mkdir()
        names: dict[int, tuple[Image.Image, str]] = {}  # by identity: the same object is encoded once
        for split, those in tasks.items():
            with (staging / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for task in those:
                    file.write(json.dumps(_to_json(task, staging, names), ensure_ascii=False) + "\n")
                    counts[f"{split} tasks"] += 1
        counts["pictures"] = len(list((staging / "pictures").iterdir()))
    return counts


def _to_json(task: InsertionTask, folder: Path, names: dict[int, tuple[Image.Image, str]]) -> dict[str, Any]:
    candidates = []
    for number, candidate in enumerate(task.candidates, 1):
        value: dict[str, Any] = {name: getattr(candidate, name) for name in CANDIDATE_FIELDS}
        if candidate.image is not None:
            if id(candidate.image) not in names:
                try:
                    names[id(candidate.image)] = candidate.image, _write_picture(candidate.image, folder)
                except ValueError as error:
                    raise InputError(f"task {task.id!r}, candidate {number}: {error}") from None
            value["image"] = names[id(candidate.image)][1]
        candidates.append(value)
    return {
        **{"id": task.id, "question": task.question, "sentences": list(task.sentences), "candidates": candidates},
        "gold": [{"img": placement.candidate, "after": placement.after} for placement in task.gold],
        "meta": task.meta,
    }


def _write_picture(image: Image.Image, folder: Path) -> str:
    rgb = to_rgb(image)
    if max(rgb.size) > LOSSLESS_SIDE:
        rgb = rgb.copy()
        rgb.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=92)
        data, extension = buffer.getvalue(), "jpg"
    else:
        data, extension = encode_png(rgb), "png"
    name = f"pictures/{hashlib.sha256(data).hexdigest()[:24]}.{extension}"
    (folder / name).write_bytes(data)
    return name


def read_tasks(path: Path, least: int = 1) -> list[InsertionTask]:
    """Tasks of a JSONL file that `write_tasks` wrote; pictures are opened, not decoded.

    Raises InputError naming file and line, and where there are fewer than `least`.
    """
    take_back(path.parent)
    tasks, pictures = [], {}
    for place, value in read_lines(path):
        try:
            tasks.append(_from_json(value, path.parent, pictures))
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
    if len(tasks) < least:
        raise InputError(f"{path}: {len(tasks)} tasks, at least {least} are needed; make more (limner data insertion)")
    return tasks


def _from_json(value: Any, folder: Path, pictures: dict[str, bytes]) -> InsertionTask:
    if not isinstance(value, dict) or any(not isinstance(value.get(name), kind) for name, kind in FIELDS.items()):
        raise ValueError(f"no insertion task; its fields are {', '.join(FIELDS)}")
    if unknown := set(value) - set(FIELDS):
        raise ValueError(f"unknown field {min(unknown)!r}")
    if not all(isinstance(sentence, str) for sentence in value["sentences"]):
        raise ValueError("`sentences` is a list of strings")
    candidates = tuple(_candidate(item, folder, pictures) for item in value["candidates"])
    gold = []
    for item in value["gold"]:
        if not isinstance(item, dict) or {name: type(item[name]) for name in item} != {"img": int, "after": int}:
            raise ValueError('`gold` is a list of {"img": K, "after": N}')
        gold.append(Placement(item["after"], item["img"]))
    faults = settled(gold, len(value["sentences"]), len(candidates))[1]
    if faults:
        raise ValueError(f"`gold` has a placement that is {min(faults)}")
    return InsertionTask(
        value["question"], tuple(value["sentences"]), candidates, tuple(gold), value["id"], value["meta"]
    )


def _candidate(value: Any, folder: Path, pictures: dict[str, bytes]) -> Candidate:
    if not isinstance(value, dict) or set(value) - {*CANDIDATE_FIELDS, "image"}:
        raise ValueError(f"a candidate has the fields {', '.join(CANDIDATE_FIELDS)}, image")
    texts = {name: value.get(name, "") for name in CANDIDATE_FIELDS}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("a candidate's texts are strings")
    name = value.get("image")
    if name is None:
        return Candidate(None, **texts)
    if not isinstance(name, str) or not PICTURE_FILE.fullmatch(name):
        raise ValueError(f"`image` {str(name)[:80]!r} is no picture of this folder")
    if name not in pictures:
        file = folder / name
        with reading(file):
            if file.is_symlink():
                raise ValueError("a symbolic link; put the file itself there")
            pictures[name] = plain_file(file, MAX_IMAGE_BYTES).read_bytes()
    return Candidate(open_image(pictures[name]), **texts)


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def write_source(
    source: Path,
    directory: Path,
    *,
    distractors: int = 6,
    abstain_share: float = 0.1,
    heldout_share: float = 0.1,
    seed: int = 0,
    hard: Hard | None = None,
    overwrite: bool = False,
) -> str:
    """`limner data insertion`: makes and writes the tasks of a source; the report. Raises InputError.

    Distractors are of the same split, but for those that `hard` finds. overwrite: replaces a folder of tasks, but
    nothing else.
    """
    if directory.exists():
        if not overwrite:
            raise InputError(f"{directory}: exists already; name another directory, or --overwrite it")
        names = os.listdir(directory) if directory.is_dir() else [directory.name]
        if strange := set(names) - {"pictures", *(f"{split}.jsonl" for split in SPLITS)}:
            raise InputError(f"{directory}: holds {min(strange)!r}, no tasks, so it is not overwritten; move that away")
    documents, problems = read_source(source, heldout_share)
    tasks, lines = {}, []
    for split, those in documents.items():
        try:
            tasks[split], counts = make_tasks(
                those, distractors=distractors, abstain_share=abstain_share, seed=seed, hard=hard
            )
        except InputError as error:
            if split == "train":
                raise InputError(f"{source}: {error}") from None
            lines.append(f"{split}: {error}")
            continue
        lines.append(f"{split}: {_said(counts)}")
    written = write_tasks(tasks, directory)
    return "\n".join([f"{directory}: {_said(written)}", *lines, *map(str, problems)])
