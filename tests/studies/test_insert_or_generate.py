"""The study of insert or generate: arms in order, one folder one set of settings, a cut run taken up, its report."""

import json

import pytest

from limner.configs.errors import InputError
from limner.report.insertion import METRICS
from limner.studies import insert_or_generate
from limner.studies.insert_or_generate import InsertOrGenerateConfig, chosen_arms, run
from limner.train.from_scratch.image_tokenizer import ImageTokenizerConfig
from limner.train.from_scratch.new_model import NewModelConfig
from limner.worlds.insertion_stories.prepare import CandidatesWorldConfig
from limner.worlds.insertion_stories.scenes import insertion_story
from limner.worlds.picture_stories.scenes import SCENES

from ..worlds.insertion_stories.test_figures import DONE, PLAN


def result(level: float) -> dict:
    rows = {wanted: dict.fromkeys(DONE, 1) for wanted in ("insert", "generate", "leave")}
    story = insertion_story(PLAN).to_json()
    story["segments"].append({"type": "text", "text": "<script>alert(1)</script>"})
    return {
        "items": {metric: [level, None, 1.0] for metric in METRICS},
        "confusion": {"sampled": rows, "greedy": rows},
        "faults": {"repeated": 2},
        "samples": [story],
        "points": [{"step": 0, "seconds": 0.0, "choice": level, "picture_exact": 0.5, "story_exact": 0.0}],
        "seconds": 3.0,
        "steps": 7,
    }


@pytest.fixture
def trained(monkeypatch):
    asked = []

    def run_arm(name, config, root, seed, heldout):
        asked.append((seed, name))
        return result({"warmup": 0.5, "control": 0.5, "grpo": 1.0}[name])

    monkeypatch.setattr(insert_or_generate, "run_arm", run_arm)
    monkeypatch.setattr(insert_or_generate, "prepare", lambda *_: ([PLAN], [PLAN], {}))
    return asked


def test_arms_run_in_order_and_once(tmp_path, trained):
    config = InsertOrGenerateConfig(out=str(tmp_path), seeds=2, arms="control")
    summary = run(config)
    order = ["warmup", "grpo", "control"]
    assert trained == [(seed, name) for seed in (0, 1) for name in order]
    assert run(config) == summary and len(trained) == 6
    assert json.loads((tmp_path / "results.json").read_text())["arms"].keys() == set(order)
    gains = {(g["arm"], g["against"]): g["value"] for g in summary["gains"] if g["metric"] == "sampled.choice"}
    assert gains == {("grpo", "warmup"): 0.25, ("grpo", "control"): 0.25, ("control", "warmup"): 0.0}
    assert summary["arms"]["grpo"]["confusion"]["sampled"]["insert"]["leave"] == 2
    assert summary["arms"]["grpo"]["faults"] == {"repeated": 4}
    with pytest.raises(InputError, match="other settings"):
        run(InsertOrGenerateConfig(out=str(tmp_path), iterations=3))
    with pytest.raises(InputError, match="unknown"):
        chosen_arms("grpo,unknown")


def test_the_report_says_what_was_wanted_and_done(tmp_path, trained):
    run(InsertOrGenerateConfig(out=str(tmp_path), seeds=1))
    page, table = (tmp_path / "report.html").read_text(), (tmp_path / "table.md").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert "inserted, candidate 2" in page and "given, candidate 1" in page
    for words in ("insert another", "several", "missing", "choices, sampled", "repeated 2"):
        assert words in page and words in table
    assert "| insert | 0.17 | 0.17 |" in table


def test_a_metric_is_compared_where_it_applies_to_both_and_else_a_dash(tmp_path, trained, monkeypatch):
    def run_arm(name, config, root, seed, heldout):
        kept = result(0.5)
        drawn = {"warmup": [None, 0.0, None], "grpo": [1.0, 1.0, None], "control": [None] * 3}[name]
        return kept | {"items": kept["items"] | {"sampled.drawn_exact": drawn}}

    monkeypatch.setattr(insert_or_generate, "run_arm", run_arm)
    summary = run(InsertOrGenerateConfig(out=str(tmp_path), seeds=1))
    (gain,) = [gain for gain in summary["gains"] if gain["metric"] == "sampled.drawn_exact"]
    assert (gain["arm"], gain["against"], gain["value"], gain["n"]) == ("grpo", "warmup", 1.0, 1)
    row = "| exact, of those drawn | 0.00 [0.00, 0.00] | 1.00 [1.00, 1.00] | - |"
    assert row in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    """All stages in small, killed in the warm-up: data, warm-up, GRPO on choices, control, figures, page."""
    monkeypatch.setattr(insert_or_generate, "SCENES", SCENES[:2])
    monkeypatch.setattr(insert_or_generate, "QUESTIONS_ASKED", 2)
    monkeypatch.setattr("limner.worlds.insertion_stories.figures.STORY_TOKENS", 24)
    monkeypatch.setattr(insert_or_generate, "STORY_TOKENS", 24)
    few = ImageTokenizerConfig(autoencoder_steps=2, quantised_steps=2, decoder_steps=2)
    quiet = {"report_to": "none", "disable_tqdm": True}
    config = InsertOrGenerateConfig(
        out=str(tmp_path),
        seeds=1,
        iterations=1,
        curve_prompts=2,
        world=CandidatesWorldConfig(4, 8, 40, 40, 20),
        new_model=NewModelConfig(text_vocabulary=700, hidden_size=32, layers=1, heads=2, image_tokenizer=few),
        warmup={**quiet, "max_steps": 4, "save_steps": 2, "pack_length": 256},
        grpo={
            **quiet,
            "preflight": False,
            "num_generations": 2,
            "per_device_train_batch_size": 4,
            "steps_per_generation": 1,
            "max_completion_length": 24,
        },
    )
    save = insert_or_generate.Watch.on_save

    def cut(self, args, state, control, **rest):
        save(self, args, state, control, **rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(insert_or_generate.Watch, "on_save", cut)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    kept = json.loads((tmp_path / "seed-0" / "warmup" / "curve.json").read_text())
    assert kept["steps"] == 2 and not (tmp_path / "seed-0" / "warmup" / "model").exists()
    summary = run(config)
    resumed = json.loads((tmp_path / "seed-0" / "warmup" / "curve.json").read_text())
    assert resumed["steps"] == 4 and resumed["points"][: len(kept["points"])] == kept["points"]
    assert resumed["seconds"] > kept["seconds"]
    assert summary["arms"].keys() == {"warmup", "grpo", "control"} and summary["gains"]
    assert "Confusion: GRPO, sampled" in (tmp_path / "table.md").read_text()
