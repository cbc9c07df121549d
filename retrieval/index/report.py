"""What an index remembers of a document, and what an `add` did."""

from __future__ import annotations

from dataclasses import dataclass, field

from .corpus import Chunk, Problem, by_kind, some


@dataclass(slots=True)
class Report:
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    pictures: int = 0
    """Of the documents added and updated."""
    problems: list[Problem] = field(default_factory=list)

    def summary(self) -> str:
        counts = f"{self.added} added, {self.updated} updated, {self.unchanged} unchanged, {self.deleted} deleted"
        return f"documents: {counts}; {some(self.pictures, 'picture')} written; {by_kind(self.problems)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A document as the index has it."""

    generation: int
    sha256: str
    title: str


@dataclass(frozen=True, slots=True)
class Made:
    """A document that waits for its commit."""

    id: str
    entry: Entry
    chunks: list[Chunk]
