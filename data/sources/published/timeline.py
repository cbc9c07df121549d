"""Frames of videos at given moments, or of a folder where somebody has cut them already.

    videos = Videos([Path("videos")], [Path("frames")], pictures)
    videos.frames("v_abc", [3.5, 12.0])        # a Picture each, or the rule that refuses it

Videos are read with PyAV (`pip install "limner[video]"`), each once and forward. Rules: missing (no video, no frames),
corrupt, missing frame, still (as good as the one before).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ....configs.errors import InputError
from ....models.documents.document import encode_png
from ..pictures import SUFFIXES, Picture, Pictures
from ..report import Refused
from .stories import natural

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
STILL = 4
"""Of 64 bits of a difference hash: frames closer than this show the same."""
LATE = 2
"""Frames by which the last one may come before a moment that the video should have."""


@dataclass
class Videos:
    folders: Sequence[Path]
    """Where videos lie, by their id and any suffix."""
    cut: Sequence[Path]
    """Where folders of frames lie, by the id of their video: a picture a moment, in order, or called by its second."""
    pictures: Pictures

    def frames(self, name: str, moments: Sequence[float]) -> list[Picture]:
        """The frame at each moment, in seconds, in their order. Raises Refused for the whole."""
        for folder in self.cut:
            if files := _frames_of(folder / name):
                return [self.pictures.read(str(file.resolve())) for file in _chosen(files, moments)]
        for folder in self.folders:
            for suffix in VIDEOS:
                if (path := folder / f"{name}{suffix}").is_file() and _within(path, folder):
                    return [self._picture(frame) for frame in frames_at(path, moments)]
        raise Refused("missing", f"no video {name} and no folder of its frames")

    def _picture(self, frame: Image.Image) -> Picture:
        return self.pictures.decode(encode_png(frame))


def frames_at(path: Path, moments: Sequence[float]) -> list[Image.Image]:
    """The frame that is shown at each moment, in seconds. The video is decoded once, forward.

    Raises Refused where it does not decode, or ends before a moment.
    """
    try:
        import av
        import av.error
    except ImportError:
        raise InputError('videos are read with PyAV: pip install "limner[video]"') from None
    found: dict[float, Image.Image] = {}
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Refused("corrupt", f"{path.name} has no pictures")
            stream: Any = container.streams.video[0]
            waiting = sorted(set(moments))
            last, rate = None, float(stream.average_rate or 25)
            container.seek(int(waiting[0] * 1_000_000), backward=True)
            for frame in container.decode(stream):
                while last is not None and waiting and frame.time is not None and frame.time > waiting[0] + 1e-6:
                    found[waiting.pop(0)] = _shown(last)
                if not waiting:
                    break
                last = frame
            for moment in waiting:  # at or behind the end
                if last is None or last.time is None or moment - last.time > LATE / rate:
                    end = "nothing" if last is None else f"{last.time:.2f} s"
                    raise Refused("missing frame", f"{path.name} shows {end} last, and no {moment:.2f} s")
                found[moment] = _shown(last)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise Refused("corrupt", f"{path.name}: {error}") from None
    return [found[moment] for moment in moments]


def _shown(frame: Any) -> Image.Image:
    """Upright: a phone's video says how it was held."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if getattr(frame, "rotation", 0) else image


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _frames_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted((file for file in files if _within(file, folder)), key=lambda file: natural(file.name))


def _chosen(files: Sequence[Path], moments: Sequence[float]) -> Iterator[Path]:
    """As many files as moments are theirs, in order; else each file's name is its second."""
    if len(files) == len(moments):
        yield from files
        return
    try:
        seconds = [float(file.stem) for file in files]
    except ValueError:
        counts = f"{len(files)} frames for {len(moments)} moments"
        raise Refused("missing frame", f"{counts}, and no seconds as names") from None
    for moment in moments:
        distance, file = min((abs(second - moment), file) for second, file in zip(seconds, files, strict=True))
        if distance > 1:
            raise Refused("missing frame", f"no frame within a second of {moment:.2f} s")
        yield file


def same(one: Picture, other: Picture) -> bool:
    """Do two frames show as good as the same?"""
    return int(np.count_nonzero(_hash(one) != _hash(other))) < STILL


def _hash(picture: Picture) -> np.ndarray:
    """64 bits: is a pixel of the small grey picture lighter than its left neighbour?"""
    small = np.asarray(picture.image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return (np.diff(small, axis=1) > 2).ravel()
