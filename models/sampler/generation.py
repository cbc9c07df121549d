"""The sampler as RL, evaluation and serving call it: prompts to completions, all at once or as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from ..policy import UnifiedPolicy
from ..tokens.sequence import TokenSequence
from .request import Request, Sample, Sampling
from .slots import Sampler
from .steps import Steps, compiled

COMPACT_BELOW = 0.8
"""Rows that have ended make way for those that wait, or leave the batch, when the running share falls below this."""


@torch.inference_mode()
def generate(
    policy: UnifiedPolicy,
    prompts: Sequence[TokenSequence],
    sampling: Sampling | Sequence[Sampling],
    group_sizes: int | Sequence[int] = 1,
    rows: Sequence[int] | None = None,
    at_once: int | None = None,
    steps: Steps = "plain",
) -> list[Sample]:
    """So many completions of each prompt, group by group; a prompt is prefilled once for its group.

    Each completion draws from the uniforms of (seed, its row), counted from 0 where `rows` does not say: a long list
    may be cut into calls at will. No more than `at_once` of them run at a time; when some have ended, the next take
    their places. `sampling` is that of all or one a prompt; `steps` as for `Sampler`.
    """
    sizes = [group_sizes] * len(prompts) if isinstance(group_sizes, int) else list(group_sizes)
    each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    asked = [(p, s) for p, s, size in zip(prompts, each, sizes, strict=True) for _ in range(size)]
    numbers = range(len(asked)) if rows is None else rows
    return complete(policy, [Request(*a, row) for a, row in zip(asked, numbers, strict=True)], at_once, steps)


@torch.inference_mode()
def complete(
    policy: UnifiedPolicy, requests: Sequence[Request], at_once: int | None = None, steps: Steps = "plain"
) -> list[Sample]:
    """The completion of each request. Those of one prompt share their prefill where they are neighbours."""
    samples: dict[int, Sample] = {}
    most, waiting = at_once or len(requests), list(enumerate(requests))[::-1]
    with evaluating(policy, [request.sampling for request in requests], steps):
        sampler = Sampler(policy, steps)
        while len(samples) < len(requests):
            if waiting and sampler.running <= COMPACT_BELOW * most:
                samples |= sampler.leave()
                next_ones = [waiting.pop() for _ in range(min(most - sampler.running, len(waiting)))]
                sampler.admit(*zip(*next_ones, strict=True))
            sampler.draw()
            if not sampler.running or (not waiting and sampler.busy < COMPACT_BELOW * sampler.slots):
                samples |= sampler.leave()
                sampler.shrink()
            sampler.feed()
    return [samples[number] for number in range(len(requests))]


@torch.inference_mode()
def stream(policy: UnifiedPolicy, prompt: TokenSequence, sampling: Sampling) -> Iterator[int]:
    """The joint ids of one completion, those of a text as they are drawn, those of a picture when it is whole.

    They are the ones that `generate` gives.
    """
    with evaluating(policy, [sampling]):
        sampler = Sampler(policy)
        sampler.admit([0], [Request(prompt, sampling, 0)])
        while sampler.running:
            sampler.draw()
            if not sampler.late:
                yield from sampler.read().get(0, [])
            sampler.feed()
            if sampler.late:
                yield from sampler.read().get(0, [])


@contextmanager
def evaluating(policy: UnifiedPolicy, samplings: Sequence[Sampling], steps: Steps = "plain") -> Iterator[None]:
    """Around a sampler: the weights stand still, and the decoder is compiled where its steps shall be."""
    was_training = policy.model.training
    policy.model.eval()
    try:
        images = any(sampling.max_images != 0 for sampling in samplings)
        decoder = compiled(policy) if steps == "compiled" else nullcontext()
        with decoder, policy.standing_still(images=images), policy.float32_heads.kept(policy.model):
            yield
    finally:
        policy.model.train(was_training)
