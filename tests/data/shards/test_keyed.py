"""Records by their number."""

from dataclasses import replace

import pytest

from limner.configs.errors import InputError
from limner.data.shards import read_index
from limner.data.shards.index import packed_offsets, unpacked_offsets
from limner.data.shards.keyed import Records, members_of

from ..shard_files import write


def test_a_stretch_that_is_no_record_is_refused(tmp_path):
    index = read_index(write(tmp_path / "d", 2))
    data = index.file(index.shards[0]).read_bytes()
    end = int(unpacked_offsets(index.shards[0])[1])
    assert members_of(data[:end])["__key__"] == "000000000"
    changed = bytearray(data[:end])
    changed[0:9] = b"../../../"
    linked = bytearray(data[:end])
    linked[156] = ord("2")
    bad = {
        "among those of record": data,
        "is cut": data[: end - 512],
        "no member": bytes(1024),
        "unexpected member '../../../": bytes(changed),
        "unexpected member '000000000": bytes(linked),
    }
    for message, stretch in bad.items():
        with pytest.raises(ValueError, match=message):
            members_of(stretch)


def test_records_are_read_by_number(tmp_path):
    """Where each begins stands in the index; folders of before, whose index does not say, are looked through."""
    directory = write(tmp_path / "d", 23, max_records=10)
    index = read_index(directory)
    for own in (index, replace(index, shards=tuple(replace(shard, offsets="") for shard in index.shards))):
        records = Records(own, "train")
        order = [22, 0, 9, 10, 19, 20, 5]
        assert len(records) == 23 and [records.document(n).id for n in order] == [f"doc-{n}" for n in order]
        records.close()
    for offsets, message in {
        "!": "do not unfold",
        packed_offsets([0, 512]): "are not of 10 records",
        packed_offsets([512 * n for n in range(1, 11)]): "do not rise from 0",
        packed_offsets([0, *[2**30 + 512 * n for n in range(9)]]): "less than its",
    }.items():
        wrong = replace(index, shards=(replace(index.shards[0], offsets=offsets), *index.shards[1:]))
        with pytest.raises(InputError, match=f"train-000000.tar.*{message}"):
            Records(wrong, "train").document(0)
    starts = [int(start) for start in unpacked_offsets(index.shards[0])[:-1]]
    shifted = packed_offsets([0, *(start + 512 for start in starts[1:])])
    wrong = replace(index, shards=(replace(index.shards[0], offsets=shifted), *index.shards[1:]))
    with pytest.raises(InputError, match=r"train-000000.tar.*record"):
        Records(wrong, "train").document(3)
