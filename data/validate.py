"""Reads shards as no training would: every byte and every pixel, to find what is wrong before a run does."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..configs.errors import InputError
from ..configs.terminal import one_line
from ..models.documents.document import InterleavedDocument
from .records import decode_record
from .shards import INDEX, SPLITS, Shard, ShardIndex, raw_records, read_index


@dataclass(frozen=True, slots=True)
class ShardProblem:
    shard: str
    record: str
    """Key of the record; empty where the whole shard, or the index, is at fault."""
    reason: str

    def __str__(self) -> str:
        where = f"{self.shard}, record {self.record}" if self.record else self.shard
        # A reason may quote what stands in a hostile file: no terminal control codes from there.
        return f"{where}: {one_line(self.reason)}"


def validate(directory: str | Path) -> list[ShardProblem]:
    """What is wrong with a shard directory, in the order of the shards; an empty list if nothing is.

    Checks the index, the checksums, that every record decodes and every picture to its last pixel, sizes, codes and
    their fingerprint, kinds, trainable segments, counts, and that no document id and no record key comes twice.
    """
    try:
        index = read_index(directory)
    except InputError as error:
        return [ShardProblem(INDEX, "", str(error))]
    problems = [
        ShardProblem(path.name, "", "not in the index")
        for path in sorted(index.directory.glob("*.tar"))
        if path.name not in {shard.file for shard in index.shards}
    ]
    kinds: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    seen: dict[str, str] = {}
    complete = True  # a shard that breaks off is one problem; that the counts are then wrong is not another
    for shard in index.shards:
        found = _validate_shard(index, shard, kinds[shard.split], seen)
        complete = complete and not found
        problems += found
    for split, counts in kinds.items():
        if complete and counts != Counter(index.kinds[split]):
            reason = f"counts {index.kinds[split]} in split {split}, but the shards hold {dict(counts)}"
            problems.append(ShardProblem(INDEX, "", reason))
    return problems


def _validate_shard(index: ShardIndex, shard: Shard, kinds: Counter[str], seen: dict[str, str]) -> list[ShardProblem]:
    """`seen` maps document ids and record keys to where they were; this and `kinds` are updated."""
    problems: list[ShardProblem] = []
    try:
        for record in raw_records(index.directory, shard):
            key = record["__key__"]
            here = f"{shard.file}, record {key}"
            try:
                document = decode_record(record)
                kinds[document.meta["kind"]] += 1
                reasons = _validate_pixels(document)
                if index.fingerprint is None and any(segment.codes_N is not None for segment in document.images):
                    reasons.append("image codes, but the index names no image tokenizer")
                # An empty id is no id.
                names = [f"record key {key}", *([f"document id {document.id!r}"] if document.id else [])]
                reasons += [f"{name} again; first in {seen[name]}" for name in names if name in seen]
                seen.update({name: here for name in names if name not in seen})
            except InputError as error:
                reasons = [str(error)]
            problems += [ShardProblem(shard.file, key, reason) for reason in reasons]
        with (index.directory / shard.file).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                problems.append(ShardProblem(shard.file, "", "its bytes changed: sha256 is not that of the index"))
    except InputError as error:
        problems.append(ShardProblem(shard.file, "", str(error)))
    return problems


def _validate_pixels(document: InterleavedDocument) -> list[str]:
    reasons = []
    for i, segment in enumerate(document.images):
        if segment.image is None:
            continue
        try:
            segment.pixels()
        except ValueError as error:
            reasons.append(f"image {i}: {error}")
    return reasons
