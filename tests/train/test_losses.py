"""Losses against hand numbers, and what must not change when a batch is cut into micro-batches."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.train.losses import NORMALISATIONS, Counts, imitation_loss, policy_loss, token_weights

TEXT, IMAGE = False, True


def batch(seed: int = 0, rows: int = 6, length: int = 20) -> tuple[Tensor, Tensor]:
    """Trained tokens and their modality: ragged rows of mostly image tokens, the last row trains nothing."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=generator) < torch.linspace(0.2, 0.9, rows)[:, None]
    mask[-1] = False
    return mask, torch.rand(rows, length, generator=generator) < 0.8


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("modality", ["both", "text", "image"])
def test_weights_sum_to_one(normalisation, modality):
    mask, image = batch()
    if modality != "both":
        image = torch.full_like(image, modality == "image")
    weights = token_weights(mask, image, Counts.of(mask, image), normalisation)
    assert weights.sum() == pytest.approx(1)
    assert (weights[~mask] == 0).all() and (weights[mask] > 0).all()


def test_what_each_normalisation_holds_equal():
    mask, image = batch()
    counts = Counts.of(mask, image)
    assert token_weights(mask, image, counts, "token")[mask].unique().numel() == 1
    by_row = token_weights(mask, image, counts, "sequence").sum(1)
    assert torch.allclose(by_row, torch.tensor([0.2] * 5 + [0.0]))
    balanced = token_weights(mask, image, counts, "modality-balanced")
    assert counts.image > 3 * counts.text
    assert balanced[image].sum() == pytest.approx(0.5) and balanced[~image].sum() == pytest.approx(0.5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_nothing_to_train_weighs_nothing(normalisation):
    mask, image = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    assert token_weights(mask, image, Counts.of(mask, image), normalisation).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_micro_batches_with_global_counts_add_up_to_the_whole(normalisation):
    mask, image = batch()
    counts = Counts.of(mask, image)
    torch.manual_seed(0)
    logp, old, ref, advantages = -torch.rand(4, *mask.shape) * 2
    logp.requires_grad_()

    def loss(rows: slice) -> Tensor:
        m, i = mask[rows], image[rows]
        weights = token_weights(m, i, counts, normalisation)
        settings = {"epsilon": (0.1, 0.3), "epsilon_high": (0.2, 0.2), "beta": (0.05, 0.5)}
        return policy_loss(logp[rows], old[rows], advantages[rows], m, i, weights, ref[rows], **settings)[0]

    whole = loss(slice(None))
    (gradient,) = torch.autograd.grad(whole, logp)
    parts = [loss(slice(0, 1)), loss(slice(1, 4)), loss(slice(4, 6))]
    (parts_gradient,) = torch.autograd.grad(sum(parts), logp)
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)
    assert torch.allclose(gradient, parts_gradient, atol=1e-8)


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
    loss, sums = policy_loss(logp, old, advantages, mask, image, mask.float(), None, (0.1, 0.3), (0.2, 0.5))
    loss.backward()
    assert loss.item() == pytest.approx(-objective, rel=1e-5)
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(0 if clipped else -ratio * advantage, rel=1e-5)
    name = "image" if modality else "text"
    assert sums[f"clip_fraction/{name}"] == clipped and sums[f"ratio/{name}"].item() == pytest.approx(ratio, rel=1e-5)


def test_kl_is_k3_per_modality_and_zero_at_the_reference():
    logp = torch.log(torch.tensor([[0.5, 0.5, 0.25]]))
    ref = torch.log(torch.tensor([[0.25, 0.25, 0.25]]))
    zero, mask, image = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[False, True, True]])
    loss, sums = policy_loss(logp, logp, zero, mask, image, mask.float(), ref, beta=(0.1, 10.0))
    k3 = 0.5 - math.log(0.5) - 1  # r - log r - 1 at r = ref / policy = 0.25 / 0.5
    assert sums["kl/text"].item() == pytest.approx(k3) and sums["kl/image"].item() == pytest.approx(k3)
    assert loss.item() == pytest.approx((0.1 + 10) * k3)
    loss, sums = policy_loss(logp, logp, zero, mask, image, mask.float(), logp, beta=(0.1, 10.0))
    assert loss == sums["kl/text"] == sums["kl/image"] == 0


def test_masked_tokens_do_not_reach_the_loss():
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -200.0]])  # exp(198) overflows
    mask, image = torch.tensor([[True, False]]), torch.tensor([[False, False]])
    loss, sums = policy_loss(logp, old, torch.ones(1, 2), mask, image, mask.float())
    loss.backward()
    assert loss == -1 and logp.grad is not None and logp.grad.tolist() == [[-1.0, 0.0]]
    assert sums["tokens/text"] == 1 and sums["tokens/image"] == 0 and sums["ratio/text"] == 1


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_at_ratio_one_the_gradient_is_the_policy_gradient(normalisation):
    """d loss / d theta = - sum_t w_t A_t d logp_t / d theta: REINFORCE, whatever the clipping."""
    torch.manual_seed(0)
    mask, image = batch()
    logits = torch.randn(*mask.shape, 7, requires_grad=True)
    chosen = torch.randint(7, mask.shape)
    advantages = torch.randn(mask.shape)
    logp = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
    weights = token_weights(mask, image, Counts.of(mask, image), normalisation)
    loss, _ = policy_loss(logp, logp.detach(), advantages, mask, image, weights)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(weights * advantages * logp).sum(), logits)
    assert torch.allclose(gradient, expected, atol=1e-8) and gradient.abs().max() > 0


def test_imitation_is_cross_entropy():
    torch.manual_seed(0)
    mask, image = batch()
    logits, chosen = torch.randn(*mask.shape, 7), torch.randint(7, mask.shape)
    logp = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
    weights = token_weights(mask, image, Counts.of(mask, image), "token")
    assert imitation_loss(logp, weights).item() == pytest.approx(F.cross_entropy(logits[mask], chosen[mask]).item())
