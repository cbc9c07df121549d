"""GenEval: its rules on detections as data, the official layout, and a tiny detector of a stock class."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from limner.cli import run as cli
from limner.configs.errors import InputError
from limner.eval.benchmarks.geneval import (
    COLORS,
    Detection,
    DetectorConfig,
    GenEval,
    GenEvalConfig,
    ZeroShotDetector,
    judge_objects,
    kept,
    read,
    relations,
)
from limner.eval.run import EvalConfig, evaluate
from limner.models.chat.choice import ChatConfig
from limner.models.chat.endpoint import EndpointConfig

from ...rewards.tiny_models import SIDE, clip
from ...scripted_server import ScriptedServer, images
from ..benchmark_data import picture, results


def found(name, score=0.95, box=(0, 0, 10, 10), color=None):
    return Detection(name, score, box, color)


def prompt(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": f"a photo for {tag}"}


def one(name, count=1, **others):
    return {"class": name, "count": count, **others}


TWO_CLOCKS = prompt("counting", one("clock", 2), exclude=[one("clock", 3)])
LEFT = prompt("position", one("dog"), one("cat", position=["left of", 0]))
RED_BENCH = prompt("colors", one("bench", color="red"))
FAR, NEAR = (100, 0, 110, 10), (0, 0, 10, 10)
CASES = [
    # metadata, detections, right
    (prompt("single_object", one("bench")), [found("bench", 0.31)], True),
    (prompt("single_object", one("bench")), [found("bench", 0.3)], False),  # above the threshold, not at it
    (prompt("single_object", one("bench")), [], False),
    (prompt("single_object", one("bench")), [found("cow")], False),
    (prompt("two_object", one("bench"), one("cow")), [found("bench"), found("cow"), found("dog")], True),
    (prompt("two_object", one("bench"), one("cow")), [found("bench")], False),
    (TWO_CLOCKS, [found("clock")] * 2, True),
    (TWO_CLOCKS, [found("clock")] * 3, False),  # excluded
    (TWO_CLOCKS, [found("clock")] * 2 + [found("clock", 0.9)], True),  # counting looks above 0.9
    (TWO_CLOCKS, [found("clock"), found("clock", 0.89)], False),
    (RED_BENCH, [found("bench", color="red")], True),
    (RED_BENCH, [found("bench", color="blue")], False),
    (RED_BENCH, [found("bench", 0.8, color="red"), found("bench", 0.9, color="blue")], False),  # the surest counts
    (RED_BENCH, [found("bench", 0.9, color="red"), found("bench", 0.8, color="blue")], True),
    (LEFT, [found("dog", box=FAR), found("cat", box=NEAR)], True),
    (LEFT, [found("dog", box=NEAR), found("cat", box=FAR)], False),
    (LEFT, [found("cat", box=NEAR)], False),  # no dog to be left of
    (
        prompt("position", one("dog", color="red"), one("cat", position=["left of", 0])),
        [found("dog", box=FAR, color="blue"), found("cat", box=NEAR)],
        False,
    ),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_rules(number):
    metadata, detections, right = CASES[number]
    assert (not judge_objects(metadata, detections)) == right


def test_a_position_to_an_unmatched_group_is_its_own_fault():
    assert len(judge_objects(LEFT, [found("cat", box=NEAR)])) == 2
    both = judge_objects(LEFT, [])
    assert [reason.split(",")[0] for reason in both] == ["expected dog >= 1", "expected cat >= 1"]


def test_positions():
    box = (40, 40, 60, 60)
    assert relations((0, 40, 20, 60), box) == {"left of"} and relations((80, 40, 99, 60), box) == {"right of"}
    assert relations((40, 0, 60, 20), box) == {"above"} and relations((40, 90, 60, 99), box) == {"below"}
    assert relations((0, 0, 20, 20), box) == {"left of", "above"}
    assert relations(box, box) == set()
    assert relations((36, 40, 56, 60), box) == set()  # offset 4 = 0.1 * (20 + 20)
    # offset (-6, 0): 2 of 6 remain beyond the margin, less than a half
    assert relations((34, 40, 54, 60), box) == set()
    assert relations((31, 40, 51, 60), box) == {"left of"}  # 5 of 9


def test_at_most_sixteen_of_a_class_surest_first():
    groups = kept([found("cup", 0.4 + n / 100) for n in range(20)], "colors")
    assert len(groups["cup"]) == 16 and groups["cup"][0].score == pytest.approx(0.59)
    assert kept([found("cup", 0.1)], "colors").get("cup", []) == []


def test_prompts_become_samples(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(json.dumps(TWO_CLOCKS) + "\n" + json.dumps(LEFT) + "\n")
    items = [item for item, _ in read(file)]
    benchmark = GenEval(items, GenEvalConfig(samples=2))
    assert [item.id for item in benchmark.items] == ["00000/0", "00000/1", "00001/0", "00001/1"]
    assert benchmark.items[0].question[0].text == "a photo for counting" and benchmark.items[2].category == "position"
    file.write_text(json.dumps(prompt("position", one("cat", position=["left of", 0]))) + "\n")
    with pytest.raises(InputError, match="evaluation_metadata.jsonl:1.*place"):
        read(file)


def layout(folder, *prompts):
    """The official one, two pictures a prompt."""
    for number, metadata in enumerate(prompts):
        place = folder / f"{number:05}"
        for sample in range(2):
            picture(place / "samples" / f"{sample:04}.png")
        (place / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")
    return str(folder)


def test_a_run_over_detections(tmp_path):
    """Overall is the mean over tasks, not over pictures; a sample without detections is counted, not wrong."""
    answers = layout(tmp_path / "made", TWO_CLOCKS, LEFT, LEFT)
    clocks = [{"class": "clock", "score": 0.95, "box": [0, 0, 9, 9]}]
    right = [{"class": "dog", "score": 0.9, "box": FAR}, {"class": "cat", "score": 0.9, "box": NEAR}]
    objects = {"00000/0": clocks * 2, "00000/1": clocks * 3, "00001/0": right, "00001/1": right, "00002/0": []}
    file = tmp_path / "found.jsonl"
    file.write_text("".join(json.dumps({"id": key, "objects": value}) + "\n" for key, value in objects.items()))
    config = GenEvalConfig(by="detections", detections=str(file))
    run = EvalConfig(benchmark="geneval", answers=answers, out=str(tmp_path / "out"), options=asdict(config))
    assert evaluate(run)
    outcome = results(tmp_path / "out")
    scores = {name: round(score["value"], 2) for name, score in outcome["scores"].items()}
    assert scores == {"counting": 50, "position": 66.67, "overall": 58.33}
    assert outcome["accounting"]["failed"] == {"no detections": 1}
    with pytest.raises(InputError, match="detections"):
        GenEvalConfig(by="detections")
    file.write_text('{"id": "00000/0", "objects": [{"class": "clock"}]}\n')
    with pytest.raises(InputError, match="found.jsonl:1"):
        GenEval([], config)


def test_samples_that_others_have_are_missed(tmp_path):
    """As the official script, which reads PNG alone, the figure leaves a .jpg out; it is said by name."""
    folder = Path(layout(tmp_path / "made", TWO_CLOCKS, LEFT, LEFT))
    (folder / "00001" / "samples" / "0001.png").unlink()
    picture(folder / "00002" / "samples" / "0000.jpg")
    (folder / "00002" / "samples" / "0000.png").unlink()
    (folder / "00002" / "samples" / "grid.png").write_bytes(b"")
    missing = {item.id: given.reason for item, given in read(folder) if given and given.failure == "missing sample"}
    assert list(missing) == ["00001/1", "00002/0"]
    assert missing["00001/1"].endswith("found nothing") and missing["00002/0"].endswith("found 0000.jpg")


def test_a_run_without_one_score_is_no_success(tmp_path, capsys):
    answers = layout(tmp_path / "made", TWO_CLOCKS)
    (tmp_path / "found.jsonl").write_text('{"id": "00007/0", "objects": []}\n')
    settings = ["--options.by", "detections", "--options.detections", str(tmp_path / "found.jsonl")]
    command = ["eval", "--config", "eval/geneval", "--answers", answers, "--out", str(tmp_path / "out"), *settings]
    with pytest.raises(SystemExit) as end:
        cli(command)
    assert end.value.code == 1
    reason = capsys.readouterr().err.splitlines()[0]
    assert "not one of 2 scores: 2 no detections; the first: " in reason and "has none of 00000/0" in reason


def test_a_judge_instead_of_a_detector(tmp_path):
    answers = layout(tmp_path / "made", TWO_CLOCKS)

    def reply(body):
        assert len(images(body)) == 1
        return "Two clocks. <score>1</score>"

    with ScriptedServer(reply) as server:
        judge = ChatConfig(endpoint=EndpointConfig(server.url, "scripted"))
        config = EvalConfig(
            benchmark="geneval",
            answers=answers,
            out=str(tmp_path / "out"),
            options={"by": "judge"},
            judge=judge,
        )
        assert evaluate(config)
    assert results(tmp_path / "out")["scores"]["overall"]["value"] == 100


def test_a_detector_of_transformers(tmp_path):
    """Tiny random OWL-ViT and CLIP of the stock classes: boxes inside the picture, a colour of the ten."""
    from transformers import CLIPTokenizer, OwlViTConfig, OwlViTForObjectDetection, OwlViTProcessor
    from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokens = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # a query that begins with token 0 is no query
    text = {**tower, **special, "vocab_size": len(words), "max_position_embeddings": 16}
    vision = {**tower, "image_size": SIDE, "patch_size": 4}
    settings = OwlViTConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = OwlViTForObjectDetection(settings)
    with torch.no_grad():
        model.class_head.logit_shift.bias.fill_(3.0)  # sure of everything
    model.save_pretrained(tmp_path / "owl")
    processor = OwlViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    OwlViTProcessor(processor, tokens).save_pretrained(tmp_path / "owl")
    detector = ZeroShotDetector(DetectorConfig(str(tmp_path / "owl"), clip(tmp_path / "clip"), "cpu"))
    image = Image.new("RGB", (40, 30), "red")
    boxes = detector(image, ["cat", "mat"])
    assert boxes and {box.name for box in boxes} <= {"cat", "mat"} and all(0.3 < box.score <= 1 for box in boxes)
    assert detector.color(image, boxes[0]) in COLORS
    assert torch.allclose(detector._colors("cat").norm(dim=-1), torch.ones(len(COLORS)), atol=1e-5)
