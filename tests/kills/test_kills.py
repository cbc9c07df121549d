"""Writers killed with signal 9: nothing is lost, nothing half-read, and the next run leaves nothing of it.

pytest tests/kills --kills 1000 -s      # a longer campaign, at most 20 minutes; prints what it killed
"""

import os
import sys

import pytest

from .campaign import Writer, campaign, every_step
from .writers import light_writers, writers

LIGHT = {writer.name: writer for writer in light_writers()}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked from a process with threads")


def test_a_half_and_a_leftover_and_a_loss_are_found(tmp_path):
    """The campaign sees what it looks for: this writer does all that is wrong."""

    def careless(folder):
        for file in folder.iterdir():
            file.unlink()
        for name in ("a", "b"):
            (folder / f"{name}-{os.getpid()}").write_text("new")
        os.mkdir(folder / "done")

    def seen(folder):
        assert len([*folder.iterdir()]) in (0, 1, 3), "half"
        return sorted(path.name.partition("-")[0] for path in folder.iterdir()) or None

    writer = Writer("careless", careless, seen, lambda folder: (folder / "old").write_text("old"))
    faults = "\n".join(every_step(writer, "exchange", tmp_path).faults)
    assert "half" in faults and "a reader finds None" in faults and "after the next run there is" in faults


def test_a_file_is_whole_whatever_step_its_writer_is_killed_at(tmp_path):
    tally = every_step(LIGHT["page"], "exchange", tmp_path)
    assert not tally.faults and tally.kills["page"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [("answer", "exchange"), ("answer", "two renames"), ("tasks", "two renames"), ("shards", "exchange")],
)
def test_whole_whatever_step_its_writer_is_killed_at(tmp_path, name, way):
    writer = LIGHT[name]
    tally = every_step(writer, way, tmp_path)
    assert not tally.faults, tally
    assert not tally.outlived and tally.kills[writer.name] > 5


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_whole_whenever_its_writer_is_killed(tmp_path, make_policy, request):
    kills = request.config.getoption("kills")
    tally = campaign(writers(tmp_path / "given", make_policy), kills, tmp_path, seconds=min(1200, 120 + 2 * kills))
    print(f"\n{tally}")
    assert not tally.faults and sum(tally.kills.values()) >= kills / 2, tally
