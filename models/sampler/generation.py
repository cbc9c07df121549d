"""The sampler: one function for RL, evaluation and serving.

Rows are ragged: one may be inside an image while its neighbour writes text. The grammar is forced (the whole pattern of
an image behind `<boi>`, at most `max_images`), each token is drawn with a uniform fixed by (seed, row, position),
so a row does not depend on its neighbours, and every log-prob is that of the distribution that was really sampled. No
step runs Python per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ...configs.bounds import Guidance, NoneOrMore, OneOrMore, Range, Temperature, TopP
from ...configs.schema import check_ranges
from ..policy import UnifiedPolicy, tempered
from ..tokens.sequence import CODE, TokenSequence, taken_away

TEXT = 0
"""A row's place while it writes text; 1 and on are those of an image's pattern, the one behind it a finished row's."""
ANY_TEXT = -2
"""What is due in a text; else `CODE`, or the id that the grammar forces."""
BLOCK = 128
"""Choices that are summed up together before one is drawn."""
COMPACT_BELOW = 0.8
"""Finished rows leave the batch when the running share falls below this."""


@dataclass(frozen=True, slots=True)
class Sampling:
    max_new_tokens: OneOrMore = 256
    temperature: Temperature = 1.0
    """0 is greedy decoding."""
    top_k: NoneOrMore = 0
    """Keep the k likeliest choices; 0 keeps all."""
    top_p: TopP = 1.0
    """Keep the smallest set of choices with this probability."""
    max_images: NoneOrMore | None = None
    guidance: Guidance = 1.0
    """Classifier-free guidance of image tokens; 1 is none. Every row then has a second one without its prompt."""
    begin_with_image: bool = False
    """The answer's first token is `<boi>`, whatever the model thinks of it."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "sampling")


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
        key_states, value_states = _as_in_products(key_states), _as_in_products(value_states)
        if self.length == 0:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = self._reserve(key_states), self._reserve(value_states)
            self.length = key_states.shape[2]
        else:
            new = key_states.shape[2]
            self.keys.narrow(2, self.length, new).copy_(key_states)
            self.values.narrow(2, self.length, new).copy_(value_states)
            self.length += new
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def get_seq_length(self) -> int:
        return self.length

    def select(self, rows_R: Tensor) -> None:
        """Keeps these rows, repeated where asked."""
        self.keys, self.values = self._selected(self.keys, rows_R), self._selected(self.values, rows_R)

    def _selected(self, source: Tensor, rows_R: Tensor) -> Tensor:
        buffer = source.new_empty(len(rows_R), *source.shape[1:])
        torch.index_select(source.narrow(2, 0, self.length), 0, rows_R, out=buffer.narrow(2, 0, self.length))
        return buffer


def _as_in_products(states: Tensor) -> Tensor:
    """As attention takes them under autocast, which else would cast the whole cache for every token."""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


@torch.inference_mode()
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
    with _evaluating(policy, sampling):
        run = _Run(policy, prompts, sampling, sizes, range(sum(sizes)) if rows is None else rows)
        for _ in run.steps():
            pass
        return run.samples()


@torch.inference_mode()
def stream(policy: UnifiedPolicy, prompt: TokenSequence, sampling: Sampling) -> Iterator[int]:
    """The joint ids of one completion as they are drawn; the same that `generate` gives."""
    with _evaluating(policy, sampling):
        run = _Run(policy, [prompt], sampling, [1], [0])
        for step in run.steps():
            yield int(run.ids[0, step])


@contextmanager
def _evaluating(policy: UnifiedPolicy, sampling: Sampling) -> Iterator[None]:
    was_training = policy.model.training
    policy.model.eval()
    try:
        with policy.standing_still(images=sampling.max_images != 0), policy.float32_heads.kept():
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
        self.rows = torch.arange(total, device=device)
        self.place = torch.full((total,), TEXT, device=device)
        self.pattern = torch.tensor(self.vocabulary.image, device=device)
        self.finished, control = len(self.pattern) + 1, self.vocabulary.controls
        self.due = torch.tensor([ANY_TEXT, *self.vocabulary.image, control.pad], device=device)
        self.after = torch.tensor([TEXT, *range(2, self.finished), TEXT, self.finished], device=device)
        self.led_to = torch.full((self.vocabulary.text_size,), TEXT, device=device)
        """The place behind a text id."""
        self.led_to[control.boi], self.led_to[control.eos] = 1, self.finished
        self.running = total
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
            starts.append(torch.tensor(self.vocabulary.unconditional))
            repeat = torch.cat([repeat, torch.full_like(repeat, len(prompts))])
        width = max(map(len, starts))
        policy.check_prompt(max(map(len, prompts)))
        policy.check_length(width + sampling.max_new_tokens)
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
        self.attend = torch.cat([attend.index_select(0, repeat), pad], dim=1)[:, None, None]
        self.prompt_length = attend.sum(1, keepdim=True).index_select(0, repeat)
        self.width = width

    def steps(self) -> Iterator[int]:
        """Draws one token of every running row, and says which."""
        last = self.sampling.max_new_tokens - 1
        for step in range(self.sampling.max_new_tokens):
            next_R = self._choose(step)
            yield step
            if step == last or not self.running:
                break
            if self.running < COMPACT_BELOW * len(self.rows):
                next_R = self._compact(next_R)
            ids = (next_R.repeat(2) if self.guided else next_R)[:, None]
            mask = self.attend[..., : self.width + step + 1]
            features = self._features_of(next_R)
            self.hidden = self.policy.hidden(ids, self.prompt_length + step, mask, self.cache, features)[:, -1]

    def samples(self) -> list[Sample]:
        ids, logp = self.ids.cpu(), self.logp.cpu()
        ended = ids == self.vocabulary.controls.eos
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]).tolist()
        with torch.inference_mode(False):  # copies that a loss may hold
            return [Sample(ids[row, :length].clone(), logp[row, :length].clone()) for row, length in enumerate(lengths)]

    def _choose(self, step: int) -> Tensor:
        """Draws the next id of every running row and moves its state on."""
        next_R = self.due.index_select(0, self.place)
        text, image = ((next_R == kind).nonzero().flatten() for kind in (ANY_TEXT, CODE))
        place = self.after.index_select(0, self.place)
        logp_R = torch.zeros(len(next_R), device=next_R.device)
        uniform_R = self.uniforms[:, step]
        hidden, *without = self.hidden.split(len(self.rows)) if self.guided else (self.hidden,)
        if step == 0 and self.sampling.begin_with_image:
            next_R.fill_(self.vocabulary.controls.boi)
            place.fill_(1)
        elif len(text):
            scores = self.policy.allowed_text_logits(
                hidden.index_select(0, text), self.images.index_select(0, text), self.sampling.max_images
            )
            ids, logp = _draw(scores, uniform_R.index_select(0, text), self.sampling)
            next_R.index_copy_(0, text, ids)
            logp_R.index_copy_(0, text, logp)
            place.index_copy_(0, text, self.led_to.index_select(0, ids))
            self.running = int((place != self.finished).sum())
        if len(image):
            states = (states.index_select(0, image) for states in (hidden, *without))
            scores = self.policy.guided_image_logits(*states, guidance=self.sampling.guidance)
            codes, logp = _draw(scores, uniform_R.index_select(0, image), self.sampling)
            next_R.index_copy_(0, image, codes + self.vocabulary.text_size)
            logp_R.index_copy_(0, image, logp)
        self.place = place
        self.images += place == 1
        self.ids[self.rows, step] = next_R
        self.logp[self.rows, step] = logp_R
        if self.sees_again and len(image) and (painted := place == self.vocabulary.last_code + 2).any():
            self._see_again(painted, step)
        return next_R

    def _compact(self, next_R: Tensor) -> Tensor:
        """Drops finished rows; until they are many they run on, unread."""
        keep = (self.place != self.finished).nonzero()[:, 0]
        both = torch.cat([keep, keep + len(self.rows)]) if self.guided else keep
        self.attend, self.prompt_length = self.attend[both], self.prompt_length[both]
        for layer in self.cache.layers:
            layer.select(both)  # type: ignore[union-attr]
        self.rows, self.place, self.images = self.rows[keep], self.place[keep], self.images[keep]
        self.uniforms = self.uniforms[keep]
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
        features = self.seen[self.rows[at], number[self.place[at] - 2]]
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
    p = scores.softmax(-1)
    choice = _invert(p, uniform_R[:, None])
    return choice.squeeze(1), p.gather(1, choice).log_().squeeze(1)


def _invert(p: Tensor, uniform_R1: Tensor) -> Tensor:
    """The choice in whose share of [0, 1) the uniform falls, [n, 1], for probabilities [n, choices].

    In a large vocabulary first a block is found, then the choice in it: running sums of all cost more than the scores.
    """
    choices = p.shape[1]
    if choices < 64 * BLOCK:
        return _find(p, uniform_R1)[0]
    whole = choices // BLOCK * BLOCK
    sums = p[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < choices:
        sums = torch.cat([sums, p[:, whole:].sum(1, keepdim=True)], 1)
    block, cumulative, target = _find(sums, uniform_R1)
    rest = target - cumulative.gather(1, block) + sums.gather(1, block)
    inside = block * BLOCK + torch.arange(BLOCK, device=p.device)
    part = p.gather(1, inside.clamp(max=choices - 1)).masked_fill_(inside >= choices, 0)
    return block * BLOCK + _find(part, rest / sums.gather(1, block))[0]


def _find(p: Tensor, uniform_R1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The choice, the running sums, and where among them the uniform falls."""
    cumulative = p.cumsum(1, dtype=torch.float64)
    # Scaled by the last sum, and kept inside it: what is chosen has a share, however sums were rounded.
    target = uniform_R1.clamp(0, 1 - 1e-12) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True).clamp_(max=p.shape[1] - 1)
    return choice, cumulative, target


def _uniforms(seed: int, rows: Sequence[int], length: int) -> Tensor:
    """Uniforms [rows, length] of a counter-based generator keyed by (seed, row)."""
    return torch.from_numpy(
        np.stack([np.random.Generator(np.random.Philox(key=[seed, row])).random(length) for row in rows])
    )
