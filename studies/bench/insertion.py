"""The embedded inserter: does GRPO make it better, and what does a fast answer cost.

for each seed:
    warm-up      a small Llama learns noisy answers                            insertion_world.answer_loss
    grpo         the same model by rewards from gold placements                train.inserter.grpo, stock TRL
    pairs        a copy of the warm-up learns to score pairs from gold         train.inserter.pair_scoring
    rule         words in common, nothing learnt                               retrieval.strategies.rule
    latency      one answer with ten candidates: written against scored, in turn

limner bench insertion [--json FILE] [--seeds 0 1 2]

A finished seed is kept in `out/seed-N` and not repeated.
"""

from __future__ import annotations

import copy
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ...configs.bounds import Above0, Layers, OneOrMore, Width
from ...configs.errors import InputError, run_or_exit
from ...configs.whole import write_atomically
from ...data.insertion.placements import InsertionTask, Placement
from ...data.insertion.prompt import THINK_END, Answer
from ...retrieval.strategies.inserter import Inserter, PairScorer, Prompter, WritingInserter
from ...retrieval.strategies.rule import RuleInserter
from ...rewards.rules.insertion import selection
from ...rewards.rules.placement import place_score
from ...train.grpo import GRPOConfig
from ...train.inserter.grpo import InsertionConfig, make_trainer, train_inserter
from ...train.inserter.pair_scoring import PairScoringConfig, fit, fit_pairs
from ...worlds.captions.scenes import (
    AnswerNoise,
    WorldSize,
    answer_loss,
    make_task,
    make_world,
    new_model,
    new_tokenizer,
    noisy,
    thought,
)
from ..seed import keep_settings, limit_threads, say
from .command import bench

GOAL = 5.0
"""Times that scoring pairs is faster than writing, at an F1 that is no lower."""
UPDATES = 4
"""Of GRPO on each rollout batch."""


@dataclass
class InsertionBenchConfig:
    seeds: list[int] = field(default_factory=lambda: [0])
    world: WorldSize = field(default_factory=WorldSize)
    noise: AnswerNoise = field(default_factory=AnswerNoise)
    """Of warm-up answers."""
    hidden_size: Width = 128
    layers: Layers = 3
    warmup_steps: OneOrMore = 2400
    warmup_batch: OneOrMore = 32
    warmup_rate: Above0 = 2e-3
    grpo_batches: OneOrMore = 40
    """Rollout batches, with four updates each."""
    grpo_prompts: OneOrMore = 24
    """Tasks a batch, each answered eight times."""
    grpo_rate: Above0 = 3e-4
    pair_steps: OneOrMore = 600
    heldout: OneOrMore = 300
    """Tasks for the figures; none of them is trained on."""
    timed: OneOrMore = 40
    """Of them, answered one by one for the latency, `turns` times."""
    turns: OneOrMore = 3
    out: str = "runs/insertion"
    json: str | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        counts = ("warmup_steps", "grpo_batches", "grpo_prompts", "pair_steps", "heldout", "timed", "turns")
        if wrong := [name for name in counts if getattr(self, name) < 1]:
            raise InputError(f"{wrong[0]}: {getattr(self, wrong[0])}; at least 1")
        if not self.seeds:
            raise InputError("seeds: none; give one or more")


def main(argv: Sequence[str] | None = None) -> None:
    bench(InsertionBenchConfig, argv, "insertion", run, table)


def run(config: InsertionBenchConfig) -> dict[str, Any]:
    """The figures as `--json` writes them."""
    limit_threads()
    disable_progress_bar()
    rows = [finished(config, seed) for seed in config.seeds]
    return {"seeds": rows, "settings": {"seeds": config.seeds, **shared_settings(config)}}


def shared_settings(config: InsertionBenchConfig) -> dict[str, Any]:
    """What the figures of a seed depend on."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("seeds", "out", "json")}
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    return {**settings, "threads": torch.get_num_threads(), **versions}


def finished(config: InsertionBenchConfig, seed: int) -> dict[str, Any]:
    """The figures of a seed, measured now unless its folder has them."""
    folder = Path(config.out) / f"seed-{seed}"
    figures = folder / "figures.json"
    keep_settings(folder / "settings.json", shared_settings(config))
    if figures.exists():
        say(f"seed {seed}: kept from before in {figures}")
    else:
        write_atomically(figures, json.dumps(one_seed(config, seed), indent=1) + "\n")
    return json.loads(figures.read_text())


def one_seed(config: InsertionBenchConfig, seed: int) -> dict[str, Any]:
    heldout = make_world(1_000_000 + seed, config.heldout, config.world, "heldout")
    seconds, started = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = round(time.perf_counter() - started, 1)
        started = time.perf_counter()

    say(f"seed {seed}: warm-up on noisy answers")
    prompter = Prompter(new_tokenizer(config.world))
    model = new_model(prompter.tokenizer, config.hidden_size, config.layers, seed)
    losses = warm_up(config, model, prompter, seed)
    lap("warmup")
    scored = {"rule": scores(heldout, [RuleInserter().place(task) for task in heldout])}
    scored["warmup"] = scores(heldout, writer_of(config, model, prompter).place_all(heldout))
    lap("scoring")

    say(f"seed {seed}: pairs")
    torch.manual_seed(seed)
    pairs = PairScorer.create(copy.deepcopy(model), prompter)
    tasks = make_world(2_000_000 + seed, 16 * config.pair_steps, config.world, "pairs")
    settings = PairScoringConfig(steps=config.pair_steps, batch_size=16, learning_rate=1e-3, seed=seed)
    pair_losses = fit_pairs(pairs, tasks, settings)
    lap("pairs")

    say(f"seed {seed}: GRPO")
    trainer = reinforce(config, model, prompter, seed)
    lap("grpo")
    writer = writer_of(config, model, prompter)
    scored["grpo"] = scores(heldout, writer.place_all(heldout))
    scored["pairs"] = scores(heldout, pairs.place_all(heldout, batch_size=50))
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    return {
        "seed": seed,
        "scores": scored,
        "latency": latency(heldout[: config.timed], {"written": writer, "scored": pairs}, config.turns),
        "losses": {"warmup": _ends(losses), "pairs": _ends(pair_losses)},
        "reward": _ends(rewards),
        "seconds": seconds,
        "parameters": model.num_parameters(),
    }


def writer_of(config: InsertionBenchConfig, model: Any, prompter: Prompter) -> WritingInserter:
    """It thinks as long as the warm-up's answers do."""
    tasks = make_world(0, 20, config.world, "thoughts")
    thoughts = prompter.tokenizer([thought(task, task.gold) + THINK_END for task in tasks], add_special_tokens=False)
    think = max(map(len, thoughts["input_ids"])) + 8
    return WritingInserter(model, prompter, think, batch_size=50)


def warm_up(config: InsertionBenchConfig, model: Any, prompter: Prompter, seed: int) -> list[float]:
    """Among few candidates more of them belong, and matching is learnt sooner."""
    rng = random.Random(f"warmup {seed}")

    def loss(step: int) -> torch.Tensor:
        size = replace(config.world, candidates=rng.randint(min(3, config.world.candidates), config.world.candidates))
        tasks = [make_task(rng, size) for _ in range(config.warmup_batch)]
        return answer_loss(model, prompter, tasks, [noisy(task, rng, config.noise) for task in tasks])

    model.train()
    return fit(model.parameters(), loss, config.warmup_steps, config.warmup_rate)


def reinforce(config: InsertionBenchConfig, model: Any, prompter: Prompter, seed: int) -> Any:
    """GRPO of the model, in place, by the trainer of `limner grpo --config grpo/inserter-text`."""
    args = GRPOConfig(
        output_dir=str(Path(config.out) / f"seed-{seed}"),
        num_generations=8,
        per_device_train_batch_size=8 * config.grpo_prompts // UPDATES,
        steps_per_generation=UPDATES,
        max_completion_length=24 + 20 * config.world.candidates,
        max_steps=config.grpo_batches * UPDATES,
        learning_rate=config.grpo_rate,
        lr_scheduler_type="linear",
        warmup_steps=2 * UPDATES,
        adam_beta2=0.95,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        activation_checkpointing=False,
        seed=seed,
    )
    tasks = make_world(3_000_000 + seed, config.grpo_prompts * config.grpo_batches, config.world, "grpo")
    trainer = make_trainer(InsertionConfig(), args, (model, prompter), tasks)
    train_inserter(trainer)
    model.eval()
    return trainer


def scores(tasks: Sequence[InsertionTask], placed: Sequence[Sequence[Placement]]) -> dict[str, float]:
    """Means over the tasks: F1 of the selection, place (0 for gold that is not placed), share that is wholly right."""
    f1, place, exact = [], [], []
    for task, placements in zip(tasks, placed, strict=True):
        chosen = [placement.candidate for placement in placements]
        f1.append(selection([placement.candidate for placement in task.gold], chosen).f1)
        score = place_score(Answer(tuple(placements), faults=Counter(), framed=True), task.gold, len(task.sentences), 0)
        place += [] if score is None else [score]
        exact.append(sorted(placements) == sorted(task.gold))
    return {"f1": statistics.fmean(f1), "place": statistics.fmean(place or [0.0]), "exact": statistics.fmean(exact)}


def latency(tasks: Sequence[InsertionTask], inserters: dict[str, Inserter], turns: int) -> dict[str, Any]:
    """Milliseconds an answer, one task at a time, the inserters in turn; and the ratio turn by turn."""
    for inserter in inserters.values():
        inserter.place(tasks[0])  # the tables of legal tokens, and torch's first call
    rates: dict[str, list[float]] = {name: [] for name in inserters}
    for turn in range(turns):
        names = list(inserters)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            for task in tasks:
                inserters[name].place(task)
            rates[name].append(1000 * (time.perf_counter() - started) / len(tasks))
    ratios = [a / b for a, b in zip(rates["written"], rates["scored"], strict=True)]
    return {
        "milliseconds": {name: statistics.median(values) for name, values in rates.items()},
        "written_over_scored": {"value": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }


def table(figures: dict[str, Any]) -> str:
    """What `limner bench insertion` prints."""
    settings, rows = figures["settings"], figures["seeds"]
    lines = [
        f"{settings['heldout']} held-out tasks, {settings['world']['candidates']} candidates, "
        f"{rows[0]['parameters'] / 1e6:.2f} M parameters, {settings['threads']} thread(s), torch {settings['torch']}, "
        f"trl {settings['trl']}",
        f"{'seed':>6} {'':10}{'F1':>8}{'place':>8}{'exact':>8}",
    ]
    for row in rows:
        for name in ("rule", "warmup", "grpo", "pairs"):
            values = row["scores"][name]
            lines.append(f"{row['seed']:>6} {name:10}{values['f1']:8.3f}{values['place']:8.3f}{values['exact']:8.3f}")
    for row in rows:
        times, ratio = row["latency"]["milliseconds"], row["latency"]["written_over_scored"]
        equal = row["scores"]["pairs"]["f1"] >= row["scores"]["grpo"]["f1"]
        reached = "reached" if ratio["value"] >= GOAL and equal else "missed"
        lines.append(
            f"seed {row['seed']}: written {times['written']:.1f} ms, scored {times['scored']:.1f} ms an answer: "
            f"{ratio['value']:.1f} [{ratio['low']:.1f}, {ratio['high']:.1f}] times; "
            f"goal {GOAL:.0f} at no lower F1: {reached}"
        )
        lines.append("  seconds: " + ", ".join(f"{name} {value}" for name, value in row["seconds"].items()))
    return "\n".join(lines)


def _ends(values: Sequence[float]) -> dict[str, float]:
    """Mean of the first and of the last tenth."""
    tenth = max(1, len(values) // 10)
    return {"first": statistics.fmean(values[:tenth]), "last": statistics.fmean(values[-tenth:])} if values else {}


if __name__ == "__main__":
    run_or_exit(main)
