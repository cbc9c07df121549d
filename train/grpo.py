"""Stage II, extended GRPO: one trajectory of text and image tokens, hybrid rewards, process-level rewards.

for prompts:
    G completions each, with their log-probs         train.rollout, models.sampler.generation
    outcome and segment rewards                      rewards.hybrid
    advantages per token                             train.objective.advantages
    clipped loss + KL per modality                   train.objective.losses
    (+ cross-entropy on replayed warm-up rows)

limner grpo --config grpo/tiny
torchrun --nproc-per-node 2 -m limner.train.grpo --config grpo/tiny
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy

from ..configs import parse, resolved
from ..configs.bounds import NoneOrMore, Range
from ..configs.errors import InputError, keeping, run_or_exit
from ..configs.registry import files_in
from ..configs.terminal import say
from ..data.conversion import read_asked
from ..data.prompts import pack_prompt, read_prompts
from ..data.sources.report import LISTED, Problems, Report
from ..eval.run import fingerprint
from ..models.checkpoints.folder import load
from ..models.checkpoints.hub import find_checkpoint
from ..models.documents.document import InterleavedDocument
from ..models.policy import UnifiedPolicy
from ..rewards.build import Part, RewardSettings, build_reward
from .before.difficulty import DifficultyConfig, Rating
from .before.preflight import MOST_DEAD, Preflight, PreflightDone
from .inserter.grpo import InserterTrainer, InsertionConfig, train_inserter
from .inserter.grpo import make_trainer as make_inserter
from .monitoring import AlarmBell, HeldOut, HeldOutConfig, Trajectories, note_failures
from .objective.algorithm import AlgorithmConfig
from .scale.builds import checked
from .scale.lora import LoraConfig, check_rows
from .scale.run_folder import check_model, check_plugins, how_to_go_on, resume_point, save_settings
from .trainer import GRPOConfig, InterleavedGRPOTrainer
from .watch.alarms import Alarms, AlarmsConfig
from .watch.progress import check_trackers, show_progress
from .watch.samples import Samples
from .watch.summary import summary


@dataclass
class RunConfig(RewardSettings):
    model: str = ""
    """Checkpoint to start from: the warm-up's folder, or ORG/NAME on the Hub."""
    prompts: str = ""
    """JSONL file of prompts; `limner list prompt` says its forms."""
    prompt_form: str = ""
    """How its lines are read: one of those, or path/to/file.py:Name; by default as each line's keys say."""
    prompts_source: str = ""
    """Read them by a data source instead (`limner list source`): chat, jsonl, hf, imagefolder, ..., or a file's."""
    prompts_options: dict[str, Any] = field(default_factory=dict)
    """Options of that source: `{images: FOLDER}`."""
    task: Literal["documents", "insertion"] = "documents"
    """What is learnt: to write documents, or to place pictures in finished ones (`docs/insertion.md`)."""
    insertion: InsertionConfig = field(default_factory=InsertionConfig)
    """Of the task insertion alone; it reads `model`, `prompts` and `lora` as well, and no other section."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    flex_attention: bool = False
    """Packed rows by flex attention, which skips what no token sees; on a GPU alone."""
    lora: LoraConfig | None = None
    """Train an adapter instead of the model's own weights; it is merged into the model that the run writes."""
    freeze: list[str] = field(default_factory=list)
    """Submodules that stay as they are, by name, such as `model.vision_model`; an adapter leaves them alone, too."""
    preflight: bool = True
    """Check before step 0 that the run can learn, and stop with the cause where it cannot."""
    preflight_dead_groups: Annotated[float, Range(0, 1)] = MOST_DEAD
    """Share of groups (of segments, for process rewards) without a difference from which it stops; 1: only where all
    are."""
    heldout: HeldOutConfig = field(default_factory=HeldOutConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    trajectories_every: NoneOrMore = 0
    """Rollout batches between two that are saved to `output_dir/trajectories`; 0 saves none."""


def run(
    config: RunConfig,
    args: GRPOConfig,
    policy: UnifiedPolicy | None = None,
    prompts: Sequence[InterleavedDocument] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    rewards: Mapping[str, Part] | None = None,
) -> InterleavedGRPOTrainer:
    """Trains and writes the checkpoint to `output_dir/model`.

    rewards: callables with their weights, by name, beside those of the configuration.
    """
    check_trackers(args)
    resume = resume_point(Path(args.output_dir or ""), args.resume_from_checkpoint)
    check_model(resume, config.model)
    trainer = make_trainer(config, args, policy, prompts, rewards)
    check_plugins(resume, config)
    if config.preflight:
        trainer.add_callback(Preflight(trainer, most_dead=config.preflight_dead_groups))
    for callback in callbacks:
        trainer.add_callback(callback)
    show_progress(trainer, "GRPO")
    if trainer.accelerator.is_main_process:
        save_settings(Path(args.output_dir or ""), resume, config, args)
    trainer.train(resume_from_checkpoint=resume)
    trainer.accelerator.wait_for_everyone()
    trainer.save_policy(Path(args.output_dir or "") / "model")
    return trainer


def make_trainer(
    config: RunConfig,
    args: GRPOConfig,
    policy: UnifiedPolicy | None = None,
    prompts: Sequence[InterleavedDocument] | None = None,
    rewards: Mapping[str, Part] | None = None,
) -> InterleavedGRPOTrainer:
    """The trainer of a run, with all that watches it."""
    if config.task != "documents":
        raise InputError(f"task: {config.task} has a trainer of its own; start it by `limner grpo`")
    if config.insertion != InsertionConfig():
        raise InputError("insertion: only the task insertion reads this section; give --task insertion")
    if policy is None and not config.model:
        raise InputError("model: missing; name the checkpoint to start from (--model DIR)")
    if prompts is None:
        if not config.prompts:
            raise InputError("prompts: missing; name the JSONL file of prompts (--prompts FILE)")
        least = args.generation_batch_size // args.num_generations  # type: ignore[operator]
        prompts = _prompts(config, config.prompts, least)
    reward = build_reward(config, rewards)
    if args.per_device_train_batch_size * args.steps_per_generation % args.num_generations:  # type: ignore[operator]
        reward.over_ranks = gather_object  # groups straddle processes
    policy = policy or load(find_checkpoint(config.model))
    policy.freeze(config.freeze)
    if config.flex_attention:
        policy.pack_by_flex_attention()
    check_rows(policy, adapted=config.lora is not None)
    dataset = Dataset.from_dict({"prompt": [pack_prompt(prompt) for prompt in prompts]})
    adapter = config.lora.adapter(policy.model) if config.lora else None
    trainer = InterleavedGRPOTrainer(policy, reward, config.algorithm, args, dataset, peft_config=adapter)
    if config.heldout.prompts:
        heldout = _prompts(config, config.heldout.prompts)[: config.heldout.limit]
        trainer.add_callback(HeldOut(trainer, heldout, config.heldout.every))
    alarms = Alarms(config.alarms, config.algorithm.trained_modalities)
    trainer.add_callback(AlarmBell(alarms))
    trainer.stateful |= {"alarms": alarms, "rewards": reward}
    trainer.watchers.append(lambda _: note_failures(trainer, reward))
    if config.trajectories_every:
        folder = Path(args.output_dir or "") / "trajectories"
        trainer.watchers.append(Trajectories(folder, config.trajectories_every, trainer))
    samples = Samples(trainer)
    if samples.trackers:
        trainer.watchers.append(samples)
        trainer.add_callback(samples)
    return trainer


def _prompts(config: RunConfig, path: str, least: int = 1) -> list[InterleavedDocument]:
    """The prompts of a file: by the source that the settings name, or a line each."""
    if not config.prompts_source:
        if config.prompts_options:
            raise InputError("prompts_options: nothing reads them; name the source (--prompts_source chat)")
        return read_prompts(Path(path), least, config.prompt_form)
    if config.prompt_form:
        raise InputError("prompts_source and prompt_form: both say how prompts are read; give one")
    report = Report(problems=Problems(LISTED))
    asked = read_asked(Path(path), config.prompts_source, config.prompts_options, report, least)
    if report.problems and PartialState().is_main_process:
        say(f"{path}: {len(asked)} prompts; left out: {report.rules()['left out']}, such as {report.problems[0]}")
    return asked


def place(config: RunConfig, args: GRPOConfig) -> InserterTrainer:
    """Trains an inserter (`train.inserter.grpo`). Raises InputError for sections that only the other task reads."""
    kept = ("model", "prompts", "task", "insertion", "lora")
    default = RunConfig()
    for name in (item.name for item in fields(config) if item.name not in kept):
        if getattr(config, name) != getattr(default, name):
            raise InputError(f"{name}: the task insertion does not read it; see docs/insertion.md")
    if missing := [name for name in ("model", "prompts") if not getattr(config, name)]:
        raise InputError(f"{missing[0]}: missing; give --{missing[0]}")
    check_trackers(args)
    resume = resume_point(Path(args.output_dir or ""), args.resume_from_checkpoint)
    check_model(resume, config.model)
    trainer = make_inserter(config.insertion, args, config.model, config.prompts, config.lora)
    if trainer.accelerator.is_main_process:
        save_settings(Path(args.output_dir or ""), resume, config, args)
    train_inserter(trainer, resume)
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse((RunConfig, GRPOConfig), argv, prog="limner grpo", section="grpo")
    with keeping(lambda: how_to_go_on(args.output_dir)):
        trainer = place(config, args) if config.task == "insertion" else run(config, args)
    if trainer.accelerator.is_main_process:
        say(_ending(config, Path(args.output_dir or ""), trainer.state))
    trainer.accelerator.end_training()


def _ending(config: RunConfig, folder: Path, state: TrainerState) -> str:
    """What has become of the rewards, what was written and where, and how to look at it."""
    model, page = folder / "model", folder / "trajectories.html"
    following = f"limner generate --model {model} --prompt TEXT --out answer.html"
    if config.task == "insertion":
        following = f"limner answer INDEX QUESTION --strategy inserter --model {model} --out answer.html"
    looked_at = f"limner trajectories {folder} --out {page}"
    if not (folder / "trajectories").is_dir():
        looked_at = "--trajectories_every N keeps it, for `limner trajectories`; this run kept none"
    return "\n".join([
        summary(state.log_history, config.alarms.baseline + config.alarms.window),
        f"what was sampled: {looked_at}",
        f"wrote {model} after {state.global_step} steps; next: {following}",
    ])  # fmt: skip


def preflight(argv: Sequence[str] | None = None) -> None:
    """`limner preflight`: the checks alone, of the run that the same flags would start."""
    config, args = parse((RunConfig, GRPOConfig), argv, prog="limner preflight", section="grpo")
    _before_step_0(config, args, lambda trainer: Preflight(trainer, True, config.preflight_dead_groups))


def rate_prompts(argv: Sequence[str] | None = None) -> None:
    """`limner rate-prompts`: the prompts of the run that the same flags would start, by how hard they are."""
    config, args, bounds = parse((RunConfig, GRPOConfig, DifficultyConfig), argv, "limner rate-prompts", section="grpo")
    _before_step_0(config, args, lambda trainer: Rating(trainer, bounds, rated_by(config, args)))


def rated_by(config: RunConfig, args: GRPOConfig) -> dict[str, Any]:
    """All that the score of a prompt's answers depends on, but for the prompt."""
    values, _ = resolved(config, args)
    names = ("rewards", "endpoints", "encoders", "num_generations", "temperature", "max_completion_length", "seed")
    return {
        "model": {"name": config.model, "weights": fingerprint(find_checkpoint(config.model))},
        **{name: values[name] for name in names},
        **{name: values["algorithm"][name] for name in ("max_images", "guidance")},
        "files": {file.path.name: file.sha256 for file in files_in(config.rewards)},
    }


def _before_step_0(
    config: RunConfig, args: GRPOConfig, work: Callable[[InterleavedGRPOTrainer], TrainerCallback]
) -> None:
    """Prepares a run and does this alone, which ends it (`PreflightDone`)."""
    args.report_to, args.save_strategy = [], IntervalStrategy.NO
    with _no_new_folder(Path(args.output_dir or ".")):
        trainer = make_trainer(config, args)
        trainer.callback_handler.callbacks = [work(trainer)]
        with contextlib.suppress(PreflightDone):
            trainer.train()
        trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


@contextlib.contextmanager
def _no_new_folder(directory: Path) -> Iterator[None]:
    """For checks alone: what was made of the run's folder, which all processes must see, goes again if it is empty."""
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # another process was faster, or something stands in it
                folder.rmdir()


if __name__ == "__main__":
    run_or_exit(checked(main))
