"""The image tokenizer of Janus: a stock transformers `JanusVQVAE`, 576 codes of 16384 for a picture of 384 pixels.

Pictures are scaled by their short side and cropped on the long one (Janus, arXiv 2410.13848, section 4.1).

Janus compares directions: latents and codes are scaled to length one before the nearest code is sought, and so are the
codes that are decoded (deepseek-ai/Janus, vq_model.py, `codebook_l2_norm`). transformers 5.23 does the second only, so
its own `encode` finds other codes than those that Janus was trained on; here both are done.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.janus.modeling_janus import JanusVQVAE

from ...pictures.contract import IMAGE_TOKENIZERS
from ...pictures.stock import StockImageTokenizer


class JanusImageTokenizer(StockImageTokenizer):
    type = "JanusVQVAE"
    model_class = JanusVQVAE

    def __init__(self, model: JanusVQVAE, image_size: int | None = None):
        """The model's grid is fixed, and with it the size of pictures."""
        downsampling = 2 ** (len(model.config.channel_multiplier) - 1)
        side = model.quantize.quant_state_dims[0] * downsampling
        super().__init__(model, model.config.num_embeddings, downsampling, image_size or side)

    def codes_of(self, pixels: Tensor) -> Tensor:
        latents = self.model.quant_conv(self.model.encoder(pixels)).movedim(1, -1)
        return (normalize(latents, dim=-1) @ normalize(self.codebook(), dim=-1).T).argmax(-1)

    def pixels_of(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes.flatten(1))


IMAGE_TOKENIZERS[JanusImageTokenizer.type] = JanusImageTokenizer
