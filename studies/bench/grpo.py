"""What a step of GRPO costs: by phase, against stock TRL at equal tokens, and its peak of memory.

    documents    limner on interleaved documents with pictures, the rewards of the embedded world
    text alone   limner and `trl.GRPOTrainer` in turn: same weights, prompts, lengths, group size, KL, optimizer
    memory       one step of text with a larger vocabulary, with and without chunks

limner bench grpo [--json FILE]

The model is an untrained stock Llama of the demo's size. A step is one rollout batch with all its updates, run by the
trainer's own loop. Both trainers get prompts of the same ids and never draw `<eos>`; their tokens are compared.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer
from transformers.utils.logging import disable_progress_bar

from ...configs import find_config, read_yaml
from ...configs.bounds import OneOrMore, Seed
from ...configs.errors import InputError, run_or_exit
from ...data.prompts import pack_prompt
from ...models.families.shared_vocabulary import SharedVocabularyPolicy
from ...models.pictures.contract import VQImageTokenizer
from ...models.policy import UnifiedPolicy
from ...models.tokens.processing import Processor
from ...models.tokens.text_tokenizer import train_text_tokenizer
from ...rewards.base import Completion, Reward, RewardOutput
from ...rewards.build import RewardSettings, build_reward
from ...train.from_scratch.new_model import NewModelConfig, general_english, new_policy
from ...train.objective.algorithm import AlgorithmConfig, PerModality
from ...train.trainer import GRPOConfig, GRPOTrainer, InterleavedGRPOTrainer
from ...worlds.picture_stories.scenes import outlines, story, story_prompt
from ..seed import limit_threads, say
from .clock import COUNTED, LIMNER_PHASES, PHASES, TRL_PHASES, WARM_UP, Clock, Step, device, measure, peak_bytes
from .command import bench

BLOCK = 2
"""Measured steps of a trainer before it is the other one's turn."""
BETA, PROMPTS, RESAMPLES = 0.04, 256, 2000
PICTURE, END = 1 / 12, 1 / 40
"""Chances that a text token of the documents opens a picture, or ends the document."""
DOWN = -4.0
"""First number of every embedding."""


@dataclass
class MemoryConfig:
    """One step of text whose peak of memory is measured."""

    vocabulary: int = 16_384
    """Text ids."""
    rollouts: OneOrMore = 8
    completion_tokens: OneOrMore = 128
    score_chunk: int = 128
    micro_batch_tokens: int = 350


@dataclass
class BenchConfig:
    steps: OneOrMore = 10
    """Measured steps of each trainer."""
    json: str | None = None
    """File for the figures."""
    rollouts: OneOrMore = 32
    """Completions a step."""
    group_size: OneOrMore = 8
    updates: OneOrMore = 1
    """Optimizer steps a step. From two on TRL scores the old policy too; limner has the sampler's log-probs."""
    completion_tokens: OneOrMore = 128
    """Tokens of each completion of text alone, and limit of a document."""
    seed: Seed = 0
    model: NewModelConfig = field(default_factory=NewModelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def check(self) -> None:
        """Raises InputError for sizes that do not divide."""
        if self.steps < 1:
            raise InputError(f"steps: {self.steps}; at least 1")
        for name, parts in (("group_size", self.group_size), ("updates", self.updates)):
            if parts < 1 or self.rollouts % parts:
                raise InputError(f"rollouts: {self.rollouts} is no multiple of {name} ({parts})")


def main(argv: Sequence[str] | None = None) -> None:
    bench(BenchConfig, argv, "grpo", run, table)


def run(config: BenchConfig) -> dict[str, Any]:
    """All three measurements; the figures as `--json` writes them."""
    config.check()
    limit_threads()
    disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="limner-bench-") as folder:
        bench = Bench(config, Path(folder))
        documents, text, peaks = bench.documents(), bench.text_alone(), bench.memory()
    return {
        "step_seconds": {name: [step["total"] for step in steps] for name, steps in text.items()},
        "phase_seconds": {name: [step[name] for step in documents] for name in (*PHASES, "total") if name != "rest"},
        "peak_bytes": peaks,
        "trl_over_limner": {name: paired_ratio(text["trl"], text["limner"], name) for name in ("total", "cpu")},
        "steps": {"documents": documents, **{f"text_{name}": steps for name, steps in text.items()}},
        "settings": {
            **asdict(config),
            **{"parameters": bench.parameters, "device": device(), "threads": torch.get_num_threads()},
            **{name: version(name) for name in ("torch", "transformers", "trl")},
        },
    }


class Bench:
    """The models in a folder, and the trainers over them."""

    def __init__(self, config: BenchConfig, folder: Path):
        self.config, self.folder = config, folder
        processor = bench_processor(config.model, config.seed)
        # A vocabulary padded with ids that spell nothing, as real models have them.
        wide = Processor(processor.tokenizer, processor.image_tokenizer)
        wide.vocabulary = replace(processor.vocabulary, text_size=config.memory.vocabulary)
        self.processors = {"documents": processor, "text": processor, "wide": wide}
        control = processor.vocabulary.controls
        shares = {name: {control.eos: 0.0} for name in self.processors}
        shares["documents"] = {control.boi: PICTURE, control.eos: END}
        self.parameters = {}
        for name, of_name in self.processors.items():
            policy = new_policy(of_name, config.model)
            lean(policy, shares[name])
            policy.model.save_pretrained(folder / name)
            self.parameters[name] = policy.model.num_parameters()
        self.prompts = [story_prompt(outline, f"bench-{i}") for i, outline in enumerate(outlines(config.seed, PROMPTS))]

    def documents(self) -> list[Step]:
        say("documents with pictures")
        args = trainer_args(self.config, self.folder, self.config.steps)
        reward = build_reward(RewardSettings(read_yaml(find_config("grpo/tiny"))["rewards"]))
        return measure(*self.limner("documents", args, algorithm(max_images=8), reward))

    def text_alone(self) -> dict[str, list[Step]]:
        """Both trainers in turn, new ones in every block, in alternating order."""
        steps: dict[str, list[Step]] = {"limner": [], "trl": []}
        while (done := len(steps["trl"])) < self.config.steps:
            say(f"text alone: {done} of {self.config.steps} steps")
            block = min(BLOCK, self.config.steps - done)
            args = trainer_args(self.config, self.folder, block, self.config.seed + done)
            turns = [("limner", self.limner), ("trl", self.trl)]
            for name, build in turns if done % (2 * BLOCK) else reversed(turns):
                steps[name] += measure(*build("text", args))
        for ours, theirs in zip(steps["limner"], steps["trl"], strict=True):
            if any(ours[name] != theirs[name] for name in COUNTED):
                raise RuntimeError(f"the trainers had different tokens in a step: {ours}, {theirs}")
        return steps

    def memory(self) -> dict[str, int]:
        memory = self.config.memory
        group = math.gcd(self.config.group_size, memory.rollouts)
        sizes = BenchConfig(rollouts=memory.rollouts, group_size=group, completion_tokens=memory.completion_tokens)
        args = trainer_args(sizes, self.folder, 1 - WARM_UP)
        chunks = {"score_chunk": memory.score_chunk, "micro_batch_tokens": memory.micro_batch_tokens}
        peaks = {}
        for name, used in {"plain": {}, **{key: {key: chunks[key]} for key in chunks}, "both": chunks}.items():
            say(f"memory: {name}")
            peaks[name] = peak_bytes(self.limner("wide", args, algorithm(**used))[0].train)
        say("memory: TRL")
        return {**peaks, "trl": peak_bytes(self.trl("wide", args)[0].train)}

    def limner(
        self, model: str, args: dict[str, Any], settings: AlgorithmConfig | None = None, reward: Reward | None = None
    ) -> tuple[Trainer, Clock]:
        clock = Clock(args)
        trainer = InterleavedGRPOTrainer(
            SharedVocabularyPolicy(self._load(model), self.processors[model]),
            reward or TextLength(),
            settings or algorithm(),
            GRPOConfig(**args),
            Dataset.from_dict({"prompt": [pack_prompt(prompt) for prompt in self.prompts]}),
            watchers=[clock.count],
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        clock.charge(trainer, LIMNER_PHASES)
        return trainer, clock

    def trl(self, model: str, args: dict[str, Any]) -> tuple[Trainer, Clock]:
        """Stock TRL; its prompts spell the control tokens that ours have, so that the ids are the same."""
        clock = Clock(args)
        trainer = GRPOTrainer(
            model=self._load(model),  # TRL loads the reference from the same folder
            reward_funcs=[text_length],
            args=GRPOConfig(**args, beta=BETA),
            train_dataset=Dataset.from_dict({"prompt": [f"<bos>{prompt.text}<answer>" for prompt in self.prompts]}),
            processing_class=self.processors[model].tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        generate: Any = trainer._generate_and_score_completions

        def counted(inputs: Any) -> Any:
            output = generate(inputs)
            clock.tokens = tuple(int(output[name].sum()) for name in ("prompt_mask", "completion_mask"))
            return output

        trainer._generate_and_score_completions = counted
        clock.charge(trainer, TRL_PHASES)
        return trainer, clock

    def _load(self, model: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder / model)


class Sizes(Protocol):
    """What a step has to do."""

    rollouts: int
    group_size: int
    updates: int
    completion_tokens: int


def trainer_args(sizes: Sizes, folder: Path, steps: int, seed: int = 0) -> dict[str, Any]:
    """Settings of TRL's GRPOConfig that both trainers share; `steps` do not count the warm-up."""
    return {
        "output_dir": str(folder / "run"),
        "max_steps": (WARM_UP + steps) * sizes.updates,
        "num_generations": sizes.group_size,
        "per_device_train_batch_size": sizes.rollouts // sizes.updates,
        "steps_per_generation": sizes.updates,
        "max_completion_length": sizes.completion_tokens,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "logging_steps": sizes.updates,
        "seed": seed,
        "use_cpu": device() == "cpu",
        **{"bf16": False, "activation_checkpointing": False},
        **{"save_strategy": "no", "report_to": [], "disable_tqdm": True},
    }


def algorithm(max_images: int = 0, **changes: Any) -> AlgorithmConfig:
    beta = PerModality(BETA, BETA)
    return AlgorithmConfig(beta=beta, normalisation="token", max_images=max_images, **changes)


def bench_processor(config: NewModelConfig, seed: int) -> Processor:
    """Tokenizers of the demo's sizes; the image tokenizer is untrained, which costs the same time."""
    texts = [story(outline).text for outline in outlines(seed, 300)]
    torch.manual_seed(seed)
    sizes = config.image_tokenizer
    image_tokenizer = VQImageTokenizer.create(
        sizes.image_size, sizes.patch, sizes.channels, sizes.codes, sizes.code_size, sizes.tiled
    )
    return Processor(train_text_tokenizer([general_english(), *texts], config.text_vocabulary), image_tokenizer.eval())


@torch.no_grad()
def lean(policy: UnifiedPolicy, shares: Mapping[int, float], down: float = DOWN) -> None:
    """Makes an untrained model of tied embeddings draw these text ids with about these probabilities; 0 is never.

    Every input pushes the first hidden number down, so the first column of the head acts as a bias. All scores get
    `down` times that number more, which costs bfloat16 its digits where the model is wide.
    """
    size = policy.vocabulary.text_size
    weight: Any = policy.model.get_input_embeddings().weight
    weight[:, 0] = down
    mask = torch.ones(64, 64, dtype=torch.bool).tril()[None, None]
    hidden = policy.hidden(torch.randint(size, (1, 64)), torch.arange(64)[None], mask, None)
    scale = -hidden[..., 0].mean().item()
    for token, share in shares.items():
        weight[token, 0] = down - math.log(share * size / (1 - share)) / scale if share else -10 * down


def text_length(completions: Sequence[str], **_: Any) -> list[float | None]:
    """A reward that costs nothing and varies within groups."""
    return [len(text) % 7 / 7 for text in completions]


class TextLength:
    name = "text_length"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        scores = text_length([completion.answer.text for completion in completions])
        return RewardOutput(scores, [[None] * len(completion.answer.segments) for completion in completions])


def paired_ratio(above: Sequence[Step], below: Sequence[Step], name: str) -> dict[str, float]:
    """Median of the ratios step by step, with its bootstrap 95 % interval."""
    ratios = np.array([a[name] / b[name] for a, b in zip(above, below, strict=True)])
    drawn = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return {"value": float(np.median(ratios)), "low": float(low), "high": float(high), "n": len(ratios)}


def table(figures: Mapping[str, Any]) -> str:
    """The table that `limner bench grpo` prints."""
    settings, steps, memory = figures["settings"], figures["steps"], figures["settings"]["memory"]
    documents, *_ = columns = [steps[name] for name in ("documents", "text_limner", "text_trl")]
    sums = {name: sum(step[name] for step in documents) for name in documents[0]}
    lines = [
        f"Llama of {settings['parameters']['text'] / 1e6:.1f} M parameters, fp32, {settings['device']}, "
        f"{settings['threads']} thread(s), TRL {settings['trl']}; {settings['steps']} steps of {settings['rollouts']} "
        f"rollouts (G {settings['group_size']}), {settings['updates']} update(s) each",
        "",
        f"{'':37}{'documents':>26}  {'text alone':>26}",
        f"{'median seconds a step':37}{'limner':>9}{'share':>7}{'token/s':>10}  {'limner':>9}{'TRL':>8}{'ratio':>9}",
    ]
    for name, label in {**PHASES, "total": "step", "cpu": "step, CPU seconds"}.items():
        first, ours, theirs = (statistics.median(step[name] for step in column) for column in columns)
        share = "" if name == "cpu" else f"{sums[name] / sums['total']:.1%}"
        rate = "" if name in ("cpu", "rest") else f"{sums['completion_tokens'] / sums[name]:.0f}"
        ratio = paired_ratio(steps["text_trl"], steps["text_limner"], name)["value"]
        lines.append(f"{label:37}{first:9.3f}{share:>7}{rate:>10}  {ours:9.3f}{theirs:8.3f}{ratio:9.2f}")
    for name in COUNTED:
        first, ours, theirs = (statistics.mean(step[name] for step in column) for column in columns)
        lines.append(f"{name.replace('_', ' ') + ' a step':37}{first:9.0f}{'':19}{ours:9.0f}{theirs:8.0f}")
    lines += ["", "ratio: TRL / limner, median of pairs of steps, bootstrap 95 %; tokens are equal in every step:"]
    for name, label in (("total", "seconds"), ("cpu", "CPU seconds")):
        ratio = figures["trl_over_limner"][name]
        lines.append(f"  {label:35}{ratio['value']:9.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]")
    lines += [
        "token/s: completion tokens over the seconds of the phase; TRL's scoring has its advantages in it",
        "",
        f"peak memory of a step above the weights: {memory['rollouts']} rollouts of {memory['completion_tokens']} "
        f"text tokens, vocabulary {memory['vocabulary']}:",
    ]
    labels = {"plain": "limner, nothing in chunks", "both": "  both", "trl": "TRL"}
    for name in ("score_chunk", "micro_batch_tokens"):
        labels[name] = f"  algorithm.{name} {memory[name]}"
    return "\n".join([*lines, *(f"  {labels[name]:35}{n / 1e6:9.0f} MB" for name, n in figures["peak_bytes"].items())])


if __name__ == "__main__":
    run_or_exit(main)
