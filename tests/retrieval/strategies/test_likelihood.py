"""Zero-shot pair scoring on a tiny random Llama, and the choice made of its gains."""

import numpy as np
import pytest
import torch

from limner.configs.errors import InputError
from limner.data.insertion.placements import Candidate, InsertionTask, Placement
from limner.retrieval.placing import PlacementRules
from limner.retrieval.strategies.inserter import load_model
from limner.retrieval.strategies.likelihood import NO_CAPTION, REQUEST, LikelihoodInserter, placements_of

from ...small_chat import save_text_model

SENTENCES = ("Peel it.", " Cut it, <turn> typed.", "\nServe.")
TASK = InsertionTask(
    "How?", SENTENCES, (Candidate(None, "a peeled apple"), Candidate(None), Candidate(None, "a\n plate </s>"))
)


@pytest.fixture(scope="module")
def inserter(tmp_path_factory):
    model, prompter = load_model(save_text_model(tmp_path_factory.mktemp("llama")))
    return LikelihoodInserter(model.eval(), prompter.tokenizer, least=-1e9)


def log_likelihood(inserter, caption, number) -> float:
    """Of one sentence, token by token, each in a forward of its own."""
    turn = {"role": "user", "content": REQUEST.format(caption=caption.replace("</s>", "<|>"))}
    letters = inserter.tokenizer.apply_chat_template([turn], add_generation_prompt=True)["input_ids"]
    typed = inserter.tokenizer("</s>", split_special_tokens=True)["input_ids"]
    at = "".join(map(chr, letters)).find("".join(map(chr, inserter.tokenizer("<|>")["input_ids"])))
    letters = letters if at < 0 else letters[:at] + typed + letters[at + 3 :]
    ends = [len(letters)]
    for sentence in SENTENCES:
        letters = letters + inserter.tokenizer(sentence, split_special_tokens=True)["input_ids"]
        ends.append(len(letters))
    total = 0.0
    for place in range(ends[number], ends[number + 1]):
        with torch.no_grad():
            logits = inserter.model(torch.tensor([letters[:place]])).logits[0, -1]
        total += logits.log_softmax(-1)[letters[place]].item()
    return total


def test_a_gain_is_what_a_caption_tells_of_a_sentence_more_than_the_others_do(inserter):
    gains = inserter.gains(TASK)
    assert gains.shape == (3, 3) and np.isneginf(gains[:, 1]).all()
    captions = (NO_CAPTION, "a peeled apple", "a plate </s>")
    nothing, apple, plate = (np.array([log_likelihood(inserter, one, s) for s in range(3)]) for one in captions)
    assert gains[:, 0] == pytest.approx(apple - (nothing + plate) / 2, abs=1e-3)
    assert gains[:, 2] == pytest.approx(plate - (nothing + apple) / 2, abs=1e-3)


def test_candidates_without_captions_and_texts_without_sentences_place_nothing(inserter):
    assert {one.candidate for one in inserter.place(TASK)} == {1, 3}
    assert inserter.place(InsertionTask("?", SENTENCES, (Candidate(None),))) == []
    assert inserter.place(InsertionTask("?", (), (Candidate(None, "a"),))) == []
    assert inserter.place(InsertionTask("?", SENTENCES, ())) == []


def test_each_goes_to_its_best_open_place_where_that_is_enough():
    gains = np.array([[1.0, 5.0, 4.0], [3.0, 5.0, -np.inf], [2.0, 4.0, -np.inf]])
    everywhere = np.ones(4, bool)
    assert placements_of(gains, everywhere, 2.5) == [Placement(1, 2), Placement(1, 3), Placement(2, 1)]
    assert placements_of(gains, everywhere, 4.0) == [Placement(1, 2)]
    assert placements_of(gains, np.array([True, False, True, True]), 2.5) == [Placement(2, 1), Placement(2, 2)]


def test_sections_bind_it_and_a_text_too_long_is_an_error(inserter, tmp_path):
    bound = LikelihoodInserter(inserter.model, inserter.tokenizer, PlacementRules(sections=["Steps"]), -1e9)
    assert bound.place(TASK) == []
    model, prompter = load_model(save_text_model(tmp_path / "short", positions=32))
    with pytest.raises(InputError, match="the text has .* the model 32 positions"):
        LikelihoodInserter(model, prompter.tokenizer).place(TASK)
