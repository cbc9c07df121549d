"""The whole road in small: tokenizers, shards, two warm-up and two GRPO steps, figures, report, save, load, sample."""

import json

import pytest
import torch

from limner.configs.errors import InputError
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.models.sampler.generation import Sampling
from limner.models.writing import write
from limner.report.demo import write_report
from limner.studies.demo import DemoConfig, chosen_arms, run, score_checkpoint
from limner.train import grpo, warmup
from limner.train.from_scratch.image_tokenizer import ImageTokenizerConfig
from limner.train.from_scratch.new_model import NewModelConfig
from limner.worlds.picture_stories.prepare import WorldConfig, check_heldout
from limner.worlds.picture_stories.prompts import write_outlines
from limner.worlds.picture_stories.scenes import SCENES, caption, outlines, story, story_prompt, text_to_image

from .models.families.tiny import FAMILIES
from .rewards.exact import STORIES

REPORTS: list = []
"""What the demo of this module has reported: file, metrics, samples."""
FIGURES = {
    "sampled": {"story_exact", "image_exact", "sentence_exact", "structure"},
    "understanding": {"vqa", "caption"},
    "text_to_image": {"exact"},
}


def small(out, **changes) -> DemoConfig:
    tokenizer = ImageTokenizerConfig(autoencoder_steps=2, quantised_steps=1, decoder_steps=1, channels=(16,))
    return DemoConfig(
        out=str(out),
        iterations=1,
        curve_prompts=4,
        world=WorldConfig(heldout_prompts=6, train_prompts=8, interleaved=40, understanding=24, text_to_image=24),
        new_model=NewModelConfig(
            text_vocabulary=512, hidden_size=32, intermediate_size=32, layers=1, heads=2, image_tokenizer=tokenizer
        ),
        warmup={"max_steps": "2", "report_to": "none"},
        grpo={
            "preflight": "false",  # nothing is to be learned from two steps of warm-up
            "num_generations": "4",
            "per_device_train_batch_size": "8",
            "steps_per_generation": "2",
            "logging_steps": "1",
            "max_completion_length": "48",
            "report_to": "none",
        },
        **changes,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("limner.studies.demo.write_report", lambda *told: REPORTS.append(told) or write_report(*told))
        return out, run(small(out))


def test_the_report_is_there_while_the_run_goes_on(demo):
    out, _ = demo
    assert {path for path, *_ in REPORTS} == {out / "report.html"}
    doing = [metrics.get("unfinished") for _, metrics, _ in REPORTS]
    assert doing[0] == "warmup is being trained: step 0" and doing[-1] is None and None not in doing[:-1]
    assert any(words.startswith("grpo_process is being trained") for words in doing[:-1])
    assert all(len(samples) == 6 and samples[0]["pictures"] >= 2 for *_, samples in REPORTS), (
        "pictures from the first on"
    )
    assert [*REPORTS[0][2][0]["answers"]] == ["warmup"] and len(REPORTS[-1][2][0]["answers"]) == 2
    assert "refresh" not in (out / "report.html").read_text() and REPORTS[-1][1]["versions"]["limner"]


def test_every_stage_leaves_its_result(demo):
    out, metrics = demo
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert set(metrics["arms"]) == {"warmup", "grpo_process"}
    for arm in metrics["arms"].values():
        for group, names in FIGURES.items():
            for name in names:
                estimate = arm[group][name]
                assert set(estimate) == {"value", "low", "high", "n"}
                assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        assert arm["text_to_image"]["exact"]["n"] >= 500 and arm["understanding"]["vqa"]["n"] >= 500
        assert arm["seconds"] > 0
        assert set(arm["curve"][0]) == {"step", "seconds", "sampled_story_exact"}
    assert "story_exact" in metrics["arms"]["warmup"]["best_temperature"]
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "data:image/png" in page


def test_the_model_loads_and_writes(demo):
    out, _ = demo
    policy = load(out / "model")
    (answer,) = write(policy, [story_prompt(outlines(0, 1)[0])], Sampling(max_new_tokens=64, seed=1))
    assert answer.document.segments
    figures = score_checkpoint(str(out / "model"), out / "prompts" / "heldout.jsonl", 0)
    assert figures["greedy"]["story_exact"]["n"] == 6


def test_heldout_prompts_are_held_out(demo):
    out, metrics = demo
    assert metrics["data"]["heldout_outlines_in_training_data"] == 0
    train = out / "prompts" / "train.jsonl"
    kept = train.read_text()
    train.write_text(kept + (out / "prompts" / "heldout.jsonl").read_text().splitlines()[0] + "\n")
    assert check_heldout(out / "data", out / "prompts") == 1
    train.write_text(kept)


def test_a_second_call_takes_up_what_is_there(demo):
    out, metrics = demo
    stamp = (out / "arms" / "grpo_process" / "result.json").stat().st_mtime_ns
    again = run(small(out, arms="warmup,grpo_process,rejection"))
    assert (out / "arms" / "grpo_process" / "result.json").stat().st_mtime_ns == stamp
    assert set(again["arms"]) == {"warmup", "grpo_process", "rejection"}
    assert again["arms"]["grpo_process"] == json.loads(json.dumps(metrics["arms"]["grpo_process"]))
    changed = small(out)
    changed.iterations = 2
    with pytest.raises(InputError, match="other settings"):
        run(changed)


def test_arms_run_after_the_one_whose_seconds_they_spend():
    assert chosen_arms("all") == ["warmup", "grpo_process", "grpo_outcome", "control", "rejection"]
    assert chosen_arms("control") == ["warmup", "grpo_process", "control"]


CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--save_strategy", "no", "--max_steps", "2"]


QUICK = ("llama", "janus")
"""One of each kind; the others take their time with the slow tests."""


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_takes_the_whole_road(family, tmp_path):
    """Shards, warm-up and GRPO by their commands, and a model at the end that loads, has learnt and writes."""
    save(FAMILIES[family](), tmp_path / "start")
    with ShardWriter(tmp_path / "shards") as writer:
        for number in range(6):
            scenes = SCENES[2 * number : 2 * number + 2]
            for document in (story(scenes, f"story-{number}"), caption(scenes[0]), text_to_image(scenes[1])):
                writer.write(document, "heldout" if number == 5 else "train")
    write_outlines(tmp_path / "prompts.jsonl", outlines(0, 4))

    flags = ["--data", tmp_path / "shards", "--pack_length", 1200, "--heldout_batches", 1, "--learning_rate", 1e-3]
    call(warmup.main, "--model", tmp_path / "start", "--output_dir", tmp_path / "warm", *flags)
    flags = ["--rewards", json.dumps(STORIES), "--learning_rate", 1e-3]
    flags += ["--num_generations", 4, "--per_device_train_batch_size", 8, "--max_completion_length", 90]
    flags += ["--preflight", "false", "--algorithm.process_weight", 1]
    both = "{text: 0.1, image: 0.1}"  # a random model has no reward that varies; entropy gives it something to learn
    flags += ["--algorithm.beta", both, "--algorithm.entropy_bonus", both]
    model = ["--model", tmp_path / "warm" / "model", "--prompts", tmp_path / "prompts.jsonl"]
    call(grpo.main, *model, "--output_dir", tmp_path / "grpo", "--trajectories_every", 1, *flags)

    weights = [load(tmp_path / name).model.state_dict() for name in ("start", "warm/model", "grpo/model")]
    for before, after in zip(weights, weights[1:], strict=False):
        assert not all(torch.equal(before[name], after[name]) for name in before)
    policy = load(tmp_path / "grpo" / "model")
    (answer,) = write(policy, [story_prompt(SCENES[:2])], Sampling(max_new_tokens=90, begin_with_image=True))
    assert len(answer.document.images) >= 1 and answer.document.images[0].image is not None


def call(main, *words) -> None:
    main([*CPU, "--per_device_train_batch_size", "1", *(str(word) for word in words)])
