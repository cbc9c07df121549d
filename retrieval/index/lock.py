"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...configs import errors


@contextmanager
def writing(place: str) -> Iterator[None]:
    """One writer at a time. The kernel lets go when the process ends, however it ends; an object store has no lock."""
    if "://" in place:
        with errors.writing(place):
            yield
        return
    with errors.writing(place):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.InputError(f"{place}: another process is writing to it; wait until it is done") from None
        with errors.writing(place):
            yield
    finally:
        os.close(descriptor)
