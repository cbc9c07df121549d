"""Constrained decoding: whatever a model prefers, with any tokenizer, its answer is a list of legal placements."""

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from limner.data.insertion.placements import Placement
from limner.data.insertion.prompt import as_json, read_answer
from limner.models.tokens.text_tokenizer import train_text_tokenizer
from limner.retrieval.strategies.constrained import Grammar, LegalAnswers, State, TokenTexts, longest

ANSWERS = ['<answer>[{"img": 3, "after": 2}, {"img": 10, "after": 12}]</answer>', "<think></think> The answer, then: a"]


def byte_level():
    return train_text_tokenizer(ANSWERS * 20, 340)


def metaspace():
    """As SentencePiece models have it: a space is a letter of the token, and lost at the beginning of a text."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = sorted(set("".join(ANSWERS)) | set("0123456789"))
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>", "</s>"], initial_alphabet=[*alphabet, "\u2581"], show_progress=False
    )
    raw.train_from_iterator(ANSWERS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def test_the_grammar_knows_all_legal_answers_and_no_other():
    grammar = Grammar(candidates=11, sentences=10)

    def legal(text):
        state = grammar.advance(State("head"), f"<answer>{text}</answer>")
        return state is not None and state.at == "end"

    assert (
        legal("[]")
        and legal('[{"img": 1, "after": 10}]')
        and legal('[{"img": 11, "after": 0}, {"img": 1, "after": 1}]')
    )
    for text in (
        '[{"img": 12, "after": 1}]',
        '[{"img": 0, "after": 1}]',
        '[{"img": 1, "after": 11}]',
        '[{"img": 1, "after": 01}]',
        '[{"img": 2, "after": 1}, {"img": 2, "after": 3}]',
        '[{"img": 1, "after": 1},]',
        '[{"img": 1}]',
        "",
    ):
        assert not legal(text)


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_a_model_that_prefers_anything_writes_a_legal_answer(make):
    tokenizer = make()
    tokens, eos = TokenTexts(tokenizer), tokenizer.eos_token_id
    grammars = [Grammar(candidates, sentences) for candidates, sentences in ((1, 0), (3, 2), (12, 11), (0, 4))]
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(12):
        prompt = torch.zeros(len(grammars), 3, dtype=torch.long)
        process, ids = LegalAnswers(tokens, grammars, [eos], 3), prompt
        for _ in range(max(map(longest, grammars)) + 1):
            scores = torch.randn(len(grammars), len(tokenizer), generator=generator)
            ids = torch.cat([ids, process(ids, scores).argmax(1, keepdim=True)], 1)
            if (ids == eos).any(1).all():
                break
        for row, grammar in zip(ids[:, 3:].tolist(), grammars, strict=True):
            text = tokenizer.decode(row[: row.index(eos)])
            answer = read_answer(text, grammar.sentences, grammar.candidates)
            assert not answer.faults and text.startswith("<answer>[") and text.endswith("]</answer>"), text
            lengths.add(len(answer.placements))
    assert len(lengths) > 3


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_the_answer_a_model_wants_is_not_changed(make):
    tokenizer, rng = make(), random.Random(0)
    tokens = TokenTexts(tokenizer)
    numbers = rng.sample(range(1, 13), 4)
    wanted = f"<answer>{as_json([Placement(rng.randint(0, 11), n) for n in numbers])}</answer>".replace("'", '"')
    state, written = State("head"), ""
    while state.at != "end":
        ids = tokens.legal(Grammar(12, 11), state).tolist()
        best = max((tokens.texts[i] for i in ids if wanted[len(written) :].startswith(tokens.texts[i])), key=len)
        state, written = Grammar(12, 11).advance(state, best), written + best
    assert written == wanted


def test_a_tokenizer_that_cannot_spell_answers_is_refused():
    raw = Tokenizer(models.WordLevel({"a": 0, "[": 1, "</s>": 2}, unk_token="a"))
    with pytest.raises(ValueError, match="no token for"):
        TokenTexts(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>"))
