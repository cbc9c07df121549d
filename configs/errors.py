"""The one exception for a fault in what the user gave: a file, a record, a setting."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn


class InputError(ValueError):
    """Says in one line which file, record or option is at fault and what to do; the CLI prints that line alone."""


class Unavailable(InputError):
    """Somebody who was asked gives no answers for now; asked again later he may."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose faults are InputErrors, and which takes `--max_images` for `--max-images`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._dashed(word) for word in words], namespace)

    def _dashed(self, word: str) -> str:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        return f"{name}{equals}{value}" if name in self._option_string_actions else word

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is raised over a file or folder that is damaged or of another kind becomes one InputError naming it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None  # without the path, which is named already
        reason = reason or next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path}: cannot be read: {reason}") from error


def run_or_exit(entry: Callable[[Sequence[str]], None]) -> None:
    """Runs a command with the process's arguments: a fault in the input is one line on stderr and exit code 2.

    Anything else is a bug and keeps its traceback.
    """
    try:
        entry(sys.argv[1:])
    except InputError as error:
        line = " ".join(str(error).split())
        # It may quote a hostile file: no terminal control codes from there.
        print(f"limner: error: {''.join(char if char.isprintable() else '?' for char in line)}", file=sys.stderr)
        raise SystemExit(2) from None
