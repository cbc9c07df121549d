"""The settings of extended GRPO: what it adds to TRL's GRPOConfig."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from ...configs.bounds import Above0, Factor, Guidance, NoneOrMore, OneOrMore, Share, Weight
from ...configs.errors import InputError
from ...data.mixture import SourceConfig
from ...models.sampler.steps import Steps
from .advantages import Baseline
from .cut import CutAnswers
from .entropy import EntropyControl
from .kl import KL
from .losses import Importance, Normalisation, Surrogate
from .parts import Aggregation
from .spread import SPREAD_FLOOR

Objective = Literal["grpo", "rejection", "segment-rejection"]
CHOICES = {
    "objective": Objective,
    "advantage_baseline": Baseline,
    "reward_aggregation": Aggregation,
    "cut_answers": CutAnswers,
    "importance": Importance,
    "surrogate": Surrogate,
    "kl": KL,
    "normalisation": Normalisation,
}
NEVER_CLIPS = {"segment": 0.1, "sequence": 0.05}
"""Largest epsilon that can clip a ratio of units. It is a mean over the n tokens of a unit, so its log varies by about
1 / sqrt(n) of what a token's does. Where 0.2 clips one or two tokens in a hundred, theirs varies by 0.08: that of ten
tokens by 0.025, of a hundred by 0.008, and these bounds are four and six times that. GSPO takes 0.0003 and 0.0004."""
READ = (
    *("max_completion_length", "temperature", "top_p", "top_k", "min_p", "num_generations", "num_iterations"),
    *("generation_batch_size", "steps_per_generation", "shuffle_dataset", "disable_dropout"),
    "pad_to_multiple_of",  # TRL writes over its default; our batches are as wide as their longest row
)
"""Of what TRL's GRPOConfig adds to TrainingArguments: loss, rewards and sampler are ours and read none of the rest."""


@dataclass
class PerModality:
    text: Weight
    image: Weight

    @property
    def pair(self) -> tuple[float, float]:
        return self.text, self.image


@dataclass
class Schedule:
    """A straight line over the run, level behind its end."""

    start: Factor
    """Value at the first step."""
    end: Factor
    """Value at the end of the line."""
    over: Above0 = 1.0
    """Share of the run at which that is."""

    def at(self, progress: float) -> float:
        """Value where this share of the run is done."""
        return self.start + (self.end - self.start) * min(progress / self.over, 1.0)


@dataclass
class ReplayConfig:
    sources: list[SourceConfig] = field(default_factory=list)
    """Shard folders of warm-up documents to keep learning from; none for no replay."""
    weight: Weight = 0.3
    """Weight of their cross-entropy beside the policy loss."""
    rows: OneOrMore = 2
    """Packed rows a micro-batch."""
    pack_length: OneOrMore = 256


@dataclass
class AlgorithmConfig:
    """What extended GRPO adds to TRL's GRPOConfig. TRL's own `beta`, `epsilon` and others are refused, not ignored."""

    objective: Objective = "grpo"
    """`rejection`: supervised learning of the best completion of each group, the usual baseline. `segment-rejection`:
    of the best of the segments that are compared with each other, in the context in which it was sampled, and of the
    `<eos>` of the best completion. Both have no advantages, ratio, KL or entropy bonus, so that the settings of those
    do nothing."""
    outcome_weight: Weight = 1.0
    """Weight of the advantage of the whole document."""
    process_weight: Weight = 0.0
    """Weight of the advantages of its segments."""
    process_pooled: bool = False
    """Normalise segment rewards over the whole group instead of the k-th text and the k-th image by themselves."""
    process_discount: Share = 1.0
    """Weight of each further segment in a token's process advantage; 1 sums all later ones, 0 takes its own alone."""
    process_mean: bool = False
    """Mean of the remaining segment rewards instead of their sum."""
    process_miscount: Weight = 1.0
    """What each segment costs in process advantage that an answer lacks, or has too many, beside the best answers of
    its group; on `<eos>`, or on the first token of the one too many. 0 as it was in U-GRPO: stopping early is free."""
    advantage_baseline: Baseline = "mean"
    """What a reward is compared with: the mean of its group; that of the others in it (RLOO); or either weighted by
    |score|^2, which minimises the variance of the gradient (`score-weighted`, `score-weighted-leave-one-out`)."""
    advantage_std: bool = True
    """Divide by the group's standard deviation; false as in Dr. GRPO."""
    reward_aggregation: Aggregation = "sum-then-normalise"
    """Of the parts of the reward: normalise their weighted mean in the group, or each part by itself and then sum
    (GDPO): no part is then drowned by another that varies more, and each has a `floor` of its spread (`rewards:`)."""
    cut_answers: CutAnswers = "train"
    """Answers that the length limit cuts: `train` on them as on others; `mask` them out of the loss, though not out of
    their group (DAPO's overlong filtering); or `punish` length in the outcome, cut or not, from `overlong_from` on."""
    overlong_from: Share = 0.8
    """Share of `max_completion_length` from where `punish` takes up to 1 off the outcome (DAPO's soft punishment)."""
    train_cut_pictures: bool = False
    """Train on the tokens of a picture that the length limit cut, too: it was never painted, so no reward saw it."""
    spread_floor: Above0 = SPREAD_FLOOR
    """That standard deviation is taken to be at least this, so that noise does not become a full advantage; a group
    whose rewards vary by less counts as dead. In units of the reward, 0 to 1; raise it to the noise of a judge."""
    negative_weight: float | Schedule = 1.0
    """Factor of negative advantages, or a line over the run: {start: 1, end: 0, over: 0.5}."""
    positive_nll: PerModality = field(default_factory=lambda: PerModality(0.0, 0.0))
    """Weight of the cross-entropy of tokens with a positive advantage (VAPO)."""
    importance: Importance = "token"
    """Level of the importance ratio: token (GRPO), sequence (GSPO), or segment: a sentence or a picture at a time."""
    epsilon: PerModality = field(default_factory=lambda: PerModality(0.2, 0.2))
    """The importance ratio is clipped below at 1 - epsilon."""
    epsilon_high: PerModality = field(default_factory=lambda: PerModality(0.2, 0.2))
    """And above at 1 + epsilon_high."""
    delta: PerModality | None = None
    """Largest importance ratio of a token with a negative advantage that still has a gradient (dual clip); it lies
    above 1 + epsilon_high, 3 is usual. Null for no limit."""
    surrogate: Surrogate = "clip"
    """`clip` is PPO's. `cispo` truncates the importance ratio at 1 + epsilon_high and drops no token's gradient."""
    beta: PerModality = field(default_factory=lambda: PerModality(0.0, 0.0))
    """Weight of the KL to the policy as it was at the start."""
    kl: KL = "k3"
    """How it is estimated: `k3` with the importance ratio, `k2`, or `full`, over all choices of each token; that one
    runs the reference in every loss and holds its scores of a part (`micro_batch_tokens`) in memory."""
    kl_clamp: Above0 = 5.0
    """Nats within which k3 and k2 take the log-ratio of reference and policy."""
    reference_sync: OneOrMore | None = None
    """Optimizer steps after which the reference becomes the policy as it is then, again and again; null for never."""
    entropy_bonus: PerModality = field(default_factory=lambda: PerModality(0.0, 0.0))
    """Weight of the entropy that the loss rewards; with a target, what it starts from."""
    entropy_target: PerModality | None = None
    """Nats a token: below them the bonus is paid and raised step by step, above them it is lowered."""
    entropy_bonus_step: Above0 = 0.005
    """Change of the bonus at each optimizer step, where there is a target."""
    entropy_bonus_max: Weight = 1.0
    """Largest bonus, where there is a target."""
    modality_weight: PerModality = field(default_factory=lambda: PerModality(1.0, 1.0))
    """Weight of a modality's tokens in the loss; 0 leaves that modality as it is."""
    normalisation: Normalisation = "modality-balanced"
    """What the loss is a mean over: all tokens, sequences, segments, or the modalities in equal parts."""
    max_images: NoneOrMore | None = 8
    """The model may begin no further image in an answer; null for no limit."""
    rollout_rows: OneOrMore | None = None
    """Rows that a process samples at a time: when some have ended, the next take their places. Null for all at once. It
    bounds the memory of the KV cache; the answers are the same."""
    rollout_steps: Steps = "plain"
    """How rollouts run a step: `fixed`, in few shapes; `compiled`, those by torch.compile; `graphs`, as CUDA graphs."""
    refill_rounds: NoneOrMore = 0
    """Times that groups from which nothing can be learned are replaced by those of further prompts (DAPO)."""
    guidance: Guidance = 1.0
    """Classifier-free guidance of image tokens, in rollouts and in scoring alike; 1 is none."""
    micro_batch_tokens: OneOrMore | None = None
    """Cut each micro-batch into parts of at most so many tokens; memory then does not grow with documents."""
    score_chunk: OneOrMore | None = None
    """Score so many tokens at a time against the vocabulary, and again in the backward pass."""
    replay: ReplayConfig | None = field(default_factory=ReplayConfig)
    """Warm-up rows beside the policy loss; null for none, as with no sources."""

    @property
    def replayed(self) -> ReplayConfig | None:
        """What is replayed, if anything is."""
        return self.replay if self.replay and self.replay.sources else None

    @property
    def has_reference(self) -> bool:
        """Is there a KL to the policy as it was at the start?"""
        return any(self.beta.pair) and self.objective == "grpo"

    @property
    def pays_entropy(self) -> bool:
        return any(self.entropy_bonus.pair) or self.entropy_target is not None

    @property
    def of_loss(self) -> dict[str, Any]:
        """The settings of `policy_loss`, but for the entropy bonus, which may change as the run goes on."""
        pairs = ("epsilon", "epsilon_high", "beta", "positive_nll", *(("delta",) if self.delta else ()))
        return {name: getattr(self, name).pair for name in pairs} | {
            name: getattr(self, name) for name in ("surrogate", "kl", "kl_clamp")
        }

    def entropy_control(self) -> EntropyControl:
        target = self.entropy_target.pair if self.entropy_target else None
        return EntropyControl(self.entropy_bonus.pair, target, self.entropy_bonus_step, self.entropy_bonus_max)

    def negative_weight_at(self, progress: float) -> float:
        """Factor of negative advantages where this share of the run is done."""
        weight = self.negative_weight
        return weight.at(progress) if isinstance(weight, Schedule) else weight

    @property
    def trained_modalities(self) -> list[str]:
        weights = {"text": self.modality_weight.text, "image": self.modality_weight.image * (self.max_images != 0)}
        return [name for name, weight in weights.items() if weight]

    def check(self, args: Any) -> None:
        """Raises InputError for settings that contradict each other, or that nothing would read."""
        of_trl = next(kind for kind in type(args).__mro__ if kind.__module__.startswith("trl."))
        known = {*READ, *(item.name for item in fields(TrainingArguments))}
        for item in fields(of_trl):
            if item.name not in known and getattr(args, item.name) != item.default:
                raise InputError(f"{item.name}: extended GRPO does not read it; see algorithm and rewards")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"algorithm.{name}: {getattr(self, name)!r} is none of {', '.join(get_args(kind))}")
        if not 0 <= self.overlong_from < 1:
            raise InputError(f"algorithm.overlong_from: {self.overlong_from}; a share of max_completion_length below 1")
        self._check_loss()
        if not any(self.modality_weight.pair):
            raise InputError("algorithm.modality_weight: 0 for text and image leaves nothing to train")
        if args.top_p != 1.0 or args.top_k or args.min_p:
            raise InputError(
                "top_p, top_k, min_p: truncated sampling is refused in RL; a sampled token could leave the support"
            )
        if args.max_steps == 0:
            raise InputError("max_steps: 0, and a run takes one at least; `limner preflight` only checks")
        if args.temperature <= 0:
            raise InputError(
                f"temperature: {args.temperature} leaves nothing to explore; RL samples with a positive one"
            )
        if (args.steps_per_generation or 1) % args.gradient_accumulation_steps:
            raise InputError(
                f"steps_per_generation ({args.steps_per_generation}) must be a multiple of gradient_accumulation_steps "
                f"({args.gradient_accumulation_steps}): the loss is normalised over a whole optimizer step"
            )
        rows = args.per_device_train_batch_size * (args.steps_per_generation or 1)
        if self.refill_rounds and rows % args.num_generations:
            raise InputError(
                f"algorithm.refill_rounds: a process samples {rows} rollouts, which are no whole groups of "
                f"{args.num_generations}; change per_device_train_batch_size or steps_per_generation, or leave it out"
            )

    def _check_loss(self) -> None:
        for name, of in (("micro_batch_tokens", "tokens"), ("score_chunk", "tokens"), ("rollout_rows", "rows")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"algorithm.{name}: {value} is no number of {of}; leave it out to switch it off")
        for name in ("epsilon", "epsilon_high", "beta", "entropy_bonus", "modality_weight", "positive_nll"):
            if min(getattr(self, name).pair) < 0:
                raise InputError(f"algorithm.{name}: negative")
        weight = self.negative_weight
        ends = (weight.start, weight.end) if isinstance(weight, Schedule) else (weight,)
        for name, value in (
            *(("negative_weight", end) for end in ends),
            *((name, getattr(self, name)) for name in ("process_miscount", "refill_rounds", "entropy_bonus_max")),
        ):
            if value < 0:
                raise InputError(f"algorithm.{name}: negative")
        if isinstance(weight, Schedule) and not 0 < weight.over <= 1:
            raise InputError(
                f"algorithm.negative_weight.over: {weight.over} is no share of the run, above 0 and up to 1"
            )
        for name in ("spread_floor", "kl_clamp", "entropy_bonus_step", "reference_sync"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"algorithm.{name}: {value} is not positive")
        if self.reference_sync and not self.has_reference:
            raise InputError("algorithm.reference_sync: there is no reference; give algorithm.beta, or leave it out")
        self._check_clipping()

    def _check_clipping(self) -> None:
        if self.delta is not None:
            for name in ("text", "image"):
                least, value = 1 + getattr(self.epsilon_high, name), getattr(self.delta, name)
                if value <= least:
                    raise InputError(
                        f"algorithm.delta.{name}: {value} must be above 1 + epsilon_high ({least:g}); 3 is usual"
                    )
        limit = NEVER_CLIPS.get(self.importance)
        read = ("epsilon_high",) if self.surrogate == "cispo" else ("epsilon", "epsilon_high")
        for name in read if limit and self.objective == "grpo" else ():
            for modality in self.trained_modalities:
                if (value := getattr(getattr(self, name), modality)) > limit:
                    raise InputError(
                        f"algorithm.{name}.{modality}: {value:g} never clips with importance {self.importance}, whose "
                        f"ratio is a mean over the tokens of a {self.importance}; give at most {limit:g} (GSPO: 0.0003 "
                        "below and 0.0004 above), or importance: token"
                    )
