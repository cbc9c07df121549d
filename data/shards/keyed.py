"""Reads the records of a split by number, in any order: an index knows where each begins, so that a reader seeks.

records = Records(read_index(directory), "train")
records.document(17)
"""

from __future__ import annotations

import io
import os
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...configs.errors import InputError
from ...configs.files import plain_file
from ...models.documents.document import InterleavedDocument
from ..records import MAX_RECORD_BYTES, Record, decode_record
from .index import Shard, ShardIndex, unpacked_offsets
from .reading import check_size, group_members

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
        self._open: OrderedDict[int, tuple[IO[bytes], np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def document(self, number: int) -> InterleavedDocument:
        return decode_record(self.raw(number))

    def raw(self, number: int) -> Record:
        shard = bisect_right(self._ends, number)
        within = number - (self._ends[shard] - self.sizes[shard])
        file, starts = self._opened(shard)
        path = self.index.file(self.shards[shard])
        try:
            start, end = int(starts[within]), int(starts[within + 1])
            # Not `seek` and `read`: processes forked later share where a file stands.
            data = os.pread(file.fileno(), min(end - start, 2 * MAX_RECORD_BYTES), start)
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                record = next(iter(group_members(archive, path)), None)
            if record is None:
                raise ValueError("no member there")
            return record
        except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
            message = error.args[0] if isinstance(error, ValueError) and error.args else error
            raise InputError(f"{path}, record {within}: {message}; fetch or write the shards again") from None

    def _opened(self, number: int) -> tuple[IO[bytes], np.ndarray]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.shards[number]
        path = self.index.file(shard)
        try:
            check_size(path, shard)
            starts = unpacked_offsets(shard) if shard.offsets else _found_offsets(path, shard)
            file = path.open("rb")
        except (OSError, tarfile.TarError, ValueError) as error:
            raise InputError(f"{path}: {error}; fetch or write the shards again") from None
        if len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1][0].close()
        self._open[number] = (file, starts)
        return file, starts

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # each process opens its own

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][0].close()


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
