"""What limner 0.1 left on the disk (`files_of_0_1/README.md`) is read, or refused with what to do."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from limner.cli import run
from limner.configs.errors import InputError
from limner.data.shards import read_documents
from limner.models.checkpoints.folder import load
from limner.models.documents.document import InterleavedDocument
from limner.models.sampler.generation import Sampling, generate
from limner.models.writing import write
from limner.report.release.lineage import read_stages, runs_of
from limner.retrieval.index.store import Index
from limner.rewards.build import RewardSettings, build_reward
from limner.train.watch.trajectories import read_trajectories

FILES = Path(__file__).with_name("files_of_0_1")
EXPECTED = json.loads((FILES / "expected.json").read_text())


@pytest.fixture(autouse=True)
def before(tmp_path, monkeypatch) -> Path:
    """A copy of the files, to work in: their settings name each other by relative paths."""
    for path in FILES.iterdir():
        if path.suffix not in (".py", ".md") and path.name != "__pycache__":
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkpoint_writes_what_it_wrote():
    policy, prompt = load("warmup/model"), InterleavedDocument.from_json(EXPECTED["prompt"])
    sampling = Sampling(max_new_tokens=80, seed=3)
    asked = policy.processor.encode(prompt)
    assert asked.ids_T.tolist() == EXPECTED["prompt_ids"]
    (sample,) = generate(policy, [asked], sampling)
    assert sample.ids_C.tolist() == EXPECTED["ids"]
    assert sample.logp_C.tolist() == pytest.approx(EXPECTED["logp"], abs=1e-4)
    (answer,) = write(policy, [prompt], sampling)
    assert answer.text == EXPECTED["text"]
    assert policy.processor.image_tokenizer.fingerprint() == EXPECTED["image_tokenizer"], "cached codes are by it"
    for picture, pixels in zip(answer.images, EXPECTED["pictures"], strict=True):
        seen = np.asarray(picture).reshape(-1).astype(int)
        assert np.abs(seen - np.frombuffer(bytes.fromhex(pixels), np.uint8)).max() <= 1, "rounding, at most"


def test_shards_are_sound_and_give_the_same_documents(capsys):
    run(["data", "validate", "shards"])
    assert "6 records are sound" in capsys.readouterr().out
    for split, documents in EXPECTED["shards"].items():
        assert [digest(document) for document in read_documents("shards", split, shuffle_seed=None)] == documents


def digest(document: InterleavedDocument) -> dict:
    return {
        "id": document.id,
        "text": document.text,
        "trainable": [segment.trainable for segment in document.segments],
        "pictures": [hashlib.sha256(image.pixels().tobytes()).hexdigest() for image in document.images],
    }


def test_an_index_finds_the_same_and_is_up_to_date(capsys):
    index = Index.open("index")
    for question, chunk in EXPECTED["index"].items():
        assert index.search(question)[0].chunk.id == chunk
    run(["index", "markdown", "--out", "index"])
    assert "0 added, 0 updated, 6 unchanged, 0 deleted" in capsys.readouterr().out


def test_a_run_folder_tells_what_the_run_was(capsys):
    rows = [[item.step, item.outcome] for item in read_trajectories(Path("grpo/trajectories"))]
    assert rows == EXPECTED["rewards"]
    run(["trajectories", "grpo", "--out", "page.html"])
    assert "16 rollouts" in capsys.readouterr().out and Path("page.html").stat().st_size > 10_000

    runs = runs_of(Path("grpo/model"))
    assert [folder.name for folder in runs] == ["warmup", "grpo"]
    warmup, grpo = read_stages(runs)
    shards, gone = warmup.sources
    assert shards.kinds == {"train": {"interleaved": 3}, "heldout": {"interleaved": 3}} and gone.kinds is None
    assert grpo.reinforced and grpo.settings["rewards"]["text_plan"] == 1.0 and not warmup.reinforced


def test_the_model_of_a_run_is_published(capsys):
    run(["publish", "grpo/model", "--repo", "me/before", "--dry-run", "release", "--samples", "1"])
    assert sorted(path.name for path in Path("release/training").iterdir()) == ["1-warmup.yaml", "2-grpo.yaml"]
    assert "text_plan" in Path("release/training/2-grpo.yaml").read_text()
    assert torch.allclose(weights("grpo/model"), weights("release"), atol=1e-5)


def test_results_of_an_evaluation_make_their_page(capsys):
    from limner.report.evaluation import write_report

    assert "structure 0.75 [0.25, 1.00] of 4" in write_report(Path("eval"))
    assert "Picture stories" in Path("eval/report.html").read_text()


def evaluate(out: str) -> None:
    flags = ["--benchmark", "picture_stories", "--model", "grpo/model", "--data", "prompts.jsonl", "--out", out]
    run(["eval", *flags, "--sampling.max_new_tokens", "80"])


def test_results_of_another_version_are_not_mixed_with(monkeypatch):
    monkeypatch.setattr("limner.eval.run.version", lambda name: "0.2.0")  # whatever an old `*.egg-info` may say
    with pytest.raises(InputError) as refused:
        evaluate("eval")
    said = str(refused.value)
    assert "limner was '0.1.0', is '0.2.0'" in said and said.endswith("give another --out")


def test_results_of_before_are_compared_with_those_of_now(capsys):
    evaluate("after")
    run(["guard", "eval", "after"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "picture_stories.structure" in line)
    assert line.split()[1:4] == ["0.8750", "0.8750", "+0.0000"]


def test_the_config_of_an_evaluation_is_refused_with_the_form_of_now():
    with pytest.raises(InputError) as refused:
        run(["eval", "--config", "eval/config.yaml", "--out", "again"])
    said = str(refused.value)
    assert said.startswith("eval/config.yaml: mmie: ") and "`options:`" in said and "\n" not in said
    assert not Path("again").exists()


# ---- rewards by name ----

NAMED = {
    "format": {"weight": 1, "pattern": "alternating"},
    "picture_stories/text_plan": 1,
    "picture_stories/image_plan": 1,
    "picture_stories/image_sentence": 1,
}


@pytest.mark.parametrize("flags", [["--resume_from_checkpoint", "last"], ["--output_dir", "again"]])
@pytest.mark.parametrize("command", ["grpo", "preflight"])
def test_a_config_of_before_is_refused_with_the_form_of_now(command, flags):
    with pytest.raises(InputError) as refused:
        run([command, "--config", "grpo/config.yaml", *flags])
    said = str(refused.value)
    assert any(key in said for key in ("format_pattern", "text_plan")) and "rewards: {" in said and "\n" not in said
    assert not Path("again").exists() and not Path("grpo/checkpoint-3").exists()


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("format_pattern: think-vis", "rewards: {format: {weight: 1, pattern: think-vis}}"),
        ("judge: null", "delete this"),
        ("text_plan: 0.5", "rewards: {picture_stories/text_plan: 0.5}"),
        ("image_plan: 1", "rewards: {picture_stories/image_plan: 1}"),
        ("timeout: 60", "reward_guard: {timeout: 60}"),
        ("patience: 5", "reward_guard: {calls: 5}"),
        ("judge: {weights: {helpfulness: 2}, endpoint: {model: m}}", "rewards: {judge/helpfulness: 2}"),
        ("image: {weights: {clipscore: 1}, device: cpu}", "rewards: {image/clipscore: 1}"),
        ("consistency: {weights: {dino: 0.25}}", "rewards: {consistency/dino: 0.25}"),
        ("text: {weights: {rouge_l: 1}}", "rewards: {text/rouge_l: 1}"),
        ("remote: {url: http://gpu-2:8400, weights: {clipscore: 1}}", "rewards: {remote/clipscore: 1}"),
        ("insertion_stories: {choice: 3}", "rewards: {insertion_stories/choice: 3}"),
    ],
)
def test_a_reward_key_of_before_is_refused_with_the_form_of_now(before, now):
    with pytest.raises(InputError) as refused:
        build_reward(RewardSettings(yaml.safe_load(before)))
    said = str(refused.value)
    assert said.startswith(f"rewards.{before.partition(':')[0]}: ") and now in said and "\n" not in said


def test_a_run_of_before_goes_on_once_its_rewards_are_named():
    """By the rules of now, a corrected KL among them, and so not to the bit: its step is nearly the one of before."""
    settings = yaml.safe_load(Path("grpo/config.yaml").read_text())
    Path("named.yaml").write_text(yaml.safe_dump({**settings, "rewards": NAMED}))
    shutil.move("grpo/model", "old")
    run(["grpo", "--config", "named.yaml", "--resume_from_checkpoint", "last"])
    start, before, now = map(weights, ("grpo/checkpoint-2", "old", "grpo/model"))
    alike = torch.cosine_similarity(before - start, now - start, dim=0)
    assert (before - start).norm() > 0.1 and alike > 0.9, f"cosine {alike:.3f}"


def weights(folder: str) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in load(folder).model.parameters()])
