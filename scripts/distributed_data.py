"""`limner data from` in tasks that datatrove runs: on this machine, or as an array of Slurm jobs.

    pip install 'limner[distributed]'
    python scripts/distributed_data.py chat SRC --out DIR --tasks 100 --workers 8
    python scripts/distributed_data.py chat SRC --out DIR --tasks 1000 --slurm PARTITION --time 04:00:00
    limner data merge DIR

Tasks that are done are passed over when it is called again, by datatrove's log and by our parts. Its Documents stay
unused: a task is what `limner data from --tasks N --task K` is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep


class Convert(PipelineStep):
    name = "limner"
    type = "convert"

    def __init__(
        self, source: str, path: str, out: str, options: dict[str, Any], heldout_share: float, unit_bytes: int
    ):
        super().__init__()
        self.source, self.path, self.out = source, path, out
        self.options, self.heldout_share, self.unit_bytes = options, heldout_share, unit_bytes

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        from limner.data.jobs.parts import run_units
        from limner.data.jobs.plan import open_plan, task_units

        out = Path(self.out)
        plan = open_plan(self.source, Path(self.path), self.options, out, self.heldout_share, self.unit_bytes)
        with self.track_time():
            done = run_units(plan, out, task_units(plan, world_size, rank))
        self.stat_update("units", value=done)
        return iter(())


def main() -> None:
    from limner.configs.bounds import OneOrMore, Share, bounded
    from limner.configs.terminal import say
    from limner.data.conversion import setting
    from limner.data.jobs.plan import UNIT_BYTES, open_plan, parts_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", type=bounded(OneOrMore), required=True, help="at most one a unit of work")
    parser.add_argument("--images", default="")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--heldout-share", type=bounded(Share), default=0.1)
    parser.add_argument("--unit-bytes", type=bounded(OneOrMore), default=UNIT_BYTES, help="cut as one (default 64 MiB)")
    parser.add_argument("--workers", type=bounded(OneOrMore), default=-1, help="tasks at a time; by default all")
    parser.add_argument("--slurm", metavar="PARTITION", help="as an array of Slurm jobs instead of on this machine")
    parser.add_argument("--time", default="04:00:00", help="limit of a Slurm job")
    parser.add_argument("--memory", type=bounded(OneOrMore), default=4, metavar="GB", help="of a Slurm job, a core")
    given = parser.parse_args()
    options = dict(map(setting, given.set)) | ({"images": str(Path(given.images).absolute())} if given.images else {})
    path, out = given.path.absolute(), given.out.absolute()
    size = given.unit_bytes
    plan = open_plan(given.source, path, options, out, given.heldout_share, size)  # cut once, before any task asks
    step = Convert(given.source, str(path), str(out), options, given.heldout_share, size)
    shared = {"tasks": min(given.tasks, len(plan.units)), "workers": given.workers}
    logs = str(parts_of(out) / "logs")
    if given.slurm:
        cluster = {
            "partition": given.slurm,
            "time": given.time,
            "mem_per_cpu_gb": given.memory,
            "job_name": "limner-data",
        }
        SlurmPipelineExecutor([step], **shared, **cluster, logging_dir=logs).run()
    else:
        LocalPipelineExecutor([step], **shared, logging_dir=logs).run()
        say(f"next: limner data merge {out}")


if __name__ == "__main__":
    main()
