"""The weighted mixture of shard folders, and the stream of packed rows that training reads.

    shard folders -> documents (weighted) -> token sequences -> packed rows

The stream is endless and a function of (seed, rank, world size): whoever skips n rows stands where a run that read n
rows stood.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import IterableDataset

from ..configs.bounds import Above0
from ..configs.errors import InputError
from ..models.documents.document import InterleavedDocument
from ..models.tokens.processing import Processor
from ..models.tokens.sequence import TokenSequence, Vocabulary
from .packing import Row, pack
from .shards import read_documents, read_index


@dataclass
class SourceConfig:
    path: str
    """A folder of shards."""
    weight: Above0 = 1.0
    """Share of documents drawn from it, relative to the other sources."""


def mixture(
    sources: Sequence[SourceConfig], *, seed: int, rank: int = 0, world_size: int = 1, fingerprint: str | None = None
) -> Iterator[InterleavedDocument]:
    """Endless stream of training documents, epoch after epoch of each source."""
    if not sources or any(not 0 < source.weight < math.inf for source in sources):
        raise InputError("data sources: give at least one, each with a positive weight")
    streams = [_endless(Path(source.path), seed, rank, world_size, fingerprint) for source in sources]
    rng = random.Random(f"mixture {seed} {rank}")
    weights = [source.weight for source in sources]
    while True:
        yield next(streams[rng.choices(range(len(streams)), weights)[0]])


def _endless(
    path: Path, seed: int, rank: int, world_size: int, fingerprint: str | None
) -> Iterator[InterleavedDocument]:
    epoch = 0
    while True:
        empty = True
        for document in read_documents(
            path,
            "train",
            rank=rank,
            world_size=world_size,
            shuffle_seed=seed,
            epoch=epoch,
            expected_fingerprint=fingerprint,
        ):
            empty = False
            yield document
        if empty:
            raise InputError(
                f"{path}: rank {rank} of {world_size} finds no training document; the folder holds too few"
            )
        epoch += 1


class PackedRows(IterableDataset):
    """Rows for a DataLoader that must not be sharded again: each rank's stream already holds only its own documents."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        processor: Processor,
        *,
        length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.sources, self.processor, self.length = list(sources), processor, length
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.fingerprint = processor.image_tokenizer.fingerprint()
        for source in sources:
            read_index(Path(source.path))  # a wrong path is reported at once, not in a worker

    def __iter__(self) -> Iterator[Row]:
        documents = mixture(
            self.sources, seed=self.seed, rank=self.rank, world_size=self.world_size, fingerprint=self.fingerprint
        )
        return pack(self._sequences(documents), self.length)

    def _sequences(self, documents: Iterator[InterleavedDocument], batch: int = 16) -> Iterator[TokenSequence]:
        """A few documents at a time, so that pictures without cached codes are encoded together."""
        while True:
            for document, sequence in zip(
                chunk := [next(documents) for _ in range(batch)], self.processor.encode_all(chunk), strict=True
            ):
                yield from split_long(sequence, document, self.length)


def split_long(sequence: TokenSequence, document: InterleavedDocument, length: int) -> list[TokenSequence]:
    """The sequence if it fits a row; a longer one as several, each with the prompt and the next stretch of the answer.

    No token of the answer is lost and no picture is cut. Raises InputError where a picture does not fit behind the
    prompt.
    """
    if len(sequence) <= length:
        return [sequence]
    start, parts = sequence.prompt_length, []
    while start < len(sequence):
        end = min(start + length - sequence.prompt_length, len(sequence))
        # A slot's picture reaches from <boi>, one before it, to <eoi>, one past it.
        cut = next((slot for slot in sequence.slots if slot.start - 1 < end <= slot.stop), None)
        end = cut.start - 1 if cut else end
        if end <= start:
            raise InputError(
                f"document {document.id!r}: prompt and picture exceed `pack_length` = {length} tokens; raise it"
            )
        parts.append(_stretch(sequence, start, end))
        start = end
    return parts


def _stretch(sequence: TokenSequence, start: int, end: int) -> TokenSequence:
    """The prompt and tokens start to end of the answer."""
    keep, shift = sequence.prompt_length, start - sequence.prompt_length
    slots = [slot for slot in sequence.slots if slot.stop <= keep]
    slots += [
        replace(slot, start=slot.start - shift, stop=slot.stop - shift)
        for slot in sequence.slots
        if slot.start >= start and slot.stop <= end
    ]
    ids, segments, trainable = (
        torch.cat([values[:keep], values[start:end]])
        for values in (sequence.ids_T, sequence.segment_T, sequence.trainable_T)
    )
    if shift:
        trainable[keep] = False  # behind `<answer>` here; an answer should not begin in its middle
    return TokenSequence(ids, segments, trainable, keep, tuple(slots))


def token_report(
    documents: Sequence[InterleavedDocument], sequences: Sequence[TokenSequence], vocabulary: Vocabulary
) -> dict[str, Counter]:
    """Tokens by kind and modality: {"interleaved": {"documents": n, "text": n, "image": n}, ...}."""
    report: dict[str, Counter] = {}
    for document, sequence in zip(documents, sequences, strict=True):
        image = int(vocabulary.are_image(sequence.ids_T).sum())
        kind = report.setdefault(document.meta.get("kind", "unknown"), Counter())
        kind.update(documents=1, text=len(sequence) - image, image=image)
    return report
