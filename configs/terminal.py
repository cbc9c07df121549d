"""What is said on a terminal. Words of others may stand in it, so nothing reaches the terminal that would steer it."""

from __future__ import annotations

import logging
import shlex
import sys
import unicodedata
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

SPACES = {"\n", "\t"}
JOINERS = {"\u200c", "\u200d"}
"""Persian and emoji are written with them; they steer nothing."""


def visible(text: str) -> str:
    """The text with every control character (ANSI, bidi, a lone surrogate) as its escape: `\\x1b`, `\\u202e`."""
    return text if text.isprintable() else "".join(map(_visible, text))


def one_line(text: object) -> str:
    """Visible, and without the breaks that would make it several lines."""
    return visible(" ".join(str(text).split()))


def say(text: object = "", *, to_stderr: bool = False, flush: bool = False) -> None:
    """`print` for a terminal, of all that limner says; above a bar of progress, on lines of its own."""
    stream = sys.stderr if to_stderr else sys.stdout
    with _above_bars(stream):
        print(visible(str(text)), file=stream, flush=flush)


def say_next(*words: object, page: object = None) -> None:
    """How a command ends: the one that goes on from what it wrote, to be copied, or the page to be looked at."""
    say(f"next: {shlex.join(map(str, words)) if page is None else f'open {page} in a browser'}")


def end_bars() -> None:
    """Ends every bar of progress as it stands: what comes next, a traceback too, begins on a line of its own."""
    for bar in list(getattr(_bars(), "_instances", ())):
        bar.close()


def prepare_streams() -> None:
    """A terminal that cannot show a character (a C locale) gets its escape; warnings are said as all else is."""
    for stream in (sys.stdout, sys.stderr):
        _show_or_escape(stream)
    if logging.lastResort is not None:
        logging.lastResort = _Said(logging.lastResort.level)


def quiet_libraries() -> None:
    """What libraries say to each other's authors is kept from users, who can do nothing about it: DeepSpeed, at its
    import, that there is no GPU (on stdout, which is for answers); transformers, that PEFT and TRL call an old name."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record), to_stderr=True)
        except Exception:  # as logging's own handlers: a message that cannot be written ends nothing
            self.handleError(record)


def _bars() -> Any:
    """The class of all bars; None while nothing has drawn one, for tqdm is not imported only to be asked."""
    return getattr(sys.modules.get("tqdm"), "tqdm", None)


def _above_bars(stream: TextIO) -> AbstractContextManager[Any]:
    """Takes the bars off the terminal, and draws them again below. Without their lock, which a process that was forked
    may find taken for ever."""
    bars = _bars()
    return nullcontext() if bars is None else bars.external_write_mode(stream, nolock=True)


def _show_or_escape(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _visible(char: str) -> str:
    shown = char.isprintable() or char in SPACES or char in JOINERS or unicodedata.category(char) == "Zs"
    return char if shown else char.encode("unicode_escape").decode("ascii")
