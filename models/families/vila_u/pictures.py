"""The image tokenizer of VILA-U: a stock SigLIP, a residual quantiser of its features, and a VQGAN's decoder.

256 positions of 4 codes of 16,384 for a picture of 256 pixels. What is quantised is the output of SigLIP's second last
layer, so that codes hold what is seen as well as what it looks like (mit-han-lab/vila-u, modeling_rqvaesiglip.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig, SiglipVisionModel

from ...pictures.contract import IMAGE_TOKENIZERS
from ...pictures.residual import Codebooks, residual_codes
from ...pictures.stock import StockImageTokenizer
from ...pictures.vqgan import VQGANDecoder


class VilaUPictures(SiglipVisionModel):
    """The stock encoder with what VILA-U adds to it. Its folder opens as a stock `SiglipVisionModel` too.

    `config.vila_u` says the rest: `codes` and `books` (1 or D), `depth`, and the settings of the `decoder` as a
    `ChameleonVQVAEConfig` names them.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        own = config.vila_u
        decoder = ChameleonVQVAEConfig(**own["decoder"])
        self.depth = int(own["depth"])
        self.codebooks = Codebooks(own["books"], own["codes"], config.hidden_size)
        self.post_quant_conv = nn.Conv2d(config.hidden_size, decoder.latent_channels, 1)
        self.decoder = VQGANDecoder(decoder)
        self.post_init()

    def features(self, pixels: Tensor) -> Tensor:
        """Pictures [n, 3, S, S] as its second last layer has them, [n, N, W]."""
        hidden = self.embeddings(pixels)
        for layer in self.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        return hidden


class VilaUImageTokenizer(StockImageTokenizer):
    type = "VilaU"
    model_class = VilaUPictures

    def __init__(self, model: VilaUPictures, image_size: int | None = None):
        config = model.config
        super().__init__(model, model.codebooks.weight.shape[1], config.patch_size, image_size or config.image_size)
        self.depth = model.depth

    def codes_of(self, pixels: Tensor) -> Tensor:
        features = self.model.features(pixels)
        codes = residual_codes(features.flatten(0, 1), self.codebook(), self.depth)
        return codes.view(-1, *self.shape, self.depth)

    def pixels_of(self, codes: Tensor) -> Tensor:
        latents = self.model.codebooks(codes).sum(-2).movedim(-1, 1)
        return self.model.decoder(self.model.post_quant_conv(latents))

    def codebook(self) -> Tensor:
        """[1 or D, codes, W]."""
        return self.model.codebooks.weight.detach()


IMAGE_TOKENIZERS[VilaUImageTokenizer.type] = VilaUImageTokenizer
