"""A long prompt through the model a part at a time, so that rows that run do not wait for all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..policy import UnifiedPolicy
from .prefill import Key, Prefix, features_of, starts_of
from .request import Request


def prefill_in_chunks(policy: UnifiedPolicy, request: Request, chunk: int) -> Iterator[Prefix | None]:
    """None after each part, and at last what the request begins with (`Sampler.know`): its prompt, and its twin's."""
    starts, device = starts_of(policy, [request]), next(policy.model.parameters()).device
    features, seen = features_of(policy, [request.prompt]), 0
    caches: list[DynamicCache] = []
    last: list[Tensor] = []
    for ids_T in starts.values():
        cache, hidden, ids = DynamicCache(), None, ids_T[None].to(device)
        order = torch.arange(ids.shape[1], device=device)
        for begin in range(0, len(order), chunk):
            part = order[begin : begin + chunk]
            mask = (order[: begin + len(part)] <= part[:, None])[None, None]
            here = int((ids[:, part] == policy.vocabulary.controls.image).sum()) if features is not None else 0
            of_part = None if features is None else features[seen : seen + here]
            seen += here
            hidden = policy.hidden(ids[:, part], part[None], mask, cache, of_part)
            yield None
        assert hidden is not None
        caches.append(cache)
        last.append(hidden[0, -1])
    yield _together(starts, caches, last, request)


def _together(starts: dict[Key, Tensor], caches: list[DynamicCache], last: list[Tensor], request: Request) -> Prefix:
    """One prefix of several, which are padded behind to the longest."""
    length = [len(ids_T) for ids_T in starts.values()]

    def padded(part: Tensor) -> Tensor:
        return torch.nn.functional.pad(part, (0, 0, 0, max(length) - part.shape[2]))

    layers: Any = [
        tuple(torch.cat([padded(getattr(layer, name)) for layer in of_all]) for name in ("keys", "values"))
        for of_all in zip(*(cache.layers for cache in caches), strict=True)
    ]
    return Prefix({key: row for row, key in enumerate(starts)}, layers, torch.stack(last), length, [request.prompt])
