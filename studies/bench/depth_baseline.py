"""VILA-U's side of `limner bench sampler`: texts by stock `generate`, pictures by the loop of its authors.

For a position they run the decoder, then the depth transformer once a code over the codes before it
(mit-han-lab/vila-u, vila_u_llama.py, `sample` of the depth transformer). The modules are the stock ones of the folder.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .baselines import TwoHeadBaseline, Wanted, check


class DepthBaseline(TwoHeadBaseline):
    @torch.inference_mode()
    def _write_image(self, ids_BT: Tensor, attend_BT: Tensor, wanted_BS: Tensor, cache: Cache) -> None:
        """The `<eoi>` behind the codes is read with the next segment."""
        codes_BND = self.vocabulary.codes_of(wanted_BS[:, :-1])
        embedded = self._embedded(ids_BT[:, cache.get_seq_length() :])
        for number in range(codes_BND.shape[1]):
            positions = (attend_BT.cumsum(1) - 1)[:, -embedded.shape[1] :].clamp(min=0)
            hidden = self.model.model(
                inputs_embeds=embedded, attention_mask=attend_BT, position_ids=positions, past_key_values=cache
            ).last_hidden_state[:, -1]
            drawn = codes_BND[:, number, :0]
            choose = Wanted(codes_BND[:, number], 0)
            for _ in range(codes_BND.shape[2]):
                scores = choose(drawn, self._deeper(hidden, drawn)[:, -1])
                drawn = torch.cat([drawn, torch.multinomial(scores.softmax(-1), 1)], 1)
            check(drawn, codes_BND[:, number])
            embedded = self._projected(drawn)[:, None]
            attend_BT = torch.cat([attend_BT, torch.ones_like(attend_BT[:, :1])], 1)

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        return self.model.model(
            inputs_embeds=self._embedded(ids_BT),
            position_ids=positions_BT,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    def logits(self, hidden: Tensor, image: bool, ids: Tensor) -> Tensor:
        """Of a picture [..., D, codes]: each code needs those before it, so that the depth transformer runs D times."""
        if not image:
            return hidden @ self.model.lm_head.weight[: self.vocabulary.text_size].T
        codes = self.vocabulary.codes_of(ids)
        steps = range(self.vocabulary.depth)
        return torch.stack([self._deeper(hidden, codes[:, :step])[:, -1] for step in steps], 1)

    def _deeper(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Scores of the first codes of each position, [n, d + 1, codes]."""
        transformer = self.model.depth_transformer
        return transformer.classifier_mlp.linear(transformer(hidden, self.model.codebooks(before)))

    def _projected(self, codes: Tensor) -> Tensor:
        return self.model.projector(self.model.codebooks(codes).sum(-2))

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        size = self.vocabulary.text_size
        code_BT = ids_BT >= size
        embedded = self.model.get_input_embeddings()(ids_BT.masked_fill(code_BT, 0))
        if code_BT.any():
            embedded[code_BT] = self._projected(self.vocabulary.codes_of(ids_BT[code_BT]))
        return embedded
