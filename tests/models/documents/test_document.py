"""The document: JSON and back, prompt and completion, and what counts as a picture."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from limner.models.documents import document as module
from limner.models.documents.document import (
    ImageSegment,
    InterleavedDocument,
    TextSegment,
    data_uri,
    encode_png,
    open_image,
    to_rgb,
)


def picture(seed=0, size=(5, 4)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def text(words, trainable=True):
    return TextSegment(words, trainable)


def drawn(seed=0):
    return ImageSegment(picture(seed), trainable=True, origin="generated")


ASK = text("Illustrate: <img1>.", trainable=False)
CODES = ImageSegment(None, True, "generated", codes_N=np.array([3, 0, 31]))
DEEP = ImageSegment(None, True, "generated", codes_N=np.array([[3, 0], [31, 7]]))
INSERTED = ImageSegment(picture(7), True, "inserted", candidate=2)
GIVEN = ImageSegment(picture(8), alt='a "red" <b>wall</b>\nof \u00e9t\u00e9')


@pytest.mark.parametrize(
    "segments",
    [
        (ASK, text("One."), drawn(1), drawn(2), text("Two.")),
        (ASK, drawn(1), text("One.")),
        (GIVEN, ASK, drawn(1)),
        (ASK, text("One.")),
        (ASK, drawn(1), text("last")),
        (ASK, INSERTED, text(""), INSERTED),
        (ImageSegment(picture(9), candidate=9999, alt="a wall"), ASK, INSERTED),
        (ASK, text("a"), CODES, DEEP),
        (ASK, ImageSegment(picture(3), True, "generated", codes_N=np.array([1, 2]))),
        (ASK,),
        (),
    ],
)
def test_json_round_trip(segments):
    document = InterleavedDocument(segments, "d-1", {"kind": "interleaved", "outline": ["x"], "n": 1.5})
    back = InterleavedDocument.from_json(json.loads(json.dumps(document.to_json())))
    assert (back.id, back.meta, len(back.segments)) == (document.id, document.meta, len(segments))
    for got, expected in zip(back.segments, segments, strict=True):
        if isinstance(expected, TextSegment):
            assert got == expected
            continue
        names = ("trainable", "origin", "candidate", "alt")
        assert [getattr(got, n) for n in names] == [getattr(expected, n) for n in names]
        assert (got.codes_N is None) == (expected.codes_N is None) and (got.image is None) == (expected.image is None)
        if expected.codes_N is not None:
            assert got.codes_N.dtype == np.int64 and got.codes_N.tolist() == expected.codes_N.tolist()
        if expected.image is not None:
            assert np.array_equal(np.asarray(got.pixels()), np.asarray(expected.pixels()))


def test_prompt_completion_steps_and_text():
    first, second, third = drawn(1), drawn(2), drawn(3)
    document = InterleavedDocument((GIVEN, ASK, text(" One. "), first, second, text("Two."), third), "d", {"a": 1})
    assert document.prompt.segments == (GIVEN, ASK) and document.completion.segments == document.segments[2:]
    assert document.prompt + document.completion == document
    assert document.prompt.id == document.completion.id == "d" and document.completion.meta == {"a": 1}
    assert document.images == (GIVEN, first, second, third)
    assert document.text == "Illustrate: <img1>. One. Two."
    steps = [(GIVEN,), (ASK,), (document.segments[2], first, second), (document.segments[5], third)]
    assert document.steps() == steps
    assert InterleavedDocument((first, second, text("x"))).steps() == [(first, second), (text("x"),)]
    untrained = InterleavedDocument((ASK,))
    assert untrained.prompt.segments == (ASK,) and untrained.completion.segments == () and untrained.steps() == [(ASK,)]


def test_an_image_segment_must_make_sense():
    for wrong in (
        {"origin": "stolen"},
        {"origin": "inserted"},
        {"origin": "generated", "candidate": 1},
        {"origin": "given", "candidate": 0},
        {"origin": "inserted", "candidate": 10_000},
        {"image": None},
    ):
        with pytest.raises(ValueError, match="image segment: "):
            ImageSegment(**{"image": picture(), **wrong})
    with pytest.raises(ValueError, match="only codes are here"):
        CODES.pixels()


def image_field(**fields):
    return {"segments": [{"type": "text", "text": "a"}, {"type": "image", **fields}]}


PNG = data_uri(picture())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "a list `segments`"),
        ([], "a list `segments`"),
        ({"segments": "ab"}, "a list `segments`"),
        ({"segments": [], "segmnets": []}, "'segmnets'"),
        ({"segments": [], 5: 1, "x\ny": 2}, r"'x\\ny'"),
        ({"segments": [], "id": 3}, "`id`"),
        ({"segments": [], "meta": []}, "`meta`"),
        ({"segments": [3]}, "segment 0: expected an object"),
        ({"segments": [{"type": "text"}]}, "string `text`"),
        ({"segments": [{"type": "text", "text": "a", "trainable": 1}]}, "boolean `trainable`"),
        ({"segments": [{"type": "text", "text": "a", "trianable": True}]}, "'trianable'"),
        ({"segments": [{"type": "text", "text": "a", "alt": ""}]}, "'alt'"),
        ({"segments": [{"type": "video\n"}]}, r"'video\\n'"),
        ({"segments": [{"type": ["text"]}]}, "neither"),
        (image_field(), "segment 1: .*neither an image nor codes"),
        (image_field(image=5), "data URI"),
        (image_field(image="http://host/a.png"), "data URI"),
        (image_field(image="data:image/png;base64,\u00e9"), "`image`: "),
        (image_field(image="data:image/png;base64,A"), "`image`: "),
        (image_field(image="data:image/png;base64,AAAA"), "not an image"),
        (image_field(image=PNG, origin="inserted"), "candidate"),
        (image_field(image=PNG, origin="inserted", candidate="1"), "`candidate`"),
        (image_field(image=PNG, origin="inserted", candidate=True), "`candidate`"),
        (image_field(image=PNG, origin=["given"]), "origin"),
        (image_field(image=PNG, alt=5), "`alt`"),
        *[
            (image_field(codes=codes), "`codes`")
            for codes in (None, 3, "12", {"a": 1}, [1.5], [1e400], ["7"], [2**70], [-1], [True])
        ],
        *[(image_field(codes=codes), "`codes`") for codes in ([[1, 2], [3]], [[1], 2], [1, [2]], [[[1]]], [[True]])],
    ],
)
def test_a_bad_json_field_is_named_in_one_line(value, says):
    with pytest.raises(ValueError, match=says) as error:
        InterleavedDocument.from_json(value)
    assert "\n" not in str(error.value)


def header_only(width, height):
    """A valid PNG header without its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg/>", b"GIF89a", encoded(picture(), "TIFF"), b"%PDF-1.4", b"\0" * 99]
)
def test_what_is_no_common_picture_is_refused(data):
    with pytest.raises(ValueError, match="image does not open"):
        open_image(data)


def test_too_large_a_picture_is_refused_before_it_is_decoded(monkeypatch):
    for side in (8_001, 20_000, 2_000_000):  # above our limit, above PIL's warning, above PIL's error
        with pytest.raises(ValueError) as error:
            open_image(header_only(side, 8_001))
        assert "\n" not in str(error.value)
    assert open_image(header_only(8_000, 8_000)).size == (8_000, 8_000)
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 20)
    with pytest.raises(ValueError, match="the limit is 20"):
        open_image(encode_png(picture()))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_truncated_picture_opens_but_does_not_decode(form):
    data = encoded(picture(size=(90, 90)), form)
    whole = open_image(data)
    assert to_rgb(whole).size == (90, 90)
    with pytest.raises(ValueError, match="image does not (open|decode)") as error:
        ImageSegment(open_image(data[: len(data) // 2])).pixels()
    assert "\n" not in str(error.value)


def test_transparency_shows_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 255, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    gray = Image.new("LA", (2, 1), (9, 0))
    gray.putpixel((1, 0), (9, 255))
    for data, solid in (
        (encoded(clear), (0, 0, 255)),
        (encoded(clear, "WEBP", lossless=True), (0, 0, 255)),
        (encoded(palette, transparency=0), (0, 0, 255)),
        (encoded(palette, "GIF", transparency=0), (0, 0, 255)),
        (encoded(gray), (9, 9, 9)),
    ):
        image = to_rgb(open_image(data))
        assert image.mode == "RGB" and [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), solid]


def test_other_modes_are_pictures_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    gray = Image.new("L", (4, 2), 100)
    opened = {
        "palette": encoded(gray.convert("P")),
        "gray": encoded(gray),
        "one bit": encoded(gray.convert("1")),
        "cmyk": encoded(Image.new("CMYK", (4, 2)), "JPEG"),
        "turned": encoded(picture(size=(4, 2)), "JPEG", exif=exif),
        "animated": encoded(gray, "GIF", save_all=True, append_images=[Image.new("L", (4, 2), 9)]),
    }
    for name, data in opened.items():
        image = to_rgb(open_image(data))
        assert (image.mode, image.size) == ("RGB", (4, 2)), name
    assert to_rgb(open_image(opened["animated"])).getpixel((0, 0)) == (100, 100, 100)  # the first frame
    deep = Image.fromarray(np.array([[0, 255, 256, 32_768, 65_535]], dtype=np.uint16))
    assert np.asarray(to_rgb(open_image(encoded(deep))))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    rgb = picture()
    assert to_rgb(rgb) is rgb
    assert base64.b64decode(data_uri(rgb).partition(",")[2]) == encode_png(rgb)
