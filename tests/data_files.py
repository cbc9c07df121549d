"""Files as people have them, made of a few pictures; shared by the tests of sources."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from limner.configs.options import make
from limner.configs.registry import find
from limner.data.conversion import convert
from limner.data.shards import read_documents
from limner.data.sources.report import Report
from limner.data.validate import validate
from limner.models.documents.document import InterleavedDocument, TextSegment


def encoded(form="PNG", color="red", size=(32, 32), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, form, **options)
    return buffer.getvalue()


def noisy(form="JPEG", size=(64, 48), **options) -> bytes:
    """One whose last bytes matter."""
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(buffer, form, **options)
    return buffer.getvalue()


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def put_lines(path: Path, *records) -> Path:
    return put(path, "".join(json.dumps(record) + "\n" for record in records))


def put_tar(path: Path, members: dict[str, bytes], mode="w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def put_parquet(path: Path, *records) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


def converted(source: str, path: Path, keep_duplicates=False, **options) -> tuple[Report, list[InterleavedDocument]]:
    """The report and the documents, in the order of the file; what was written is sound."""
    out = path.parent / "out"
    made = make(find("source", source), options, "source")
    report = convert(made, path, out, keep_duplicates=keep_duplicates, heldout_share=0, overwrite=True)
    assert validate(out) == []
    return report, list(read_documents(out, "train", shuffle_seed=None))


def shape(document: InterleavedDocument) -> list[str]:
    """`text`, `TEXT` where it is learnt; a picture as its size."""
    return [
        (s.text.upper() if s.trainable else s.text)
        if isinstance(s, TextSegment)
        else ("{}x{}" if s.trainable else "{}*{}").format(*s.pixels().size)
        for s in document.segments
    ]
