"""From settings to the hybrid reward."""

from __future__ import annotations

from dataclasses import dataclass

from .format import FormatReward, Pattern
from .guard import GuardedReward
from .hybrid import HybridReward
from .judge import JudgeConfig, judge_rewards
from .picture_stories import PictureReward, SentenceReward


@dataclass
class RewardsConfig:
    """Weights of the hybrid reward's parts; 0 leaves a part out."""

    format: float = 1.0
    """Structural fidelity."""
    format_pattern: Pattern = "alternating"
    text_plan: float = 1.0
    """Sentences against the plan."""
    image_plan: float = 1.0
    """Pictures against the plan."""
    image_sentence: float = 1.0
    """Pictures against the model's own sentences."""
    judge: JudgeConfig | None = None
    """A vision-language model that scores by prompt templates, each with a weight; none by default."""
    timeout: float = 300.0
    """Seconds that a part may take for a batch; 0 sets no limit and calls it in the trainer's own thread."""
    patience: int = 3
    """Failed calls of a part in a row that stop the run."""


def build_reward(config: RewardsConfig) -> HybridReward:
    """Raises InputError for settings that leave no reward."""
    parts = [
        (FormatReward(config.format_pattern), config.format),
        (SentenceReward(), config.text_plan),
        (PictureReward("plan"), config.image_plan),
        (PictureReward("sentence"), config.image_sentence),
    ]
    parts += judge_rewards(config.judge) if config.judge else []
    guarded = [(GuardedReward(part, config.timeout, config.patience), weight) for part, weight in parts if weight]
    return HybridReward(guarded)
