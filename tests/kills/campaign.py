"""Kills writers with signal 9, at a moment or at a step of theirs, and looks at what is read then and left at last.

Everything runs in children forked from one process that has imported and tried it all, so that a kill costs little.
That process is a new one: a child of one that has used LanceDB may wait for ever for a lock that a thread held.
A step is a call that changes the disk: a file opened to be written, a name given or taken, a lock, a wait for the disk.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from limner.configs import whole

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link", "fcntl.flock")
"""Of Python's audit events; files opened to be written and waits for the disk are steps, too."""
WAYS = ("exchange", "two renames")
PATIENCE = 120
"""Seconds; a child takes a second or two."""


@dataclass(frozen=True)
class Writer:
    """One kind of thing that is to appear whole."""

    name: str
    write: Callable[[Path], Any]
    """(folder): writes it there; the next run is the same call."""
    seen: Callable[[Path], Any]
    """What a reader finds in the folder, None where there is nothing; raises where it finds a half."""
    start: Callable[[Path], Any] | None = None
    """Writes what stood there before; without it there only is nothing before."""
    may_be_seen: Callable[[Any, Any, Any], bool] = lambda seen, before, after: seen in (before, after)
    """Whether a reader may find this, given what was there before and what an undisturbed writer leaves."""
    share: int = 2
    """Of the kills."""
    files: Callable[[Path], list[str]] = lambda folder: [p.relative_to(folder).as_posix() for p in folder.rglob("*")]
    """Names of what is in a folder, hidden or not: of two that were written without a kill, the same."""
    in_parent: bool = True
    """Whether the parent may try it before it forks: not what starts threads that a child would lack."""


@dataclass
class Case:
    """A writer, what stood there before, and how it goes when nobody kills it."""

    writer: Writer
    way: str
    folder: Path
    """As it was before."""
    before: Any
    after: Any
    files: Counter[str]
    """What it leaves, by name."""
    seconds: float
    steps: int


@dataclass
class Tally:
    kills: Counter[str] = field(default_factory=Counter)
    """By writer, of children that died of it."""
    outlived: int = 0
    """Children that were done before."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{name:20}{count:5}" for name, count in sorted(self.kills.items())]
        total = f"{sum(self.kills.values())} kills, {self.outlived} were done before, {len(self.faults)} faults"
        return "\n".join([*lines, total, *self.faults])


def campaign(writers: Sequence[Writer], kills: int, root: Path, seed: int = 0, seconds: float = float("inf")) -> Tally:
    """Kills children until so many have died of it, by turns of every writer, or the time is over."""
    rng, tally, end = random.Random(seed), Tally(), time.monotonic() + seconds
    for writer in writers:
        if writer.in_parent:
            for act in (writer.start or writer.write, writer.seen):
                act(root / "tried" / writer.name)
    known = cache(partial(prepare, root))
    turns = itertools.cycle(rng.sample(order := [w for w in writers for _ in range(w.share)], len(order)))
    for number, writer in enumerate(turns):
        if sum(tally.kills.values()) >= kills or time.monotonic() > end:
            break
        case = known(writer, rng.choice(WAYS), writer.start is not None and rng.random() < 0.7)
        at = rng.randrange(case.steps) if rng.random() < 0.5 else rng.uniform(0, case.seconds)
        kill_once(case, at, root / f"kill-{number}", tally)
    return tally


def every_step(writer: Writer, way: str, root: Path) -> Tally:
    """Kills a child before each step in turn."""
    tally = Tally()
    case = prepare(root, writer, way, writer.start is not None)
    for step in range(case.steps):
        kill_once(case, step, root / f"kill-{step}", tally)
    return tally


def prepare(root: Path, writer: Writer, way: str, replacing: bool) -> Case:
    """What stood there before, and what an undisturbed writer makes of it."""
    base = root / f"{writer.name}-{way}-{replacing}"
    folder, undisturbed = base / "before", base / "after"
    folder.mkdir(parents=True)
    if replacing and writer.start:
        done(partial(writer.start, folder))
    before = done(partial(writer.seen, folder))
    shutil.copytree(folder, undisturbed)
    counted = done(partial(_counted, writer, undisturbed, way))
    again = base / "again"
    shutil.copytree(folder, again)
    done(partial(_seen_and_after, writer, again, way))
    return Case(
        writer, way, folder, before, done(partial(writer.seen, undisturbed)), Counter(writer.files(again)), *counted
    )


def kill_once(case: Case, at: float, folder: Path, tally: Tally) -> None:
    """at: seconds (float) or the number of a step (int)."""
    shutil.copytree(case.folder, folder)
    writer = case.writer
    what = f"{writer.name}, {case.way}, {'over another' if case.before else 'new'}, killed at {at}"
    try:
        if not killed(partial(_run, writer, folder, case.way, at if isinstance(at, int) else None), at):
            tally.outlived += 1
        else:
            tally.kills[writer.name] += 1
        seen, after = done(partial(_seen_and_after, writer, folder, case.way))
        if not writer.may_be_seen(seen, case.before, case.after):
            tally.faults.append(f"{what}: a reader finds {seen!r}")
        if after != case.after:
            tally.faults.append(f"{what}: after the next run a reader finds {after!r}")
        if left := Counter(writer.files(folder)) - case.files:
            tally.faults.append(f"{what}: after the next run there is {[*left][:5]}")
    except ChildFailed as error:
        tally.faults.append(f"{what}: {error}")
    shutil.rmtree(folder)


# ---- children ----


class ChildFailed(Exception):
    pass


def done(action: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What a child gives back. Raises ChildFailed with the end of its traceback, or after seconds of silence."""
    child, results = _fork(action)
    told, status = _told(child, results, patience)
    if not told:
        raise ChildFailed(f"a child ended with status {status}")
    fine, value = pickle.loads(told)
    if not fine:
        raise ChildFailed(value)
    return value


def killed(action: Callable[[], Any], at: float) -> bool:
    """Whether the child died of it: a number of seconds after its start, or, for a step, by its own hand."""
    child, results = _fork(action)
    if not isinstance(at, int):
        time.sleep(at)
        os.kill(child, signal.SIGKILL)
    told, status = _told(child, results, PATIENCE)
    if told and not (answer := pickle.loads(told))[0]:
        raise ChildFailed(answer[1])
    return os.WIFSIGNALED(status)


def _fork(action: Callable[[], Any]) -> tuple[int, int]:
    results, writable = os.pipe()
    if child := os.fork():
        os.close(writable)
        return child, results
    try:
        os.close(results)
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silent, stream)
        try:
            told = True, action()
        except BaseException:
            told = False, " | ".join(traceback.format_exc().strip().splitlines()[-6:])
        with os.fdopen(writable, "wb") as pipe:
            pickle.dump(told, pipe)
    finally:
        os._exit(0)


def _told(child: int, results: int, patience: float) -> tuple[bytes, int]:
    """What a child says at its end, and its status. Raises ChildFailed, the child killed, where that never comes."""
    silent = not select.select([results], [], [], patience)[0]
    if silent:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(results, "rb") as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    if silent:
        raise ChildFailed(f"a child said nothing for {patience} s")
    return told, status


def _run(writer: Writer, folder: Path, way: str, stop: int | None = None) -> int:
    """Writes; returns the number of steps."""
    if way == "two renames":
        whole._exchange = lambda *_: False
    steps = _count_steps(stop)
    writer.write(folder)
    return steps()


def _counted(writer: Writer, folder: Path, way: str) -> tuple[float, int]:
    began = time.monotonic()
    steps = _run(writer, folder, way)
    return time.monotonic() - began, steps


def _seen_and_after(writer: Writer, folder: Path, way: str) -> tuple[Any, Any]:
    """What a reader finds, and finds after the next run."""
    seen = writer.seen(folder)
    _run(writer, folder, way)
    return seen, writer.seen(folder)


def _count_steps(stop: int | None) -> Callable[[], int]:
    """Counts the steps of this process from now on, and kills it before the one of that number."""
    numbers = itertools.count()
    last = [0]

    def step() -> None:
        last[0] = number = next(numbers)
        if number == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple) -> None:
        if event in STEPS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            step()

    def fsync(descriptor: Any, wait: Callable = os.fsync) -> None:
        step()
        wait(descriptor)

    sys.addaudithook(heard)
    os.fsync = fsync
    return lambda: last[0] + 1
