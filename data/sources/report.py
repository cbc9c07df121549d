"""What a source has to say beside its documents: counts, and a problem for everything that gave none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    file: str
    line: int
    kind: str
    """A word or two: missing, outside, duplicate, unreadable, refused, ..."""
    target: str
    """The picture as the file names it; empty where the problem is the file's."""
    reason: str

    def __str__(self) -> str:
        line = f"{self.file}:{self.line}: {self.kind}: {self.target and self.target + ': '}{self.reason}"
        return "".join(char if char.isprintable() else "?" for char in line)  # names may hold terminal control codes


@dataclass(slots=True)
class Report:
    documents: int = 0
    images: int = 0
    problems: list[Problem] = field(default_factory=list)

    def summary(self) -> str:
        """The counts in one line, then a line for each problem."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(p.kind for p in self.problems).most_common())
        counts = {"document": self.documents, "image": self.images, "problem": len(self.problems)}
        head = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
        return "\n".join([f"{head} ({kinds})" if kinds else head, *map(str, self.problems)])
