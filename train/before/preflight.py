"""Preflight: what must hold before step 0, each check with its figures; a run that would learn nothing does not start.

The usual ways to lose days in RL look healthy: a sampler that is not the scored policy, a reward that never varies,
answers that are always cut, a head without a gradient. Each is a check here, made on the run's own first batch.

limner preflight --config grpo/tiny --model DIR --prompts FILE.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from ...configs.errors import InputError
from ...configs.terminal import say
from ...data.prompts import unpack_prompt
from ...models.documents.document import InterleavedDocument
from ..objective.advantages import dead_groups
from ..objective.losses import Counts
from ..rollout import RolloutBatch
from ..scale.precision import has_own_masters, lost_updates, some_numbers
from ..trainer import InterleavedGRPOTrainer
from ..watch.diagnostics import MODALITIES, largest

GAP_BOUNDS = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.03, 0.8), torch.float16: (0.005, 0.2)}
"""(mean, largest) |training - sampler log-prob| of a token, by the dtype of the forward, heads in float32.

Twice and three times the worst of bf16 that was measured, twice that of fp32, and several times that of fp16, on tiny
models of every family and on deeper ones: docs/performance.md. A temperature of 1.3 in one of the two alone has a mean
of 0.1 or more in most of them."""
MOST_CUT = 0.1
"""Share of answers that may be cut by the length limit."""
MOST_DEAD = 0.75
"""Share of groups, and of segments, without a difference from which a run wastes most of its time."""
MOST_PROMPTS = 2000
"""Prompts that each process encodes; of more, so many are spread evenly."""
MOST_LOST = 0.5
"""Share of the trained weights that an update of the size of the learning rate may leave as they are."""
NO_KL = 1e-3
"""Mean k3 KL to a reference that equals the policy, whatever the dtype."""
FEW_GROUPS = 4
"""Below so many groups a share of them says little."""
HOT = 1.6
"""The highest temperature that is advised: answers fall apart before they differ usefully."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool | None
    """None where it could not be looked at."""
    text: str
    """What was seen, and where it failed what to do."""

    def __str__(self) -> str:
        return f"{'-   ' if self.passed is None else 'ok  ' if self.passed else 'FAIL'}  {self.name}: {self.text}"


class Preflight(TrainerCallback):
    """Runs the checks once the model is prepared, before step 0. Raises InputError that names the failed ones."""

    def __init__(self, trainer: InterleavedGRPOTrainer, only: bool = False, most_dead: float = MOST_DEAD):
        self.trainer, self.only, self.most_dead = trainer, only, most_dead

    def on_train_begin(self, args, state, control, model=None, **_):
        if state.global_step == 0:
            check_servers(self.trainer)
            checks = run_checks(self.trainer, self.most_dead)
            if self.trainer.accelerator.is_main_process:
                say("preflight\n" + "\n".join(map(str, checks)), flush=True)
            failed = [check for check in checks if check.passed is False]
            if failed:
                others = f" (failed too: {', '.join(check.name for check in failed[1:])})" if failed[1:] else ""
                raise InputError(f"preflight: {failed[0].name}: {failed[0].text}{others}")
        if self.only:
            if self.trainer.accelerator.is_main_process:
                say("next: limner grpo with the same settings", flush=True)
            raise PreflightDone


def check_servers(trainer: InterleavedGRPOTrainer) -> None:
    """Asks what the rewards will ask. Raises InputError, on all ranks, where one gives no answer: all else is idle."""
    said = []
    for server in getattr(trainer.reward, "servers", ()):
        try:
            server.probe()
        except InputError as error:
            said.append(str(error))
    if faults := [line for line in gather_object([said]) for line in line]:
        raise InputError(f"preflight: a server of the rewards does not answer: {faults[0]}")


class PreflightDone(Exception):
    """Ends a run that was only to be checked."""


def run_checks(trainer: InterleavedGRPOTrainer, most_dead: float = MOST_DEAD) -> list[Check]:
    """All checks, of what all ranks saw together. Neither model, nor metrics, nor generators are changed."""
    model: Any = trainer.model_wrapped
    was_training = model.training
    model.train()
    with torch.random.fork_rng():
        batch = trainer.roll_out(trainer.first_inputs())
        tensors = trainer.rows_of(batch)
        checks = [
            *_prompts(trainer),
            *_documents(trainer, batch),
            *_rewards(trainer, batch, most_dead),
            *_replay(trainer, model, tensors),
            *_gradients(trainer, tensors),
            *_learning_rate(trainer),
            *_replayed_rows(trainer, model),
        ]
    model.train(was_training)
    return checks


def _prompts(trainer: InterleavedGRPOTrainer) -> list[Check]:
    """Those of later batches can be read, too, and leave room for an answer. Raises InputError naming a broken one."""
    rows: Any = trainer.train_dataset
    rank, ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
    every = -(-len(rows) // (MOST_PROMPTS * ranks))
    own = [unpack_prompt(rows[number]["prompt"]) for number in range(rank, len(rows), every * ranks)]
    lengths = [len(trainer.policy.processor.encode(prompt)) for prompt in own]
    (read,) = _over_ranks([len(lengths)])
    longest = int(largest(gather_object([{"tokens": max(lengths, default=0)}]))["tokens"])
    most = trainer.policy.longest
    needed = longest + (trainer.args.max_completion_length or 0)
    text = f"{read:.0f} of {len(rows)} encoded, the longest has {longest} tokens"
    if needed > most:
        text += f", with an answer {needed}; the model has {most} positions: lower max_completion_length, or shorten it"
    return [Check("prompts", needed <= most, text), *_needs(trainer, own)]


def _needs(trainer: InterleavedGRPOTrainer, own: Sequence[InterleavedDocument]) -> list[Check]:
    """Some prompts have what a reward says it `needs` of them: keys of their `meta`, such as a reference."""
    checks = []
    for part, _ in getattr(trainer.reward, "parts", ()):
        score = getattr(part, "reward", part)
        for key in getattr(getattr(score, "score", score), "needs", ()):
            lacking = [prompt.id for prompt in own if not prompt.meta.get(key)]
            without, read = _over_ranks([len(lacking), len(own)])
            text = f"{read - without:.0f} of {read:.0f} prompts have `{key}` in their meta"
            if without:
                first = next(iter(gather_object(lacking[:1])))
                text += f"; {part.name} gives the others no score (the first: {first})"
            if without == read:
                text += f'; add {{"meta": {{"{key}": "..."}}}} to the lines of the prompts, or leave {part.name} out'
            checks.append(Check(f"{key} of {part.name}", without < read, text))
    return checks


def _documents(trainer: InterleavedGRPOTrainer, batch: RolloutBatch) -> list[Check]:
    own = [item.completion for item in batch.rollouts]
    pictures = sum(len(answer.answer.images) for answer in own)
    cut, answers, images = _over_ranks([len(own) - sum(answer.ended for answer in own), len(own), pictures])
    text = f"{cut:.0f} of {answers:.0f} answers are cut at {trainer.args.max_completion_length} tokens"
    if cut > MOST_CUT * answers:
        text += "; raise max_completion_length, or warm the model up until it closes its documents"
    checks = [Check("documents close", cut <= MOST_CUT * answers, text)]
    if trainer.algorithm.max_images != 0:
        text = f"{images:.0f} pictures in {answers:.0f} answers"
        text += (
            "" if images else "; the model never opens an image: warm it up on interleaved documents, or max_images: 0"
        )
        checks.append(Check("pictures are drawn", images > 0, text))
    return checks


def _rewards(trainer: InterleavedGRPOTrainer, batch: RolloutBatch, most_dead: float) -> list[Check]:
    """Every component varies inside some group, or is at its best everywhere; what is learned from varies in many."""
    algorithm, components = trainer.algorithm, dict(batch.output.breakdown)
    by_segment = algorithm.objective == "segment-rejection"
    failures = {guard.name: guard.last_reason for guard in getattr(trainer.reward, "guards", ())}
    if algorithm.outcome_weight or algorithm.objective == "rejection":
        components["all together"] = batch.output.outcome
    remedy, checks = _remedy(trainer, batch), []
    for name, scores in components.items():
        values = torch.tensor([float("nan") if s is None else s for s in scores], device=trainer.accelerator.device)
        values = trainer.accelerator.gather(values).float().cpu()
        known = values[~values.isnan()]
        dead = dead_groups(values, trainer.num_generations, algorithm.spread_floor).item()
        best = len(known) > 0 and bool((known > 0.999).all())
        whole = name == "all together"
        if not len(known) and (failure := failures.get(name)):
            checks.append(Check(f"reward {name}", False, f"failed: {failure}"))
            continue
        if whole and not len(known) and any(check.passed is False for check in checks):
            checks.append(Check(f"reward {name}", None, "not looked at: a part of it failed"))
            continue
        text = f"mean {known.mean():.3f}, {dead:.0%} of groups without a difference" if len(known) else "never applies"
        if len(known) and known.min() == known.max():
            text = f"{known.mean():.3f} for every answer"
        elif len(known) and dead == 1:
            text += f" above {algorithm.spread_floor:g} (spread_floor)"
        passed = dead < (most_dead if whole else 1) or (best and not whole)
        if not whole and len(known) and (known.min() < 0 or known.max() > 1):
            text += f"; scores from {known.min():.4g} to {known.max():.4g}, 0 to 1 is expected: they drown the others"
        if not passed and not len(known):
            text += "; nothing can be learned from it: see what it needs of prompts and answers"
        elif not passed and best:
            text += "; the reward is at its best, and nothing is left to learn: give harder prompts, or ask for more"
        elif not passed:
            text += _wasted(dead, remedy)
            text += "; or give it weight 0" if not whole and len(batch.output.breakdown) > 1 else ""
        checks.append(Check(f"reward {name}", passed, text))
    if by_segment or (algorithm.process_weight and algorithm.objective == "grpo"):
        own_RK = trainer.compared(batch.scores).segments_RK
        segments_RK = batch.scores.segments_RK
        best, scored = (segments_RK > 0.999).sum(), (~segments_RK.isnan()).sum()
        best, scored, different = _over_ranks([best.item(), scored.item(), own_RK.nan_to_num().count_nonzero().item()])
        text = f"{different:.0f} of {scored:.0f} scored segments differ from those they are compared with"
        same = 1 - different / scored if scored else 1.0
        passed = same < most_dead or (0 < scored == best)
        if not passed and not scored:
            text = "no segment has a score; give a reward that scores sentences or pictures"
            text += "" if by_segment else ", or --algorithm.process_weight 0"
        elif not passed:
            text += _wasted(same, remedy)
        checks.append(Check("process rewards", passed, text))
    return checks


def _wasted(share: float, remedy: str) -> str:
    if share == 1:
        return f"; nothing can be learned from it: {remedy}"
    allowed = int(20 * share + 1) / 20
    return f"; most rollouts would be wasted: {remedy}; or allow it: --preflight_dead_groups {allowed:g}"


def _remedy(trainer: InterleavedGRPOTrainer, batch: RolloutBatch) -> str:
    """What to do about scores that do not differ: whether the answers do says which of the two to look at."""
    args, size = trainer.args, trainer.num_generations
    answers = gather_object([hash(tuple(item.sequence.ids_T.tolist())) for item in batch.rollouts])
    groups = [{*answers[start : start + size]} for start in range(0, len(answers), size)]
    differ = sum(len(group) > 1 for group in groups)
    flags = [f"--num_generations {2 * size} (now {size})"]
    if len(groups) < FEW_GROUPS:
        flags.append(f"a larger batch, for these are {len(groups)} groups: --per_device_train_batch_size {4 * size}")
    if args.per_device_train_batch_size * (args.steps_per_generation or 1) % (2 * size):
        flags[0] += f" --steps_per_generation {2 * (args.steps_per_generation or 1)}"
    if args.temperature < HOT:
        flags.insert(0, f"--temperature {min(HOT, 1.3 * args.temperature):.2g} (now {args.temperature:g})")
    if 2 * differ > len(groups):
        return (
            f"answers differ in {differ} of {len(groups)} groups, so let the reward grade finer, give prompts that "
            f"leave open what it looks at, or try {' or '.join(flags)}"
        )
    return (
        f"answers differ in only {differ} of {len(groups)} groups, so try {' or '.join(flags)}, "
        "or give prompts that leave the model a choice"
    )


@torch.no_grad()
def _replay(trainer: InterleavedGRPOTrainer, model: Any, tensors: dict[str, Tensor]) -> list[Check]:
    """The sampled policy is the scored one, and the reference is the policy."""
    gaps: dict[str, list[Tensor]] = {"text": [], "image": []}
    kls: dict[str, list[Tensor]] = {"text": [], "image": []}
    for part in _parts(trainer, tensors):
        tokens = trainer.tokens_of(part)
        logp_BT, _ = trainer.log_probs(model, part)
        for name, of_modality in (("text", ~tokens.image_BT), ("image", tokens.image_BT)):
            at = tokens.trained_BT & of_modality
            gaps[name].append((logp_BT - part["old_logp_BT"])[at].abs())
            if "ref_logp_BT" in part:
                d = (part["ref_logp_BT"] - logp_BT)[at]
                kls[name].append(d.exp() - d - 1)
    dtype = _forward_dtype(trainer)
    checks = []
    for name in ("text", "image"):
        guidance, depth = trainer.algorithm.guidance, trainer.policy.vocabulary.depth
        mean_bound, bound = gap_bounds(dtype, guidance, depth) if name == "image" else gap_bounds(dtype)
        gap = torch.cat(gaps[name])
        kl = torch.cat(kls[name]).sum().item() if kls[name] else 0.0
        count, total, kl = _over_ranks([len(gap), gap.sum().item(), kl])
        most = largest(gather_object([{"gap": gap.max().item()} if len(gap) else {}]))
        if not count:
            continue
        passed = total / count <= mean_bound and most["gap"] <= bound
        text = f"|log ratio| mean {total / count:.1e}, largest {most['gap']:.1e}"
        text += f" (bounds of {str(dtype).removeprefix('torch.')}: {mean_bound:g}, {bound:g})"
        if not passed:
            text += (
                "; the sampled policy is not the scored one: look for dropout, or another temperature, mask or dtype"
            )
        checks.append(Check(f"replayed log-probs, {name}", passed, text))
        if kls[name]:
            text = f"mean KL {kl / count:.1e}"
            text += "" if kl / count <= NO_KL else "; the reference is not the model that the run starts from"
            checks.append(Check(f"reference equals policy, {name}", kl / count <= NO_KL, text))
    return checks


@torch.no_grad()
def _replayed_rows(trainer: InterleavedGRPOTrainer, model: Any) -> list[Check]:
    """The first warm-up rows that are replayed can be read and scored. Raises InputError that names a broken record."""
    replay = trainer.algorithm.replayed
    if replay is None:
        return []
    with trainer.accelerator.autocast():
        loss = trainer.replay_loss(model, next(trainer.replay_batches(replay))).item()
    finite = all(isfinite(value) for value in gather_object([loss]))
    return [Check("replay", finite, f"{loss:.3f} nats a token of the first rows")]


def _gradients(trainer: InterleavedGRPOTrainer, tensors: dict[str, Tensor]) -> list[Check]:
    """The loss of the rollouts that have an advantage reaches every head and embedding."""
    policy, modalities = trainer.policy, trainer.algorithm.trained_modalities
    places = {name: place for name, place in policy.parts().items() if name.split()[0] in modalities}
    if trainer.is_sharded:
        return [Check("gradients", None, "not looked at: the parameters are sharded")]
    frozen = [name for name, (parameter, _) in places.items() if not parameter.requires_grad]
    if trainer.is_adapted:  # what the loss must reach is the adapter
        named = policy.model.named_parameters()
        adapter = {name: (weight, slice(None)) for name, weight in named if weight.requires_grad and "lora_B" in name}
        places = dict(list(adapter.items())[-1:])
    elif frozen:
        return [Check("gradients", False, f"{', '.join(frozen)}: frozen; set requires_grad, or train an adapter")]
    order = tensors["advantages_BT"].abs().sum(1).argsort(descending=True)  # the first ones mostly say it all
    seen, sizes = set(), dict.fromkeys(places, 0.0)
    for part in _parts(trainer, {name: value[order] for name, value in tensors.items()}):
        tokens = trainer.tokens_of(part)
        learned_BT = tokens.trained_BT & (part["advantages_BT"] != 0)
        found = {"text": learned_BT & ~tokens.image_BT, "image": learned_BT & tokens.image_BT}
        seen |= {name for name, at in found.items() if at.any()}
        if learned_BT.any() and not all(sizes.values()):
            sizes = largest([sizes, _gradient_sizes(trainer, part, places)])
    seen, sizes = set().union(*gather_object([seen])), largest(gather_object([sizes]))
    checks = []
    for name, size in sizes.items():
        modality, good = name.split()[0], 0 < size < float("inf")
        text = f"largest {size:.1e}" + ("" if good else "; the loss does not reach it: see what is frozen or detached")
        if modality in set(MODALITIES) - seen:
            good, text = None, f"not looked at: no {modality} token of these rollouts has an advantage"
        checks.append(Check(f"gradient of the {name}", good, text))
    return checks


def _learning_rate(trainer: InterleavedGRPOTrainer) -> list[Check]:
    """An update, which Adam makes about as large as the learning rate, is not lost in the rounding of what it changes.

    The model that is written is rounded to the dtype that it came in; that all steps together show in it is no matter
    of passing: the checkpoints of the run have every digit.
    """
    args, rate = trainer.args, trainer.args.learning_rate
    if "adam" not in str(args.optim).lower():
        return []
    steps = max(trainer.state.max_steps, args.max_steps)
    written_in = min(trainer.stored.values(), key=lambda dtype: dtype.itemsize)
    trained = [weight for weight in trainer.policy.model.parameters() if weight.requires_grad]
    sums = torch.zeros(3)
    for numbers in map(some_numbers, trained):
        kept_in = torch.float32 if has_own_masters(trainer.accelerator) else numbers.dtype
        lost, unseen = lost_updates(numbers, kept_in, rate), lost_updates(numbers, written_in, rate * steps)
        sums += torch.tensor([len(numbers), lost.item(), unseen.item()])
    looked, lost, unseen = _over_ranks(sums.tolist())
    passed = lost <= MOST_LOST * looked
    text = f"an update of {rate:g} is lost in rounding by {lost / max(1, looked):.1%} of the trained weights"
    if not passed:
        text += "; they would stand still: raise learning_rate, or train them in float32"
    elif not trainer.is_adapted and unseen > MOST_LOST * looked:
        text += f", and all {steps} together by {unseen / looked:.0%} of them as they will be written, in "
        text += f"{str(written_in).removeprefix('torch.')}: what is learned will hardly show there, but in checkpoints"
    return [Check("learning rate", passed, text)]


def _gradient_sizes(
    trainer: InterleavedGRPOTrainer, part: dict[str, Tensor], places: Mapping[str, tuple[Tensor, slice]]
) -> dict[str, float]:
    """Largest entry of the gradient at each place."""
    if not places:
        return {}
    with trainer.accelerator.autocast():
        loss = trainer.part_loss(trainer.policy.model, part, Counts.of(trainer.tokens_of(part)))[0]
    found = torch.autograd.grad(loss, [parameter for parameter, _ in places.values()], allow_unused=True)
    return {
        name: 0.0 if gradient is None else gradient[rows].abs().max().item()
        for (name, (_, rows)), gradient in zip(places.items(), found, strict=True)
    }


def _parts(trainer: InterleavedGRPOTrainer, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The rows as the loss takes them; every rank has as many parts."""
    size = trainer.args.per_device_train_batch_size
    starts = range(0, len(tensors["ids_BT"]), size)
    batches = [{name: value[start : start + size] for name, value in tensors.items()} for start in starts]
    return [part for batch in batches for part in trainer.token_parts(batch)]


def _over_ranks(numbers: Sequence[float]) -> list[float]:
    return [sum(column) for column in zip(*gather_object([list(numbers)]), strict=True)]


def gap_bounds(dtype: torch.dtype, guidance: float = 1.0, depth: int = 1) -> tuple[float, float]:
    """`GAP_BOUNDS` under guidance g: scores w + g (c - w) carry the error of c g times, that of w |1 - g| times.

    So does the largest; the mean, over tokens that are mostly sure, grows less: measured, by about the root of it. A
    token of `depth` codes has the sum of their errors, which are as good as independent.
    """
    mean, most = GAP_BOUNDS[dtype]
    growth = depth * (guidance + abs(1 - guidance))
    return growth**0.5 * mean, growth * most


def _forward_dtype(trainer: InterleavedGRPOTrainer) -> torch.dtype:
    if trainer.args.bf16:
        return torch.bfloat16
    return torch.float16 if trainer.args.fp16 else next(trainer.policy.model.parameters()).dtype
