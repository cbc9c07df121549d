"""Extended GRPO as a thin subclass of TRL's GRPOTrainer: the only file that imports trl.

TRL keeps the loop: prompt sampler, rollout buffer, accelerate, DeepSpeed, FSDP, PEFT, logging, Hub. Two of its methods
are replaced: `_generate_and_score_completions` (documents instead of texts) and `_compute_loss` (our pure losses).
TRL's old-policy and reference forwards are not used: old log-probs are always the sampler's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ..configs.errors import InputError, reading
from ..data.prompts import unpack_prompt
from ..models.documents.document import InterleavedDocument
from ..models.policy import UnifiedPolicy
from ..models.sampler.generation import Sampling
from ..models.tokens.sequence import TokenBatch
from ..rewards.base import Reward
from .objective.algorithm import AlgorithmConfig, ReplayConfig
from .objective.losses import Counts, Tokens, imitation_loss, importance_ratio, policy_loss, token_weights, tokens_of
from .rollout import OrderOfEpoch, ReplayBatches, Rollout, RolloutBatch, RolloutBatches, rollout
from .scale.checkpointing import WholeCheckpoints
from .scale.precision import sampling_weights, save_whole, stored_dtypes, train_in_fp32
from .scale.reference import load_reference, save_reference, sync
from .scale.sharding import add_gradient, check_setup, gathered_copy, is_sharded, use_all_weights
from .watch.diagnostics import MODALITIES, Sums, component_scores, group_sums, largest, means, merged, rollout_sums

BATCH_FIELDS = TokenBatch.__slots__
SAMPLED_WITH = ("temperature", "max_images", "guidance")


class InterleavedGRPOTrainer(RolloutBatches, WholeCheckpoints, GRPOTrainer):
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
        watchers: Sequence[Callable[[RolloutBatch], None]] = (),
        **kwargs: Any,
    ):
        """`watchers` are called with every rollout batch of this process, after it is scored.

        With a `peft_config` only its adapter is trained, and the reference is the model without it.
        """
        algorithm.check(args)
        needed = args.generation_batch_size // args.num_generations  # type: ignore[operator]
        if len(train_dataset) < needed:
            raise InputError(
                f"prompts: {len(train_dataset)}, and one batch of rollouts takes {needed}; give more of them, or lower "
                "per_device_train_batch_size or steps_per_generation"
            )
        self.policy, self.reward, self.algorithm, self.watchers = policy, reward, algorithm, list(watchers)
        self._counts: list[Counts] = []
        self._loss_sums: dict[str, Tensor] = {}
        self._sums: Sums = {}
        self._gaps: dict[str, float] = {}
        self._summed_since = 0
        self.entropy = algorithm.entropy_control()
        self.stateful: dict[str, Any] = {"entropy": self.entropy} if algorithm.entropy_target else {}
        """What else a resumed run goes on from, by name: anything with `state_dict` and `load_state_dict`."""
        adapted = kwargs.get("peft_config") is not None
        if adapted and algorithm.reference_sync:
            raise InputError(
                "algorithm.reference_sync: the reference of an adapter is the model without it; leave it out"
            )
        if adapted:
            torch.manual_seed(args.seed)  # the adapter starts at random
        self.reference = policy.frozen_copy() if algorithm.has_reference and not adapted else None
        self.stored = stored_dtypes(policy.model)
        use_all_weights(args)
        super().__init__(
            model=policy.model,
            reward_funcs=[_scored_by_us],
            args=args,
            train_dataset=train_dataset,
            processing_class=policy.processor.tokenizer,
            **kwargs,
        )
        check_setup(self.accelerator)
        train_in_fp32(policy.model, self.accelerator, adapted)
        policy.processor.image_tokenizer.to(self.accelerator.device)
        self.add_callback(_LogAtSave())
        self._replay = self.replay_batches(algorithm.replayed) if algorithm.replayed else None
        if self._replay is not None:
            self.stateful["replay"] = self._replay

    def replay_batches(self, replay: ReplayConfig) -> ReplayBatches:
        """This rank's warm-up rows, from where the run stands."""
        each, accelerator = self.args.gradient_accumulation_steps, self.accelerator
        rank, ranks, seed = accelerator.process_index, accelerator.num_processes, self.args.seed + 1
        return ReplayBatches(replay, self.policy, seed, rank, ranks, lambda: self.state.global_step * each)

    # ---- exact resume: the order of the prompts and the half-used rollout buffer ----

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        return OrderOfEpoch(sampler, lambda: int(self.state.epoch or 0)) if self.shuffle_dataset else sampler

    def first_inputs(self) -> list[dict[str, Any]]:
        """This rank's rows of the dataset for the first rollout batch of a run."""
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation  # type: ignore[operator]
        start = self.accelerator.process_index * rows
        return [self.train_dataset[number] for number in islice(self._get_train_sampler(), start, start + rows)]  # type: ignore[index]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        extras = {name: item.state_dict() for name, item in self.stateful.items()}
        state = {"step": self._step, "rollouts": self._buffered_inputs, "ranks": self.args.world_size, "extras": extras}
        torch.save(state, Path(output_dir) / f"rollouts_{self.args.process_index}.pth")
        if self.reference and self.algorithm.reference_sync and self.accelerator.is_main_process:
            save_reference(self.reference, Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if not checkpoint:
            return
        if self.reference and self.algorithm.reference_sync:
            load_reference(self.reference, Path(checkpoint))
        path = Path(checkpoint) / f"rollouts_{self.args.process_index}.pth"
        if not any(path.parent.glob("rollouts_*.pth")):
            raise InputError(
                f"{checkpoint}: holds no rollouts, so it is no whole checkpoint of this command; give another one, or "
                "start a new run with it as --model"
            )
        if not path.is_file():  # there are more processes than before
            return
        with reading(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
        for name, item in self.stateful.items():
            if name in state["extras"]:
                item.load_state_dict(state["extras"][name])
        if state["ranks"] == self.args.world_size:  # else the next step samples anew
            device, rollouts = self.accelerator.device, state["rollouts"]
            self._buffered_inputs = [{name: value.to(device) for name, value in part.items()} for part in rollouts]
            self._step, self._counts = state["step"], self._count(self._buffered_inputs)

    @property
    def is_sharded(self) -> bool:
        """Each process holds a part of the parameters only."""
        return is_sharded(self.accelerator)

    @property
    def is_adapted(self) -> bool:
        """Only an adapter is trained; with it off the model is the one that the run started from."""
        return hasattr(self.model, "disable_adapter")

    def whole_policy(self) -> UnifiedPolicy:
        """The policy, or a copy of it where it is sharded. Every rank must call it."""
        return gathered_copy(self.policy, self.accelerator, self.adapter) if self.is_sharded else self.policy

    @property
    def adapter(self) -> Any:
        """The configuration of the adapter (peft), or None."""
        return self.model.peft_config["default"] if self.is_adapted else None

    def save_policy(self, directory: Path) -> None:
        """One ordinary checkpoint, the adapter merged, in the dtypes of the start. Every rank must call it."""
        save_whole(self.policy, self.accelerator, self.adapter, self.stored, directory)

    # ---- rollout ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.roll_out(inputs)
        if self.algorithm.refill_rounds:
            batch = self.refilled(batch)
        self._record(batch)
        for watcher in self.watchers:
            watcher(batch)
        return self.rows_of(batch)

    def _record(self, batch: RolloutBatch) -> None:
        size, text_size = self.num_generations, self.policy.vocabulary.text_size
        names, scores_RN = component_scores(batch.output)
        scores_RN = self.accelerator.gather(scores_RN.to(self.accelerator.device)).cpu()
        of_rank = rollout_sums(batch.rollouts, batch.output, text_size, size, batch.first_row, batch.advantages_RT)
        floor = self.algorithm.spread_floor
        self._sums = merged([self._sums, group_sums(names, scores_RN, size, floor), of_rank])

    def roll_out(self, inputs: list[dict[str, Any]]) -> RolloutBatch:
        """Samples and scores one completion a row of the dataset, and their advantages over all ranks."""
        unpacked = {row["prompt"]: unpack_prompt(row["prompt"]) for row in inputs}
        start = self.accelerator.process_index * len(inputs)
        prompts, rows = [unpacked[row["prompt"]] for row in inputs], range(start, start + len(inputs))
        rollouts = self.sample(prompts, self.rollout_seed, rows)
        return self.batch_of(rollouts, self.reward([item.completion for item in rollouts]), start)

    def sample(self, prompts: Sequence[InterleavedDocument], seed: int, numbers: Sequence[int]) -> list[Rollout]:
        """One completion a prompt, as RL samples them; neighbours that are the same object share their prefill."""
        sampling = Sampling(
            max_new_tokens=self.args.max_completion_length,
            temperature=self.args.temperature,
            max_images=self.algorithm.max_images,
            guidance=self.algorithm.guidance,
            seed=seed,
        )
        policy = self.whole_policy()
        with self.accelerator.autocast(), sampling_weights(policy):  # as the training forward, which accelerate wraps
            algorithm = self.algorithm
            return rollout(policy, prompts, sampling, numbers, algorithm.rollout_rows, algorithm.rollout_steps)

    def note(self, name: str, value: float) -> None:
        """Puts a figure into the next line of the log."""
        self._metrics["train"][name].append(value)

    def rows_of(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """What the loss needs of a rollout batch, on the device, a row a rollout."""
        old_logp_BT = pad_sequence([item.logp_T for item in batch.rollouts], batch_first=True)
        tensors = {name: getattr(batch.batch, name) for name in BATCH_FIELDS}
        tensors |= {"old_logp_BT": old_logp_BT, "advantages_BT": batch.advantages_RT}
        tensors = {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}
        return tensors | self._reference_scores(tensors)

    @torch.no_grad()
    def _reference_scores(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Log-probs of the reference, in micro-batches."""
        if not self.algorithm.has_reference or self.algorithm.kl == "full":
            return {}
        size, width = self.args.per_device_train_batch_size, tensors["ids_BT"].shape[1]
        scores = []
        with self._reference() as (model, policy), self.accelerator.autocast():
            for start in range(0, len(tensors["ids_BT"]), size):
                for part in self.token_parts({name: value[start : start + size] for name, value in tensors.items()}):
                    logp_BT, _ = self.log_probs(model, part, policy)
                    scores.append(pad(logp_BT, (0, width - logp_BT.shape[1])))
        return {"ref_logp_BT": torch.cat(scores)}

    @contextmanager
    def _reference(self) -> Iterator[tuple[Any, UnifiedPolicy]]:
        """The module to call, and its policy."""
        if self.is_adapted:
            with self.model.disable_adapter():
                yield self.model_wrapped, self.policy
            return
        assert self.reference is not None
        model: Any = self.reference.model
        autocast = self.accelerator.native_amp  # then it stays as stored, else it is computed as the policy is
        yield model.to(self.accelerator.device, None if autocast else self.policy.model.dtype), self.reference
        if self.is_sharded:  # then a whole model is there for rollouts or for this, one at a time
            model.to("cpu")

    def log_probs(
        self, model: Any, tensors: dict[str, Tensor], policy: UnifiedPolicy | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [B, T] of a batch under the settings that it was sampled with."""
        return (policy or self.policy).log_probs(
            model, _token_batch(tensors), *self._sampled_with, self.algorithm.score_chunk, self.algorithm.pays_entropy
        )

    @property
    def _sampled_with(self) -> tuple[float, int | None, float]:
        return self.args.temperature, self.algorithm.max_images, self.algorithm.guidance

    def log_probs_and_kl(self, model: Any, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same, and for a KL over all choices that of each token, [B, T]."""
        algorithm = self.algorithm
        if algorithm.kl != "full" or not algorithm.has_reference:
            return *self.log_probs(model, tensors), None
        batch, settings = _token_batch(tensors), dict(zip(SAMPLED_WITH, self._sampled_with, strict=True))
        with self._reference() as (reference, policy), self.accelerator.autocast():
            log_q = policy.distributions(reference, batch, **settings)
        settings |= {"chunk": algorithm.score_chunk, "entropy_gradient": algorithm.pays_entropy}
        return self.policy.log_probs_and_kl(model, batch, log_q, **settings)

    def token_parts(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The rows in parts of at most `micro_batch_tokens` tokens, padding included; every rank has as many parts."""
        limit = self.algorithm.micro_batch_tokens
        if limit is None:
            return [tensors]
        lengths = (tensors["sequence_BT"] >= 0).sum(1).tolist()
        starts, width = [0], 0
        for row, length in enumerate(lengths):
            width = max(width, length)
            if row > starts[-1] and (row + 1 - starts[-1]) * width > limit:
                starts.append(row)
                width = length
        most = self.accelerator.gather(torch.tensor([len(starts)], device=self.accelerator.device)).max().item()
        edges = [*starts, len(lengths)]
        while len(edges) <= most:  # a rank of short rows cuts them further; all have as many rows
            size, start = max((end - start, start) for start, end in pairwise(edges))
            edges = sorted([*edges, start + size // 2])

        def cut(value: Tensor, span: slice) -> Tensor:
            return value[span, : max(lengths[span])] if value.dim() > 1 else value[span]

        spans = [slice(start, end) for start, end in pairwise(edges)]
        return [{name: cut(value, span) for name, value in tensors.items()} for span in spans]

    # ---- loss ----

    def _prepare_inputs(self, generation_batch):
        if self.model.training and self._step % self.args.gradient_accumulation_steps == 0 and self.state.global_step:
            self._between_steps()
        inputs = super()._prepare_inputs(generation_batch)
        every = self.args.steps_per_generation
        if self.model.training and self._step % every == 0:
            self._counts = self._count(self._buffered_inputs)
        if self.model.training:
            inputs = {**inputs, "counts": self._counts[self._step % every]}
        return inputs

    def _between_steps(self) -> None:
        """What an optimizer step changes beside the weights, before the next one."""
        if self.algorithm.entropy_target:
            totals = self.accelerator.reduce(torch.tensor(self.entropy.sums, device=self.accelerator.device), "sum")
            self.entropy.update(totals.tolist())
            for name, bonus in zip(MODALITIES, self.entropy.pair, strict=True):
                self.note(f"entropy_bonus/{name}", bonus)
        if (
            self.reference
            and self.algorithm.reference_sync
            and self.state.global_step % self.algorithm.reference_sync == 0
        ):
            sync(self.reference, self.whole_policy())

    def _count(self, micro_batches: list[dict[str, Tensor]]) -> list[Counts]:
        """Denominators for each micro-batch: those of the whole optimizer step it is part of, over all ranks."""
        window = self.args.gradient_accumulation_steps
        rows = [Counts.of(self.tokens_of(inputs)).stack() for inputs in micro_batches]
        totals = self.accelerator.reduce(torch.stack(rows), "sum")
        totals = totals.view(-1, window, totals.shape[1]).sum(1).repeat_interleave(window, 0)
        return [Counts(*row) for row in totals]

    def tokens_of(self, inputs: dict[str, Tensor]) -> Tokens:
        tokens = tokens_of(_token_batch(inputs), self.policy.vocabulary.text_size)
        if self.algorithm.objective != "grpo":  # rejection learns from the best completions or segments only
            tokens = replace(tokens, trained_BT=tokens.trained_BT & (inputs["advantages_BT"] > 0))
        return tokens

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The loss of one micro-batch; of its parts, all but the last have had their backward pass when it returns."""
        counts = inputs.pop("counts")
        *earlier, last = self.token_parts(inputs)
        done = torch.zeros((), device=self.accelerator.device)
        for part in earlier:
            with self.accelerator.no_sync(model):
                loss = self._counted_loss(model, part, counts)
                add_gradient(self.accelerator, loss)
            done += loss.detach()
        loss = self._counted_loss(model, last, counts) + done
        if self._replay is not None and self.algorithm.replay:
            replayed = self.replay_loss(model, next(self._replay))
            self._sums = merged([self._sums, {"replay/loss": (replayed.item(), 1.0)}])
            loss = loss + self.algorithm.replay.weight * replayed / self.args.gradient_accumulation_steps
        return loss

    def _counted_loss(self, model: Any, inputs: dict[str, Tensor], counts: Counts) -> Tensor:
        loss, sums, gaps = self.part_loss(model, inputs, counts)
        if not self._loss_sums:
            self._summed_since = self.state.global_step
        self._loss_sums = {name: self._loss_sums.get(name, 0) + value for name, value in sums.items()}
        self.entropy.add(sums)
        if self._step % (self.args.steps_per_generation * self.num_iterations) < self.args.gradient_accumulation_steps:
            # Before the first update on a rollout batch the two must agree: the sampled policy is the scored one.
            self._gaps = largest([self._gaps, {f"replay_gap/{name}": gap.item() for name, gap in gaps.items()}])
        return loss * self.accelerator.num_processes  # gradients are averaged over ranks; the weights count all of them

    def part_loss(
        self, model: Any, inputs: dict[str, Tensor], counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Loss of these rows, its metrics, and by modality the largest |training - sampler log-prob|."""
        algorithm, tokens, old_logp_BT = self.algorithm, self.tokens_of(inputs), inputs["old_logp_BT"]
        logp_BT, entropy_BT, full_kl_BT = self.log_probs_and_kl(model, inputs)
        weights_BT = token_weights(tokens, counts, algorithm.normalisation)
        text_weight, image_weight = algorithm.modality_weight.pair
        weights_BT = weights_BT * torch.where(tokens.image_BT, image_weight, text_weight)
        loss, sums = policy_loss(
            logp_BT,
            importance_ratio(logp_BT, old_logp_BT, tokens, algorithm.importance),
            inputs["advantages_BT"],
            tokens,
            weights_BT,
            inputs.get("ref_logp_BT"),
            entropy_BT,
            entropy_bonus=self.entropy.pair,
            token_ratio_BT=importance_ratio(logp_BT, old_logp_BT, tokens),
            full_kl_BT=full_kl_BT,
            **algorithm.of_loss,
        )
        if algorithm.objective != "grpo":
            loss = imitation_loss(logp_BT, weights_BT)
        gap_BT = (logp_BT.detach() - old_logp_BT).abs()
        masks = {"text": tokens.trained_BT & ~tokens.image_BT, "image": tokens.trained_BT & tokens.image_BT}
        return loss, sums, {name: gap_BT[at].max() for name, at in masks.items() if at.any()}

    def replay_loss(self, model: Any, batch: TokenBatch) -> Tensor:
        """Mean cross-entropy of the trained tokens of warm-up rows, in nats."""
        batch = batch.to(self.accelerator.device)
        logp_BT, _ = self.policy.log_probs(model, batch, chunk=self.algorithm.score_chunk)
        return -(logp_BT * batch.trainable_BT).sum() / batch.trainable_BT.sum().clamp(min=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was summed since the last line, over all ranks."""
        totals = {name: value.item() for name, value in self._loss_sums.items()}
        steps = (self.state.global_step - self._summed_since) / self.accelerator.num_processes
        for name, total in totals.items():
            kind, modality = name.split("/")
            if kind != "tokens":  # a signal adds up over ranks and micro-batches, the others are means over tokens
                self._sums[name] = total, steps if kind == "signal" else totals[f"tokens/{modality}"]
        figures = means(merged(gather_object([self._sums]))) | largest(gather_object([self._gaps]))
        for name, value in figures.items():
            self.note(name, value)
        self._loss_sums, self._sums, self._gaps = {}, {}, {}
        super().log(logs, start_time)


class _LogAtSave(TrainerCallback):
    """A checkpoint comes with a line of the log, so that nothing summed up for the next one is lost on resume."""

    def on_step_end(self, args, state, control, **_: Any):
        control.should_log |= control.should_save


def _token_batch(tensors: dict[str, Tensor]) -> TokenBatch:
    return TokenBatch(**{name: tensors[name] for name in BATCH_FIELDS})


def _scored_by_us(**_: Any) -> list[float | None]:
    """TRL asks for a reward function; ours runs inside `_generate_and_score_completions`."""
    raise RuntimeError("TRL called a reward function of its own accord; its seam has changed")
