"""Preflight: what must hold before step 0, each check with its figures; a run that would learn nothing does not start.

The usual ways to lose days in RL look healthy: a sampler that is not the scored policy, a reward that never varies,
answers that are always cut, a head without a gradient. Each is a check here, made on the run's own first prompts.

limner preflight --config grpo/tiny --model DIR --prompts FILE.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from ..models.errors import InputError
from .advantages import dead_groups
from .losses import Counts
from .rollout import RolloutBatch
from .trainer import InterleavedGRPOTrainer

GAP_BOUNDS = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.01, 0.5), torch.float16: (0.005, 0.1)}
"""(mean, largest) |training - sampler log-prob| of a token, by the dtype of the forward; see docs/performance.md.

Those of float16 are a guess: nothing was measured with it."""
MOST_CUT = 0.1
"""Share of answers that may be cut by the length limit."""
NO_KL = 1e-3
"""Mean k3 KL to a reference that equals the policy, whatever the dtype."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    text: str
    """What was seen, and where it failed what to do."""

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name}: {self.text}"


class Preflight(TrainerCallback):
    """Runs the checks once the model is prepared, before step 0. Raises InputError that names the failed ones."""

    def __init__(self, trainer: InterleavedGRPOTrainer, only: bool = False):
        self.trainer, self.only = trainer, only

    def on_train_begin(self, args, state, control, model=None, **_):
        if state.global_step == 0:
            checks = run_checks(self.trainer)
            if self.trainer.accelerator.is_main_process:
                print("preflight\n" + "\n".join(map(str, checks)), flush=True)
            failed = [check for check in checks if not check.passed]
            if failed:
                others = f" (failed too: {', '.join(check.name for check in failed[1:])})" if failed[1:] else ""
                raise InputError(f"preflight: {failed[0].name}: {failed[0].text}{others}")
        if self.only:
            raise PreflightDone


class PreflightDone(Exception):
    """Ends a run that was only to be checked."""


def run_checks(trainer: InterleavedGRPOTrainer) -> list[Check]:
    """All checks, agreed on by all ranks. Neither the model, nor the metrics, nor the generators are changed."""
    model: Any = trainer.model_wrapped
    dataset: Any = trainer.train_dataset
    args, rank = trainer.args, trainer.accelerator.process_index
    rows = args.per_device_train_batch_size * args.steps_per_generation
    numbers = [(rank * rows + i) // trainer.num_generations for i in range(rows)]
    inputs = [dataset[number % len(dataset)] for number in numbers]
    was_training = model.training
    model.train()
    with torch.random.fork_rng():
        batch = trainer.roll_out(inputs)
        tensors = trainer.rows_of(batch)
        checks = [
            *_documents(trainer, batch),
            *_rewards(trainer, batch),
            *_replay(trainer, model, tensors),
            *_gradients(trainer, tensors),
        ]
    model.train(was_training)
    everyone = gather_object([checks])
    return [next((c for c in same if not c.passed), same[0]) for same in zip(*everyone, strict=True)]


def _documents(trainer: InterleavedGRPOTrainer, batch: RolloutBatch) -> list[Check]:
    answers = [item.completion for item in batch.rollouts]
    cut = sum(not answer.ended for answer in answers)
    limit = trainer.args.max_completion_length
    text = f"{cut} of {len(answers)} answers are cut at {limit} tokens"
    if cut > MOST_CUT * len(answers):
        text += "; raise max_completion_length, or warm the model up until it closes its documents"
    checks = [Check("documents close", cut <= MOST_CUT * len(answers), text)]
    if trainer.algorithm.max_images != 0:
        images = sum(len(answer.answer.images) for answer in answers)
        text = f"{images} pictures in {len(answers)} answers"
        text += (
            "" if images else "; the model never opens an image: warm it up on interleaved documents, or max_images: 0"
        )
        checks.append(Check("pictures are drawn", images > 0, text))
    return checks


def _rewards(trainer: InterleavedGRPOTrainer, batch: RolloutBatch) -> list[Check]:
    """Every component varies inside some group, or is at its best everywhere."""
    components = {**batch.output.breakdown, "all together": batch.outcome_R.tolist()}
    checks = []
    for name, scores in components.items():
        values = torch.tensor([float("nan") if s is None else s for s in scores], device=trainer.accelerator.device)
        values = trainer.accelerator.gather(values).float().cpu()
        known = values[~values.isnan()]
        dead = dead_groups(values, trainer.num_generations).item()
        best = len(known) > 0 and bool((known > 0.999).all())
        text = f"mean {known.mean():.3f}, {dead:.0%} of groups without a difference" if len(known) else "never applies"
        passed = dead < 1 or (best and name != "all together")
        if not passed:
            text += "; nothing can be learned from it: see the reward and its inputs, or raise num_generations"
        checks.append(Check(f"reward {name}", passed, text))
    return checks


@torch.no_grad()
def _replay(trainer: InterleavedGRPOTrainer, model: Any, tensors: dict[str, Tensor]) -> list[Check]:
    """The sampled policy is the scored one, and the reference is the policy."""
    size = trainer.args.per_device_train_batch_size
    parts = [
        {name: value[start : start + size] for name, value in tensors.items()}
        for start in range(0, len(tensors["ids_BT"]), size)
    ]
    gaps: dict[str, list[Tensor]] = {"text": [], "image": []}
    kls: dict[str, list[Tensor]] = {"text": [], "image": []}
    for part in (piece for whole in parts for piece in trainer.token_parts(whole)):
        tokens = trainer.tokens_of(part)
        logp_BT, _ = trainer.log_probs(model, part)
        for name, of_modality in (("text", ~tokens.image_BT), ("image", tokens.image_BT)):
            at = tokens.trained_BT & of_modality
            gaps[name].append((logp_BT - part["old_logp_BT"])[at].abs())
            if "ref_logp_BT" in part:
                d = (part["ref_logp_BT"] - logp_BT)[at]
                kls[name].append(d.exp() - d - 1)
    dtype = _forward_dtype(trainer)
    mean_bound, bound = GAP_BOUNDS[dtype]
    checks = []
    for name in ("text", "image"):
        gap = torch.cat(gaps[name])
        if not len(gap):
            continue
        mean, largest = gap.mean().item(), gap.max().item()
        passed = mean <= mean_bound and largest <= bound
        text = f"|log ratio| mean {mean:.1e}, largest {largest:.1e}"
        text += f" (bounds of {str(dtype).removeprefix('torch.')}: {mean_bound:g}, {bound:g})"
        if not passed:
            text += (
                "; the sampled policy is not the scored one: look for dropout, or another temperature, mask or dtype"
            )
        checks.append(Check(f"replayed log-probs, {name}", passed, text))
        if kls[name]:
            kl = torch.cat(kls[name]).mean().item()
            text = f"mean KL {kl:.1e}" + (
                "" if kl <= NO_KL else "; the reference is not the model that the run starts from"
            )
            checks.append(Check(f"reference equals policy, {name}", kl <= NO_KL, text))
    return checks


def _gradients(trainer: InterleavedGRPOTrainer, tensors: dict[str, Tensor]) -> list[Check]:
    """The loss of the rollouts that have an advantage reaches every head and embedding."""
    policy = trainer.policy
    weight = {"text": trainer.algorithm.modality_weight.text, "image": trainer.algorithm.modality_weight.image}
    if trainer.algorithm.max_images == 0:
        weight["image"] = 0.0
    parts = {name: part for name, part in policy.parts().items() if weight[name.split()[0]]}
    if trainer.is_sharded:
        return [Check("gradients", True, "not looked at: the parameters are sharded")]
    frozen = [name for name, (parameter, _) in parts.items() if not parameter.requires_grad]
    if trainer.is_adapted:  # what the loss must reach is the adapter
        named = policy.model.named_parameters()
        adapter = {name: (weight, slice(None)) for name, weight in named if weight.requires_grad and "lora_B" in name}
        parts = dict(list(adapter.items())[-1:])
    elif frozen:
        return [Check("gradients", False, f"{', '.join(frozen)}: frozen; set requires_grad, or train an adapter")]
    order = tensors["advantages_BT"].abs().sum(1).argsort(descending=True)
    part = {name: value[order[: trainer.args.per_device_train_batch_size]] for name, value in tensors.items()}
    part = trainer.token_parts(part)[0]
    with trainer.accelerator.autocast():
        loss = trainer.part_loss(policy.model, part, Counts.of(trainer.tokens_of(part)))[0]
    parameters = [parameter for parameter, _ in parts.values()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
    checks = []
    for (name, (_, rows)), gradient in zip(parts.items(), found, strict=True):
        size = 0.0 if gradient is None else gradient[rows].abs().max().item()
        good = 0 < size < float("inf")
        text = f"largest {size:.1e}" + ("" if good else "; the loss does not reach it: see what is frozen or detached")
        checks.append(Check(f"gradient of the {name}", good, text))
    return checks


def _forward_dtype(trainer: InterleavedGRPOTrainer) -> torch.dtype:
    if trainer.args.bf16:
        return torch.bfloat16
    return torch.float16 if trainer.args.fp16 else next(trainer.policy.model.parameters()).dtype
