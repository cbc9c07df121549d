"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...configs.errors import InputError, writing


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
            yield
        finally:
            os.close(descriptor)
