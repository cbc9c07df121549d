"""One warm-up step and one GRPO step of a model, and their memory beside what `limner plan` says.

A base model may never open a picture of its own, so half of the answers of the GRPO step begin with one: every head
then has tokens to learn from. Rewards go by the order of answers, so that each has an advantage.
"""

from __future__ import annotations

import gc
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ...data.mixture import PackedRows, SourceConfig
from ...data.prompts import pack_prompt
from ...data.shards import ShardWriter
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...rewards.base import Completion, RewardOutput
from ...train.before.preflight import run_checks
from ...train.objective.algorithm import AlgorithmConfig
from ...train.plan.command import GB, RANK, model_shape
from ...train.plan.memory import CONTEXT, ModelShape, Run, predict
from ...train.rollout import Rollout, rollout
from ...train.scale.lora import LoraConfig
from ...train.scale.precision import sampling_weights, some_numbers
from ...train.trainer import GRPOConfig, InterleavedGRPOTrainer
from ...train.warmup import WarmupConfig, WarmupTrainer
from ...worlds.picture_stories.scenes import SCENES, draw_scene
from .findings import Finding, judged
from .model import CHUNK, PROMPT, Subject, begun_by_us

GROUP = 4
"""Answers of the GRPO step."""
TEXT_ROOM = 32
"""Tokens of an answer beside its picture."""
RATES = {"warm-up": 1e-4, "GRPO": 1e-5}
LARGE = 100_000_000
"""Parameters from which activations are computed twice rather than kept."""
ABOVE, BELOW, ALLOWANCE = 1.15, 2.0, {"cpu": CONTEXT, "cuda": GB // 4}
"""Measured memory may be so many times what `plan` predicts, or a so many-th part of it, and differ by these bytes: of
libraries and of the allocator on a CPU, of workspaces on a GPU."""
PREFLIGHT = ("replayed", "gradient", "learning rate")
"""First words of those of preflight's checks that say nothing of what the model has learned so far."""


@dataclass
class Setup:
    """How the steps are made."""

    subject: Subject
    folder: Path
    """Where they may write."""
    base: int
    """Bytes that the process had before the model was read."""
    bf16: bool
    shape: ModelShape | None = None
    fits: bool | None = None
    """None where nothing was predicted."""
    adapter: LoraConfig | None = None
    """Where all weights do not fit."""

    @property
    def policy(self) -> UnifiedPolicy:
        return self.subject.policy

    @property
    def checkpointing(self) -> bool:
        return sum(parameter.numel() for parameter in self.policy.model.parameters()) >= LARGE

    def arguments(self, stage: str) -> dict[str, Any]:
        """Settings of transformers' trainer."""
        return {
            **{"output_dir": str(self.folder / "run"), "max_steps": 1, "seed": 0, "disable_tqdm": True},
            **{"learning_rate": RATES[stage], "lr_scheduler_type": "constant", "logging_steps": 1},
            **{"save_strategy": "no", "report_to": [], "use_cpu": self.subject.device.type == "cpu"},
            **{"bf16": self.bf16, "activation_checkpointing": self.checkpointing},
        }

    def warmup_run(self) -> Run:
        length = sum(self.policy.processor.length_of(document) for document in documents(self.policy))
        return self._run(rows=1, steps_per_generation=0, num_generations=1, prompt=0, completion=length)

    def grpo_run(self) -> Run:
        prompt, codes = self.policy.processor.length_of(PROMPT), 1 + len(self.policy.vocabulary.image)
        limit = {"micro_batch_tokens": prompt + codes + TEXT_ROOM, "image_share": codes / (codes + TEXT_ROOM)}
        rows = {"rows": GROUP, "steps_per_generation": 1, "num_generations": GROUP}
        return self._run(**rows, prompt=prompt, completion=codes + TEXT_ROOM, **limit)

    def _run(self, **sizes: Any) -> Run:
        rank = self.adapter.rank if self.adapter else None
        shared = {"accumulation": 1, "half": self.bf16, "checkpointing": self.checkpointing}
        return Run(**sizes, **shared, lora_rank=rank, score_chunk=CHUNK)

    def predicted(self, run: Run) -> int:
        """Bytes that `limner plan` says, without its allowance for a CUDA context."""
        assert self.shape is not None
        return predict(self.shape, run).peak - CONTEXT


def documents(policy: UnifiedPolicy) -> list[InterleavedDocument]:
    """A text and a picture to write; and one about a given picture, where an encoder of its own sees those."""
    picture = draw_scene(SCENES[3])
    drawn = ImageSegment(picture, trainable=True, origin="generated")
    words = TextSegment("A small red circle.", trainable=True)
    found = [InterleavedDocument((*PROMPT.segments, words, drawn), "drawn", {"kind": "interleaved"})]
    if policy.vocabulary.features:
        asked = (ImageSegment(picture), TextSegment("What is it?"), words)
        found.append(InterleavedDocument(asked, "seen", {"kind": "understanding"}))
    return found


# ---- what fits ----


def check_plan(setup: Setup) -> Iterator[Finding]:
    """What `plan` predicts for both steps; an adapter is trained where all weights do not fit."""
    policy = setup.policy
    policy.model.config.save_pretrained(setup.folder / "plan")
    setup.shape = model_shape(setup.folder / "plan", policy.vocabulary.image_codes)
    there = available(setup)
    for adapter in (None, LoraConfig(rank=RANK)):
        setup.adapter = adapter
        needed = max(setup.predicted(run) for run in (setup.warmup_run(), setup.grpo_run()))
        if needed <= there or find_spec("peft") is None:
            break
    text = (
        f"{'an adapter' if setup.adapter else 'all weights'}: {gigabytes(needed)} predicted, {gigabytes(there)} there"
    )
    setup.fits = needed <= there
    if setup.fits:
        yield Finding("plan", "ok", text, figures={"predicted": needed, "available": there})
        return
    adapters = "" if find_spec("peft") else "pip install 'limner[peft]' for adapters, "
    yield Finding("plan", "skipped", text, f"{adapters}take a larger device, or --no-training", figures={})


def available(setup: Setup) -> int:
    """Bytes that the model and its training may have in all."""
    if setup.subject.device.type == "cuda":
        return torch.cuda.mem_get_info(setup.subject.device)[0] + torch.cuda.memory_allocated(setup.subject.device)
    with suppress(OSError):
        if found := re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE):
            return 1024 * int(found[1]) + resident() - setup.base
    return 2**62


# ---- the steps ----


def check_warmup(setup: Setup) -> Iterator[Finding]:
    """One optimizer step of `limner warmup` on documents of this page."""
    policy = setup.policy
    with ShardWriter(setup.folder / "shards") as writer:
        for document in documents(policy):
            writer.write(document, "train")
    run = setup.warmup_run()
    rows = PackedRows([SourceConfig(str(setup.folder / "shards"))], policy.processor, length=run.length, seed=0)
    config = WarmupConfig(pack_length=run.length, score_chunk=CHUNK, lora=setup.adapter)
    args = TrainingArguments(**setup.arguments("warm-up"), per_device_train_batch_size=1, ignore_data_skip=True)
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    with_adapter = None
    try:
        trainer = WarmupTrainer(policy, config, _one_gpu(args), lambda _: None, train_dataset=rows)
        with_adapter = trainer.model if setup.adapter else None
        yield from _step(setup, trainer, run, "warm-up")
    finally:
        _as_before(policy, with_adapter, trained)


def check_grpo(setup: Setup) -> Iterator[Finding]:
    """Preflight's checks of the model, and one optimizer step of `limner grpo`."""
    run, policy = setup.grpo_run(), setup.policy
    algorithm = AlgorithmConfig(max_images=1, score_chunk=CHUNK, micro_batch_tokens=run.micro_batch_tokens)
    args = GRPOConfig(
        **setup.arguments("GRPO"),
        num_generations=GROUP,
        per_device_train_batch_size=GROUP,
        steps_per_generation=1,
        max_completion_length=run.completion,
    )
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    with_adapter = None
    try:
        adapter = setup.adapter.adapter(policy.model) if setup.adapter else None
        rows = Dataset.from_dict({"prompt": [pack_prompt(PROMPT)]})
        trainer = FirstStep(policy, InOrder(), algorithm, _one_gpu(args), rows, peft_config=adapter)
        with_adapter = trainer.model if adapter else None
        yield from _step(setup, trainer, run, "GRPO")
    finally:
        _as_before(policy, with_adapter, trained)


class InOrder:
    """The later an answer comes in its group, the better: each has an advantage, whatever it says."""

    name = "in_order"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        outcome: list[float | None] = [number / max(1, len(completions) - 1) for number in range(len(completions))]
        return RewardOutput(outcome, [[None] * len(completion.answer.segments) for completion in completions])


class FirstStep(InterleavedGRPOTrainer):
    """Every other answer of its group begins with a picture."""

    def sample(self, prompts: Sequence[InterleavedDocument], seed: int, numbers: Sequence[int]) -> list[Rollout]:
        drawn: dict[int, Rollout] = {}
        for begins, room in ((True, self.args.max_completion_length), (False, TEXT_ROOM)):
            own = range(0 if begins else 1, len(prompts), 2)
            sampling = Sampling(room, self.args.temperature, max_images=1, begin_with_image=begins, seed=seed)
            with self.accelerator.autocast(), sampling_weights(self.policy):
                found = rollout(self.policy, [prompts[i] for i in own], sampling, [numbers[i] for i in own])
            for number, item in zip(own, found, strict=True):
                begun_by_us(item, sampling)
                drawn[number] = item
        return [drawn[number] for number in range(len(prompts))]


class Watch(TrainerCallback):
    """Of the one step: preflight's checks before it, the largest gradient of every embedding and head, the peak."""

    def __init__(self, trainer: Trainer, policy: UnifiedPolicy):
        self.trainer, self.policy = trainer, policy
        self.preflight: list[Any] = []
        self.gradients: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **_):
        if isinstance(self.trainer, InterleavedGRPOTrainer):
            checks = run_checks(self.trainer)
            self.preflight = [check for check in checks if check.name.startswith(PREFLIGHT)]

    def on_pre_optimizer_step(self, args, state, control, **_):
        named = self.policy.model.named_parameters()
        adapter = {name: (weight, slice(None)) for name, weight in named if weight.requires_grad and "lora_B" in name}
        places = {"last adapter": list(adapter.values())[-1]} if adapter else self.policy.parts()
        for name, (weight, own) in places.items():
            self.gradients[name] = 0.0 if weight.grad is None else weight.grad[own].abs().max().item()


def _step(setup: Setup, trainer: Any, run: Run, stage: str) -> Iterator[Finding]:
    trainer.remove_callback(PrinterCallback)
    watch = Watch(trainer, setup.policy)
    trainer.add_callback(watch)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    before = [some_numbers(weight).clone() for weight in trained]
    forget_peak(setup.subject)
    trainer.train()
    measured = peak(setup)
    moved = [bool((some_numbers(w) != old).any()) for w, old in zip(trained, before, strict=True)]
    numbers = [some_numbers(weight) for weight in trained]
    loss = next((line["loss"] for line in trainer.state.log_history if "loss" in line), float("nan"))
    still = sum(not any_moved for any_moved in moved)
    finite = isfinite(loss) and all(bool(torch.isfinite(part).all()) for part in numbers)
    text = f"loss {loss:.3g}, {len(moved) - still} of {len(moved)} trained weights changed"
    remedy = "nothing was learned: see the gradients below" if finite else "numbers overflow: train it in float32"
    yield judged(f"{stage} step", finite and any(moved), text, remedy, loss=loss, changed=len(moved) - still)
    if watch.preflight:
        for check in watch.preflight:
            yield judged(
                f"{stage} step, {check.name}", check.passed is not False, check.text, "limner preflight says more"
            )
    else:
        yield from _gradients(watch.gradients, stage)
    yield _memory(setup, run, measured, stage)


def _gradients(found: dict[str, float], stage: str) -> Iterator[Finding]:
    for name, size in found.items():
        remedy = "the loss does not reach it: see what is frozen or detached"
        yield judged(f"{stage} step, gradient of the {name}", 0 < size < float("inf"), f"largest {size:.1e}", remedy)


def _memory(setup: Setup, run: Run, measured: int, stage: str) -> Finding:
    name = f"{stage} step, memory"
    if setup.shape is None:
        return Finding(name, "skipped", f"{gigabytes(measured)} measured; no prediction", "see `plan`")
    predicted, allowance = setup.predicted(run), ALLOWANCE.get(setup.subject.device.type, CONTEXT)
    holds = predicted / BELOW - allowance <= measured <= predicted * ABOVE + allowance
    text = f"{gigabytes(measured)} measured, {gigabytes(predicted)} predicted by plan"
    text += f" (within {ABOVE:g} and 1/{BELOW:g} times that, and {gigabytes(allowance)})"
    return judged(
        name,
        holds,
        text,
        "`limner plan` is wrong here: attach the JSON to an issue",
        measured=measured,
        predicted=predicted,
    )


def _one_gpu(args: Any) -> Any:
    """transformers would copy the model to every GPU it sees."""
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _as_before(policy: UnifiedPolicy, adapted: Any, trained: Sequence[Tensor]) -> None:
    """Without adapter, gradients and optimizer; the weights stay as the step left them."""
    if adapted is not None:
        adapted.unload()
    policy.model.zero_grad(set_to_none=True)
    for weight in trained:
        weight.requires_grad_(True)
    policy.model.eval()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- memory ----


def forget_peak(subject: Subject) -> None:
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
        return
    with suppress(OSError):  # Linux alone knows it; elsewhere the peak is that since the start
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak(setup: Setup) -> int:
    """Largest number of bytes since then of model and training: without libraries, without the image tokenizer."""
    tokenizer: Any = setup.policy.processor.image_tokenizer
    beside = sum(p.numel() * p.element_size() for p in getattr(tokenizer, "parameters", tuple)())
    if setup.subject.device.type == "cuda":
        return torch.cuda.max_memory_allocated(setup.subject.device) - setup.base - beside
    most = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return most - setup.base - beside


def memory_in_use(device: torch.device) -> int:
    """Bytes, as `peak` counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()


def resident() -> int:
    """Bytes of this process in memory."""
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    with suppress(OSError):
        found = re.search(
            rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii", "replace"), re.MULTILINE
        )
        return 1024 * int(found[1]) if found else 0
    return 0


def gigabytes(size: float) -> str:
    return f"{size / GB:.2f} GB"
