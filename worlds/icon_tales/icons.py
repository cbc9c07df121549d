"""What icon tales show: an icon of a noun, in one of three places, at one of three spots; and what a picture shows.

The icons that come with limner are Noto Emoji (noto/LICENSE). Others: a folder of NOUN.png, or a font of coloured
bitmaps such as Debian's `fonts-noto-color-emoji` has (/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf).
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...configs.errors import InputError, reading

GLYPHS = {
    **{"fox": 0x1F98A, "owl": 0x1F989, "cat": 0x1F408, "dog": 0x1F415, "horse": 0x1F40E, "cow": 0x1F404},
    **{"duck": 0x1F986, "frog": 0x1F438, "bee": 0x1F41D, "snail": 0x1F40C, "turtle": 0x1F422, "rabbit": 0x1F407},
    **{"house": 0x1F3E0, "tree": 0x1F333, "boat": 0x26F5, "car": 0x1F697, "drum": 0x1F941, "cake": 0x1F382},
    **{"apple": 0x1F34E, "tulip": 0x1F337, "key": 0x1F511, "bell": 0x1F514, "balloon": 0x1F388, "crown": 0x1F451},
}
"""The nouns, and the characters of their icons."""
NOUNS = tuple(GLYPHS)
PLACES = {
    "snow": ((206, 222, 238), (250, 250, 252)),
    "grass": ((160, 212, 246), (112, 186, 84)),
    "night": ((22, 26, 62), (54, 60, 88)),
}
"""Colours of the sky and of the ground."""
SPOTS = (0, 1, 2)
"""Left, middle, right. Nothing says which: it is the picture's own."""
ICON = 32
"""Pixels of a side."""
SIDE = 64
FONT_SIZE = 109
"""The one size that Noto's bitmaps have."""
CARD = (252, 240, 212)
"""Colour of the card that an icon is printed on, so that it looks the same in every place."""
ALIKE = 0.8
"""Cosine of edges below which a card shows none of the icons. Different icons have at most 0.34; one with a quarter of
another is below it five times of six, and the rest are quarters with little on them."""
UNLIKE = 0.35
"""Cosine that no two different icons reach."""
NEAR = 0.03
"""Mean difference from a place's colours, on a 0..1 scale, above which a picture shows none."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is in a picture, or said to be."""

    noun: str
    place: str


SHOWN = tuple(Shown(*pair) for pair in itertools.product(NOUNS, PLACES))


class Icons:
    """Draws pictures, and reads them: each by the icons given."""

    def __init__(self, icons: Mapping[str, Image.Image]):
        """icons: RGBA by noun, of every noun."""
        self._cards = {noun: _on_card(icons[noun].convert("RGBA").resize((ICON, ICON))) for noun in NOUNS}
        self._drawn: dict[tuple[Shown, int], Image.Image] = {}

    def draw(self, shown: Shown, spot: int) -> Image.Image:
        """Callers share it, so they must not draw on it."""
        if (shown, spot) not in self._drawn:
            picture = _landscape(shown.place)
            picture.paste(self._cards[shown.noun], (spot * (SIDE - ICON) // 2, (SIDE - ICON) // 2))
            self._drawn[shown, spot] = picture
        return self._drawn[shown, spot]

    def all(self) -> Iterator[tuple[Shown, Image.Image]]:
        return ((shown, self.draw(shown, spot)) for shown in SHOWN for spot in SPOTS)

    def read(self, pictures: Sequence[Image.Image]) -> list[Shown | None]:
        """What each shows: the icon by the edges on its card, the place by all that is around it."""
        return [self._read_one(picture) for picture in pictures]

    def _read_one(self, picture: Image.Image) -> Shown | None:
        likeness, errors = self._compared(picture)
        noun, place = int(likeness.argmax()), min(errors, key=lambda name: errors[name])
        if likeness[noun] < ALIKE or errors[place] > NEAR:
            return None
        return Shown(NOUNS[noun], place)

    def faithful(self, picture: Image.Image, said: Shown) -> tuple[float, float]:
        """How far it shows the thing, 0 (as unlike as other icons are) to 1 (it is read), and whether the place."""
        likeness, errors = self._compared(picture)
        part = (float(likeness[NOUNS.index(said.noun)]) - UNLIKE) / (ALIKE - UNLIKE)
        return min(1.0, max(0.0, part)), float(errors[said.place] <= NEAR)

    def _compared(self, picture: Image.Image) -> tuple[np.ndarray, dict[str, float]]:
        """Likeness to each noun's icon on the card that is most like one, and how far all around is from each place."""
        pixels = _pixels(picture)
        likeness = np.stack([self._known @ _edges(pixels[_card(spot)]) for spot in SPOTS])
        spot = int(likeness.max(1).argmax())
        around = np.ones(pixels.shape[:2], bool)
        around[_card(spot)] = False
        errors = {place: float(np.abs(pixels - _background(place))[around].mean()) for place in PLACES}
        return likeness[spot], errors

    @functools.cached_property
    def _known(self) -> np.ndarray:
        """Edges of every noun's icon on its card, [n, E]."""
        drawn = [_pixels(self.draw(Shown(noun, next(iter(PLACES))), 0)) for noun in NOUNS]
        return np.stack([_edges(pixels[_card(0)]) for pixels in drawn])


def _pixels(picture: Image.Image) -> np.ndarray:
    """[32, 32, 3] in 0..1, half the pixels of a side."""
    return np.asarray(picture.convert("RGB").resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX), np.float32) / 255


def _card(spot: int) -> tuple[slice, slice]:
    """Rows and columns of a card among those pixels."""
    left, top = spot * (SIDE - ICON) // 4, (SIDE - ICON) // 4
    return slice(top, top + ICON // 2), slice(left, left + ICON // 2)


def _edges(pixels: np.ndarray) -> np.ndarray:
    """Differences of neighbours, of length 1. No image tokenizer is trained on these."""
    flat = np.concatenate([np.diff(pixels, axis=0).ravel(), np.diff(pixels, axis=1).ravel()])
    return flat / max(float(np.linalg.norm(flat)), 1e-6)


@functools.cache
def _background(place: str) -> np.ndarray:
    return _pixels(_landscape(place))


def _on_card(icon: Image.Image) -> Image.Image:
    card = Image.new("RGB", icon.size, CARD)
    card.paste(icon, (0, 0), icon)
    return card


def _landscape(place: str) -> Image.Image:
    sky, ground = PLACES[place]
    picture = Image.new("RGB", (SIDE, SIDE), sky)
    ImageDraw.Draw(picture).rectangle((0, SIDE // 2, SIDE, SIDE), fill=ground)
    return picture


@functools.cache
def open_icons(where: str = "") -> Icons:
    """The icons of a folder, or of a font; without one, those that come with limner. Raises InputError."""
    if where.lower().endswith((".ttf", ".otf")):
        return Icons(from_font(Path(where)))
    folder = Path(where) if where else Path(str(importlib.resources.files(__package__ or ""))) / "noto"
    icons = {}
    for noun in NOUNS:
        file = folder / f"{noun}.png"
        if not file.is_file():
            raise InputError(f"{file}: missing; icon tales need a picture for each of {', '.join(NOUNS)}")
        with reading(file):
            icons[noun] = Image.open(file).convert("RGBA")
    return Icons(icons)


def from_font(file: Path) -> dict[str, Image.Image]:
    """Icons of a font of coloured bitmaps, by noun, at its own size."""
    with reading(file):
        font = ImageFont.truetype(str(file), FONT_SIZE)
        return {noun: _glyph(font, chr(code)) for noun, code in GLYPHS.items()}


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Cut to what is there, in the middle of a square."""
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((20, 20), character, font=font, embedded_color=True)
    cut = canvas.crop(canvas.getbbox() or (0, 0, 1, 1))
    square = Image.new("RGBA", (max(cut.size), max(cut.size)))
    square.paste(cut, ((square.width - cut.width) // 2, (square.height - cut.height) // 2))
    return square
