"""Records by their number."""

from dataclasses import replace

import pytest

from limner.configs.errors import InputError
from limner.data.shards import read_index
from limner.data.shards.index import packed_offsets, unpacked_offsets
from limner.data.shards.keyed import Records

from ..shard_files import write


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
