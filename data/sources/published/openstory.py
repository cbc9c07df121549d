"""OpenStory++: key frames of videos with captions, in parquet files without the pictures themselves.

    story/train-00000-of-00009.parquet    __key__, video_id, time_stamp (HH-MM-SS-mmm), json {caption, ..}, png
    videos/ID.mp4  or  frames/ID/*_keyframe_HH-MM-SS-mmm.jpg

`png` is the mask of the persons and things in the frame, never a picture. Rules of its own: duplicate (a row that
repeats the one before under another key), too short (a story of one frame).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ....configs.bounds import Range
from ....configs.errors import InputError, plain_file, reading
from ....configs.json_text import parse_json
from ....configs.registry import register
from ..chat import Built
from ..pictures import Picture
from ..report import Refused, Report
from ..rows import record_files
from .captions import INSTRUCTION, Problems, videos_of, without_stills
from .stories import Step, StorySettings, caption, story
from .timeline import Videos

COLUMNS = ("__key__", "video_id", "time_stamp", "json")
STAMP = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d{3})")


@dataclass(frozen=True, slots=True)
class Frame:
    number: int
    stamp: str
    seconds: float
    text: str


@register("source", "openstory")
@dataclass
class OpenStory(StorySettings):
    """OpenStory++: its story/*.parquet, and a folder videos or frames."""

    text: Literal["caption", "origin_caption"] = "caption"
    """`caption` was put into base forms word by word by its authors' tools, `origin_caption` is shorter."""
    most_frames: Annotated[int, Range(2, 30)] = 5
    """Neighbours that are one story: so many were captioned together."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        files = [file for file in record_files(path) if file.suffix == ".parquet"]
        if not files:
            raise InputError(f"{path}: no parquet file; name OpenStory++'s folder story")
        base = path if path.is_dir() else path.parent
        base = base.parent if base.name == "story" else base
        videos = videos_of(self, base, report)
        for file in files:
            for video, frames in _by_video(file, self.text, report).items():
                for start in range(0, len(frames), self.most_frames):
                    part = frames[start : start + self.most_frames]
                    problems = Problems(report, file.name, part[0].number)
                    try:
                        yield from self._story(video, part, videos, problems)
                    except Refused as error:
                        problems.add(error.rule, f"{video}: {error.reason}")

    def _story(self, video: str, frames: list[Frame], videos: Videos, problems: Problems) -> Iterator[Built]:
        if len(frames) < 2:
            raise Refused("too short", "one frame")
        pictures = _stamped(video, frames, videos) or videos.frames(video, [frame.seconds for frame in frames])
        steps = [Step(frame.text, picture) for frame, picture in zip(frames, pictures, strict=True)]
        name = f"openstory:{video}/{frames[0].stamp}"
        asked = self.instruction or INSTRUCTION
        kept = without_stills(steps, problems, self.max_pictures)
        yield from story(name, video, asked, kept, self, {"origin_id": video})

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and any((path / "story").glob("*.parquet"))


def _by_video(file: Path, text: str, report: Report) -> dict[str, list[Frame]]:
    """The frames of a file by video, in their order; without the masks, which are most of its bytes."""
    import pyarrow.parquet

    found: dict[str, list[Frame]] = {}
    with reading(file), pyarrow.parquet.ParquetFile(plain_file(file, None)) as table:
        names = table.schema_arrow.names
        if lacking := [name for name in COLUMNS if name not in names]:
            raise InputError(f"{file}: no column {lacking[0]!r}; it has {', '.join(names)}")
        rows = [row for batch in table.iter_batches(columns=[*COLUMNS]) for row in batch.to_pylist()]
    for number, row in enumerate(rows, 1):
        report.record()
        problems = Problems(report, file.name, number)
        stamp = STAMP.fullmatch(str(row["time_stamp"]))
        try:
            if "_override_" in str(row["__key__"]):
                problems.add("duplicate", f"{row['__key__']} repeats a row")
            elif stamp is None:
                problems.add("no record", f"time_stamp {row['time_stamp']!r} is no HH-MM-SS-mmm")
            else:
                hours, minutes, seconds, thousandths = map(int, stamp.groups())
                moment = 3600 * hours + 60 * minutes + seconds + thousandths / 1000
                words = caption(_object(row["json"]).get(text))
                found.setdefault(str(row["video_id"]), []).append(Frame(number, stamp[0], moment, words))
        except Refused as error:
            problems.add(error.rule, error.reason)
    return {video: sorted(frames, key=lambda frame: frame.seconds) for video, frames in found.items()}


def _object(value: Any) -> dict[str, Any]:
    """A struct of the table, or JSON as a text."""
    if isinstance(value, str | bytes):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise Refused("no record", f"its json is none: {error}") from None
    return value if isinstance(value, dict) else {}


def _stamped(video: str, frames: list[Frame], videos: Videos) -> list[Picture]:
    """The frames that somebody has cut under the names of the rows; none where one of them is not there."""
    for folder in videos.cut:
        listed = sorted((folder / video).glob("*_keyframe_*"))
        by_stamp = {found[0]: file for file in listed if (found := STAMP.search(file.stem))}
        if all(frame.stamp in by_stamp for frame in frames):
            return [videos.pictures.read(str(by_stamp[frame.stamp].resolve())) for frame in frames]
    return []
