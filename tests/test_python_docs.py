"""docs/python.md: every example runs, in order, in one namespace, beside a model and a picture of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import limner
from limner.data.shards import read_documents
from limner.models.checkpoints.folder import save
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"


def test_every_example_runs(make_policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(make_policy(0), tmp_path / "runs/demo/model")
    model = limner.load("runs/demo/model")
    with torch.no_grad():  # pictures of an untrained decoder are all but one grey, and no reward of theirs varies
        model.policy.processor.image_tokenizer.model.decoder.conv_out.weight.mul_(50)
    limner.save(model, "runs/demo/model")
    draw_scene(SCENES[0]).save("photo.png")
    text = PAGE.read_text(encoding="utf-8")
    names: dict = {}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, block.start()) + 1
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)

    said = capsys.readouterr().out
    assert "sampling: temperature: expected float, got 'hot'" in said
    assert "{'train': {'interleaved': 9}, 'heldout': {'interleaved': 1}}" in said
    assert len(list(read_documents("runs/mine", "train", shuffle_seed=None))) == 9
    assert (tmp_path / "answer.html").is_file() and (tmp_path / "warm.html").is_file()
    assert {"config.yaml", "model"} <= {path.name for path in (tmp_path / "runs/warm").iterdir()}
    assert limner.load("runs/my_loop").policy.family == names["policy"].family


def test_the_package_itself_is_cheap():
    """`import limner` loads nothing heavy, and says what there is."""
    heavy = (
        "{*map(lambda name: name.partition('.')[0], sys.modules)} & {'torch', 'transformers', 'numpy', 'PIL', 'yaml'}"
    )
    lines = f"import sys, limner; print(sorted({heavy}), sorted({{*limner.__all__}} - {{*dir(limner)}}))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_without_spinning_unless_told_otherwise(given, found):
    """Beside another process on a core, spinning threads took tens of times as long."""
    said = "import os, limner; print(os.environ['OMP_WAIT_POLICY'])"
    there = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True, env=there)
    assert done.stdout.strip() == found


@pytest.mark.parametrize("name", limner.__all__)
def test_every_public_name_is_there(name):
    assert getattr(limner, name).__name__.removesuffix("_model") == name
    assert getattr(limner, name).__doc__
