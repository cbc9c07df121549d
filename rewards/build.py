"""From settings to the hybrid reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..configs.errors import InputError
from ..worlds.insertion_stories.rewards import InsertionStoriesConfig, insertion_story_rewards
from ..worlds.picture_stories.rewards import PictureReward, SentenceReward
from .base import Reward
from .encoders.consistency import consistency_rewards
from .encoders.image import image_rewards
from .encoders.pretrained import EncodersConfig
from .encoders.text import text_rewards
from .guard import GuardedReward
from .hybrid import HybridReward
from .judges.judge import JudgeConfig, judge_rewards
from .judges.questions import QuestionsConfig, questions_reward
from .remote.client import RemoteConfig, remote_rewards
from .rules.format import FormatReward, Pattern
from .rules.structure import StructureConfig, StructureReward


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
    structure: StructureConfig | None = None
    """Order of texts and pictures against what was asked for, graded; none by default, like all that follow."""
    insertion_stories: InsertionStoriesConfig | None = None
    """Choices, sentences and pictures of the embedded world with candidates."""
    judge: JudgeConfig | None = None
    """A vision-language model that scores by prompt templates, each with a weight."""
    questions: QuestionsConfig | None = None
    """The prompt turned into yes/no questions, which a vision-language model answers about each picture."""
    image: EncodersConfig | None = None
    """Pictures against their texts: clipscore, siglip2, pickscore, hpsv2, image_reward."""
    consistency: EncodersConfig | None = None
    """Pictures against each other: dino, clip."""
    text: EncodersConfig | None = None
    """Texts against a reference: rouge_l, bertscore, embedding; against the prompt: prompt_embedding."""
    remote: RemoteConfig | None = None
    """Rewards of a server on another machine (`limner serve-rewards`)."""
    timeout: float = 300.0
    """Seconds that a part may take for a batch; 0 sets no limit and calls it in the trainer's own thread."""
    patience: int = 3
    """Failed calls of a part in a row that stop the run."""


def build_reward(config: RewardsConfig) -> HybridReward:
    """Raises InputError for settings that leave no reward, and for models that cannot be loaded."""
    parts = reward_parts(config)
    return HybridReward([(GuardedReward(part, config.timeout, config.patience), weight) for part, weight in parts])


def reward_parts(config: RewardsConfig) -> Sequence[tuple[Reward, float]]:
    """(part, weight) of all parts with a weight, without a guard. Raises InputError like `build_reward`."""
    parts: list[tuple[Reward, float]] = [
        (FormatReward(config.format_pattern), config.format),
        (SentenceReward(), config.text_plan),
        (PictureReward("plan"), config.image_plan),
        (PictureReward("sentence"), config.image_sentence),
    ]
    if config.structure:
        parts.append((StructureReward(config.structure), config.structure.weight))
    parts += insertion_story_rewards(config.insertion_stories) if config.insertion_stories else []
    parts += judge_rewards(config.judge) if config.judge else []
    if config.questions and config.questions.weight:
        parts.append((questions_reward(config.questions), config.questions.weight))
    parts += image_rewards(config.image) if config.image else []
    parts += consistency_rewards(config.consistency) if config.consistency else []
    parts += text_rewards(config.text) if config.text else []
    parts += remote_rewards(config.remote) if config.remote else []
    parts = [(part, weight) for part, weight in parts if weight]
    names = Counter(part.name for part, _ in parts)
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(f"rewards: two parts are called {twice[0]}; leave one out")
    return parts
