"""The one exception for a fault in what the user gave: a file, a record, a setting."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Says in one line which file, record or option is at fault and what to do; the CLI prints that line alone."""


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Whatever libraries raise over a folder that is damaged or not theirs becomes one InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{directory}: cannot be read: {reason}") from error
