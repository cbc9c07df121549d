"""Rewards from a program: answers to scores, by the same settings that GRPO takes, or by functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..configs import build
from ..configs.errors import InputError
from ..configs.registry import label_of
from ..models.documents.document import InterleavedDocument
from ..models.documents.forms import kind_of
from ..models.writing import Answer
from .base import Completion, RewardOutput
from .build import RewardSettings, build_reward

Rewards = Callable[..., Any] | Mapping[str, Any]
"""A function, or parts by name. A part is `NAME: WEIGHT` or `NAME: {"weight": W, OPTION: VALUE}` as in a configuration,
or a function or a pair (function, weight) under a name of yours."""


def score(answers: Sequence[Answer | InterleavedDocument], rewards: Rewards, **settings: Any) -> RewardOutput:
    """The scores of answers, each with its prompt: an outcome an answer, and a score a segment.

    answers: what `Model.write` gave, or documents of prompt and answer.
    settings: `endpoints`, `encoders` and `reward_guard`, as in a configuration.

    Raises InputError for what is no answer, for settings that leave no reward, and with the reason where one fails.
    """
    if isinstance(answers, str | Answer | InterleavedDocument) or not isinstance(answers, Sequence):
        raise InputError(f"score: give a list of answers, not {kind_of(answers)}")
    named, python = parts_of(rewards)
    sections = {"reward_guard": {"calls": 1}, **settings, "rewards": named}
    reward = build_reward(build(RewardSettings, sections, "score"), python)
    return reward([_completion(answer, number) for number, answer in enumerate(answers, 1)])


def parts_of(rewards: Rewards) -> tuple[dict[str, Any], dict[str, tuple[Any, float]]]:
    """Parts that a configuration could name, and those that are Python, by name with their weights."""
    if callable(rewards) and not inspect.isclass(rewards):
        name = getattr(rewards, "name", None) or getattr(rewards, "__name__", type(rewards).__name__)
        return {}, {label_of(name) or "reward": (rewards, 1.0)}
    if not isinstance(rewards, Mapping) or not all(isinstance(name, str) for name in rewards):
        raise InputError(
            "rewards: give a function of completions, or a mapping of names to weights or functions, not "
            f"{kind_of(rewards)}"
        )
    named: dict[str, Any] = {}
    python: dict[str, tuple[Any, float]] = {}
    for name, value in rewards.items():
        match value:
            case (score, weight):
                python[name] = (score, weight)
            case _ if callable(value):
                python[name] = (value, 1.0)
            case _:
                named[name] = value
    return named, python


def _completion(answer: Any, number: int) -> Completion:
    if isinstance(answer, Answer):
        return Completion(answer.prompt, answer.document, answer.ended)
    if not isinstance(answer, InterleavedDocument):
        raise InputError(f"score: answer {number} is {kind_of(answer)}, neither an answer nor a document")
    if not answer.completion.segments:
        raise InputError(f"score: document {number} holds no answer; no segment is trainable")
    return Completion(answer.prompt, answer.completion)
