"""Windows and ropes: what a token sees is what the stock model lets it see, packed, sampled and scored; else it is
refused by name."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
)
from transformers.integrations.flex_attention import flex_attention_forward

from limner.configs.errors import InputError
from limner.models.attention import block_mask
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.sequence import TokenBatch, collate

from .families.conformance import ROOM, documents
from .families.tiny import FAMILIES, WINDOW, llama, windowed

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SWITCH = 60
"""Tokens beyond which a tiny rope switches."""


@torch.no_grad()
def stock_log_probs(policy, sequence):
    """Of the tokens of a sequence alone, by the model's own forward, which makes its masks itself."""
    size, vocabulary = policy.vocabulary.text_size, policy.vocabulary
    scores = policy.model(input_ids=sequence.ids_T[None], position_ids=torch.arange(len(sequence))[None]).logits[0]
    scores[:, list(vocabulary.never_sampled)] = float("-inf")
    text, image = scores[:, :size].log_softmax(-1), scores[:, size : size + vocabulary.image_codes].log_softmax(-1)
    logp_T = torch.cat([text, image], -1)[:-1].gather(1, sequence.ids_T[1:, None])[:, 0]
    return torch.cat([torch.zeros(1), logp_T]).masked_fill(~sequence.trainable_T, 0)


@pytest.mark.parametrize("kind", ["mistral", "phi3", "gemma3", "qwen2"])
def test_behind_a_window_tokens_are_sampled_and_scored_as_by_the_stock_model(kind):
    policy = windowed(kind)
    prompts = policy.processor.encode_all([document.prompt for document in documents()[:3]])
    samples = generate(policy, prompts, Sampling(ROOM, seed=3), 4)
    sequences = [
        policy.processor.join(prompts[row // 4], sample.ids_C, policy.processor.read(sample.ids_C.tolist()))
        for row, sample in enumerate(samples)
    ]
    assert sum(len(sequence) > 2 * WINDOW for sequence in sequences) > 3, "too short"
    with torch.no_grad():
        packed, _ = policy.log_probs(policy.model, collate([sequences], policy.vocabulary))
    found = packed[0].split([len(sequence) for sequence in sequences])
    for sample, sequence, scored in zip(samples, sequences, found, strict=True):
        expected = stock_log_probs(policy, sequence)
        assert (scored - expected).abs().max() < 1e-4
        assert (sample.logp_C - expected[sequence.prompt_length :]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (MambaConfig(hidden_size=32, num_hidden_layers=2), "MambaForCausalLM: .*layers of type 'linear_attention'"),
        (
            Llama4TextConfig(**SIZES, num_local_experts=2, intermediate_size_mlp=64, num_key_value_heads=2),
            "Llama4ForCausalLM: .*layers of type 'chunked_attention'",
        ),
        (BloomConfig(hidden_size=32, n_layer=2, n_head=2), "BloomForCausalLM: .*takes no position_ids"),
    ],
    ids=["recurrent", "chunked", "no positions"],
)
def test_other_layers_are_refused_by_name(config, says):
    with pytest.raises(InputError, match=says):
        SharedVocabularyPolicy.create(config, llama().processor)


def switching(kind):
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": SWITCH}
        positions: dict[str, Any] = {"max_position_embeddings": 512, "original_max_position_embeddings": SWITCH}
        config = Phi3Config(rope_parameters=rope, initializer_range=0.1, num_key_value_heads=2, **positions, **SIZES)
    else:
        rope["factor"] = 4.0
        config = LlamaConfig(rope_parameters=rope, max_position_embeddings=SWITCH, initializer_range=0.1, **SIZES)
    torch.manual_seed(1)
    policy = SharedVocabularyPolicy.create(config, llama().processor)
    policy.model.eval()
    return policy


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_beyond_a_switch_of_the_rope_nothing_is_sampled_or_scored(kind):
    """A longer neighbour would rotate a short row, and a token would be scored by other rotations than it was drawn."""
    policy = switching(kind)
    whole = policy.processor.encode_all(documents())
    long, short = max(whole, key=len), min(whole, key=len)
    assert len(short) < SWITCH < len(long)
    with torch.no_grad():
        scored, _ = policy.log_probs(policy.model, collate([[short, short, short]], policy.vocabulary))
    assert (scored[0, -len(short) :] - stock_log_probs(policy, short)).abs().max() < 1e-4
    with pytest.raises(InputError, match=f"a sequence of {len(long)} tokens: beyond {SWITCH} the rope of"):
        policy.log_probs(policy.model, collate([[short], [long]], policy.vocabulary))
    prompt = policy.processor.encode(documents()[3].prompt)
    generate(policy, [prompt], Sampling(SWITCH - len(prompt)))
    with pytest.raises(InputError, match=f"a sequence of {SWITCH + 1} tokens: beyond {SWITCH}"):
        generate(policy, [prompt], Sampling(SWITCH - len(prompt) + 1))
    assert policy.longest == SWITCH


def test_a_window_as_long_as_the_document_changes_nothing():
    policy = windowed("mistral")
    batch = collate([[policy.processor.encode(documents()[1])]], policy.vocabulary)
    with torch.no_grad():
        narrow, _ = policy.log_probs(policy.model, batch)
        policy.model.config.sliding_window = batch.ids_BT.shape[1]
        wide, _ = policy.log_probs(policy.model, batch)
        policy.model.config.sliding_window = None
        full, _ = policy.log_probs(policy.model, batch)
    assert torch.equal(wide, full) and (narrow - full).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma3", "janus"])
def test_rows_of_one_sequence_are_scored_without_a_mask_and_the_same(family, monkeypatch):
    policy, masks = FAMILIES[family](), []
    stock = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda *args: masks.append(args[2]) or stock(*args))
    sequences = policy.processor.encode_all(documents())

    def scored(batch, guidance):
        policy.model.zero_grad()
        logp_BT, _ = policy.log_probs(policy.model, batch, guidance=guidance)
        logp_BT.sum().backward()
        found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
        return logp_BT.detach(), found

    rows, packed = ([[item] for item in sequences], [sequences[:2], sequences[2:]])
    for guidance in (1.0, 2.0):
        batch = collate(rows, policy.vocabulary)
        masks.clear()
        (logp, grads), without = scored(batch, guidance), list(masks)
        assert (without[0] is None) == policy.sees_all_before
        with monkeypatch.context() as dense:
            dense.setattr(TokenBatch, "is_unpacked", False)
            expected, expected_grads = scored(batch, guidance)
        assert (logp - expected).abs().max() < 1e-4
        for name, grad in grads.items():
            assert torch.allclose(grad, expected_grads[name], atol=1e-3, rtol=1e-3), name
    masks.clear()
    scored(collate(packed, policy.vocabulary), 1.0)
    assert masks[0] is not None, "a packed row has more than one sequence"


def test_which_rows_are_one_sequence():
    vocabulary, sequences = llama().vocabulary, llama().processor.encode_all(documents()[:3])
    batch = collate([[item] for item in sequences], vocabulary, 200)
    assert batch.is_unpacked
    assert not collate([sequences[:2], sequences[2:]], vocabulary).is_unpacked
    assert not replace(batch, sequence_BT=batch.sequence_BT.roll(1, 1)).is_unpacked, "padding on the left"


@pytest.mark.parametrize("family", ["llama", "emu3", "janus"])
def test_packed_rows_by_flex_attention_are_scored_as_by_the_dense_mask(family, monkeypatch):
    """On a CPU flex attention has no backward pass, and without a compiler its products are plain ones."""
    policy = FAMILIES[family]()
    sequences = policy.processor.encode_all(documents()[:5])
    batch = collate([sequences[:2], sequences[2:]], policy.vocabulary)
    assert (batch.sequence_BT < 0).any() and not batch.is_unpacked
    prompt = policy.processor.encode(documents()[0].prompt)

    def scored(**settings):
        with torch.no_grad():
            return policy.log_probs(policy.model, batch, **settings)[0]

    expected, guided = scored(), scored(guidance=2.0)
    sampled = generate(policy, [prompt], Sampling(20, seed=3), 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    policy.pack_by_flex_attention()
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr("limner.models.attention.flex_attention_forward", _noted(flex_attention_forward, seen))
    with torch.compiler.set_stance("force_eager"):
        found, found_guided = scored(), scored(guidance=2.0)
        assert len(seen) >= 2 * policy.model.config.get_text_config().num_hidden_layers
        assert (found - expected).abs().max() < 1e-4 and (found_guided - guided).abs().max() < 1e-4
        monkeypatch.setattr("limner.models.policy.block_mask", lambda ids_BT: block_mask(torch.zeros_like(ids_BT)))
        assert (scored() - expected).abs().max() > 1e-3, "a token that sees the sequence before is found"
    again = generate(policy, [prompt], Sampling(20, seed=3), 3)
    assert [sample.ids_C.tolist() for sample in again] == [sample.ids_C.tolist() for sample in sampled]


def _noted(forward, seen):
    return lambda *args, **options: seen.append(1) or forward(*args, **options)


def test_flex_attention_is_refused_where_it_cannot_train(monkeypatch):
    with pytest.raises(InputError, match="^flex_attention: torch trains by it on a GPU alone"):
        llama().pack_by_flex_attention()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(InputError, match="^flex_attention: Gemma3ForCausalLM has layers with a window"):
        windowed("gemma3").pack_by_flex_attention()
