"""Reads the records of a split by number, in any order: an index knows where each begins, so that a reader seeks.

records = Records(read_index(directory), "train")
records.document(17)
"""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...configs.errors import InputError, plain_file
from ...models.documents.document import InterleavedDocument
from ..records import MAX_RECORD_BYTES, MEMBER, Record, decode_record
from .index import BLOCK, Shard, ShardIndex, unpacked_offsets
from .reading import check_size

MOST_OPEN = 32
"""Shards that are open at a time."""


class Records:
    """Records of a split, numbered from 0 in the order of its shards. Opens files as they are needed.

    Raises InputError naming shard and record where one is damaged.
    """

    def __init__(self, index: ShardIndex, split: str) -> None:
        self.index, self.shards = index, index.of(split)
        self.sizes = [shard.records for shard in self.shards]
        self._ends = list(accumulate(self.sizes))
        self._open: OrderedDict[int, tuple[Path, IO[bytes], np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def document(self, number: int) -> InterleavedDocument:
        return decode_record(self.raw(number))

    def raw(self, number: int) -> Record:
        shard = bisect_right(self._ends, number)
        within = number - (self._ends[shard] - self.sizes[shard])
        path, file, starts = self._opened(shard)
        try:
            start, end = int(starts[within]), int(starts[within + 1])
            # Not `seek` and `read`: processes forked later share where a file stands.
            data = os.pread(file.fileno(), min(end - start, 2 * MAX_RECORD_BYTES), start)
            return {"__url__": str(path), **members_of(data)}
        except (OSError, ValueError) as error:
            message = error.args[0] if isinstance(error, ValueError) and error.args else error
            raise InputError(f"{path}, record {within}: {message}; fetch or write the shards again") from None

    def _opened(self, number: int) -> tuple[Path, IO[bytes], np.ndarray]:
        """An open shard is read on, whatever became of its file in the cache meanwhile."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.shards[number]
        path = self.index.file(shard)
        try:
            check_size(path, shard)
            starts = unpacked_offsets(shard) if shard.offsets else _found_offsets(path, shard)
            file = plain_file(path, None).open("rb")
        except (OSError, tarfile.TarError, ValueError) as error:
            raise InputError(f"{path}: {error}; fetch or write the shards again") from None
        if len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1][1].close()
        self._open[number] = (path, file, starts)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # each process opens its own

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][1].close()


def members_of(data: bytes) -> Record:
    """The record in a stretch of a tar, as `tarfile` would read it in five times the time.

    Raises ValueError for all but plain files of one record, with our names.
    """
    record: Record = {}
    at = 0
    while at + BLOCK <= len(data) and data[at]:
        head = data[at : at + BLOCK]
        name = head[:100].split(b"\0", 1)[0].decode("ascii", "replace")
        match = MEMBER.fullmatch(name)
        summed = sum(head) - sum(head[148:156]) + 8 * ord(" ")
        if match is None or head[156:157] not in (b"0", b"\0") or _octal(head[148:156]) != summed:
            raise ValueError(f"unexpected member {name!r}")
        if record.setdefault("__key__", match[1]) != match[1]:
            raise ValueError(f"member {name!r} among those of record {record['__key__']}")
        size, start = _octal(head[124:136]), at + BLOCK
        if start + size > len(data):
            raise ValueError(f"member {name!r} is cut")
        record[match[2]] = data[start : start + size]
        at = start + -(-size // BLOCK) * BLOCK
    if not record:
        raise ValueError("no member there")
    return record


def _octal(field: bytes) -> int:
    return int(field.strip(b"\0 ") or b"0", 8)


def _found_offsets(path: Path, shard: Shard) -> np.ndarray:
    """Of a shard whose index has none: where its headers say. Raises ValueError where there are others than it says."""
    starts, key = [], None
    with tarfile.open(plain_file(path, None), mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]
            if (own := member.name.partition(".")[0]) != key:
                starts.append(member.offset)
                key = own
    if len(starts) != shard.records:
        raise ValueError(f"{len(starts)} records instead of {shard.records}")
    return np.asarray([*starts, shard.bytes], np.int64)
