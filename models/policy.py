"""UnifiedPolicy: what a base-model family must offer. Everything else in limner is written against this page.

A family is passed the module to call (`model`) where gradients flow, because under DDP, FSDP or ZeRO that is the *wrapped* one:
log-probs of an unwrapped module would skip the gradient synchronisation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from .errors import InputError
from .processing import Processor
from .sequence import TokenBatch


class UnifiedPolicy(ABC):
    family: str
    """Name in the registry and in a checkpoint."""

    def __init__(self, model: PreTrainedModel, processor: Processor):
        self.model = model
        self.processor = processor
        self.vocabulary = processor.vocabulary

    @abstractmethod
    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Last hidden states [B, T, H] of joint ids; `cache` takes their keys and values. For the sampler, so no gradient.

        `mask` is boolean [B, 1, T, cached + T], True where a token may attend.
        """

    @abstractmethod
    def text_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the V text ids, [..., V]."""

    @abstractmethod
    def image_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the image codes, [..., codes]."""

    @abstractmethod
    def logits(self, model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Scores before each position through the wrapped module: text [B, T-1, V] and image [B, T-1, codes].

        Entry t scores token t + 1.
        """

    def log_probs(
        self, model: Any, batch: TokenBatch, temperature: float = 1.0, max_images: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of each token under the distribution the sampler draws from, float32 [B, T].

        Text positions normalise over the text ids the grammar allows there, image positions over the image codes; forced and
        untrainable tokens get 0. This is the same softmax, mask and temperature as in `generation.generate`.
        """
        text, image = self.logits(model, batch)
        target = batch.ids_BT[:, 1:]
        chosen = batch.trainable_BT[:, 1:]
        size = self.vocabulary.text_size
        logp = torch.zeros(batch.ids_BT.shape, dtype=torch.float32, device=text.device)
        entropy = torch.zeros_like(logp)
        text_at, image_at = chosen & (target < size), chosen & (target >= size)
        allowed = self.text_allowed(batch.images_before_BT[:, 1:][text_at], max_images)
        for at, scores, offset, mask in ((text_at, text, 0, allowed), (image_at, image, size, None)):
            log_p, h = _score(scores[at].float() / temperature, target[at] - offset, mask)
            where = torch.nn.functional.pad(at, (1, 0))
            logp = logp.masked_scatter(where, log_p)
            entropy = entropy.masked_scatter(where, h)
        return logp, entropy

    def text_allowed(self, images_before: Tensor, max_images: int | None) -> Tensor:
        """Text ids the grammar lets the model choose after so many images: bool [..., V]."""
        allowed = torch.ones(*images_before.shape, self.vocabulary.text_size, dtype=torch.bool, device=images_before.device)
        allowed[..., list(self.vocabulary.never_sampled)] = False
        if max_images is not None:
            allowed[..., self.vocabulary.controls.boi] = images_before < max_images
        return allowed


def _score(scores: Tensor, target: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-prob of `target` and entropy of the softmax, each [n], for scores [n, choices]."""
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    log_p = scores.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == float("-inf"), 0)).sum(-1)
    return log_p.gather(-1, target[:, None])[:, 0], entropy


_FAMILIES: dict[str, type[UnifiedPolicy]] = {}


def register(family: type[UnifiedPolicy]) -> type[UnifiedPolicy]:
    _FAMILIES[family.family] = family
    return family


def family(name: str) -> type[UnifiedPolicy]:
    """The class of a family. Raises InputError that lists the known ones."""
    if name not in _FAMILIES:
        raise InputError(f"model family {name!r} is not known; known: {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[name]
