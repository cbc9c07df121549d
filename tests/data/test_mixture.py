"""The training stream: every document once an epoch, by weight, the same for the same seed, nothing lost on the way."""

import time
from collections import Counter
from dataclasses import replace
from itertools import accumulate, islice

import numpy as np
import pytest
import torch

from limner.configs.errors import InputError
from limner.data import mixture as mixtures
from limner.data.mixture import Mixture, PackedRows, Place, SourceConfig, mixture, split_long, token_report
from limner.data.shards import ShardWriter
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, question, story, text_to_image


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


def test_going_on_from_a_place_equals_reading_what_was_before(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(mixtures, "BLOCK", 16)
    sources = [write(tmp_path / "a", 30, "a"), write(tmp_path / "b", 7, "b")]

    def stream():
        return PackedRows(sources, processor, length=64, seed=3)

    whole = flat(islice(stream(), 60))
    for count in (0, 1, 13, 40):
        first, second = stream(), stream()
        read = flat(islice(first, count))
        first.place.save(tmp_path / "place.json")
        second.place = Place.load(tmp_path / "place.json")
        assert read + flat(islice(second, 60 - count)) == whole
        skipped = stream()
        skipped.skip(count)
        assert flat(islice(skipped, 60 - count)) == whole[count:]
        assert second.place.tokens == skipped.place.tokens and second.place.block == skipped.place.block
    assert (tmp_path / "place.json").stat().st_size < 200, "no row lies in it"


def test_rows_are_the_same_for_any_number_of_workers(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(mixtures, "BLOCK", 16)
    coded = tmp_path / "coded"
    with ShardWriter(coded, fingerprint=processor.image_tokenizer.fingerprint()) as writer:
        for number, scene in enumerate(SCENES[:9]):
            document = text_to_image(scene, f"t-{number}")
            codes = processor.image_tokenizer.encode([document.images[0].pixels()])[0]
            segments = (document.segments[0], replace(document.segments[1], codes_N=codes))
            writer.write(replace(document, segments=segments))
    with ShardWriter(tmp_path / "bare") as writer:
        for number, scene in enumerate(SCENES[:9]):
            writer.write(text_to_image(scene, f"t-{number}"))
    for names in (["coded"], ["bare", "coded"]):
        sources = [SourceConfig(str(tmp_path / name)) for name in names]
        rows = [flat(islice(PackedRows(sources, processor, length=64, seed=1, workers=w), 40)) for w in (0, 1, 3)]
        assert rows[0] == rows[1] == rows[2]


def test_a_fault_in_a_worker_is_one_line(tmp_path, processor):
    source = write(tmp_path / "a", 5)
    shard = tmp_path / "a/train-000000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    rows = PackedRows([source], processor, length=64, seed=0, workers=1)
    with pytest.raises(InputError, match=r"train-000000.tar, record \d: ") as caught:
        next(iter(rows))
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


SIZES = {"a": 4, "b": 6, "c": 10, "d": 10, "e": 20}


def test_two_ranks_with_two_workers_read_every_document_once_an_epoch(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(mixtures, "BLOCK", 25)
    sources = [write(tmp_path / name, count, name, max_records=3) for name, count in SIZES.items()]
    for source, weight in zip(sources, SIZES.values(), strict=True):
        source.weight = weight
    ranks = [Mixture(sources, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    drawn = [document.id for rank in ranks for document in rank.documents(rank.block(0))]
    assert sorted(drawn) == sorted(name for source, count in SIZES.items() for name in names(count, source))
    found = Counter()
    for rank in (0, 1):
        rows = PackedRows(sources, processor, length=64, seed=0, rank=rank, world_size=2, workers=2)
        for row in rows:
            if rows.place.block:
                break
            found.update(tuple(part.ids_T.tolist()) for part in row)
    assert found == Counter(
        tuple(processor.encode(d).ids_T.tolist()) for rank in ranks for d in rank.documents(rank.block(0))
    )


def test_rows_hold_the_documents_and_nothing_else(tmp_path, processor):
    source = write(tmp_path / "a", 40)
    rows = PackedRows([source], processor, length=64, seed=0)
    found, most = Counter(), 0
    for row in rows:
        if rows.place.block:
            break
        most = max(most, sum(map(len, row)))
        found.update(tuple(part.ids_T.tolist()) for part in row)
    expected = Counter(tuple(processor.encode(d).ids_T.tolist()) for d in islice(mixture([source], seed=0), 40))
    assert found == expected and most <= 64, "a block is an epoch where that is less"


def test_rows_hold_all_of_a_long_document(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(mixtures, "BLOCK", 12)
    source = write(tmp_path / "a", 12)
    documents = list(islice(mixture([source], seed=0), 12))
    whole = processor.encode_all(documents)
    length = 24
    assert max(map(len, whole)) > length
    wanted = Counter(
        tuple(part.ids_T.tolist())
        for document, sequence in zip(documents, whole, strict=True)
        for part in split_long(sequence, document, length)
    )
    rows = PackedRows([source], processor, length=length, seed=0)
    found = Counter()
    for row in rows:
        if rows.place.block:
            break
        found.update(tuple(part.ids_T.tolist()) for part in row)
    assert found == wanted


def test_a_document_whose_pictures_come_late_leaves_place_for_others(tmp_path, processor):
    """Its rows are spread over those of its block: the first of a run are not all of it."""
    late = (TextSegment("Go."), *[TextSegment("A small red circle at the top left. " * 3, True)] * 60)
    picture = ImageSegment(draw_scene(SCENES[0]), True, "generated")
    with ShardWriter(tmp_path / "a") as writer:
        writer.write(InterleavedDocument((*late, picture), "late", {"kind": "interleaved"}))
        for number in range(255):
            writer.write(text_to_image(SCENES[number % 9], f"t-{number}"))
    rows = list(islice(PackedRows([SourceConfig(str(tmp_path / "a"))], processor, length=64, seed=0), 40))
    pictured = [any(part.slots for part in row) for row in rows]
    assert sum(pictured[:20]) > 5 and sum(pictured[20:]) > 5


def test_shares_by_weight_and_by_size(tmp_path):
    sources = [write(tmp_path / "a", 90, "a"), write(tmp_path / "b", 10, "b")]
    for temperature, share in {None: 0.5, 1.0: 0.9, 2.0: 0.75}.items():
        drawn = Mixture(sources, seed=0, temperature=temperature)
        picked = Counter(source for number in range(4) for source, _ in drawn.block(number))
        assert abs(picked[0] / picked.total() - share) < 0.01
    assert drawn.epochs(4) == {"a": pytest.approx(300 / 90, abs=0.1), "b": pytest.approx(100 / 10, abs=0.2)}
    with pytest.raises(InputError, match="temperature: 0"):
        Mixture(sources, seed=0, temperature=0)


def test_the_place_of_the_millionth_row_is_found_at_once(tmp_path, processor):
    source = write(tmp_path / "a", 30)
    rows = PackedRows([source], processor, length=64, seed=3)
    started = time.perf_counter()
    rows.place = Place(block=100_000)
    assert next(iter(rows)) and time.perf_counter() - started < 5


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
        source = SourceConfig(str(tmp_path / name))
        if name == fingerprint:
            assert next(iter(PackedRows([source], processor, length=64, seed=0)))
        else:
            with pytest.raises(InputError, match="0123456789abcdef: the cached image codes are stale.*data encode"):
                PackedRows([source], processor, length=64, seed=0)


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
