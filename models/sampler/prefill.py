"""Prompts through the model, each once, for all the rows that begin with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..attention import causal_mask
from ..policy import UnifiedPolicy
from ..tokens.sequence import TokenSequence, taken_away
from .request import Request

Key = tuple[str, int]
"""What a row or a twin begins with: a prompt, by its identity, or what guidance makes of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Prefilled prompts, n of them."""

    row: dict[Key, int]
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values [n, heads, T, d]."""
    hidden: Tensor
    """Of the last token of each, [n, H]."""
    length: list[int]
    prompts: list[TokenSequence]
    """Those whose identity is in the keys: they live as long."""

    def only(self, keys: Iterable[Key], prompts: list[TokenSequence]) -> Prefix:
        """A part of it, without the memory of the rest."""
        kept = [key for key in keys if key in self.row]
        length = [self.length[self.row[key]] for key in kept]
        at, longest = torch.tensor([self.row[key] for key in kept], device=self.hidden.device), max(length, default=0)
        layers = [(keys[at, :, :longest], values[at, :, :longest]) for keys, values in self.layers]
        return Prefix({key: row for row, key in enumerate(kept)}, layers, self.hidden[at], length, prompts)


def key_of(prompt: TokenSequence) -> Key:
    return "with", id(prompt)


def key_without(policy: UnifiedPolicy, prompt: TokenSequence) -> Key:
    """A padded prompt is one of its own, an empty one is the same for all."""
    return "without", id(prompt) if policy.vocabulary.pads_prompt else 0


def prefill(policy: UnifiedPolicy, requests: Sequence[Request], known: Iterable[Key] = ()) -> Prefix | None:
    """What these requests begin with, but for what is known already; None if that is all."""
    starts = starts_of(policy, requests, known)
    prompts = [request.prompt for request in requests if starts.get(key_of(request.prompt)) is request.prompt.ids_T]
    features = features_of(policy, list({id(prompt): prompt for prompt in prompts}.values()))
    if not starts:
        return None
    device = next(policy.model.parameters()).device
    length, n = [len(ids_T) for ids_T in starts.values()], len(starts)
    ids = torch.full((n, max(length)), policy.vocabulary.controls.pad)
    for row, ids_T in enumerate(starts.values()):
        ids[row, : len(ids_T)] = ids_T
    ids, order = ids.to(device), torch.arange(max(length), device=device)
    cache, mask = DynamicCache(), causal_mask(n, max(length), policy.model)
    hidden = policy.hidden(ids, order.expand(n, -1), mask, cache, features)
    last = torch.tensor(length, device=device) - 1
    hidden = hidden[torch.arange(n, device=device), last]
    layers: Any = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]
    held = list({id(request.prompt): request.prompt for request in requests}.values())
    return Prefix({key: row for row, key in enumerate(starts)}, layers, hidden, length, held)


def starts_of(policy: UnifiedPolicy, requests: Sequence[Request], known: Iterable[Key] = ()) -> dict[Key, Tensor]:
    """The ids that these requests and their twins begin with, each once, but for what is known; those of rows first."""
    vocabulary, known = policy.vocabulary, set(known)
    starts: dict[Key, Tensor] = {}
    for request in requests:
        if (key := key_of(request.prompt)) not in known:
            starts.setdefault(key, request.prompt.ids_T)
    for request in requests:
        key = key_without(policy, request.prompt)
        if not request.sampling.guided or key in known or key in starts:
            continue
        if vocabulary.pads_prompt:
            taken_T = taken_away(request.prompt, vocabulary)
            starts[key] = request.prompt.ids_T.masked_fill(taken_T, vocabulary.controls.pad)
        else:
            starts[key] = torch.tensor(vocabulary.unconditional)
    return starts


def features_of(policy: UnifiedPolicy, prompts: Sequence[TokenSequence]) -> Tensor | None:
    """What a model with a picture encoder of its own sees at the placeholders, [n, H]."""
    if not policy.vocabulary.features:
        return None
    pixels = [slot.pixels for prompt in prompts for slot in prompt.slots if slot.pixels is not None]
    if not pixels:
        return None
    return policy.image_features(torch.stack(pixels).to(next(policy.model.parameters()).device)).flatten(0, 1)
