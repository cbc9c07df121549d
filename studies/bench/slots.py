"""What rows that join and leave are worth, and how often the sampler waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import torch

from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import complete
from ...models.sampler.request import Request, Sampling
from ...models.sampler.state import Message
from ...models.tokens.sequence import TokenSequence
from .clock import device, now

WAITS = {"cpu": ("aten::_local_scalar_dense", "aten::nonzero"), "cuda": ("Memcpy DtoH",)}
"""Beginnings of the names of what makes the host wait, as the profiler has them; on a GPU the first two are copies."""
TEXT_STEPS = 16
WAVES, SHORT, LONG = 4, 8, 96
"""Rows at a time of all; the shortest and the longest completion, in tokens."""


def waits(policy: UnifiedPolicy, prompt: TokenSequence, rows: int) -> dict[str, float]:
    """How often the host waits in a step of texts, and in one of pictures.

    Each is the difference of two runs, so that what beginning and ending cost is not in it.
    """
    image = policy.vocabulary.image_length

    def counted(**settings: Any) -> int:
        requests = [Request(prompt, Sampling(seed=1, **settings), row) for row in range(rows)]
        return count_waits(lambda: complete(policy, requests))

    texts = [counted(max_new_tokens=steps, max_images=0) for steps in (TEXT_STEPS, 2 * TEXT_STEPS)]
    pictures = [counted(max_new_tokens=1 + steps, begin_with_image=True) for steps in (1, image)]
    return {
        "text": (texts[1] - texts[0]) / TEXT_STEPS,
        "picture": (pictures[1] - pictures[0]) / max(image - 1, 1),
    }


def count_waits(work: Callable[[], Any]) -> int:
    """Of the host for the device, whoever the work is by."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device() == "cuda" else []
    with _messages() as read, torch.profiler.profile(activities=activities) as profile:
        work()
    found = sum(event.count for event in profile.key_averages() if event.key.startswith(WAITS[device()]))
    return found + (0 if device() == "cuda" else len(read))  # on a CPU no copy shows


@contextmanager
def _messages() -> Iterator[list[None]]:
    read, stock = [], Message.read

    def counted(self: Message) -> Any:
        read.append(None)
        return stock(self)

    Message.read = counted  # type: ignore[method-assign]
    try:
        yield read
    finally:
        Message.read = stock  # type: ignore[method-assign]


def refilled_and_waves(policy: UnifiedPolicy, prompt: TokenSequence, rows: int, turns: int) -> dict[str, Any]:
    """Texts of unequal lengths, so many at a time, by slots that refill and in waves.

    Of each way the steps and the rows that went through the model in all of them, and its seconds, turn by turn.
    """
    chance = Random(0)
    lengths = [chance.randint(SHORT, LONG) for _ in range(WAVES * rows)]
    requests = [Request(prompt, Sampling(n, max_images=0, seed=1), row) for row, n in enumerate(lengths)]

    def waves() -> None:
        for first in range(0, len(requests), rows):
            complete(policy, requests[first : first + rows])

    ways: dict[str, Callable[[], Any]] = {"refilled": lambda: complete(policy, requests, rows), "waves": waves}
    found: dict[str, Any] = {name: _steps(policy, way) | {"seconds": []} for name, way in ways.items()}
    for turn in range(turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            started = now()
            ways[name]()
            found[name]["seconds"].append(now() - started)
    return found


def _steps(policy: UnifiedPolicy, work: Callable[[], Any]) -> dict[str, int]:
    stock, fed = policy.hidden, []

    def counted(ids_BT: torch.Tensor, *others: Any) -> torch.Tensor:
        fed.extend([len(ids_BT)] if ids_BT.shape[1] == 1 else [])  # else a prompt
        return stock(ids_BT, *others)

    policy.hidden = counted  # type: ignore[method-assign]
    try:
        work()
    finally:
        policy.hidden = stock  # type: ignore[method-assign]
    return {"steps": len(fed), "rows": sum(fed)}
