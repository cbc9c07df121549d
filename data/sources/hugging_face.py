"""Hugging Face data sets: a folder of `save_to_disk`, parquet files, or ORG/NAME on the Hub, which is streamed.

    limner data from hf HuggingFaceM4/the_cauldron --set config=ai2d --out shards/ai2d

Rows are what their columns say: chats (`messages`, `conversations`, `texts`), documents (`segments`), or a picture with
a caption; pictures are bytes, never decoded twice. Rules are those of the form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...configs.errors import InputError
from ...configs.registry import register
from .captioned import CaptionSettings, caption_of, captioned
from .chat import Built, ChatSettings, chat_documents, row_id
from .dialects import references, speaks
from .jsonl import document_of, is_document
from .pictures import Gallery
from .report import Problem, Refused, Report
from .rows import Row, record_files, rows, suffix_of

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ON_DISK = ("dataset_dict.json", "state.json")
Form = Literal["chat", "captioned", "documents"]


@register("source", "hf")
@dataclass
class HuggingFace(ChatSettings, CaptionSettings):
    """A Hugging Face data set: a folder of save_to_disk, parquet files, or ORG/NAME on the Hub."""

    form: Literal["auto", "chat", "captioned", "documents"] = "auto"
    """What a row is; by default as its columns say."""
    kind: str = ""
    """Of documents: understanding for chats and interleaved for documents by default."""
    config: str = ""
    """Of a data set on the Hub that has several."""
    split: str = "train"
    """Read alone: what is there to be tested with is not for training."""
    revision: str = ""
    """Branch, tag or commit on the Hub."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        gallery = self.gallery(path, report)
        form: Form | None = None
        for row in self.rows(path, report):
            form = form or self._form(row)
            yield from self._documents(form, row, gallery)

    def _documents(self, form: Form, row: Row, gallery: Gallery) -> Iterator[Built]:
        pictures = gallery.of(row.folder)
        if form == "chat":
            yield from chat_documents(row.value, row, pictures, self, self.kind or "understanding")
            return
        try:
            if form == "documents":
                value = {name: given for name, given in row.value.items() if given is not None}
                yield document_of(value, row, pictures, self.kind or "interleaved")
            else:
                words = caption_of(row.value, self.caption)
                listed = references(row.value, self.pictures)
                if len(listed) != 1:
                    raise Refused("several pictures" if listed else "missing", f"{len(listed)} pictures, expected one")
                yield from captioned(pictures.read(listed[0]), words, row_id(row.value, row), self)
        except Refused as error:
            pictures.report.problems.append(Problem(row.file, row.number, error.rule, "", error.reason))

    def _form(self, row: Row) -> Form:
        """By the columns of the first row. Raises InputError naming those that there are."""
        columns = ", ".join(row.value)
        row.check_columns(self.pictures, self.caption)
        if self.form != "auto":
            return self.form
        form = form_of(row.value, self.caption, self.pictures)
        if form is None:
            raise InputError(
                f"{row.file}: its columns are {columns}; expected messages, conversations or texts (chat), segments "
                "(documents), or an image and a caption; name them by --set pictures=COLUMN --set caption=COLUMN"
            )
        return form

    def rows(self, path: Path, report: Report) -> Iterator[Row]:
        """Raises InputError where there is no such data set, config or split, and where it cannot be reached."""
        if path.exists() and not is_on_disk(path):
            yield from rows(path, report)
            return
        if not path.exists() and not HUB_NAME.fullmatch(path.as_posix()):
            raise InputError(f"{path}: neither a file or folder here nor ORG/NAME of a data set on the Hub")
        name = path.name if path.exists() else path.as_posix()
        for number, value in enumerate(self._loaded(path), 1):
            report.record()
            yield Row(name, number, value, path, table=True)

    def _loaded(self, path: Path) -> Any:
        import datasets

        try:
            if path.exists():
                loaded = datasets.load_from_disk(str(path))
                if isinstance(loaded, datasets.DatasetDict):
                    if self.split not in loaded:
                        raise InputError(
                            f"{path}: no split {self.split!r}; it has {', '.join(map(str, loaded))} (--set split=..)"
                        )
                    loaded = loaded[self.split]
            else:
                loaded = datasets.load_dataset(
                    path.as_posix(),
                    self.config or None,
                    split=self.split,
                    streaming=True,
                    revision=self.revision or None,
                )
            return undecoded(loaded)
        except InputError:
            raise
        except Exception as error:  # whatever is raised over an address, a name or a file
            words = " ".join(str(error).split())[:400]
            raise InputError(f"{path}: cannot be loaded ({type(error).__name__}: {words})") from error

    @staticmethod
    def fits(path: Path) -> bool:
        if not path.exists():
            return HUB_NAME.fullmatch(path.as_posix()) is not None
        return is_on_disk(path) or (
            bool(files := record_files(path)) and all(suffix_of(file) == ".parquet" for file in files)
        )


def is_on_disk(path: Path) -> bool:
    """Written by `save_to_disk`?"""
    return path.is_dir() and any((path / name).is_file() for name in ON_DISK)


def form_of(value: Mapping[str, Any], caption: str = "", pictures: str = "") -> Form | None:
    if is_document(value):
        return "documents"
    if speaks(value):
        return "chat"
    pictured = bool(references(value, pictures)) or any(name in value for name in (pictures, "image", "images"))
    try:
        return "captioned" if pictured and caption_of(value, caption) else None
    except Refused:
        return None


def undecoded(loaded: Any) -> Any:
    """The data set with its pictures as {"bytes": .., "path": ..}."""
    import datasets

    if isinstance(loaded, datasets.IterableDataset):
        return loaded.decode(False)
    return loaded.with_format(None).cast(_undecoded(loaded.features)) if loaded.features else loaded


def _undecoded(feature: Any) -> Any:
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, dict):
        return type(feature)({name: _undecoded(inner) for name, inner in feature.items()})
    if isinstance(feature, datasets.List | datasets.LargeList):
        return type(feature)(_undecoded(feature.feature))
    return feature
