"""Writes shards: a folder appears under its name when all of it is there, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from ...configs.errors import InputError, writing
from ...configs.whole import Staging
from ...models.documents.document import InterleavedDocument
from ..records import Record, encode_record
from .index import FIELDS, FORMAT, INDEX, SHARD_FILE, SPLITS, Shard, ShardIndex, packed_offsets


class ShardFiles:
    """Writes the shards of a folder that is there, without an index; `finish` says which they are."""

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: str | None = None,
        max_records: int = 10_000,
        max_bytes: int = 2**30,
        first_key: int = 0,
    ) -> None:
        """first_key: number of the first record, for folders that are put together later."""
        self.folder, self.fingerprint = folder, fingerprint
        self.max_records, self.max_bytes = max_records, max_bytes
        self.records = first_key
        self._shards: list[Shard] = []
        self._open: dict[str, OpenShard] = {}
        self._kinds: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._open.values():
            shard.abandon()

    def write(self, document: InterleavedDocument, split: str = "train", encoded: Sequence[bytes | None] = ()) -> None:
        """Appends a document (`encoded`: see `encode_record`). Raises InputError; the writer stays usable then.

        A full disk is an OSError: no fault of the document, and nothing goes on after it.
        """
        if split not in SPLITS:
            raise InputError(f"document {document.id!r}: split {split!r} is none of {', '.join(SPLITS)}")
        if self.fingerprint is None and any(segment.codes_N is not None for segment in document.images):
            raise InputError(f"document {document.id!r}: image codes without the fingerprint of their image tokenizer")
        record = encode_record(document, f"{self.records:09d}", encoded)
        self._append(record, split)
        self.records += 1
        self._kinds[split][document.meta["kind"]] += 1

    def _append(self, record: Record, split: str) -> None:
        shard = self._open.get(split)
        if shard is not None and (shard.records >= self.max_records or shard.bytes >= self.max_bytes):
            self._shards.append(self._open.pop(split).finish())
            shard = None
        if shard is None:
            number = len([shard for shard in self._shards if shard.split == split])
            shard = self._open[split] = OpenShard(self.folder / f"{split}-{number:06d}.tar", split)
        shard.write(record)

    def finish(self) -> tuple[tuple[Shard, ...], dict[str, dict[str, int]]]:
        """The shards, and their records by split and kind."""
        while self._open:
            self._shards.append(self._open.popitem()[1].finish())
        kinds = {split: dict(sorted(kinds.items())) for split, kinds in self._kinds.items()}
        return tuple(sorted(self._shards, key=lambda shard: shard.file)), kinds


class ShardWriter:
    """Writes a shard directory. It appears under its name when the `with` block ends without an error, only then.

    Until then everything lies in a hidden directory beside it: see `configs/whole.py`. Raises InputError where the
    directory exists and `overwrite` is off, or where it holds something other than shards.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        overwrite: bool = False,
        fingerprint: str | None = None,
        report: dict[str, Any] | None = None,
        max_records: int = 10_000,
        max_bytes: int = 2**30,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.overwrite = overwrite
        self.fingerprint = fingerprint
        self.report = report or {}
        """Goes into the index; may be set until the block ends."""
        self.max_records, self.max_bytes = max_records, max_bytes

    def __enter__(self) -> ShardWriter:
        with writing(self.directory):
            self._staging = Staging(self.directory)
        try:
            check_target(self.directory, self.overwrite)
        except BaseException:
            self._staging.close()
            raise
        self._files = ShardFiles(
            self._staging.written,
            fingerprint=self.fingerprint,
            max_records=self.max_records,
            max_bytes=self.max_bytes,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        try:
            with writing(self.directory):
                if error is not None:
                    raise error
                self._publish()
        finally:
            self._files.__exit__()
            self._staging.close()

    def write(self, document: InterleavedDocument, split: str = "train", encoded: Sequence[bytes | None] = ()) -> None:
        """See `ShardFiles.write`."""
        self._files.write(document, split, encoded)

    def _publish(self) -> None:
        shards, kinds = self._files.finish()
        if not shards:
            raise InputError(f"{self.directory}: no document to write")
        index = ShardIndex(self.directory, shards, kinds, self.fingerprint, self.report)
        write_index(self._staging.written / INDEX, index)
        check_target(self.directory, self.overwrite)
        try:
            self._staging.publish(replace=self.overwrite)
        except FileExistsError:  # another writer was faster
            raise _taken(self.directory) from None


def check_target(directory: Path, overwrite: bool) -> None:
    """Raises InputError where a folder of shards may not be written."""
    if not directory.exists():
        return
    if not overwrite:
        raise _taken(directory)
    names = os.listdir(directory) if directory.is_dir() else [directory.name]
    if strange := [name for name in names if name != INDEX and not SHARD_FILE.fullmatch(name)]:
        raise InputError(f"{directory}: holds {strange[0]!r}, no shard, so it is not overwritten; move that away")


def _taken(directory: Path) -> InputError:
    return InputError(f"{directory}: exists already; name another directory, or --overwrite it")


def write_index(path: Path, index: ShardIndex) -> None:
    shards = [asdict(shard) for shard in index.shards]
    value = {**FORMAT, "shards": shards, **{name: getattr(index, name) for name in FIELDS}}
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


class OpenShard:
    """A tar file being written; `finish` makes it last."""

    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.records = self.bytes = 0
        self.starts: list[int] = []
        self.file = path.open("w+b")
        # No time, no user: the same documents make the same bytes.
        self.tar = TarWriter(self.file, user="", group="", mode=0o644, encoder=False, mtime=0)

    def write(self, record: Record) -> None:
        self.starts.append(self.tar.tarstream.offset)
        self.bytes += self.tar.write(record)
        self.records += 1

    def finish(self) -> Shard:
        self.tar.close()
        self.file.flush()
        self.file.seek(0)
        digest = hashlib.file_digest(self.file, "sha256").hexdigest()
        size = self.file.tell()
        self.file.close()
        return Shard(self.path.name, self.split, self.records, size, digest, packed_offsets(self.starts))

    def abandon(self) -> None:
        with suppress(OSError):  # a full disk may be why we are here
            self.tar.close()
            self.file.close()
