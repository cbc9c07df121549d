"""Shards: documents on disk as webdataset tar files with an index, written whole or not at all, read in streams.

    DIR/index.json            what the shards hold: sizes, checksums, counts, whose image codes are cached
    DIR/train-000000.tar      records, a few members each: see `records.py`
    DIR/heldout-000000.tar    the same for documents that no training sees

Read: shard list (shuffled) -> this consumer's shards -> raw records -> shuffle buffer -> documents. What is in the
buffer is encoded bytes; pictures open when a record leaves it, and decode only when somebody asks for pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import get_worker_info
from webdataset import filters
from webdataset.pipeline import DataPipeline
from webdataset.tariterators import group_by_keys
from webdataset.writer import TarWriter

from ..configs.errors import InputError, writing
from ..configs.json_text import parse_json
from ..configs.whole import Staging, take_back
from ..models.documents.document import ImageSegment, InterleavedDocument
from .records import KINDS, MAX_RECORD_BYTES, MEMBER, Record, decode_record, encode_record

SPLITS = ("train", "heldout")
INDEX = "index.json"
FORMAT = {"format": "limner-shards", "version": 1}

MAX_INDEX_BYTES = 64 * 2**20
SHARD_FILE = re.compile(r"(train|heldout)-[0-9]{6}\.tar")


@dataclass(frozen=True, slots=True)
class Shard:
    file: str
    split: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardIndex:
    directory: Path
    shards: tuple[Shard, ...]
    kinds: dict[str, dict[str, int]]
    """Records by split and kind."""
    fingerprint: str | None
    """Of the image tokenizer whose codes are cached; None where none are."""
    report: dict[str, Any]
    """Whatever the converter had to say."""

    def of(self, split: str) -> tuple[Shard, ...]:
        return tuple(shard for shard in self.shards if shard.split == split)


# ---- writing ----


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
        self.records = 0
        self._shards: list[Shard] = []
        self._open: dict[str, _OpenShard] = {}
        self._kinds: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}

    def __enter__(self) -> ShardWriter:
        with writing(self.directory):
            self._staging = Staging(self.directory)
        try:
            self._check_target()
        except BaseException:
            self._staging.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with writing(self.directory):
                    self._publish()
        finally:
            for shard in self._open.values():
                shard.abandon()
            self._staging.close()

    def write(self, document: InterleavedDocument, split: str = "train", encoded: Sequence[bytes | None] = ()) -> None:
        """Appends a document (`encoded`: see `encode_record`). Raises InputError; the writer stays usable then."""
        if split not in SPLITS:
            raise InputError(f"document {document.id!r}: split {split!r} is none of {', '.join(SPLITS)}")
        if self.fingerprint is None and any(segment.codes_N is not None for segment in document.images):
            raise InputError(f"document {document.id!r}: image codes without the fingerprint of their image tokenizer")
        record = encode_record(document, f"{self.records:09d}", encoded)
        with writing(self.directory):
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
            shard = self._open[split] = _OpenShard(self._staging.written / f"{split}-{number:06d}.tar", split)
        shard.write(record)

    def _publish(self) -> None:
        while self._open:
            self._shards.append(self._open.popitem()[1].finish())
        if not self._shards:
            raise InputError(f"{self.directory}: no document to write")
        index = {
            **FORMAT,
            "shards": [asdict(shard) for shard in sorted(self._shards, key=lambda shard: shard.file)],
            "kinds": {split: dict(sorted(kinds.items())) for split, kinds in self._kinds.items()},
            "fingerprint": self.fingerprint,
            "report": self.report,
        }
        text = json.dumps(index, indent=1)
        (self._staging.written / INDEX).write_text(text, encoding="utf-8")
        self._check_target()
        try:
            self._staging.publish(replace=self.overwrite)
        except FileExistsError:  # another writer was faster
            raise self._taken() from None

    def _check_target(self) -> None:
        if not self.directory.exists():
            return
        if not self.overwrite:
            raise self._taken()
        names = os.listdir(self.directory) if self.directory.is_dir() else [self.directory.name]
        if strange := [name for name in names if name != INDEX and not SHARD_FILE.fullmatch(name)]:
            raise InputError(
                f"{self.directory}: holds {strange[0]!r}, no shard, so it is not overwritten; move that away"
            )

    def _taken(self) -> InputError:
        return InputError(f"{self.directory}: exists already; name another directory, or --overwrite it")


class _OpenShard:
    """A tar file being written; `finish` makes it last."""

    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.records = self.bytes = 0
        self.file = path.open("w+b")
        # No time, no user: the same documents make the same bytes.
        self.tar = TarWriter(self.file, user="", group="", mode=0o644, encoder=False, mtime=0)

    def write(self, record: Record) -> None:
        self.bytes += self.tar.write(record)
        self.records += 1

    def finish(self) -> Shard:
        self.tar.close()
        self.file.flush()
        self.file.seek(0)
        digest = hashlib.file_digest(self.file, "sha256").hexdigest()
        size = self.file.tell()
        self.file.close()
        return Shard(self.path.name, self.split, self.records, size, digest)

    def abandon(self) -> None:
        with suppress(OSError):  # a full disk may be why we are here
            self.tar.close()
            self.file.close()


def add_codes(
    source: str | Path,
    target: str | Path,
    encode: Callable[[list[Image.Image]], list[np.ndarray]],
    fingerprint: str,
    *,
    batch_size: int = 64,
    overwrite: bool = False,
) -> None:
    """Copies shards and caches the codes of every picture. `encode` maps RGB pictures to integer codes [N] each.

    Pictures are copied byte by byte. Raises InputError for an image that has no pixels or does not decode.
    """
    index = read_index(source)
    waiting: list[tuple[Record, str, InterleavedDocument]] = []
    with ShardWriter(target, overwrite=overwrite, fingerprint=fingerprint, report=index.report) as writer:
        for shard in index.shards:
            for record in raw_records(index.directory, shard):
                waiting.append((record, shard.split, decode_record(record)))
                if len(waiting) >= batch_size or sum(len(d.images) for *_, d in waiting) >= batch_size:
                    _write_with_codes(writer, waiting, encode, batch_size)
                    waiting.clear()
        _write_with_codes(writer, waiting, encode, batch_size)


def _write_with_codes(
    writer: ShardWriter,
    waiting: list[tuple[Record, str, InterleavedDocument]],
    encode: Callable[[list[Image.Image]], list[np.ndarray]],
    batch_size: int,
) -> None:
    pictures: list[Image.Image] = []
    for record, _, document in waiting:
        try:
            pictures += [segment.pixels() for segment in document.images]
        except ValueError as error:
            raise InputError(f"{record['__url__']}, record {record['__key__']}: {error}") from None
    codes: list[np.ndarray] = []
    for start in range(0, len(pictures), batch_size):
        codes += encode(pictures[start : start + batch_size])
    if len(codes) != len(pictures):
        raise ValueError(f"`encode` gave {len(codes)} codes for {len(pictures)} pictures")
    rest = iter(codes)
    for record, split, document in waiting:
        originals = {name.split(".")[0]: data for name, data in record.items() if name.startswith("image")}
        encoded = [originals[f"image{i}"] for i in range(len(document.images))]
        segments = [
            replace(s, codes_N=np.asarray(next(rest))) if isinstance(s, ImageSegment) else s for s in document.segments
        ]
        writer.write(replace(document, segments=tuple(segments)), split, encoded)


# ---- reading ----


def read_index(directory: str | Path) -> ShardIndex:
    """Raises InputError where there is no index, or where it is not one that `ShardWriter` could have written."""
    path = take_back(Path(directory)) / INDEX
    try:
        if path.is_symlink() or path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"a symbolic link, or larger than {MAX_INDEX_BYTES} bytes")
        value = parse_json(path.read_bytes())
        if not isinstance(value, dict) or {name: value.pop(name, None) for name in FORMAT} != FORMAT:
            raise ValueError(f"not of {FORMAT['format']} version {FORMAT['version']}")
        shards = tuple(Shard(**shard) for shard in value.pop("shards"))
        index = ShardIndex(Path(directory), shards, **value)
        _check_index(index)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; name a directory of finished shards") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no valid index of shards ({error}); write the shards again") from None
    return index


def _check_index(index: ShardIndex) -> None:
    for shard in index.shards:
        match = SHARD_FILE.fullmatch(shard.file)
        if not match or match[1] != shard.split:
            raise ValueError(f"shard {shard.file!r} of split {shard.split!r}")
        if not (type(shard.records) is type(shard.bytes) is int and shard.records > 0 and shard.bytes > 0):
            raise ValueError(f"{shard.file}: `records` and `bytes` are positive numbers")
        if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"{shard.file}: `sha256` is no checksum")
    if not index.shards or len({shard.file for shard in index.shards}) < len(index.shards):
        raise ValueError("no shard, or a shard twice")
    if set(index.kinds) != set(SPLITS) or not all(set(kinds) <= set(KINDS) for kinds in index.kinds.values()):
        raise ValueError("`kinds` counts the records by split and kind")
    for split, kinds in index.kinds.items():
        total = sum(shard.records for shard in index.of(split))
        if not all(type(count) is int and count > 0 for count in kinds.values()) or sum(kinds.values()) != total:
            raise ValueError(f"`kinds` and `shards` disagree on the number of {split} records")
    if not (index.fingerprint is None or (isinstance(index.fingerprint, str) and index.fingerprint)):
        raise ValueError("`fingerprint` is a string or null")
    if not isinstance(index.report, dict):
        raise ValueError("`report` is an object")


def raw_records(directory: Path, shard: Shard) -> Iterator[Record]:
    """The undecoded records of one shard, checked against the index. Raises InputError naming the shard."""
    path, key, count = directory / shard.file, None, 0
    try:
        if path.is_symlink():
            raise ValueError("a symbolic link; put the file itself there")
        if (size := path.stat().st_size) != shard.bytes:
            raise ValueError(f"{size} bytes instead of {shard.bytes}: truncated or replaced")
        # "r:" admits no compression: a small shard cannot unfold into a huge one.
        with tarfile.open(path, mode="r:") as archive:
            for record in group_by_keys(_members(archive, path)):
                key, count = record["__key__"], count + 1
                yield record
        if count != shard.records:
            raise ValueError(f"{count} records instead of {shard.records}")
    except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
        where = f" after record {key}" if key else ""
        message = error.args[0] if isinstance(error, ValueError) and error.args else error
        raise InputError(f"{path}{where}: {message}; fetch or write the shards again") from None


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[dict[str, Any]]:
    """Members as webdataset groups them. Refuses all but plain files with our names: no sparse file, no link."""
    key, total = None, 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # a TarFile remembers all it has seen
        match = MEMBER.fullmatch(member.name)
        if match is None or not member.isreg() or member.issparse():
            raise ValueError(f"unexpected member {member.name!r}")
        total = member.size + (total if match[1] == key else 0)
        key = match[1]
        if total > MAX_RECORD_BYTES:
            raise ValueError(f"record {key} is larger than {MAX_RECORD_BYTES} bytes")
        content = archive.extractfile(member)
        assert content is not None  # a regular file
        yield {"fname": member.name, "data": content.read(), "__url__": str(path)}


def read_documents(
    directory: str | Path,
    split: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    shuffle_seed: int | None,
    buffer: int = 1000,
    epoch: int = 0,
    expected_fingerprint: str | None = None,
) -> Iterator[InterleavedDocument]:
    """One epoch of this rank's (and this DataLoader worker's) share of a split; the same call gives the same order.

    All consumers together see every record exactly once, but not equally many each. Consumers get whole shards; where
    there are more consumers than shards, each reads all and keeps every n-th record. Raises InputError: at once for the
    index, an unknown split or stale codes; while reading for a damaged shard or record.
    """
    index = read_index(directory)
    if split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    if index.fingerprint is not None and expected_fingerprint not in (None, index.fingerprint):
        raise InputError(
            f"{index.directory}: the cached image codes are stale (image tokenizer {index.fingerprint}, "
            f"the model has {expected_fingerprint}); cache them again with the model's image tokenizer"
        )
    return _epoch(index, split, rank, world_size, shuffle_seed, buffer, epoch)


def _epoch(
    index: ShardIndex, split: str, rank: int, world_size: int, seed: int | None, buffer: int, epoch: int
) -> Iterator[InterleavedDocument]:
    worker = get_worker_info()  # here, not above: known only once a worker iterates
    workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
    consumers, consumer = world_size * workers, rank * workers + number
    shards = list(index.of(split))
    if seed is not None:
        random.Random(f"shards {seed} {epoch}").shuffle(shards)  # the same list for every consumer
    whole = len(shards) >= consumers
    mine = shards[consumer::consumers] if whole else shards
    rng = random.Random(f"records {seed} {epoch} {consumer}")
    yield from DataPipeline(
        lambda: itertools.chain.from_iterable(raw_records(index.directory, shard) for shard in mine),
        None if whole else lambda records: itertools.islice(records, consumer, None, consumers),
        None if seed is None else filters.shuffle(buffer, initial=buffer, rng=rng),
        filters.map(decode_record),
    )
