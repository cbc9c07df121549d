"""The sampler: one function for RL, evaluation and serving.

Rows are ragged: one may be inside an image while its neighbour writes text. The grammar is forced (the whole pattern of
an image behind `<boi>`, at most `max_images`), each token is drawn with a uniform fixed by (seed, row, position),
so a row does not depend on its neighbours, and every log-prob is that of the distribution that was really sampled. No
step runs Python per row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .errors import InputError
from .policy import UnifiedPolicy, tempered
from .sequence import CODE, TokenSequence, taken_away

TEXT = -1
"""Value of a row's place while it writes text; else its place in the pattern of an image."""
COMPACT_BELOW = 0.8
"""Finished rows leave the batch when the running share falls below this."""


@dataclass(frozen=True, slots=True)
class Sampling:
    max_new_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy decoding."""
    top_k: int = 0
    """Keep the k likeliest choices; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of choices with this probability."""
    max_images: int | None = None
    guidance: float = 1.0
    """Classifier-free guidance of image tokens; 1 is none. Every row then has a second one without its prompt."""
    begin_with_image: bool = False
    """The answer's first token is `<boi>`, whatever the model thinks of it."""
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": 0 <= self.temperature < math.inf,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "max_images": self.max_images is None or self.max_images >= 0,
            "guidance": 0 <= self.guidance < math.inf,
            "seed": 0 <= self.seed < 2**63,
        }
        if wrong := [name for name, holds in ranges.items() if not holds]:
            raise InputError(f"sampling: {wrong[0]} = {getattr(self, wrong[0])} is out of range")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sampled completion."""

    ids_C: Tensor
    """Joint ids, int64 [C], with `<eos>` unless the length limit came first."""
    logp_C: Tensor
    """Log-prob of each id as it was sampled, float32 [C]; 0 for a forced one and in greedy decoding."""


class _GrowingLayer(DynamicLayer):
    """A cache layer with room for the whole completion, so that a step writes one column instead of copying all."""

    keys: Tensor
    values: Tensor

    def __init__(self, room: int):
        super().__init__()
        self.room, self.length = room, 0

    def _reserve(self, source: Tensor) -> Tensor:
        buffer = source.new_empty(*source.shape[:2], self.room, source.shape[3])
        buffer[:, :, : source.shape[2]] = source
        return buffer

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.length == 0:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = self._reserve(key_states), self._reserve(value_states)
            self.length = key_states.shape[2]
        else:
            end = self.length + key_states.shape[2]
            self.keys[:, :, self.length : end] = key_states
            self.values[:, :, self.length : end] = value_states
            self.length = end
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def select(self, rows_R: Tensor) -> None:
        """Keeps these rows, repeated where asked."""
        used = slice(0, self.length)
        self.keys = self._reserve(self.keys[:, :, used].index_select(0, rows_R))
        self.values = self._reserve(self.values[:, :, used].index_select(0, rows_R))


@torch.no_grad()
def generate(
    policy: UnifiedPolicy,
    prompts: Sequence[TokenSequence],
    sampling: Sampling,
    group_sizes: int | Sequence[int] = 1,
    rows: Sequence[int] | None = None,
) -> list[Sample]:
    """So many completions of each prompt, group by group; a prompt is prefilled once for its group.

    Each completion draws from the uniforms of (seed, its row), counted from 0 where `rows` does not say: a long list
    may be cut into calls at will.
    """
    if not prompts:
        return []
    sizes = [group_sizes] * len(prompts) if isinstance(group_sizes, int) else list(group_sizes)
    with _evaluating(policy):
        run = _Run(policy, prompts, sampling, sizes, range(sum(sizes)) if rows is None else rows)
        for _ in run.steps():
            pass
        return run.samples()


@torch.no_grad()
def stream(policy: UnifiedPolicy, prompt: TokenSequence, sampling: Sampling) -> Iterator[int]:
    """The joint ids of one completion as they are drawn; the same that `generate` gives."""
    with _evaluating(policy):
        run = _Run(policy, [prompt], sampling, [1], [0])
        for step in run.steps():
            yield int(run.ids[0, step])


@contextmanager
def _evaluating(policy: UnifiedPolicy) -> Iterator[None]:
    was_training = policy.model.training
    policy.model.eval()
    try:
        yield
    finally:
        policy.model.train(was_training)


class _Run:
    """The tensors of one call. `rows` maps the running rows to the rows asked for.

    Under guidance the model's batch holds every row twice: with its prompt, and after all of those without.
    """

    def __init__(self, policy: UnifiedPolicy, prompts, sampling: Sampling, group_sizes: list[int], rows: Sequence[int]):
        self.policy, self.sampling, self.vocabulary = policy, sampling, policy.vocabulary
        device = next(policy.model.parameters()).device
        total = sum(group_sizes)
        self.guided = sampling.guidance != 1.0
        self.uniforms = _uniforms(sampling.seed, rows, sampling.max_new_tokens).to(device)
        self.ids = torch.full((total, sampling.max_new_tokens), self.vocabulary.controls.pad, device=device)
        self.logp = torch.zeros(total, sampling.max_new_tokens, device=device)
        self.length = torch.full((total,), sampling.max_new_tokens, device=device)
        self.rows = torch.arange(total, device=device)
        self.done = torch.zeros(total, dtype=torch.bool, device=device)
        self.place = torch.full((total,), TEXT, device=device)
        self.pattern = torch.tensor(self.vocabulary.image, device=device)
        self.sees_again = self.vocabulary.controls.image in self.vocabulary.image
        self.seen: Tensor | None = None
        self.images = torch.zeros(total, dtype=torch.long, device=device)

        starts = [prompt.ids_T for prompt in prompts]
        repeat = torch.arange(len(prompts)).repeat_interleave(torch.tensor(group_sizes)).to(device)
        if self.guided and self.vocabulary.pads_prompt:
            pad_id = self.vocabulary.controls.pad
            starts += [prompt.ids_T.masked_fill(taken_away(prompt, self.vocabulary), pad_id) for prompt in prompts]
            repeat = torch.cat([repeat, repeat + len(prompts)])
        elif self.guided:
            starts.append(torch.tensor([*self.vocabulary.start, *self.vocabulary.answer]))
            repeat = torch.cat([repeat, torch.full_like(repeat, len(prompts))])
        width = max(map(len, starts))
        ids = torch.full((len(starts), width), self.vocabulary.controls.pad)
        attend = torch.zeros(len(starts), width, dtype=torch.bool)
        for row, start in enumerate(starts):
            ids[row, width - len(start) :] = start
            attend[row, width - len(start) :] = True
        ids, attend = ids.to(device), attend.to(device)
        positions = (attend.cumsum(1) - 1).clamp(min=0)
        mask = attend[:, None, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()
        mask |= torch.eye(
            width, dtype=torch.bool, device=device
        )  # a padding query attends itself: no softmax over nothing
        layers = policy.model.config.get_text_config().num_hidden_layers
        self.cache = Cache(layers=[_GrowingLayer(width + sampling.max_new_tokens) for _ in range(layers)])
        hidden = policy.hidden(ids, positions, mask, self.cache, self._features_of_prompts(prompts))[:, -1]

        self.hidden = hidden.index_select(0, repeat)
        for layer in self.cache.layers:
            layer.select(repeat)  # type: ignore[union-attr]
        pad = torch.ones(len(repeat), sampling.max_new_tokens, dtype=torch.bool, device=device)
        self.attend = torch.cat([attend.index_select(0, repeat), pad], dim=1)
        self.prompt_length = attend.sum(1).index_select(0, repeat)
        self.width = width

    def steps(self) -> Iterator[int]:
        """Draws one token of every running row, and says which."""
        last = self.sampling.max_new_tokens - 1
        for step in range(self.sampling.max_new_tokens):
            next_R = self._choose(step)
            yield step
            ended = (next_R == self.vocabulary.controls.eos) & ~self.done
            self.length[self.rows[ended]] = step + 1
            self.done |= ended
            if step == last or self.done.all():
                break
            next_R = self._compact(next_R)
            ids = next_R.repeat(2 if self.guided else 1)[:, None]
            end = self.width + step + 1
            positions = (self.prompt_length + step)[:, None]
            mask = self.attend[:, None, None, :end]
            self.hidden = self.policy.hidden(ids, positions, mask, self.cache, self._features_of(next_R))[:, -1]

    def samples(self) -> list[Sample]:
        lengths = self.length.tolist()
        ids, logp = self.ids.cpu(), self.logp.cpu()
        return [Sample(ids[row, :length].clone(), logp[row, :length].clone()) for row, length in enumerate(lengths)]

    def _choose(self, step: int) -> Tensor:
        """Draws the next id of every running row and moves its state on."""
        control, size = self.vocabulary.controls, self.vocabulary.text_size
        next_R = self.pattern[self.place]  # a row in a text takes the last one, and loses it below
        logp_R = torch.zeros(len(self.rows), device=next_R.device)
        text, image = self.place == TEXT, next_R == CODE
        uniform_R = self.uniforms[self.rows, step]
        hidden, *without = self.hidden.split(len(self.rows))
        if step == 0 and self.sampling.begin_with_image:
            next_R = torch.full_like(next_R, control.boi)
        elif text.any():
            scores = self.policy.allowed_text_logits(hidden[text], self.images[text], self.sampling.max_images)
            next_R[text], logp_R[text] = _draw(scores, uniform_R[text], self.sampling)
        if image.any():
            scores = self.policy.guided_image_logits(
                hidden[image], *(states[image] for states in without), guidance=self.sampling.guidance
            )
            codes, logp_R[image] = _draw(scores, uniform_R[image], self.sampling)
            next_R[image] = codes + size
        begun = text & (next_R == control.boi)
        self.place = torch.where(text, TEXT, self.place + 1)
        self.place = self.place.masked_fill(self.place == len(self.pattern), TEXT).masked_fill(begun, 0)
        self.images += begun
        self.ids[self.rows, step] = next_R
        self.logp[self.rows, step] = logp_R
        if self.sees_again and (painted := image & (self.place == self.vocabulary.last_code + 1)).any():
            self._see_again(painted, step)
        return next_R

    def _compact(self, next_R: Tensor) -> Tensor:
        """Drops finished rows once they are many; until then they run on, unread."""
        if (~self.done).sum() >= COMPACT_BELOW * len(self.done):
            return next_R
        keep = (~self.done).nonzero()[:, 0]
        both = torch.cat([keep, keep + len(self.rows)]) if self.guided else keep
        self.attend, self.prompt_length = self.attend[both], self.prompt_length[both]
        for layer in self.cache.layers:
            layer.select(both)  # type: ignore[union-attr]
        self.rows, self.place, self.images = self.rows[keep], self.place[keep], self.images[keep]
        self.done = self.done[keep]
        return next_R[keep]

    # ---- a model with a picture encoder of its own ----

    def _features_of_prompts(self, prompts: Sequence[TokenSequence]) -> Tensor | None:
        if not self.vocabulary.features:
            return None
        pixels = [slot.pixels for prompt in prompts for slot in prompt.slots if slot.pixels is not None]
        if not pixels:
            return None
        return self.policy.image_features(torch.stack(pixels).to(self.ids.device)).flatten(0, 1)

    def _see_again(self, painted_R: Tensor, step: int) -> None:
        """Features of the pictures that these rows have just finished."""
        vocabulary, processor = self.vocabulary, self.policy.processor
        rows, span = self.rows[painted_R], vocabulary.last_code + 1
        ids = self.ids[rows, step + 1 - span : step + 1][:, self.pattern[:span] == CODE]
        pixels = torch.stack([processor.seen_again(codes_N) for codes_N in (ids - vocabulary.text_size).cpu().numpy()])
        features = self.policy.image_features(pixels.to(ids.device))
        if self.seen is None:
            self.seen = features.new_zeros(len(self.ids), *features.shape[1:])
        self.seen[rows] = features

    def _features_of(self, next_R: Tensor) -> Tensor | None:
        """What stands at the placeholders among the next ids of the model's batch."""
        if self.seen is None:
            return None
        at = next_R == self.vocabulary.controls.image
        number = (self.pattern == self.vocabulary.controls.image).cumsum(0) - 1
        features = self.seen[self.rows[at], number[self.place[at] - 1]]
        return features.repeat(2, 1) if self.guided else features


def _draw(scores: Tensor, uniform_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One choice a row by the inverse of the cumulative distribution, and its log-prob."""
    if sampling.temperature == 0:
        return scores.argmax(-1), torch.zeros(len(scores), device=scores.device)
    scores = tempered(scores, sampling.temperature)
    if sampling.top_k and sampling.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[:, -1:], float("-inf"))
    if sampling.top_p < 1:
        ordered, order = scores.softmax(-1).sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        scores = scores.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
    log_p = scores.log_softmax(-1)
    cumulative = log_p.double().exp().cumsum(-1)
    # Scaled by the last sum, so that rounding can never leave the last choice behind.
    choice = torch.searchsorted(cumulative, (uniform_R.double() * cumulative[:, -1])[:, None], right=True)[:, 0]
    choice = choice.clamp(max=scores.shape[-1] - 1)
    return choice, log_p.gather(-1, choice[:, None])[:, 0]


def _uniforms(seed: int, rows: Sequence[int], length: int) -> Tensor:
    """Uniforms [rows, length] of a counter-based generator keyed by (seed, row)."""
    return torch.from_numpy(
        np.stack([np.random.Generator(np.random.Philox(key=[seed, row])).random(length) for row in rows])
    )
