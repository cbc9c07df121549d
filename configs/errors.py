"""The one exception for a fault in what the user gave: a file, a record, a setting. And how a command ends."""

import argparse
import os
import re
import signal
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, NoReturn

from .terminal import end_bars, one_line, prepare_streams, quiet_libraries, say

LONGEST_LINE = 2000
"""Characters of an error. A message may quote a whole file; its beginning and its end, the remedy, are shown."""
LARGEST = 8 * 2**30
"""Bytes of a file that is read as a whole."""
HOLES_FROM, WRITTEN = 64 * 2**20, 1 / 64
"""A file of so many bytes of which a smaller share stands on the disk is all holes; no compression does that."""
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
INTERRUPTED = 130
NOTHING_LOST = "nothing is left half written; run the same command again"


class InputError(ValueError):
    """Says in one line which file, record or option is at fault and what to do; the CLI prints that line alone."""


class Unavailable(InputError):
    """Somebody who was asked gives no answers for now; asked again later he may."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose faults are InputErrors, and which takes `--max_images` for `--max-images`."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self._words = [self._dashed(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(list(self._words), namespace)

    def _dashed(self, word: str) -> str:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        return f"{name}{equals}{value}" if name in self._option_string_actions else word

    def error(self, message: str) -> NoReturn:
        """argparse misses what is required before it says which option is unknown, and so why."""
        unknown = [name for word in self._words if (name := word.partition("=")[0]).startswith("--") and name != "--"]
        for name in unknown if message.startswith(("the following arguments are", "unrecognized")) else ():
            if not any(option.startswith(name) for option in self._option_string_actions):
                near = get_close_matches(name, self._option_string_actions, 1)
                message = f"{name}: unknown option" + (f"; did you mean {near[0]}?" if near else "")
                break
        raise InputError(f"{self.prog}: {message}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is raised over a file or folder that is damaged or of another kind becomes one InputError naming it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = fault_of_disk(error) or next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path}: cannot be read: {reason}") from error


def plain_file(path: Path, most: int | None = LARGEST) -> Path:
    """The path, if what stands there is a plain file that can be read whole: `plain_file(path).read_bytes()`.

    most: bytes; None for files that are mapped, not read. Raises OSError where nothing is there, and ValueError that
    does not name the path for pipes, devices, too large files and those that are all holes. A folder is left to who
    opens it.
    """
    status = os.stat(path)
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        raise ValueError(f"{kind}, no plain file")
    if most is not None and status.st_size > most and not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{status.st_size} bytes; the limit is {most}")
    written = getattr(status, "st_blocks", status.st_size) * 512
    if stat.S_ISREG(status.st_mode) and status.st_size >= HOLES_FROM and written < status.st_size * WRITTEN:
        raise ValueError(f"{status.st_size} bytes, nearly all of them holes (a sparse file)")
    return path


def nothing_to_read(path: Path) -> InputError:
    """What to raise for a path that is neither a file nor a folder: nothing is there, or a pipe, a socket, a device."""
    try:
        kind = KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        kind = None
    return InputError(f"{path}: {f'{kind}, no plain file' if kind else 'no such file or folder'}")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """A full disk, a folder that may not be written: one InputError naming what was to be written.

    Nothing else is caught: what is raised over anything but the disk is a bug and stays one."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (reason := fault_of_disk(error)) is None or _of_another_place(error, Path(path)):
            raise
        raise InputError(f"{path}: cannot be written: {reason}") from error


def fault_of_disk(error: BaseException) -> str | None:
    """What the system said of a file, without the file's name; None for an error of another kind.

    Libraries in Rust and C++ have exceptions of their own for it: safetensors and LanceDB quote the system's number
    (`os error 28`), torch's writer says that it failed, SQLite that the disk is full."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if number := re.search(r"\(os error (\d+)\)", text):
        return os.strerror(int(number[1]))
    if isinstance(error, OSError | sqlite3.Error) or "PytorchStreamWriter failed writing" in text:
        return one_line(text) or type(error).__name__
    return None


def _of_another_place(error: Exception, path: Path) -> bool:
    """Whether an error names a file elsewhere, which was being read meanwhile."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str) or "://" in str(path):
        return False
    there, here = Path(name).absolute(), path.absolute().parent
    return not (there.is_relative_to(here) or here.is_relative_to(there))


@contextmanager
def keeping(what: str | Callable[[], str]) -> Iterator[None]:
    """While a long command is at work: what an interrupt (Ctrl-C) leaves behind, and how to go on from it.

    what: the words, or what finds them at that moment."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = stop.args or (what if isinstance(what, str) else what(),)  # the innermost knows best
        raise


def run_or_exit(entry: Callable[[Sequence[str]], None]) -> None:
    """Runs a command with the process's arguments: a fault in the input is one line on stderr and exit code 2.

    So is a file that cannot be read or written, wherever that came up; an interrupt is one line and exit code 130.
    Anything else is a bug and keeps its traceback."""
    prepare_streams()
    quiet_libraries()
    try:
        with _interruptible():
            _check_text(sys.argv[1:])
            try:
                entry(sys.argv[1:])
            finally:
                end_bars()
            sys.stdout.flush()
    except BrokenPipeError:  # `limner ... | head`
        _mute_stdout()
        raise SystemExit(1) from None
    except InputError as error:
        _exit(f"error: {error}", 2)
    except OSError as error:
        name = error.filename if error.filename is not None else _unnamed()
        _exit(f"error: {os.fsdecode(name) if isinstance(name, bytes) else name}: {fault_of_disk(error)}", 2)
    except BaseException as error:
        stop = _interrupt_in(error)
        if stop is None:
            raise
        _exit(f"interrupted: {' '.join(map(str, stop.args)) or NOTHING_LOST}", INTERRUPTED)


@contextmanager
def _interruptible() -> Iterator[None]:
    """An interrupt while a library is imported ends the process there: nothing is at work yet, and libraries swallow
    it, or go on half imported."""

    def interrupt(_: int, frame: Any) -> NoReturn:
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                end_bars()
                say(f"limner: interrupted: {NOTHING_LOST}", to_stderr=True, flush=True)
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or current_thread() is not main_thread():
        yield  # `nohup`, and a shell's `&`, have it ignored
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_text(words: Sequence[str]) -> None:
    """Raises InputError for bytes that are no text: no prompt, no JSON and no saved configuration could hold them."""
    for number, word in enumerate(words, 1):
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"argument {number}, {word}: not UTF-8; correct it, or rename the file") from None


def _exit(line: str, code: int) -> NoReturn:
    line = one_line(line)
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    say(f"limner: {line}", to_stderr=True)
    raise SystemExit(code) from None


def _unnamed() -> str:
    """What failed where the system names no file: standard output, if that can no longer be written."""
    try:
        sys.stdout.flush()
    except OSError:
        _mute_stdout()
        return "standard output"
    return f"limner {' '.join(sys.argv[1:2])}"


def _mute_stdout() -> None:
    """What is still buffered goes nowhere: the interpreter would try it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an error came from: a library that is interrupted at its import may raise what it likes."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
