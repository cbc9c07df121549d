"""Rewards as people write them, in a file of their own: tests name it by its path."""

from dataclasses import dataclass
from typing import Annotated

from limner.configs.bounds import Range
from limner.models.chat.requests import ChatModel
from limner.rewards.base import RewardOutput


def plain(completions):
    return [float(completion.ended) for completion in completions]


def brevity(completions, words: Annotated[int, Range(1)] = 6):
    return [min(1.0, words / max(1, len(c.answer.text.split()))) for c in completions]


class Brevity:
    """By a constructor."""

    def __init__(self, words: int = 6, share: float = 1.0):
        self.words, self.share = words, share

    def __call__(self, completions):
        return [self.share * s for s in brevity(completions, self.words)]


@dataclass
class Steps:
    """With segments of its own."""

    earns: float = 0.25

    def __call__(self, completions):
        rows = [[self.earns for _ in c.answer.segments] for c in completions]
        return RewardOutput([sum(row) for row in rows], rows, {"steps": [len(row) for row in rows]})


def trl(prompts, completions, outline, **kwargs):
    return [float(len(scenes) == 2) for scenes in outline]


async def later(completions):
    return [0.5 for _ in completions]


@dataclass
class Asking:
    judge: ChatModel
    other: ChatModel | None = None

    def __call__(self, completions):
        return [None for _ in completions]


def asking(completions, judge: ChatModel):
    return [None if judge.config.model == "critic" else 0.0 for _ in completions]


def nothing():
    return []
