"""The pipeline arm over real HTTP and tiny models: its answers are scored like any other model's."""

import json
from pathlib import Path

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.eval.benchmark import Item
from limner.eval.pipeline import UNSEEN, PipelineConfig, Wishes, write_answers
from limner.eval.run import EvalConfig, SamplingConfig, evaluate
from limner.models.chat.choice import ChatConfig
from limner.models.chat.endpoint import EndpointConfig
from limner.models.chat.local_vlm import LocalVLMConfig
from limner.models.chat.painters.choice import PainterConfig
from limner.models.chat.painters.images_endpoint import ImagesEndpointConfig
from limner.models.chat.painters.local_pipeline import LocalPipelineConfig
from limner.models.chat.painters.marks import read_marks

from ..scripted_server import BROKEN, Fault, ScriptedServer, images, picture, texts
from ..small_chat import save_text_model
from ..small_pipeline import save_pipeline
from .benchmark_data import judge_config, results, write_mmie

BLUE = picture(Image.new("RGB", (16, 16), "blue"))
POLICY = Fault(400, '{"error": {"code": "content_policy_violation", "message": "Rejected."}}')
REPLY = "<think>Two?</think>First. <picture>A blue square.</picture> Then <picture>bad</picture> ![x](y.png) <picture>c"


def endpoints(url: str) -> PipelineConfig:
    writer = EndpointConfig(base_url=url, model="writer", retries=0)
    painter = ImagesEndpointConfig(base_url=url, model="painter", retries=0)
    return PipelineConfig(writer, painter=PainterConfig(painter))


def config(folder: Path, pipeline: PipelineConfig, judge: ChatConfig, **others) -> EvalConfig:
    data = write_mmie(folder / "data", ["SA-1", "PBL-1"])
    return EvalConfig(data=str(data), out=str(folder / "out"), pipeline=pipeline, judge=judge, **others)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "answers.0.jsonl").read_text().splitlines()]


def test_answers_of_a_pipeline_are_scored_and_what_went_wrong_is_counted(tmp_path):
    writers, broken = [], True

    def script(body):
        if body["model"] == "writer":
            writers.append(body)
            return REPLY
        if body["model"] == "painter":
            return BROKEN if broken else POLICY if body["prompt"] == "bad" else BLUE
        return "<score>5</score>"

    with ScriptedServer(script) as server:
        run = config(tmp_path, endpoints(server.url), judge_config(server.url))
        assert evaluate(run)
        assert results(run.out)["accounting"]["failed"] == {"no answer: server error": 2}
        broken = False
        assert evaluate(run)  # the same command again has what failed written anew
    found = results(run.out)
    assert found["accounting"]["scored"] == 2 and found["manifest"]["model"]["name"] == "writer with painter"
    counted = {"refused by the painter": 2, "picture mark not closed": 2, "invented picture": 2}
    assert found["accounting"]["writing"] == counted
    (first, *_) = [body for body in writers if "Question SA-1." in texts(body)]
    prompt = texts(first)
    assert "<picture>" in prompt and len(images(first)) == 1
    entries = records(tmp_path)[-1]["entries"]
    assert [entry["text"] for entry in entries] == ["First. ", " Then ", " ![x](y.png) c"]
    assert [bool(entry["image"]) for entry in entries] == [True, False, False]
    assert Image.open(tmp_path / "out" / entries[0]["image"]).size == (16, 16)


def test_two_tiny_models_of_the_real_classes_write_and_paint(tmp_path, monkeypatch):
    """Random weights set no mark, so that one is put in their mouth."""
    monkeypatch.setattr("limner.eval.pipeline.read_marks", lambda text: read_marks("A <picture>cat</picture>."))
    writer = LocalVLMConfig(save_text_model(tmp_path / "llama"), device="cpu", max_new_tokens=8)
    painter = LocalPipelineConfig(save_pipeline(tmp_path / "sd"), device="cpu", steps=1)
    pipeline = PipelineConfig(local=writer, painter=PainterConfig(local=painter))
    with ScriptedServer(lambda body: "<score>3</score>") as server:
        assert evaluate(config(tmp_path, pipeline, judge_config(server.url)))
    found = results(tmp_path / "out")
    assert found["accounting"]["scored"] == 2 and found["accounting"]["writing"][UNSEEN] == 2
    pictures = [
        tmp_path / "out" / entry["image"] for one in records(tmp_path) for entry in one["entries"] if entry["image"]
    ]
    assert len(pictures) == 2 and Image.open(pictures[0]).size == (32, 32)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()  # one description, two items


def test_the_number_of_pictures_is_told_and_kept(tmp_path):
    bodies = []

    def script(body):
        bodies.append(body)
        many = "a <picture>b</picture> c <picture>d</picture>"
        return many if body["model"] == "writer" else BLUE if body["model"] == "painter" else "<score>5</score>"

    with ScriptedServer(script) as server:
        limited = SamplingConfig(max_images=1)
        run = config(tmp_path, endpoints(server.url), judge_config(server.url), sampling=limited)
        evaluate(run)
    assert "at most 1 picture." in texts(bodies[0]) and sum("prompt" in body for body in bodies) == 2
    assert results(run.out)["accounting"]["writing"] == {"more pictures than allowed": 2}


def test_settings_that_cannot_be_are_named(tmp_path):
    pipeline = endpoints("http://localhost:1/v1")
    data = str(write_mmie(tmp_path / "data"))
    with pytest.raises(InputError, match="give one of them, --model DIR or --pipeline"):
        EvalConfig(data=data, pipeline=pipeline, model="x")
    with pytest.raises(InputError, match="pipeline: who writes"):
        PipelineConfig(painter=pipeline.painter)
    with pytest.raises(InputError, match="pipeline.painter: who paints"):
        PipelineConfig(pipeline.endpoint)
    with pytest.raises(InputError, match="sets the temperature of each answer itself"):
        list(write_answers(pipeline, [Item("a", "b", (), temperature=1.0)], Wishes("{question}", None, 0, 1), None))  # type: ignore[arg-type]
