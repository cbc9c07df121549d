"""Heads in float32: scores are the product of the hidden states, whatever the rest computes in, and no copy is kept."""

import pytest
import torch
from torch.nn.functional import linear

from limner.models import heads
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.sequence import collate

from .families.conformance import documents
from .families.tiny import FAMILIES


def test_a_model_in_float32_is_what_it_was():
    policy = FAMILIES["llama"]()
    states = torch.randn(7, policy.model.config.hidden_size)
    weight = policy.model.get_output_embeddings().weight
    found = policy.allowed_text_logits(states, torch.zeros(7), None)
    expected = (states @ weight[: policy.vocabulary.text_size].T).masked_fill(~found.isfinite(), float("-inf"))
    assert torch.equal(found, expected)


def test_products_in_blocks_have_the_gradients_of_one(monkeypatch):
    monkeypatch.setattr(heads, "BLOCK_ROWS", 5)
    states, weight = torch.randn(2, 3, 8).bfloat16(), torch.randn(12, 8).bfloat16()
    bias, pull = torch.randn(12).bfloat16(), torch.randn(2, 3, 12)
    found, expected = [], []
    for results, dtype in ((found, torch.bfloat16), (expected, torch.float64)):
        leaves = [tensor.detach().clone().to(dtype).requires_grad_() for tensor in (states, weight, bias)]
        with heads.Float32Heads().on(states.device) if results is found else torch.enable_grad():
            scores = linear(*leaves)
        (scores * pull).sum().backward()
        results += [scores, *(leaf.grad for leaf in leaves)]
    assert found[0].dtype == torch.float32 and torch.allclose(found[0].double(), expected[0], atol=1e-5)
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert a.dtype == torch.bfloat16 and torch.allclose(a.double(), b, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("chunk", [None, 16])
def test_no_copy_of_the_head_waits_for_the_backward_pass(chunk):
    """What autograd keeps in float32 is smaller than the head, which has 16 bits."""
    policy = FAMILIES["emu3"]()
    policy.model.to(torch.bfloat16)
    batch = collate([policy.processor.encode_all(documents()[3:])], policy.vocabulary)
    head = policy.model.get_output_embeddings().weight
    kept: list[tuple[torch.dtype, int]] = []

    def note(tensor):
        kept.append((tensor.dtype, tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logp_BT, _ = policy.log_probs(policy.model, batch, chunk=chunk)
    logp_BT.sum().backward()
    scores = int(batch.trainable_BT.sum()) * policy.vocabulary.text_size * 4
    assert scores < head.numel() * 4, "else the scores alone are as large"
    assert max(size for dtype, size in kept if dtype == torch.float32) < head.numel() * 4
    assert head.grad is not None and head.grad.dtype == torch.bfloat16 and head.grad.abs().max() > 0


def test_a_sampler_casts_a_head_once(monkeypatch):
    """And lets go of the copy when it is done; weights that have changed are read anew."""
    policy = FAMILIES["llama"]()
    policy.model.to(torch.bfloat16)
    prompts = policy.processor.encode_all([document.prompt for document in documents()])
    copies = []
    keep = heads._Linear.__init__

    def noted(self, kept):
        copies.append(kept)
        keep(self, kept)

    monkeypatch.setattr(heads._Linear, "__init__", noted)
    first = generate(policy, prompts, Sampling(40, seed=1))
    assert len(copies) > 40 and all(kept is copies[0] for kept in copies) and len(copies[0]) == 2
    assert policy.float32_heads._copies is None
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(0.5)
    second = generate(policy, prompts, Sampling(40, seed=1))
    assert any(a.ids_C.tolist() != b.ids_C.tolist() for a, b in zip(first, second, strict=True))
