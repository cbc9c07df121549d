"""What is no plain file is refused before it is opened: wherever files of others are read, nobody waits for a pipe."""

import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from limner.configs import find_config, read_yaml
from limner.configs.errors import HOLES_FROM, InputError, plain_file
from limner.data.prompts import read_values
from limner.data.sources.pairs.tars import tar_files
from limner.data.sources.rows import record_files
from limner.eval.benchmarks import dpgbench, mmie, object_files, official_prompts, vqa
from limner.eval.entries import open_picture
from limner.eval.folder import read_json
from limner.models.documents.document import read_image
from limner.models.documents.forms import document
from limner.retrieval.index import command


@pytest.fixture
def pipe(tmp_path):
    """A named pipe that nobody writes to."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_plain_file_may_be_read_and_what_is_none_may_not(pipe, tmp_path):
    plain, link, holes = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    plain.write_bytes(b"123")
    link.symlink_to(plain)
    assert plain_file(plain).read_bytes() == plain_file(link, 3).read_bytes() == b"123"
    with holes.open("wb") as file:
        file.truncate(HOLES_FROM)
    for path, most, reason in (
        (pipe, None, "a named pipe, no plain file"),
        (Path("/dev/zero"), None, "a device, no plain file"),
        (plain, 2, "3 bytes; the limit is 2"),
        (holes, None, "holes .a sparse file"),
    ):
        with pytest.raises(ValueError, match=reason):
            plain_file(path, most)
    with pytest.raises(FileNotFoundError):
        plain_file(tmp_path / "none")


READERS = {
    "a picture": read_image,
    "a picture of a document": lambda path: document("What is this?", path),
    "a picture of an answer": open_picture,
    "a picture that is asked with": command._read_picture,
    "a configuration": lambda path: read_yaml(find_config(str(path.rename(path.with_suffix(".yaml"))))),
    "lines": read_values,
    "records of a source": record_files,
    "tars": tar_files,
    "results": read_json,
    "rubrics": mmie.read_rubrics,
    "prompts": lambda path: official_prompts.read_prompts(path, {"a": "a"}, {}),
    "replies": dpgbench.read_replies,
    "propositions": dpgbench.read,
    "detections": object_files.read_detections,
    "MME": vqa.read_mme,
}


@pytest.mark.parametrize("name", READERS)
def test_nobody_waits_for_a_pipe(name, pipe):
    said: list[BaseException] = []

    def read():
        try:
            READERS[name](pipe)
        except Exception as error:
            said.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    if reader.is_alive():
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # lets it go
    assert said and "a named pipe, no plain file" in str(said[0])
    assert isinstance(said[0], InputError) or name == "a picture"


def test_pictures_of_a_folder_stay_inside(tmp_path):
    outside, folder = tmp_path / "secret.png", tmp_path / "gen" / "00000"
    Image.new("RGB", (8, 8), "red").save(outside)
    (folder / "samples").mkdir(parents=True)
    (folder / "metadata.jsonl").write_text(
        '{"tag": "single_object", "prompt": "a cat", "include": [{"class": "cat", "count": 1}]}'
    )
    Image.new("RGB", (8, 8), "blue").save(folder / "samples" / "0000.png")
    (folder / "samples" / "0001.png").symlink_to(outside)
    (kept, left) = (given for _, given in object_files.read(tmp_path / "gen"))
    assert kept.entries and not left.entries and "a link out of" in left.reason
    grids = tmp_path / "grids"
    grids.mkdir()
    (grids / "cat.png").symlink_to(outside)
    assert all("a link out of" in given.reason for _, given in dpgbench.read(grids))
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.jsonl").symlink_to(tmp_path / "secret.json")
    (tmp_path / "secret.json").write_text("{}")
    with pytest.raises(InputError, match="a link out of"):
        object_files.read(tmp_path / "gen")
