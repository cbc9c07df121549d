"""ActivityNet Captions: videos with sentences, each of a stretch of time.

    train.json    {"v_ID": {"duration": 40.5, "timestamps": [[0.5, 12.0], ..], "sentences": ["A cook ..", ..]}}
    videos/v_ID.mp4   or frames/v_ID/*.jpg

Rules of its own: empty interval, reversed, clamped, too short, still, held out (what is to be tested with).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ....configs.errors import InputError, plain_file, reading
from ....configs.json_text import parse_json
from ....configs.registry import register
from ..chat import Built
from ..pictures import Pictures
from ..report import Problem, Refused, Report
from .stories import Step, StorySettings, caption, story
from .timeline import Videos, same

SUFFIX_S = 1e-3
INSTRUCTION = "Continue this event in text and pictures, step by step."


@register("source", "activitynet")
@dataclass
class ActivityNet(StorySettings):
    """ActivityNet Captions: train.json and a folder videos or frames."""

    frame: Literal["middle", "start+10%"] = "middle"
    """Which frame of its stretch stands for a sentence."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        file = path / "train.json" if path.is_dir() else path
        base = file.parent
        videos = videos_of(self, base, report)
        for number, (name, record) in enumerate(read_object(file).items(), 1):
            report.record()
            try:
                yield from self._story(name, record, videos, Problems(report, file.name, number))
            except Refused as error:
                report.problems.append(Problem(file.name, number, error.rule, name, error.reason))

    def _story(self, name: str, record: Any, videos: Videos, problems: Problems) -> Iterator[Built]:
        events = list(_events(record, problems, self.frame))
        if len(events) < 2:
            raise Refused("too short", f"{len(events)} events with a stretch of time; at least two are needed")
        frames = videos.frames(name, [moment for moment, _ in events])
        steps = [Step(text, frame) for (_, text), frame in zip(events, frames, strict=True)]
        asked = self.instruction or INSTRUCTION
        kept = without_stills(steps, problems, self.max_pictures)
        yield from story(f"activitynet:{name}", name, asked, kept, self, {"origin_id": name})

    @staticmethod
    def fits(path: Path) -> bool:
        file = path / "train.json" if path.is_dir() else path
        if file.suffix != ".json" or not file.is_file():
            return False
        with file.open(encoding="utf-8", errors="replace") as opened:
            return '"timestamps"' in opened.read(4096)


@dataclass(frozen=True, slots=True)
class Problems:
    """Of a record."""

    report: Report
    file: str
    number: int

    def add(self, rule: str, reason: str) -> None:
        self.report.problems.append(Problem(self.file, self.number, rule, "", reason))


def _events(record: Any, problems: Problems, frame: str) -> Iterator[tuple[float, str]]:
    """(moment, sentence) of the events that have a stretch of time, in their order."""
    try:
        duration, times = float(record["duration"]), [(float(a), float(b)) for a, b in record["timestamps"]]
        pairs = sorted(zip(times, record["sentences"], strict=True), key=lambda pair: pair[0])
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("no record", f"expected duration, timestamps and as many sentences ({error})") from None
    for (start, end), sentence in pairs:
        if end < start:
            problems.add("reversed", f"{start} to {end}")
        elif end - start < SUFFIX_S or start >= duration:
            problems.add("empty interval", f"{start} to {end} of {duration} s")
        else:
            if end > duration:
                problems.report.note("clamped")
                end = duration
            yield start + (end - start) * (0.5 if frame == "middle" else 0.1), caption(sentence)


def without_stills(steps: list[Step], problems: Problems, most: int) -> list[Step]:
    """The steps whose frame shows something new, so many at most."""
    kept: list[Step] = []
    for step in steps:
        if kept and same(kept[-1].picture, step.picture):
            problems.add("still", "its frame shows as good as the same as the one before")
        else:
            kept.append(step)
    if len(kept) > most:
        problems.report.note("more pictures")
    return kept[:most]


def videos_of(settings: StorySettings, base: Path, report: Report) -> Videos:
    """Under `images` or the data's folder: itself, `videos` and `frames` in it."""
    root = Path(settings.images) if settings.images else base
    pictures = Pictures([root], report, settings.min_side, settings.max_aspect)
    return Videos([root / "videos", root], [root / "frames", root], pictures)


def read_object(file: Path) -> Mapping[str, Any]:
    """Raises InputError where the file is no JSON object."""
    with reading(file):
        value = parse_json(plain_file(file).read_bytes())
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value
