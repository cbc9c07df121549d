"""Extended GRPO as a thin subclass of TRL's GRPOTrainer: the only file that imports trl.

TRL keeps the loop: prompt sampler, rollout buffer, accelerate, DeepSpeed, FSDP, PEFT, logging, Hub. Two of its methods
are replaced: `_generate_and_score_completions` (documents instead of texts) and `_compute_loss` (our pure losses).
TRL's old-policy and reference forwards are not used: old log-probs are always the sampler's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ..data.mixture import PackedRows, SourceConfig
from ..data.prompts import unpack_prompt
from ..models.errors import InputError
from ..models.generation import Sampling
from ..models.policy import UnifiedPolicy
from ..models.sequence import TokenBatch, collate
from ..rewards.base import Reward, RewardOutput
from .advantages import best_of_group, dead_groups, outcome_advantages, process_advantages, segment_advantages
from .checkpointing import WholeCheckpoints
from .losses import NORMALISATIONS, Counts, Normalisation, imitation_loss, policy_loss, token_weights
from .rollout import Rollout, rollout, score

BATCH_FIELDS = ("ids_BT", "positions_BT", "sequence_BT", "trainable_BT", "images_before_BT")
UNREAD = (
    *("beta", "epsilon", "epsilon_high", "delta", "loss_type", "importance_sampling_level", "entropy_coef"),
    *("mask_truncated_completions", "scale_rewards", "reward_weights", "repetition_penalty", "use_vllm"),
)
"""Settings of TRL that our loss, rewards and sampler do not read."""


@dataclass
class PerModality:
    text: float
    image: float

    @property
    def pair(self) -> tuple[float, float]:
        return self.text, self.image


@dataclass
class ReplayConfig:
    sources: list[SourceConfig] = field(default_factory=list)
    """Shard folders of warm-up documents to keep learning from; none for no replay."""
    weight: float = 0.3
    """Weight of their cross-entropy beside the policy loss."""
    rows: int = 2
    """Packed rows a micro-batch."""
    pack_length: int = 256


@dataclass
class AlgorithmConfig:
    """What extended GRPO adds to TRL's GRPOConfig. TRL's own `beta`, `epsilon` and others are refused, not ignored."""

    objective: Literal["grpo", "rejection"] = "grpo"
    """`rejection`: supervised learning of the best completion of each group, the usual baseline."""
    outcome_weight: float = 1.0
    process_weight: float = 0.0
    process_pooled: bool = False
    """Normalise segment rewards over the whole group instead of by segment index."""
    process_discount: float = 1.0
    """Weight of each further segment in a token's process advantage; 1 sums all later ones, 0 takes its own alone."""
    process_mean: bool = False
    """Mean of the remaining segment rewards instead of their sum."""
    epsilon: PerModality = field(default_factory=lambda: PerModality(0.2, 0.2))
    epsilon_high: PerModality = field(default_factory=lambda: PerModality(0.2, 0.2))
    beta: PerModality = field(default_factory=lambda: PerModality(0.0, 0.0))
    """Weight of the k3 KL to the policy as it was at the start."""
    normalisation: Normalisation = "modality-balanced"
    max_images: int | None = 8
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    def check(self, args: GRPOConfig) -> None:
        """Raises InputError for settings that contradict each other, or that nothing would read."""
        defaults = {item.name: item.default for item in fields(GRPOConfig)}
        for name in UNREAD:
            if getattr(args, name) != defaults[name]:
                raise InputError(f"{name}: extended GRPO does not read this setting of TRL; see algorithm and rewards")
        if self.normalisation not in NORMALISATIONS:
            raise InputError(f"algorithm.normalisation: {self.normalisation!r} is none of {', '.join(NORMALISATIONS)}")
        if args.top_p != 1.0 or args.top_k or args.min_p:
            raise InputError(
                "top_p, top_k, min_p: truncated sampling is refused in RL; a sampled token could leave the support"
            )
        if args.temperature <= 0:
            raise InputError(
                f"temperature: {args.temperature} leaves nothing to explore; RL samples with a positive one"
            )
        if (args.steps_per_generation or 1) % args.gradient_accumulation_steps:
            raise InputError(
                f"steps_per_generation ({args.steps_per_generation}) must be a multiple of gradient_accumulation_steps "
                f"({args.gradient_accumulation_steps}): the loss is normalised over a whole optimizer step"
            )


class InterleavedGRPOTrainer(WholeCheckpoints, GRPOTrainer):
    loss_is_scaled_for_ga = True
    model: Any
    num_generations: int
    _buffered_inputs: Any

    def __init__(
        self,
        policy: UnifiedPolicy,
        reward: Reward,
        algorithm: AlgorithmConfig,
        args: GRPOConfig,
        train_dataset: Any,
        **kwargs: Any,
    ):
        algorithm.check(args)
        needed = args.generation_batch_size // args.num_generations  # type: ignore[operator]
        if len(train_dataset) < needed:
            raise InputError(
                f"prompts: {len(train_dataset)}, and one batch of rollouts takes {needed}; give more of them, or lower "
                "per_device_train_batch_size or steps_per_generation"
            )
        self.policy, self.reward, self.algorithm = policy, reward, algorithm
        self._counts: list[Counts] = []
        self._loss_sums: dict[str, Tensor] = {}
        self.reference = policy.frozen_copy() if any(algorithm.beta.pair) else None
        super().__init__(
            model=policy.model,
            reward_funcs=[_scored_by_us],
            args=args,
            train_dataset=train_dataset,
            processing_class=policy.processor.tokenizer,
            **kwargs,
        )
        self._replay = self._replay_batches() if algorithm.replay.sources else None

    def _replay_batches(self):
        replay = self.algorithm.replay
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        rows = iter(
            PackedRows(
                replay.sources,
                self.policy.processor,
                length=replay.pack_length,
                seed=self.args.seed + 1,
                rank=rank,
                world_size=ranks,
            )
        )
        seen = self.state.global_step * self.args.gradient_accumulation_steps  # micro-batches before a resume
        rows = islice(rows, seen * replay.rows, None)
        while True:
            yield collate([next(rows) for _ in range(replay.rows)], self.policy.vocabulary.controls)

    # ---- exact resume: the order of the prompts and the half-used rollout buffer ----

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        return _OrderOfEpoch(sampler, lambda: int(self.state.epoch or 0)) if self.shuffle_dataset else sampler

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {"step": self._step, "rollouts": self._buffered_inputs, "ranks": self.args.world_size}
        torch.save(state, Path(output_dir) / f"rollouts_{self.args.process_index}.pth")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint or "") / f"rollouts_{self.args.process_index}.pth"
        if not checkpoint or not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["ranks"] == self.args.world_size:  # else the next step samples anew
            device, rollouts = self.accelerator.device, state["rollouts"]
            self._buffered_inputs = [{name: value.to(device) for name, value in part.items()} for part in rollouts]
            self._step, self._counts = state["step"], self._count(self._buffered_inputs)

    # ---- rollout ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        device, rank = self.accelerator.device, self.accelerator.process_index
        unpacked = {row["prompt"]: unpack_prompt(row["prompt"]) for row in inputs}
        sampling = Sampling(
            max_new_tokens=self.args.max_completion_length,
            temperature=self.args.temperature,
            max_images=self.algorithm.max_images,
            seed=self.args.seed * 1_000_003 + self.state.global_step,
        )
        rollouts = rollout(
            self.policy, [unpacked[row["prompt"]] for row in inputs], sampling, first_row=rank * len(inputs)
        )
        output, outcome_R, segments_RK = score(rollouts, self.reward)
        advantages_R, normalised_RK = self._advantages(outcome_R, segments_RK)

        batch = collate([[item.sequence] for item in rollouts], self.policy.vocabulary.controls)
        shape = batch.ids_BT.shape
        old_logp_BT, advantages_BT = torch.zeros(shape), torch.zeros(shape)
        segment_BT = torch.full(shape, -1)
        for row, item in enumerate(rollouts):
            segment_BT[row, : len(item.sequence)] = item.sequence.segment_T
            old_logp_BT[row, : len(item.sequence)] = item.logp_T
        advantages_BT += self.algorithm.outcome_weight * advantages_R[:, None]
        advantages_BT += self.algorithm.process_weight * process_advantages(
            normalised_RK, segment_BT, self.algorithm.process_discount, self.algorithm.process_mean
        )
        fields = {name: getattr(batch, name).to(device) for name in BATCH_FIELDS}
        tensors = {**fields, "old_logp_BT": old_logp_BT.to(device), "advantages_BT": advantages_BT.to(device)}
        if self.algorithm.objective == "rejection":
            tensors["best_B"] = advantages_R.to(device) > 0
        tensors |= self._frozen_scores(TokenBatch(**fields))
        self._record(rollouts, output)
        return tensors

    def _advantages(self, outcome_R: Tensor, segments_RK: Tensor) -> tuple[Tensor, Tensor]:
        """Outcome [R] and normalised segment rewards [R, K] of this rank's rows; groups may straddle ranks."""
        accelerator, size = self.accelerator, self.num_generations
        local = slice(accelerator.process_index * len(outcome_R), (accelerator.process_index + 1) * len(outcome_R))
        outcome_R = accelerator.gather(outcome_R.to(accelerator.device)).cpu()
        segments_RK = accelerator.pad_across_processes(
            segments_RK.to(accelerator.device), dim=1, pad_index=float("nan")
        )
        segments_RK = accelerator.gather(segments_RK).cpu()
        metrics = self._metrics["train"]
        metrics["reward"].append(outcome_R.nanmean().item())
        metrics["reward_std"].append(outcome_R.view(-1, size).std(1).nanmean().item() if size > 1 else 0.0)
        metrics["dead_groups"].append(dead_groups(outcome_R, size).item())
        if self.algorithm.objective == "rejection":
            return best_of_group(outcome_R, size)[local], torch.zeros_like(segments_RK)[local]
        normalised_RK = segment_advantages(segments_RK, size, pooled=self.algorithm.process_pooled)
        return outcome_advantages(outcome_R, size)[local], normalised_RK[local]

    @torch.no_grad()
    def _frozen_scores(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Log-probs of the reference, in micro-batches."""
        if self.reference is None:
            return {}
        self.reference.model.to(batch.ids_BT.device)  # type: ignore[arg-type]
        parts = [self._score(self.reference.model, part, self.reference)[0] for part in self._micro_batches(batch)]
        return {"ref_logp_BT": torch.cat(parts)}

    def _micro_batches(self, batch: TokenBatch) -> list[TokenBatch]:
        size = self.args.per_device_train_batch_size
        return [batch.rows(slice(start, start + size)) for start in range(0, len(batch.ids_BT), size)]

    def _score(self, model: Any, batch: TokenBatch, policy: UnifiedPolicy | None = None) -> tuple[Tensor, Tensor]:
        return (policy or self.policy).log_probs(model, batch, self.args.temperature, self.algorithm.max_images)

    def _record(self, rollouts: list[Rollout], output: RewardOutput) -> None:
        metrics = self._metrics["train"]
        for name, scores in output.breakdown.items():
            applicable = [value for value in scores if value is not None]
            metrics[f"rewards/{name}"].append(sum(applicable) / len(applicable) if applicable else float("nan"))
        metrics["completions/tokens"].append(sum(int(r.sequence.trainable_T.sum()) for r in rollouts) / len(rollouts))
        metrics["completions/cut"].append(sum(not r.completion.ended for r in rollouts) / len(rollouts))
        metrics["completions/images"].append(sum(len(r.completion.answer.images) for r in rollouts) / len(rollouts))

    # ---- loss ----

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        every = self.args.steps_per_generation
        if self.model.training and self._step % every == 0:
            self._counts = self._count(self._buffered_inputs)
        if self.model.training:
            inputs = {**inputs, "counts": self._counts[self._step % every]}
        return inputs

    def _count(self, micro_batches: list[dict[str, Tensor]]) -> list[Counts]:
        """Denominators for each micro-batch: those of the whole optimizer step it is part of, over all ranks."""
        size, window = self.policy.vocabulary.text_size, self.args.gradient_accumulation_steps
        rows = []
        for inputs in micro_batches:
            counts = Counts.of(_trained(inputs), inputs["ids_BT"] >= size)
            rows.append(torch.stack([counts.text, counts.image, counts.sequences]))
        totals = self.accelerator.reduce(torch.stack(rows), "sum")
        totals = totals.view(-1, window, 3).sum(1).repeat_interleave(window, 0)
        return [Counts(*row) for row in totals]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        algorithm = self.algorithm
        batch = TokenBatch(**{name: inputs[name] for name in BATCH_FIELDS})
        image_BT = batch.ids_BT >= self.policy.vocabulary.text_size
        mask_BT = _trained(inputs)
        logp_BT, entropy_BT = self._score(model, batch)
        weights_BT = token_weights(mask_BT, image_BT, inputs["counts"], algorithm.normalisation)
        loss, sums = policy_loss(
            logp_BT,
            inputs["old_logp_BT"],
            inputs["advantages_BT"],
            mask_BT,
            image_BT,
            weights_BT,
            inputs.get("ref_logp_BT"),
            algorithm.epsilon.pair,
            algorithm.epsilon_high.pair,
            algorithm.beta.pair,
        )
        if algorithm.objective == "rejection":
            loss = imitation_loss(logp_BT, weights_BT)
        gap_BT = (logp_BT - inputs["old_logp_BT"]).detach().abs()
        for name, at in (("text", mask_BT & ~image_BT), ("image", mask_BT & image_BT)):
            sums[f"entropy/{name}"] = entropy_BT.detach()[at].sum()
            if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 and at.any():
                # Before the first update on a rollout batch the two must agree: the sampled policy is the scored one.
                self._metrics["train"][f"replay_gap/{name}"].append(gap_BT[at].max().item())
        self._loss_sums = {name: self._loss_sums.get(name, 0) + value for name, value in sums.items()}
        if self._replay is not None:
            loss = loss + algorithm.replay.weight * self._replay_loss(model) / self.args.gradient_accumulation_steps
        return loss * self.accelerator.num_processes  # gradients are averaged over ranks; the weights count all of them

    def _replay_loss(self, model: Any) -> Tensor:
        assert self._replay is not None
        batch = next(self._replay).to(self.accelerator.device)
        logp_BT, _ = self.policy.log_probs(model, batch)
        tokens = batch.trainable_BT.sum().clamp(min=1)
        loss = -(logp_BT * batch.trainable_BT).sum() / tokens
        self._metrics["train"]["replay/loss"].append(loss.item())
        return loss / self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._loss_sums:
            names = sorted(self._loss_sums)
            values = self.accelerator.reduce(torch.stack([self._loss_sums[name] for name in names]), "sum")
            sums = dict(zip(names, values.tolist(), strict=True))
            for name in names:
                tokens = sums[f"tokens/{name.rsplit('/', 1)[1]}"]
                if not name.startswith("tokens/") and tokens:
                    self._metrics["train"][name].append(sums[name] / tokens)
            self._loss_sums = {}
        super().log(logs, start_time)


class _OrderOfEpoch(Sampler):
    """TRL's prompt sampler, its order a function of seed and epoch.

    Alone it goes on from the generator of the epoch before, which a resumed run has not used.
    """

    def __init__(self, sampler: Any, epoch: Callable[[], int]):
        self.sampler, self.epoch = sampler, epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.sampler.seed + self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def _trained(inputs: dict[str, Tensor]) -> Tensor:
    """Tokens that the loss is about: the sampled ones; in rejection sampling those of the best completions."""
    return inputs["trainable_BT"] & inputs["best_B"][:, None] if "best_B" in inputs else inputs["trainable_BT"]


def _scored_by_us(**_: Any) -> list[float | None]:
    """TRL asks for a reward function; ours runs inside `_generate_and_score_completions`."""
    raise RuntimeError("TRL called a reward function of its own accord; its seam has changed")
