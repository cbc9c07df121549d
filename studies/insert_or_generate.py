"""Insert, generate or leave: warm-up, GRPO and a control on the embedded world with candidates, over seeds.

    world with candidates -> tokenizers, shards -> warm-up -> GRPO, and as long of more warm-up
                          -> held-out choices and pictures -> results.json, table.md, report.html

    limner insert-or-generate
    limner insert-or-generate --seeds 1 --iterations 20 --out runs/try
    limner insert-or-generate --warmup.max_steps 800 --grpo.learning_rate 2e-4

A second call takes up where the first stopped: finished arms stand, and training goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ..configs import find_config, parse, read_yaml
from ..configs.bounds import OneOrMore, Seed
from ..configs.errors import InputError, keeping, run_or_exit
from ..configs.whole import write_atomically
from ..data.mixture import SourceConfig
from ..eval.statistics import SeedEstimate, nested_estimate
from ..models.checkpoints.folder import load
from ..models.policy import UnifiedPolicy
from ..models.sampler.generation import Sampling
from ..models.writing import write
from ..report.insertion import insertion_html, insertion_markdown
from ..train import grpo, warmup
from ..train.from_scratch.new_model import NewModelConfig
from ..train.scale.run_folder import checkpoints
from ..train.trainer import GRPOConfig
from ..worlds.insertion_stories.figures import (
    MAX_IMAGES,
    STORY_TOKENS,
    Confusion,
    score_candidate_questions,
    score_insertion,
    verify_insertion,
)
from ..worlds.insertion_stories.prepare import CandidatesWorldConfig, prepare
from ..worlds.insertion_stories.scenes import Plan, insertion_prompt
from ..worlds.picture_stories.figures import score_abilities
from ..worlds.picture_stories.scenes import SCENES
from .config import WITHOUT_EFFECT, flags, flat
from .seed import keep_settings, limit_threads, say
from .subjects import ABILITIES

ARMS = {
    "warmup": "warm-up",
    "grpo": "GRPO",
    "control": "more warm-up",
}
"""In the order in which they run, with their names for people."""
AGAINST = (("grpo", "warmup"), ("grpo", "control"), ("control", "warmup"))
QUESTIONS_ASKED = 300
SAMPLES = 6
Items = dict[str, list[float | None]]
Result = dict[str, Any]
"""Of an arm in a seed: what `measure` returns, and its seconds, steps and curve."""


@dataclass
class InsertOrGenerateConfig:
    out: str = "runs/insert-or-generate"
    """Folder of the run: results.json, table.md, report.html, and a folder for each seed."""
    arms: str = "warmup,grpo,control"
    """Comma-separated; `control` lasts as long as `grpo` did."""
    seeds: OneOrMore = 3
    """So many seeds, from `seed` on."""
    seed: Seed = 0
    """The first seed."""
    iterations: OneOrMore = 70
    """Rollout batches of GRPO."""
    curve_prompts: OneOrMore = 96
    """Held-out prompts scored while training."""
    world: CandidatesWorldConfig = field(default_factory=CandidatesWorldConfig)
    new_model: NewModelConfig = field(default_factory=lambda: NewModelConfig(attend_alike=0.7))
    warmup: dict[str, Any] = field(default_factory=dict)
    """Settings of `warmup/insertion` to change: `--warmup.max_steps 500`."""
    grpo: dict[str, Any] = field(default_factory=dict)
    """Settings of `grpo/insertion` to change: `--grpo.learning_rate 1e-4`."""

    def __post_init__(self) -> None:
        self.warmup, self.grpo = flat(self.warmup), flat(self.grpo)


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((InsertOrGenerateConfig,), argv, prog="limner insert-or-generate")
    with keeping(f"{config.out} keeps the arms that are done; the same command goes on with the others"):
        run(config)


def run(config: InsertOrGenerateConfig) -> dict[str, Any]:
    """Runs what is missing, seed by seed, and writes the outputs after every arm. Returns what results.json holds."""
    limit_threads()
    order, out = chosen_arms(config.arms), Path(config.out)
    results: dict[str, dict[int, Result]] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        root = out / f"seed-{seed}"
        keep_settings(root / "settings.json", result_settings(config, seed))
        for name in order:
            file = root / name / "result.json"
            if not file.exists():
                heldout, _, _ = prepare(root, config.world, config.new_model, seed, say)
                say(f"seed {seed}: {ARMS[name]}")
                write_atomically(file, json.dumps(run_arm(name, config, root, seed, heldout)) + "\n")
            results.setdefault(name, {})[seed] = json.loads(file.read_text())
            summary = summarise(config, results)
            write_atomically(out / "results.json", json.dumps(summary, indent=1) + "\n")
            write_atomically(out / "table.md", insertion_markdown(summary))
            write_atomically(out / "report.html", insertion_html(summary))
    say(f"wrote {', '.join(str(out / name) for name in ('results.json', 'table.md', 'report.html'))}")
    say(f"next: open {out / 'report.html'} in a browser")
    return summary


def chosen_arms(text: str) -> list[str]:
    """Arm names in running order, with those they build on."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := names - set(ARMS):
        raise InputError(f"--arms: {sorted(unknown)[0]!r} is none of {', '.join(ARMS)}")
    names |= {"warmup"} | ({"grpo"} if "control" in names else set())
    return [name for name in ARMS if name in names]


def result_settings(config: InsertOrGenerateConfig, seed: int) -> dict[str, Any]:
    """What the results of a seed depend on; an edit of a packaged file is a change as well."""
    files = {
        name: {**flat(read_yaml(find_config(f"{name}/insertion"))), **getattr(config, name)}
        for name in ("warmup", "grpo")
    }
    skipped = (*WITHOUT_EFFECT, "save_steps", "save_total_limit")
    return {
        "seed": seed,
        "iterations": config.iterations,
        "curve_prompts": config.curve_prompts,
        "world": asdict(config.world),
        "new_model": asdict(config.new_model),
        **{name: {k: v for k, v in values.items() if k not in skipped} for name, values in files.items()},
    }


class Watch(TrainerCallback):
    """Scores fixed held-out prompts every so often, off the clock. What it has seen is kept beside the checkpoints."""

    def __init__(self, file: Path, policy: UnifiedPolicy, plans: Sequence[Plan], every: int, unit: int, seed: int):
        """every: trainer steps between two scores; unit: trainer steps that count as one."""
        self.file, self.policy, self.plans, self.seed = file, policy, list(plans), seed
        self.every, self.unit = every, unit
        self.points: list[dict[str, float]] = []
        self.started = self.paused = self.before = 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started - self.paused

    def on_train_begin(self, args, state, control, **_):
        self.started = time.perf_counter()
        if state.global_step and self.file.exists():
            kept = json.loads(self.file.read_text())
            self.points, self.before = kept["points"], kept["seconds"]
        else:
            self._score(0)

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.every == 0:
            self._score(state.global_step // self.unit)

    def on_save(self, args, state, control, **_):
        self._keep(state)

    def on_train_end(self, args, state, control, **_):
        self._keep(state)

    def _keep(self, state) -> None:
        kept = {"points": self.points, "seconds": round(self.seconds, 1), "steps": state.global_step}
        write_atomically(self.file, json.dumps(kept) + "\n")

    def _score(self, step: int) -> None:
        before, start = self.seconds, time.perf_counter()
        scores, _ = score_insertion(self.policy, self.plans, 1.0, self.seed)
        values = {name: _mean(getattr(scores, name)) for name in ("choice", "picture_exact", "story_exact")}
        self.points.append({"step": step, "seconds": round(before, 1), **values})
        say(f"step {step}: choices {values['choice']:.2f}, pictures {values['picture_exact']:.2f}")
        self.paused += time.perf_counter() - start


def run_arm(name: str, config: InsertOrGenerateConfig, root: Path, seed: int, heldout: list[Plan]) -> dict[str, Any]:
    """Trains an arm, unless its model is there already, and measures it."""
    out = root / name
    if not (out / "model").exists():
        _train(name, config, root, seed, heldout[: config.curve_prompts])
    curve = json.loads((out / "curve.json").read_text())
    say(f"measuring on {len(heldout)} held-out prompts")
    return {**measure(load(out / "model"), heldout, seed), **curve}


def _train(name: str, config: InsertOrGenerateConfig, root: Path, seed: int, plans: list[Plan]) -> None:
    out = root / name
    policy = load(root / "new_model" if name == "warmup" else root / "warmup" / "model")
    resume = ["--resume_from_checkpoint", "last"] if checkpoints(out) else []
    common = ["--output_dir", str(out), "--seed", str(seed + (name == "control")), *resume]
    if name == "grpo":
        run_config, args = parse(
            (grpo.RunConfig, GRPOConfig), ["--config", "grpo/insertion", *common, *flags(config.grpo)]
        )
        if replay := run_config.algorithm.replayed:
            replay.sources = _of_seed(root, replay.sources)
        unit = (args.steps_per_generation or 1) * args.num_iterations // args.gradient_accumulation_steps
        args.max_steps = unit * config.iterations
        run_config.prompts = str(root / "prompts" / "train.jsonl")
        grpo.run(run_config, args, policy, callbacks=[Watch(out / "curve.json", policy, plans, 5 * unit, unit, seed)])
        return
    settings = dict(config.warmup)
    if name == "control":  # as the demo's: half the peak learning rate, decayed over as many seconds as GRPO took
        done = {arm: json.loads((root / arm / "curve.json").read_text()) for arm in ("warmup", "grpo")}
        steps = done["grpo"]["seconds"] / done["warmup"]["seconds"] * done["warmup"]["steps"]
        settings |= {"max_steps": max(1, round(steps)), "learning_rate": 1e-3}
    warm_config, args = parse(
        (warmup.WarmupConfig, TrainingArguments), ["--config", "warmup/insertion", *common, *flags(settings)]
    )
    warm_config.sources = _of_seed(root, warm_config.sources)
    every = max(1, int(args.max_steps) // 8)
    warmup.run(warm_config, args, policy, [Watch(out / "curve.json", policy, plans, every, 1, seed)])


def _of_seed(root: Path, sources: Sequence[SourceConfig]) -> list[SourceConfig]:
    """The packaged sources, which are those of the first seed, in the folder of another."""
    return [replace(source, path=str(root / "data" / Path(source.path).name)) for source in sources]


def measure(policy: UnifiedPolicy, plans: Sequence[Plan], seed: int) -> dict[str, Any]:
    """Items by dotted metric name, the confusion of choices, markers that place nothing, and samples to look at."""
    items: Items = {}
    confusion: dict[str, Confusion] = {}
    faults: Counter[str] = Counter()
    samples: list[dict[str, Any]] = []
    prompts = [insertion_prompt(plan, f"held-out {number}") for number, plan in enumerate(plans, 1)]
    for way, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        sampling = Sampling(max_new_tokens=STORY_TOKENS, temperature=temperature, max_images=MAX_IMAGES, seed=seed)
        answers = write(policy, prompts, sampling)
        scores, confusion[way] = verify_insertion(answers, plans)
        items |= {f"{way}.{name}": rows for name, rows in scores.rows().items()}
        if way == "sampled":
            faults = sum((answer.faults for answer in answers), Counter())
            shown = zip(prompts[:SAMPLES], answers, strict=False)
            samples = [(prompt + answer.document).to_json() for prompt, answer in shown]
    items["understanding.candidates"] = list(score_candidate_questions(policy, QUESTIONS_ASKED, seed))
    items |= {ABILITIES[name]: list(rows) for name, rows in score_abilities(policy, SCENES, seed).items()}
    return {"items": items, "confusion": confusion, "faults": dict(faults), "samples": samples}


def summarise(config: InsertOrGenerateConfig, results: dict[str, dict[int, Result]]) -> dict[str, Any]:
    """Everything the outputs show: figures with intervals over seeds and held-out items, gains, confusion, curves."""
    arms = {}
    for name, by_seed in results.items():
        runs = [by_seed[seed] for seed in sorted(by_seed)]
        arms[name] = {
            "label": ARMS[name],
            "seeds": sorted(by_seed),
            "seconds": [run["seconds"] for run in runs],
            "figures": _estimates({metric: _known(runs, metric) for metric in runs[0]["items"]}),
            "confusion": {way: _added([run["confusion"][way] for run in runs]) for way in runs[0]["confusion"]},
            "faults": dict(sum((Counter(run["faults"]) for run in runs), Counter())),
            "curves": {seed: by_seed[seed]["points"] for seed in sorted(by_seed)},
            "samples": runs[0]["samples"],
        }
    gains = []
    for arm, against in AGAINST:
        seeds = sorted(results.get(arm, {}).keys() & results.get(against, {}).keys())
        if seeds:
            mine, theirs = ([results[name][seed] for seed in seeds] for name in (arm, against))
            found = _estimates({metric: _gained(mine, theirs, metric) for metric in mine[0]["items"]})
            gains += [{"arm": arm, "against": against, "metric": metric, **gain} for metric, gain in found.items()]
    return {
        "title": "Insert, generate or leave",
        "created": time.strftime("%Y-%m-%d"),
        "arms": arms,
        "gains": gains,
        "settings": asdict(config),
    }


def _estimates(scores: dict[str, list[list[float]]]) -> dict[str, SeedEstimate]:
    """By metric; one that applies to no plan of some seed has none."""
    return {metric: nested_estimate(by_seed) for metric, by_seed in scores.items() if all(by_seed)}


def _known(runs: Sequence[Result], metric: str) -> list[list[float]]:
    """Scores by seed, of the plans to which the metric applies."""
    return [[score for score in run["items"][metric] if score is not None] for run in runs]


def _gained(mine: Sequence[Result], theirs: Sequence[Result], metric: str) -> list[list[float]]:
    """Differences by seed, of the plans to which the metric applies in both arms."""
    return [
        [a - b for a, b in zip(run["items"][metric], other["items"][metric], strict=True) if None not in (a, b)]
        for run, other in zip(mine, theirs, strict=True)
    ]


def _added(confusions: Sequence[Confusion]) -> Confusion:
    return {
        wanted: {done: sum(confusion[wanted][done] for confusion in confusions) for done in row}
        for wanted, row in confusions[0].items()
    }


def _mean(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return sum(known) / max(1, len(known))


if __name__ == "__main__":
    run_or_exit(main)
