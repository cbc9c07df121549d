"""Family "shared vocabulary": image codes are ids of the one LM head of any `AutoModelForCausalLM`.

The joint id of image code c, V + c, is the model's own id: V is the size of the text tokenizer. Liquid is built like
this, and so is the embedded tiny Llama. Where the codes are among the tokenizer's own ids (Chameleon, Emu3) the
processor knows which, and joint ids are translated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import Cache

from ...configs.errors import InputError
from ...configs.registry import register
from ..attention import decoded
from ..pictures.contract import ImageTokenizer
from ..pictures.vqgan import open_image_tokenizer
from ..policy import UnifiedPolicy
from ..tokens.processing import Processor
from ..tokens.template import Template
from .upstream import read_model, read_tokenizer

LIQUID = Template(
    start="<bos><start_of_turn>user\n",
    answer="<end_of_turn>\n<start_of_turn>model\n",
    unconditional="<bos><unconditional>",
)
"""Of Liquid (FoundationVision/Liquid), whose tokenizer is Gemma's with <boi>, <eoi> and <unconditional> in places that
Gemma leaves unused. Its chats have Gemma's turns; its text-to-image prompts are `<bos>TEXT Generate an image based on
this description.<boi>`, and `<bos><unconditional><boi>` without the text. Read from public forks of its scripts (2025),
not from a released checkpoint."""
LIQUID_CONTROLS = (LIQUID.boi, LIQUID.eoi, "<unconditional>")
PLACE = "PROMPT"
"""Marks where a prompt stands in a rendered chat template."""


@register("family", "shared_vocabulary")
class SharedVocabularyPolicy(UnifiedPolicy):
    """Any causal language model with picture codes behind its vocabulary: the embedded model, Liquid."""

    family = "shared_vocabulary"

    def __init__(self, model: PreTrainedModel, processor: Processor):
        super().__init__(model, processor)
        size = self.vocabulary.text_size
        own_ids = processor.code_ids or range(size, size + self.vocabulary.image_codes)
        first, last = min(own_ids), max(own_ids)
        if last - first + 1 != len(set(own_ids)) or len(own_ids) != self.vocabulary.image_codes:
            raise InputError(f"{self.vocabulary.image_codes} image codes, and the ids {first} to {last} are not theirs")
        self.codes = slice(first, last + 1)
        """The model's own ids that are codes."""
        self._own_id = torch.tensor(own_ids)
        self._in_order = list(own_ids) == sorted(own_ids)
        needed = max(size, last + 1)
        rows = _weight(model.get_output_embeddings()).shape[0]
        if rows < needed:
            raise InputError(
                f"the language model has {rows} ids, its tokenizers need {needed} "
                f"({size} text, {self.vocabulary.image_codes} image codes)"
            )

    @classmethod
    def create(cls, config: PretrainedConfig, processor: Processor) -> SharedVocabularyPolicy:
        """A new model of random weights whose vocabulary fits the processor."""
        config.vocab_size = processor.vocabulary.text_size + processor.vocabulary.image_codes
        _name_controls(config, processor)
        model = AutoModelForCausalLM.from_config(config)
        policy = cls(model, processor)
        policy.start_from_codebook()
        return policy

    @classmethod
    def from_upstream(cls, directory: Path, *, image_tokenizer: Path | None = None) -> SharedVocabularyPolicy:
        """Liquid, or any causal language model that is to become one, and the image tokenizer it goes with.

        A tokenizer that knows `<boi>`, `<eoi>` and `<unconditional>` is taken as Liquid's: codes begin behind it. Any
        other model is extended. Raises InputError where a part is missing.
        """
        if image_tokenizer is None:
            raise InputError(f"{directory}: a language model alone; name its image tokenizer (--image-tokenizer)")
        model, pictures = read_model(cls.model_class, directory), open_image_tokenizer(image_tokenizer)
        tokenizer = read_tokenizer(directory)
        if not {*LIQUID_CONTROLS} <= tokenizer.get_vocab().keys():
            return cls.extend(model, tokenizer, pictures)
        tokenizer = read_tokenizer(directory, (*LIQUID_CONTROLS, "<start_of_turn>", "<end_of_turn>"))
        return cls(model, Processor(tokenizer, pictures, LIQUID))

    @classmethod
    @torch.no_grad()
    def extend(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        image_tokenizer: ImageTokenizer,
        template: Template | None = None,
    ) -> SharedVocabularyPolicy:
        """A language model of text with image codes behind its vocabulary; model and tokenizer are changed in place.

        The template, if none is given, is that of the tokenizer's chat. Control tokens that it lacks are added. What
        text was, stays: a new row is the mean of the old ones, to which a code's embedding adds its place in the
        codebook. With a head of its own, codes are thus all alike at first, and none likelier than the mean of text.
        """
        template = template or _chat_template(tokenizer)
        kept = len(tokenizer)
        controls = [template.pad, template.bos, template.eos, template.boi, template.eoi]
        controls += [template.answer] if template.answer == Template().answer else []
        unmarked = [token for token in controls if token not in tokenizer.all_special_tokens]
        tokenizer.add_special_tokens({"extra_special_tokens": unmarked}, replace_extra_special_tokens=False)
        processor = Processor(tokenizer, image_tokenizer, template)
        vocabulary = processor.vocabulary
        model.resize_token_embeddings(vocabulary.text_size + vocabulary.image_codes, mean_resizing=False)
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            rows = _weight(module)
            rows[kept:] = rows[:kept].float().mean(0).to(rows)
        _name_controls(model.config, processor)
        policy = cls(model, processor)
        embedding = _weight(model.get_input_embeddings())
        mean = embedding[kept].clone()
        policy.start_from_codebook()
        embedding[policy.codes] += mean
        policy.new_rows = len(embedding) - kept
        return policy

    @torch.no_grad()
    def start_from_codebook(self) -> None:
        """Image embeddings start as a random projection of the codebook, so that similar codes start out similar."""
        embedding = _weight(self.model.get_input_embeddings())
        codebook = self.processor.image_tokenizer.codebook().to(embedding)
        codebook = (codebook - codebook.mean(0)) / codebook.std().clamp(min=1e-6)
        projection = torch.randn(codebook.shape[1], embedding.shape[1]) / codebook.shape[1] ** 0.5
        embedding[self._own_ids(embedding.device)] = (
            codebook @ projection.to(embedding) * embedding[: self.vocabulary.text_size].std()
        )

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        features: Tensor | None = None,
    ) -> Tensor:
        return decoded(self.model.get_decoder(), positions_BT, mask, cache, input_ids=self._own(ids_BT))

    def _own(self, ids_BT: Tensor) -> Tensor:
        """Joint ids as the model's own."""
        if not self.processor.code_ids:
            return ids_BT
        size = self.vocabulary.text_size
        return torch.where(ids_BT < size, ids_BT, self._own_ids(ids_BT.device)[(ids_BT - size).clamp(min=0)])

    def _own_ids(self, device: torch.device) -> Tensor:
        """Of the codes; copied to a device once, and not at every step of the sampler."""
        if self._own_id.device != device:
            self._own_id = self._own_id.to(device)
        return self._own_id

    def text_logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self._head()[: self.vocabulary.text_size])

    def image_logits(self, hidden: Tensor) -> Tensor:
        scores = linear(hidden, self._head()[self.codes])
        if self._in_order:
            return scores
        return scores[..., self._own_ids(scores.device) - self.codes.start]

    def parts(self) -> dict[str, tuple[Tensor, slice]]:
        before, behind = slice(0, self.codes.start), slice(self.codes.stop, self.vocabulary.text_size)
        text, image = max(before, behind, key=lambda rows: rows.stop - rows.start), self.codes
        embedding, head = _weight(self.model.get_input_embeddings()), self._head()
        return {
            "text embedding": (embedding, text),
            "image embedding": (embedding, image),
            "text head": (head, text),
            "image head": (head, image),
        }

    def _head(self) -> Tensor:
        return _weight(self.model.get_output_embeddings())


def _name_controls(config: Any, processor: Processor) -> None:
    control = processor.vocabulary.controls
    config.pad_token_id, config.bos_token_id, config.eos_token_id = control.pad, control.bos, control.eos


def _chat_template(tokenizer: PreTrainedTokenizerFast) -> Template:
    """The tokenizer's own control tokens and chat, ours where it has none. Raises InputError without `eos`."""
    eos: Any = tokenizer.eos_token
    if eos is None:
        raise InputError("the tokenizer names no end-of-text token (eos_token in tokenizer_config.json)")
    bos: Any = tokenizer.bos_token or eos
    start, answer = bos, Template().answer
    if tokenizer.chat_template:
        chat: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": PLACE}], tokenize=False, add_generation_prompt=True
        )
        start, _, answer = chat.partition(PLACE)
    return Template(pad=tokenizer.pad_token or Template().pad, bos=bos, eos=eos, start=start, answer=answer)  # type: ignore[arg-type]


def _weight(module: nn.Module | None) -> Tensor:
    return cast(nn.Embedding, module).weight
