"""A plain loop that writes one answer by definition, and schedules that the sampler must not be moved by."""

import numpy as np
import torch
from torch import Tensor

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.policy import UnifiedPolicy
from limner.models.sampler.request import Request, Sample, Sampling
from limner.models.sampler.slots import Sampler
from limner.models.sampler.steps import Steps
from limner.models.tokens.sequence import CODE, taken_away
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

TOLERANCE = 1e-4
MIXED = (
    Sampling(70, seed=1),
    Sampling(60, 0.8, guidance=2.5, max_images=2, seed=2),
    Sampling(50, 0),
    Sampling(40, 1.2, top_k=20, top_p=0.9, max_images=0, seed=3),
    Sampling(1, guidance=1.5, seed=4),
    Sampling(45, 0.7, begin_with_image=True, guidance=0.5, seed=5),
    Sampling(70, max_images=1, seed=6),
)


def mixed(policy: UnifiedPolicy) -> list[Request]:
    """Requests of different prompts, two of them with pictures, and of different settings; some are of one prompt."""
    red, blue = (ImageSegment(draw_scene(SCENES[scene])) for scene in (3, 40))
    parts = [[TextSegment("Describe this picture: "), red], [TextSegment("Fold")], [blue, TextSegment("or"), red]]
    prompts = policy.processor.encode_all([InterleavedDocument(tuple(segments)) for segments in parts])
    return [Request(prompts[n * 5 // 7 % len(prompts)], MIXED[n % 7], row=3 * n) for n in range(2 * len(MIXED))]


@torch.no_grad()
def plain(policy: UnifiedPolicy, request: Request) -> Sample:
    """The answer without batch, cache or slots: the whole sequence through the model for every id."""
    vocabulary, asked = policy.vocabulary, request.sampling
    control, size, start = vocabulary.controls, vocabulary.text_size, request.prompt.ids_T
    without = torch.tensor(vocabulary.unconditional)
    if vocabulary.pads_prompt:
        without = start.masked_fill(taken_away(request.prompt, vocabulary), control.pad)
    pixels = [slot.pixels for slot in request.prompt.slots if slot.pixels is not None]
    given = [policy.image_features(torch.stack(pixels)).flatten(0, 1)] if pixels else []
    drawn: list[Tensor] = []
    uniform = np.random.Generator(np.random.Philox(key=[asked.seed, request.row])).random(
        (asked.max_new_tokens, vocabulary.depth)
    )
    ids: list[int] = []
    logps: list[float] = []
    due: list[int] = []
    images = 0

    def last(before: Tensor, features: list[Tensor]) -> Tensor:
        whole = torch.cat([before, torch.tensor(ids, dtype=torch.long)])[None]
        order = torch.arange(whole.shape[1])
        seen = torch.cat(features) if features else None
        if seen is not None:
            seen = seen[: int((whole == control.image).sum())]
        return policy.hidden(whole, order[None], (order <= order[:, None])[None, None], None, seen)[:, -1]

    for step in range(asked.max_new_tokens):
        kind = due.pop(0) if due else None
        if kind is not None and kind != CODE or (step == 0 and asked.begin_with_image):
            chosen, logp = control.boi if kind is None else kind, 0.0
        else:
            hidden = last(start, given + drawn)
            if kind is None:
                scores = policy.allowed_text_logits(hidden, torch.tensor([images]), asked.max_images)[0]
                chosen, logp = _choice(scores, uniform[step, 0], asked)
            else:
                other = last(without, drawn) if asked.guidance != 1 else None
                chosen, logp = _position(policy, hidden, other, uniform[step], asked)
        ids.append(int(chosen))
        logps.append(logp)
        if chosen == control.eos and not due and kind is None:
            break
        if chosen == control.boi and kind is None:
            due, images = list(vocabulary.image), images + 1
        if kind == CODE and CODE not in due and control.image in due:
            codes_N = vocabulary.codes_of(torch.tensor([i for i in ids if i >= size])).numpy()[
                -vocabulary.image_length :
            ]
            drawn.append(policy.image_features(policy.processor.seen_again(codes_N)[None]).flatten(0, 1))
    return Sample(torch.tensor(ids), torch.tensor(logps))


def _position(
    policy: UnifiedPolicy, hidden: Tensor, without: Tensor | None, uniforms: np.ndarray, asked: Sampling
) -> tuple[int, float]:
    """The id of a position's codes, one after the other, and the sum of their log-probs."""
    size, many, codes, total = policy.vocabulary.text_size, policy.vocabulary.image_codes, [], 0.0

    def scores_of(state: Tensor) -> Tensor:
        if len(uniforms) > 1:
            state = policy.depth_states(state, torch.tensor([codes], dtype=torch.long))[:, -1]
        return policy.guided_image_logits(state)[0]

    for uniform in uniforms:
        scores = scores_of(hidden)
        if without is not None:
            base = scores_of(without)
            scores = base + asked.guidance * (scores - base)
        code, logp = _choice(scores, uniform, asked)
        codes, total = [*codes, code], total + logp
    return size + sum(code * many**place for place, code in enumerate(codes)), total


def _choice(scores: Tensor, uniform: float, asked: Sampling) -> tuple[int, float]:
    if asked.temperature == 0:
        return int(scores.argmax()), 0.0
    scores = scores / asked.temperature
    if asked.top_k:
        scores[scores < scores.sort(descending=True).values[asked.top_k - 1]] = -torch.inf
    if asked.top_p < 1:
        p, order = scores.softmax(-1).sort(descending=True)
        scores[order[p.cumsum(-1) - p >= asked.top_p]] = -torch.inf
    p = scores.double().softmax(-1)
    choice = int(torch.searchsorted(p.cumsum(-1), torch.tensor(uniform), right=True))
    return choice, float(p[choice].log())


@torch.inference_mode()
def scheduled(
    policy: UnifiedPolicy, requests: list[Request], seed: int, steps: Steps = "plain", late: bool = False
) -> list[Sample]:
    """The answers where requests arrive in any order, in any company, and slots are given back at any time."""
    chance, sampler, samples = np.random.default_rng(seed), Sampler(policy, steps, late), {}
    waiting = chance.permutation(len(requests)).tolist()
    with policy.standing_still(images=True):
        while waiting or sampler.running:
            arriving = [waiting.pop() for _ in range(min(int(chance.integers(0, 4)), len(waiting)))]
            sampler.admit(arriving, [requests[number] for number in arriving])
            sampler.draw()
            samples |= sampler.leave() if chance.random() < 0.3 else {}
            if chance.random() < 0.3:
                sampler.shrink()
            sampler.feed()
        samples |= sampler.leave()
    assert not sampler.requests and not sampler.busy
    return [samples[number] for number in range(len(requests))]


def check_rows_that_come_and_go(policy: UnifiedPolicy) -> None:
    """Admitted while others run, each with settings of its own, they are what a plain loop writes."""
    requests = mixed(policy)[: len(MIXED)]
    check_same(scheduled(policy, requests, seed=1, late=True), [plain(policy, request) for request in requests])


def check_same(found: list[Sample], expected: list[Sample]) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.ids_C.tolist() == other.ids_C.tolist(), number
        assert (one.logp_C - other.logp_C).abs().max() < TOLERANCE, number
