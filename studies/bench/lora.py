"""What an adapter costs while rollouts are sampled: merged for the batch, as the trainer does, and unmerged.

    weights     the model without an adapter
    merged      the same with one, inside `sampling_weights`; merging and taking out again are in the time
    unmerged    the adapter's matrices multiplied at every token

limner bench lora [--json FILE]

The adapter is new, so that it adds zero and all three must write the same documents; what it costs does not depend on
its numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ...configs.bounds import OneOrMore, Seed
from ...configs.errors import run_or_exit
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling, generate
from ...models.tokens.processing import Processor
from ...train.from_scratch.new_model import NewModelConfig, new_policy
from ...train.scale.lora import LoraConfig, adapted
from ...train.scale.precision import sampling_weights
from ...worlds.picture_stories.scenes import outlines, story_prompt
from ..seed import limit_threads, say
from .clock import device, now
from .command import bench
from .grpo import bench_processor
from .sampler import STEPS, Steps, paired_ratio

GOAL = 1.1
"""Seconds of merged rollouts over those of the model without an adapter."""


@dataclass
class BenchConfig:
    group: OneOrMore = 32
    """Completions of the one prompt."""
    turns: OneOrMore = 7
    """Timed runs of each contender."""
    text_tokens: OneOrMore = 16
    """Mean length of a text."""
    seed: Seed = 0
    json: str | None = None
    """File for the figures."""
    model: NewModelConfig = field(default_factory=NewModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)


def main(argv: Sequence[str] | None = None) -> None:
    bench(BenchConfig, argv, "lora", run, table)


def run(config: BenchConfig) -> dict[str, Any]:
    """The contenders in turn, in rotating order; the figures as `--json` writes them."""
    limit_threads()
    disable_progress_bar()
    processor = bench_processor(config.model, config.seed)
    plain, other = (_policy(processor, config) for _ in range(2))
    adapted(other.model, config.lora, config.seed)  # puts the adapter into the model itself
    contenders: dict[str, tuple[UnifiedPolicy, Callable[[], AbstractContextManager[None]]]] = {
        "weights": (plain, nullcontext),
        "merged": (other, lambda: sampling_weights(other)),
        "unmerged": (other, nullcontext),
    }
    prompt = processor.encode(story_prompt(outlines(config.seed, 1)[0]))
    limits = {Steps(policy, prompt, config.text_tokens).limit for policy in (plain, other)}
    sampling = Sampling(max(limits), max_images=STEPS, seed=config.seed)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    written: list[list[int]] = []
    say(f"group of {config.group}, adapter of rank {config.lora.rank}")
    for turn in range(-1, config.turns):  # the first warms up
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            policy, around = contenders[name]
            started, cpu_started = now(), time.process_time()
            with torch.no_grad(), around():
                samples = generate(policy, [prompt], sampling, [config.group])
            spent, cpu_spent = now() - started, time.process_time() - cpu_started
            documents = [sample.ids_C.tolist() for sample in samples]
            if written and documents != written:
                raise RuntimeError(f"{name} wrote other documents than the rest")
            written = documents
            if turn >= 0:
                seconds[name].append(spent)
                cpu[name].append(cpu_spent)
    return {
        "seconds": seconds,
        "over_weights": {name: paired_ratio(seconds[name], seconds["weights"]) for name in ("merged", "unmerged")},
        "over_weights_cpu": {name: paired_ratio(cpu[name], cpu["weights"]) for name in ("merged", "unmerged")},
        "tokens": sum(map(len, written)),
        "settings": {
            **asdict(config),
            **{"parameters": plain.model.num_parameters(), "device": device(), "threads": torch.get_num_threads()},
            **{name: version(name) for name in ("torch", "transformers", "peft")},
        },
    }


def _policy(processor: Processor, config: BenchConfig) -> UnifiedPolicy:
    policy = new_policy(processor, replace(config.model, seed=config.seed))
    policy.model.to(device()).eval()  # type: ignore[arg-type]
    return policy


def table(figures: Mapping[str, Any]) -> str:
    settings = figures["settings"]
    lines = [
        f"fp32, {settings['device']}, {settings['threads']} thread(s), torch {settings['torch']}, peft "
        f"{settings['peft']}; {settings['parameters']:,} parameters, rank {settings['lora']['rank']}, "
        f"{figures['tokens']} tokens",
        "",
        f"{'seconds over the model without an adapter':44}{'wall':>22}{'CPU':>22}",
    ]
    for name, wall in figures["over_weights"].items():
        ratios = (wall, figures["over_weights_cpu"][name])
        cells = (f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" for ratio in ratios)
        lines.append(f"{name:44}" + "".join(f"{cell:>22}" for cell in cells))
    met = figures["over_weights"]["merged"]["value"] <= GOAL
    lines += [
        f"goal: merged at most {GOAL:.2f}, {'met' if met else 'missed'}",
        "median [lowest, highest] of the turns, in each of which all run once, in rotating order",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_or_exit(main)
