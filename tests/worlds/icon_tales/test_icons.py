"""Icons: every picture is read as what it shows, and what shows nothing, or two things, as nothing."""

import pytest
from PIL import Image, ImageDraw

from limner.configs.errors import InputError
from limner.worlds.icon_tales.icons import NOUNS, PLACES, SPOTS, Icons, Shown, open_icons

ICONS = open_icons()


def test_every_picture_is_read_as_what_it_shows_wherever_it_stands():
    wanted, pictures = zip(*ICONS.all(), strict=True)
    assert len(pictures) == len(NOUNS) * len(PLACES) * len(SPOTS)
    assert ICONS.read(pictures) == list(wanted)
    small = [picture.reduce(2).resize((64, 64), Image.Resampling.NEAREST) for picture in pictures[::7]]
    assert ICONS.read(small) == list(wanted[::7])


def mixed(noun: str, other: str) -> Image.Image:
    """One icon's left half beside another's right one."""
    picture = ICONS.draw(Shown(noun, "grass"), 1).copy()
    picture.paste(ICONS.draw(Shown(other, "grass"), 1).crop((32, 0, 64, 64)), (32, 0))
    return picture


def elsewhere() -> Image.Image:
    """A fox on grass under a sky of the night."""
    picture = ICONS.draw(Shown("fox", "grass"), 1).copy()
    picture.paste(PLACES["night"][0], (0, 0, 64, 16))
    picture.paste(PLACES["night"][1], (0, 48, 64, 64))
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (64, 64)),
        Image.new("RGB", (64, 64), PLACES["snow"][0]),
        mixed("cat", "cow"),
        mixed("tulip", "balloon"),
        elsewhere(),
    ],
)
def test_what_shows_no_one_thing_in_one_place_shows_nothing(picture):
    assert ICONS.read([picture]) == [None]


def test_an_icon_in_part_is_faithful_in_part():
    cat, cow = Shown("cat", "grass"), Shown("cow", "grass")
    half, whole = mixed("cat", "cow"), ICONS.draw(cat, 2)
    assert ICONS.faithful(whole, cat) == (1, 1) and ICONS.faithful(whole, cow) == (0, 1)
    assert 0 < ICONS.faithful(half, cat)[0] < 1 and ICONS.faithful(half, Shown("cow", "snow"))[1] == 0
    assert ICONS.faithful(elsewhere(), Shown("fox", "grass"))[1] == 0


def test_a_folder_of_icons_takes_their_place_and_a_missing_one_is_named(tmp_path):
    for number, noun in enumerate(NOUNS):
        icon = Image.new("RGBA", (48, 48))
        ImageDraw.Draw(icon).rectangle((number, 4, number + 20, 12 + number), fill=(200, 9 * number, 80, 255))
        icon.save(tmp_path / f"{noun}.png")
    own = open_icons(str(tmp_path))
    wanted, pictures = zip(*own.all(), strict=True)
    assert own.read(pictures) == list(wanted) and ICONS.read(pictures[:1]) == [None]
    (tmp_path / "owl.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"owl\.png"):
        open_icons(f"{tmp_path}/./")
    (tmp_path / "owl.png").unlink()
    with pytest.raises(InputError, match=r"owl\.png: missing; icon tales need a picture for each of fox"):
        open_icons(f"{tmp_path}/")


def test_a_file_that_is_no_font_is_named(tmp_path):
    (tmp_path / "none.ttf").write_bytes(b"none")
    with pytest.raises(InputError, match=r"none\.ttf"):
        open_icons(str(tmp_path / "none.ttf"))


def test_pictures_are_shared_and_icons_are_all_needed():
    shown = Shown("owl", "night")
    assert ICONS.draw(shown, 0) is ICONS.draw(shown, 0) is not ICONS.draw(shown, 1)
    with pytest.raises(KeyError):
        Icons({})
