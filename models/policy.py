"""UnifiedPolicy: what a base-model family must offer. Everything else in limner is written against this page.

A family is passed the module to call (`model`) where gradients flow, because under DDP, FSDP or ZeRO that is the
*wrapped* one: log-probs of an unwrapped module would skip the gradient synchronisation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
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
        self._stock_forward = model.forward
        model.forward = self._forward  # type: ignore[method-assign]

    @abstractmethod
    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        """Last hidden states [B, T, H] of joint ids; `cache`, if given, takes their keys and values.

        `mask` is boolean [B, 1, T, cached + T], True where a token may attend.
        """

    @abstractmethod
    def text_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the V text ids, [..., V]."""

    @abstractmethod
    def image_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the image codes, [..., codes]."""

    def log_probs(
        self, model: Any, batch: TokenBatch, temperature: float = 1.0, max_images: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of each token under the distribution the sampler draws from, float32 [B, T].

        `model` is the module to call: the wrapped one where gradients flow. Text positions normalise over the text ids
        the grammar allows there, image positions over the image codes; forced and untrainable tokens get 0. It is the
        same softmax, mask and temperature as in `generation.generate`; a test replays samples and compares.
        """
        return model(token_batch=batch, temperature=temperature, max_images=max_images)

    def _forward(self, *args, token_batch: TokenBatch | None = None, temperature=1.0, max_images=None, **kwargs):
        """The model's forward, which now also scores a TokenBatch.

        It must happen inside the module's own forward: DDP, FSDP and ZeRO hook into that call.
        """
        if token_batch is None:
            return self._stock_forward(*args, **kwargs)
        batch, size = token_batch, self.vocabulary.text_size
        hidden = self.hidden(batch.ids_BT, batch.positions_BT, batch.mask_BTT(), None)[:, :-1]
        target = batch.ids_BT[:, 1:]
        chosen = batch.trainable_BT[:, 1:]
        text_at, image_at = chosen & (target < size), chosen & (target >= size)
        allowed = self.text_allowed(batch.images_before_BT[:, 1:][text_at], max_images)
        text = self.text_logits(hidden[text_at]).float().masked_fill(~allowed, float("-inf"))
        image = self.image_logits(hidden[image_at]).float()
        logp = torch.zeros(target.shape, dtype=torch.float32, device=target.device)
        entropy = torch.zeros_like(logp)
        for at, scores, index in ((text_at, text, target[text_at]), (image_at, image, target[image_at] - size)):
            log_p, h = _score(scores / temperature, index)
            logp = logp.masked_scatter(at, log_p)
            entropy = entropy.masked_scatter(at, h)
        return pad(logp, (1, 0)), pad(entropy, (1, 0))

    def frozen_copy(self) -> UnifiedPolicy:
        """The policy as it is now, for a KL reference: own weights, no gradient."""
        model: Any = type(self.model)(self.model.config)
        model.to(self.model.device, self.model.dtype)
        model.load_state_dict(self.model.state_dict())
        model.requires_grad_(False).eval()
        return type(self)(model, self.processor)

    def text_allowed(self, images_before: Tensor, max_images: int | None) -> Tensor:
        """Text ids the grammar lets the model choose after so many images: bool [..., V]."""
        allowed = torch.ones(
            *images_before.shape, self.vocabulary.text_size, dtype=torch.bool, device=images_before.device
        )
        allowed[..., list(self.vocabulary.never_sampled)] = False
        if max_images is not None:
            allowed[..., self.vocabulary.controls.boi] = images_before < max_images
        return allowed


def _score(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-prob of `target` and entropy of the softmax, each [n], for scores [n, choices]; -inf masks a choice."""
    log_p = scores.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == float("-inf"), 0)).sum(-1)
    return log_p.gather(-1, target[:, None])[:, 0], entropy


_FAMILIES: dict[str, type[UnifiedPolicy]] = {}


Family = TypeVar("Family", bound=type[UnifiedPolicy])


def register(family: Family) -> Family:
    _FAMILIES[family.family] = family
    return family


def family(name: str) -> type[UnifiedPolicy]:
    """The class of a family. Raises InputError that lists the known ones."""
    if name not in _FAMILIES:
        raise InputError(f"model family {name!r} is not known; known: {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[name]
