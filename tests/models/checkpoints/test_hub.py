"""Models by name: their device and dtype, and back to a folder. The Hub itself has other tests."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import save
from limner.models.checkpoints.hub import load_model, save_model

from ..families.tiny import FAMILIES


@pytest.mark.parametrize("family", ["llama", "janus"])
def test_the_dtype_is_the_language_models_alone(family, tmp_path):
    save(FAMILIES[family](), tmp_path)
    wanted = {
        "auto": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        torch.bfloat16: torch.bfloat16,
    }
    for name, dtype in wanted.items():
        model = load_model(tmp_path, "cpu", dtype=name)
        assert {parameter.dtype for parameter in model.policy.model.parameters()} == {dtype}
        assert {p.dtype for p in model.policy.processor.image_tokenizer.model.parameters()} == {torch.float32}
        answer = model.write("Draw: ", max_new_tokens=60, begin_with_image=True)
        assert answer.images and model.log_probs(answer).total < 0
    save_model(model, tmp_path / "half")
    assert load_model(tmp_path / "half", "cpu").policy.model.dtype == torch.bfloat16


def test_a_model_is_saved_with_its_settings(make_policy, tmp_path):
    save(make_policy(0), tmp_path / "a")
    model = load_model(tmp_path / "a", device=torch.device("cpu"))
    model.sampling = replace(model.sampling, temperature=0.5)
    save_model(model, tmp_path / "b")
    save_model(model, str(tmp_path / "b"))  # a checkpoint is replaced
    again = load_model(tmp_path / "b", "cpu")
    assert again.sampling == model.sampling
    assert again.write("x").document.to_json() == model.write("x").document.to_json()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else than a checkpoint"):
        save_model(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_wrong_arguments_get_a_sentence(make_policy, tmp_path):
    save(make_policy(0), tmp_path / "a")
    for give, words in (
        (lambda: load_model(3), "not an int"),  # type: ignore[arg-type]
        (lambda: load_model(tmp_path / "a", dtype="fp8"), "dtype: 'fp8' is none of auto, float32"),
        (lambda: load_model(tmp_path / "a", dtype=torch.int8), "dtype: torch.int8 is none"),
        (lambda: load_model(tmp_path / "a", dtype=None), "dtype: None is none"),  # type: ignore[arg-type]
        (lambda: load_model(tmp_path / "a", device="gpu"), "device: 'gpu' cannot be used here"),
        (lambda: load_model(tmp_path / "a", device="cuda:99"), "device: 'cuda:99' cannot be used here"),
        (lambda: load_model(tmp_path / "a", device=["cpu"]), "device: "),  # type: ignore[arg-type]
        (lambda: save_model("a", Path("b")), "give a model"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=words):
            give()
