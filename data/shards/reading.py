"""Reads shards as a stream: shards (shuffled) -> this consumer's -> raw records -> shuffle buffer -> documents.

What is in the buffer is encoded bytes; pictures open when a record leaves it, and decode only when somebody asks for
pixels. Training reads by key instead: see `order.py`.
"""

from __future__ import annotations

import itertools
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info
from webdataset import filters
from webdataset.pipeline import DataPipeline
from webdataset.tariterators import group_by_keys

from ...configs.errors import InputError
from ...configs.files import plain_file
from ...models.documents.document import InterleavedDocument
from ..records import MAX_RECORD_BYTES, MEMBER, Record, decode_record
from .index import SPLITS, Shard, ShardIndex, read_index


def raw_records(index: ShardIndex, shard: Shard) -> Iterator[Record]:
    """The undecoded records of one shard, checked against the index. Raises InputError naming the shard."""
    path, key, count = index.file(shard), None, 0
    try:
        check_size(path, shard)
        # "r:" admits no compression: a small shard cannot unfold into a huge one.
        with tarfile.open(plain_file(path, None), mode="r:") as archive:
            for record in group_members(archive, path):
                key, count = record["__key__"], count + 1
                yield record
        if count != shard.records:
            raise ValueError(f"{count} records instead of {shard.records}")
    except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
        where = f" after record {key}" if key else ""
        message = error.args[0] if isinstance(error, ValueError) and error.args else error
        raise InputError(f"{path}{where}: {message}; fetch or write the shards again") from None


def check_size(path: Path, shard: Shard) -> None:
    """Raises ValueError for what cannot be the shard of the index."""
    if path.is_symlink():
        raise ValueError("a symbolic link; put the file itself there")
    if (size := path.stat().st_size) != shard.bytes:
        raise ValueError(f"{size} bytes instead of {shard.bytes}: truncated or replaced")


def group_members(archive: tarfile.TarFile, path: Path) -> Iterator[Record]:
    """The records of an open tar. Raises ValueError for members that are not ours."""
    return group_by_keys(_members(archive, path))


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
    check_codes(index, expected_fingerprint)
    return _epoch(index, split, rank, world_size, shuffle_seed, buffer, epoch)


def check_codes(index: ShardIndex, fingerprint: str | None) -> None:
    """Raises InputError where codes are cached that are of another image tokenizer."""
    if index.fingerprint is not None and fingerprint not in (None, index.fingerprint):
        place = index.address or index.directory
        raise InputError(
            f"{place}: the cached image codes are stale (image tokenizer {index.fingerprint}, the model has "
            f"{fingerprint}); cache them again: limner data encode {place} --model MODEL --out DIR"
        )


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
        lambda: itertools.chain.from_iterable(raw_records(index, shard) for shard in mine),
        None if whole else lambda records: itertools.islice(records, consumer, None, consumers),
        None if seed is None else filters.shuffle(buffer, initial=buffer, rng=rng),
        filters.map(decode_record),
    )
