"""One record of a shard: a document as named members, and back.

    000000012.json          the document, each `image` and `codes` replaced by the name of a member
    000000012.image0.webp   its first picture as it was encoded (png, jpg or webp)
    000000012.codes0.npy    the codes [N] or [N, D] of that picture, int32, where they are cached

What is read is not trusted: every name, size and type is checked, and nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from ..configs.errors import InputError
from ..configs.json_text import parse_json
from ..models.documents.document import ImageSegment, InterleavedDocument, encode_png, open_image

KINDS = ("interleaved", "understanding", "text_to_image")

MAX_RECORD_BYTES = 256 * 2**20
"""A record whose members are larger together is refused, by the writer as by the reader."""
MAX_RECORD_IMAGES = 1000

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}
MEMBER = re.compile(r"([0-9]{9})\.(json|image[0-9]{1,3}\.(?:png|jpg|webp)|codes[0-9]{1,3}\.npy)")
# The one header that numpy writes for int32 [N], or [N, D]. Matching it keeps numpy's parser away from untrusted bytes:
# that one evaluates the header and allocates whatever shape it claims.
CODES_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00[\s\S]{2}"
    rb"\{'descr': '<i4', 'fortran_order': False, 'shape': \(([0-9]{1,9}),(?: ([0-9]{1,3}))?\), \} *\n"
)
NO_CODES = np.zeros(0, np.int64)

Record = dict[str, Any]
"""A raw record: `__key__`, `__url__` (its shard), and member suffix -> bytes."""


def encode_record(document: InterleavedDocument, key: str, encoded: Sequence[bytes | None] = ()) -> Record:
    """The members of a document. `encoded` holds, per image, the file it came from: kept if png, jpeg or webp.

    Raises InputError for a document that no training could use: kind unknown, nothing trainable, too large.
    """
    images = document.images
    if encoded and len(encoded) != len(images):
        raise ValueError(f"{len(encoded)} encoded pictures for {len(images)} images")
    bare = [replace(s, image=None, codes_N=NO_CODES) if isinstance(s, ImageSegment) else s for s in document.segments]
    value = replace(document, segments=tuple(bare)).to_json()
    slots = [slot for slot in value["segments"] if slot["type"] == "image"]
    record: Record = {"__key__": key}
    try:
        _check_document(document)
        if len(images) > MAX_RECORD_IMAGES:
            raise ValueError(f"{len(images)} images; the limit is {MAX_RECORD_IMAGES}: split the document")
        for i, (segment, slot) in enumerate(zip(images, slots, strict=True)):
            del slot["codes"]
            if segment.image is not None:
                picture, extension = _encode_picture(segment.image, encoded[i] if encoded else None)
                slot["image"] = f"{key}.image{i}.{extension}"
                record[f"image{i}.{extension}"] = picture
            if segment.codes_N is not None:
                slot["codes"] = f"{key}.codes{i}.npy"
                record[f"codes{i}.npy"] = _encode_codes(segment.codes_N)
        record["json"] = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        if (size := sum(len(data) for name, data in record.items() if name != "__key__")) > MAX_RECORD_BYTES:
            raise ValueError(f"{size} bytes; the limit is {MAX_RECORD_BYTES}: split the document")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"document {document.id!r}: {error}") from None
    return record


def decode_record(record: Record) -> InterleavedDocument:
    """The document of a raw record; pictures are open but not decoded. Raises InputError naming shard and record."""
    key = record["__key__"]
    members = {name: data for name, data in record.items() if not name.startswith("__")}
    try:
        if "json" not in members:
            raise ValueError("its .json is missing")
        value = parse_json(members.pop("json"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate would only fail in the tokenizer
        pictures = []
        for i, slot in enumerate(_image_slots(value)):
            image = codes = None
            if (name := slot.pop("image", None)) is not None:
                suffixes = [f"image{i}.{extension}" for extension in dict.fromkeys(EXTENSIONS.values())]
                image = open_image(_take(members, key, name, suffixes))
            if (name := slot.pop("codes", None)) is not None:
                codes = _decode_codes(_take(members, key, name, [f"codes{i}.npy"]))
            if not (isinstance(slot.get("alt", ""), str) and type(slot.get("candidate", 0)) is int):
                raise ValueError(f"image {i}: `alt` is a string and `candidate` a number")
            pictures.append({"image": image, "codes_N": codes})
            slot["codes"] = []  # stands in for the members, so that one parser knows the rest of a segment
        document = InterleavedDocument.from_json(value)
        if members:
            raise ValueError(f"member {min(members)!r} belongs to no image")
        rest = iter(pictures)
        segments = [replace(s, **next(rest)) if isinstance(s, ImageSegment) else s for s in document.segments]
        document = replace(document, segments=tuple(segments))
        _check_document(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{record.get('__url__', 'record')}, record {key}: {error}") from None
    return document


def originals_of(record: Record, document: InterleavedDocument) -> list[bytes | None]:
    """The files of a document's pictures as they stand in its record, for `encode_record`."""
    files = {name.partition(".")[0]: data for name, data in record.items() if name.startswith("image")}
    return [files.get(f"image{number}") for number in range(len(document.images))]


def _check_document(document: InterleavedDocument) -> None:
    if (kind := document.meta.get("kind")) not in KINDS:
        raise ValueError(f"meta['kind'] is {kind!r}, none of {', '.join(KINDS)}")
    if not any(segment.trainable for segment in document.segments):
        raise ValueError("no segment is trainable")


def _image_slots(value: Any) -> list[dict[str, Any]]:
    """The image segments of a JSON value that may be anything; what is wrong with the rest, `from_json` will say."""
    segments = value.get("segments") if isinstance(value, dict) else None
    if not isinstance(segments, list):
        return []
    return [segment for segment in segments if isinstance(segment, dict) and segment.get("type") == "image"]


def _take(members: dict[str, bytes], key: str, name: Any, suffixes: list[str]) -> bytes:
    suffix = next((suffix for suffix in suffixes if name == f"{key}.{suffix}"), None)
    if suffix not in members:
        raise ValueError(f"member {name!r} is not in the record")
    return members.pop(suffix)


def _encode_picture(image: Image.Image, original: bytes | None) -> tuple[bytes, str]:
    if original is not None:
        opened = image if _is_of(image, original) else open_image(original)
        if opened.size != image.size:
            raise ValueError(f"the encoded picture is {opened.size}, the image {image.size}")
        if opened.format in EXTENSIONS:
            return original, EXTENSIONS[opened.format]
    data = encode_png(image)
    open_image(data)  # the limits that the reader will apply
    return data, "png"


def _is_of(image: Image.Image, data: bytes) -> bool:
    """Whether it was opened from these bytes and not yet read."""
    return isinstance(image, ImageFile.ImageFile) and isinstance(image.fp, io.BytesIO) and image.fp.getvalue() == data


def _encode_codes(codes_N: np.ndarray) -> bytes:
    if (
        codes_N.ndim not in (1, 2)
        or codes_N.dtype.kind not in "iu"
        or codes_N.min(initial=0) < 0
        or codes_N.max(initial=0) >= 2**31
    ):
        raise ValueError(
            f"codes are {codes_N.dtype} {list(codes_N.shape)}, expected integers [N] or [N, D], 0 <= code < 2^31"
        )
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(codes_N, "<i4"), allow_pickle=False)
    return buffer.getvalue()


def _decode_codes(data: bytes) -> np.ndarray:
    header = CODES_HEADER.match(data)
    shape = tuple(int(side) for side in header.groups() if side) if header else ()
    if header is None or len(data) - header.end() != 4 * prod(shape):
        raise ValueError("codes are no npy file of int32 [N] or [N, D]")
    return np.frombuffer(data, "<i4", offset=header.end()).astype(np.int64).reshape(shape)
