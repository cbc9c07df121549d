"""`limner publish`: the folder, its check, and the way to the Hub and back, over HTTP to a stand-in."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import limner
from limner.cli import run
from limner.configs.errors import InputError
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import save
from limner.models.checkpoints.hub import find_checkpoint
from limner.models.sampler.generation import Sampling
from limner.models.writing import Model
from limner.report.release.check import check_release, digest
from limner.report.release.publish import Request, release_files, write_release
from limner.worlds.picture_stories.scenes import outlines, story

from ...hub_stand_in import TOKEN, serve

ENTRY = {"dataset_id": "MMIE/MMIE", "task_id": "default", "value": 41.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_policy) -> Path:
    """What a warm-up and a GRPO run leave: settings, model, shards, held-out prompts, results."""
    root = tmp_path_factory.mktemp("runs")
    with ShardWriter(root / "shards", report={"documents": 3}) as writer:
        for number, outline in enumerate(outlines(0, 3)):
            writer.write(story(outline, f"story-{number}"))
    lines = [json.dumps({"prompt": f"Draw number {number}."}) for number in range(5)]
    (root / "heldout.jsonl").write_text("\n".join(lines))
    settings = {
        "warmup": {"model": "", "data": str(root / "shards"), "hub_token": "hf_secret"},
        "grpo": {
            "model": str(root / "warmup" / "model"),
            "prompts": "gone.jsonl",
            "heldout": {"prompts": str(root / "heldout.jsonl")},
            "algorithm": {"max_images": 3, "guidance": 1.0},
            "max_completion_length": 40,
            "temperature": 0.9,
            "output_dir": str(root / "grpo"),
        },
    }
    for seed, (name, values) in enumerate(settings.items()):
        save(make_policy(seed), root / name / "model")
        (root / name / "config.yaml").write_text(yaml.safe_dump(values))
    results = {"sampled": {"exact": {"value": 0.25, "n": 4}}, "eval_results": [ENTRY]}
    (root / "grpo" / "metrics.json").write_text(json.dumps(results))
    return root


@pytest.fixture(scope="module")
def release(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "dry"
    run(["publish", str(runs / "grpo" / "model"), "--repo", "me/tiny", "--dry-run", str(folder)])
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on localhost that the library talks to, with a cache and a token of its own."""
    with serve() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # CI is; this Hub is here
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_the_card_tells_the_whole_story(release, runs):
    text = (release / "README.md").read_text()
    assert text.index("### 1. warmup") < text.index("### 2. grpo")
    assert "| warmup | `shards` | trained on | 1 | train: interleaved 3 | documents 3 |" in text
    assert "no longer at hand" in text  # the prompts that are gone
    assert "sampled.exact | 0.25" in text and "MMIE/MMIE" in text
    assert text.count("### Sample ") == 4 and "Draw number 3." in text and "(samples/1.png)" in text
    assert yaml.safe_load((release / ".eval_results/mmie_default.yaml").read_text())[0]["value"] == 41.5
    assert yaml.safe_load((release / "training/2-grpo.yaml").read_text())["temperature"] == 0.9
    private = (b"hf_secret", str(runs).encode())
    assert not [path for path in release_files(release).values() if any(word in path.read_bytes() for word in private)]


def test_a_nul_in_a_sample_is_shown_and_stops_nothing(runs, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Draw \0 now."}))
    request = Request(str(runs / "grpo" / "model"), "me/tiny", samples=1, prompts=prompts)
    write_release(request, tmp_path / "dry")
    assert "Draw \ufffd now." in (tmp_path / "dry" / "README.md").read_text(encoding="utf-8")


def test_the_samples_are_the_models_own(release):
    model = limner.load(release, device="cpu")
    assert model.sampling == Sampling(max_new_tokens=40, temperature=0.9, max_images=3)
    assert model.about.examples == tuple(f"Draw number {number}." for number in range(3))
    answers = model.write_many([f"Draw number {number}." for number in range(4)])
    pictures = [image for answer in answers for image in answer.images]
    assert len(pictures) == len(list(release.glob("samples/*.png"))) > 0
    text = (release / "README.md").read_text()
    for answer in answers:
        assert answer.text.split("\n")[0].replace("<", "&lt;") in text or "<" in answer.text


def test_without_a_run_the_notes_say_how(runs, tmp_path, make_policy):
    save(make_policy(0), tmp_path / "alone")
    summary = write_release(Request(str(tmp_path / "alone"), "me/tiny"), tmp_path / "out")
    assert [
        note for note in ("--report RUN", "--report FILE", "--prompts", "--license") if note not in str(summary)
    ] == []
    assert "No evaluation was given" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(InputError, match="--prompts FILE"):
        write_release(Request(str(tmp_path / "alone"), "me/tiny", samples=2), tmp_path / "out2")


def test_only_an_earlier_release_is_replaced(release, runs, tmp_path):
    model = str(runs / "warmup" / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    for folder in (tmp_path / "mine", runs / "grpo" / "model", runs / "warmup" / "model"):
        with pytest.raises(InputError, match="name another folder"):
            write_release(Request(model, "me/tiny"), folder)
    assert (tmp_path / "mine/thesis.txt").exists() and not (runs / "grpo/model/README.md").exists()
    again = shutil.copytree(release, tmp_path / "again")
    write_release(Request(model, "me/tiny", samples=0), again)
    assert not (again / "training/2-grpo.yaml").exists() and not (again / "samples").exists()


FAULTS = {
    "model.bin": lambda f: (f / "model.bin").write_bytes(pickle.dumps({})),
    "vocab.json": lambda f: (f / "vocab.json").write_bytes(pickle.dumps({})),
    "notes.txt": lambda f: (f / "notes.txt").write_bytes(pickle.dumps({"a": 1})),
    "model.safetensors": lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04."),
    "1.png": lambda f: (f / "samples/1.png").write_bytes(b"<svg/>"),
    "links samples/1.png": lambda f: (f / "samples/1.png").unlink(),
    "README.md": lambda f: (f / "README.md").write_text("---\ntags: [\n---\n"),
    "pipeline_tag": lambda f: (f / "README.md").write_text("---\ntags: [a]\n---\n"),
    "mmie_default.yaml": lambda f: (f / ".eval_results/mmie_default.yaml").write_text("- value: 1\n"),
    "other weights": lambda f: other_weights(f / "model.safetensors"),
    "generation_config.json": lambda f: (f / "generation_config.json").write_text('{"do_sample": false}'),
}


def other_weights(path: Path) -> None:
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 2.0**-20
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(release, tmp_path, fault):
    model = limner.load(release, device="cpu")
    folder = shutil.copytree(release, tmp_path / "release")
    FAULTS[fault](folder)
    with pytest.raises(InputError, match=fault):
        check_release(folder, digest(model.policy), model.sampling)


def test_to_the_hub_and_back(hub, runs, release, tmp_path, capsys):
    publish = ["publish", str(runs / "grpo" / "model"), "--repo", "me/tiny", "--license", "mit"]
    run(publish)
    repository = hub.repositories["me/tiny"]
    assert f"{hub.url}/me/tiny/commit/{repository.commits[-1].sha}" in capsys.readouterr().out
    assert len(repository.commits) == 2 and not repository.private  # the Hub's own first one, and ours
    sent = repository.commits[-1].files
    assert {".gitattributes", *release_files(release)} == set(sent)
    assert "license: mit" in sent["README.md"].decode()

    from limner import load

    model = load("me/tiny", device="cpu")
    model.write("How do I fold a crane?").save(tmp_path / "crane.html")
    assert "<img" in (tmp_path / "crane.html").read_text() or model.write("How do I fold a crane?").images == []
    assert digest(model.policy) == digest(limner.load(release, device="cpu").policy)
    fetched = find_checkpoint("me/tiny")
    assert {path.suffix for path in fetched.rglob("*") if path.is_file()} == {".safetensors", ".json"}

    # Again, with fewer files: what an older release left is gone, others' files stay, known weights are not sent again.
    repository.commits[-1].files |= {"model-00001-of-00002.safetensors": b"old", "assets/logo.svg": b"<svg/>"}
    hub.requests.clear()
    run([*publish, "--samples", "0"])
    sent = repository.commits[-1].files
    assert "assets/logo.svg" in sent and not any(name.startswith(("model-", "samples/")) for name in sent)
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_a_private_repository(hub, runs):
    publish = ["publish", str(runs / "warmup" / "model"), "--repo", "me/secret", "--samples", "0"]
    run([*publish, "--private"])
    assert hub.repositories["me/secret"].private
    hub.repositories["me/secret"].private = False
    with pytest.raises(InputError, match="exists and is public"):
        run([*publish, "--private"])
    assert len(hub.repositories["me/secret"].commits) == 2


def test_a_hub_that_refuses(hub, monkeypatch, runs, tmp_path):
    publish = ["publish", str(runs / "warmup" / "model"), "--repo", "me/tiny"]
    with pytest.raises(InputError, match="me/none: neither a folder here"):
        limner.load("me/none")
    run([*publish, "--samples", "0"])
    del hub.repositories["me/tiny"].commits[-1].files["limner.json"]
    with pytest.raises(InputError, match="me/tiny: no limner.json"):
        limner.load("me/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="me/other: the Hub does not let you write there"):
        run(["publish", str(runs / "warmup" / "model"), "--repo", "me/other"])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="hf auth login"):
        run(publish)
    assert len(hub.repositories["me/tiny"].commits) == 2 and "me/other" not in hub.repositories


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--repo", "tiny"], "ORG/NAME"),
        (["--repo", "me/ti ny"], "--repo me/ti ny"),
        (["--repo", "me/t", "--base", "org/base"], "--license"),
        (["--repo", "me/t", "--license-link", "https://x"], "--license"),
        (["--repo", "me/t", "--samples", "-1"], "--samples"),
        (["--repo", "me/t", "--report", "nowhere"], "nowhere"),
        ([], "--repo"),
    ],
)
def test_faults_of_the_command_line(runs, tmp_path, flags, words):
    with pytest.raises(InputError, match=words):
        run(["publish", str(runs / "warmup" / "model"), "--dry-run", str(tmp_path / "out"), *flags])
    assert not list(tmp_path.iterdir())


PLAIN = """
import importlib.util, sys
assert importlib.util.find_spec("limner") is None
import torch
from diffusers import VQModel
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
images = VQModel.from_pretrained(folder, subfolder="image_tokenizer", use_safetensors=True)
ids = tokenizer("Draw a red circle.", return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    logits = model(**ids).logits
text = model.generate(**ids, max_new_tokens=4)
codebook = images.quantize.embedding.weight.detach()
torch.save({"ids": ids["input_ids"], "logits": logits, "codebook": codebook}, sys.argv[2])
assert text.shape[1] > ids["input_ids"].shape[1] and model.generation_config.temperature == 0.9
"""
THREE_LINES = """
import sys
import limner
assert "torch" not in sys.modules  # an import that costs nothing
from limner import load
model = load("me/tiny")
model.write("How do I fold a crane?").save(sys.argv[1])
"""


@pytest.mark.slow
def test_loads_where_limner_cannot_be_imported(release, tmp_path):
    # A folder on PYTHONPATH is searched, but its .pth files, the editable install's among them, are not followed.
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(libraries), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-S", "-c", PLAIN, str(release), str(tmp_path / "plain.pt")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain = torch.load(tmp_path / "plain.pt", weights_only=True)
    policy = limner.load(release, device="cpu").policy
    with torch.no_grad():
        logits = policy.model(plain["ids"]).logits
    torch.testing.assert_close(plain["logits"], logits)
    assert plain["ids"][0].tolist() == policy.processor.text_ids("Draw a red circle.")
    assert torch.equal(plain["codebook"], policy.processor.image_tokenizer.codebook())


@pytest.mark.slow
def test_three_lines_by_name(release, tmp_path):
    """A process that knows the Hub by HF_ENDPOINT alone."""
    with serve() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        publish = [sys.executable, "-m", "limner.cli", "publish", str(release), "--repo", "me/tiny", "--samples", "0"]
        for command in (publish, [sys.executable, "-c", THREE_LINES, str(tmp_path / "crane.html")]):
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert "fold a crane" in (tmp_path / "crane.html").read_text()
    assert Model(limner.load(release, device="cpu").policy).sampling.max_images == 3
