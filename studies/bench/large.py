"""A large model of random weights on this machine: is the sampled policy the scored one, what does a step cost, and
was `limner plan` right about its memory?

    preflight    |training - sampler log-prob| of text and image tokens, against the dtype's bounds
    steps        seconds and peak memory of rollout, scoring and update
    plan         the memory that was predicted for them

limner bench large [--json FILE]                    # a billion parameters, bf16, pictures of 256 codes: for a GPU
limner bench large --bf16 false --model.hidden_size 256 --model.intermediate_size 704 --model.layers 8 --model.heads 4

Weights and optimizer state are float32, products bfloat16 (autocast), log-probs float32. Peaks by phase are CUDA's.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from ...configs.bounds import OneOrMore, Seed
from ...configs.errors import InputError, run_or_exit
from ...data.prompts import pack_prompt
from ...models.tokens.processing import Processor
from ...rewards.base import Completion, RewardOutput
from ...train.before.preflight import Check, run_checks
from ...train.from_scratch.image_tokenizer import ImageTokenizerConfig
from ...train.from_scratch.new_model import NewModelConfig, new_policy
from ...train.plan.command import model_shape
from ...train.plan.memory import CONTEXT, Run, predict
from ...train.trainer import GRPOConfig, InterleavedGRPOTrainer
from ...worlds.picture_stories.scenes import outlines, story_prompt
from ..seed import limit_threads, say
from .clock import LIMNER_PHASES, PHASES, WARM_UP, Clock, device, measure
from .command import bench
from .grpo import END, PROMPTS, algorithm, bench_processor, lean, trainer_args

GB = 2**30
DOWN = -0.5
"""First number of every embedding: scores then lie about 10, as those of trained models do."""
PLANNED = {"rollout": ("rollout",), "scoring": (), "update": ("log-probs", "backward", "step")}
"""The moments that `plan` adds up, by the phase in which they come; it has none for the reference's forward."""


@dataclass
class LargeConfig:
    steps: OneOrMore = 3
    """Measured steps."""
    json: str | None = None
    """File for the figures."""
    rollouts: OneOrMore = 16
    """Completions a step."""
    group_size: OneOrMore = 8
    updates: OneOrMore = 1
    """Optimizer steps a step."""
    completion_tokens: OneOrMore = 320
    """Limit of a document: one picture and its text by default."""
    vocabulary: OneOrMore = 32_768
    """Text ids."""
    score_chunk: OneOrMore | None = None
    micro_batch_tokens: OneOrMore | None = None
    bf16: bool = True
    seed: Seed = 0
    model: NewModelConfig = field(
        default_factory=lambda: NewModelConfig(
            hidden_size=2048,
            intermediate_size=5632,
            layers=18,
            heads=16,
            initializer_range=0.02,
            image_tokenizer=ImageTokenizerConfig(image_size=256, patch=16, channels=(64,), codes=8192, code_size=8),
        )
    )

    def check(self) -> None:
        """Raises InputError for sizes that do not divide, or that leave no room for a picture."""
        for name in ("steps", "group_size", "updates"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; at least 1")
        for name in ("group_size", "updates"):
            if self.rollouts % getattr(self, name):
                raise InputError(f"rollouts: {self.rollouts} is no multiple of {name} ({getattr(self, name)})")
        if self.vocabulary < self.model.text_vocabulary:
            raise InputError(f"vocabulary: {self.vocabulary}; the tokenizer alone has {self.model.text_vocabulary} ids")
        sizes = self.model.image_tokenizer
        if self.completion_tokens <= (codes := (sizes.image_size // sizes.patch) ** 2):
            raise InputError(
                f"completion_tokens: {self.completion_tokens} leave no room for a picture of {codes} codes"
            )


class EvenCodes:
    """A reward that varies within groups: pictures by their even codes, texts by their length."""

    name = "even_codes"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        rows: list[list[float | None]] = [
            [self._of(s) for s in completion.answer.segments] for completion in completions
        ]
        outcome: list[float | None] = [sum(filter(None, row)) / max(1, len(row)) for row in rows]
        return RewardOutput(outcome, rows, {self.name: outcome})

    @staticmethod
    def _of(segment: Any) -> float:
        codes = getattr(segment, "codes_N", None)
        return len(segment.text) % 7 / 7 if codes is None else float((codes % 2 == 0).mean())


class PeakClock(Clock):
    """Has the largest number of bytes allocated in each phase as well, where the device counts them."""

    def __init__(self, args: Mapping[str, Any]):
        super().__init__(args)
        self.peaks: dict[str, int] = {}

    def _spend(self, begins: str | None = None) -> None:
        if torch.cuda.is_available() and len(self.steps) >= WARM_UP:
            phase = self._open[-1]
            self.peaks[phase] = max(self.peaks.get(phase, 0), torch.cuda.max_memory_allocated())
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        super()._spend(begins)


class Checked(TrainerCallback):
    """Preflight's checks, once the trainer has prepared the model; here none of them stops the run."""

    def __init__(self, trainer: InterleavedGRPOTrainer):
        self.trainer = trainer
        self.checks: list[Check] = []

    def on_train_begin(self, args, state, control, **_):
        self.checks = run_checks(self.trainer)


def main(argv: Sequence[str] | None = None) -> None:
    bench(LargeConfig, argv, "large", run, table)


def run(config: LargeConfig) -> dict[str, Any]:
    """The figures as `--json` writes them."""
    config.check()
    limit_threads()
    disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="limner-bench-") as folder:
        trainer, clock = _trainer(config, Path(folder))
        checked = Checked(trainer)
        trainer.add_callback(checked)
        say(f"preflight and {WARM_UP + config.steps} steps of {config.rollouts} documents")
        steps = measure(trainer, clock)
        trainer.policy.model.config.save_pretrained(folder)
        planned = _planned(config, Path(folder), trainer, max(step["prompt_tokens"] for step in steps))
    return {
        "preflight": {check.name: {"passed": check.passed, "text": check.text} for check in checked.checks},
        "phase_seconds": {name: [step[name] for step in steps] for name in (*PHASES, "total")},
        "completion_tokens": [step["completion_tokens"] for step in steps],
        "replay_gap": {name: _largest_gap(trainer, name) for name in ("text", "image")},
        "peak_bytes": {name: clock.peaks[name] for name in PLANNED if name in clock.peaks},
        "planned_bytes": planned,
        "settings": {
            **asdict(config),
            **{"parameters": trainer.policy.model.num_parameters(), "device": _device_name()},
            **{name: version(name) for name in ("torch", "transformers", "trl")},
        },
    }


def _trainer(config: LargeConfig, folder: Path) -> tuple[InterleavedGRPOTrainer, PeakClock]:
    say("a new model")
    tokenizers = bench_processor(config.model, config.seed)
    processor = Processor(tokenizers.tokenizer, tokenizers.image_tokenizer)
    processor.vocabulary = replace(processor.vocabulary, text_size=config.vocabulary)  # padded, as real models have it
    policy, control = new_policy(processor, config.model), processor.vocabulary.controls
    lean(policy, {control.boi: 1 / 6, control.eos: END}, DOWN)
    changes = {"use_cpu": device() == "cpu", "bf16": config.bf16}
    args = {**trainer_args(config, folder, config.steps, config.seed), **changes}
    prompts = [story_prompt(outline, f"bench-{i}") for i, outline in enumerate(outlines(config.seed, PROMPTS))]
    clock = PeakClock(args)
    trainer = InterleavedGRPOTrainer(
        policy,
        EvenCodes(),
        algorithm(
            max_images=1,
            process_weight=0.5,
            score_chunk=config.score_chunk,
            micro_batch_tokens=config.micro_batch_tokens,
        ),
        GRPOConfig(**args),
        Dataset.from_dict({"prompt": [pack_prompt(prompt) for prompt in prompts]}),
        watchers=[clock.count],
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    clock.charge(trainer, LIMNER_PHASES)
    return trainer, clock


def _planned(
    config: LargeConfig, folder: Path, trainer: InterleavedGRPOTrainer, prompt_tokens: float
) -> dict[str, int]:
    """Bytes by phase, without the allowance for CUDA's context, which PyTorch does not count either."""
    shape = model_shape(folder, trainer.policy.vocabulary.image_codes)
    run = Run(
        rows=config.rollouts // config.updates,
        steps_per_generation=config.updates,
        accumulation=1,
        num_generations=config.group_size,
        prompt=round(prompt_tokens / config.rollouts),
        completion=config.completion_tokens,
        half=config.bf16,
        checkpointing=False,
        reference=True,
        score_chunk=config.score_chunk,
        micro_batch_tokens=config.micro_batch_tokens,
        image_share=trainer.policy.vocabulary.image_length / config.completion_tokens,
    )
    plan = predict(shape, run)
    return {name: max(map(plan.total, moments)) - CONTEXT for name, moments in PLANNED.items() if moments}


def _largest_gap(trainer: InterleavedGRPOTrainer, modality: str) -> float:
    """Over all steps, also those after updates: each is taken before the first update on its rollouts."""
    logged = (line.get(f"replay_gap/{modality}") for line in trainer.state.log_history)
    return max((value for value in logged if value is not None), default=0.0)


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def table(figures: Mapping[str, Any]) -> str:
    """The table that `limner bench large` prints."""
    settings, seconds = figures["settings"], figures["phase_seconds"]
    sizes = settings["model"]["image_tokenizer"]
    lines = [
        f"Llama of {settings['parameters'] / 1e6:,.0f} M random parameters, {settings['vocabulary']:,} text ids and "
        f"{sizes['codes']:,} codes, {(sizes['image_size'] // sizes['patch']) ** 2} a picture; "
        f"{'bf16' if settings['bf16'] else 'fp32'}, {settings['device']}, torch {settings['torch']}",
        f"{settings['steps']} steps of {settings['rollouts']} rollouts (G {settings['group_size']}), "
        f"{statistics.mean(figures['completion_tokens']):,.0f} tokens a step, {settings['updates']} update(s) each",
        "",
    ]
    for name, check in figures["preflight"].items():
        lines.append(f"{'FAIL' if check['passed'] is False else 'ok  '}  {name}: {check['text']}")
    for name, gap in figures["replay_gap"].items():
        lines.append(f"      in all {WARM_UP + settings['steps']} steps, {name}: |log ratio| at most {gap:.1e}")
    lines += ["", f"{'':37}{'median s':>9}{'peak GB':>9}{'planned':>9}"]
    for name, label in {**PHASES, "total": "step"}.items():
        sizes = [figures[key].get(name) for key in ("peak_bytes", "planned_bytes")]
        cells = "".join(f"{size / GB:9.2f}" if size else f"{'':9}" for size in sizes)
        lines.append(f"{label:37}{statistics.median(seconds[name]):9.3f}{cells}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    run_or_exit(main)
