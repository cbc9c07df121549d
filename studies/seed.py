"""One seed's folder, as the demo and the studies use it: what may be mixed in it, and who has it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..configs import terminal
from ..configs.errors import InputError, writing
from ..configs.whole import write_atomically

REACH = 0.5
"""The held-out score whose first reaching measures efficiency."""


def check_same_settings(folder: Path, kept: Any, wanted: Mapping[str, Any]) -> None:
    """A folder holds the results of one set of settings; others would be mixed in silently.

    kept: the settings as they were written down as JSON. Raises InputError naming some that differ.
    """
    wanted = json.loads(json.dumps(wanted))
    if kept == wanted:
        return
    kept = kept if isinstance(kept, Mapping) else {}
    names = sorted(key for key in {*kept, *wanted} if kept.get(key) != wanted.get(key))
    raise InputError(
        f"{folder}: holds results of other settings ({', '.join(names[:3])}); give another --out, or delete the folder"
    )


def keep_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Writes a folder's settings down, or raises InputError where it holds results of others."""
    if file.exists():
        check_same_settings(file.parent, json.loads(file.read_text()), settings)
    write_atomically(file, json.dumps(settings, indent=1) + "\n")


def first_reach(curve: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Where the held-out curve first reaches 0.50."""
    point = next((point for point in curve if point["sampled_story_exact"] >= REACH), None)
    return {"step": point["step"], "seconds": point["seconds"]} if point else None


@contextmanager
def taken(file: Path) -> Iterator[bool]:
    """Whether this process has what the lock file stands for, until the block ends; a killed process gives it up."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def limit_threads(processes: int = 1) -> None:
    """Matrices this small gain nothing from many threads, and threads that wait for a busy core stall all of them."""
    torch.set_num_threads(min(4, max(1, (os.cpu_count() or 1) // 2 // processes)))


def say(text: str) -> None:
    terminal.say(f"[limner] {text}", flush=True)
