"""The entropy coefficient follows the entropy, alone and over a checkpoint."""

import pytest

from limner.train.objective.entropy import EntropyControl, adapted


def test_a_coefficient_rises_below_its_target_and_falls_above_it():
    assert adapted(0.01, entropy=0.1, target=0.2, step=0.005, most=1.0) == pytest.approx(0.015)
    assert adapted(0.01, entropy=0.3, target=0.2, step=0.005, most=1.0) == pytest.approx(0.005)
    assert adapted(0.01, entropy=0.3, target=0.2, step=0.05, most=1.0) == 0
    assert adapted(0.99, entropy=0.1, target=0.2, step=0.05, most=1.0) == 1


def sums(text: float, image: float) -> dict[str, float]:
    return {"entropy/text": 10 * text, "tokens/text": 10, "entropy/image": 30 * image, "tokens/image": 30}


def test_without_a_target_the_bonus_is_what_was_configured():
    control = EntropyControl((0.1, 0.2), None, 0.005, 1.0)
    control.add(sums(0.0, 9.0))
    assert control.pair == (0.1, 0.2)


def test_each_modality_is_held_at_its_own_target():
    control = EntropyControl((0.01, 0.01), (0.2, 0.2), 0.005, 1.0)
    assert control.pair == (0, 0)  # nothing is known yet
    control.add(sums(0.1, 0.5))
    control.add(sums(0.2, 0.6))
    control.update(control.sums)  # means over both micro-batches: 0.15 and 0.55
    assert control.pair == (pytest.approx(0.015), 0)
    assert control.coefficients == pytest.approx([0.015, 0.005]) and control.sums == [[0, 0], [0, 0]]
    control.update([[0.0, 0.0], [3.0, 30.0]])  # no text at all: its coefficient stays
    assert control.pair == pytest.approx((0.015, 0.01))


def test_it_goes_on_from_its_state():
    control, other = (EntropyControl((0.01, 0.01), (0.2, 0.2), 0.005, 1.0) for _ in range(2))
    control.add(sums(0.1, 0.1))
    control.update(control.sums)
    control.add(sums(0.3, 0.1))
    other.load_state_dict(control.state_dict())
    for one in (control, other):
        one.update(one.sums)
    assert other.pair == control.pair and other.state_dict() == control.state_dict()
