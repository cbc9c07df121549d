"""Thousands of spoilt inputs: each is accepted or counted, or refused in words. None raises anything else, none hangs.

pytest tests/fuzz --fuzz-cases 20000      more of them; a fault names its case, `markdown 37`, to be made again by
pytest tests/fuzz --fuzz-only "markdown 37"
"""

import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from limner.configs.errors import InputError

from .targets import TARGETS, Target

SECONDS = 10
"""Of a case; thousands of times what one takes."""


class Hang(BaseException):
    """No `except Exception` of a reader holds it up."""


@contextmanager
def deadline() -> Iterator[None]:
    def ring(*_: Any) -> NoReturn:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault_of(target: Target, number: int, folder: Path) -> str:
    """What is wrong with how a reader took a case; empty if nothing is."""
    folder.mkdir()
    call = target.make(Random(f"{target.name} {number}"), folder)
    try:
        with deadline(), warnings.catch_warnings(action="ignore"):
            call()
    except target.refuses as refused:
        named = (
            not isinstance(refused, InputError)
            or str(folder) in str(refused)
            or str(refused).startswith(("--", "command line"))
        )
        return "" if str(refused).strip() and named else f"{target.name} {number}: does not say where: {refused}"
    except Hang:
        return f"{target.name} {number}: more than {SECONDS} s"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return f"{target.name} {number}: {type(error).__name__} in {where}: {str(error)[:100]}"
    return ""


def run(targets: dict[Target, range], tmp_path: Path) -> list[str]:
    cases = ((target, number) for target, numbers in targets.items() for number in numbers)
    return [
        fault for at, (target, number) in enumerate(cases) if (fault := fault_of(target, number, tmp_path / str(at)))
    ]


def shared_out(cases: int) -> dict[Target, range]:
    whole = sum(target.share for target in TARGETS)
    return {target: range(round(cases * target.share / whole)) for target in TARGETS}


def test_some_spoilt_inputs(tmp_path):
    faults = run(shared_out(130), tmp_path)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_spoilt_inputs(tmp_path, pytestconfig):
    targets = shared_out(pytestconfig.getoption("fuzz_cases"))
    if only := pytestconfig.getoption("fuzz_only"):
        name, number = only.split()
        targets = {target: range(int(number), int(number) + 1) for target in TARGETS if target.name == name}
    faults = run(targets, tmp_path)
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)
