"""Documents of one's own program to shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Literal

from ..configs.errors import InputError
from ..models.documents.document import InterleavedDocument
from ..models.documents.forms import kind_of
from .records import KINDS
from .shards import ShardIndex, ShardWriter, read_index


def write_shards(
    directory: str | Path,
    documents: Iterable[InterleavedDocument],
    *,
    heldout: float = 0.1,
    kind: Literal["interleaved", "understanding", "text_to_image"] = "interleaved",
    overwrite: bool = False,
) -> ShardIndex:
    """Writes the documents of a list or a generator as a folder of shards, whole or not at all.

    heldout: share of the documents that no training sees: every tenth for 0.1.
    kind: of documents whose `meta["kind"]` does not say it.

    Raises InputError for a document that no training could use, and where the folder exists and `overwrite` is off.
    """
    if not isinstance(directory, str | Path):
        raise InputError(f"write_shards: name a folder, not {kind_of(directory)}")
    if isinstance(documents, str | InterleavedDocument) or not isinstance(documents, Iterable):
        raise InputError(f"write_shards: give a list or a generator of documents, not {kind_of(documents)}")
    if isinstance(heldout, bool) or not isinstance(heldout, int | float) or not 0 <= heldout < 1:
        raise InputError(f"write_shards: heldout is a share from 0 up to, not including, 1, not {heldout!r}")
    if kind not in KINDS:
        raise InputError(f"write_shards: kind {kind!r} is none of {', '.join(KINDS)}")
    with ShardWriter(directory, overwrite=overwrite) as writer:
        for number, document in enumerate(documents, 1):
            if not isinstance(document, InterleavedDocument):
                raise InputError(
                    f"write_shards: document {number} is {kind_of(document)}; `limner.document` makes one of texts and "
                    "pictures"
                )
            named = replace(document, id=document.id or str(number), meta={"kind": kind, **document.meta})
            writer.write(named, "heldout" if floor(number * heldout) > floor((number - 1) * heldout) else "train")
    return read_index(directory)
