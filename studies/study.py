"""A study: arms x seeds -> one table and one figure, of an embedded world or of a released model.

    for seed, for arm (a partial study is a complete one of fewer seeds):
        prepare once, warm up once          studies.subjects, studies.arms
        train from the warm-up              studies.arms
        score held-out prompts              studies.measure
    over seeds: means, intervals, gains     studies.summary
    -> results.json, table.md, figure.svg, report.html

    limner study study/paper
    limner study study/paper --arms warmup,full --seeds 1 --iterations 10 --out runs/try
    limner study my_study.yaml --grpo.learning_rate 1e-4

Every finished arm leaves its result.json; a second call does only what is missing, an arm that was cut starts again.
Any number of processes may work in one folder: each takes the next arm that none of the others has.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..configs import parse, save_resolved
from ..configs.errors import ArgumentParser, InputError, keeping, run_or_exit
from ..configs.terminal import say_next
from ..configs.whole import write_atomically
from ..models.checkpoints.folder import load
from ..report.study import figure_svg, study_html, table_markdown
from .arms import Curve, Setting, continue_warmup, reinforce, run_warmup
from .config import StudyConfig, arm_settings, check, flags, homes, running_order, setting_of, shared_settings
from .measure import measure_stories
from .seed import check_same_settings, keep_settings, limit_threads, say, taken
from .summary import Results, summarise

Job = tuple[int, str]
"""Seed and arm."""
WAIT = 5.0
"""Seconds until a process that found nothing to begin with looks again."""
USAGE = """%(prog)s CONFIG [--arms A,B] [--KEY VALUE ...]

CONFIG is a packaged study (study/paper, study/beyond) or a YAML file; flags win over it, and dots reach into sections.
The tables show whatever the folder holds."""


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    words = words or ["--help"]
    if words[0].startswith("-") and words[0] not in ("-h", "--help"):
        raise InputError("limner study: the configuration comes first: limner study study/paper ...")
    parser = ArgumentParser(prog="limner study", add_help=False, allow_abbrev=False)
    parser.add_argument("--arms")
    known, rest = parser.parse_known_args(words[1:])
    (config,) = parse((StudyConfig,), ["--config", words[0], *rest], "limner study", USAGE)
    with keeping(f"{config.out} keeps the arms that are done; the same command goes on with the others"):
        run(config, None if known.arms is None else [name.strip() for name in known.arms.split(",") if name.strip()])


def run(config: StudyConfig, chosen: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs what is missing and writes table and figure after every arm. Returns the results."""
    check(config)
    limit_threads(config.processes)
    order, out = running_order(config, chosen), Path(config.out)
    read_results(config)
    save_resolved(out / "study.yaml", config)
    for seed in config.all_seeds:
        keep_settings(out / f"seed-{seed}" / "settings.json", shared_settings(config, seed))
    jobs = [(seed, name) for seed in config.all_seeds for name in order]
    with _helpers(config, jobs):
        work(config, jobs)
    summary = write_outputs(config, read_results(config))
    say(f"wrote {', '.join(str(out / name) for name in ('table.md', 'figure.svg', 'report.html', 'results.json'))}")
    say_next(page=out / "report.html")
    return summary


@contextmanager
def _helpers(config: StudyConfig, jobs: Sequence[Job]) -> Iterator[None]:
    """All processes but this one; they end when nothing is left, or with this one."""
    if config.processes > 1:
        os.environ["TQDM_DISABLE"] = "1"  # bars of several processes on one terminal are none
    spawn = multiprocessing.get_context("spawn")
    helpers = [spawn.Process(target=_help, args=(config, jobs), daemon=True) for _ in range(config.processes - 1)]
    for helper in helpers:
        helper.start()
    try:
        yield
    except BaseException:
        for helper in helpers:
            helper.terminate()
        raise
    for helper in helpers:
        helper.join()


def _help(config: StudyConfig, jobs: Sequence[Job]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that ends this one
    limit_threads(config.processes)
    work(config, jobs)


def work(config: StudyConfig, jobs: Sequence[Job]) -> None:
    """Runs arm after arm, each that no other process has taken, until all are done."""
    parent, told = multiprocessing.parent_process(), False
    while left := [(seed, name) for seed, name in jobs if not _result_file(config, seed, name).exists()]:
        if parent is not None and not parent.is_alive():
            return
        if any(_take(config, seed, name, jobs) for seed, name in left):  # the first that can be taken
            told = False
            continue
        if not told:
            say("nothing to begin with: other processes train what is left")
        told = True
        time.sleep(WAIT)


def _take(config: StudyConfig, seed: int, name: str, jobs: Sequence[Job]) -> bool:
    """Runs an arm, unless what it builds on is not there yet, or another process has it."""
    builds_on = {config.warmup_arm, homes(config)[config.arms[name].of or config.warmup_arm]} - {name}
    if not all(_result_file(config, seed, base).exists() for base in builds_on):
        return False
    root, file = Path(config.out) / f"seed-{seed}", _result_file(config, seed, name)
    with taken(file.parent.with_name(f".{name}.lock")) as mine:
        if not mine or file.exists():
            return False
        results = read_results(config)
        done = {(s, n): run["wall_seconds"] for n, by_seed in results.items() for s, run in by_seed.items()}
        left = [job for job in jobs if job not in done]
        time_left = _time_left(config, done, left)
        say(f"seed {seed}, {name}: {len(jobs) - len(left)} of {len(jobs)} arms done{time_left}")
        started = time.perf_counter()
        shutil.rmtree(file.parent, ignore_errors=True)  # what a kill left
        result = run_arm(config, name, root, seed)
        result["wall_seconds"] = round(time.perf_counter() - started, 1)
        write_atomically(file, json.dumps(result) + "\n")
    write_outputs(config, read_results(config))
    return True


def _result_file(config: StudyConfig, seed: int, name: str) -> Path:
    return Path(config.out) / f"seed-{seed}" / "arms" / name / "result.json"


def read_results(config: StudyConfig) -> dict[str, dict[int, dict[str, Any]]]:
    """What the folder holds: arm -> seed -> result. Raises InputError where it is of other settings."""
    results: dict[str, dict[int, dict[str, Any]]] = {}
    wanted = {name: arm_settings(config, name) for name in running_order(config)}
    for seed in config.all_seeds:
        root = Path(config.out) / f"seed-{seed}"
        if (root / "settings.json").exists():
            kept = json.loads((root / "settings.json").read_text())
            check_same_settings(root, kept, shared_settings(config, seed))
        for name, settings in wanted.items():
            if (file := _result_file(config, seed, name)).exists():
                result = json.loads(file.read_text())
                check_same_settings(file.parent, result["settings"], settings)
                results.setdefault(name, {})[seed] = result
    return results


def run_arm(config: StudyConfig, name: str, root: Path, seed: int) -> dict[str, Any]:
    """Trains and measures one arm; the arms it builds on have left their results."""
    arm = config.arms[name]
    subject = config.subject
    heldout, train, _ = subject.prepare(root, seed, say)
    settings = arm_settings(config, name)
    if arm.kind == "measure":
        base = homes(config)[arm.of or ""]
        ways = {"sampled": arm.temperature} | ({"greedy": 0.0} if arm.guidance != config.arms[base].guidance else {})
        items = measure_stories(subject, load(_model(config, root, base)), heldout, seed, arm.guidance, ways)
        abilities = {key: rows for key, rows in _result(root, base)["items"].items() if key not in items}
        # Abilities are asked without guidance: they are those of the arm whose model this is.
        return {"settings": settings, "items": items | abilities, "seconds": None, "steps": None, "curve": []}
    policy, curve = _train(config, name, setting_of(config, root, seed, heldout, train))
    say(f"{name}: measuring on {len(heldout)} held-out prompts")
    return {
        "settings": settings,
        "items": measure_stories(subject, policy, heldout, seed, arm.guidance) | subject.abilities(policy, root, seed),
        "seconds": round(curve.seconds, 1),
        "steps": curve.steps,
        "curve": [] if arm.kind in ("warmup", "mixture") else curve.points,
        "training": curve.figures(),
    }


def _train(config: StudyConfig, name: str, setting: Setting) -> tuple[Any, Curve]:
    """(policy, curve)"""
    arm, root = config.arms[name], setting.root
    if arm.kind == "warmup":
        return run_warmup(setting)
    if arm.kind == "mixture":
        return run_warmup(setting, root / "arms" / name, arm.mixture)
    policy, out = load(_model(config, root, config.warmup_arm)), root / "arms" / name
    if arm.kind == "control":
        budget, warm = _result(root, homes(config)[arm.of or ""])["seconds"], _result(root, config.warmup_arm)
        return policy, continue_warmup(policy, setting, out, budget, warm["seconds"] / warm["steps"])
    setting = replace(setting, iterations=arm.iterations or setting.iterations)
    return policy, reinforce(policy, setting, out, flags(arm.grpo), guidance=arm.guidance)


def _model(config: StudyConfig, root: Path, name: str) -> Path:
    return (root / "warmup" if name == config.warmup_arm else root / "arms" / name) / "model"


def _result(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / "arms" / name / "result.json").read_text())


def write_outputs(config: StudyConfig, results: Results) -> dict[str, Any]:
    """results.json, table.md, figure.svg, report.html; returns what results.json holds."""
    out, summary = Path(config.out), summarise(config, results)
    write_atomically(out / "results.json", json.dumps(summary, indent=1) + "\n")
    write_atomically(out / "table.md", table_markdown(summary))
    write_atomically(out / "figure.svg", figure_svg(summary))
    write_atomically(out / "report.html", study_html(summary))
    return summary


def _time_left(config: StudyConfig, done: Mapping[tuple[int, str], float], left: Sequence[tuple[int, str]]) -> str:
    seconds = seconds_left({name: arm.kind for name, arm in config.arms.items()}, done, left)
    if seconds is None:
        return ""
    hours, minutes = divmod(round(seconds / config.processes / 60), 60)
    return f", about {f'{hours} h ' if hours else ''}{minutes} min left"


def seconds_left(
    kinds: Mapping[str, str], done: Mapping[tuple[int, str], float], left: Sequence[tuple[int, str]]
) -> float | None:
    """By what the same arm took with other seeds, else arms of its kind, else all; None where none is done."""
    if not done:
        return None

    def expected(name: str) -> float:
        same = [seconds for (_, other), seconds in done.items() if other == name]
        kind = [seconds for (_, other), seconds in done.items() if kinds[other] == kinds[name]]
        known = same or kind or list(done.values())
        return sum(known) / len(known)

    return sum(expected(name) for _, name in left)


if __name__ == "__main__":
    run_or_exit(main)
