"""The sampler: its log-probs are the policy's, its rows do not see their neighbours, its grammar holds."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.heads import score
from limner.models.sampler import generation
from limner.models.sampler.generation import Sampling, generate, stream
from limner.models.sampler.slots import Sampler
from limner.models.tokens.sequence import collate
from limner.worlds.picture_stories.scenes import SCENES, caption, story_prompt


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy(1)


@pytest.fixture(scope="module")
def prompts(processor):
    """Four of different lengths, one of them with a picture."""
    documents = [
        story_prompt(SCENES[:2]),
        caption(SCENES[5]).prompt,
        story_prompt(SCENES[7:11]),
        story_prompt(SCENES[3:4]),
    ]
    sequences = processor.encode_all(documents)
    assert len({len(sequence) for sequence in sequences}) == 4
    return sequences


def joined(policy, prompts, samples):
    readings = [policy.processor.read(sample.ids_C.tolist()) for sample in samples]
    return [
        policy.processor.join(prompt, sample.ids_C, reading)
        for prompt, sample, reading in zip(prompts, samples, readings, strict=True)
    ]


def replayed(policy, rows, **options):
    """Log-probs of the completions of packed rows, as the training forward sees them, in order."""
    batch = collate(rows, policy.vocabulary)
    with torch.no_grad():
        logp_BT, entropy_BT = policy.log_probs(policy.model, batch, **options)
    assert not logp_BT[~batch.trainable_BT].any() and not entropy_BT[~batch.trainable_BT].any()
    assert (entropy_BT >= -1e-6).all()
    found = []
    for row, sequences in enumerate(rows):
        start = 0
        for sequence in sequences:
            found.append(logp_BT[row, start + sequence.prompt_length : start + len(sequence)])
            start += len(sequence)
    return found


def gap(samples, logps):
    return max((sample.logp_C - logp_C).abs().max().item() for sample, logp_C in zip(samples, logps, strict=True))


def same(first, second):
    return (
        all(torch.equal(a.ids_C, b.ids_C) for a, b in zip(first, second, strict=True))
        and gap(first, [sample.logp_C for sample in second]) < 1e-5
    )


@pytest.mark.parametrize("max_images", [None, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_replayed_log_probs_are_the_sampled_ones(policy, prompts, temperature, max_images):
    sampling = Sampling(60, temperature, max_images=max_images, seed=3)
    samples = generate(policy, prompts, sampling, 4)
    sequences = joined(policy, [prompt for prompt in prompts for _ in range(4)], samples)
    assert len({len(sequence) for sequence in sequences}) > 4, "rows of one length would need no padding"
    begun = torch.cat([sample.ids_C for sample in samples]) == policy.vocabulary.controls.boi
    assert begun.any()
    options = {"temperature": temperature, "max_images": max_images}
    padded = replayed(policy, [[sequence] for sequence in sequences], **options)
    packed = replayed(policy, [sequences[:5], sequences[5:6], sequences[6:]], **options)
    assert gap(samples, padded) < 1e-4 and gap(samples, packed) < 1e-4
    wrong = {"temperature": temperature, "max_images": None if max_images else 1}
    if max_images:  # the limit is part of the distribution: without it a token after the image is less likely
        assert gap(samples, replayed(policy, [[s] for s in sequences], **wrong)) > 1e-3
    assert gap(samples, replayed(policy, [[s] for s in sequences], **{**options, "temperature": 1.3})) > 1e-2


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_guided_sampling_is_scored_as_it_was_sampled(policy, prompts, guidance):
    sampling = Sampling(60, 0.8, max_images=2, guidance=guidance, seed=3)
    samples = generate(policy, prompts, sampling, 4)
    sequences = joined(policy, [prompt for prompt in prompts for _ in range(4)], samples)
    options = {"temperature": 0.8, "max_images": 2, "guidance": guidance}
    assert gap(samples, replayed(policy, [[s] for s in sequences], **options)) < 1e-4
    assert gap(samples, replayed(policy, [sequences[:5], sequences[5:6], sequences[6:]], **options)) < 1e-4
    assert gap(samples, replayed(policy, [[s] for s in sequences], **{**options, "guidance": 1.0})) > 1e-2
    alone = [generate(policy, [prompts[row // 4]], sampling, rows=[row])[0] for row in (0, 7, 15)]
    assert same(alone, [samples[row] for row in (0, 7, 15)])


def test_guidance_of_zero_never_sees_the_prompt(policy, prompts, processor):
    """Images are then those of an empty prompt; texts are not guided."""
    samples = generate(policy, prompts[:1], Sampling(60, guidance=0.0, seed=3), 4)
    sequences = joined(policy, [prompts[0]] * 4, samples)
    other = joined(policy, [prompts[2]] * 4, samples)
    mine, theirs = (replayed(policy, [[sequence] for sequence in rows], guidance=0.0) for rows in (sequences, other))
    seen = 0
    for sample, a, b in zip(samples, mine, theirs, strict=True):
        image = sample.ids_C >= policy.vocabulary.text_size
        seen += int(image.sum())
        assert torch.allclose(a[image], b[image], atol=1e-5) and not torch.allclose(a[~image], b[~image], atol=1e-3)
    assert seen > 16


def test_the_entropy_has_a_gradient_where_it_is_asked_for(make_policy, prompts):
    policy = make_policy(1)
    batch = collate([prompts], policy.vocabulary)
    batch = replace(batch, trainable_BT=batch.sequence_BT >= 0)
    for wanted in (False, True):
        _, entropy = policy.log_probs(policy.model, batch, entropy_gradient=wanted)
        assert entropy.requires_grad == wanted and entropy.sum() > 0


def test_chunks_change_neither_scores_nor_gradients(make_policy, prompts):
    def scored(chunk):
        policy = make_policy(1)
        samples = generate(policy, prompts, Sampling(40, seed=3))
        batch = collate([joined(policy, prompts, samples)], policy.vocabulary)
        logp, entropy = policy.log_probs(policy.model, batch, guidance=1.5, chunk=chunk, entropy_gradient=True)
        (logp.sum() + 0.1 * entropy.sum()).backward()
        return logp, entropy, torch.cat([p.grad.flatten() for p in policy.model.parameters()])

    for whole, chunked in zip(scored(None), scored(7), strict=True):
        assert torch.allclose(whole, chunked, atol=1e-5)


def test_a_position_of_several_codes_is_one_token():
    """Residual codes: log-probs and entropies sum over depth."""
    scores, codes = torch.randn(5, 4, 9), torch.randint(9, (5, 4))
    logp, entropy, _ = score(scores, codes)
    each = [score(scores[:, d], codes[:, d])[:2] for d in range(4)]
    assert torch.allclose(logp, sum(p for p, _ in each)) and torch.allclose(entropy, sum(h for _, h in each))


def test_replayed_log_probs_differ_after_one_step(make_policy, prompts):
    policy = make_policy(1)
    samples = generate(policy, prompts, Sampling(40, seed=3))
    rows = [[sequence] for sequence in joined(policy, prompts, samples)]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    batch = collate(rows, policy.vocabulary)
    logp_BT, entropy_BT = policy.log_probs(policy.model, batch, max_images=2, entropy_gradient=True)
    (logp_BT.mean() + entropy_BT.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.model.parameters())
    optimizer.step()
    assert gap(samples, replayed(policy, rows)) > 1e-3


def test_a_frozen_copy_stays_behind(make_policy, prompts):
    policy = make_policy(1)
    reference = policy.frozen_copy()
    rows = [[sequence] for sequence in joined(policy, prompts, generate(policy, prompts, Sampling(20)))]
    before = replayed(policy, rows)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    assert all(torch.equal(a, b) for a, b in zip(before, replayed(reference, rows), strict=True))
    assert not torch.equal(before[0], replayed(policy, rows)[0])
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())


def test_attention_that_adds_its_mask_gives_the_same_numbers(make_policy, prompts):
    policy = make_policy(1)
    samples = generate(policy, prompts, Sampling(30, seed=3))
    policy.model.set_attn_implementation("eager")
    rows = [joined(policy, prompts, samples)]
    assert gap(samples, replayed(policy, rows)) < 1e-4
    assert same(generate(policy, prompts, Sampling(30, seed=3)), samples)


def test_a_row_does_not_depend_on_its_neighbours(policy, prompts):
    sampling = Sampling(50, seed=7)
    together = generate(policy, prompts, sampling, rows=range(10, 14))
    assert same(generate(policy, prompts, sampling, rows=range(10, 14)), together)
    alone = [generate(policy, [prompt], sampling, rows=[10 + row])[0] for row, prompt in enumerate(prompts)]
    assert same(alone, together)
    cut = generate(policy, prompts[:1], sampling, rows=[10]) + generate(
        policy, prompts[1:], sampling, rows=[11, 12, 13]
    )
    assert same(cut, together)
    # A row's draws belong to its number, whoever stands there.
    assert generate(policy, [prompts[2]], sampling, rows=[10])[0].ids_C.tolist() != together[2].ids_C.tolist()
    assert not same(generate(policy, prompts, replace(sampling, seed=8), rows=range(10, 14)), together)


def test_a_group_shares_its_prefill_and_nothing_else(policy, prompts):
    sampling = Sampling(50, seed=5)
    grouped = generate(policy, prompts[:3], sampling, [3, 1, 4])
    repeated = generate(policy, [prompts[0]] * 3 + [prompts[1]] + [prompts[2]] * 4, sampling)
    assert len(grouped) == 8 and same(grouped, repeated)
    assert len({tuple(sample.ids_C.tolist()) for sample in grouped[:3]}) == 3
    assert same(generate(policy, prompts[:2], sampling, 2), generate(policy, prompts[:2], sampling, [2, 2]))
    assert generate(policy, [], sampling) == []


def test_finished_rows_leave_without_changing_the_others(policy, prompts, monkeypatch):
    sampling = Sampling(60, seed=2)
    samples = generate(policy, prompts, sampling, 6)
    lengths = sorted({len(sample.ids_C) for sample in samples})
    assert len(lengths) > 8, "rows must end at many different steps"
    for share in (0.0, 1.0):  # never, and at once
        monkeypatch.setattr("limner.models.sampler.generation.COMPACT_BELOW", share)
        assert same(generate(policy, prompts, sampling, 6), samples)


@pytest.mark.parametrize("sampling", [Sampling(70, seed=1), Sampling(70, 1.5, max_images=2), Sampling(70, 0)])
def test_the_grammar_holds(policy, prompts, sampling):
    control, size = policy.vocabulary.controls, policy.vocabulary.text_size
    samples = generate(policy, prompts, sampling, 8)
    images = 0
    for sample in samples:
        ids, logp = sample.ids_C.tolist(), sample.logp_C.tolist()
        assert len(ids) == len(logp) and (len(ids) == 70) >= (ids[-1] != control.eos) and control.eos not in ids[:-1]
        at = begun = 0
        while at < len(ids):
            if ids[at] != control.boi:
                assert ids[at] < size and ids[at] not in policy.vocabulary.never_sampled
                at += 1
                continue
            begun += 1
            codes, end = ids[at + 1 : at + 17], at + 17
            assert all(size <= code < size + 32 for code in codes)
            assert len(codes) == 16 or len(ids) == 70
            if end < len(ids):
                assert ids[end] == control.eoi and logp[end] == 0
            at = end + 1
        images += begun
        assert sampling.max_images is None or begun <= sampling.max_images
        reading = policy.processor.read(ids)
        assert reading.ended == (ids[-1] == control.eos) and len(reading.document.images) == begun - reading.cut_image
    if sampling.temperature:
        assert images > 4 and {sample.ids_C[-1].item() == control.eos for sample in samples} == {True, False}


def test_max_images_zero_means_no_image(policy, prompts):
    ids = torch.cat([sample.ids_C for sample in generate(policy, prompts, Sampling(40, max_images=0), 4)])
    assert (ids < policy.vocabulary.text_size).all() and policy.vocabulary.controls.boi not in ids


def test_the_length_limit_may_fall_inside_an_image(policy, prompts):
    long = generate(policy, prompts, Sampling(60, seed=1), 4)
    boi, cut = policy.vocabulary.controls.boi, 0
    for length in (1, 2, 9, 20):
        short = generate(policy, prompts, Sampling(length, seed=1), 4)
        for sample, whole in zip(short, long, strict=True):
            assert sample.ids_C.tolist() == whole.ids_C[:length].tolist()
            inside = boi in sample.ids_C[-16:] and len(sample.ids_C) == length
            reading = policy.processor.read(sample.ids_C.tolist())
            assert not reading.cut_image or inside
            cut += reading.cut_image
        sequences = joined(policy, [prompt for prompt in prompts for _ in range(4)], short)
        assert gap(short, replayed(policy, [[sequence] for sequence in sequences])) < 1e-4
    assert cut > 2


def test_greedy_decoding(policy, prompts):
    greedy = generate(policy, prompts, Sampling(40, 0, seed=1))
    assert same(generate(policy, prompts, Sampling(40, 0, seed=2), rows=range(9, 13)), greedy)
    assert not any(sample.logp_C.any() for sample in greedy)
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        narrow = generate(policy, prompts, Sampling(40, 1.0, seed=4, **options))
        assert [s.ids_C.tolist() for s in narrow] == [s.ids_C.tolist() for s in greedy]
        assert gap(narrow, [torch.zeros(len(sample.ids_C)) for sample in narrow]) < 1e-6
    cold = generate(policy, prompts, Sampling(40, 1e-4, seed=4))
    assert [s.ids_C.tolist() for s in cold] == [s.ids_C.tolist() for s in greedy]


def first_step(policy, prompt):
    """Probabilities of the first token by the model's own head."""
    batch = collate([[prompt]], policy.vocabulary)
    with torch.no_grad():
        hidden = policy.hidden(batch.ids_BT, batch.positions_BT, batch.mask_BTT(), None)[0, -1]
        scores = policy.text_logits(hidden)
    scores[list(policy.vocabulary.never_sampled)] = -math.inf
    return scores


def test_frequencies_agree_with_the_probabilities(policy, prompts):
    rows = 6000
    scores = first_step(policy, prompts[0])
    best = scores.topk(5).indices
    nucleus = scores.softmax(-1).sort(descending=True)
    for options, expected in (
        ({}, scores.softmax(-1)),
        ({"temperature": 0.5}, (scores / 0.5).softmax(-1)),
        (
            {"max_images": 0},
            scores.index_fill(0, torch.tensor([policy.vocabulary.controls.boi]), -math.inf).softmax(-1),
        ),
        ({"top_k": 5}, torch.zeros_like(scores).index_add(0, best, scores[best].softmax(-1))),
        ({"top_p": 0.6}, None),
    ):
        if expected is None:
            kept = nucleus.indices[: int((nucleus.values.cumsum(-1) < 0.6).sum()) + 1]
            assert 1 < len(kept) < 300
            expected = torch.zeros_like(scores).index_add(0, kept, scores[kept].softmax(-1))
        samples = generate(policy, prompts[:1], Sampling(1, seed=11, **options), rows)
        ids = torch.cat([sample.ids_C for sample in samples])
        logp = torch.cat([sample.logp_C for sample in samples])
        assert (logp.exp() - expected[ids]).abs().max() < 1e-5
        counts = torch.bincount(ids, minlength=len(scores))
        assert not counts[expected == 0].any()
        often = expected * rows >= 5
        chi2 = ((counts - expected * rows) ** 2 / (expected * rows))[often].sum().item()
        freedom = int(often.sum()) - 1
        assert chi2 < freedom + 4 * math.sqrt(2 * freedom), (options, chi2, freedom)


def test_image_codes_come_at_their_probabilities(policy, processor, prompts):
    """The same for the first code: every row is forced to open an image by a prompt that has just done so."""
    rows = 4000
    samples = generate(policy, prompts[:1], Sampling(2, seed=12), rows)
    pairs = torch.stack([sample.ids_C for sample in samples if len(sample.ids_C) == 2])
    codes = pairs[pairs[:, 0] == processor.vocabulary.controls.boi, 1] - processor.vocabulary.text_size
    logp = torch.stack([sample.logp_C[1] for sample in samples if sample.ids_C[0] == processor.vocabulary.controls.boi])
    assert len(codes) > 200
    table = torch.full((32,), math.nan)
    table[codes] = logp.exp()
    expected = table[~table.isnan()]
    assert 0.9 < expected.sum() < 1 + 1e-5
    counts = torch.bincount(codes, minlength=32)[~table.isnan()]
    assert ((counts / len(codes) - expected).abs() < 5 * (expected / len(codes)).sqrt() + 1e-3).all()


def test_training_mode_is_left_as_it_was(make_policy, prompts):
    policy = make_policy(2)
    policy.model.train()
    generate(policy, prompts[:1], Sampling(2))
    assert policy.model.training


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"max_images": -1},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_sampling_settings_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=f"^sampling.{next(iter(wrong))}: expected") as error:
        Sampling(**wrong)
    assert "\n" not in str(error.value)


def test_a_stream_is_what_generate_gives(policy, prompts):
    sampling = Sampling(60, seed=5)
    (sample,) = generate(policy, prompts[:1], sampling)
    assert list(stream(policy, prompts[0], sampling)) == sample.ids_C.tolist()


def test_a_stream_that_reads_late_says_the_last_id_of_a_text_too(policy, prompts, monkeypatch):
    monkeypatch.setattr(generation, "Sampler", partial(Sampler, late=True))
    sampling = Sampling(7, max_images=0, seed=2)
    (sample,) = generate(policy, prompts[:1], sampling)
    assert len(sample.ids_C) == 7 and list(stream(policy, prompts[0], sampling)) == sample.ids_C.tolist()


def test_an_answer_that_begins_with_an_image(policy, prompts):
    for sample in generate(policy, prompts, Sampling(20, seed=5, begin_with_image=True)):
        assert sample.ids_C[0] == policy.vocabulary.controls.boi and sample.logp_C[0] == 0
        assert (sample.ids_C[1:17] >= policy.vocabulary.text_size).all()
