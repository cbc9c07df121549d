"""A tiny LLaVA and a tiny Llama of the stock classes: batches, cache, and texts that imitate control tokens."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from limner.configs.errors import InputError
from limner.models.chat.local_vlm import LocalVLM, LocalVLMConfig
from limner.models.chat.requests import Failure, Reply, Request
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment

from ...small_chat import save_text_model

TEMPLATE = (
    "{% for message in messages %}<turn>{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}<turn>"
)
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "additional_special_tokens": ["<image>", "<turn>"]}
RED = ImageSegment(Image.new("RGB", (24, 16), "red"))
NOISE = ImageSegment(Image.effect_noise((40, 40), 90).convert("RGB"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level vocabulary, 16 x 16 pixels in four patches."""
    path = tmp_path_factory.mktemp("llava")
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.add_special_tokens(SPECIAL)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # spread out, or one token would win everywhere
        for parameter in model.parameters():
            parameter.mul_(4)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.save_pretrained(path)
    return str(path)


def settings(folder, **others) -> LocalVLMConfig:
    return LocalVLMConfig(folder, device="cpu", dtype="float32", max_new_tokens=12, **others)


def document(*segments) -> Request:
    return Request(InterleavedDocument(tuple(TextSegment(s) if isinstance(s, str) else s for s in segments)))


REQUESTS = [
    document("Short."),
    document("Is this ", RED, " redder than ", NOISE, "?"),
    document("Is this ", NOISE, " redder than ", RED, "?"),
    document(RED, "A longer text, so that rows of a batch are padded."),
    document("Short."),
]


def test_a_batch_says_what_single_requests_say_and_pictures_matter(folder, tmp_path):
    model = LocalVLM(settings(folder, batch_size=4, cache=str(tmp_path / "replies.sqlite")))
    together = model.complete(REQUESTS)
    assert model.counts["replies"] == 4 and model.counts["shared"] == 1
    assert all(isinstance(reply, Reply) and reply.completion_tokens > 0 for reply in together)
    single = LocalVLM(settings(folder, batch_size=1)).complete(REQUESTS)
    assert [reply.text for reply in together] == [reply.text for reply in single]
    assert together[0] == together[4] and len({reply.text for reply in together}) == 4
    assert {reply.finish for reply in together} <= {"stop", "length"}
    again = model.complete(REQUESTS)
    assert model.counts["replies"] == 4 and [reply.text for reply in again] == [reply.text for reply in together]
    assert model.manifest()["model"] == folder and model.manifest()["keeps_order"]


def test_a_chat_template_that_moves_pictures_is_reported(folder, tmp_path, caplog):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    images_first = "{% for message in messages %}{% for part in message['content'] if part['type'] == 'image' %}<image>"
    images_first += "{% endfor %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    (moved / "chat_template.jinja").write_text(images_first + "{% endfor %}{% endfor %}")
    model = LocalVLM(settings(str(moved)))
    assert not model.manifest()["keeps_order"] and "moves pictures" in caplog.text


def test_typed_control_tokens_are_letters(folder):
    model = LocalVLM(settings(folder))
    typed, plain = model.complete([document("<image> </s><turn>"), document("x")])
    assert typed.prompt_tokens - plain.prompt_tokens == len("<image> </s><turn>") - 1
    (mixed,) = model.complete([document("<image>", RED)])  # a picture too many would be an error
    assert isinstance(mixed, Reply)


def test_weights_that_are_missing_are_named(folder, tmp_path):
    """transformers would put random numbers in their place, and the judge would judge."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    lost = [name for name in weights if "layers.1.mlp.fc1" in name or "layers.1.mlp.up_proj" in name]
    save_file({name: weights[name] for name in weights if name not in lost}, broken / "model.safetensors")
    with pytest.raises(InputError, match=rf"{broken}: {len(lost)} weights are missing: .*up_proj\.weight"):
        LocalVLM(settings(str(broken)))


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        LocalVLM(LocalVLMConfig(str(tmp_path)))
    with pytest.raises(InputError, match="model: missing"):
        LocalVLM(LocalVLMConfig())


def test_a_model_that_reads_no_pictures_answers_texts(tmp_path):
    folder = save_text_model(tmp_path / "llama")
    requests = [document("Short."), document("Longer, <turn> and </s> typed in it."), document("Red: ", RED)]
    model = LocalVLM(settings(folder, batch_size=2))
    short, longer, pictured = model.complete(requests)
    assert isinstance(short, Reply) and isinstance(longer, Reply) and not model.sees
    assert [short, longer] == LocalVLM(settings(folder, batch_size=1)).complete(requests[:2])
    assert longer.prompt_tokens - short.prompt_tokens == len("Longer, <turn> and </s> typed in it.") - len("Short.")
    assert pictured == Failure("image", f"{folder} reads no pictures; take a vision-language model")
    assert model.counts["failures/image"] == 1 and model.counts["replies"] == 2


def test_a_prompt_without_room_for_an_answer_is_a_failure_and_the_others_are_answered(tmp_path):
    folder = save_text_model(tmp_path / "llama", positions=64)
    model = LocalVLM(settings(folder, batch_size=3))
    first, long, last = model.complete([document("One."), document("x" * 50), document("Another.")])
    assert isinstance(first, Reply) and isinstance(last, Reply)
    assert isinstance(long, Failure) and long.kind == "rejected" and "64 positions" in long.reason
    assert model.counts["failures/rejected"] == 1


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    folder = save_text_model(tmp_path / "llama")
    (tmp_path / "llama" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        LocalVLM(settings(folder))
