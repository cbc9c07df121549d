"""Bounds of numbers, which type hints carry: `batch_size: OneOrMore = 16`. Infinity and NaN are never inside."""

import argparse
import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, NamedTuple, get_args


class Range(NamedTuple):
    """Bounds of a number, in its type hint: `Annotated[int, Range(1)]`."""

    least: float = -math.inf
    most: float = math.inf

    def holds(self, number: float) -> bool:
        return math.isfinite(number) and self.least <= number <= self.most

    @property
    def words(self) -> str:
        """What is expected."""
        return str(self) if math.isinf(self.most) else f"a number {self}"

    def __str__(self) -> str:
        least, most = map(_shown, self)
        if math.isinf(self.most):
            return f"at least {least}" if math.isfinite(self.least) else "a finite number"
        return f"{least} to {most}" if math.isfinite(self.least) else f"at most {most}"


MILLION, TRILLION = 10**6, 10**12
LARGEST = Range(-(2**63), 2**63 - 1)
"""Of whole numbers without bounds of their own: what a tensor can hold."""

OneOrMore = Annotated[int, Range(1, MILLION)]
NoneOrMore = Annotated[int, Range(0, MILLION)]
Limit = Annotated[int, Range(0, TRILLION)]
"""The first so many of what there is."""
Hits = Annotated[int, Range(1, 1000)]
"""Parts of an index found for one question."""
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, MILLION)]
Factor = Annotated[float, Range(-MILLION, MILLION)]
Seconds = Annotated[float, Range(0, 10 * MILLION)]
Above0 = Annotated[float, Range(1e-12, MILLION)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""NumPy's."""
Temperature = Annotated[float, Range(0, 1000)]
Guidance = Annotated[float, Range(0, 1000)]
TopP = Annotated[float, Range(1e-9, 1)]
Width = Annotated[int, Range(1, 131_072)]
"""Of a hidden state."""
Layers = Annotated[int, Range(1, 1024)]
Port = Annotated[int, Range(0, 65_535)]
"""0 takes a free one."""
Side = Annotated[int, Range(0, 16_384)]
"""Pixels."""

STEPS = Range(0, TRILLION)
THEIRS: dict[str, Range] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Range(1, MILLION)),
    **dict.fromkeys(("gradient_accumulation_steps", "steps_per_generation", "num_iterations"), Range(1, MILLION)),
    **dict.fromkeys(("num_generations", "num_generations_eval", "generation_batch_size"), Range(1, MILLION)),
    **dict.fromkeys(("max_completion_length", "pad_to_multiple_of", "ref_model_sync_steps"), Range(1, MILLION)),
    **dict.fromkeys(("torch_empty_cache_steps", "eval_accumulation_steps", "ddp_bucket_cap_mb"), Range(1, MILLION)),
    **dict.fromkeys(("save_total_limit", "dataloader_prefetch_factor"), Range(1, MILLION)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "warmup_steps", "eval_delay"), STEPS),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "min_p", "top_p"), Range(0, 1)),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon"), Range(0, 1000)),
    **dict.fromkeys(("max_grad_norm", "neftune_noise_alpha", "router_aux_loss_coef"), Range(0, MILLION)),
    **dict.fromkeys(("seed", "data_seed"), Range(0, 2**32 - 1)),
    **dict.fromkeys(("temperature", "repetition_penalty"), Range(0, 1000)),
    "num_train_epochs": Range(0, MILLION),
    "max_steps": Range(-1, TRILLION),
    "top_k": Range(0, MILLION),
    "dataloader_num_workers": Range(0, 1024),
    "ddp_timeout": Range(1, 10 * MILLION),
    "local_rank": Range(-1, MILLION),
}
"""Of settings of transformers' TrainingArguments and TRL's GRPOConfig, which check few of theirs. The others of TRL
are refused altogether where their value is not the default (`train.objective.algorithm`)."""
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Of theirs: a name of before, which is still read, and the one of now."""
REMEDIES = {
    "support bf16/gpu": "bf16 is asked for, and there is no GPU for it: give --use_cpu true --bf16 false",
    "must be divisible by num_generations": "num_generations must divide the answers of a batch, which are "
    "per_device_train_batch_size x steps_per_generation x processes: change one of them",
}
"""What their checks say of a machine or in names that nobody typed, and what to do here."""
OF_EVALUATION = (
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval"),
)
OF_SAVING = ("save_total_limit", "save_only_model", "push_to_hub")
OF_PUSHING = ("hub_model_id", "hub_strategy", "hub_revision", "hub_private_repo", "hub_always_push")


def without_effect(values: Mapping[str, Any], asked: Collection[str]) -> str:
    """Why one of their settings would have no effect, and what to do, beginning with its name; empty where all have.

    values: all of a training run; asked: names of those that somebody gave."""
    strategy, pushes = str(getattr(values["save_strategy"], "value", values["save_strategy"])), values["push_to_hub"]
    no_best = (
        "transformers evaluates nothing while limner trains, so no checkpoint is the best; leave it out, and score "
        "checkpoints by `limner eval` (in GRPO heldout.prompts gives a held-out score as well)"
    )
    if strategy == "best":
        return f"save_strategy: {no_best}"
    for name in (name for name in OF_EVALUATION if name in asked):
        return f"{name}: {no_best}"
    for name in (name for name in ("save_steps", *OF_SAVING) if name in asked):
        if strategy == "no" or (name == "save_steps" and strategy != "steps"):
            return (
                f"{name}: has no effect, for save_strategy is {strategy}; give --save_strategy steps, or leave it out"
            )
    if strategy == "steps" and values["save_steps"] == 0:
        return "save_steps: 0 is no number of steps between two checkpoints; give one, or --save_strategy no"
    for name in (name for name in OF_PUSHING if name in asked and not pushes):
        return f"{name}: has no effect without push_to_hub; give --push_to_hub true, or leave it out"
    return ""


def bounded(hint: Any) -> Callable[[str], Any]:
    """A `type=` for argparse: a number within bounds, which its error states. hint: one of those above."""
    kind, bounds = get_args(hint)

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = math.nan
        if not bounds.holds(value):
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"expected a {whole}number {bounds}, got {reprlib.repr(text)}")
        return value

    return read


def _shown(bound: float) -> str:
    return f"{int(bound):,}" if math.isfinite(bound) and bound == int(bound) else f"{bound:g}"
