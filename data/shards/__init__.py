"""Shards: documents on disk as webdataset tar files with an index, written whole or not at all.

DIR/index.json            what the shards hold: sizes, checksums, counts, offsets, whose image codes are cached
DIR/train-000000.tar      records, a few members each: see `records.py`
DIR/heldout-000000.tar    the same for documents that no training sees
"""

from .encoding import encode_shards
from .index import INDEX, SPLITS, Shard, ShardIndex, read_index
from .reading import raw_records, read_documents
from .writing import ShardWriter

__all__ = [
    "INDEX",
    "SPLITS",
    "Shard",
    "ShardIndex",
    "ShardWriter",
    "encode_shards",
    "raw_records",
    "read_documents",
    "read_index",
]
