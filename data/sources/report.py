"""What a source has to say beside its documents: counts, and a problem for everything that gave none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MOST_NAMED = 12
"""Kinds, extensions and folders that a line names."""


@dataclass(frozen=True, slots=True)
class Problem:
    file: str
    line: int
    kind: str
    """A word or two: missing, outside, duplicate, unreadable, refused, ..."""
    target: str
    """The picture as the file names it; empty where the problem is the file's."""
    reason: str
    pictures: int = 0
    """How many of the pictures that are written in the files it accounts for."""

    def __str__(self) -> str:
        line = f"{self.file}:{self.line}: {self.kind}: {self.target and self.target + ': '}{self.reason}"
        return _printable(line)  # names may hold terminal control codes


@dataclass(slots=True)
class Report:
    documents: int = 0
    images: int = 0
    problems: list[Problem] = field(default_factory=list)
    written: int = 0
    """Pictures that the files refer to, where the source counts them: `images`, and those that problems account for."""
    notes: list[Problem] = field(default_factory=list)
    """Of what is kept, and worth saying: the first frame of an animation."""
    removed: dict[str, int] = field(default_factory=dict)
    """Markup taken out of the texts, by kind: template tag, attribute list, ..."""
    unread: dict[str, int] = field(default_factory=dict)
    """Files of kinds that are not read, by extension."""
    left_out: list[str] = field(default_factory=list)
    """Folders that were not entered."""

    def summary(self) -> str:
        """The counts in one line, then a line for each other sum, for each problem and for each note."""
        counts = {"document": self.documents, "image": self.images, "problem": len(self.problems)}
        head = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
        kinds = _kinds(Counter(problem.kind for problem in self.problems))
        return "\n".join([f"{head} ({kinds})" if kinds else head, *self.sums(), *map(str, self.problems + self.notes)])

    def sums(self) -> list[str]:
        """That nothing is lost: what became of each picture that was written, what was taken out, what was not read."""
        lines = []
        if self.written:
            refused = sum(problem.pictures for problem in self.problems)
            lines.append(f"pictures written: {self.written} = {self.images} kept + {refused} not")
            if self.written != self.images + refused:
                lines[-1] += f" (the sum is out by {self.written - self.images - refused}: please report this)"
        if self.notes:
            lines.append(f"noted: {_kinds(Counter(note.kind for note in self.notes))}")
        if self.removed:
            lines.append(f"taken out of the texts: {_kinds(self.removed)}")
        if self.unread:
            lines.append(f"files not read: {_kinds(self.unread)}")
        if self.left_out:
            more = len(self.left_out) - MOST_NAMED
            named = ", ".join(self.left_out[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"folders left out: {named}")
        return [_printable(line) for line in lines]


def _kinds(counts: dict[str, int]) -> str:
    """`missing 3, duplicate 1`"""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_NAMED]
    named = [f"{kind} {count}" for kind, count in most]
    rest = sum(counts.values()) - sum(count for _, count in most)
    return ", ".join([*named, f"others {rest}"] if rest else named)


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in line)
