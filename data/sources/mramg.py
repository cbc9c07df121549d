"""MRAMG-Bench (arXiv 2502.04176) as it is released: documents with pictures, and questions about them.

    doc_recipe.jsonl              an array a line: [id, text, [image ids]]; `<PIC>` stands for a picture
    recipe_mqa.jsonl              an object a line: id, question, provenance, ground_truth, images_list
    IMAGE/images/RECIPE/FILE      in some copies IMAGE/IMAGE/images/RECIPE/FILE
    IMAGE/images_info/recipe_imgs_collection.json    image id -> image_path, image_caption, image_url

Ids are numbers in some subsets and strings in others; here those of documents, questions and pictures are strings with
the subset before them, `recipe/12`. What is wrong with a record or a picture is a problem of the report.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs.errors import InputError, plain_file, reading
from ...configs.json_text import parse_json
from ...configs.registry import register
from ...models.documents.document import (
    MAX_IMAGE_BYTES,
    ImageSegment,
    InterleavedDocument,
    Segment,
    TextSegment,
    open_image,
)
from .report import Problem, Refused, Report

DOMAINS = {
    "wit": "web",
    "wiki": "web",
    "web": "web",
    "arxiv": "academic",
    "recipe": "lifestyle",
    "manual": "lifestyle",
}
"""Of each subset."""
PIC = "<PIC>"
DEBRIS = re.compile(r"_x[0-9A-Fa-f]{4}_|[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""What the conversion from PDF has left in the texts of arxiv: escaped and raw control characters."""


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    """`recipe/bc_1`."""
    subset: str
    question: str
    """Without `<PIC>`."""
    provenance: tuple[str, ...]
    """Ids of the documents that hold the answer."""
    ground_truth: str
    """`<PIC>` where a picture stands."""
    images: tuple[str, ...]
    """Gold image ids, `recipe/apple-pie`, in the order of the answer."""


@register("source", "mramg")
class MRAMGDocuments:
    """The documents of MRAMG-Bench: files doc_SUBSET.jsonl, and a folder IMAGE."""

    def documents(self, path: Path, report: Report) -> Iterator[InterleavedDocument]:
        return read_corpus(path, report=report)

    @staticmethod
    def fits(path: Path) -> bool:
        return any(path.glob("doc_*.jsonl"))


def read_corpus(
    folder: Path, subsets: Sequence[str] = (), *, clean: bool = False, report: Report | None = None
) -> Iterator[InterleavedDocument]:
    """The documents of the subsets, by default of all whose file is there; a picture's alt text is its caption.

    `meta["images"]` has the id of each picture of the document, in its order. Where `<PIC>` and image list differ in
    number, a picture too many stands at the end and a `<PIC>` too many for nothing. Pictures are read from inside the
    folder only, and decoded when they are used.

    clean: without the debris of PDFs. report: gets the counts, and as problems documents of an id that was there
    (duplicate), those with debris (debris) or another number of `<PIC>` (placeholders), and pictures that are not
    taken: missing, outside, unreadable, too large. Raises InputError naming file and line for any other form.
    """
    folder, report = folder.resolve(), Report() if report is None else report
    for subset in subsets_of(folder, subsets, "doc_{}.jsonl"):
        file = folder / f"doc_{subset}.jsonl"
        gallery: Gallery | None = None
        seen: set[str] = set()
        for number, place, value in _lines(file):
            if not isinstance(value, list) or len(value) != 3 or not isinstance(value[1], str):
                raise InputError(f"{place}: expected an array of id, text and image ids")
            identifier, text = f"{subset}/{_key(value[0], place)}", value[1]
            ids = _keys(value[2], f"{place}: image ids")
            problems: list[tuple[str, str, str]] = []
            pictures: dict[int, ImageSegment] = {}
            if identifier in seen:
                problems.append(("duplicate", "", f"{identifier} was there before; this one is left out"))
            else:
                if found := len(DEBRIS.findall(text)):
                    problems.append(("debris", "", f"{found} control characters {'taken out' if clean else 'kept'}"))
                if text.count(PIC) != len(ids):
                    problems.append(("placeholders", "", f"{text.count(PIC)} times {PIC}, {len(ids)} pictures"))
                for index, image in enumerate(ids):
                    gallery = gallery or Gallery(folder, subset)
                    try:
                        pictures[index] = gallery.picture(image)
                    except Refused as error:
                        problems.append((error.rule, image, error.reason))
            report.problems += [Problem(file.name, number, *problem) for problem in problems]
            if identifier not in seen:
                seen.add(identifier)
                text = DEBRIS.sub("", text) if clean else text
                meta = {"images": [f"{subset}/{ids[index]}" for index in pictures]}
                report.documents += 1
                report.images += len(pictures)
                yield InterleavedDocument(_segments(text, pictures), identifier, meta)


def read_questions(folder: Path, subsets: Sequence[str] = (), *, report: Report | None = None) -> list[Question]:
    """The questions of the subsets, by default of all whose file is there.

    report: gets as problems questions of an id that was there (duplicate), those in which `<PIC>` stands (question),
    and those whose ground truth has another number of `<PIC>` than gold images (placeholders). Raises InputError
    naming file, line and field for any other form.
    """
    report = Report() if report is None else report
    questions: dict[str, Question] = {}
    for subset in subsets_of(folder, subsets, "{}_mqa.jsonl"):
        file = folder / f"{subset}_mqa.jsonl"
        for number, place, value in _lines(file):
            if not isinstance(value, dict):
                raise InputError(f"{place}: expected an object, got {type(value).__name__}")
            for name in ("question", "ground_truth"):
                if not isinstance(value.get(name), str):
                    raise InputError(f"{place}: field `{name}` is missing or no string")
            identifier = f"{subset}/{_key(value.get('id'), place)}"
            asked, answer = value["question"], value["ground_truth"]
            images = _keys(value.get("images_list"), f"{place}: field `images_list`")
            provenance = _keys(value.get("provenance"), f"{place}: field `provenance`")
            problems = []
            if identifier in questions:
                problems.append(("duplicate", f"{identifier} was there before; this one is left out"))
            if PIC in asked:
                problems.append(("question", f"{asked.count(PIC)} times {PIC} in the question, taken out"))
            if answer.count(PIC) != len(images):
                problems.append(("placeholders", f"{answer.count(PIC)} times {PIC}, {len(images)} gold images"))
            report.problems += [Problem(file.name, number, kind, "", reason) for kind, reason in problems]
            documents = tuple(f"{subset}/{document}" for document in provenance)
            gold = tuple(f"{subset}/{image}" for image in images)
            asked = " ".join(asked.replace(PIC, " ").split())
            questions.setdefault(identifier, Question(identifier, subset, asked, documents, answer, gold))
    return list(questions.values())


def subsets_of(folder: Path, subsets: Sequence[str], pattern: str) -> list[str]:
    """Those asked for, or all that have a file of this name. Raises InputError where there is none."""
    if unknown := [subset for subset in subsets if subset not in DOMAINS]:
        raise InputError(f"subsets: {unknown[0]!r} is none of {', '.join(DOMAINS)}")
    found = list(subsets) or [subset for subset in DOMAINS if (folder / pattern.format(subset)).is_file()]
    if not found:
        raise InputError(f"{folder}: no {pattern.format('SUBSET')}; name the folder of MRAMG-Bench's files")
    return found


def _lines(file: Path) -> Iterator[tuple[int, str, Any]]:
    """(line number, `FILE:NUMBER`, JSON value). A line ends at a line feed alone: texts hold all other separators."""
    with reading(file), plain_file(file).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, f"{file}:{number}", parse_json(line)
                except ValueError as error:
                    raise InputError(f"{file}:{number}: not JSON: {error}") from None


def _key(value: Any, place: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{place}: an id is a string or a whole number, got {value!r}")
    return str(value)


def _keys(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError(f"{place}: expected a list of ids, got {type(value).__name__}")
    return tuple(_key(one, place) for one in value)


def _segments(text: str, pictures: dict[int, ImageSegment]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    parts = text.split(PIC)
    for index, part in enumerate(parts):
        if part and segments and isinstance(segments[-1], TextSegment):
            segments[-1] = TextSegment(segments[-1].text + part)
        elif part:
            segments.append(TextSegment(part))
        if index in pictures and index < len(parts) - 1:
            segments.append(pictures[index])
    segments += [picture for index, picture in pictures.items() if index >= len(parts) - 1]
    return tuple(segments)


class Gallery:
    """The pictures of a subset, by ids without the subset. Raises InputError where the list of them is not there."""

    def __init__(self, folder: Path, subset: str):
        folder = folder.resolve()
        bases = [folder / "IMAGE" / "IMAGE", folder / "IMAGE", folder]
        lists = [base / "images_info" / f"{subset}_imgs_collection.json" for base in bases]
        file = next((file for file in lists if file.is_file()), lists[1])
        with reading(file):
            self.listed = parse_json(plain_file(file).read_text(encoding="utf-8"))
        if not isinstance(self.listed, dict):
            raise InputError(f"{file}: expected an object of image ids, got {type(self.listed).__name__}")
        base = next((base for base in bases if (base / "images" / subset.upper()).is_dir()), bases[1])
        self.folder, self.list = folder, file
        self.places = (base / "images" / subset.upper(), base / "images", base)

    def __contains__(self, image: str) -> bool:
        return image in self.listed

    def picture(self, image: str) -> ImageSegment:
        """Not yet decoded. Raises Refused."""
        path = self.file(image)
        try:
            if path.stat().st_size > MAX_IMAGE_BYTES:
                raise Refused("too large", f"{path.stat().st_size} bytes; the limit is {MAX_IMAGE_BYTES}")
            caption = self.listed[image].get("image_caption")
            return ImageSegment(open_image(path.read_bytes()), alt=caption if isinstance(caption, str) else "")
        except (OSError, ValueError) as error:
            raise Refused("unreadable", str(error)) from None

    def file(self, image: str) -> Path:
        """Inside the folder, and there. Raises Refused."""
        entry = self.listed.get(image)
        if entry is None:
            raise Refused("missing", f"{self.list.name} does not list it")
        name = entry.get("image_path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise Refused("missing", f"{self.list.name} names no image_path")
        for place in self.places:
            try:
                path = (place / name).resolve()
                if not path.is_relative_to(self.folder):
                    raise Refused("outside", f"{name} is not inside the folder")
                if path.is_file():
                    return path
            except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, a loop of links
                continue
        raise Refused("missing", f"no file {name}")
