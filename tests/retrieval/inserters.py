"""Tiny inserters of the real classes, of random weights and offline."""

from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from limner.data.insertion.prompt import answer_text, messages
from limner.models.tokens.text_tokenizer import train_text_tokenizer
from limner.retrieval.strategies.inserter import Prompter
from limner.worlds.captions.scenes import WorldSize, make_world

SIZE = WorldSize(candidates=4)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's, without its default system message."""
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer() -> Any:
    tasks = make_world(0, 30, SIZE, "tokenizer")
    texts = [text for task in tasks for text in (messages(task)[1]["content"], answer_text(task.gold))]
    made = train_text_tokenizer(texts, 420)
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    made.chat_template = TEMPLATE
    return made


def text_model() -> tuple[Any, Prompter]:
    made = tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(made),
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
        **SMALL,
    )
    return Qwen2ForCausalLM(config), Prompter(made)


def vision_model() -> tuple[Any, Prompter]:
    made = tokenizer()
    torch.manual_seed(0)
    ids = {name: made.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(made),
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
            "bos_token_id": made.bos_token_id,
            "eos_token_id": made.eos_token_id,
            "pad_token_id": made.pad_token_id,
            **SMALL,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
    )
    pixels = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16})
    processor = PictureProcessor(pixels, made, None, chat_template=TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config), Prompter(processor)


class PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen's, without videos, whose part of transformers needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
