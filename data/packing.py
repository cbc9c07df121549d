"""Packing: several short sequences to a row, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..configs.errors import InputError
from ..models.tokens.sequence import TokenSequence

Row = list[TokenSequence]


def pack(sequences: Iterable[TokenSequence], length: int, buffer: int = 32) -> Iterator[Row]:
    """Rows of at most `length` tokens, first-fit over a window of open rows; nothing is cut or dropped.

    A row leaves when the window is full, fullest first, so the order is deterministic. At the end of `sequences` all
    rows leave. Raises InputError for a sequence longer than a row.
    """
    rows: list[Row] = []
    sizes: list[int] = []
    for sequence in sequences:
        if len(sequence) > length:
            raise InputError(
                f"a document has {len(sequence)} tokens and `pack_length` is {length}; raise it or drop the document"
            )
        place = next((i for i, size in enumerate(sizes) if size + len(sequence) <= length), None)
        if place is None:
            if len(rows) >= buffer:
                fullest = max(range(len(rows)), key=sizes.__getitem__)
                yield rows.pop(fullest)
                sizes.pop(fullest)
            rows.append([])
            sizes.append(0)
            place = len(rows) - 1
        rows[place].append(sequence)
        sizes[place] += len(sequence)
    yield from rows
