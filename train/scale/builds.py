"""What DeepSpeed compiles as a run begins: said before it goes silent, and a lock that would keep it waiting named.

torch builds an extension in a folder of its own, under the user's cache or TORCH_EXTENSIONS_DIR, and lets other
processes wait for a file `lock` in it to go. A build that is killed leaves the file, and whoever comes next waits
without end and without a word.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from torch.utils.cpp_extension import get_default_build_root

from ...configs.errors import InputError
from ...configs.terminal import say

ON_CPU = "deepspeed_shm_comm"
"""The extension by which processes on one machine without a GPU reduce gradients; there is no setting without it."""
STALE_S = 1800
"""Age of a lock from which no build is taken to be still at work; that of `ON_CPU` takes a minute or two."""


def checked(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """The same command, the check before it: reading training arguments makes accelerate start DeepSpeed."""

    def run(argv: Sequence[str]) -> None:
        check_builds()
        main(argv)

    return run


def check_builds() -> None:
    """Raises InputError for a stale lock."""
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    for folder in _folders():
        for lock in sorted(folder.glob("*/lock")):
            age_s = time.time() - lock.stat().st_mtime
            waited = (
                f"{lock}: of a build that began {age_s / 60:.0f} minutes ago, for whose end this run would wait; one "
                f"that was killed leaves it. If nothing is compiling, delete it: rm {lock}"
            )
            if age_s > STALE_S:
                raise InputError(waited)
            if first:
                say(waited, to_stderr=True, flush=True)
    if first and not torch.cuda.is_available() and not any(list(each.glob(f"{ON_CPU}/*.so")) for each in _folders()):
        say(
            f"without a GPU DeepSpeed compiles {ON_CPU} (C++, once for this Python and torch): a minute or two, in "
            "which nothing else is said",
            to_stderr=True,
            flush=True,
        )


def _folders() -> list[Path]:
    """Where extensions for this Python are built."""
    if own := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return [Path(own)]
    return sorted(Path(get_default_build_root()).glob(f"py{sys.version_info.major}{sys.version_info.minor}*"))
