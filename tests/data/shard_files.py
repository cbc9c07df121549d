"""Small shards, for the tests of shards."""

from PIL import Image

from limner.data.shards import ShardWriter
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment

KIND = {"kind": "interleaved"}


def picture(color="red", size=(8, 6)):
    return Image.new("RGB", size, color)


def article(name="a", *segments, **meta):
    segments = segments or (
        TextSegment("Draw."),
        TextSegment("Here.", True),
        ImageSegment(picture(), True, "generated"),
    )
    return InterleavedDocument(segments, name, {**KIND, **meta})


def write(directory, count=10, **options):
    with ShardWriter(directory, **options) as writer:
        for i in range(count):
            writer.write(article(f"doc-{i}"))
    return directory


def ids(documents):
    return [document.id for document in documents]
