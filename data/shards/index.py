"""The index of a folder of shards: which there are, where each record begins, and what they hold."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...configs.errors import InputError
from ...configs.files import plain_file
from ...configs.json_text import parse_json
from ...configs.whole import take_back
from ..records import KINDS
from .remote import address_of, fetched, read_small

SPLITS = ("train", "heldout")
INDEX = "index.json"
FORMAT = {"format": "limner-shards", "version": 1}

FIELDS = ("kinds", "fingerprint", "report")
MAX_INDEX_BYTES = 64 * 2**20
SHARD_FILE = re.compile(r"(train|heldout)-[0-9]{6}\.tar")


@dataclass(frozen=True, slots=True)
class Shard:
    file: str
    split: str
    records: int
    bytes: int
    sha256: str
    offsets: str = ""
    """Where each record begins: see `packed_offsets`. Folders of limner 0.2 and before have none."""


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
    address: str = ""
    """Of a folder that lies elsewhere (`s3://..`): its shards come when they are read, see `remote.py`."""

    def file(self, shard: Shard) -> Path:
        """The shard on a local disk. Raises InputError where it cannot be fetched, or is not that of the index."""
        return fetched(self.address, shard.file, shard.sha256) if self.address else self.directory / shard.file

    def of(self, split: str) -> tuple[Shard, ...]:
        return tuple(shard for shard in self.shards if shard.split == split)


def read_index(directory: str | Path) -> ShardIndex:
    """Raises InputError where there is no index, or where it is not one that `ShardWriter` could have written."""
    address = address_of(directory)
    path = Path(directory) / INDEX
    try:
        if address:
            data = read_small(f"{address}/{INDEX}", MAX_INDEX_BYTES)
        else:
            take_back(Path(directory))
            if path.is_symlink() or path.stat().st_size > MAX_INDEX_BYTES:
                raise ValueError(f"a symbolic link, or larger than {MAX_INDEX_BYTES} bytes")
            data = plain_file(path).read_bytes()
        value = parse_json(data)
        if not isinstance(value, dict) or {name: value.pop(name, None) for name in FORMAT} != FORMAT:
            raise ValueError(f"not of {FORMAT['format']} version {FORMAT['version']}")
        shards = tuple(Shard(**shard) for shard in value.pop("shards"))
        index = ShardIndex(Path(directory), shards, **{name: value.pop(name) for name in FIELDS}, address=address)
        if value:
            raise ValueError(f"unknown field {min(value)!r}")
        _check_index(index)
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{directory}/{INDEX}: no such file; name a directory of finished shards") from None
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
        if not isinstance(shard.offsets, str):
            raise ValueError(f"{shard.file}: `offsets` is a string")
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


# ---- where records begin ----

BLOCK = 512
"""Members of a tar begin at multiples of it."""


def packed_offsets(starts: Sequence[int]) -> str:
    """Offsets as they stand in the index: the distances in blocks, uint32, deflated, base64; a few bytes a record."""
    blocks = np.diff(np.asarray(starts, np.int64) // BLOCK, prepend=0).astype("<u4")
    return base64.b64encode(zlib.compress(blocks.tobytes(), 9)).decode("ascii")


def unpacked_offsets(shard: Shard) -> np.ndarray:
    """Where each record of a shard begins, and the last one ends at the latest, int64 [records + 1].

    Raises ValueError where they are none of this shard.
    """
    try:
        unfold = zlib.decompressobj()
        data = unfold.decompress(base64.b64decode(shard.offsets, validate=True), 4 * shard.records + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"{shard.file}: `offsets` do not unfold ({error})") from None
    if len(data) != 4 * shard.records:
        raise ValueError(f"{shard.file}: `offsets` are not of {shard.records} records")
    starts = np.cumsum(np.frombuffer(data, "<u4").astype(np.int64)) * BLOCK
    if starts[0] != 0 or np.any(np.diff(starts) <= 0) or starts[-1] >= shard.bytes:
        raise ValueError(f"{shard.file}: `offsets` do not rise from 0 to less than its {shard.bytes} bytes")
    return np.append(starts, shard.bytes)
