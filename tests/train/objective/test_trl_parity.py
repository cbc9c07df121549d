"""On text alone our loss is TRL's, to float precision, in every setting that the two share."""

import itertools

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from limner.train.objective.losses import Counts, Tokens, importance_ratio, policy_loss, token_weights

ROWS, LENGTH = 6, 11
LOSS_TYPES = {"token": "bnpo", "sequence": "grpo"}
"""Our normalisation to TRL's `loss_type`."""
SHARED = [
    (normalisation, importance, beta, bonus)
    for normalisation, importance, beta, bonus in itertools.product(
        ["token", "sequence"], ["token", "sequence"], [0.0, 0.07], [0.0, 0.03]
    )
    if not (bonus and normalisation == "sequence")  # TRL's bonus is a mean over tokens in every loss type
    if not (beta and importance == "sequence")  # TRL then corrects the KL by the ratio of the sequence
]


@pytest.fixture(scope="module")
def stock(make_policy, tmp_path_factory):
    """A stock GRPOTrainer; what its model would say is put in its place."""
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("stock")),
        per_device_train_batch_size=ROWS,
        num_generations=2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        activation_checkpointing=False,
        report_to=[],
    )
    policy = make_policy(0)
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * ROWS}),
        processing_class=policy.processor.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


@pytest.mark.parametrize("by_token", [False, True], ids=["outcome", "process"])
@pytest.mark.parametrize("surrogate", ["clip", "dual clip", "cispo"])
@pytest.mark.parametrize(("normalisation", "importance", "beta", "bonus"), SHARED)
def test_loss_and_gradient_are_trls(stock, normalisation, importance, beta, bonus, surrogate, by_token):
    if surrogate == "cispo" and normalisation == "sequence":
        pytest.skip("TRL's cispo is a mean over tokens")
    torch.manual_seed(1)
    old, ref, entropy = -2 * torch.rand(3, ROWS, LENGTH)
    logp = (old + 0.6 * torch.randn(ROWS, LENGTH)).requires_grad_()
    entropy = -entropy
    mask = torch.arange(LENGTH) < torch.tensor([11, 7, 3, 1, 9, 5])[:, None]
    advantages = torch.randn(ROWS, LENGTH) if by_token else torch.randn(ROWS)

    stock.loss_type = "cispo" if surrogate == "cispo" else LOSS_TYPES[normalisation]
    stock.importance_sampling_level, stock.beta = importance, beta
    stock.epsilon_low, stock.epsilon_high = 0.15, 1.3 if surrogate == "cispo" else 0.3
    stock.args.delta = 1.5 if surrogate == "dual clip" else None
    stock.entropy_coef, stock._entropy_bonus_enabled = bonus, bonus > 0
    stock._get_per_token_logps_and_entropies = lambda *_, **__: (logp, entropy, None)
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 2, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 2, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, LENGTH, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    expected = GRPOTrainer._compute_loss(stock, stock.model, inputs)
    (expected_gradient,) = torch.autograd.grad(expected, logp)

    zeros = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    tokens = Tokens(mask, zeros.bool(), zeros, zeros)
    loss, sums = policy_loss(
        logp,
        importance_ratio(logp, old, tokens, importance),
        (advantages if by_token else advantages[:, None]).expand(ROWS, LENGTH),
        tokens,
        token_weights(tokens, Counts.of(tokens), normalisation),
        ref,
        entropy,
        epsilon=(0.15, 0.0),
        epsilon_high=(0.3, 0.0),
        beta=(beta, 0.0),
        entropy_bonus=(bonus, 0.0),
        surrogate="cispo" if surrogate == "cispo" else "clip",
        delta=(1.5 if surrogate == "dual clip" else float("inf"), float("inf")),
    )
    (gradient,) = torch.autograd.grad(loss, logp)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8) and gradient.abs().max() > 0
    assert sums["clip_fraction/text"] > 0 or importance == "sequence"
