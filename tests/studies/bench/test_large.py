"""The benchmark of a large model, at its smallest: its checks, its phases, and what `plan` said of its memory."""

import json
from dataclasses import replace

import pytest

from limner.configs.errors import InputError
from limner.studies.bench.large import LargeConfig, main, run

SMALLEST = [
    *("--steps", "2", "--rollouts", "8", "--group_size", "4", "--completion_tokens", "60", "--vocabulary", "2048"),
    *("--model.text_vocabulary", "512", "--model.hidden_size", "32", "--model.intermediate_size", "64"),
    *("--model.layers", "1", "--model.heads", "2", "--model.image_tokenizer.image_size", "32"),
    *("--model.image_tokenizer.patch", "8", "--model.image_tokenizer.channels", "[16]"),
    *("--model.image_tokenizer.codes", "64"),
]


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False])
def test_the_smallest_benchmark(bf16, tmp_path, capsys):
    main([*SMALLEST, "--bf16", str(bf16).lower(), "--json", str(tmp_path / "bench.json")])
    figures = json.loads((tmp_path / "bench.json").read_text())
    for modality in ("text", "image"):
        check = figures["preflight"][f"replayed log-probs, {modality}"]
        assert check["passed"] and f"bounds of {'bfloat16' if bf16 else 'float32'}" in check["text"]
        assert figures["replay_gap"][modality] < (0.5 if bf16 else 1e-4)
    for name in ("reward even_codes", "process rewards", "pictures are drawn", "reference equals policy, image"):
        assert figures["preflight"][name]["passed"], figures["preflight"][name]["text"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in figures["phase_seconds"].values())
    assert min(figures["completion_tokens"]) > 8 * 16, "a picture has 16 codes"
    assert figures["planned_bytes"]["rollout"] > 0 and figures["planned_bytes"]["update"] > 0
    printed = capsys.readouterr().out
    assert "update: forward, backward" in printed and ("bf16, " if bf16 else "fp32, ") in printed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"group_size": 3}, "rollouts: 16 is no multiple of group_size"),
        ({"vocabulary": 1000}, "vocabulary: 1000; the tokenizer alone has 3072"),
        ({"completion_tokens": 200}, "completion_tokens: 200 leave no room for a picture of 256 codes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        run(replace(LargeConfig(), **changes))


def test_the_default_has_a_billion_parameters_and_256_codes_a_picture():
    config = LargeConfig()
    model, sizes = config.model, config.model.image_tokenizer
    layer = 4 * model.hidden_size**2 + 3 * model.hidden_size * model.intermediate_size
    parameters = model.layers * layer + (config.vocabulary + sizes.codes) * model.hidden_size
    assert 0.95e9 < parameters < 1.05e9 and (sizes.image_size // sizes.patch) ** 2 == 256
