"""The training stream: every document once an epoch, by weight, the same for the same seed, nothing lost on the way."""

from collections import Counter
from itertools import accumulate, islice

import numpy as np
import pytest
import torch

from limner.configs.errors import InputError
from limner.data.mixture import PackedRows, SourceConfig, mixture, split_long, token_report
from limner.data.shards import ShardWriter
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.worlds.picture_stories.scenes import SCENES, question, story, text_to_image


def write(path, count, name="doc", max_records=5, **options):
    """Shards of `count` training documents and one that is held out."""
    with ShardWriter(path, max_records=max_records, **options) as writer:
        for i in range(count + 1):
            segments = (TextSegment("Count."), TextSegment(f"{name} " + "very " * (i % 7) + str(i), trainable=True))
            document = InterleavedDocument(segments, f"{name}-{i}", {"kind": "interleaved"})
            writer.write(document, "train" if i < count else "heldout")
    return SourceConfig(str(path))


def ids(documents, count):
    return [document.id for document in islice(documents, count)]


def names(count, name="doc"):
    return sorted(f"{name}-{i}" for i in range(count))


def test_every_document_once_an_epoch(tmp_path):
    source = write(tmp_path / "a", 23)
    epochs = np.array(ids(mixture([source], seed=1), 69)).reshape(3, 23)
    assert all(sorted(epoch) == names(23) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3, "epochs in different orders"


@pytest.mark.parametrize("max_records", [5, 1000])
def test_ranks_share_an_epoch_without_overlap(tmp_path, max_records):
    source = write(tmp_path / "a", 20, max_records=max_records)
    for world_size in (2, 4):
        shares = [
            ids(mixture([source], seed=1, rank=rank, world_size=world_size), 20 // world_size)
            for rank in range(world_size)
        ]
        assert sorted(sum(shares, [])) == names(20)


def test_weights_are_shares_of_documents(tmp_path):
    first, second = write(tmp_path / "a", 20, "a"), write(tmp_path / "b", 5, "b")
    first.weight, second.weight = 3.0, 1.0
    drawn = ids(mixture([first, second], seed=2), 4000)
    counts = Counter(name.split("-")[0] for name in drawn)
    assert abs(counts["a"] / 4000 - 0.75) < 0.03
    each = Counter(drawn)
    assert max(each[n] for n in names(20, "a")) - min(each[n] for n in names(20, "a")) <= 1
    assert max(each[n] for n in names(5, "b")) - min(each[n] for n in names(5, "b")) <= 1


def test_the_stream_is_a_function_of_seed_and_rank(tmp_path):
    sources = [write(tmp_path / "a", 12, "a"), write(tmp_path / "b", 12, "b")]
    streams = {
        (seed, rank): tuple(ids(mixture(sources, seed=seed, rank=rank, world_size=2), 40))
        for seed in (1, 2)
        for rank in (0, 1)
    }
    assert len(set(streams.values())) == 4
    assert len({"".join(name[0] for name in stream) for stream in streams.values()}) == 4, "the order of the sources"
    for (seed, rank), stream in streams.items():
        assert tuple(ids(mixture(sources, seed=seed, rank=rank, world_size=2), 40)) == stream


def flat(rows):
    return [[part.ids_T.tolist() for part in row] for row in rows]


def test_skipping_rows_equals_reading_them(tmp_path, processor):
    sources = [write(tmp_path / "a", 30, "a"), write(tmp_path / "b", 7, "b")]

    def stream():
        return iter(PackedRows(sources, processor, length=64, seed=3))

    running = stream()
    read = flat(islice(running, 13))
    rest = flat(islice(running, 20))
    assert rest == flat(islice(stream(), 13, 33)) and read + rest == flat(islice(stream(), 33))


def test_rows_hold_the_documents_and_nothing_else(tmp_path, processor):
    source = write(tmp_path / "a", 40)
    rows = PackedRows([source], processor, length=64, seed=0)
    epoch = list(islice(rows._sequences(mixture([source], seed=0)), 40))
    expected = Counter()
    for document in islice(mixture([source], seed=0), 40):
        expected[tuple(processor.encode(document).ids_T.tolist())] += 1
    assert Counter(tuple(sequence.ids_T.tolist()) for sequence in epoch) == expected
    known = set(expected)
    for row in islice(rows, 60):
        assert row and sum(map(len, row)) <= 64
        assert all(tuple(part.ids_T.tolist()) in known for part in row)


def test_rows_hold_all_of_a_long_document(tmp_path, processor):
    source = write(tmp_path / "a", 12)
    length, control = 24, processor.vocabulary.controls
    whole = {tuple(processor.encode(document).ids_T.tolist()) for document in islice(mixture([source], seed=0), 12)}
    assert max(map(len, whole)) > length
    parts = islice(PackedRows([source], processor, length=length, seed=0)._sequences(mixture([source], seed=0)), 60)
    joined, found = [], set()
    for part in parts:
        assert len(part) <= length
        joined += part.ids_T[part.prompt_length if joined else 0 :].tolist()
        if joined[-1] == control.eos:
            found.add(tuple(joined))
            joined = []
    assert found == whole


def test_pictures_without_codes_are_encoded_on_the_way(tmp_path, processor):
    scenes = SCENES[:6]
    with ShardWriter(tmp_path / "a") as writer:
        for i, scene in enumerate(scenes):
            writer.write(text_to_image(scene, f"t-{i}"))
    rows = islice(PackedRows([SourceConfig(str(tmp_path / "a"))], processor, length=64, seed=0), 6)
    found = {tuple(part.ids_T.tolist()) for row in rows for part in row}
    assert found <= {tuple(processor.encode(text_to_image(scene)).ids_T.tolist()) for scene in scenes}


def long_document(processor):
    """Text, three pictures (two of them neighbours), text; a picture in the prompt."""
    images = [ImageSegment(None, True, "generated", codes_N=np.full(16, i)) for i in range(4)]
    given = ImageSegment(None, codes_N=np.full(16, 9))
    words = TextSegment("A small red circle at the top left. " * 4, trainable=True)
    segments = (given, TextSegment("Go."), words, *images[:2], words, images[2], TextSegment("End.", trainable=True))
    return InterleavedDocument(segments, "long")


def test_a_long_document_is_split_without_loss(processor):
    document = long_document(processor)
    whole = processor.encode(document)
    prompt = whole.prompt_length
    for length in range(prompt + 18, len(whole) + 2):
        parts = split_long(whole, document, length)
        # A token that now stands behind <answer> is not trained: an answer does not begin there.
        begins = list(accumulate(len(part) - prompt for part in parts))[:-1]
        expected = {name: getattr(whole, name)[prompt:].clone() for name in ("ids_T", "segment_T", "trainable_T")}
        expected["trainable_T"][begins] = False
        assert (len(parts) == 1) == (length >= len(whole)) and all(len(part) <= length for part in parts)
        for name in ("ids_T", "segment_T", "trainable_T"):
            values = [getattr(part, name) for part in parts]
            assert all(torch.equal(value[:prompt], getattr(whole, name)[:prompt]) for value in values)
            assert torch.equal(torch.cat([value[prompt:] for value in values]), expected[name])
        answered = 0
        for part in parts:
            assert part.prompt_length == prompt and part.slots[0] == whole.slots[0]
            assert len(part.slots) == int((part.ids_T == processor.vocabulary.controls.boi).sum())
            for slot in part.slots:
                assert part.ids_T[slot.start - 1] == processor.vocabulary.controls.boi
                assert part.ids_T[slot.stop] == processor.vocabulary.controls.eoi
                assert len(set(part.ids_T[slot.start : slot.stop].tolist())) == 1 and slot.stop - slot.start == 16
            answered += len(part.slots) - 1
        assert answered == 3


def test_a_picture_that_no_row_can_hold_is_named(processor):
    document = long_document(processor)
    whole = processor.encode(document)
    for length in (1, whole.prompt_length, whole.prompt_length + 17):
        with pytest.raises(InputError, match=f"document 'long': .*`pack_length` = {length}"):
            split_long(whole, document, length)


def test_stale_codes_are_refused(tmp_path, processor):
    picture = ImageSegment(None, True, "generated", codes_N=np.zeros(16, np.int64))
    document = InterleavedDocument((TextSegment("a"), picture), "d", {"kind": "text_to_image"})
    fingerprint = processor.image_tokenizer.fingerprint()
    for name in ("0123456789abcdef", fingerprint):
        with ShardWriter(tmp_path / name, fingerprint=name) as writer:
            writer.write(document)
        rows = iter(PackedRows([SourceConfig(str(tmp_path / name))], processor, length=64, seed=0))
        if name == fingerprint:
            assert next(rows)
        else:
            with pytest.raises(InputError, match="0123456789abcdef: the cached image codes are stale"):
                next(rows)


def test_what_gives_no_documents_is_named(tmp_path, processor):
    source = write(tmp_path / "a", 2)
    for sources in ([], [SourceConfig(source.path, 0.0)], [source, SourceConfig(source.path, float("nan"))]):
        with pytest.raises(InputError, match="data sources"):
            next(mixture(sources, seed=0))
    with pytest.raises(InputError, match="rank 2 of 3 finds no training document"):
        next(mixture([source], seed=0, rank=2, world_size=3))
    with pytest.raises(InputError, match="nowhere"):
        PackedRows([source, SourceConfig(str(tmp_path / "nowhere"))], processor, length=64, seed=0)


def test_token_report(processor):
    documents = [story(SCENES[:2]), question(SCENES[0], "size"), story(SCENES[:3]), InterleavedDocument(())]
    sequences = processor.encode_all(documents)
    report = token_report(documents, sequences, processor.vocabulary)
    assert {kind: (c["documents"], c["image"]) for kind, c in report.items()} == {
        "interleaved": (2, 5 * 16),
        "understanding": (1, 16),
        "unknown": (1, 0),
    }
    assert sum(c["text"] + c["image"] for c in report.values()) == sum(map(len, sequences))
