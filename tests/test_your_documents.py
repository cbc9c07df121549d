"""The commands of docs/your_documents.md, in their order, on a few records and with a model of no size."""

import json
import re
import shlex
from pathlib import Path

import pytest

from limner.cli import run

from .data_files import noisy, put, put_lines

PAGE = Path(__file__).parents[1] / "docs" / "your_documents.md"
COMMANDS = re.findall(r"^    limner (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
SMALL = {
    "warmup": "--max_steps 2 --pack_length 512 --heldout_batches 1 --new_model.hidden_size 32 --new_model.layers 1 "
    "--new_model.intermediate_size 64 --new_model.text_vocabulary 512 --new_model.image_tokenizer.image_size 32 "
    "--new_model.image_tokenizer.autoencoder_steps 2 --new_model.image_tokenizer.quantised_steps 2 "
    "--new_model.image_tokenizer.decoder_steps 2 --report_to none --disable_tqdm true",
    "generate": "--max-new-tokens 8",
    "grpo": "--max_steps 1 --max_completion_length 24 --num_generations 2 --per_device_train_batch_size 2 "
    "--use_cpu true --steps_per_generation 1 --preflight false --report_to none --disable_tqdm true --bf16 false "
    "--algorithm.replay.pack_length 512 --gradient_accumulation_steps 1 --activation_checkpointing false",
}
"""Flags that make a command small."""


def words_of(command: str) -> list[str]:
    """As a shell would, with what stands in brackets as one word."""
    bracketed = re.sub(r" (\[.*?\]|\{.*?\})(?= --|$)", lambda match: " " + shlex.quote(match[1]), command)
    return shlex.split(bracketed)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        put(
            tmp_path / f"pages/p{number}.md",
            f"# Page {number}\n\nFold it {number} times.\n\n![a](p{number}.jpg)\n\nDone.",
        )
        put(tmp_path / f"pages/p{number}.jpg", noisy())
        put(tmp_path / f"photos/{number}.jpg", noisy())
        put(tmp_path / f"pictures/{number}.jpg", noisy())
        put(tmp_path / f"pictures/{number}.txt", f"a kite {number}")
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A kite."}]
    put_lines(tmp_path / "chats.jsonl", *[{"id": n, "image": f"{n}.jpg", "conversations": talk} for n in range(6)])
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(folder):
    assert len(COMMANDS) == 10
    for command in COMMANDS:
        words = words_of(command)
        run([*words, *shlex.split(SMALL.get(words[0], ""))])
    assert (folder / "answer.html").is_file() and (folder / "runs/grpo/model").is_dir()
    assert json.loads((folder / "shards/pages-coded/index.json").read_text())["fingerprint"]
