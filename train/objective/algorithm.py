"""The settings of extended GRPO: what it adds to TRL's GRPOConfig."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from ...configs.errors import InputError
from ...data.mixture import SourceConfig
from .advantages import Baseline
from .cut import CutAnswers
from .losses import Importance, Normalisation
from .parts import Aggregation

Objective = Literal["grpo", "rejection"]
CHOICES = {
    "objective": Objective,
    "advantage_baseline": Baseline,
    "reward_aggregation": Aggregation,
    "cut_answers": CutAnswers,
    "importance": Importance,
    "normalisation": Normalisation,
}
READ = (
    *("max_completion_length", "temperature", "top_p", "top_k", "min_p", "num_generations", "num_iterations"),
    *("generation_batch_size", "steps_per_generation", "shuffle_dataset", "disable_dropout"),
    "pad_to_multiple_of",  # TRL writes over its default; our batches are as wide as their longest row
)
"""Of what TRL's GRPOConfig adds to TrainingArguments: loss, rewards and sampler are ours and read none of the rest."""


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

    objective: Objective = "grpo"
    """`rejection`: supervised learning of the best completion of each group, the usual baseline. It has no advantages,
    ratio, KL or entropy bonus, so that the settings of those do nothing."""
    outcome_weight: float = 1.0
    """Weight of the advantage of the whole document."""
    process_weight: float = 0.0
    """Weight of the advantages of its segments."""
    process_pooled: bool = False
    """Normalise segment rewards over the whole group instead of by segment index."""
    process_discount: float = 1.0
    """Weight of each further segment in a token's process advantage; 1 sums all later ones, 0 takes its own alone."""
    process_mean: bool = False
    """Mean of the remaining segment rewards instead of their sum."""
    advantage_baseline: Baseline = "mean"
    """What a reward is compared with: the mean of its group, or that of the others in it (RLOO)."""
    advantage_std: bool = True
    """Divide by the group's standard deviation; false as in Dr. GRPO."""
    reward_aggregation: Aggregation = "sum-then-normalise"
    """Of the parts of the reward: normalise their weighted mean in the group, or each part by itself and then sum
    (GDPO): no part is then drowned by another that varies more, and each has a `floor` of its spread (`rewards:`)."""
    cut_answers: CutAnswers = "train"
    """Answers that the length limit cuts: `train` on them as on others; `mask` them out of the loss, though not out of
    their group (DAPO's overlong filtering); or `punish` length in the outcome, cut or not, from `overlong_from` on."""
    overlong_from: float = 0.8
    """Share of `max_completion_length` from where `punish` takes up to 1 off the outcome (DAPO's soft punishment)."""
    train_cut_pictures: bool = False
    """Train on the tokens of a picture that the length limit cut, too: it was never painted, so no reward saw it."""
    importance: Importance = "token"
    """Level of the importance ratio: token (GRPO), sequence (GSPO), or segment: a sentence or a picture at a time."""
    epsilon: PerModality = field(default_factory=lambda: PerModality(0.2, 0.2))
    """The importance ratio is clipped below at 1 - epsilon."""
    epsilon_high: PerModality = field(default_factory=lambda: PerModality(0.2, 0.2))
    """And above at 1 + epsilon_high."""
    beta: PerModality = field(default_factory=lambda: PerModality(0.0, 0.0))
    """Weight of the k3 KL to the policy as it was at the start."""
    entropy_bonus: PerModality = field(default_factory=lambda: PerModality(0.0, 0.0))
    """Weight of the entropy that the loss rewards."""
    modality_weight: PerModality = field(default_factory=lambda: PerModality(1.0, 1.0))
    """Weight of a modality's tokens in the loss; 0 leaves that modality as it is."""
    normalisation: Normalisation = "modality-balanced"
    """What the loss is a mean over: all tokens, sequences, segments, or the modalities in equal parts."""
    max_images: int | None = 8
    """The model may begin no further image in an answer; null for no limit."""
    guidance: float = 1.0
    """Classifier-free guidance of image tokens, in rollouts and in scoring alike; 1 is none."""
    micro_batch_tokens: int | None = None
    """Cut each micro-batch into parts of at most so many tokens; memory then does not grow with documents."""
    score_chunk: int | None = None
    """Score so many tokens at a time against the vocabulary, and again in the backward pass."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    @property
    def has_reference(self) -> bool:
        """Is there a KL to the policy as it was at the start?"""
        return any(self.beta.pair) and self.objective == "grpo"

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
        for name in ("micro_batch_tokens", "score_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"algorithm.{name}: {value} is no number of tokens; leave it out to switch it off")
        for name in ("epsilon", "epsilon_high", "beta", "entropy_bonus", "modality_weight"):
            if min(getattr(self, name).pair) < 0:
                raise InputError(f"algorithm.{name}: negative")
        if not 0 <= self.overlong_from < 1:
            raise InputError(f"algorithm.overlong_from: {self.overlong_from}; a share of max_completion_length below 1")
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
