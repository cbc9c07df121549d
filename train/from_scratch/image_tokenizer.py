"""Trains the image tokenizer in three stages: autoencoder, quantised, decoder alone.

A vector-quantised autoencoder trained from random codes collapses; started as a plain autoencoder, with a k-means
codebook of its own latents, it does not. The codebook is fitted anew before the last stage, which trains the decoder on
the codes as they will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ...configs.bounds import Above0, NoneOrMore, OneOrMore, Seed, Weight, Width
from ...models.pictures.contract import VQImageTokenizer


@dataclass
class ImageTokenizerConfig:
    image_size: Width = 32
    """Pixels of a side."""
    patch: Width = 8
    """Pixels folded into channels before the convolutions."""
    tiled: bool = True
    """Each code sees its own tile of the picture only."""
    channels: tuple[Width, ...] = (96,)
    """Width of each resolution; each but the last halves it."""
    codes: OneOrMore = 256
    code_size: OneOrMore = 32
    """E, width of a code's embedding."""
    depth: OneOrMore | None = None
    """D, residual codes of a position; by default what the model's family draws."""
    autoencoder_steps: NoneOrMore = 400
    quantised_steps: NoneOrMore = 200
    decoder_steps: NoneOrMore = 300
    batch_size: OneOrMore = 64
    learning_rate: Above0 = 3e-3
    foreground_weight: Weight = 4.0
    """Extra weight of pixels that differ from the picture's commonest colour; 0 for photographs."""
    seed: Seed = 0


def train_image_tokenizer(
    images: Sequence[Image.Image], config: ImageTokenizerConfig
) -> tuple[VQImageTokenizer, dict[str, float]]:
    """Returns the tokenizer and its figures: mean squared error on a 0..1 scale, codes in use, distinct examples."""
    torch.manual_seed(config.seed)
    tokenizer = VQImageTokenizer.create(
        config.image_size,
        config.patch,
        config.channels,
        config.codes,
        config.code_size,
        config.tiled,
        config.depth or 1,
    )
    model = tokenizer.model
    examples = _examples(tokenizer, images, config)

    def autoencoder_loss(x: Tensor, w: Tensor) -> Tensor:
        return _error(tokenizer.reconstruct(tokenizer.latents(x)), x, w)

    def quantised_loss(x: Tensor, w: Tensor) -> Tensor:
        codes, commitment = _straight_through(tokenizer, tokenizer.latents(x))
        return _error(tokenizer.reconstruct(codes), x, w) + commitment

    def decoder_loss(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            codes, _ = tokenizer.quantised(tokenizer.latents(x))
        return _error(tokenizer.reconstruct(codes), x, w)

    total = config.autoencoder_steps + config.quantised_steps + config.decoder_steps
    with tqdm(total=total, desc="image tokenizer", mininterval=2) as bar:
        _fit(model, autoencoder_loss, examples, config.autoencoder_steps, config.learning_rate, config.batch_size, bar)
        _fit_codebook(tokenizer, examples, config.codes)
        rate = config.learning_rate / 2
        _fit(model, quantised_loss, examples, config.quantised_steps, rate, config.batch_size, bar)
        _fit_codebook(tokenizer, examples, config.codes)  # the encoder moved, and codes may have run together
        _fit(model, decoder_loss, examples, config.decoder_steps, rate, config.batch_size, bar)
    tokenizer.eval()
    return tokenizer, _figures(tokenizer, examples.pixels)


def _straight_through(tokenizer: VQImageTokenizer, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Quantised latents whose gradient is that of the latents, and the loss that draws the two together."""
    if tokenizer.depth == 1:
        codes, commitment, _ = tokenizer.model.quantize(latents)
        return codes, commitment
    found, _ = tokenizer.quantised(latents)
    beta = tokenizer.model.quantize.beta
    commitment = F.mse_loss(found, latents.detach()) + beta * F.mse_loss(latents, found.detach())
    return latents + (found - latents).detach(), commitment


@torch.no_grad()
def _fit_codebook(tokenizer: VQImageTokenizer, examples: _Examples, codes: int) -> None:
    """Depth by depth, each to what those before it have left over."""
    latents = torch.cat([tokenizer.latents(part) for part in examples.pixels.split(256)])
    rest, books = latents.movedim(1, -1).flatten(0, 2), []
    for _ in range(tokenizer.depth):
        books.append(_k_means(rest, codes))
        rest = rest - books[-1][torch.cdist(rest, books[-1]).argmin(1)]
    tokenizer.model.quantize.embedding.weight.copy_(torch.cat(books))


@dataclass(frozen=True)
class _Examples:
    """Distinct pictures, or tiles, and how often each is drawn."""

    pixels: Tensor
    """[n, 3, S, S] in -1..1."""
    weight: Tensor
    """Of each pixel in the loss, [n, 1, S, S]."""
    chance: Tensor
    """[n], by the root of how often it occurs: rare ones must be learned, and a common background must be clean."""


def _examples(tokenizer: VQImageTokenizer, images: Sequence[Image.Image], config: ImageTokenizerConfig) -> _Examples:
    pixels = tokenizer.pixels(images)
    weighted = torch.cat([pixels, 1 + config.foreground_weight * _foreground(pixels)], 1)
    if config.tiled:
        weighted = rearrange(weighted, "n c (i h) (j w) -> (n i j) c h w", h=tokenizer.tile, w=tokenizer.tile)
    # `unique` sorts, so the order of the images has no say in the result.
    weighted, count = torch.unique(weighted, dim=0, return_counts=True)
    return _Examples(weighted[:, :3], weighted[:, 3:], count.sqrt() / count.sqrt().sum())


@torch.no_grad()
def _figures(tokenizer: VQImageTokenizer, pixels: Tensor) -> dict[str, float]:
    error, used = 0.0, set()
    for part in pixels.split(256):
        codes, indices = tokenizer.quantised(tokenizer.latents(part))
        error += ((tokenizer.reconstruct(codes) - part) ** 2).mean((1, 2, 3)).sum().item() / 4
        used |= set(indices.flatten().tolist())
    return {"mean_squared_error": error / len(pixels), "codes_used": len(used), "examples": len(pixels)}


def _fit(model, loss_of, examples: _Examples, steps: int, lr: float, batch_size: int, bar: tqdm) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - 0.95 * step / steps)
        index = torch.multinomial(examples.chance, batch_size, replacement=True)
        loss = loss_of(examples.pixels[index], examples.weight[index])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def _error(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return ((output - target) ** 2 * weight).mean()


def _foreground(pixels: Tensor) -> Tensor:
    """1 where a pixel differs from its picture's median colour, [n, 1, S, S]."""
    background = pixels.flatten(2).median(-1).values[:, :, None, None]
    return ((pixels - background).abs().amax(1, keepdim=True) > 0.05).float()


def _k_means(points: Tensor, clusters: int, rounds: int = 20, sample: int = 20_000) -> Tensor:
    """Centres [clusters, D]; the start takes the farthest point each time, so that rare patches get a code."""
    points = points[torch.randperm(len(points))[:sample]]
    chosen, distance = [points[0]], F.mse_loss(points, points[:1].expand_as(points), reduction="none").sum(1)
    for _ in range(clusters - 1):
        chosen.append(points[distance.argmax()])
        distance = torch.minimum(distance, ((points - chosen[-1]) ** 2).sum(1))
    centres = torch.stack(chosen)
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        count = torch.bincount(nearest, minlength=clusters)[:, None]
        mean = torch.zeros_like(centres).index_add_(0, nearest, points) / count.clamp(min=1)
        centres = torch.where(count > 0, mean, centres)
    return centres
