"""Family "shared vocabulary": image codes are ids of the one LM head of any `AutoModelForCausalLM`.

The joint id of image code c, V + c, is the model's own id: V is the size of the text tokenizer. Liquid is built like
this, and so is the embedded tiny Llama.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from .errors import InputError
from .policy import UnifiedPolicy, register
from .processing import Processor


@register
class SharedVocabularyPolicy(UnifiedPolicy):
    family = "shared_vocabulary"

    def __init__(self, model: PreTrainedModel, processor: Processor):
        super().__init__(model, processor)
        needed = self.vocabulary.text_size + self.vocabulary.image_codes
        rows = _weight(model.get_output_embeddings()).shape[0]
        if rows < needed:
            raise InputError(
                f"the language model has {rows} ids, its tokenizers need {needed} "
                f"({self.vocabulary.text_size} text + {self.vocabulary.image_codes} image)"
            )

    @classmethod
    def create(cls, config: PretrainedConfig, processor: Processor) -> SharedVocabularyPolicy:
        """A new model of random weights whose vocabulary fits the processor."""
        control = processor.vocabulary.controls
        config.vocab_size = processor.vocabulary.text_size + processor.vocabulary.image_codes
        config.pad_token_id, config.bos_token_id, config.eos_token_id = control.pad, control.bos, control.eos
        model = AutoModelForCausalLM.from_config(config)
        policy = cls(model, processor)
        policy.start_from_codebook()
        return policy

    @torch.no_grad()
    def start_from_codebook(self) -> None:
        """Image embeddings start as a random projection of the codebook, so that similar codes start out similar."""
        embedding = _weight(self.model.get_input_embeddings())
        codebook = self.processor.image_tokenizer.codebook().to(embedding)
        codebook = (codebook - codebook.mean(0)) / codebook.std().clamp(min=1e-6)
        projection = torch.randn(codebook.shape[1], embedding.shape[1]) / codebook.shape[1] ** 0.5
        rows = slice(self.vocabulary.text_size, self.vocabulary.text_size + self.vocabulary.image_codes)
        embedding[rows] = codebook @ projection.to(embedding) * embedding[: self.vocabulary.text_size].std()

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        decoder = self.model.get_decoder()
        if self.model.config._attn_implementation != "sdpa":  # the others add the mask to the scores
            mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(self.model.dtype).min
            )
        return decoder(
            input_ids=ids_BT,
            position_ids=positions_BT,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def text_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self._head()[: self.vocabulary.text_size].T

    def image_logits(self, hidden: Tensor) -> Tensor:
        size = self.vocabulary.text_size
        return hidden @ self._head()[size : size + self.vocabulary.image_codes].T

    def parts(self) -> dict[str, tuple[Tensor, slice]]:
        size = self.vocabulary.text_size
        text, image = slice(0, size), slice(size, size + self.vocabulary.image_codes)
        embedding, head = _weight(self.model.get_input_embeddings()), self._head()
        return {
            "text embedding": (embedding, text),
            "image embedding": (embedding, image),
            "text head": (head, text),
            "image head": (head, image),
        }

    def _head(self) -> Tensor:
        return _weight(self.model.get_output_embeddings())


def _weight(module: nn.Module | None) -> Tensor:
    return cast(nn.Embedding, module).weight
