"""What a step learns from: prompts to sampled and scored completions, and warm-up rows replayed beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor

from ..data.mixture import PackedRows
from ..models.documents.document import InterleavedDocument
from ..models.policy import UnifiedPolicy
from ..models.sampler.generation import Sampling, generate
from ..models.tokens.sequence import TokenBatch, TokenSequence, collate
from ..rewards.base import Completion, Reward, RewardOutput
from .objective.algorithm import ReplayConfig


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
    width = max((len(row) for row in output.segments), default=0) or 1
    segments_RK = torch.full((len(rollouts), width), float("nan"))
    for row, scores in enumerate(output.segments):
        if scores:
            segments_RK[row, : len(scores)] = torch.tensor([float("nan") if s is None else s for s in scores])
    outcome_R = torch.tensor([float("nan") if s is None else s for s in output.outcome])
    return output, outcome_R, segments_RK


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
