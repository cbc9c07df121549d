"""Shards to shards: what a folder holds, another split of it, a part of it, it without what is there twice.

    limner data stats DIR
    limner data split DIR --out DIR2 --heldout-share 0.05
    limner data sample DIR --out DIR2 --count 1000
    limner data dedup DIR --out DIR2 [--near]

Records are copied with their pictures as they are and the codes that are cached.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...configs.errors import InputError
from ...models.documents.document import ImageSegment, InterleavedDocument
from ..conversion import group_of, split_of
from ..records import decode_record, originals_of
from ..shards import SPLITS, ShardIndex, ShardWriter, read_index
from ..shards.keyed import Records
from ..shards.order import Order

NEAR = 3
"""Bits of 64 by which perceptual hashes of one picture differ at most."""
BANDS, BAND_BITS = 4, 16
"""Two hashes that differ in at most 3 bits agree in one of 4 bands at least."""
PERCENTILES = (5, 50, 95)


def documents_of(index: ShardIndex, split: str) -> Iterator[tuple[InterleavedDocument, list[bytes | None]]]:
    """Each with the files of its pictures."""
    records = Records(index, split)
    for number in range(len(records)):
        yield _document(records, number)
    records.close()


def _document(records: Records, number: int) -> tuple[InterleavedDocument, list[bytes | None]]:
    raw = records.raw(number)
    document = decode_record(raw)
    return document, originals_of(raw, document)


def stats(directory: str | Path) -> dict[str, Any]:
    """By split: documents by kind, pictures a document, their sides, characters of text, how much of it is learnt."""
    index = read_index(directory)
    figures: dict[str, Any] = {"fingerprint": index.fingerprint, "splits": {}}
    for split in (split for split in SPLITS if index.of(split)):
        texts, learnt, sides, most = [], [], [], []
        pictures, groups = Counter[int](), set[str]()
        for document, _ in documents_of(index, split):
            texts.append(len(document.text))
            learnt.append(len(document.completion.text))
            pictures[len(document.images)] += 1
            groups.add(group_of(document))
            for image in (segment.image for segment in document.images if segment.image is not None):
                sides.append(min(image.size))
                most.append(max(image.size))
        figures["splits"][split] = {
            "documents": index.kinds[split],
            "groups": len(groups),
            "bytes": sum(shard.bytes for shard in index.of(split)),
            "pictures_a_document": dict(sorted(pictures.items())),
            "characters": _spread(texts),
            "characters_learnt": _spread(learnt),
            "shorter_side": _spread(sides),
            "longer_side": _spread(most),
        }
    return figures


def _spread(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, PERCENTILES)
    return {"mean": float(np.mean(values))} | {f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)}


def stats_table(figures: dict[str, Any]) -> str:
    lines = []
    for split, own in figures["splits"].items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in own["documents"].items())
        lines.append(f"{split}: {kinds}; {own['groups']:,} groups, {own['bytes'] / 1e6:,.1f} MB")
        counts = ", ".join(f"{number}: {count:,}" for number, count in own["pictures_a_document"].items())
        lines.append(f"  documents by their number of pictures   {counts}")
        for name in ("characters", "characters_learnt", "shorter_side", "longer_side"):
            if spread := own[name]:
                cells = "  ".join(f"{what} {value:,.0f}" for what, value in spread.items())
                lines.append(f"  {name.replace('_', ' '):<20} {cells}")
    codes = figures["fingerprint"]
    return "\n".join([*lines, f"codes: of image tokenizer {codes}" if codes else "codes: none are cached"])


def split(directory: str | Path, target: Path, share: float, overwrite: bool = False) -> ShardIndex:
    """The same documents, another share held out; groups stay together."""
    if not 0 <= share < 1:
        raise InputError(f"--heldout-share {share}: give a number from 0 up to, not including, 1")
    return _copied(directory, target, overwrite, lambda document, _: split_of(document, share), {})


def sample(directory: str | Path, target: Path, count: int, seed: int, overwrite: bool = False) -> ShardIndex:
    """So many training documents, drawn without repetition, and the same share of those held out."""
    index = read_index(directory)
    total = sum(index.kinds["train"].values())
    if count > total:
        raise InputError(f"--count {count}: {directory} has {total} documents to train on")
    with ShardWriter(target, overwrite=overwrite, fingerprint=index.fingerprint, report=index.report) as writer:
        for name in (name for name in SPLITS if index.of(name)):
            records = Records(index, name)
            wanted = count if name == "train" else round(len(records) * count / max(total, 1))
            order = Order(records.sizes, seed)
            for number in sorted(order.record(at) for at in range(wanted)):
                document, originals = _document(records, number)
                writer.write(document, name, originals)
            records.close()
    return read_index(target)


def dedup(directory: str | Path, target: Path, near: bool = False, overwrite: bool = False) -> ShardIndex:
    """Without documents whose text and pictures an earlier one has; near: pictures that look the same are the same.

    Text is compared without case, accents of form, signs and spaces. What is held out is looked at first: of two, the
    one to train on goes.
    """
    seen = _Seen(near)
    dropped = Counter[str]()

    def keep(document: InterleavedDocument, split: str) -> str | None:
        if found := seen.before(document):
            dropped[found] += 1
            return None
        return split

    rules = {"left out": dropped}
    return _copied(directory, target, overwrite, keep, rules, ("heldout", "train"))


def _copied(
    directory: str | Path,
    target: Path,
    overwrite: bool,
    choose: Callable[[InterleavedDocument, str], str | None],
    rules: dict[str, Counter[str]],
    order: tuple[str, ...] = SPLITS,
) -> ShardIndex:
    index = read_index(directory)
    with ShardWriter(target, overwrite=overwrite, fingerprint=index.fingerprint, report=index.report) as writer:
        for name in (name for name in order if index.of(name)):
            for document, originals in documents_of(index, name):
                if chosen := choose(document, name):
                    writer.write(document, chosen, originals)
        writer.report = {**index.report, **({"rules": _added(index.report, rules)} if rules else {})}
    return read_index(target)


def _added(report: dict[str, Any], rules: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """The rules of the converter, and those of this step."""
    given = report.get("rules")
    before: dict[str, Any] = given if isinstance(given, dict) else {}
    return {
        what: dict(Counter(before.get(what) or {}) + Counter(rules.get(what) or {})) for what in ("kept", "left out")
    }


class _Seen:
    """Documents by their text and their pictures."""

    def __init__(self, near: bool) -> None:
        self.near = near
        self.exact: set[bytes] = set()
        self.bands: dict[tuple[bytes, int, int], list[tuple[int, ...]]] = {}

    def before(self, document: InterleavedDocument) -> str:
        """The rule by which it was there; empty if it was not, and from now on it was. Raises InputError."""
        text = hashlib.sha256(normal(document.text).encode("utf-8", "replace")).digest()[:16]
        shown = [self._pixels(image, document) for image in document.images]
        own = text + b"".join(hashlib.sha256(f"{p.size}".encode() + p.tobytes()).digest() for p in shown)
        own = hashlib.sha256(own).digest()[:16]
        if own in self.exact:
            return "duplicate"
        self.exact.add(own)
        if not self.near or not shown:
            return ""
        hashes = tuple(perceptual_hash(pixels) for pixels in shown)
        for band in range(BANDS):
            key = (text, band, (hashes[0] >> (band * BAND_BITS)) & (2**BAND_BITS - 1))
            others = self.bands.setdefault(key, [])
            if any(_alike(hashes, other) for other in others):
                return "near duplicate"
            others.append(hashes)
        return ""

    def _pixels(self, segment: ImageSegment, document: InterleavedDocument) -> Image.Image:
        try:
            return segment.pixels()
        except ValueError as error:
            raise InputError(f"document {document.id!r}: {error}") from None


def _alike(some: tuple[int, ...], others: tuple[int, ...]) -> bool:
    return len(some) == len(others) and all((a ^ b).bit_count() <= NEAR for a, b in zip(some, others, strict=True))


def perceptual_hash(pixels: Image.Image) -> int:
    """64 bits that stay when a picture is scaled or encoded again (pHash, of the package ImageHash)."""
    try:
        import imagehash
    except ImportError:
        raise InputError('pictures that look the same are found with ImageHash: pip install "limner[dedup]"') from None
    return int(str(imagehash.phash(pixels)), 16)


def normal(text: str) -> str:
    """Words alone, in lower case."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
