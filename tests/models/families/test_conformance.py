"""Every family passes every check of `conformance.py`; a fault planted in it does not."""

from dataclasses import replace

import pytest

from limner.models.tokens.sequence import CODE

from .conformance import CHECKS, check_adapter, check_checkpoint, check_gradients, check_grammar, check_replay
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


@pytest.mark.parametrize("fault", [wrong_head, image_one_short, other_logits])
def test_a_planted_fault_is_found(policy, fault, monkeypatch):
    check = fault(policy, monkeypatch)
    # A model that looks at what it has drawn trips over a picture of too few codes by itself.
    with pytest.raises((AssertionError, RuntimeError)):
        check(policy)
