"""Configurations of absurd sizes are refused by their weight files' size, before a model is built."""

import json
import shutil
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import load
from limner.models.sizes import check_sizes

MODEL = Path(__file__).resolve().parents[1] / "files_of_0_1" / "grpo" / "model"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "num_hidden_layers", 10**7),
        ("config.json", "hidden_size", 10**6),
        ("image_tokenizer/config.json", "num_vq_embeddings", 10**9),
        ("image_tokenizer/config.json", "block_out_channels", [32] * 100_000),
        ("image_tokenizer/image_tokenizer.json", "image_size", 10**9),
    ],
)
def test_a_size_that_no_weight_file_bears_out_is_named(tmp_path, file, key, value):
    model = shutil.copytree(MODEL, tmp_path / "model")
    settings = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(InputError, match=f"{model / file}: {key}: "):
        load(model)


def test_words_of_a_vocabulary_are_no_sizes(tmp_path):
    """Chameleon's and Emu3's configurations hold every token by its text: `layers`, `size`, `depth`."""
    model = shutil.copytree(MODEL, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    words = {"layers": 15_000, "depth": 65_535, "size": 10**6}
    tables = {"vocabulary_map": words, "label2id": words}
    (model / "config.json").write_text(json.dumps({**settings, **tables, "text_config": tables}))
    check_sizes(model)
