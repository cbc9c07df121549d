"""Losses against hand numbers, and what must not change when a batch is cut into micro-batches."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.train.objective.losses import (
    NORMALISATIONS,
    Counts,
    Tokens,
    imitation_loss,
    importance_ratio,
    policy_loss,
    token_weights,
)

TEXT, IMAGE = False, True


def batch(seed: int = 0, rows: int = 6, length: int = 20) -> Tokens:
    """Ragged rows, mostly image tokens, of two sequences and segments of four tokens; the last row trains nothing."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=generator) < torch.linspace(0.2, 0.9, rows)[:, None]
    mask[-1] = False
    image = torch.rand(rows, length, generator=generator) < 0.8
    at = torch.arange(length).expand(rows, length)
    return Tokens(mask, image, at // (length // 2), at // 4)


def plain(mask: Tensor, image: Tensor) -> Tokens:
    """One sequence a row, of one segment."""
    return Tokens(mask, image, torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(mask, dtype=torch.long))


def rows_of(tokens: Tokens, rows: slice) -> Tokens:
    return Tokens(*(getattr(tokens, name)[rows] for name in Tokens.__slots__))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("modality", ["both", "text", "image"])
def test_weights_sum_to_one(normalisation, modality):
    tokens = batch()
    if modality != "both":
        tokens = replace(tokens, image_BT=torch.full_like(tokens.image_BT, modality == "image"))
    weights = token_weights(tokens, Counts.of(tokens), normalisation)
    assert weights.sum() == pytest.approx(1)
    assert (weights[~tokens.trained_BT] == 0).all() and (weights[tokens.trained_BT] > 0).all()


def test_what_each_normalisation_holds_equal():
    tokens = batch()
    mask, image, counts = tokens.trained_BT, tokens.image_BT, Counts.of(tokens)
    assert token_weights(tokens, counts, "token")[mask].unique().numel() == 1
    for normalisation, unit, width in (("sequence", tokens.sequence_BT, 10), ("segment", tokens.segment_BT, 4)):
        weights = token_weights(tokens, counts, normalisation).view(6, -1, width)
        trained = mask.view(6, -1, width).any(2)
        assert torch.allclose(weights.sum(2), trained.float() / trained.sum()), normalisation
        assert (unit.view(6, -1, width) == unit.view(6, -1, width)[..., :1]).all()
    balanced = token_weights(tokens, counts, "modality-balanced")
    assert counts.image > 3 * counts.text
    assert balanced[image].sum() == pytest.approx(0.5) and balanced[~image].sum() == pytest.approx(0.5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_nothing_to_train_weighs_nothing(normalisation):
    tokens = plain(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool))
    assert token_weights(tokens, Counts.of(tokens), normalisation).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("importance", ["token", "segment", "sequence"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_micro_batches_with_global_counts_add_up_to_the_whole(normalisation, importance):
    tokens = batch()
    counts = Counts.of(tokens)
    torch.manual_seed(0)
    logp, old, ref, advantages, entropy = -torch.rand(5, *tokens.trained_BT.shape) * 2
    logp.requires_grad_()

    def loss(rows: slice) -> Tensor:
        part = rows_of(tokens, rows)
        weights = token_weights(part, counts, normalisation)
        settings = {"epsilon": (0.1, 0.3), "epsilon_high": (0.2, 0.2), "beta": (0.05, 0.5), "entropy_bonus": (0.1, 0.0)}
        ratio = importance_ratio(logp[rows], old[rows], part, importance)
        return policy_loss(logp[rows], ratio, advantages[rows], part, weights, ref[rows], entropy[rows], **settings)[0]

    whole = loss(slice(None))
    (gradient,) = torch.autograd.grad(whole, logp)
    parts = [loss(slice(0, 1)), loss(slice(1, 4)), loss(slice(4, 6)), loss(slice(0, 0))]
    (parts_gradient,) = torch.autograd.grad(sum(parts), logp)
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)
    assert torch.allclose(gradient, parts_gradient, atol=1e-8)


def test_the_ratio_of_a_unit_is_the_geometric_mean_over_its_trained_tokens():
    old = torch.zeros(1, 6)
    logp = torch.log(torch.tensor([[2.0, 8.0, 100.0, 1.0, 3.0, 9.0]]))
    tokens = Tokens(
        torch.tensor([[True, True, False, True, True, True]]),
        torch.zeros(1, 6, dtype=torch.bool),
        torch.tensor([[0, 0, 0, 0, 1, 1]]),
        torch.tensor([[0, 0, 0, 1, 2, 2]]),
    )
    assert importance_ratio(logp, old, tokens, "token")[0].tolist() == pytest.approx([2, 8, 1, 1, 3, 9])
    root = 27**0.5
    segment = importance_ratio(logp, old, tokens, "segment")[0].tolist()
    assert segment == pytest.approx([4, 4, 1, 1, root, root], rel=1e-5)
    third = 16 ** (1 / 3)
    sequence = importance_ratio(logp, old, tokens, "sequence")[0].tolist()
    assert sequence == pytest.approx([third, third, 1, third, root, root], rel=1e-5)


CLIPPED = [
    # modality, ratio, advantage, objective by hand, clipped; text is clipped to 0.9..1.2, images to 0.7..1.5
    (TEXT, 1.1, 2.0, 2.2, False),
    (TEXT, 1.3, 2.0, 2.4, True),
    (TEXT, 1.3, -2.0, -2.6, False),
    (TEXT, 0.8, 2.0, 1.6, False),
    (TEXT, 0.8, -2.0, -1.8, True),
    (IMAGE, 1.3, 2.0, 2.6, False),
    (IMAGE, 1.6, 2.0, 3.0, True),
    (IMAGE, 0.8, -2.0, -1.6, False),
    (IMAGE, 0.5, -2.0, -1.4, True),
    (IMAGE, 0.5, 2.0, 1.0, False),
]


@pytest.mark.parametrize(("modality", "ratio", "advantage", "objective", "clipped"), CLIPPED)
def test_each_modality_is_clipped_by_its_own_bounds(modality, ratio, advantage, objective, clipped):
    logp = torch.tensor([[math.log(ratio) - 1.5]], requires_grad=True)
    old, advantages = torch.tensor([[-1.5]]), torch.tensor([[advantage]])
    mask, image = torch.tensor([[True]]), torch.tensor([[modality]])
    tokens = plain(mask, image)
    settings = {"epsilon": (0.1, 0.3), "epsilon_high": (0.2, 0.5)}
    loss, sums = policy_loss(
        logp, importance_ratio(logp, old, tokens), advantages, tokens, torch.full((1, 1), 1.0), **settings
    )
    loss.backward()
    assert loss.item() == pytest.approx(-objective, rel=1e-5)
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(0 if clipped else -ratio * advantage, rel=1e-5)
    name = "image" if modality else "text"
    assert sums[f"signal/{name}"].item() == pytest.approx(logp.grad.abs().item(), rel=1e-5)
    assert sums[f"clip_fraction/{name}"] == clipped and sums[f"ratio/{name}"].item() == pytest.approx(ratio, rel=1e-5)


def test_kl_is_k3_per_modality_and_zero_at_the_reference():
    logp = torch.log(torch.tensor([[0.5, 0.5, 0.25]]))
    ref = torch.log(torch.tensor([[0.25, 0.25, 0.25]]))
    zero, mask, image = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[False, True, True]])
    tokens, one = plain(mask, image), torch.ones(1, 3)
    loss, sums = policy_loss(logp, one, zero, tokens, one, ref, beta=(0.1, 10.0))
    k3 = 0.5 - math.log(0.5) - 1  # r - log r - 1 at r = ref / policy = 0.25 / 0.5
    assert sums["kl/text"].item() == pytest.approx(k3) and sums["kl/image"].item() == pytest.approx(k3)
    assert loss.item() == pytest.approx((0.1 + 10) * k3)
    loss, sums = policy_loss(logp, one, zero, tokens, one, logp, beta=(0.1, 10.0))
    assert loss == sums["kl/text"] == sums["kl/image"] == 0


def test_masked_tokens_do_not_reach_the_loss():
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -200.0]])  # exp(198) overflows
    mask, image = torch.tensor([[True, False]]), torch.tensor([[False, False]])
    tokens = plain(mask, image)
    loss, sums = policy_loss(logp, importance_ratio(logp, old, tokens), torch.ones(1, 2), tokens, mask.float())
    loss.backward()
    assert loss == -1 and logp.grad is not None and logp.grad.tolist() == [[-1.0, 0.0]]
    assert sums["tokens/text"] == 1 and sums["tokens/image"] == 0 and sums["ratio/text"] == 1


def test_the_entropy_bonus_is_paid_by_modality():
    entropy = torch.tensor([[2.0, 3.0]])
    tokens = plain(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[False, True]]))
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    loss, sums = policy_loss(zero, one, zero, tokens, one, None, entropy, entropy_bonus=(0.1, 0.01))
    assert loss.item() == pytest.approx(-(0.1 * 2 + 0.01 * 3))
    assert sums["entropy/text"] == 2 and sums["entropy/image"] == 3


@pytest.mark.parametrize("importance", ["token", "segment", "sequence"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_at_ratio_one_the_gradient_is_the_policy_gradient(normalisation, importance):
    """d loss / d theta = - sum_t w_t A_t d logp_t / d theta: REINFORCE, whatever the clipping.

    A ratio of a unit shares the advantages out among its tokens: each gets the unit's weighted mean.
    """
    torch.manual_seed(0)
    tokens = batch()
    shape = tokens.trained_BT.shape
    logits = torch.randn(*shape, 7, requires_grad=True)
    chosen = torch.randint(7, shape)
    advantages = torch.randn(shape)
    logp = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
    weights = token_weights(tokens, Counts.of(tokens), normalisation)
    ratio = importance_ratio(logp, logp.detach(), tokens, importance)
    loss, _ = policy_loss(logp, ratio, advantages, tokens, weights)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    due = weights * advantages
    if importance != "token":
        unit = tokens.unit_BT(importance)
        trained = tokens.trained_BT.float()
        sums, sizes = (torch.zeros(shape).scatter_add(1, unit, values).gather(1, unit) for values in (due, trained))
        due = sums / sizes.clamp(min=1) * trained
    (expected,) = torch.autograd.grad(-(due * logp).sum(), logits)
    assert torch.allclose(gradient, expected, atol=1e-8) and gradient.abs().max() > 0


def test_imitation_is_cross_entropy():
    torch.manual_seed(0)
    tokens = batch()
    mask = tokens.trained_BT
    logits, chosen = torch.randn(*mask.shape, 7), torch.randint(7, mask.shape)
    logp = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
    weights = token_weights(tokens, Counts.of(tokens), "token")
    assert imitation_loss(logp, weights).item() == pytest.approx(F.cross_entropy(logits[mask], chosen[mask]).item())
