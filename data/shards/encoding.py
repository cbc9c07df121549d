"""Caches the codes of pictures: `limner data encode DIR --model M --out DIR2`.

    DIR2.encoding/train-000000.tar    shards that are done, until all are: a run that is killed goes on with the next
    DIR2.encoding/train-000000.json   what each was made of: another input or another image tokenizer makes it anew

Pictures are copied byte by byte and decoded beside the encoder, in threads.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...configs.errors import InputError, writing
from ...configs.whole import Staging, alone, write_atomically
from ...models.documents.document import ImageSegment, InterleavedDocument
from ..records import Record, decode_record, encode_record, originals_of
from .index import INDEX, Shard, ShardIndex, read_index
from .reading import raw_records
from .writing import OpenShard, check_target, write_index

ENCODING = 1
"""Goes up with every change of what an encoded shard holds, so that those of an older limner are made anew."""
THREADS = 4


class Encoder(Protocol):
    """What this needs of an image tokenizer."""

    def encode(self, images: list[Image.Image]) -> list[np.ndarray]:
        """Codes [N], integers, of each RGB picture."""
        ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    pictures: int
    """Encoded by this call."""
    seconds: float
    kept: int
    """Shards that a call before had done."""


def encode_shards(
    source: str | Path, target: str | Path, tokenizer: Encoder, *, batch: int = 64, overwrite: bool = False
) -> Encoded:
    """Copies a folder of shards with the codes of every picture; whole or not at all, and never the same work twice.

    Raises InputError where the target exists and `overwrite` is off, where the codes are there already, and for a
    picture that has no pixels or does not decode.
    """
    index, fingerprint = read_index(source), tokenizer.fingerprint()
    target = Path(target).absolute()
    if index.fingerprint == fingerprint:
        raise InputError(f"{source}: holds the codes of this image tokenizer already")
    check_target(target, overwrite)
    work = target.with_name(f"{target.name}.encoding")
    with writing(target):
        work.mkdir(parents=True, exist_ok=True)
    with writing(target), alone(work):
        total = sum(shard.records for shard in index.shards)
        with tqdm(total=total, unit=" documents", desc=f"codes of {Path(source).name}") as progress:
            shards, pictures, kept = [], 0, 0
            for shard in index.shards:
                made = _done(work, shard, fingerprint)
                if made is None:
                    made, count = _encode_shard(index, shard, work, tokenizer, batch, progress)
                    pictures += count
                    write_atomically(_note(work, shard), json.dumps(_made_of(shard, fingerprint) | asdict(made)))
                else:
                    kept += 1
                    progress.update(shard.records)
                shards.append(made)
            seconds = progress.format_dict["elapsed"]
        _publish(work, target, replace(index, shards=tuple(shards), fingerprint=fingerprint), overwrite)
    return Encoded(pictures, seconds, kept)


def _publish(work: Path, target: Path, index: ShardIndex, overwrite: bool) -> None:
    staging = Staging(target)
    try:
        for shard in index.shards:
            os.replace(work / shard.file, staging.written / shard.file)
        write_index(staging.written / INDEX, index)
        check_target(target, overwrite)
        staging.publish(replace=overwrite)
    finally:
        staging.close()
    shutil.rmtree(work)


def _made_of(shard: Shard, fingerprint: str) -> dict[str, object]:
    return {"encoding": ENCODING, "source": shard.sha256, "fingerprint": fingerprint}


def _note(work: Path, shard: Shard) -> Path:
    return (work / shard.file).with_suffix(".json")


def _done(work: Path, shard: Shard, fingerprint: str) -> Shard | None:
    """The encoded shard, if a call before has made it of the same input with the same tokenizer."""
    try:
        value = json.loads(_note(work, shard).read_text(encoding="utf-8"))
        expected = _made_of(shard, fingerprint)
        if {name: value.pop(name, None) for name in expected} != expected:
            return None
        made = Shard(**value)
        return made if (work / made.file).stat().st_size == made.bytes else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _encode_shard(
    index: ShardIndex, shard: Shard, work: Path, tokenizer: Encoder, batch: int, progress: tqdm
) -> tuple[Shard, int]:
    made, pictures, began = OpenShard(work / shard.file, shard.split), 0, time.monotonic()
    try:
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            for group in _ahead(pool, _batches(raw_records(index, shard), batch)):
                codes = _codes(tokenizer, [pixels for *_, own in group for pixels in own], batch)
                for record, document, own in group:
                    made.write(_with_codes(record, document, [next(codes) for _ in own]))
                    pictures += len(own)
                progress.set_postfix_str(f"{pictures / (time.monotonic() - began):.0f} pictures/s", refresh=False)
                progress.update(len(group))
        return made.finish(), pictures
    except BaseException:
        made.abandon()
        raise


Decoded = tuple[Record, InterleavedDocument, list[Image.Image]]


def _batches(records: Iterable[Record], pictures: int) -> Iterator[list[tuple[Record, InterleavedDocument]]]:
    """Records by so many pictures, or so many records without."""
    group: list[tuple[Record, InterleavedDocument]] = []
    count = 0
    for record in records:
        document = decode_record(record)
        group.append((record, document))
        count += max(1, len(document.images))
        if count >= pictures:
            yield group
            group, count = [], 0
    if group:
        yield group


def _ahead(
    pool: ThreadPoolExecutor, groups: Iterator[list[tuple[Record, InterleavedDocument]]]
) -> Iterator[list[Decoded]]:
    """Each group with its pixels; while one is used, the next is decoded."""
    waiting = [pool.map(_decoded, group) for group in itertools.islice(groups, 1)]
    while waiting:
        waiting += [pool.map(_decoded, group) for group in itertools.islice(groups, 1)]
        yield list(waiting.pop(0))


def _decoded(pair: tuple[Record, InterleavedDocument]) -> Decoded:
    record, document = pair
    try:
        return record, document, [segment.pixels() for segment in document.images]
    except ValueError as error:
        raise InputError(f"{record['__url__']}, record {record['__key__']}: {error}") from None


def _codes(tokenizer: Encoder, pictures: list[Image.Image], batch: int) -> Iterator[np.ndarray]:
    codes: list[np.ndarray] = []
    for start in range(0, len(pictures), batch):
        codes += tokenizer.encode(pictures[start : start + batch])
    if len(codes) != len(pictures):
        raise ValueError(f"`encode` gave {len(codes)} codes for {len(pictures)} pictures")
    return iter(codes)


def _with_codes(record: Record, document: InterleavedDocument, codes: list[np.ndarray]) -> Record:
    """The record, its pictures as they are, with codes instead of those that it may have."""
    rest: Callable[[], np.ndarray] = iter(codes).__next__
    segments = [
        replace(segment, codes_N=np.asarray(rest())) if isinstance(segment, ImageSegment) else segment
        for segment in document.segments
    ]
    return encode_record(replace(document, segments=tuple(segments)), record["__key__"], originals_of(record, document))
