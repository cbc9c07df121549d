import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.sampler.generation import Sampling
from limner.models.tokens.sequence import collate
from limner.rewards.base import RewardOutput
from limner.train.rollout import RolloutBatch, rollout, score
from limner.train.watch.trajectories import (
    MAX_SIDE,
    UNFINISHED,
    build,
    read_trajectories,
    text_pieces,
    write_trajectories,
)
from limner.worlds.picture_stories.scenes import outlines, story, story_prompt

GROUP = 4


@pytest.fixture(scope="module")
def batch(make_policy) -> RolloutBatch:
    """Rollouts of an untrained model, many of them cut; rewards by place, none of the first segment."""
    policy = make_policy(0)
    prompts = [story(outline, f"prompt-{i}") for i, outline in enumerate(outlines(0, 3))]  # with their gold answers
    rows = [prompt for prompt in prompts for _ in range(GROUP)]
    rollouts = rollout(policy, rows, Sampling(max_new_tokens=30, max_images=3, seed=1))
    segments = [[None, *(k / 10 for k in range(1, len(r.completion.answer.segments)))] for r in rollouts]
    segments = [row[: len(r.completion.answer.segments)] for row, r in zip(segments, rollouts, strict=True)]
    outcome = [None, *(row / 10 for row in range(1, len(rows)))]
    tokens = collate([[r.sequence] for r in rollouts], policy.vocabulary)
    advantages_RT = torch.zeros(tokens.ids_BT.shape)
    for row, item in enumerate(rollouts):
        advantages_RT[row, : len(item.sequence)] = row + item.sequence.segment_T / 8
    output = RewardOutput(outcome, segments, {"format": outcome})
    return RolloutBatch(7, 2, rollouts, output, score(rollouts, output), advantages_RT, tokens)


def test_a_record_says_what_was_sampled(batch, processor):
    records = build(batch, GROUP, processor)
    size, length = processor.vocabulary.text_size, processor.vocabulary.image_length
    assert [(r.group, r.number) for r in records] == [divmod(row, GROUP) for row in range(2, 14)]
    assert (
        any(r.cut_image for r in records)
        and any(r.answer.images for r in records)
        and not all(r.ended for r in records)
    )
    for row, (record, item) in enumerate(zip(records, batch.rollouts, strict=True)):
        start = item.sequence.prompt_length
        assert record.step == 7 and record.outcome == batch.output.outcome[row] == record.breakdown["format"]
        assert record.ids == tuple(item.sequence.ids_T[start:].tolist())
        assert np.allclose(record.logp, item.logp_T[start:], atol=1e-4)
        assert record.prompt.segments == item.completion.prompt.prompt.segments, "the gold answer is no part of it"
        for k, (segment, scored) in enumerate(zip(record.answer.segments, record.segments, strict=True)):
            assert scored.reward == batch.output.segments[row][k] and scored.advantage == row + k / 8
            own = [at for at, owner in enumerate(record.token_segments) if owner == k]
            pieces = [record.pieces[at] for at in own]
            if isinstance(segment, TextSegment):
                assert scored.kind == "text" and "".join(pieces) == segment.text
            else:
                codes = [record.ids[at] - size for at in own[1:-1]]
                assert pieces == ["<boi>", *[""] * length, "<eoi>"] and scored.kind == "image"
                assert codes == list(item.completion.answer.segments[k].codes_N)
        past = [
            piece
            for piece, owner in zip(record.pieces, record.token_segments, strict=True)
            if owner == len(record.segments)
        ]
        assert past == ["<eos>"] if record.ended else past[:1] == (["<boi>"] if record.cut_image else [])


def test_written_and_read_again_nothing_has_changed(batch, processor, tmp_path):
    records = build(batch, GROUP, processor)
    first = replace(
        records[0], breakdown={"a": None, "b": 0.1}, prompt=story_prompt(outlines(1, 1)[0], "caf\u00e9 \ud800")
    )
    path = write_trajectories(tmp_path / "new", 7, 1, [first, *records[1:5]])
    assert path.name == "step-000007.rank-1.jsonl"
    write_trajectories(tmp_path / "new", 7, 0, records[5:6])
    write_trajectories(tmp_path / "new", 10, 0, [])
    write_trajectories(tmp_path / "new", 1_000_000, 0, records[6:])  # behind the others, though its name is not
    again = list(read_trajectories(tmp_path / "new"))
    expected = [records[5], first, *records[1:5], *records[6:]]
    assert [item.to_json() for item in again] == [item.to_json() for item in expected]
    assert again[1].breakdown == first.breakdown and again[1].segments == first.segments and again[1].logp == first.logp

    def broken():
        yield records[0]
        raise RuntimeError

    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        write_trajectories(tmp_path / "new", 7, 1, broken())
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 4


def test_large_pictures_are_stored_reduced_and_codes_once(batch, processor, tmp_path):
    item = batch.rollouts[0]
    wide = ImageSegment(Image.new("RGB", (3 * MAX_SIDE, MAX_SIDE), "red"), codes_N=np.zeros(16, np.int64))
    prompt = InterleavedDocument((wide, TextSegment("Go on.")), "wide")
    given = replace(item, completion=replace(item.completion, prompt=prompt))
    (record,) = build(replace(batch, rollouts=[given]), GROUP, processor)
    assert record.prompt.images[0].image.size == (MAX_SIDE, round(MAX_SIDE / 3))
    assert all(image.codes_N is None for image in (*record.prompt.images, *record.answer.images))
    assert wide.image.size == (3 * MAX_SIDE, MAX_SIDE)


def test_figures_that_are_not_finite_are_recorded_as_missing(batch, processor, tmp_path):
    item = replace(batch.rollouts[1], logp_T=torch.full_like(batch.rollouts[1].logp_T, float("nan")))
    output = RewardOutput([float("nan")], batch.output.segments[1:2], {"format": [float("inf")]})
    odd = replace(batch, rollouts=[item], output=output, advantages_RT=batch.advantages_RT[1:2] / 0)
    write_trajectories(tmp_path, 0, 0, build(odd, GROUP, processor))
    (record,) = read_trajectories(tmp_path)
    assert record.outcome is None and record.breakdown == {"format": None} and set(record.logp) == {None}
    assert {segment.advantage for segment in record.segments} <= {None}


@pytest.mark.parametrize("text", ["caf\u00e9 \u5c71\u5ddd \U0001f600!", "a\ufffdb\ufffd", "plain words", ""])
def test_pieces_are_whole_characters_and_together_the_text(processor, text):
    ids = processor.text_ids(text)
    pieces = text_pieces(ids, processor.tokenizer.decode)
    assert len(pieces) == len(ids) and "".join(pieces) == text
    assert UNFINISHED in text or UNFINISHED not in "".join(pieces)


def test_pieces_of_bytes_that_end_nowhere_and_of_words_that_lose_their_space(processor):
    smile = processor.text_ids("\U0001f600")
    assert len(smile) == 4
    torn = [*processor.text_ids("so "), *smile[:2], *processor.text_ids("it"), *smile[:3]]
    pieces = text_pieces(torn, processor.tokenizer.decode)
    assert "".join(pieces) == processor.tokenizer.decode(torn) and pieces[-2] == "" and pieces[-1] == UNFINISHED

    def decode(ids):  # as SentencePiece does
        return "".join([" a", " red", " dot"][i] for i in ids).removeprefix(" ")

    assert text_pieces([0, 1, 2, 1], decode) == ["a", " red", " dot", " red"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"step": -1}, "`step` is no count"),
        ({"ended": 1}, "`ended`"),
        ({"outcome": "high"}, "`outcome`"),
        ({"outcome": float("nan")}, "`outcome`"),
        ({"outcome": 10**400}, "too large"),
        ({"breakdown": [1]}, "`breakdown`"),
        ({"extra": 1}, "field 'extra' is unknown"),
        ({"segments": []}, "`segments`"),
        ({"ids": [-1]}, "`ids`"),
        ({"logp": [0.0]}, "`logp` is not as long"),
        ({"token_segments": [99]}, "`token_segments`"),
        ({"pieces": None}, "`pieces`"),
        ({"answer": {"segments": [{"type": "video"}]}}, "video"),
    ],
)
def test_a_damaged_record_is_named(batch, processor, tmp_path, change, fault):
    longest = max(build(batch, GROUP, processor), key=lambda record: len(record.ids))
    path = write_trajectories(tmp_path, 7, 0, [longest, longest])
    good, bad = path.read_text().splitlines()
    path.write_text(f"{good}\n{json.dumps({**json.loads(bad), **change})}\n")
    reader = read_trajectories(tmp_path)
    next(reader)
    with pytest.raises(InputError, match=fault) as raised:
        next(reader)
    assert str(raised.value).startswith(f"{path}:2: ")


def test_files_that_are_none(tmp_path):
    (tmp_path / "step-000000.rank-0.jsonl").write_bytes(b'{"step": 1, \n')
    with pytest.raises(InputError, match=r"rank-0\.jsonl:1: "):
        list(read_trajectories(tmp_path))
    (tmp_path / "step-000000.rank-0.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_trajectories(tmp_path))
    with pytest.raises(InputError, match="no trajectories here"):
        list(read_trajectories(tmp_path / "nowhere"))
