"""Shards that limner wrote, as a source: to be indexed, or converted again with other settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ...configs.registry import register
from ...models.documents.document import InterleavedDocument
from ..shards import INDEX, SPLITS, read_documents, read_index
from .report import Report


@register("source", "shards")
class Shards:
    """A folder of shards that limner wrote, both splits one after the other."""

    def documents(self, path: Path, report: Report) -> Iterator[InterleavedDocument]:
        """A document without an id gets its split and number."""
        index = read_index(path)
        for split in (split for split in SPLITS if index.of(split)):
            for number, document in enumerate(read_documents(path, split, shuffle_seed=None)):
                yield replace(document, id=document.id or f"{split}/{number}")

    @staticmethod
    def fits(path: Path) -> bool:
        return (path / INDEX).is_file() and any(path.glob("*.tar"))
