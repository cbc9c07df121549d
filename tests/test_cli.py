"""The command line as a user meets it: exit codes, one clear line for each fault, no traceback."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from limner.configs.commands import COMMANDS
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import save
from limner.worlds.picture_stories.scenes import SCENES, outlines, story


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_policy) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    save(make_policy(0), folder)
    return folder


@pytest.fixture
def shards(tmp_path) -> Path:
    with ShardWriter(tmp_path / "shards") as writer:
        for number, outline in enumerate(outlines(0, 6)):
            writer.write(story(outline, f"story-{number}"), "heldout" if number == 5 else "train")
    return tmp_path / "shards"


def fails(result, *words: str) -> None:
    code, _, err = result
    assert code == 2
    assert err.startswith("limner: error: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, f"{word!r} is not in {err!r}"


def test_help_and_unknown_command(limner):
    assert limner("--help")[0] == 0
    assert "usage: limner" in limner()[1]
    fails(limner("trian"), "trian", "warmup")
    fails(limner("genrate"), "genrate", "did you mean generate?")
    assert "bench grpo" in limner("bench", "-h")[1] and "data preview" not in limner("bench", "-h")[1]
    fails(limner("bench"), "limner bench: say which", "known: grpo")
    fails(limner("data", "preveiw"), "limner data", "did you mean preview?")


@pytest.mark.parametrize("command", ["guard", "qualify-judge", "serve-rewards", "preflight", "eval"])
def test_help_of_a_command_says_what_it_does(limner, command):
    code, said, _ = limner(command, "--help")
    assert code == 0 and COMMANDS[command].does.lower() in " ".join(said.lower().split())


def test_generate_writes_each_form(limner, checkpoint, tmp_path):
    for suffix in ("html", "md", "json"):
        out = tmp_path / f"answer.{suffix}"
        code, said, _ = limner(
            "generate", "--model", checkpoint, "--prompt", "A <boi> story", "--out", out, "--max-new-tokens", 60
        )
        assert code == 0 and str(out) in said and out.is_file()
        following = f"next: open {out} in a browser" if suffix == "html" else f"next: limner serve --model {checkpoint}"
        assert said.endswith(f"{following}\n")
    plain = ("generate", "--model", checkpoint, "--prompt", "x", "--out", tmp_path / "b.md", "--max-new-tokens", 30)
    code, said, err = limner(*plain, "--guidance", 2, "--max_images", 0)
    assert "Loading" not in err
    assert code == 0 and "0 pictures; " in said and "word the prompt" in said
    document = json.loads((tmp_path / "answer.json").read_text())
    assert document["segments"][0] == {"type": "text", "text": "A <boi> story", "trainable": False}


def test_generate_faults(limner, checkpoint, tmp_path):
    flags = ("generate", "--model", checkpoint, "--prompt", "x", "--out")
    fails(limner(*flags, tmp_path / "answer.pdf"), "answer.pdf", ".html")
    fails(limner("generate", "--model", tmp_path, "--prompt", "x", "--out", "a.md"), str(tmp_path), "limner.json")
    fails(limner(*flags, tmp_path / "a.md", "--temperature", "-1"), "temperature")
    missing = limner(*flags, tmp_path / "a.md", "--image", tmp_path / "none.png")
    fails(missing, "none.png: cannot be read: No such file")
    assert missing[2].count("none.png") == 1
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    fails(limner(*flags, tmp_path / "a.md", "--image", tmp_path / "broken.png"), "broken.png")
    fails(limner("generate", "--prompt", "x"), "--model")
    fails(limner("generate", "--promt", "x", "--out", "a.md"), "--promt: unknown option; did you mean --prompt?")
    fails(limner("data", "from", "chat", "x.jsonl", "--zzz"), "--zzz: unknown option")


def test_checkpoint_of_another_family(limner, checkpoint, tmp_path):
    import shutil

    other = shutil.copytree(checkpoint, tmp_path / "other")
    settings = json.loads((other / "limner.json").read_text())
    (other / "limner.json").write_text(json.dumps({**settings, "family": "two_heads_of_state"}))
    fails(
        limner("generate", "--model", other, "--prompt", "x", "--out", tmp_path / "a.md"),
        "two_heads_of_state",
        "shared_vocabulary",
    )


def test_settings_faults(limner, tmp_path):
    fails(limner("grpo", "--config", "grpo/tiny"), "model: missing", "--model DIR")
    fails(limner("grpo", "--config", "grpo/tiny", "--modle", "x"), "modle")
    fails(limner("grpo", "--config", "grpo/tinny"), "grpo/tiny")
    fails(limner("grpo", "--config", "grpo/tiny", "--algorithm.epsilom.text", "1"), "epsilom", "epsilon")
    fails(limner("grpo", "--config", "grpo/tiny", "--top_p", "0.9", "--model", "x"), "prompts: missing")
    config = tmp_path / "mine.yaml"
    config.write_text("# mine\nrewards: {text_plam: 1}\n")
    fails(limner("grpo", "--config", config), "mine.yaml", "text_plam", "text_plan")
    config.write_text("# mine\nlearning_rate: fast\n")
    fails(limner("warmup", "--config", config), "learning_rate", "fast")
    fails(
        limner("warmup", "--config", "warmup/documents", "--data", tmp_path / "none", "--output_dir", tmp_path / "o"),
        "none",
    )


def test_prompts_faults_name_file_and_line(limner, checkpoint, tmp_path):
    prompts = tmp_path / "p.jsonl"

    def fault(*flags: str) -> str:
        words = ("--config", "grpo/tiny", "--algorithm.replay.sources", "[]", "--output_dir", tmp_path / "run")
        code, _, err = limner("preflight", *words, "--model", checkpoint, "--prompts", prompts, *flags)
        assert code == 2 and "Traceback" not in err
        return err.splitlines()[-1].removeprefix(f"limner: error: {prompts}")

    assert fault() == ": cannot be read: No such file or directory"
    prompts.write_text('{"outline": ["small red circle top left"]}\n' * 3)
    assert fault().startswith(": 3 prompts, and a batch of rollouts takes 16")
    prompts.write_text('{"question": "?"}\n')
    assert fault().startswith(":1: ") and '{"prompt": "text"}' in fault()
    prompts.write_text('\n{"prompt": "A story"}\n')
    small = ("--per_device_train_batch_size", "2", "--num_generations", "2", "--steps_per_generation", "1")
    said = fault(*small, "--max_completion_length", "8")
    assert "p.jsonl:2" in said and "outline" in said
    assert not (tmp_path / "run").exists(), "a check leaves no folder"


def test_truncated_shard(limner, shards):
    assert limner("data", "validate", shards)[0] == 0
    shard = next(shards.glob("train-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-4000])
    fails(limner("data", "validate", shards), shard.name)
    assert limner("data", "validate", "nowhere")[2].count("nowhere") == 1


def test_markdown_folder_to_preview(limner, tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    picture = json.loads(json.dumps(str(source / "red.png")))
    from limner.worlds.picture_stories.scenes import draw_scene

    draw_scene(SCENES[0]).save(picture)
    (source / "a.md").write_text("# A\n\nText.\n\n![red](red.png)\n\nMore. ![gone](gone.png)\n")
    code, said, _ = limner("data", "from-markdown", source, "--out", tmp_path / "out")
    assert code == 0 and said.startswith("1 document, 1 image") and "gone.png" in said and "a.md:7" in said
    assert said.endswith(f"wrote {tmp_path / 'out'}: train 1\nnext: limner data preview {tmp_path / 'out'}\n")
    code, said, _ = limner("data", "validate", tmp_path / "out")
    assert code == 0 and said.endswith(f"next: limner warmup --config warmup/documents --data {tmp_path / 'out'}\n")
    code, said, _ = limner("data", "preview", tmp_path / "out", "--out", tmp_path / "page.html")
    assert code == 0 and said.endswith(f"next: open {tmp_path / 'page.html'} in a browser\n")
    assert "<img" in (tmp_path / "page.html").read_text()
    fails(limner("data", "from-markdown", source, "--out", tmp_path / "out"), str(tmp_path / "out"), "--overwrite")
    fails(limner("data", "from-markdown", tmp_path / "nowhere", "--out", tmp_path / "o2"), "nowhere")


def test_demo_faults(limner, tmp_path, checkpoint):
    fails(limner("demo", "--arms", "grpo_proces", "--out", tmp_path), "grpo_proces")
    for flag, words in {
        "--grpo.learning_rte": ("learning_rte", "learning_rate"),
        "--warmup.pack_lenth": ("pack_lenth", "pack_length"),
        "--grpo.max_steps": ("grpo.max_steps", "leave it out"),
    }.items():
        fails(limner("demo", flag, "1", "--out", tmp_path / "o"), *words)
    assert not (tmp_path / "o").exists()
    fails(limner("demo", "--score", checkpoint), "--prompts")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"outline": ["small red circle top left"]}\n{"outline": ["small pink circle top left"]}\n')
    fails(limner("demo", "--score", checkpoint, "--prompts", bad), "bad.jsonl:2", "pink")
    bad.write_text("{\n")
    fails(limner("demo", "--score", checkpoint, "--prompts", bad), "bad.jsonl:1", "not JSON")


def test_score_prints_figures(limner, tmp_path, checkpoint):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"outline": ["small red circle top left", "big blue square bottom right"]}\n' * 3)
    code, said, _ = limner("demo", "--score", checkpoint, "--prompts", prompts)
    figures = json.loads(said)
    assert code == 0 and figures["sampled"]["story_exact"]["n"] == 3 and set(figures) == {"sampled", "greedy"}


EVERY_HELP = """
import contextlib, io, sys
from limner.cli import run
from limner.configs.commands import COMMANDS

run(["--version"])
for words in ([], ["bench"], ["data"], ["plan", "--stage", "warmup"], *(name.split() for name in COMMANDS)):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run([*words, "--help"])
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    assert code == 0 and said.getvalue().startswith("usage: limner"), words
    assert words[-1:] in ([], ["bench"], ["data"], ["validate"]) or "\\n  --" in said.getvalue(), words
heavy = {"torch", "transformers", "trl", "diffusers", "numpy", "PIL"} & {*sys.modules}
assert not heavy, heavy
"""


@pytest.mark.slow
def test_help_and_version_import_no_library():
    said = subprocess.run([sys.executable, "-c", EVERY_HELP], check=True, capture_output=True, text=True).stdout
    assert said == f"limner {version('limner')}\n"


@pytest.mark.slow
def test_an_entry_under_torchrun_says_it_in_one_line_too():
    command = [sys.executable, "-m", "limner.train.grpo", "--config", "grpo/tiny"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "limner: error: model: missing" in result.stderr
    assert "Traceback" not in result.stderr
