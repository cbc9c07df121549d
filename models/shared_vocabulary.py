"""Family "shared vocabulary": image codes are ids of the one LM head of any `AutoModelForCausalLM`.

The joint id of image code c, V + c, is the model's own id: V is the size of the text tokenizer. Liquid is built like
this, and so is the embedded tiny Llama. Where the codes are among the tokenizer's own ids (Chameleon, Emu3) the
processor knows which, and joint ids are translated.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from .errors import InputError
from .policy import UnifiedPolicy, attention_mask, register
from .processing import Processor


@register
class SharedVocabularyPolicy(UnifiedPolicy):
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
        embedding[self._own_id] = codebook @ projection.to(embedding) * embedding[: self.vocabulary.text_size].std()

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        mask: Tensor,
        cache: Cache | None,
        features: Tensor | None = None,
    ) -> Tensor:
        decoder = self.model.get_decoder()
        return decoder(
            input_ids=self._own(ids_BT),
            position_ids=positions_BT,
            attention_mask=attention_mask(mask, decoder),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def _own(self, ids_BT: Tensor) -> Tensor:
        """Joint ids as the model's own."""
        if not self.processor.code_ids:
            return ids_BT
        size = self.vocabulary.text_size
        return torch.where(ids_BT < size, ids_BT, self._own_id.to(ids_BT.device)[(ids_BT - size).clamp(min=0)])

    def text_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self._head()[: self.vocabulary.text_size].T

    def image_logits(self, hidden: Tensor) -> Tensor:
        scores = hidden @ self._head()[self.codes].T
        if self._in_order:
            return scores
        return scores[..., (self._own_id - self.codes.start).to(scores.device)]

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


def _weight(module: nn.Module | None) -> Tensor:
    return cast(nn.Embedding, module).weight
