"""Pictures of prompts, and chats: JourneyDB, ShareGPT-4o-Image, EMOVA-SFT.

    data/train/imgs/007.tgz, data/train/train_anno_realease_repath.jsonl.tgz           JourneyDB; use the repath file
    text_to_image.json, text_and_image_to_image.json, tars or folders of pictures      ShareGPT-4o-Image

Rules of its own: missing (a line whose picture its tar does not hold, or a name that no tar holds).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ....configs.errors import InputError, plain_file, reading
from ....configs.json_text import parse_json
from ....configs.registry import register
from ....models.documents.document import MAX_IMAGE_BYTES, InterleavedDocument, TextSegment
from ..chat import Built, Chat
from ..pairs.captioned import CaptionSettings, caption_of, captioned
from ..pictures import Picture, Pictures, PictureSettings
from ..report import Problem, Refused, Report
from ..rows import first_record, rows

MAX_LINE = 2**20


@register("source", "emova")
@dataclass
class Emova(Chat):
    """EMOVA-SFT: parquet, or the folder that its script makes (annotations/NAME.json, NAME/0.png), without speech."""

    @staticmethod
    def fits(path: Path) -> bool:
        return False  # a chat like any other


@register("source", "journeydb")
@dataclass
class JourneyDB(CaptionSettings):
    """JourneyDB: data/train with imgs/NNN.tgz and the repath annotations; for research, not to be passed on."""

    tars: list[str] = field(default_factory=list)
    """Of `imgs`, by their numbers (`[007, 008]`); all by default. The lines of those read at a time are in memory."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        places = (path / "data/train", path / "train", path)
        folder = next((found for found in places if (found / "imgs").is_dir()), None)
        listed = sorted(folder.glob("*repath.jsonl*")) if folder else []
        if folder is None or not listed:
            raise InputError(f"{path}: no imgs/ with *repath.jsonl or .jsonl.tgz beside it; name JourneyDB's folder")
        wanted = [name.removesuffix(".tgz") for name in self.tars]
        tars = [tar for tar in sorted((folder / "imgs").glob("*.tgz")) if not wanted or tar.stem in wanted]
        lines = _lines_by_tar(listed[0], {tar.stem for tar in tars}, report)
        pictures = Pictures([], report, self.min_side, self.max_aspect)
        for tar in tars:
            own = lines.pop(tar.stem, {})
            for name, data in _streamed(tar, own):
                number, value = own.pop(name)
                report.record()
                try:
                    words = caption_of(value, self.caption or "prompt")
                    yield from captioned(pictures.decode(data), words, f"journeydb:{tar.stem}/{name}", self)
                except Refused as error:
                    report.problems.append(Problem(tar.name, number, error.rule, name, error.reason))
            for name, (number, _) in own.items():
                report.record()
                report.problems.append(Problem(listed[0].name, number, "missing", name, f"not in {tar.name}"))

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and any(path.glob("**/imgs/[0-9][0-9][0-9].tgz"))


def _lines_by_tar(file: Path, tars: set[str], report: Report) -> dict[str, dict[str, tuple[int, dict[str, Any]]]]:
    """(line, record) by tar and file name."""
    found: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {}
    for number, line in enumerate(_text_lines(file), 1):
        try:
            value = parse_json(line)
            tar, name = Path(value["img_path"]).parts[-2:]
            kept = {"prompt": value.get("prompt"), "caption": (value.get("Task2") or {}).get("Caption")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            report.problems.append(Problem(file.name, number, "broken line", "", str(error)))
            continue
        if tar in tars:
            found.setdefault(tar, {})[name] = (number, kept)
    return found


def _text_lines(file: Path) -> Iterator[bytes]:
    """Of JSON lines, or of the one file in a compressed tar."""
    with reading(file):
        if file.suffix != ".tgz":
            with plain_file(file, None).open("rb") as lines:
                yield from lines
            return
        with tarfile.open(file, "r|gz") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                while content is not None and (line := content.readline(MAX_LINE)):
                    yield line


def _streamed(tar: Path, wanted: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The files of a compressed tar that are wanted, by their last name. Raises InputError where it is cut."""
    with reading(tar), tarfile.open(tar, "r|gz") as archive:
        seen: set[str] = set()
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]
            name = member.name.rpartition("/")[2]
            content = archive.extractfile(member) if member.isfile() and name in wanted and name not in seen else None
            if content is not None:
                seen.add(name)
                yield name, content.read() if member.size <= MAX_IMAGE_BYTES else b""


@register("source", "sharegpt4o-image")
@dataclass
class ShareGPT4oImage(PictureSettings):
    """ShareGPT-4o-Image: its two JSON files, with pictures in tars or folders beside them."""

    cuts: ClassVar[bool] = True
    instruction: str = "Draw: {caption}"
    """Of records without a picture to change."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        base = path if path.is_dir() else path.parent
        inside = _Tars(Path(self.images) if self.images else base)
        gallery = self.gallery(path, report)
        for row in rows(path, report):
            pictures = gallery.of(row.folder)
            try:
                yield self._document(row.value, f"sharegpt4o-image:{row.file}:{row.number}", pictures, inside)
            except Refused as error:
                report.problems.append(Problem(row.file, row.number, error.rule, "", error.reason))

    def _document(self, value: Mapping[str, Any], name: str, pictures: Pictures, inside: _Tars) -> Built:
        words = caption_of(value, "input_prompt")
        given = value.get("input_image") or []
        given = [inside.read(one, pictures) for one in ([given] if isinstance(given, str) else given)]
        drawn = inside.read(value.get("output_image"), pictures)
        asked = words if given else self.instruction.replace("{caption}", words)
        segments = (*[picture.given() for picture in given], TextSegment(asked), drawn.learnt())
        originals = [*[picture.original for picture in given], drawn.original]
        return InterleavedDocument(segments, name, {"kind": "text_to_image", "group": words.lower()}), originals

    @staticmethod
    def fits(path: Path) -> bool:
        record = first_record(path)
        return record is not None and {"input_prompt", "output_image"} <= record.keys()


class _Tars:
    """The pictures in the uncompressed tars of a folder, by name, found as they are needed."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.tar"))
        self.places: dict[str, tuple[Path, int, int]] | None = None

    def read(self, name: Any, pictures: Pictures) -> Picture:
        """From a file, or else from a tar. Raises Refused."""
        try:
            return pictures.read(name)
        except Refused as error:
            if error.rule != "missing" or not self.files:
                raise
            found = self._places().get(str(name).removeprefix("./"))
            if found is None:
                raise Refused("missing", f"no file and no member {str(name)[:200]} of {len(self.files)} tars") from None
        tar, start, size = found
        with tar.open("rb") as file:
            file.seek(start)
            return pictures.decode(file.read(size))

    def _places(self) -> dict[str, tuple[Path, int, int]]:
        if self.places is None:
            self.places = {}
            for tar in self.files:
                with reading(tar), tarfile.open(tar, "r:") as archive:
                    for member in archive:
                        archive.members.clear()  # type: ignore[attr-defined]
                        if member.isfile() and not member.issparse() and member.size <= MAX_IMAGE_BYTES:
                            name = member.name.removeprefix("./")
                            self.places[name] = (tar, member.offset_data, member.size)
        return self.places
