"""The demo: the whole road on a laptop CPU, with no download.

    picture-story world -> tokenizers, shards -> warm-up -> arms -> held-out figures -> report.html

    limner demo                         warm-up, then GRPO with process rewards
    limner demo --arms all              all five arms
    limner demo --score MODEL --prompts FILE.jsonl

Every stage leaves its result in the run's folder, and a second call takes up where the first one stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..configs import find_config, parse, read_yaml, terminal
from ..configs.bounds import OneOrMore, Seed
from ..configs.errors import InputError, keeping, run_or_exit
from ..configs.terminal import say_next
from ..configs.whole import write_atomically
from ..eval.statistics import estimate
from ..models.checkpoints.folder import load, save
from ..models.policy import UnifiedPolicy
from ..report.demo import write_report
from ..rewards.build import RewardSettings, build_reward
from ..train.from_scratch.new_model import NewModelConfig
from ..worlds.picture_stories.figures import score_stories
from ..worlds.picture_stories.prepare import WorldConfig, prepare
from ..worlds.picture_stories.prompts import read_outlines
from ..worlds.picture_stories.scenes import MAX_SCENES, MIN_SCENES, Outline
from .arms import ARMS, Setting, run_arm, run_warmup
from .built import built
from .config import check_settings, effective, flat, setting_of
from .measure import comparisons, figures, gains, measure, samples
from .seed import first_reach, keep_settings, limit_threads, say
from .subjects import Items, PictureStories, Subject

DEFAULT_ARMS = ("warmup", "grpo_process")
SAMPLES = 8
REPORT = "report.html"
UNMEASURED: dict[str, Any] = {"items": {}, "best_temperature": None, "training": []}
"""Of the result of an arm that is still being trained."""
Show = Callable[[str, dict[str, dict[str, Any]]], None]


@dataclass
class DemoConfig:
    out: str = "runs/demo"
    """Folder of the run: report.html, metrics.json, model/."""
    arms: str = ",".join(DEFAULT_ARMS)
    """Comma-separated, or `all`: warmup, control, rejection, grpo_outcome, grpo_process."""
    seeds: OneOrMore = 1
    """Repeat with so many seeds and report the spread."""
    seed: Seed = 0
    """The first seed."""
    iterations: OneOrMore = 55
    """Rollout batches of GRPO; its seconds are what the other arms may spend."""
    curve_prompts: OneOrMore = 128
    """Held-out prompts scored while training."""
    score: str | None = None
    """Only score this checkpoint, on the outlines of `prompts`."""
    prompts: str | None = None
    """JSONL file of outlines, one {"outline": ["small red circle top left", ...]} a line; with `score`."""
    world: WorldConfig = field(default_factory=WorldConfig)
    new_model: NewModelConfig = field(default_factory=NewModelConfig)
    warmup: dict[str, Any] = field(default_factory=dict)
    """Settings of `warmup/tiny` to change: `--warmup.max_steps 500`."""
    grpo: dict[str, Any] = field(default_factory=dict)
    """Settings of `grpo/tiny` to change in all arms: `--grpo.learning_rate 1e-4`."""

    @property
    def subject(self) -> Subject:
        return PictureStories(self.world, self.new_model)


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((DemoConfig,), argv, prog="limner demo")
    if (config.score is None) != (config.prompts is None):
        raise InputError("--score MODEL and --prompts FILE go together")
    if config.score:
        terminal.say(json.dumps(score_checkpoint(config.score, Path(config.prompts), config.seed), indent=1))
        return
    with keeping(f"{config.out} keeps the arms that are done; the same command goes on with the others"):
        run(config)


def score_checkpoint(model: str, prompts: Path, seed: int) -> dict[str, Any]:
    """Figures of any checkpoint on given outlines: `{"sampled": {"story_exact": {...}, ...}, "greedy": {...}}`."""
    outlines = read_outlines(prompts)  # first: a fault in the file should not wait for the model
    if warning := untrained_lengths(outlines):
        terminal.say(f"limner: warning: {prompts}: {warning}", to_stderr=True)
    policy = load(model)
    return {
        name: {
            metric: estimate(rows) for metric, rows in score_stories(policy, outlines, temperature, seed).rows().items()
        }
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0))
    }


def untrained_lengths(outlines: Sequence[Outline]) -> str:
    """What to know of outlines that are shorter or longer than any in this world's training data; empty without."""
    odd = Counter(len(outline) for outline in outlines if not MIN_SCENES <= len(outline) <= MAX_SCENES)
    if not odd:
        return ""
    lengths = ", ".join(f"{count} of {length}" for length, count in sorted(odd.items()))
    return (
        f"{sum(odd.values())} of {len(outlines)} outlines have a number of scenes that was never trained ({lengths}); "
        f"the demo's models know {MIN_SCENES} to {MAX_SCENES}, so these figures say little of them"
    )


def run(config: DemoConfig) -> dict[str, Any]:
    """Runs what is not there yet and writes the report. Returns the metrics."""
    limit_threads()
    config = replace(config, warmup=flat(config.warmup), grpo=flat(config.grpo))
    arms = chosen_arms(config.arms)
    check_settings(config)
    out = Path(config.out)
    runs = []
    say(f"{out / REPORT} is there from the first figures on and keeps itself up to date: open it in a browser")
    for number in range(config.seeds):
        seed = config.seed + number
        root = out if number == 0 else out / f"seed-{seed}"
        runs.append(run_seed(config, root, seed, arms))
    seeds = [{"seed": config.seed + i, "arms": one["arms"]} for i, (one, *_) in enumerate(runs)]
    metrics = {**runs[0][0], "seeds": seeds, "gains": []}
    if "grpo_process" in arms and len(runs) > 1:
        metrics["gains"] = gains([items for *_, items in runs], "grpo_process")
        for gain in metrics["gains"]:
            say("{arm} over {against}, {metric}: {value:+.3f} [{low:+.3f}, {high:+.3f}], {seeds} seeds".format(**gain))
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    write_report(out / REPORT, metrics, runs[0][1])
    say(f"wrote {out / REPORT}, {out / 'metrics.json'}, {out / 'model'}")
    say_next("limner", "serve", "--model", out / "model")
    return metrics


def chosen_arms(text: str) -> list[str]:
    """Arm names in running order; the warm-up always, and process GRPO whenever an arm needs its seconds."""
    names = set(ARMS) if text == "all" else {name.strip() for name in text.split(",") if name.strip()}
    if unknown := names - set(ARMS):
        raise InputError(f"--arms: {sorted(unknown)[0]!r} is none of {', '.join(ARMS)}; or `all`")
    names.add("warmup")
    if names - {"warmup"}:
        names.add("grpo_process")
    return [name for name in ("warmup", "grpo_process", "grpo_outcome", "control", "rejection") if name in names]


def result_settings(config: DemoConfig, seed: int) -> dict[str, Any]:
    """What the results of a seed depend on; an edit of `warmup/tiny` or `grpo/tiny` is a change as well."""
    return {
        "seed": seed,
        "iterations": config.iterations,
        "curve_prompts": config.curve_prompts,
        "world": asdict(config.world),
        "new_model": asdict(config.new_model),
        "warmup": effective("warmup/tiny", config.warmup),
        "grpo": effective("grpo/tiny", config.grpo),
    }


def run_seed(
    config: DemoConfig, root: Path, seed: int, arms: list[str]
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Items]]:
    """All arms of one seed; (metrics, samples, scores by arm and metric)."""
    keep_settings(root / "settings.json", result_settings(config, seed))
    heldout, train, stages = prepare(root, config.world, config.new_model, seed, say)
    setting = setting_of(config, root, seed, heldout, train)
    results: dict[str, dict[str, Any]] = {}

    def show(doing: str, running: dict[str, dict[str, Any]]) -> None:
        """The report so far; `running` is an arm that is being trained, with what is known of it."""
        known = results | running
        doing = f"Seed {seed}: {doing}" if config.seeds > 1 else doing
        metrics = _metrics(config, seed, known, stages) | {"unfinished": doing}
        write_report(Path(config.out) / REPORT, metrics, _merge_samples(known))

    for name in arms:
        file = root / "arms" / name / "result.json"
        if not file.exists():
            write_atomically(file, json.dumps(_run_one(name, setting, heldout, results, show)) + "\n")
        results[name] = json.loads(file.read_text())
        say(f"{name}: {_line(results[name])}")
        show(f"{name} is done", {})
    best = "grpo_process" if "grpo_process" in results else "warmup"
    trained = root / ("warmup" if best == "warmup" else f"arms/{best}") / "model"
    save(load(trained), root / "model")
    shutil.copy(trained.parent / "config.yaml", root / "config.yaml")  # what its model card tells of the run
    items = {name: result["items"] for name, result in results.items()}
    return _metrics(config, seed, results, stages), _merge_samples(results), items


def _run_one(
    name: str, setting: Setting, heldout: list[Outline], results: dict[str, dict[str, Any]], show: Show
) -> dict[str, Any]:
    """Trains and measures one arm, which comes after those in `results`, and shows it at every point of its curve."""
    reward = build_reward(RewardSettings(read_yaml(find_config("grpo/tiny"))["rewards"]))

    def looked(policy: UnifiedPolicy, points: list[dict[str, float]]) -> None:
        so_far = UNMEASURED | {"curve": points, "seconds": points[-1]["seconds"]}
        so_far["samples"] = samples(policy, heldout[:SAMPLES], reward, setting.seed)
        show(f"{name} is being trained: step {points[-1]['step']:,.0f}", {name: so_far})

    setting = replace(setting, looked=looked)
    budget = math.inf if name in ("warmup", "grpo_process") else results["grpo_process"]["seconds"]
    say(f"{name}: training" + ("" if math.isinf(budget) else f" for {budget:.0f} s"))
    if name == "warmup":
        policy, curve = run_warmup(setting)
    else:
        shutil.rmtree(setting.root / "arms" / name, ignore_errors=True)  # what a kill left
        warm = results["warmup"]
        policy, curve = run_arm(name, setting, budget, warm["seconds"] / warm["steps"])
    say(f"{name}: measuring on {len(heldout)} held-out prompts")
    sweep = name in ("warmup", "control")
    items, best = measure(setting.subject, policy, setting.root, heldout, sweep, setting.seed)
    return {
        "items": items,
        "best_temperature": best,
        "seconds": round(curve.seconds, 1),
        "steps": curve.steps,
        "curve": curve.points,
        "training": curve.figures(),
        "samples": samples(policy, heldout[:SAMPLES], reward, setting.seed),
    }


def _metrics(
    config: DemoConfig, seed: int, results: dict[str, dict[str, Any]], stages: dict[str, Any]
) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for name, result in results.items():
        arms[name] = {**figures(result["items"]), **{key: result[key] for key in ("seconds", "curve")}}
        arms[name]["training"] = result["training"]
        if result["best_temperature"] is not None:
            arms[name]["best_temperature"]["temperature"] = result["best_temperature"]
    loss = [
        {"step": line["step"], "text": line.get("loss/text"), "image": line.get("loss/image")}
        for line in results["warmup"]["training"]
    ]
    return {
        "title": "limner demo: picture stories",
        "command": "limner demo" + (f" --arms {config.arms}" if config.arms != ",".join(DEFAULT_ARMS) else ""),
        "created": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "seed": seed,
        "arms": arms,
        "comparisons": comparisons({name: result["items"] for name, result in results.items()}, "warmup"),
        "first_reach": {
            name: reached
            for name, result in results.items()
            if name != "warmup" and ((reached := first_reach(result["curve"])) or result["items"])  # or: to come
        },
        "stages": {"image_tokenizer": stages["image_tokenizer"], "warmup": {"loss": loss}},
        "data": {"tokens": stages["tokens"], "heldout_outlines_in_training_data": stages["heldout_in_training"]},
        "settings": asdict(config),
        "versions": {"limner": built()}
        | {name: version(name) for name in ("torch", "transformers", "trl", "diffusers", "accelerate")}
        | {"python": sys.version.split()[0], "torch_threads": str(torch.get_num_threads())},
    }


def _merge_samples(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The same prompts with each arm's answer."""
    shown = []
    for rows in zip(*(result["samples"] for result in results.values()), strict=True):
        answers = {name: row["answer"] for name, row in zip(results, rows, strict=True)}
        prompt = {key: rows[0].get(key) for key in ("id", "prompt", "pictures")}
        shown.append({**prompt, "answers": answers})
    return shown


def _line(result: dict[str, Any]) -> str:
    items = result["items"]
    parts = [
        f"{name} {sum(items[key]) / len(items[key]):.2f}"
        for name, key in (
            ("sampled", "sampled.story_exact"),
            ("greedy", "greedy.story_exact"),
            ("vqa", "understanding.vqa"),
            ("caption", "understanding.caption"),
            ("text-to-image", "text_to_image.exact"),
        )
    ]
    return ", ".join(parts) + f" ({result['seconds']:.0f} s)"


if __name__ == "__main__":
    run_or_exit(main)
