"""What a step learns from: prompts to sampled and scored completions, and warm-up rows replayed beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.mixture import PackedRows
from ..models.documents.document import InterleavedDocument
from ..models.policy import UnifiedPolicy
from ..models.sampler.generation import Sampling, generate
from ..models.tokens.sequence import TokenBatch, TokenSequence, collate
from ..rewards.base import Completion, PartScores, Reward, RewardOutput
from .objective.algorithm import AlgorithmConfig, ReplayConfig
from .objective.cut import learned_tokens, overlong_punishment
from .objective.parts import sum_of_parts


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One sampled completion of a prompt, with what the sampler knew of it."""

    completion: Completion
    sequence: TokenSequence
    """Prompt and completion; trainable where the model chose."""
    logp_T: Tensor
    """Log-prob of each token as it was sampled; 0 in the prompt and where the grammar forced the token."""
    cut_image: bool


@dataclass(frozen=True, slots=True, eq=False)
class RolloutBatch:
    """One process's share of a generation batch, scored: R rollouts, whole groups unless ranks share one."""

    step: int
    """Optimizer steps done when it was sampled."""
    first_row: int
    """Number of its first rollout in the whole generation batch, over all ranks."""
    rollouts: list[Rollout]
    output: RewardOutput
    outcome_R: Tensor
    segments_RK: Tensor
    """Scores as tensors, NaN where one does not apply."""
    advantages_RT: Tensor
    """Advantage of each token."""
    batch: TokenBatch
    """The sequences, a row each."""


def rollout(
    policy: UnifiedPolicy, prompts: Sequence[InterleavedDocument], sampling: Sampling, first_row: int = 0
) -> list[Rollout]:
    """One completion a prompt; neighbours that are the same object, the rows of a group, share their prefill."""
    groups = [list(rows) for _, rows in groupby(prompts, key=id)]
    sequences = policy.processor.encode_all([rows[0].prompt for rows in groups])
    numbers = range(first_row, first_row + len(prompts))
    samples = generate(policy, sequences, sampling, [len(rows) for rows in groups], numbers)
    readings = [
        policy.processor.read(sample.ids_C.tolist(), prompt.candidates)
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    documents = policy.processor.paint([reading.document for reading in readings])
    prompt_rows = [sequence for sequence, rows in zip(sequences, groups, strict=True) for _ in rows]
    rollouts = []
    for prompt, start, sample, reading, document in zip(
        prompts, prompt_rows, samples, readings, documents, strict=True
    ):
        sequence = policy.processor.join(start, sample.ids_C, reading)
        logp_T = torch.cat([torch.zeros(len(start)), sample.logp_C])
        completion = Completion(prompt, document, ended=reading.ended)
        rollouts.append(Rollout(completion, sequence, logp_T, reading.cut_image))
    return rollouts


def score(rollouts: Sequence[Rollout], reward: Reward) -> tuple[RewardOutput, Tensor, Tensor]:
    """The reward's output, and as tensors: outcome [R] and segment rewards [R, K]; NaN where a score does not apply."""
    output = reward([item.completion for item in rollouts])
    return output, *_tensors(output)


def _tensors(scores: RewardOutput | PartScores) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in scores.segments), default=0) or 1
    segments_RK = torch.full((len(scores.segments), width), float("nan"))
    for number, row in enumerate(scores.segments):
        if row:
            segments_RK[number, : len(row)] = torch.tensor([float("nan") if s is None else s for s in row])
    return torch.tensor([float("nan") if s is None else s for s in scores.outcome]), segments_RK


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Scores that are normalised in their group by themselves."""

    weight: float
    floor: float
    outcome_R: Tensor
    segments_RK: Tensor


def parts_to_compare(
    rollouts: Sequence[Rollout], output: RewardOutput, algorithm: AlgorithmConfig, longest: int
) -> list[Part]:
    """What is normalised: the hybrid reward, or each of its parts; with the punishment of length, if there is one."""
    by_part = algorithm.reward_aggregation == "normalise-then-sum" and algorithm.objective == "grpo" and output.parts
    parts = [Part(part.weight, part.floor, *_tensors(part)) for part in output.parts.values()] if by_part else []
    whole = Part(1.0, 0.0, *_tensors(output))
    if algorithm.cut_answers == "punish":
        tokens_R = torch.tensor([len(item.sequence) - item.sequence.prompt_length for item in rollouts])
        punished_R = overlong_punishment(tokens_R, longest, algorithm.overlong_from)
        whole = replace(whole, outcome_R=whole.outcome_R + punished_R)
        scored_R = punished_R.masked_fill(whole.outcome_R.isnan(), float("nan"))
        parts.append(Part(1.0, 0.0, scored_R, torch.full_like(whole.segments_RK, float("nan"))))
    return parts if by_part else [whole]


def summed(parts: Sequence[Part], normalised: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Advantages of outcome [R] and segments [R, K], those of all parts together."""
    weights, (outcomes, segments) = [part.weight for part in parts], zip(*normalised, strict=True)
    outcome_R = sum_of_parts(weights, outcomes, [~part.outcome_R.isnan() for part in parts])
    return outcome_R.nan_to_num(0.0), sum_of_parts(weights, segments, [~scores.isnan() for scores in segments])


def learned(batch: TokenBatch, rollouts: Sequence[Rollout], algorithm: AlgorithmConfig) -> TokenBatch:
    """The batch, a rollout a row, with no more to train on than the settings of cut answers say."""
    segment_RT = pad_sequence([item.sequence.segment_T for item in rollouts], batch_first=True, padding_value=-1)
    segments_R = torch.tensor([len(item.completion.answer.segments) for item in rollouts])
    cut_R = torch.tensor([not item.completion.ended for item in rollouts])
    mask_answers, mask_pictures = algorithm.cut_answers == "mask", not algorithm.train_cut_pictures
    chosen_RT = batch.trainable_BT
    chosen_RT = learned_tokens(chosen_RT, segment_RT, segments_R, cut_R, mask_answers, mask_pictures)
    return replace(batch, trainable_BT=chosen_RT)


def replay_batches(
    config: ReplayConfig, policy: UnifiedPolicy, seed: int, rank: int, ranks: int, used: Callable[[], int]
) -> Iterator[TokenBatch]:
    """This rank's batches without end. `used` says, when the first is drawn, how many a resumed run has had.

    Raises InputError at once where a source is no folder of shards.
    """
    rows = PackedRows(
        config.sources, policy.processor, length=config.pack_length, seed=seed, rank=rank, world_size=ranks
    )

    def batches() -> Iterator[TokenBatch]:
        stream = islice(rows, used() * config.rows, None)
        while True:
            yield collate([next(stream) for _ in range(config.rows)], policy.vocabulary)

    return batches()
