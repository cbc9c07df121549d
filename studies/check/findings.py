"""What `limner check` found, one check after the other: a fault in one does not stop those that can still run."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...configs.errors import InputError
from ...configs.terminal import one_line

State = Literal["ok", "failed", "skipped"]
PACKAGE = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"(?<![\w.<>/])~?(?:/[^\s/'\"`:;,()<>\[\]]+)+/?|\b[A-Za-z]:\\[^\s'\"]+")
"""An absolute path, wherever it stands in a sentence; `text/image` and `</b>` are none."""
SECRET = re.compile(r"\bhf_\w{8,}|\bBearer\s+\S+|(?<=//)[^\s/@]+@", re.IGNORECASE)
LONGEST_REASON = 400


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    state: State
    text: str
    """What was seen, or why nothing was."""
    remedy: str = ""
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "failed": "FAIL", "skipped": "skip"}[self.state]
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{mark}  {self.name}: {self.text}{remedy} ({self.seconds:.1f} s)"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judged(name: str, holds: bool, text: str, remedy: str, **figures: float) -> Finding:
    """The remedy is said where it does not hold."""
    return Finding(name, "ok" if holds else "failed", text, "" if holds else remedy, figures=figures)


Work = Callable[[], Iterable[Finding]]


class Findings:
    """They are told as they come."""

    def __init__(self, private: Private, tell: Callable[[Finding], None]):
        self.private, self.tell = private, tell
        self.all: list[Finding] = []

    def look(self, name: str, work: Work, needs: str = "") -> bool:
        """Makes one or several checks of a name; whether none of them failed. `needs` says what they lack, if so."""
        if needs:
            self._add(Finding(name, "skipped", f"needs {needs}", "see above"))
            return False
        begun, first = time.perf_counter(), len(self.all)
        found = self._made(name, work)
        while True:
            finding = next(found, None)
            if finding is None:
                break
            self._add(replace(finding, seconds=time.perf_counter() - begun))
            begun = time.perf_counter()
        return all(finding.state == "ok" for finding in self.all[first:])

    def _add(self, finding: Finding) -> None:
        finding = replace(finding, text=self.private(finding.text), remedy=self.private(finding.remedy))
        self.all.append(finding)
        self.tell(finding)

    @staticmethod
    def _made(name: str, work: Work) -> Iterator[Finding]:
        try:
            yield from work()
        except InputError as error:
            yield Finding(name, "failed", str(error))
        except Exception as error:  # of a model that nobody has seen here: a report is what it is asked for
            if out_of_memory(error):
                yield Finding(name, "skipped", "the memory of this device is not enough", "take a larger one")
                return
            reason = one_line(error)[:LONGEST_REASON] or "no reason given"
            said = f"{type(error).__name__} at {_raised_at(error)}: {reason}"
            yield Finding(name, "failed", said, "a fault of limner, if the model is sound: attach the JSON to an issue")

    @property
    def hold(self) -> bool:
        return all(finding.state == "ok" for finding in self.all)

    @property
    def counts(self) -> dict[str, int]:
        return {state: sum(finding.state == state for finding in self.all) for state in ("ok", "failed", "skipped")}


def out_of_memory(error: BaseException) -> bool:
    """Of torch's CUDA, its CPU allocator, or Python."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _raised_at(error: BaseException) -> str:
    """The innermost line of limner's own that it came through."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(PACKAGE)]
    frames = own[-1:] or traceback.extract_tb(error.__traceback__)[-1:]
    return next((f"{Path(f.filename).name}:{f.lineno}" for f in frames), "nowhere")


class Private:
    """Texts without what they tell of the machine: the model's folder becomes MODEL, every other path PATH."""

    def __init__(self, folder: Path):
        """folder: of the model, by its whole path."""
        names = {str(folder.absolute()), str(folder.resolve())}
        self.folders = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        others = (Path.home(), Path.cwd(), Path(tempfile.gettempdir()))
        self.others = sorted({str(path) for path in others if len(path.parts) > 1}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for name in self.folders:
            text = re.sub(rf"(?<![\w/]){re.escape(name)}(?![\w-])", "MODEL", text)
        for name in self.others:
            text = text.replace(name, "/PATH")
        return SECRET.sub("SECRET", PLACE.sub("PATH", text))

    def everywhere(self, value: Any) -> Any:
        """The same of all texts within mappings and lists."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(str(key)): self.everywhere(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.everywhere(inner) for inner in value]
        return value
