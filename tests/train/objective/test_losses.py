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


OTHERS = [{}, {"delta": (1.3, 1.5), "kl": "k2", "kl_clamp": 1.0}, {"surrogate": "cispo", "positive_nll": (0.1, 0.3)}]


@pytest.mark.parametrize("others", OTHERS, ids=["default", "dual-clip-k2", "cispo"])
@pytest.mark.parametrize("importance", ["token", "segment", "sequence"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_micro_batches_with_global_counts_add_up_to_the_whole(normalisation, importance, others):
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
        settings |= {"token_ratio_BT": importance_ratio(logp[rows], old[rows], part), **others}
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


PI = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
REF = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def expected_kl(logits: Tensor, behaviour: Tensor, **settings) -> tuple[Tensor, dict[str, Tensor]]:
    """The KL term of the loss in expectation over all tokens, as the behaviour policy draws them."""
    logp, count = logits.log_softmax(0)[None], len(behaviour)
    tokens = plain(torch.ones(1, count, dtype=torch.bool), torch.zeros(1, count, dtype=torch.bool))
    zero, ratio = torch.zeros(1, count), importance_ratio(logp, behaviour.log()[None], tokens)
    return policy_loss(logp, ratio, zero, tokens, behaviour[None], REF.log()[None], None, beta=(1.0, 0.0), **settings)


def exact_kl(logits: Tensor) -> Tensor:
    return (logits.softmax(0) * (logits.log_softmax(0) - REF.log())).sum()


@pytest.mark.parametrize("behaviour", [PI, torch.full_like(PI, 0.25)], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("settings", [{}, {"kl": "k2"}], ids=["k3", "k2"])
def test_in_expectation_the_kl_loss_has_the_gradient_of_the_kl(settings, behaviour):
    logits = PI.log().requires_grad_()
    (exact,) = torch.autograd.grad(exact_kl(logits), logits)
    loss, _ = expected_kl(logits, behaviour, **settings)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient, exact, atol=1e-9), f"{gradient.tolist()} against {exact.tolist()}"
    if not settings:
        assert loss.item() == pytest.approx(exact_kl(logits).item())  # k3 has its value, too


def test_all_estimates_agree_where_policy_and_reference_do():
    logits = REF.log().requires_grad_()
    for kl in ("k3", "k2"):
        loss, sums = expected_kl(logits, REF, kl=kl)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.abs() < 1e-12 and gradient.abs().max() < 1e-12 and sums["kl_clamped/text"] == 0


def test_a_token_that_the_policy_hardly_knows_is_clamped_and_counted():
    old = torch.log(torch.tensor([[1e-4, 0.5, 0.5]]))
    logp, ref = old.clone().requires_grad_(), torch.log(torch.tensor([[0.5, 1e-4, 0.4]]))
    tokens = plain(torch.ones(1, 3, dtype=torch.bool), torch.tensor([[False, True, False]]))
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)

    def of(clamp, kl="k3"):
        ratio = importance_ratio(logp, old, tokens)
        loss, sums = policy_loss(logp, ratio, zero, tokens, one, ref, beta=(1.0, 1.0), kl=kl, kl_clamp=clamp)
        return loss.item(), torch.autograd.grad(loss, logp)[0][0].tolist(), sums

    loss, gradient, sums = of(math.inf)
    assert loss > 4900 and sums["kl_clamped/text"] == sums["kl_clamped/image"] == 0
    loss, gradient, sums = of(5.0)
    assert loss < math.exp(5) and (sums["kl_clamped/text"], sums["kl_clamped/image"]) == (1, 1)
    # log pi - log ref, within the clamp: descending, the unknown token becomes likelier, the other one less likely.
    assert gradient == pytest.approx([-5, 5, math.log(0.5 / 0.4)], rel=1e-4)
    assert of(5.0, "k2")[1] == pytest.approx(gradient, rel=1e-4)


def test_the_kl_is_corrected_by_the_ratio_of_its_own_token():
    tokens = plain(torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    old, logp, ref = torch.log(torch.tensor([[[0.2, 0.8]], [[0.4, 0.4]], [[0.1, 0.3]]]))
    own = importance_ratio(logp, old, tokens)
    _, sums = policy_loss(
        logp,
        importance_ratio(logp, old, tokens, "sequence"),
        torch.zeros(1, 2),
        tokens,
        torch.ones(1, 2),
        ref,
        token_ratio_BT=own,
    )
    k3 = (ref - logp).exp() - (ref - logp) - 1
    assert sums["kl/text"].item() == pytest.approx((torch.tensor([[2.0, 0.5]]) * k3).sum().item(), rel=1e-5)


def test_a_kl_over_all_choices_takes_the_place_of_estimates():
    tokens = plain(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[False, True]]))
    one, zero, full = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[0.3, 0.5]])
    loss, sums = policy_loss(zero, one, zero, tokens, one, beta=(1.0, 2.0), kl="full", full_kl_BT=full)
    assert loss.item() == pytest.approx(0.3 + 2 * 0.5) and sums["kl/image"] == 0.5 and "kl_clamped/text" not in sums


# ---- dual clip, cispo, positive NLL ----


def surrogate(ratio: float, advantage: float, **settings) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, its gradient in log pi and metrics of one text token; the clip is 0.2 on both sides."""
    old = torch.tensor([[-1.5]])
    logp = (old + math.log(ratio)).requires_grad_()
    tokens = plain(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool))
    loss, sums = policy_loss(
        logp, importance_ratio(logp, old, tokens), torch.tensor([[advantage]]), tokens, torch.ones(1, 1), **settings
    )
    return loss.item(), torch.autograd.grad(loss, logp)[0].item(), sums


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (10.0, -2.0, 6.0, 0.0),  # without it 20 and 20
        (2.5, -2.0, 5.0, 5.0),
        (0.5, -2.0, 1.6, 0.0),
        (10.0, 2.0, -2.4, 0.0),
        (1.1, 2.0, -2.2, -2.2),
    ],
)
def test_dual_clip_bounds_what_a_negative_advantage_can_do(ratio, advantage, loss, gradient):
    found, slope, sums = surrogate(ratio, advantage, delta=(3.0, 3.0))
    assert found == pytest.approx(loss, rel=1e-5) and slope == pytest.approx(gradient, rel=1e-5)
    assert sums["clip_fraction/text"] == (gradient == 0)
    assert sums["signal/text"].item() == pytest.approx(abs(gradient), rel=1e-5)
    assert surrogate(10.0, -2.0)[:2] == pytest.approx((20.0, 20.0), rel=1e-5)


@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.1), (1.1, 1.1), (10.0, 1.2)])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_truncates_the_weight_and_drops_no_gradient(ratio, weight, advantage):
    loss, gradient, sums = surrogate(ratio, advantage, surrogate="cispo", epsilon_high=(0.2, 0.0))
    assert gradient == pytest.approx(-weight * advantage, rel=1e-5)
    assert loss == pytest.approx(-weight * advantage * (-1.5 + math.log(ratio)), rel=1e-5)
    assert sums["clip_fraction/text"] == (ratio > 1.2)
    assert sums["signal/text"].item() == pytest.approx(abs(gradient), rel=1e-5)


def test_positive_nll_is_the_cross_entropy_of_tokens_with_a_positive_advantage():
    logp = torch.tensor([[-1.0, -2.0, -3.0, -4.0]], requires_grad=True)
    tokens = plain(torch.ones(1, 4, dtype=torch.bool), torch.tensor([[False, False, False, True]]))
    advantages, one = torch.tensor([[1.0, -1.0, 0.0, 2.0]]), torch.full((1, 4), 0.25)
    losses = [
        policy_loss(logp, one * 4, advantages, tokens, one, positive_nll=weights)[0]
        for weights in ((0.0, 0.0), (0.1, 0.5))
    ]
    assert (losses[1] - losses[0]).item() == pytest.approx(0.25 * (0.1 * 1 + 0.5 * 4))


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
