"""Texts against references: known words and embeddings give known scores, and the rules of missing texts hold."""

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.documents.document import InterleavedDocument, TextSegment
from limner.rewards.base import Completion
from limner.rewards.build import RewardSettings, reward_parts
from limner.rewards.encoders.pretrained import Encoder, EncoderConfig
from limner.rewards.encoders.text import (
    BERTSCORE,
    BertScore,
    EmbeddingSimilarity,
    RougeL,
    TextEncoder,
    TextReward,
    greedy_matching,
)

from .. import tiny_models

TEXTS = ["the cat sat on the mat", "a big red circle", "cat", "the picture of a small blue square at the bottom left"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_models.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(place):
    return TextEncoder.load(place, Encoder(EncoderConfig("cpu", batch_size=2)))


def completion(*texts, reference=None, prompt="Write."):
    meta = {} if reference is None else {"reference": reference}
    asked = InterleavedDocument((TextSegment(prompt),) if prompt else (), "p1", meta)
    return Completion(asked, InterleavedDocument(tuple(TextSegment(text, True) for text in texts)))


def test_rouge_is_the_f1_of_the_longest_common_subsequence():
    references = ["The cat sat on the mats.", "cat", "Dogs", "\u732b\u304c\u5ea7\u308b", "Cat"]
    candidates = ["the cat on the mat", "cat", "cat", "\u732b", "\u732b"]
    # 5 words in common, of 5 said and 6 wanted; "mats" and "mat" share their stem. Another script does not apply.
    assert RougeL()(candidates, references) == [pytest.approx(10 / 11), 1, 0, None, 0]


def test_greedy_matching_of_known_embeddings():
    """Two said tokens at right angles; wanted is the first of them and one halfway between."""
    one, other = torch.eye(2)
    half = (one + other) / 2**0.5
    given = torch.stack([2 * one, other])[None]
    yes = torch.ones(1, 2, dtype=torch.bool)
    wanted = torch.stack([one, half])[None]
    mean = (1 + 0.5**0.5) / 2
    assert greedy_matching(given, yes, yes, wanted, yes, yes)[0].tolist() == pytest.approx([mean] * 3)
    # A special token of the wanted text may be a partner, and does not count itself; padding is neither.
    wanted = torch.stack([one, half, other, -one])[None]
    there, own = torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False, False]])
    found = greedy_matching(given, yes, yes, wanted, there, own)[0].tolist()
    assert found == pytest.approx([1, mean, 2 * mean / (1 + mean)])
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert greedy_matching(given, yes, nothing, wanted, there, own)[0].tolist() == [0, pytest.approx(mean), 0]


def test_bertscore_on_a_real_encoder(encoder):
    score = BertScore(encoder, layer=1, baseline=0.2)
    assert score(TEXTS, TEXTS) == pytest.approx([1.0] * 4, abs=1e-5)
    others = TEXTS[1:] + TEXTS[:1]
    raw = score.precision_recall_f1(TEXTS, others)
    alone = [score.precision_recall_f1([text], [other])[0] for text, other in zip(TEXTS, others, strict=True)]
    assert [x for row in raw for x in row] == pytest.approx([x for row in alone for x in row], abs=1e-5)
    assert score(TEXTS, others) == pytest.approx([max((f1 - 0.2) / 0.8, 0) for _, _, f1 in raw])
    swapped = score.precision_recall_f1(others, TEXTS)
    assert [row[0] for row in swapped] == pytest.approx([row[1] for row in raw], abs=1e-5)
    with pytest.raises(InputError, match="2 layers, not 17; it is meant for FacebookAI/roberta-large"):
        BertScore(encoder, BERTSCORE.layer)


def test_embeddings_are_pooled_over_the_tokens_that_are_there(encoder):
    with torch.no_grad():
        means = []
        for text in TEXTS:
            inputs = encoder.tokenizer(text, return_tensors="pt")
            means.append(encoder.model(**inputs).last_hidden_state[0].mean(0))
    others = [1, 2, 3, 0]
    expected = [max(torch.cosine_similarity(means[i], means[j], 0).item(), 0) for i, j in enumerate(others)]
    found = EmbeddingSimilarity(encoder)(TEXTS, [TEXTS[j] for j in others])
    assert found == pytest.approx(expected, abs=1e-5) and len(set(found)) > 2


def test_texts_longer_than_the_model_are_cut(encoder):
    assert EmbeddingSimilarity(encoder)(["cat " * 500], ["cat " * 600]) == pytest.approx([1.0], abs=1e-5)


def test_a_list_of_references_gives_process_scores():
    reference = ["the cat", "sat on the mat"]
    rows = [
        completion("the cat", "sat on the mat", reference=reference),
        completion("the cat", "sat on the mat", "and on", "and on", reference=reference),
        completion("the cat", reference=reference),
        completion("the cat", "sat on the mat", reference="the cat sat on the mat"),
        completion(" ", reference=reference),
        completion("the cat"),
    ]
    output = TextReward("rouge_l", RougeL())(rows)
    assert output.segments == [[1, 1], [1, 1, 0, 0], [1], [None, None], [None], [None]]
    longer, shorter = 2 * 6 / (6 + 10), 2 * 2 / (2 + 6)
    assert output.outcome == [1, pytest.approx(longer), pytest.approx(shorter), 1, 0, None]
    for wrong in (["the cat", ""], {"text": "the cat"}):
        with pytest.raises(InputError, match="prompt 'p1': meta \"reference\""):
            TextReward("rouge_l", RougeL())([completion("the cat", reference=wrong)])


def test_relevance_to_the_prompt_scores_each_text():
    output = TextReward("relevance", RougeL(), "prompt")(
        [completion("the cat", "the dog", prompt="the cat"), completion("the cat", prompt="")]
    )
    assert output.segments == [[1, 0.5], [None]] and output.outcome == [pytest.approx(2 / 3), None]


def test_settings_load_them_by_name(place):
    names = {"rouge_l": 1.0, "embedding": 2.0, "prompt_embedding": 0.5}
    parts = {f"text/{name}": {"weight": weight, "model": place} for name, weight in names.items()}
    rewards = reward_parts(RewardSettings(parts, encoders={"default": EncoderConfig("cpu")}))
    assert {reward.name: weight for reward, weight in rewards} == {f"text_{name}": names[name] for name in names}
    row = completion("a big red circle", reference="a big red circle", prompt="cat")
    assert [reward([row]).outcome[0] for reward, _ in rewards][:2] == pytest.approx([1, 1], abs=1e-5)
    with pytest.raises(InputError, match="rewards.text/rouge: preset: 'rouge' is none of rouge_l, bertscore"):
        reward_parts(RewardSettings({"text/rouge": 1}))
