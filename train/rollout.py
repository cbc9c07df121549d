"""What a step learns from: prompts to sampled, scored and compared completions, and warm-up rows beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from ..data.mixture import PackedRows, Place
from ..data.packing import Row
from ..data.prompts import unpack_prompt
from ..models.documents.document import ImageSegment, InterleavedDocument
from ..models.policy import UnifiedPolicy
from ..models.sampler.generation import Sampling, generate
from ..models.sampler.steps import Steps
from ..models.tokens.sequence import TokenBatch, TokenSequence, collate
from ..rewards.base import Completion, PartScores, Reward, RewardOutput
from .objective import advantages as maths
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
class Scores:
    """What the rollouts of a group are compared by. NaN where a score does not apply, or there is no segment."""

    outcome_R: Tensor
    segments_RK: Tensor
    kind_RK: Tensor
    """0 for a text, 1 for an image, -1 where there is no segment."""
    score_norm_R: Tensor
    score_norm_RK: Tensor
    """|score|^2 of answer and segments, up to a factor."""
    ended_R: Tensor
    """False where the length limit cut the answer."""

    def to_tables(self) -> tuple[Tensor, Tensor]:
        """All of it as float32 [R, 3] and [R, K, 3]; NaN goes behind the last segment where it is padded."""
        whole = torch.stack([self.outcome_R, self.score_norm_R, self.ended_R.float()], 1)
        kind_RK = self.kind_RK.float().masked_fill(self.kind_RK < 0, torch.nan)
        return whole, torch.stack([self.segments_RK, self.score_norm_RK, kind_RK], 2)

    @classmethod
    def from_tables(cls, whole: Tensor, by_segment: Tensor) -> Scores:
        outcome_R, norm_R, ended_R = whole.unbind(1)
        segments_RK, norm_RK, kind_RK = by_segment.unbind(2)
        kind_RK = kind_RK.nan_to_num(-1.0).long()
        return cls(outcome_R, segments_RK, kind_RK, norm_R, norm_RK.nan_to_num(0.0), ended_R.bool())


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Rollouts beside the others of their group: advantages, or under rejection 1 for what is imitated."""

    outcome_R: Tensor
    segments_RK: Tensor
    cost_RE: Tensor
    """What beginning each segment costs, and behind the last one ending the answer."""

    def __getitem__(self, rows: slice) -> Compared:
        return Compared(self.outcome_R[rows], self.segments_RK[rows], self.cost_RE[rows])


@dataclass(frozen=True, slots=True, eq=False)
class RolloutBatch:
    """One process's share of a generation batch, scored: R rollouts, whole groups unless ranks share one."""

    step: int
    """Optimizer steps done when it was sampled."""
    first_row: int
    """Number of its first rollout in the whole generation batch, over all ranks."""
    rollouts: list[Rollout]
    output: RewardOutput
    scores: Scores
    advantages_RT: Tensor
    """Advantage of each token; under rejection 1 for those that are imitated."""
    batch: TokenBatch
    """The sequences, a row each."""


def rollout(
    policy: UnifiedPolicy,
    prompts: Sequence[InterleavedDocument],
    sampling: Sampling,
    numbers: Sequence[int] | None = None,
    at_once: int | None = None,
    steps: Steps = "plain",
) -> list[Rollout]:
    """One completion a prompt; neighbours that are the same object, the rows of a group, share their prefill.

    `numbers` of the rows, by which they are drawn; by default from 0. No more than `at_once` are sampled at a time,
    by such `steps` of the sampler.
    """
    if not prompts:
        return []
    groups = [list(rows) for _, rows in groupby(prompts, key=id)]
    sequences = policy.processor.encode_all([rows[0].prompt for rows in groups])
    samples = generate(policy, sequences, sampling, [len(rows) for rows in groups], numbers, at_once, steps)
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


def _tensors(scores: RewardOutput | PartScores) -> tuple[Tensor, Tensor]:
    """Outcomes [R] and segments [R, K]; NaN where a score does not apply."""
    return _table([[score] for score in scores.outcome], torch.nan).flatten(), _table(scores.segments, torch.nan)


def _table(rows: Sequence[Sequence[float | None]], missing: float) -> Tensor:
    """Ragged rows as one table [R, K], K at least 1; `missing` for None and behind the end of a row."""
    width = max(map(len, rows), default=0) or 1
    filled = [[missing if value is None else float(value) for value in row] for row in rows]
    return torch.tensor([row + [missing] * (width - len(row)) for row in filled]).view(-1, width)


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


def summed(parts: Sequence[Part], each: Sequence[Compared], cost_RE: Tensor) -> Compared:
    """Advantages of all parts together; what segments too few or too many cost is that of the whole reward."""
    weights, segments = [part.weight for part in parts], [compared.segments_RK for compared in each]
    outcome_R = sum_of_parts(weights, [c.outcome_R for c in each], [~part.outcome_R.isnan() for part in parts])
    segments_RK = sum_of_parts(weights, segments, [~scores.isnan() for scores in segments])
    return Compared(outcome_R.nan_to_num(0.0), segments_RK, cost_RE)


def learned(batch: TokenBatch, rollouts: Sequence[Rollout], algorithm: AlgorithmConfig) -> TokenBatch:
    """The batch, a rollout a row, with no more to train on than the settings of cut answers say."""
    segment_RT = pad_sequence([item.sequence.segment_T for item in rollouts], batch_first=True, padding_value=-1)
    segments_R = torch.tensor([len(item.completion.answer.segments) for item in rollouts])
    cut_R = torch.tensor([not item.completion.ended for item in rollouts])
    mask_answers, mask_pictures = algorithm.cut_answers == "mask", not algorithm.train_cut_pictures
    chosen_RT = batch.trainable_BT
    chosen_RT = learned_tokens(chosen_RT, segment_RT, segments_R, cut_R, mask_answers, mask_pictures)
    return replace(batch, trainable_BT=chosen_RT)


def score(rollouts: Sequence[Rollout], output: RewardOutput) -> Scores:
    """What the reward said of the rollouts, and what the sampler knew of them, as tensors."""
    kinds = [[isinstance(part, ImageSegment) for part in item.completion.answer.segments] for item in rollouts]
    kind_RK = _table(kinds, -1).long()
    outcome_R, segments_RK = _tensors(output)
    logp_RT, chosen_RT, segment_RT = (
        pad_sequence(list(rows), batch_first=True, padding_value=padding)
        for rows, padding in (
            ([item.logp_T for item in rollouts], 0),
            ([item.sequence.trainable_T for item in rollouts], 0),
            ([item.sequence.segment_T for item in rollouts], -1),
        )
    )
    return Scores(
        outcome_R,
        segments_RK,
        kind_RK,
        *maths.score_norms(logp_RT, chosen_RT, segment_RT, kind_RK.shape[1]),
        torch.tensor([item.completion.ended for item in rollouts]),
    )


def compare(scores: Scores, algorithm: AlgorithmConfig, group_size: int, floor: float = 0.0) -> Compared:
    """Whole groups of rollouts, normalised as the algorithm says.

    `floor` of the spread is that of a part of the reward that is normalised by itself, where it has a larger one.
    """
    outcome_R, kind_RK, floor = scores.outcome_R, scores.kind_RK, max(floor, algorithm.spread_floor)
    missing_R, surplus_RK = maths.miscounts(kind_RK, outcome_R, group_size, floor)
    if algorithm.objective != "grpo":
        return Compared(
            maths.best_of_group(outcome_R, group_size, floor),
            maths.best_segments(scores.segments_RK, kind_RK, surplus_RK, group_size, floor),
            torch.zeros(len(kind_RK), kind_RK.shape[1] + 1),
        )
    baseline, scale = algorithm.advantage_baseline, algorithm.advantage_std
    missing_R = missing_R * scores.ended_R  # one that was cut did not choose to end
    return Compared(
        maths.outcome_advantages(outcome_R, group_size, baseline, scale, floor, scores.score_norm_R),
        maths.segment_advantages(
            scores.segments_RK,
            kind_RK,
            group_size,
            algorithm.process_pooled,
            baseline,
            scale,
            floor,
            scores.score_norm_RK,
        ),
        maths.miscount_costs(kind_RK, missing_R, surplus_RK, algorithm.process_miscount),
    )


def token_advantages(
    compared: Compared, rollouts: Sequence[Rollout], algorithm: AlgorithmConfig, progress: float
) -> Tensor:
    """Advantage of each token of these rollouts, [R, T], where this share of the run is done."""
    segment_RT = pad_sequence([item.sequence.segment_T for item in rollouts], batch_first=True, padding_value=-1)
    outcome_R1 = compared.outcome_R[:, None]
    if algorithm.objective == "rejection":
        return outcome_R1.expand(segment_RT.shape).contiguous()
    if algorithm.objective == "segment-rejection":
        ends_R = torch.tensor([len(r.completion.answer.segments) if r.completion.ended else -2 for r in rollouts])
        own_RT = maths.process_advantages(compared.segments_RK, segment_RT, discount=0.0)
        return own_RT + outcome_R1 * (segment_RT == ends_R[:, None])
    process_RT = maths.process_advantages(
        compared.segments_RK, segment_RT, algorithm.process_discount, algorithm.process_mean, compared.cost_RE
    )
    advantages_RT = algorithm.outcome_weight * outcome_R1 + algorithm.process_weight * process_RT
    return maths.weigh_negative(advantages_RT, algorithm.negative_weight_at(progress))


def dead_rows(advantages_RT: Tensor, group_size: int) -> list[int]:
    """Rows of the groups from which nothing can be learned: no token of theirs has an advantage."""
    dead = (advantages_RT == 0).view(-1, group_size * advantages_RT.shape[1]).all(1)
    return dead.repeat_interleave(group_size).nonzero().flatten().tolist()


def replaced(
    batch: RolloutBatch, rows: Sequence[int], rollouts: Sequence[Rollout], output: RewardOutput
) -> tuple[list[Rollout], RewardOutput]:
    """Rollouts of a batch and what the reward said of them, those of some rows replaced by others."""
    new = {row: number for number, row in enumerate(rows)}

    def put(old: Sequence, fresh: Sequence) -> list:
        return [fresh[new[row]] if row in new else value for row, value in enumerate(old)]

    breakdown = {name: put(scores, output.breakdown[name]) for name, scores in batch.output.breakdown.items()}
    parts = {
        name: replace(
            part,
            outcome=put(part.outcome, output.parts[name].outcome),
            segments=put(part.segments, output.parts[name].segments),
        )
        for name, part in batch.output.parts.items()
    }
    outcome, segments = put(batch.output.outcome, output.outcome), put(batch.output.segments, output.segments)
    kept = replace(batch.output, outcome=outcome, segments=segments, breakdown=breakdown, parts=parts)
    return put(batch.rollouts, rollouts), kept


def further_prompts(prompts: int, groups: int, seed: int, step: int, number: int) -> list[int]:
    """Which of the prompts replace so many groups of a step, all processes' together, in round `number`."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1_009 + number)
    order = torch.randperm(prompts, generator=generator).tolist()
    return [order[place % prompts] for place in range(groups)]


class RolloutBatches:
    """Mixin of a trainer: the rollouts of a process to a batch that can be learned from."""

    policy: UnifiedPolicy
    reward: Reward
    algorithm: AlgorithmConfig
    num_generations: int
    accelerator: Any
    args: Any
    state: Any
    train_dataset: Any
    sample: Callable[[Sequence[InterleavedDocument], int, Sequence[int]], list[Rollout]]
    note: Callable[[str, float], None]

    @property
    def rollout_seed(self) -> int:
        """Of the random numbers that the rollouts of this step are drawn with."""
        return self.args.seed * 1_000_003 + self.state.global_step

    def batch_of(self, rollouts: list[Rollout], output: RewardOutput, first_row: int) -> RolloutBatch:
        """These rollouts of a process, compared with the others of their groups, as a whole or part by part."""
        scores, step = score(rollouts, output), self.state.global_step
        progress = step / max(self.state.max_steps, 1)
        parts = parts_to_compare(rollouts, output, self.algorithm, self.args.max_completion_length or 0)
        each = [
            self.compared(replace(scores, outcome_R=part.outcome_R, segments_RK=part.segments_RK), part.floor)
            for part in parts
        ]
        compared = summed(parts, each, self.compared(scores).cost_RE) if len(parts) > 1 else each[0]
        advantages_RT = token_advantages(compared, rollouts, self.algorithm, progress)
        batch = learned(
            collate([[item.sequence] for item in rollouts], self.policy.vocabulary), rollouts, self.algorithm
        )
        return RolloutBatch(step, first_row, rollouts, output, scores, advantages_RT, batch)

    def compared(self, scores: Scores, floor: float = 0.0) -> Compared:
        """This process's rows beside the others of their groups, which may straddle processes."""
        accelerator, rows = self.accelerator, len(scores.outcome_R)
        if rows % self.num_generations == 0:
            return compare(scores, self.algorithm, self.num_generations, floor)
        whole, by_segment = (table.to(accelerator.device) for table in scores.to_tables())
        by_segment = accelerator.pad_across_processes(by_segment, dim=1, pad_index=float("nan"))
        scores = Scores.from_tables(*(accelerator.gather(table).cpu() for table in (whole, by_segment)))
        start = accelerator.process_index * rows
        return compare(scores, self.algorithm, self.num_generations, floor)[start : start + rows]

    def refilled(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with groups of further prompts in place of dead ones: dynamic sampling (DAPO, arXiv 2503.14476).

        Which prompts and random numbers they get depends on seed, step, round and place in the batch of all processes,
        so that a resume changes nothing, nor the number of processes. Whole groups lie on one process
        (`AlgorithmConfig.check`).
        """
        size, rounds = self.num_generations, self.algorithm.refill_rounds
        total = len(batch.rollouts) * self.accelerator.num_processes
        for number in range(rounds + 1):
            rows = dead_rows(batch.advantages_RT, size)
            own = [(batch.first_row + row) // size for row in rows[::size]]
            dead = sorted(gather_object(own))
            self.note("dead_before_refill" if number == 0 else f"dead_after_refill/{number}", len(dead) * size / total)
            if number == rounds or not dead:
                break
            chosen = further_prompts(len(self.train_dataset), len(dead), self.args.seed, batch.step, number)
            packed = dict(zip(dead, (self.train_dataset[place]["prompt"] for place in chosen), strict=True))
            prompts = [prompt for group in own for prompt in [unpack_prompt(packed[group])] * size]
            numbers = [(number + 1) * total + batch.first_row + row for row in rows]
            rollouts = self.sample(prompts, self.rollout_seed, numbers)  # by all: parameters may be sharded
            if rollouts:
                output = self.reward([item.completion for item in rollouts])
                batch = self.batch_of(*replaced(batch, rows, rollouts, output), batch.first_row)
        return batch


class OrderOfEpoch(Sampler):
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


class ReplayBatches:
    """This rank's batches of warm-up rows, without end. A resumed run goes on where the rows stood.

    Raises InputError at once where a source is no folder of shards.
    """

    def __init__(
        self, config: ReplayConfig, policy: UnifiedPolicy, seed: int, rank: int, ranks: int, used: Callable[[], int]
    ):
        """used: says, when the first is drawn, how many a run had whose checkpoint does not say where rows stood."""
        self.count, self.vocabulary, self.used = config.rows, policy.vocabulary, used
        self.rows = PackedRows(
            config.sources, policy.processor, length=config.pack_length, seed=seed, rank=rank, world_size=ranks
        )
        self._stream: Iterator[Row] | None = None

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        if self._stream is None:
            if self.rows.place == Place():
                self.rows.skip(self.used() * self.count)
            self._stream = iter(self.rows)
        return collate([next(self._stream) for _ in range(self.count)], self.vocabulary)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.rows.place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows.place = Place(**state)
