"""How far rollouts from merged weights in bf16 are from the training forward, which adds the adapter's output."""

import pytest
import torch
from transformers import LlamaConfig

from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.tokens.sequence import TokenBatch
from limner.train.scale.lora import LoraConfig, adapted, adapter_layers
from limner.train.scale.precision import sampling_weights

pytest.importorskip("peft", reason="pip install 'limner[peft]'")

STEP = 0.02 * 2**-8
"""The rounding step of a usual weight."""


def test_merged_weights_are_the_adapter_up_to_the_noise_of_bf16(processor):
    """A change that rounding swallows is one that bf16 hardly shows in the scores; a larger one is there."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8, tie_word_embeddings=False
    )
    policy = SharedVocabularyPolicy.create(config, processor)
    policy.model.get_output_embeddings().weight.data.normal_(std=0.08)
    policy.model.to(torch.bfloat16)
    ids_BT = torch.randint(50, policy.vocabulary.text_size, (4, 64))
    ids_BT[:, 32:48] = torch.randint(policy.vocabulary.text_size, policy.vocabulary.text_size + 32, (4, 16))
    positions_BT, zeros_BT = torch.arange(64).expand(4, 64), torch.zeros_like(ids_BT)
    answer_BT = positions_BT >= 8
    batch = TokenBatch(ids_BT, positions_BT, zeros_BT, zeros_BT, answer_BT, zeros_BT, ~answer_BT, torch.zeros(4, 0))
    model = adapted(policy.model, LoraConfig(rank=16, alpha=32), seed=0)
    layers = list(adapter_layers(policy.model).values())

    @torch.no_grad()
    def scores():
        return policy.log_probs(policy.model, batch)[0][answer_BT]

    for size in (1e-5, 1e-4, 1e-3, 1e-2):
        for layer in layers:
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=size)
        with torch.autocast("cpu", torch.bfloat16):
            trained = scores()
            with sampling_weights(policy):
                merged = (scores() - trained).abs()
            with model.disable_adapter():
                without = (scores() - trained).abs()
        steps = layers[0].get_delta_weight("default").std().item() / STEP
        print(
            f"{steps:.2f} steps: merged {merged.mean():.4f} / {merged.max():.4f}, "
            f"left out {without.mean():.4f} / {without.max():.4f}"
        )
        assert merged.mean() < 0.03 and merged.max() < 0.2
    assert merged.mean() < without.mean() / 10
