"""The weighted mixture of shard folders, and the stream of packed rows that training reads.

    shard folders -> documents (weighted) -> token sequences -> packed rows

The stream is endless and a function of (seed, rank, world size): whoever skips n rows stands where a run that read n rows stood.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import IterableDataset

from ..models.document import InterleavedDocument
from ..models.errors import InputError
from ..models.processing import Processor
from ..models.sequence import TokenSequence
from .packing import Row, pack
from .shards import read_documents, read_index


@dataclass
class SourceConfig:
    path: str
    """A folder of shards."""
    weight: float = 1.0
    """Share of documents drawn from it, relative to the other sources."""


def mixture(
    sources: Sequence[SourceConfig], *, seed: int, rank: int = 0, world_size: int = 1, fingerprint: str | None = None
) -> Iterator[InterleavedDocument]:
    """Endless stream of training documents, epoch after epoch of each source."""
    if not sources or any(source.weight <= 0 for source in sources):
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
                yield from fit(sequence, document, self.length)


def fit(sequence: TokenSequence, document: InterleavedDocument, length: int) -> list[TokenSequence]:
    """The sequence if it fits a row; a longer one is cut between segments into an opening that fits.

    Raises InputError where not even the prompt and one segment fit.
    """
    if len(sequence) <= length:
        return [sequence]
    segments = sequence.segment_T[:length]
    complete = int(segments[-1]) if segments[-1] >= 0 else 0
    end = int((sequence.segment_T == complete).nonzero()[0]) if complete else 0
    if end <= sequence.prompt_length:
        raise InputError(
            f"document {document.id!r}: its prompt and first segment have more than `pack_length` = {length} tokens; raise it"
        )
    slots = tuple(slot for slot in sequence.slots if slot.stop <= end)
    return [
        TokenSequence(
            sequence.ids_T[:end], sequence.segment_T[:end], sequence.trainable_T[:end], sequence.prompt_length, slots
        )
    ]


def token_report(
    documents: Sequence[InterleavedDocument], sequences: Sequence[TokenSequence], text_size: int
) -> dict[str, Counter]:
    """Tokens by kind and modality: {"interleaved": {"documents": n, "text": n, "image": n}, ...}."""
    report: dict[str, Counter] = {}
    for document, sequence in zip(documents, sequences, strict=True):
        image = int((sequence.ids_T >= text_size).sum())
        kind = report.setdefault(document.meta.get("kind", "unknown"), Counter())
        kind.update(documents=1, text=len(sequence) - image, image=image)
    return report
