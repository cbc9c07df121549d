"""Every family passes every check of `conformance.py`; a fault planted in it does not."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from limner.models.heads import in_chunks
from limner.models.sampler.slots import Sampler
from limner.models.tokens.sequence import CODE, collate

from .conformance import (
    CHECKS,
    check_adapter,
    check_checkpoint,
    check_gradients,
    check_grammar,
    check_replay,
    documents,
)
from .depths import check_depth
from .tiny import FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request):
    return FAMILIES[request.param]()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_family_conforms(policy, check):
    check(policy)


def test_a_checkpoint_gives_the_same_numbers(policy, tmp_path):
    check_checkpoint(policy, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_gives_the_same_numbers(family):
    pytest.importorskip("peft", reason="pip install 'limner[peft]'")
    check_adapter(FAMILIES[family]())


@pytest.mark.parametrize("half", ["autocast", "weights"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scores_are_products_in_float32(family, half):
    """With weights in float32 under autocast, and with weights in bfloat16: nothing is lost of the states."""
    policy = FAMILIES[family]()
    if half == "weights":
        policy.model.to(torch.bfloat16)
    batch = collate([policy.processor.encode_all(documents())], policy.vocabulary)
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        features = policy.features_of(batch)
        states = policy.hidden(batch.ids_BT, batch.positions_BT, batch.mask_BTT(), None, features).flatten(0, 1)
        text = policy.allowed_text_logits(states, torch.zeros(len(states)), None)
        image_states = states
        if policy.vocabulary.depth > 1:
            image_states = policy.depth_states(states, torch.zeros(len(states), 1, dtype=torch.long))
        image = policy.guided_image_logits(image_states, image_states.flip(0), guidance=5.0)
    exact = type(policy)(deepcopy(policy.model).double(), policy.processor)
    expected, at = exact.image_logits(image_states.double()), text.isfinite()
    assert text.dtype == image.dtype == torch.float32
    assert (text - exact.text_logits(states.double()))[at].abs().max() < 1e-4
    assert (image - expected.flip(0) - 5 * (expected - expected.flip(0))).abs().max() < 1e-3


# ---- planted faults: a suite that cannot fail says nothing ----


def wrong_head(policy, monkeypatch):
    """Codes are scored by the text head."""
    codes = policy.vocabulary.image_codes
    monkeypatch.setattr(policy, "image_logits", lambda hidden: policy.text_logits(hidden)[..., :codes])
    return check_gradients


def image_one_short(policy, monkeypatch):
    """The sampler closes an image one code early."""
    pattern = list(policy.vocabulary.image)
    pattern.remove(CODE)
    monkeypatch.setattr(policy, "vocabulary", replace(policy.vocabulary, image=tuple(pattern)))
    return check_grammar


def other_logits(policy, monkeypatch):
    """What is scored is not what was sampled: the two differ by a tenth in temperature."""
    monkeypatch.setattr("limner.models.policy.tempered", lambda scores, temperature: scores / (1.1 * temperature))
    return check_replay


def depth_off_by_one(policy, monkeypatch):
    """A code is drawn by itself instead of by those before it."""
    stock = policy.depth_states
    monkeypatch.setattr(policy, "depth_states", lambda hidden, before: stock(hidden, before.roll(-1, 1)))
    return check_depth


def without_predecessors(policy, monkeypatch):
    """The sampler hands on the last code alone, as if there were none before it."""
    stock = Sampler._deeper

    def last_alone(self, states, codes):
        kept = codes.clone()
        kept[:, :-1] = 0
        return stock(self, states, kept)

    monkeypatch.setattr(Sampler, "_deeper", last_alone)
    return check_replay


def one_code_unscored(policy, monkeypatch):
    """The log-prob of a position is that of its first D - 1 codes."""

    def short(scores, target, inputs, *rest):
        if target.dim() == 1:
            return in_chunks(scores, target, inputs, *rest)
        return in_chunks(lambda *given: scores(*given)[:, :-1], target[:, :-1], inputs, *rest)

    monkeypatch.setattr("limner.models.policy.in_chunks", short)
    return check_replay


@pytest.mark.parametrize("fault", [depth_off_by_one, without_predecessors, one_code_unscored])
def test_a_fault_of_depth_is_found(fault, monkeypatch):
    policy = FAMILIES["vila_u"]()
    check = fault(policy, monkeypatch)
    with pytest.raises(AssertionError):
        check(policy)


@pytest.mark.parametrize("fault", [wrong_head, image_one_short, other_logits])
def test_a_planted_fault_is_found(policy, fault, monkeypatch):
    check = fault(policy, monkeypatch)
    # A model that looks at what it has drawn trips over a picture of too few codes by itself.
    with pytest.raises((AssertionError, RuntimeError)):
        check(policy)
