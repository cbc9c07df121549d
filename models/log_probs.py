"""How likely a model finds an answer: log-probs by token, with the segment and the modality that each belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .documents.document import InterleavedDocument
from .policy import UnifiedPolicy
from .tokens.sequence import TokenSequence, collate

CHUNK = 1024
"""Tokens that are scored against the vocabulary at a time; the scores of a whole document would be large."""


@dataclass(frozen=True, slots=True, eq=False)
class LogProbs:
    """Of the C tokens of an answer, in nats."""

    document: InterleavedDocument
    """The answer."""
    ids_C: Tensor
    """Joint ids, int64 [C]."""
    logp_C: Tensor
    """Log-prob of each, float32 [C]; 0 where the model had no choice (`chosen_C`)."""
    segment_C: Tensor
    """Index of the segment a token belongs to, int64 [C]; `<eos>` has the number of segments."""
    image_C: Tensor
    """True for the codes of pictures, bool [C]; `<boi>`, which opens one, is a choice among text ids."""
    chosen_C: Tensor
    """False where the grammar of pictures forces the token, bool [C]."""

    @property
    def segments(self) -> list[float]:
        """The sum of each segment of the answer; `<eos>` is in none of them."""
        return [self.logp_C[self.segment_C == k].sum().item() for k in range(len(self.document.segments))]

    @property
    def total(self) -> float:
        """The sum of all tokens, `<eos>` among them: the log-prob of the answer."""
        return self.logp_C.sum().item()


@torch.no_grad()
def log_probs(
    policy: UnifiedPolicy,
    sequence: TokenSequence,
    answer: InterleavedDocument,
    first: int = 0,
    temperature: float = 1.0,
    guidance: float = 1.0,
    max_images: int | None = None,
) -> LogProbs:
    """Of a prompt and an answer; `first` is the number that the sequence gives to the answer's first segment."""
    batch = collate([[sequence]], policy.vocabulary).to(policy.model.device)
    logp_BT, _ = policy.log_probs(policy.model, batch, temperature, max_images, guidance, CHUNK)
    own = slice(sequence.prompt_length, None)
    ids_C = sequence.ids_T[own]
    image_C = ids_C >= policy.vocabulary.text_size
    return LogProbs(
        answer, ids_C, logp_BT[0, own].cpu(), sequence.segment_T[own] - first, image_C, sequence.trainable_T[own]
    )
