"""The order of training: each epoch all, any place at once, shares exact."""

from collections import Counter

import numpy as np
import pytest

from limner.data.shards.order import TOGETHER, Order, Turns, random_bits

ORDER = [3, 6, 0, 7, 4, 2, 1, 5]
DRAWN = [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1), (0, 4), (0, 5)]


@pytest.mark.parametrize("sizes", [[1], [5] * 7 + [3], [1] * 40])
def test_an_epoch_has_every_record_once_and_an_order_of_its_own(sizes):
    order, count = Order(sizes, 3), sum(sizes)
    epochs = [[order.record(epoch * count + at) for at in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count == 1 or len({tuple(epoch) for epoch in epochs}) == 3
    again = Order(sizes, 3)
    assert [again.record(at) for at in reversed(range(3 * count))] == sum(epochs, [])[::-1], "any place, in any order"
    assert count == 1 or [Order(sizes, 4).record(at) for at in range(count)] != epochs[0]


def test_few_shards_are_read_at_a_time():
    order = Order([100] * 40, 0)
    for start in range(0, 4000, 100 * TOGETHER):
        shards = {order.record(at) // 100 for at in range(start, start + 100 * TOGETHER)}
        assert len(shards) == TOGETHER


def test_the_order_stays_that_of_every_other_machine():
    assert [Order([4, 4], 0).record(at) for at in range(8)] == ORDER
    assert Turns([0.75, 0.25], 0).between(0, 8) == DRAWN


def test_turns_are_shares_and_known_at_any_moment():
    turns = Turns([0.5, 0.3, 0.2], 1)
    whole = turns.between(0, 1000)
    assert Counter(source for source, _ in whole) == {0: 500, 1: 300, 2: 200}
    parts = [turns.between(start, min(start + 37, 1000)) for start in range(0, 1000, 37)]
    assert sum(parts, []) == whole
    for time in (0, 1, 500, 10**12 + 1):
        before = turns.before(time)
        assert all(abs(count - time * share) < 2 for count, share in zip(before, turns.shares, strict=True))
    assert turns.between(10**12, 10**12 + 3) == [
        pair for time in range(3) for pair in turns.between(10**12 + time, 10**12 + time + 1)
    ]
    firsts = "".join(str(source) for source, _ in whole)
    assert "000" in firsts and "11" in firsts and "01" in firsts, "no fixed pattern that ranks could fall into"


def test_bits_are_even():
    bits = random_bits(np.arange(100_000), "a", 1)
    assert len(np.unique(bits)) == 100_000 and abs(float((bits / 2.0**64).mean()) - 0.5) < 0.01
    assert not np.array_equal(bits, random_bits(np.arange(100_000), "a", 2))
