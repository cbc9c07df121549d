"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...configs.errors import InputError, writing

UNNAMED = re.compile(r"^\.tmp[A-Za-z0-9]{6}$|#[0-9]+$")
"""Of files in the making, as the crates tempfile and object_store call them on a local disk."""


@contextmanager
def one_writer(place: str) -> Iterator[None]:
    """The kernel lets go when the process ends, however it ends; an object store has no lock. Raises InputError where
    another process writes, the disk is full or the place may not be written."""
    with writing(place):
        if "://" in place:
            yield
            return
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{place}: another process is writing to it; wait until it is done") from None
            _sweep(Path(place))
            yield
        finally:
            os.close(descriptor)


def _sweep(place: Path) -> None:
    """Removes what a killed writer had not given its name yet: LanceDB's own cleaning does not know these files."""
    for path in place.rglob("*"):
        if UNNAMED.search(path.name) and path.is_file():
            path.unlink(missing_ok=True)
