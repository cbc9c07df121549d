"""Format: is the answer built as asked? The structural fidelity term r_f of U-GRPO (arXiv 2603.09538)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...configs.registry import register
from ...models.documents.document import InterleavedDocument, TextSegment
from ..base import Completion, RewardOutput
from .structure import outline_of

_THINK_VIS = re.compile(r"(?:\s*<think>[^<>]+</think>\s*<vis>\N{OBJECT REPLACEMENT CHARACTER}</vis>)+\s*")


@register("reward", "format")
@dataclass
class FormatReward:
    """Structural fidelity: 1 for a complete document of the pattern, 0 otherwise.

    A document that never ended is not complete. `alternating`: text, picture, text, picture, ... `think-vis`: the
    paper's `<think>text</think> <vis>picture</vis>`, repeated. Where the prompt outlines its scenes
    (`meta["outline"]`), there must be one step for each.
    """

    pattern: Literal["alternating", "think-vis"] = "alternating"
    """Text and picture in turn, or the tags of U-GRPO."""

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        scores: list[float | None] = [float(self._holds(completion)) for completion in completions]
        return RewardOutput(scores, [[None] * len(completion.answer.segments) for completion in completions])

    def _holds(self, completion: Completion) -> bool:
        if not completion.ended:
            return False
        answer, outline = completion.answer, outline_of(completion.prompt)
        if outline is not None and len(answer.images) != len(outline):
            return False
        if self.pattern == "think-vis":
            return _THINK_VIS.fullmatch(_flat(answer)) is not None
        texts = [isinstance(segment, TextSegment) for segment in answer.segments]
        return bool(texts) and texts == [True, False] * (len(texts) // 2)


def _flat(document: InterleavedDocument) -> str:
    """The text with one placeholder character for each picture; the same character in a text does not count."""
    placeholder = "\N{OBJECT REPLACEMENT CHARACTER}"
    parts = (s.text.replace(placeholder, "?") if isinstance(s, TextSegment) else placeholder for s in document.segments)
    return "".join(parts)
