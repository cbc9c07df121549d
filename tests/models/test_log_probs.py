"""Log-probs of answers: those that they were drawn with, of every family and setting; and of given documents."""

import math

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.documents.candidates import offer
from limner.models.documents.document import TextSegment
from limner.models.documents.forms import document
from limner.models.sampler.generation import generate
from limner.models.tokens.sequence import collate
from limner.models.writing import Model
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .families.tiny import FAMILIES

PICTURE = draw_scene(SCENES[0])


@pytest.fixture(scope="module")
def model(make_policy) -> Model:
    return Model(make_policy(0))


@pytest.mark.parametrize("family", ["llama", "emu3", "janus", "janus_reencode"])
def test_an_answer_has_the_log_probs_it_was_drawn_with(family):
    model = Model(FAMILIES[family]())
    settings = {"max_new_tokens": 70, "temperature": 0.8, "max_images": 2, "guidance": 1.5, "seed": 2}
    prompt = document("Draw: ", PICTURE)
    answers = model.write(prompt, n=4, **settings)
    drawn = generate(model.policy, [model.encode(prompt)], answers[0].sampling, 4)
    for answer, sample in zip(answers, drawn, strict=True):
        scored = model.log_probs(answer)
        torch.testing.assert_close(scored.logp_C, sample.logp_C, atol=1e-4, rtol=0)
        assert torch.equal(scored.ids_C, sample.ids_C) and torch.equal(answer.ids_C, sample.ids_C)
        assert len(scored.segments) == len(answer.document.segments)
        ends = scored.logp_C[scored.segment_C == len(scored.segments)].sum().item()
        assert scored.total == pytest.approx(sum(scored.segments) + ends, abs=1e-4)
        assert torch.equal(scored.image_C, scored.ids_C >= model.policy.vocabulary.text_size)
        assert not scored.logp_C[~scored.chosen_C].any()
    assert any(answer.images for answer in answers) and any(answer.text for answer in answers)


def test_settings_that_no_distribution_has(model):
    greedy = model.write("Draw: ", temperature=0, max_new_tokens=12, max_images=0)
    assert model.log_probs(greedy).total == model.log_probs(greedy, temperature=1.0).total < 0
    assert model.log_probs(greedy, temperature=0.1).total > model.log_probs(greedy).total
    opened = model.write("Draw: ", begin_with_image=True, max_new_tokens=30)
    scored = model.log_probs(opened)
    assert scored.logp_C[0] == 0 and not scored.chosen_C[0] and scored.image_C[1]


def test_of_given_documents(model):
    prompt = [PICTURE, "Which colour is the object?"]
    scored = model.log_probs(prompt, ["It is red. ", PICTURE])
    whole = document(*prompt, answer=["It is red. ", PICTURE])
    batch = collate([[model.encode(whole)]], model.policy.vocabulary)
    logp_BT, _ = model.policy.log_probs(model.policy.model, batch)
    assert scored.total == pytest.approx(logp_BT.sum().item(), abs=1e-3)
    for other in (model.log_probs(whole), model.log_probs(prompt, whole), model.log_probs(document(*prompt), whole)):
        assert torch.equal(other.logp_C, scored.logp_C) and torch.equal(other.segment_C, scored.segment_C)
    assert scored.segment_C[0] == 0 and scored.segment_C[-1] == 2 == len(scored.segments)
    assert scored.image_C.sum() == model.policy.vocabulary.image_length
    assert (scored.segment_C[scored.image_C] == 1).all() and not scored.chosen_C[-2]  # `<eoi>` before `<eos>`
    assert math.fsum(scored.segments) > scored.total

    inserted = offer("Go.", [(PICTURE, "a circle")])
    answer = document(answer=["See ", inserted.candidates[1]])
    assert not model.log_probs(inserted, answer).image_C.any()


def test_a_stopped_answer_is_scored_as_it_was_drawn(model):
    for seed in range(6):
        text = next(
            (s.text for s in model.write("Draw: ", seed=seed).document.segments if isinstance(s, TextSegment)), ""
        )
        if len(text) > 3:
            answer = model.write("Draw: ", seed=seed, stop=text[2:4])
            assert model.log_probs(answer).total < 0 and answer.text == text[:2].strip()


def test_what_is_no_answer(model):
    for give, words in (
        (lambda: model.log_probs("x"), "no answer"),
        (lambda: model.log_probs(document("x")), "no answer"),
        (lambda: model.log_probs("x", 3), "the answer is an int"),
        (lambda: model.log_probs(3, "x"), "not an int"),
        (lambda: model.log_probs("x", "y", temperature=-1), "temperature: expected a number 0 to 1,000, got -1"),
        (lambda: model.encode("x"), "not a str"),
    ):
        with pytest.raises(InputError, match=words):
            give()
