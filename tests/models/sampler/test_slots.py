"""An answer is a function of its request: whatever its neighbours, its slot, and when it came."""

import random

import pytest
import torch

from limner.models.sampler.cache import BLOCK, SlotCache
from limner.models.sampler.generation import complete, generate
from limner.models.sampler.request import Request, Sampling
from limner.models.sampler.slots import Sampler
from limner.models.sampler.state import State

from ..families.conformance import documents
from ..families.schedules import check_same, mixed, plain, scheduled
from ..families.tiny import FAMILIES


@pytest.fixture(scope="module", params=["gemma3", "janus_reencode"])
def policy(request):
    """One of windows, and one whose pictures are features; the conformance suite has one schedule of every family."""
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def requests(policy):
    return mixed(policy)


@pytest.fixture(scope="module")
def answers(policy, requests):
    """By the plain loop."""
    found = [plain(policy, request) for request in requests]
    assert len({len(sample.ids_C) for sample in found}) > 5
    assert sum(bool((sample.ids_C >= policy.vocabulary.text_size).any()) for sample in found) > 5
    return found


@pytest.mark.parametrize(("seed", "steps", "late"), [(0, "plain", False), (1, "plain", True), (3, "fixed", True)])
def test_any_order_and_any_neighbours_give_the_plain_loop_s_answers(policy, requests, answers, seed, steps, late):
    check_same(scheduled(policy, requests, seed, steps, late), answers)


@pytest.mark.parametrize("at_once", [1, 5, None])
def test_any_number_at_once_gives_the_same(policy, requests, answers, at_once):
    check_same(complete(policy, requests, at_once, "fixed" if at_once == 5 else "plain"), answers)


def test_ids_are_read_in_order_and_a_text_before_its_picture_is_whole(policy, requests, answers):
    chance, boi = random.Random(0), policy.vocabulary.controls.boi
    with torch.inference_mode():
        sampler, seen, held = Sampler(policy), {row: [] for row in range(len(requests))}, 0
        sampler.admit([*seen], requests)
        while sampler.running:
            sampler.draw()
            if chance.random() < 0.3 or not sampler.running:
                for row, ids in sampler.read().items():
                    seen[row] += ids
                drawn = dict(zip(sampler.mirror.key.tolist(), sampler.mirror.drawn.tolist(), strict=True))
                behind = [row for row, ids in seen.items() if len(ids) < drawn[row]]
                assert all(seen[row][-1] == boi for row in behind), "what is held back is of a picture"
                assert {*behind} <= sampler.shares_painted().keys()
                held += len(behind)
            sampler.feed()
    assert held > 10 and [*seen.values()] == [sample.ids_C.tolist() for sample in answers]


@pytest.fixture
def two(make_policy, monkeypatch):
    """A policy whose prefills and steps are counted, with two prompts."""
    policy, shapes = make_policy(1), []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda ids, *rest: shapes.append(tuple(ids.shape)) or hidden(ids, *rest))
    return policy, policy.processor.encode_all([document.prompt for document in documents()[:2]]), shapes


def test_a_prompt_is_prefilled_once_though_its_group_is_admitted_bit_by_bit(two):
    policy, prompts, shapes = two
    generate(policy, prompts, Sampling(30, guidance=1.5, seed=3), 6, at_once=2)
    prefills = [rows for rows, width in shapes if width > 1]
    assert sum(prefills) == 3, "two prompts, and what stands instead of them"
    assert max(rows for rows, width in shapes if width == 1) <= 4


def test_slots_are_refilled_and_shapes_are_buckets(two):
    policy, prompts, shapes = two
    lengths = [8, 40, 8, 8, 8, 8, 8, 8]
    requests = [Request(prompts[0], Sampling(n, 0, max_images=0), row) for row, n in enumerate(lengths)]
    plain_steps = complete(policy, requests, at_once=2)
    refilled = sum(width == 1 for _, width in shapes)
    shapes.clear()
    for first in range(0, 8, 2):
        complete(policy, requests[first : first + 2])
    assert refilled <= sum(width == 1 for _, width in shapes) < refilled + 40
    shapes.clear()
    check_same(complete(policy, requests, at_once=5, steps="fixed"), plain_steps)
    assert {rows for rows, width in shapes if width == 1} <= {1, 2, 4, 8}


# ---- planted faults ----


def keeps_its_neighbours(setting):
    def fault(monkeypatch):
        put = State.put

        def forgetful(self, slots, **values):
            put(self, slots, **{name: value for name, value in values.items() if name != setting})

        monkeypatch.setattr(State, "put", forgetful)

    fault.__name__ = f"keeps_its_neighbours_{setting}"
    return fault


def still_attends_when_freed(monkeypatch):
    admit = SlotCache.admit

    def added(self, slots_n, layers, rows_n, length_n):
        before = self.length_S[slots_n]
        admit(self, slots_n, layers, rows_n, torch.maximum(before, length_n))

    monkeypatch.setattr(SlotCache, "free", lambda self, slots_n: None)
    monkeypatch.setattr(SlotCache, "admit", added)


def attends_who_was_there_before(monkeypatch):
    begin = SlotCache.begin
    monkeypatch.setattr(SlotCache, "begin", lambda self, seen: begin(self, seen) | True)


def draws_by_the_step_of_the_call(monkeypatch):
    draw, steps = Sampler.draw, [0]

    def counted(self):
        steps[0] += 1
        self.state.drawn.fill_(min(steps[0], 30))
        draw(self)

    monkeypatch.setattr(Sampler, "draw", counted)


def loses_its_twin(monkeypatch):
    link = Sampler._link

    def unlinked(self):
        link(self)
        self.state.leader = torch.arange(self.slots)

    monkeypatch.setattr(Sampler, "_link", unlinked)


FAULTS = [
    *map(keeps_its_neighbours, ("temperature", "top_k", "guidance", "uniforms")),
    still_attends_when_freed,
    attends_who_was_there_before,
    draws_by_the_step_of_the_call,
    loses_its_twin,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(policy, requests, answers, fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        check_same(scheduled(policy, requests[:7], seed=0), answers[:7])
        check_same(complete(policy, requests[:7], at_once=2), answers[:7])


# ---- the cache ----


def test_the_cache_grows_in_blocks_to_what_is_needed_and_keeps_what_it_has():
    cache = SlotCache(layers=1, device="cpu")
    cache.arrange(torch.arange(0), added=3)
    cache.reserve(5, most=BLOCK + 7)
    assert cache.columns == BLOCK
    keys = torch.randn(2, 2, 4, 3)  # two prompts of at most four tokens, two heads
    cache.admit(torch.tensor([0, 2, 1]), [(keys, -keys)], torch.tensor([1, 0, 1]), torch.tensor([4, 2, 3]))
    mask = cache.begin(5)
    assert mask.shape == (3, 1, 1, 5) and mask.sum((1, 2, 3)).tolist() == [5, 4, 3], "itself and what was before"
    new = torch.randn(3, 2, 1, 3)
    seen, _ = cache.layers[0].update(new, -new)
    assert torch.equal(seen[0], torch.cat([keys[1], new[0]], 1))
    assert torch.equal(seen[2, :, :3], torch.cat([keys[0, :, :2], new[2]], 1))
    cache.length_S += 1
    cache.reserve(BLOCK + 1, most=BLOCK + 7)
    assert cache.columns == BLOCK + 7
    cache.arrange(torch.tensor([2, 0]), added=1)
    assert cache.length_S.tolist() == [3, 5, 0]
    again = cache.layers[0].keys[:, :, :5]
    assert torch.equal(again[1], torch.cat([keys[1], new[0]], 1))
    cache.free(torch.tensor([0]))
    assert cache.length_S.tolist() == [0, 5, 0]
    assert cache.begin(3).sum((1, 2, 3)).tolist() == [1, 3, 1], "a free slot attends itself alone"
