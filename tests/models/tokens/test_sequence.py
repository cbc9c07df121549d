"""Batches of token sequences: packed rows give the numbers of their sequences alone."""

import pytest
import torch
from transformers import GPT2Config

from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.tokens.sequence import ImageSlot, TokenSequence, collate, images_before
from limner.worlds.picture_stories.scenes import SCENES, caption, story, text_to_image


@pytest.fixture(scope="module")
def sequences(processor):
    documents = [story(SCENES[:2]), caption(SCENES[9]), text_to_image(SCENES[20]), story(SCENES[30:33])]
    return processor.encode_all(documents)


def absolute_policy(processor):
    """A stock GPT-2: its positions are absolute, so a position that is not reset shows."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    policy = SharedVocabularyPolicy.create(config, processor)
    policy.model.transformer.wpe.weight.data.normal_()
    return policy


def scored(policy, rows, length=None):
    """Log-probs and entropies of each sequence, and the gradient of their sums."""
    policy.model.zero_grad()
    batch = collate(rows, policy.vocabulary, length)
    logp_BT, entropy_BT = policy.log_probs(policy.model, batch)
    (logp_BT.sum() + 0.1 * entropy_BT.sum()).backward()
    parts = [
        torch.stack([logp_BT[row, at], entropy_BT[row, at]]).detach()
        for row, sequences in enumerate(rows)
        for at in (batch.sequence_BT[row] == index for index in range(len(sequences)))
    ]
    return parts, {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}


@pytest.mark.parametrize("absolute", [False, True])
def test_packed_equals_unpacked(make_policy, processor, sequences, absolute):
    policy = absolute_policy(processor) if absolute else make_policy(0)
    rows = [[sequence] for sequence in sequences]
    alone, gradient = scored(policy, rows)
    for packed, length in (
        ([sequences], None),
        ([sequences[:1], sequences[1:]], None),
        ([sequences[:3], sequences[3:]], 300),
        (rows, 250),
    ):
        parts, packed_gradient = scored(policy, packed, length)
        for part, expected, sequence in zip(parts, alone, sequences, strict=True):
            torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)
            assert ((part[0] != 0) == sequence.trainable_T).all()
        for name, value in gradient.items():
            torch.testing.assert_close(packed_gradient[name], value, atol=1e-5, rtol=1e-4, msg=name)
    summed = {}
    for row in rows:  # and one sequence at a time, where nothing is padded
        for name, value in scored(policy, [row])[1].items():
            summed[name] = summed.get(name, 0) + value
    for name, value in gradient.items():
        torch.testing.assert_close(summed[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_collate(processor, sequences):
    control, vocabulary = processor.vocabulary.controls, processor.vocabulary
    batch = collate([sequences[:2], sequences[2:3]], vocabulary, 300)
    used = [len(sequences[0]) + len(sequences[1]), len(sequences[2])]
    assert batch.ids_BT.shape == (2, 300)
    for row, parts in enumerate((sequences[:2], sequences[2:3])):
        ids = torch.cat([sequence.ids_T for sequence in parts])
        assert torch.equal(batch.ids_BT[row, : used[row]], ids)
        assert torch.equal(batch.trainable_BT[row, : used[row]], torch.cat([s.trainable_T for s in parts]))
        assert torch.equal(batch.positions_BT[row, : used[row]], torch.cat([torch.arange(len(s)) for s in parts]))
        numbers = torch.cat([torch.full((len(s),), i) for i, s in enumerate(parts)])
        assert torch.equal(batch.sequence_BT[row, : used[row]], numbers)
        assert (batch.ids_BT[row, used[row] :] == control.pad).all() and (
            batch.sequence_BT[row, used[row] :] == -1
        ).all()
        assert not batch.trainable_BT[row, used[row] :].any()
    assert collate([sequences], vocabulary).ids_BT.shape == (1, sum(map(len, sequences)))
    first = batch.rows(slice(0, 1)).to("cpu")
    assert torch.equal(first.ids_BT, batch.ids_BT[:1]) and torch.equal(first.sequence_BT, batch.sequence_BT[:1])


def test_the_mask_isolates(processor, sequences):
    batch = collate([sequences[:3], sequences[3:]], processor.vocabulary, 300)
    mask = batch.mask_BTT()
    assert mask.shape == (2, 1, 300, 300)
    for row in range(2):
        owner = batch.sequence_BT[row].tolist()
        for query in range(0, 300, 7):
            seen = mask[row, 0, query].nonzero()[:, 0].tolist()
            assert seen == [key for key in range(query + 1) if owner[key] == owner[query]]
            assert query in seen, "a softmax over nothing is no number"


def test_a_neighbour_cannot_be_seen(make_policy, sequences):
    policy = make_policy(0)
    first, second, third, _ = sequences
    before = scored(policy, [[first, second, third]])[0]
    after = scored(policy, [[first, third, second]])[0]
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[2], before[1], atol=1e-5, rtol=1e-5)


def test_images_before_counts_the_completion_alone():
    ids_T = torch.tensor([1, 3, 9, 4, 5, 8, 3, 9, 4, 3, 9, 4, 2])  # <boi> is 3, <eoi> is 4, a code is 9
    slots = tuple(ImageSlot(start, start + 1, 0, "given") for start in (2, 7, 10))
    assert images_before(TokenSequence(ids_T, ids_T, ids_T > 0, 5, slots)).tolist() == [
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
    ]
