"""Writers killed with signal 9: nothing is lost, nothing half-read, and the next run leaves nothing of it.

pytest tests/kills --kills 1000 -s      # a longer campaign, at most 20 minutes; prints what it killed
"""

import multiprocessing
import os
import sys
import time

import pytest

from limner.models.checkpoints.folder import save

from .campaign import ChildFailed, Tally, Writer, campaign, done, every_step
from .writers import light_writers, writers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked from a process with threads")


@pytest.fixture(scope="module")
def apart():
    """`apart(function, *arguments)`: what it gives in a new process, which may fork."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield lambda function, *arguments: pool.apply(function, arguments)


def _every_step(name, way, root) -> Tally:
    return every_step(next(writer for writer in (CARELESS, *light_writers()) if writer.name == name), way, root)


def _campaign(root, kills) -> Tally:
    return campaign(writers(root / "given"), kills, root, seconds=min(1200, 120 + 2 * kills))


def _waiting() -> str:
    try:
        return done(lambda: time.sleep(600), patience=1)
    except ChildFailed as error:
        return str(error)


def _careless(folder):
    for file in folder.iterdir():
        file.unlink()
    for name in ("a", "b"):
        (folder / f"{name}-{os.getpid()}").write_text("new")
    os.mkdir(folder / "done")


def _careless_seen(folder):
    assert len([*folder.iterdir()]) in (0, 1, 3), "half"
    return sorted(path.name.partition("-")[0] for path in folder.iterdir()) or None


CARELESS = Writer("careless", _careless, _careless_seen, lambda folder: (folder / "old").write_text("old"))


def test_a_half_and_a_leftover_and_a_loss_are_found(tmp_path, apart):
    """The campaign sees what it looks for: this writer does all that is wrong."""
    faults = "\n".join(apart(_every_step, "careless", "exchange", tmp_path).faults)
    assert "half" in faults and "a reader finds None" in faults and "after the next run there is" in faults


def test_a_child_that_waits_for_ever_is_not_waited_for(apart):
    assert apart(_waiting) == "a child said nothing for 1 s"


def test_a_file_is_whole_whatever_step_its_writer_is_killed_at(tmp_path, apart):
    tally = apart(_every_step, "page", "exchange", tmp_path)
    assert not tally.faults and tally.kills["page"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [("answer", "exchange"), ("answer", "two renames"), ("tasks", "two renames"), ("shards", "exchange")],
)
def test_whole_whatever_step_its_writer_is_killed_at(tmp_path, apart, name, way):
    tally = apart(_every_step, name, way, tmp_path)
    assert not tally.faults, tally
    assert not tally.outlived and tally.kills[name] > 5


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_whole_whenever_its_writer_is_killed(tmp_path, make_policy, apart, request):
    kills = request.config.getoption("kills")
    for seed in range(3):
        save(make_policy(seed), tmp_path / "given" / str(seed))
    tally = apart(_campaign, tmp_path, kills)
    print(f"\n{tally}")
    assert not tally.faults and sum(tally.kills.values()) >= kills / 2, tally
