"""Packing: every sequence once, no row too long, little padding."""

from random import Random

import pytest
import torch

from limner.configs.errors import InputError
from limner.data.packing import pack
from limner.models.tokens.sequence import TokenSequence


def sequence(number, length):
    ids_T = torch.full((length,), number)
    return TokenSequence(ids_T, torch.zeros_like(ids_T), torch.ones(length, dtype=torch.bool), 1)


def numbers(rows):
    return [[int(part.ids_T[0]) for part in row] for row in rows]


def random_sequences(count, longest, seed=0):
    random = Random(seed)
    return [sequence(i, random.randint(1, longest)) for i in range(count)]


@pytest.mark.parametrize("buffer", [1, 4, 32, 1000])
@pytest.mark.parametrize("longest", [3, 50, 100])
def test_every_sequence_once_and_no_row_too_long(buffer, longest):
    sequences = random_sequences(400, longest)
    rows = list(pack(iter(sequences), 100, buffer))
    assert sorted(number for row in numbers(rows) for number in row) == list(range(400))
    assert all(row and sum(map(len, row)) <= 100 for row in rows)
    assert all(part is sequences[int(part.ids_T[0])] for row in rows for part in row), "nothing is copied or cut"
    assert numbers(rows) == numbers(pack(iter(sequences), 100, buffer))


def test_little_is_padding():
    sequences = random_sequences(2000, 60)
    rows = list(pack(sequences, 100))
    assert sum(map(len, sequences)) / (100 * len(rows)) > 0.93


def test_a_window_of_rows_waits_and_the_fullest_leaves_first():
    lengths = [6, 9, 7, 8, 4]
    rows = pack((sequence(i, length) for i, length in enumerate(lengths)), 10, buffer=3)
    # Row by row: 6, 9, 7 wait; 8 opens a fourth, so the 9 leaves; the 4 joins the 6.
    assert numbers(rows) == [[1], [0, 4], [2], [3]]


def test_rows_come_as_they_fill_not_at_the_end():
    taken = 0

    def stream():
        nonlocal taken
        while True:
            taken += 1
            yield sequence(taken, 60)

    rows = pack(stream(), 100, buffer=4)
    for row in range(20):
        next(rows)
        assert taken == row + 5


def test_a_sequence_of_exactly_a_row_and_no_sequence():
    assert numbers(pack([sequence(0, 10), sequence(1, 10)], 10)) == [[0], [1]]
    assert list(pack([], 10)) == []


def test_a_sequence_longer_than_a_row_is_named():
    with pytest.raises(InputError, match="11 tokens and `pack_length` is 10"):
        list(pack([sequence(0, 3), sequence(1, 11)], 10))
