"""The one exception for a fault in what the user gave: a file, a record, a setting."""

import sys
from collections.abc import Callable, Iterator, Sequence
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


def run_or_exit(entry: Callable[[Sequence[str]], None]) -> None:
    """Runs a command with the process's arguments: a fault in the input is one line on stderr and exit code 2.

    Anything else is a bug and keeps its traceback.
    """
    try:
        entry(sys.argv[1:])
    except InputError as error:
        print(f"limner: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
