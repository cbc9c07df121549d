"""What a source has to say beside its documents: what it read, and each rule that left something out or changed it.

report.record()                                            a record is read
report.note("placed first")                                a rule that lets a record pass, and how often
report.problems.append(Problem(file, 3, "missing", ...))   a rule that leaves a record, or its picture, out
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

LISTED = 100
"""Problems of a kind that a converter lists; the others it counts, so that the report of a million records is small."""


@dataclass(frozen=True, slots=True)
class Problem:
    file: str
    line: int
    kind: str
    """The rule, a word or two: missing, outside, duplicate, unreadable, refused, ..."""
    target: str
    """The picture as the file names it; empty where the problem is the file's."""
    reason: str

    def __str__(self) -> str:
        line = f"{self.file}:{self.line}: {self.kind}: {self.target and self.target + ': '}{self.reason}"
        return "".join(char if char.isprintable() else "?" for char in line)  # names may hold terminal control codes


class Problems(list[Problem]):
    """Counts all that it is given by kind, and keeps the first `most` of each."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.most, self.counts = most, Counter[str]()

    def append(self, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        if self.most is None or self.counts[problem.kind] <= self.most:
            super().append(problem)

    def extend(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.append(problem)

    def __iadd__(self, problems: Iterable[Problem]) -> Problems:  # type: ignore[override]
        self.extend(problems)
        return self


class Refused(Exception):
    """A record or a picture that is not taken, with the rule that says so."""

    def __init__(self, rule: str, reason: str) -> None:
        self.rule, self.reason = rule, reason


class Enough(Exception):
    """A trial has read as many records as it was to read."""


@dataclass(slots=True)
class Report:
    records: int = 0
    """Read, of sources that count them."""
    documents: int = 0
    images: int = 0
    problems: Problems = field(default_factory=Problems)
    kept: Counter[str] = field(default_factory=Counter)
    """Rules that let a record pass, by how often they did."""
    most_records: int | None = None
    """A trial reads so many."""

    def __post_init__(self) -> None:
        if not isinstance(self.problems, Problems):
            given, self.problems = self.problems, Problems()
            self.problems.extend(given)

    def record(self) -> None:
        """One more is read. Raises Enough."""
        if self.records == self.most_records:
            raise Enough
        self.records += 1

    def note(self, rule: str) -> None:
        self.kept[rule] += 1

    def rules(self) -> dict[str, dict[str, int]]:
        """By what they did, then by name: how often. `left out` is a record, or a picture of one."""
        return {"kept": dict(self.kept.most_common()), "left out": dict(self.problems.counts.most_common())}

    def to_json(self) -> dict[str, Any]:
        counts = {"records": self.records, "documents": self.documents, "images": self.images}
        return {**counts, "rules": self.rules(), "problems": [asdict(problem) for problem in self.problems]}

    def summary(self) -> str:
        """The counts in one line, then a line for each problem that is listed."""
        total = self.problems.counts.total()
        counts = {"document": self.documents, "image": self.images, "problem": total}
        head = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
        rules = ", ".join(f"{kind} {count}" for kind, count in self.problems.counts.most_common())
        lines = [f"{head} ({rules})" if rules else head]
        if self.kept:
            lines.append(f"kept: {', '.join(f'{rule} {count}' for rule, count in self.kept.most_common())}")
        lines += map(str, self.problems)
        if more := total - len(self.problems):
            lines.append(f"and {more} more of the same kinds")
        return "\n".join(lines)

    def table(self) -> str:
        """What a trial prints: each rule with its count and its first case."""
        first = {problem.kind: str(problem) for problem in reversed(self.problems)}
        rows = [("left out", rule, count, first.get(rule, "")) for rule, count in self.problems.counts.most_common()]
        rows += [("kept", rule, count, "") for rule, count in self.kept.most_common()]
        width = max([len(rule) for _, rule, *_ in rows], default=0)
        read = f"{self.records} records: " if self.records else ""
        lines = [f"{read}{self.documents} documents, {self.images} images"]
        lines += [f"  {what:<8}  {rule:<{width}}  {count:>7}  {case}".rstrip() for what, rule, count, case in rows]
        return "\n".join(lines)
