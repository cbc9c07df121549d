"""Tars of pictures with words, as webdataset and img2dataset write them:

    00000.tar      000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...
    00000.parquet  img2dataset's list, with what could not be fetched

Members of a sample stand together; one that comes back later is a fault of the whole tar (`not grouped`), since half
samples would be learnt. Read as a stream, compressed or not. Rules of its own: no text, no picture, several pictures,
unknown member, not fetched.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ....configs.errors import InputError, nothing_to_read, reading
from ....configs.registry import register
from ....models.documents.document import MAX_IMAGE_BYTES
from ..chat import Built
from ..pictures import SUFFIXES, Pictures
from ..report import Problem, Refused, Report
from .captioned import CaptionSettings, caption_of, captioned, of_json

TARS = (".tar", ".tar.gz", ".tgz")
WORDS = ("txt", "text", "caption")
PASSED = ("scores.npy", "npy", "cls", "id", "url")
"""Members of a sample that hold nothing to learn here."""


@dataclass(frozen=True, slots=True)
class Sample:
    tar: str
    number: int
    """From 1."""
    key: str
    members: dict[str, bytes]
    """By what stands behind the first dot of their name."""


@register("source", "webdataset")
@dataclass
class WebDataset(CaptionSettings):
    """Tars of jpg, png or webp with txt or json (webdataset, img2dataset): a file, or a folder of them."""

    cuts: ClassVar[bool] = True

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        files = tar_files(path)
        if not files:
            raise InputError(f"{path}: no tar; expected {', '.join(TARS)}")
        pictures = Pictures([], report, self.min_side, self.max_aspect)
        base = path if path.is_dir() else path.parent
        for file in files:
            if report.stretch is not None and report.stretch.file != file.relative_to(base).as_posix():
                continue
            for sample in samples(file):
                report.record()
                name = f"{file.name.partition('.')[0]}/{sample.key}"
                try:
                    members = sample.members
                    data = _picture(members)
                    words = caption_of(_words(members), self.caption)
                    yield from captioned(pictures.decode(data), words, name, self)
                except Refused as error:
                    report.problems.append(Problem(sample.tar, sample.number, error.rule, sample.key, error.reason))
            _note_failures(file, report)

    @staticmethod
    def fits(path: Path) -> bool:
        files = tar_files(path) if path.exists() else []
        if not files or (path.is_dir() and (path / "index.json").is_file()):
            return False
        try:
            first = next(samples(files[0]), None)
        except InputError:
            return False
        return first is not None and any(f".{name}" in SUFFIXES for name in first.members)


def tar_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder and its folders, by path. Raises InputError where there is neither."""
    if path.is_file():
        return [path] if path.name.lower().endswith(TARS) else []
    if not path.is_dir():
        raise nothing_to_read(path)
    found = (file for file in path.rglob("*") if file.name.lower().endswith(TARS) and not file.name.startswith("."))
    return sorted(file for file in found if file.is_file() and file.resolve().is_relative_to(path.resolve()))


def samples(file: Path) -> Iterator[Sample]:
    """The samples of a tar. Raises InputError naming tar and key where it is cut or a sample is not together."""
    seen, key, members, number = set[str](), "", dict[str, bytes](), 0
    with reading(file):
        try:
            for name, suffix, data in _members(file):
                if name != key:
                    if key:
                        number += 1
                        yield Sample(file.name, number, key, members)
                    if name in seen:
                        raise InputError(
                            f"{file}: {name}.{suffix}: not grouped: other members stand between those of {name!r}; "
                            "sort the tar by name and write it again"
                        )
                    seen.add(name)
                    key, members = name, {}
                members[suffix] = data
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{file}: after {key or 'its beginning'}: {error}; fetch or write it again") from None
    if key:
        yield Sample(file.name, number + 1, key, members)


def _members(file: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of each plain file of a tar."""
    with tarfile.open(file, mode="r|*") as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # a TarFile remembers all it has seen
            folder, slash, base = member.name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if not member.isfile() or member.issparse() or not dot or not stem:
                continue
            if member.size > MAX_IMAGE_BYTES:
                yield folder + slash + stem, suffix.lower(), b""
                continue
            content = archive.extractfile(member)
            data = content.read() if content else b""
            if len(data) != member.size:
                raise tarfile.ReadError(f"{member.name} is cut")
            yield folder + slash + stem, suffix.lower(), data


def _picture(members: dict[str, bytes]) -> bytes:
    found = [name for name in members if f".{name}" in SUFFIXES]
    if not found:
        raise Refused("missing", f"no picture among {', '.join(sorted(members))}")
    if len(found) > 1:
        raise Refused("several pictures", f"{', '.join(sorted(found))}: which is meant is not said")
    if not members[found[0]]:
        raise Refused("too large", f"{found[0]} is empty, or larger than {MAX_IMAGE_BYTES} bytes")
    return members[found[0]]


def _words(members: dict[str, bytes]) -> dict[str, Any]:
    """The text member, where there is one with words; else what the json says."""
    for name in WORDS:
        if text := members.get(name, b"").decode("utf-8-sig", "replace").strip():
            return {name: text, "text": text} if name != "text" else {"text": text}
    return of_json(members["json"], "its json") if "json" in members else {}


def _note_failures(file: Path, report: Report) -> None:
    """What img2dataset could not fetch stands in the list beside the tar alone."""
    listed = file.with_suffix(".parquet")
    if not listed.is_file():
        return
    import pyarrow.parquet

    with reading(listed), pyarrow.parquet.ParquetFile(listed) as table:
        if not {"key", "status"} <= {*table.schema_arrow.names}:
            return
        for batch in table.iter_batches(columns=["key", "status"]):
            for row in batch.to_pylist():
                if row["status"] != "success":
                    why = f"img2dataset: {row['status']}"
                    report.problems.append(Problem(listed.name, 1, "not fetched", str(row["key"]), why))
