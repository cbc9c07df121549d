"""A million records in a thousand tasks: one pass makes the plan; workers that are killed lose and leave nothing."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from limner.data.jobs.parts import run_units
from limner.data.jobs.plan import PLAN, Plan, open_plan, parts_of, task_units

RECORDS, TASKS, RUN, WORKERS = 1_000_000, 1_000, 40, 2
LINE = '{"id": "%07d", "messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "%s"}]}\n'


@pytest.fixture
def plan(tmp_path) -> Plan:
    """Of texts whose lengths vary, two to three hundred bytes."""
    rng = random.Random(0)
    with (tmp_path / "talk.jsonl").open("w") as file:
        for number in range(RECORDS):
            file.write(LINE % (number, number, "kite " * rng.randrange(20, 40)))
    size = (tmp_path / "talk.jsonl").stat().st_size
    return open_plan("chat", tmp_path / "talk.jsonl", {}, tmp_path / "out", 0.1, size // TASKS)


def started(plan: Plan, out: Path, task: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run_units(plan, out, task_units(plan, TASKS, task), say=lambda _: None)
        status = 0
    finally:
        os._exit(status)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")
def test_killed_workers_of_a_thousand_tasks(tmp_path, plan):
    assert TASKS <= len(plan.units) <= TASKS + 1 and plan.units[-1].stop == (tmp_path / "talk.jsonl").stat().st_size
    rng, out = random.Random(1), tmp_path / "out"
    waiting, running, kills = list(range(RUN)), dict[int, tuple[int, float]](), 0
    started_at = time.monotonic()
    os.waitpid(started(plan, tmp_path / "first", 0), 0)
    alone = time.monotonic() - started_at
    while waiting or running:
        while waiting and len(running) < WORKERS:
            task = waiting.pop(0)
            doomed = kills < RUN and rng.random() < 0.5
            running[started(plan, out, task)] = task, time.monotonic() + (rng.uniform(0, alone) if doomed else 600)
        for child, (task, end) in list(running.items()):
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del running[child]
                if os.WIFSIGNALED(status):
                    kills, waiting = kills + 1, [*waiting, task]
                else:
                    assert os.WEXITSTATUS(status) == 0
        time.sleep(0.002)
    assert kills > 5
    units = [unit for task in range(RUN) for unit in task_units(plan, TASKS, task)]
    assert {path.name for path in parts_of(out).iterdir()} == {PLAN, *(f"{unit:05d}" for unit in units)}
    for task in (0, RUN // 2, RUN - 1):
        run_units(plan, tmp_path / "again", task_units(plan, TASKS, task), say=lambda _: None)
        for unit in task_units(plan, TASKS, task):
            part = f"{unit:05d}"
            assert contents(parts_of(tmp_path / "again") / part) == contents(parts_of(out) / part)
    print(f"\n{len(units)} units of {len(plan.units)}, {kills} kills, {alone:.2f} s a unit")
