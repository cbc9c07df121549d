"""Will a run fit on its GPUs, and which setting to change if not. No weights are read, no GPU is needed.

limner plan --config grpo/tiny --model DIR --gpus 8 --memory 80
limner plan --stage warmup --config warmup/documents --model DIR --gpus 8 --memory 80

`model` is a checkpoint, any folder with a transformers `config.json`, or a name on the Hub, of which the settings alone
are fetched. The prediction is `memory.predict`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, TrainingArguments

from ...configs import parse
from ...configs.bounds import Above0, OneOrMore, Share
from ...configs.errors import InputError, reading, run_or_exit
from ...configs.json_text import parse_json
from ...configs.schema import check_ranges
from ...configs.terminal import say
from ...models.attention import sees_all_before
from ...models.checkpoints.convert import family_of_type
from ...models.checkpoints.folder import IMAGE_TOKENIZER, SETTINGS_FILE
from ...models.checkpoints.hub import find_settings
from ...models.policy import freeze
from ..grpo import GRPOConfig, RunConfig
from ..scale.lora import linear_layers
from ..warmup import WarmupConfig
from .memory import ModelShape, Plan, Run, Strategy, predict

GB = 2**30
"""As nvidia-smi counts."""
WORTH = GB // 10
"""A change that saves less alone is not worth a line."""
CODEBOOKS = ("num_vq_embeddings", "num_embeddings", "codebook_size")
"""What image tokenizers call the size of their codebook: diffusers' VQModel, Chameleon and Janus, Emu3."""
CHUNK, RANK = 1024, 16
"""What advice proposes for `algorithm.score_chunk` and for LoRA."""


@dataclass
class _AsIfThere:
    """A run's own arguments, read as if `gpus` processes ran: this machine may have none of the GPUs."""

    gpus: OneOrMore = 1
    """GPUs of the run, all nodes together."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus: {self.gpus} is no number of GPUs")
        self.use_cpu = True  # else transformers refuses bf16 where there is no GPU
        super().__post_init__()  # type: ignore[misc]

    @property
    def world_size(self) -> int:
        return self.gpus


@dataclass
class PlannedArguments(_AsIfThere, GRPOConfig):
    pass


@dataclass
class PlannedWarmup(_AsIfThere, TrainingArguments):
    pass


@dataclass
class PlanConfig:
    stage: Literal["grpo", "warmup"] = "grpo"
    """Which command's run, and section of a file of configs/model/."""
    memory: Above0 = 80.0
    """GB of one GPU."""
    strategy: Strategy = "ddp"
    """How the launcher shares the model: ddp, DeepSpeed's zero2 and zero3, or fsdp."""
    prompt_length: OneOrMore = 512
    """Tokens of a long prompt, its pictures included."""
    image_share: Share = 0.0
    """Share of a long completion that is image codes; with 0 every token costs what the dearest does: the safe side."""
    image_codes: OneOrMore | None = None
    """Codes of the image tokenizer, of all depths; read from `model` where that is a checkpoint of ours."""

    def __post_init__(self) -> None:
        check_ranges(self)


# ---- what is planned ----


def model_shape(
    model: str | Path,
    image_codes: int | None = None,
    frozen: Sequence[str] = (),
    targets: str | list[str] = "all-linear",
) -> ModelShape:
    """Counts a model built on the meta device; `targets` are the layers of an adapter.

    Raises InputError where there is no configuration to build it from, or where it lacks what they or `frozen` name.
    """
    path = Path(model) if Path(model).is_file() else find_settings(model)
    folder = path.parent if path.is_file() else path
    if not path.is_file() and not (path / "config.json").is_file():
        raise InputError(f"model: {model}: no config.json there; name a checkpoint folder or a model's config.json")
    if image_codes is None:
        image_codes = _codes_of_tokenizer(folder / IMAGE_TOKENIZER / "config.json")
    with reading(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        chosen = family_of_type(config.model_type, config.architectures or ())
        image_codes = image_codes or chosen.image_choices(config)
        network = _on_meta(chosen.model_class, config)
        freeze(network, (*chosen.never_trained, *frozen))
        text, head = config.get_text_config(), network.get_output_embeddings()
        embedding = network.get_input_embeddings().weight
        linear = [module.weight for module in linear_layers(network, targets).values()]
        shape = ModelShape(
            parameters=sum(parameter.numel() for parameter in network.parameters()),  # a tied one comes up once
            trainable=sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
            embedding=embedding.numel(),
            head=0 if head.weight is embedding else head.weight.numel(),
            layer=sum(parameter.numel() for parameter in network.get_decoder().layers[0].parameters()),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=head.weight.shape[0] + (image_codes or 0) * chosen.own_image_head,
            image_codes=image_codes or 0,
            linear=sum(weight.numel() for weight in linear),
            linear_sides=sum(sum(weight.shape) for weight in linear),
            stored=embedding.element_size(),
            windowed=not sees_all_before(text),
            new_rows=_has_new_rows(folder / SETTINGS_FILE),
        )
    if shape.image_codes >= shape.vocabulary:
        raise InputError(f"image_codes: {image_codes}, but {model} has {shape.vocabulary} ids in all")
    return shape


def _on_meta(model_class: Any, config: Any) -> Any:
    """The model without weights, in the dtype that its configuration names."""
    build = getattr(model_class, "from_config", None) or model_class._from_config
    with torch.device("meta"):
        network = build(config)
    return network.to(config.dtype) if config.dtype else network


def _has_new_rows(path: Path) -> bool:
    return path.is_file() and bool(parse_json(path.read_text(encoding="utf-8")).get("new_rows"))


def _codes_of_tokenizer(path: Path) -> int | None:
    if not path.is_file():
        return None
    with reading(path):
        settings = parse_json(path.read_text(encoding="utf-8"))
        return next((int(settings[name]) for name in CODEBOOKS if name in settings), None)


def settings(config: RunConfig, args: PlannedArguments, plan: PlanConfig) -> Run:
    algorithm, replay = config.algorithm, config.algorithm.replayed
    assert args.steps_per_generation and args.max_completion_length and args.num_generations
    return Run(
        rows=args.per_device_train_batch_size,
        steps_per_generation=args.steps_per_generation,
        accumulation=args.gradient_accumulation_steps,
        num_generations=args.num_generations,
        prompt=plan.prompt_length,
        completion=args.max_completion_length,
        iterations=args.num_iterations,
        gpus=args.gpus,
        strategy=plan.strategy,
        half=bool(args.bf16 or args.fp16),
        checkpointing=bool(args.activation_checkpointing),
        lora_rank=config.lora.rank if config.lora else None,
        reference=algorithm.has_reference,
        guided=algorithm.guidance != 1.0,
        rollout_rows=algorithm.rollout_rows,
        fixed_steps=algorithm.rollout_steps != "plain",
        score_chunk=algorithm.score_chunk,
        micro_batch_tokens=algorithm.micro_batch_tokens,
        image_share=plan.image_share,
        replay_rows=replay.rows if replay else 0,
        replay_length=replay.pack_length if replay else 0,
    )


def warmup_settings(config: WarmupConfig, args: PlannedWarmup, plan: PlanConfig) -> Run:
    return Run(
        rows=args.per_device_train_batch_size,
        steps_per_generation=0,
        accumulation=args.gradient_accumulation_steps,
        num_generations=1,
        prompt=0,
        completion=config.pack_length,
        gpus=args.gpus,
        strategy=plan.strategy,
        half=bool(args.bf16 or args.fp16),
        checkpointing=bool(args.activation_checkpointing),
        lora_rank=config.lora.rank if config.lora else None,
        score_chunk=config.score_chunk,
        image_share=plan.image_share,
    )


# ---- advice: each change gives its options, the mildest first ----

Option = tuple[str, Run]
Change = Callable[[Run], list[Option]]


def _score_chunk(run: Run) -> list[Option]:
    if run.score_chunk is not None and run.score_chunk <= CHUNK:
        return []
    section = "algorithm." if run.rollouts else ""
    return [(f"{section}score_chunk {CHUNK}", replace(run, score_chunk=CHUNK))]


def _rollout_rows(run: Run) -> list[Option]:
    """Halves of what is sampled at a time."""
    options, rows = [], run.sampled_rows // 2
    while rows >= 1:
        options.append((f"algorithm.rollout_rows {rows}", replace(run, rollout_rows=rows)))
        rows //= 2
    return options


def _checkpointing(run: Run) -> list[Option]:
    return [] if run.checkpointing else [("activation_checkpointing true", replace(run, checkpointing=True))]


def _micro_batch(run: Run) -> list[Option]:
    """Fewer rows at a time, as many in a generation batch and in an optimizer step."""
    options = []
    for rows in (n for n in range(run.rows - 1, 0, -1) if run.rows % n == 0):
        times = run.rows // rows
        steps, accumulation = run.steps_per_generation * times, run.accumulation * times
        text = f"per_device_train_batch_size {rows}, gradient_accumulation_steps {accumulation}"
        text += f", steps_per_generation {steps}" if run.rollouts else ""
        options.append((text, replace(run, rows=rows, steps_per_generation=steps, accumulation=accumulation)))
    return options


def _micro_batch_tokens(run: Run) -> list[Option]:
    if run.part_rows == 1 or not run.rollouts:
        return []
    text = f"algorithm.micro_batch_tokens {run.length} (a long row at a time)"
    return [(text, replace(run, micro_batch_tokens=run.length))]


def _sharding(run: Run) -> list[Option]:
    harder: dict[Strategy, tuple[Strategy, ...]] = {"ddp": ("zero2", "zero3"), "zero2": ("zero3",)}
    if run.gpus == 1:
        return []
    return [(f"{name} instead of {run.strategy}", replace(run, strategy=name)) for name in harder.get(run.strategy, ())]


def _lora(run: Run) -> list[Option]:
    if run.lora_rank is not None:
        return []
    also = ", which is its own KL reference" if run.reference else ""
    return [(f"LoRA of rank {RANK}{also}", replace(run, lora_rank=RANK))]


def _no_reference(run: Run) -> list[Option]:
    if not run.reference or run.lora_rank is not None:
        return []
    return [("algorithm.beta {text: 0, image: 0}", replace(run, reference=False))]


def _fewer_rollouts(run: Run) -> list[Option]:
    """Smaller generation batches of whole groups and whole optimizer steps."""
    steps = range(run.steps_per_generation - run.accumulation, 0, -run.accumulation)
    whole = [n for n in steps if run.gpus * run.rows * n % run.num_generations == 0]
    return [(f"steps_per_generation {n}", replace(run, steps_per_generation=n)) for n in whole]


def _smaller_groups(run: Run) -> list[Option]:
    """As many prompts at a time, fewer completions of each."""
    options, size = [], run.num_generations // 2
    while size >= 2 and run.num_generations % size == 0:
        times = run.num_generations // size
        if run.steps_per_generation % times == 0 and run.accumulation % times == 0:
            steps, accumulation = run.steps_per_generation // times, run.accumulation // times
            text = f"num_generations {size}, steps_per_generation {steps}, gradient_accumulation_steps {accumulation}"
            smaller = replace(run, num_generations=size, steps_per_generation=steps, accumulation=accumulation)
            options.append((text, smaller))
        elif run.rows % times == 0:
            text = f"num_generations {size}, per_device_train_batch_size {run.rows // times}"
            options.append((text, replace(run, num_generations=size, rows=run.rows // times)))
        size //= 2
    return options


CHANGES: tuple[Change, ...] = (
    *(_score_chunk, _checkpointing, _micro_batch, _micro_batch_tokens, _rollout_rows, _sharding, _lora),
    *(_no_reference, _fewer_rollouts, _smaller_groups),
)
"""What costs nothing or little time first; then what changes the training."""


def apply(model: ModelShape, run: Run, changes: Sequence[Change], limit: float) -> list[Option]:
    """What the changes lead to one after the other, each by its mildest option that fits, else by its last."""
    steps: list[Option] = []
    for change in changes:
        if options := change(run):
            fitting = (option for option in options if predict(model, option[1]).peak <= limit)
            text, run = next(fitting, options[-1])
            steps.append((text, run))
    return steps


def advise(model: ModelShape, run: Run, limit: float) -> tuple[list[tuple[str, int, int]], list[tuple[str, int]]]:
    """The changes that make a run fit, as (text, bytes saved, bytes left) after those before; others, as (text, saved).

    No change is in the first list that could be left out; if nothing makes it fit, those that come closest are.
    """

    def peak_after(changes: Sequence[Change]) -> int:
        steps = apply(model, run, changes, limit)
        return predict(model, steps[-1][1] if steps else run).peak

    needed: list[Change] = []
    for change in CHANGES:
        if peak_after(needed) > limit:
            needed.append(change)
    target = max(limit, peak_after(needed))
    for change in reversed(needed):
        rest = [other for other in needed if other is not change]
        if peak_after(rest) <= target:
            needed = rest
    before = predict(model, run).peak
    others = []
    for change in (change for change in CHANGES if change not in needed):
        for text, changed in apply(model, run, [change], limit):
            if (saved := before - predict(model, changed).peak) >= WORTH:
                others.append((text, saved))
    path = []
    for text, changed in apply(model, run, needed, limit):
        after = predict(model, changed).peak
        path.append((text, before - after, after))
        before = after
    return path, others


# ---- in words ----


def tokens_text(run: Run) -> str:
    """Sequences, groups and tokens of a generation batch and of an optimizer step, all GPUs together."""
    if not run.rollouts:
        rows = run.gpus * run.rows * run.accumulation
        return f"optimizer step: {rows:,} rows, at most {rows * run.length:,} tokens forward and backward"
    batch, update = run.gpus * run.rollouts, run.gpus * run.rows * run.accumulation
    every, groups = run.steps_per_generation // run.accumulation * run.iterations, batch // run.num_generations
    replayed = run.gpus * run.accumulation * run.replay_rows * run.replay_length
    scored = f", {batch * run.length:,} scored by the reference" if run.reference else ""
    replay = f", and {replayed:,} tokens of replay" if replayed else ""
    return (
        f"rollouts every {every} step{'s' if every > 1 else ''}: {batch:,} sequences in "
        f"{groups:,} group{'s' if groups > 1 else ''} of {run.num_generations}, at most {batch * run.completion:,} "
        f"sampled tokens{scored}\n"
        f"optimizer step: {update:,} sequences, at most {update * run.length:,} tokens forward and backward, "
        f"{update * run.completion:,} of them trained{replay}"
    )


def table(plan: Plan) -> str:
    """GB of each row at each moment."""
    lines = [f"{'GB on each GPU':<28}" + "".join(f"{phase:>11}" for phase in plan.phases)]
    for name, size, phases in plan.rows:
        if size:
            cells = (f"{size / GB:>11.2f}" if phase in phases else f"{'':>11}" for phase in plan.phases)
            lines.append(f"{name:<28}{''.join(cells)}".rstrip())
    return "\n".join([*lines, f"{'total':<28}" + "".join(f"{plan.total(phase) / GB:>11.2f}" for phase in plan.phases)])


def report(model: ModelShape, run: Run, memory: float) -> tuple[str, bool]:
    """The whole answer, and whether the run fits into `memory` GB."""
    plan, limit = predict(model, run), memory * GB
    worst = max(plan.phases, key=plan.total)
    fits = plan.peak <= limit
    head = f"{model.head:,}" if model.head else "tied"
    lines = [
        f"model: {model.parameters:,} parameters ({model.embedding:,} embedding, {head} head, {model.layers} layers of "
        f"{model.layer:,})",
        tokens_text(run),
        f"\n{table(plan)}\n",
        f"{'fits' if fits else 'does not fit'}: {plan.peak / GB:.3g} of {memory:g} GB, the worst moment is: {worst}",
    ]
    if fits:
        return "\n".join(lines), True
    path, others = advise(model, run, limit)
    lines += ["\nChange, in this order:"] if path else []
    for text, saved, left in path:
        lines.append(f"  {text}: saves {saved / GB:.2f} GB, leaves {left / GB:.2f}")
    if not path or path[-1][2] > limit:
        length = "max_completion_length" if run.rollouts else "pack_length"
        lines.append(f"Even so it does not fit: shorten {length}, or take more or larger GPUs")
    lines += ["Others, each alone:"] if others else []
    lines += [f"  {text}: saves {saved / GB:.2f} GB" for text, saved in others]
    return "\n".join(lines), False


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    stage = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    stage.add_argument("--stage", nargs="?")
    warmup = stage.parse_known_args(words)[0].stage == "warmup"  # a wrong word is refused below
    kinds = (WarmupConfig, PlannedWarmup) if warmup else (RunConfig, PlannedArguments)
    section = "warmup" if warmup else "grpo"
    config, args, plan = parse((*kinds, PlanConfig), words, prog="limner plan", section=section)
    if plan.stage != section:
        raise InputError(f"stage: say it as a flag (--stage {plan.stage})")
    if not config.model:
        raise InputError("model: missing; name a checkpoint or a folder with a config.json (--model DIR)")
    if not warmup:
        config.algorithm.check(args)
    targets = config.lora.targets if config.lora else "all-linear"
    shape = model_shape(config.model, plan.image_codes, config.freeze, targets)
    if plan.image_share and not shape.image_codes:
        raise InputError(f"image_share: {config.model} has no image tokenizer; give its codes (--image_codes N)")
    run = warmup_settings(config, args, plan) if warmup else settings(config, args, plan)
    text, fits = report(shape, run, plan.memory)
    say(text)
    if not fits:
        say("next: the same command with one of these settings")
        raise SystemExit(1)
    say(f"next: limner {'warmup' if warmup else 'preflight'} with the same settings")


if __name__ == "__main__":
    run_or_exit(main)
