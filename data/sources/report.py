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

from ...configs.terminal import one_line

LISTED = 100
"""Problems of a kind that a converter lists; the others it counts, so that the report of a million records is small."""

MOST_NAMED = 12
"""Kinds, extensions and folders that a line names."""


@dataclass(frozen=True, slots=True)
class Problem:
    file: str
    line: int
    kind: str
    """The rule, a word or two: missing, outside, duplicate, unreadable, refused, ..."""
    target: str
    """The picture as the file names it; empty where the problem is the file's."""
    reason: str
    pictures: int = 0
    """How many of the pictures that are written in the files it accounts for."""

    def __str__(self) -> str:
        line = f"{self.file}:{self.line}: {self.kind}: {self.target and self.target + ': '}{self.reason}"
        return one_line(line)  # names may hold terminal control codes


class Problems(list[Problem]):
    """Counts all that it is given by kind, and keeps the first `most` of each."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.most, self.counts, self.pictures = most, Counter[str](), 0

    def append(self, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        self.pictures += problem.pictures
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
        listed = {name: [asdict(problem) for problem in getattr(self, name)] for name in ("problems", "notes")}
        sums = {name: getattr(self, name) for name in ("written", "removed", "unread", "left_out")}
        return {**counts, "rules": self.rules(), **sums, **listed}

    def summary(self) -> str:
        """The counts in one line, then one for each other sum, each problem that is listed, and each note."""
        total = self.problems.counts.total()
        counts = {"document": self.documents, "image": self.images, "problem": total}
        head = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
        kinds = _kinds(self.problems.counts)
        lines = [f"{head} ({kinds})" if kinds else head, *self.sums(), *map(str, self.problems)]
        if more := total - len(self.problems):
            lines.append(f"and {more} more of the same kinds")
        return "\n".join([*lines, *map(str, self.notes)])

    def sums(self) -> list[str]:
        """That nothing is lost: what became of each picture that was written, what was taken out, what was not read."""
        lines = [f"kept: {_kinds(self.kept)}"] if self.kept else []
        if self.written:
            refused = self.problems.pictures
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
        return [one_line(line) for line in lines]

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


def _kinds(counts: dict[str, int]) -> str:
    """`missing 3, duplicate 1`"""
    most = Counter(counts).most_common(MOST_NAMED)
    named = [f"{kind} {count}" for kind, count in most]
    rest = sum(counts.values()) - sum(count for _, count in most)
    return ", ".join([*named, f"others {rest}"] if rest else named)
