"""A small MRAMG-Bench in the released form, with two subsets: what tests of several folders need."""

import json
from pathlib import Path

from PIL import Image

RECIPES = {
    1: ("Peel the apples. <PIC> Roll out the dough. <PIC>", ["apples", "dough"]),
    2: ("Boil the pasta in salted water. <PIC> Drain it.", ["pasta"]),
    "3": ("Knead the bread dough.", []),
}
"""Id -> text, image ids."""
RECIPE_QUESTIONS = [
    ("q1", "How is strudel made?", [1], "Peel the apples. <PIC> Roll out the dough. <PIC>", ["apples", "dough"]),
    ("q2", "How is pasta cooked?", [2], "Boil the pasta. <PIC>", ["pasta"]),
    ("q3", "Which dough is rolled?", [1], "Roll out the dough. <PIC>", ["dough"]),
]
"""Id, question, provenance, ground truth, gold image ids."""
WEB = {7: ("The tower stands in Paris. <PIC>", [12])}
WEB_QUESTIONS = [(5, "Where is the tower?", [7], "In Paris. <PIC>", ["12"])]


def write_mramg(folder: Path, nested: bool = False) -> Path:
    """nested: pictures as some unpackers leave them, in IMAGE/IMAGE."""
    write_subset(folder, "recipe", RECIPES, RECIPE_QUESTIONS, nested)
    write_subset(folder, "web", WEB, WEB_QUESTIONS, nested)
    return folder


def write_subset(folder: Path, subset: str, documents: dict, questions: list, nested: bool = False) -> None:
    base = folder / "IMAGE" / "IMAGE" if nested else folder / "IMAGE"
    (base / "images_info").mkdir(parents=True, exist_ok=True)
    (base / "images" / subset.upper()).mkdir(parents=True, exist_ok=True)
    rows = [[key, text, images] for key, (text, images) in documents.items()]
    (folder / f"doc_{subset}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("id", "question", "provenance", "ground_truth", "images_list")
    asked = [json.dumps(dict(zip(names, row, strict=True))) for row in questions]
    (folder / f"{subset}_mqa.jsonl").write_text("\n".join(asked) + "\n")
    listed = {}
    for number, image in enumerate(image for _, images in documents.values() for image in images):
        name = f"{image}.png"
        Image.new("RGB", (8, 8), (40 * number, 90, 10)).save(base / "images" / subset.upper() / name)
        listed[str(image)] = {"id": image, "image_path": name, "image_caption": f"The {image}", "image_url": "-"}
    collection(folder, subset, nested).write_text(json.dumps(listed))


def collection(folder: Path, subset: str, nested: bool = False) -> Path:
    base = folder / "IMAGE" / "IMAGE" if nested else folder / "IMAGE"
    return base / "images_info" / f"{subset}_imgs_collection.json"
