"""GenHowTo and ShowHowTo: how something is done, in key frames.

    actions.heldout.txt, states.heldout.txt, videos/ID.mp4     GenHowTo: frames by second; its pictures are not public
    prompts.json, imgseqs/ID.jpg                               ShowHowTo: the frames of a sequence side by side

Rules of its own: repeated (a triplet that was there), no pair (an action without its final state), strip (a picture
that is no row of frames).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....configs.errors import InputError, plain_file, reading
from ....configs.registry import register
from ....models.documents.document import encode_png, open_image, to_rgb
from ..chat import Built
from ..pictures import Picture, Pictures
from ..report import Problem, Refused, Report
from .captions import Problems, read_object, videos_of, without_stills
from .stories import Step, StorySettings, caption, story

INSTRUCTION = "Answer the question in text and pictures, step by step."
FPS = 5
"""ShowHowTo counts its frames so."""


@register("source", "genhowto")
@dataclass
class GenHowTo(StorySettings):
    """GenHowTo: actions.*.txt and states.*.txt, and a folder videos; its own pictures are not public."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        actions = sorted(path.glob("actions.*.txt")) if path.is_dir() else []
        if not actions:
            raise InputError(f"{path}: no actions.*.txt; name GenHowTo's folder evaluation/data")
        videos = videos_of(self, path, report)
        for file in actions:
            states = {_key(row): row for row in _table(file.with_name(file.name.replace("actions", "states", 1)))}
            seen: set[tuple[str, ...]] = set()
            for number, row in enumerate(_table(file), 2):
                report.record()
                problems, key = Problems(report, file.name, number), _key(row)
                if key in seen:
                    problems.add("repeated", "the same triplet of frames was there before")
                    continue
                seen.add(key)
                try:
                    if key not in states:
                        raise Refused("no pair", "states has no such triplet")
                    video, first, action, last = key
                    frames = videos.frames(video, [float(first), float(action), float(last)])
                    texts = ["", caption(row["FRAME_AC_PROMPT"]), caption(states[key]["FRAME_S2_PROMPT"])]
                    told = [Step(*pair) for pair in zip(texts, frames, strict=True)]
                    steps = without_stills(told, problems, self.max_pictures)
                    asked = f"{self.instruction or INSTRUCTION} How is this {caption(row['DS_CAT_NAME'])} changed?"
                    name = f"genhowto:{'/'.join(key)}"
                    yield from story(name, video, asked, steps, self, {"origin_id": video})
                except Refused as error:
                    problems.add(error.rule, error.reason)
                except ValueError as error:
                    problems.add("no record", str(error))

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and any(path.glob("actions.*.txt"))


def _table(file: Path) -> list[dict[str, Any]]:
    """Raises InputError where the file lacks a column."""
    with reading(file), plain_file(file).open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    needed = ("VID_ID", "FRAME_S1", "FRAME_AC", "FRAME_S2")
    if rows and (lacking := [name for name in needed if name not in rows[0]]):
        raise InputError(f"{file}: no column {lacking[0]!r}; it has {', '.join(map(str, rows[0]))}")
    return rows


def _key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return (row["VID_ID"], row["FRAME_S1"], row["FRAME_AC"], row["FRAME_S2"])


@register("source", "showhowto")
@dataclass
class ShowHowTo(StorySettings):
    """ShowHowTo: prompts.json, with imgseqs*/ID.jpg, or with keyframes.json and videos."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        file = path / "prompts.json" if path.is_dir() else path
        base = file.parent
        root = Path(self.images) if self.images else base
        strips = [*sorted(root.glob("imgseqs*")), root]
        moments = read_object(base / "keyframes.json") if (base / "keyframes.json").is_file() else {}
        videos = videos_of(self, base, report)
        for number, (name, prompts) in enumerate(read_object(file).items(), 1):
            report.record()
            problems = Problems(report, file.name, number)
            try:
                if not isinstance(prompts, list):
                    raise Refused("no record", "expected a list of prompts")
                texts = [caption(prompt) for prompt in prompts]
                strip = next((found for folder in strips if (found := folder / f"{name}.jpg").is_file()), None)
                if strip is not None:
                    frames = _cut(strip, len(texts), videos.pictures)
                else:
                    video = name.rpartition("_")[0] or name
                    frames = videos.frames(video, [_moment(*pair) for pair in moments.get(name, ())] or [0.0])
                if len(frames) != len(texts):
                    raise Refused("no record", f"{len(frames)} frames and {len(texts)} prompts")
                told = [Step(*pair) for pair in zip(texts, frames, strict=True)]
                steps = without_stills(told, problems, self.max_pictures)
                asked = self.instruction or INSTRUCTION
                group = name.rpartition("_")[0] or name
                yield from story(f"showhowto:{name}", group, asked, steps, self, {"origin_id": name})
            except Refused as error:
                report.problems.append(Problem(file.name, number, error.rule, name, error.reason))
            except (TypeError, ValueError) as error:
                problems.add("no record", f"keyframes.json: {error}")

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and (path / "prompts.json").is_file()


def _moment(start: float, index: int) -> float:
    """Frames are counted at 5 a second from the first tick at or behind the start."""
    return math.ceil(start * FPS) / FPS + index / FPS


def _cut(file: Path, count: int, pictures: Pictures) -> list[Picture]:
    """The frames of a strip. Raises Refused."""
    try:
        strip = to_rgb(open_image(pictures.bytes_of(str(file.resolve()))))
    except ValueError as error:
        raise Refused("corrupt", str(error)) from None
    width = strip.width // count
    if width * count != strip.width:
        raise Refused("strip", f"{strip.width} pixels wide, which is no row of {count} frames")
    boxes = [(at * width, 0, (at + 1) * width, strip.height) for at in range(count)]
    return [pictures.decode(encode_png(strip.crop(box))) for box in boxes]
