"""The mixture of shard folders, and the stream of packed rows that training reads.

    shard folders -> documents in turn -> blocks of them -> token sequences -> packed rows, shuffled within their block

A block is read, laid out and packed for itself, so that worker processes take blocks in turn and the rows are the same
for any number of them. Which documents a block holds is a function of (seed, rank, world size) and its number: a run
goes on at a block and a row of it, whatever came before (`Place`), and no picture lies in a checkpoint.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..configs.bounds import Above0
from ..configs.errors import InputError, reading
from ..models.documents.document import ImageSegment, InterleavedDocument
from ..models.tokens.processing import Processor
from ..models.tokens.sequence import TokenSequence, Vocabulary
from .packing import Row, pack
from .shards import ShardIndex, read_index
from .shards.keyed import Records
from .shards.order import Order, Turns, random_bits
from .shards.reading import check_codes

BLOCK = 256
"""Documents of a block: so many are read again at most when a run goes on."""
AHEAD = 2
"""Blocks that each worker process may be ahead."""


@dataclass
class SourceConfig:
    path: str
    """A folder of shards, or the address of one: `s3://BUCKET/DIR`, `hf://datasets/ORG/NAME`, `https://..`"""
    weight: Above0 = 1.0
    """Share of documents drawn from it, relative to the other sources."""


class Mixture:
    """What each block draws from which source."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        fingerprint: str | None = None,
        temperature: float | None = None,
    ) -> None:
        """temperature: a source's share grows with its size to the power of 1 / temperature, times its weight.

        Raises InputError: for weights, stale codes, an index, and a folder too small for its ranks.
        """
        if not sources or any(not 0 < source.weight < math.inf for source in sources):
            raise InputError("data sources: give at least one, each with a positive weight")
        if temperature is not None and not 0 < temperature < math.inf:
            raise InputError(f"temperature: {temperature}; give a positive number, 1 draws by size")
        self.indexes = [read_index(source.path) for source in sources]
        for index in self.indexes:
            check_codes(index, fingerprint)
            if rank >= (count := sum(index.kinds["train"].values())):
                raise InputError(
                    f"{index.address or index.directory}: rank {rank} of {world_size} finds no training document; the "
                    f"folder holds too few ({count})"
                )
        self.names = _names([source.path for source in sources])
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.records = [Records(index, "train") for index in self.indexes]
        self.orders = [Order(records.sizes, _salted(seed, at)) for at, records in enumerate(self.records)]
        self.size = min(BLOCK, sum(map(len, self.records)) // world_size)
        """Documents of a rank in a block: no more than it has in all, so that small folders are read epoch by epoch."""
        sizes = [len(records) ** (1 / temperature) if temperature else 1.0 for records in self.records]
        shares = [source.weight * size for source, size in zip(sources, sizes, strict=True)]
        self.turns = Turns([share / sum(shares) for share in shares], seed)

    def block(self, number: int) -> list[tuple[int, int]]:
        """(source, record) of this rank's documents in a block."""
        start, stop = (at * self.size * self.world_size for at in (number, number + 1))
        first = sum(self.turns.before(start))
        mine = self.turns.between(start, stop)[(self.rank - first) % self.world_size :: self.world_size]
        return [(source, self.orders[source].record(position)) for source, position in mine]

    def documents(self, block: Sequence[tuple[int, int]]) -> list[InterleavedDocument]:
        return [self.records[source].document(record) for source, record in block]

    def epochs(self, blocks: int) -> dict[str, float]:
        """How often each source has been read once all ranks are through so many blocks."""
        drawn = self.turns.before(blocks * self.size * self.world_size)
        each = zip(self.names, drawn, self.records, strict=True)
        return {name: count / len(records) for name, count, records in each}


def mixture(
    sources: Sequence[SourceConfig], *, seed: int, rank: int = 0, world_size: int = 1, fingerprint: str | None = None
) -> Iterator[InterleavedDocument]:
    """Endless stream of training documents, epoch after epoch of each source."""
    drawn = Mixture(sources, seed=seed, rank=rank, world_size=world_size, fingerprint=fingerprint)
    for number in itertools.count():
        yield from drawn.documents(drawn.block(number))


@dataclass
class Place:
    """Where a stream of rows stands."""

    block: int = 0
    row: int = 0
    """Of the block, that comes next."""
    tokens: list[int] = field(default_factory=list)
    """Read so far, by source."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Place:
        """Raises InputError where the file is none."""
        with reading(path):
            return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class _Block:
    """What a worker hands over: rows, or documents whose pictures are still to be encoded; or what is wrong."""

    rows: list[Row] | None = None
    tokens: Sequence[int] = ()
    documents: list[InterleavedDocument] | None = None
    sources: Sequence[int] = ()
    fault: str = ""


class _Blocks(Dataset):
    """Blocks by their number, each pickled: hundreds of small tensors would each take a file of shared memory."""

    def __init__(self, mixture: Mixture, processor: Processor, length: int, lays_out: bool) -> None:
        self.mixture, self.processor, self.length, self.lays_out = mixture, processor, length, lays_out

    def __getitem__(self, number: int) -> bytes:
        try:
            drawn = self.mixture.block(number)
            sources, documents = [source for source, _ in drawn], self.mixture.documents(drawn)
            if self.lays_out:
                block = self.laid_out(number, documents, sources)
            else:
                block = _Block(documents=[_decoded(document) for document in documents], sources=sources)
        except InputError as error:  # as one line: a loader would add the worker's traceback to it
            block = _Block(fault=str(error))
        return pickle.dumps(block)

    def laid_out(self, number: int, documents: list[InterleavedDocument], sources: Sequence[int]) -> _Block:
        parts: list[TokenSequence] = []
        tokens = [0] * len(self.mixture.names)
        sequences = self.processor.encode_all(documents)
        for document, sequence, source in zip(documents, sequences, sources, strict=True):
            split = split_long(sequence, document, self.length)
            parts += split
            tokens[source] += sum(map(len, split))
        rows = list(pack(parts, self.length, buffer=len(parts) + 1))
        key = random_bits(np.arange(len(rows)), "rows", self.mixture.seed, self.mixture.rank, number)
        return _Block(rows=[rows[at] for at in np.argsort(key, kind="stable")], tokens=tokens)


class PackedRows(IterableDataset):
    """Rows for a DataLoader without workers of its own: they are here, and each rank's stream holds its documents only.

    workers: processes that read ahead; the rows are the same for any number of them. `place` is where the stream
    stands; set it before the first row to go on from there.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        processor: Processor,
        *,
        length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        temperature: float | None = None,
    ):
        self.mixture = Mixture(
            sources,
            seed=seed,
            rank=rank,
            world_size=world_size,
            fingerprint=processor.image_tokenizer.fingerprint(),
            temperature=temperature,
        )
        self.workers, self.place = workers, Place()
        # A forked process has no GPU: what needs one is laid out here.
        lays_out = processor.vision is None and all(map(_has_codes, self.mixture.indexes))
        self.blocks = _Blocks(self.mixture, processor, length, lays_out)

    def __iter__(self) -> Iterator[Row]:
        self.place.tokens = self.place.tokens or [0] * len(self.mixture.names)
        loader = DataLoader(
            self.blocks,
            batch_size=None,
            sampler=itertools.count(self.place.block),  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=self.workers,
            generator=torch.Generator(),  # else it draws from that of the model, and a resumed run once more
            prefetch_factor=AHEAD if self.workers else None,
        )
        for data in loader:
            block: _Block = pickle.loads(data)
            if block.fault:
                raise InputError(block.fault)
            if block.documents is not None:
                block = self.blocks.laid_out(self.place.block, block.documents, block.sources)
            rows, first = block.rows or [], self.place.row
            if not first:
                self.place.tokens = [a + b for a, b in zip(self.place.tokens, block.tokens, strict=True)]
            for row in rows[first:]:
                self.place.row += 1
                yield row
            self.place.block, self.place.row = self.place.block + 1, 0

    def skip(self, rows: int) -> None:
        """Goes on behind so many rows from the beginning, all of which are read for it."""
        for _ in itertools.islice(self, rows):
            pass


def _as_it_is(data: Any) -> Any:
    return data


def _decoded(document: InterleavedDocument) -> InterleavedDocument:
    """With pixels instead of files: they are decoded in the worker, and a damaged one is named here."""
    try:
        segments = tuple(
            replace(s, image=s.pixels()) if isinstance(s, ImageSegment) and s.codes_N is None else s
            for s in document.segments
        )
    except ValueError as error:
        raise InputError(f"document {document.id!r}: {error}") from None
    return replace(document, segments=segments)


def _has_codes(index: ShardIndex) -> bool:
    return index.fingerprint is not None


def _salted(seed: int, source: int) -> int:
    """Sources of one size have different orders."""
    return int(random_bits(np.asarray([source]), "source", seed)[0] >> np.uint64(1))


def _names(paths: Sequence[str]) -> list[str]:
    """A word for each source: the last of its path, and a number where two have one."""
    names: list[str] = []
    for path in paths:
        name = path.rstrip("/").rsplit("/", 1)[-1] or "data"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


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
