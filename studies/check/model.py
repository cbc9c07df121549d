"""A model as it was read, held to its files and to the stock classes: sizes, scores, pictures, samples, bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ...configs.json_text import parse_json
from ...models.attention import layer_types, widest_window
from ...models.checkpoints.convert import SLACK, Apart, compare_scores, family_for
from ...models.checkpoints.folder import SETTINGS_FILE, load, without_bars
from ...models.documents.document import InterleavedDocument, TextSegment
from ...models.families.upstream import read_model
from ...models.pictures.contract import centred_squares
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...models.tokens.sequence import TokenSequence, collate
from ...train.before.preflight import gap_bounds
from ...train.rollout import Rollout, rollout
from ...worlds.picture_stories.scenes import SCENES, draw_scene
from .findings import Finding, judged

TEXT_TOKENS = 48
"""Of the text that is sampled."""
MOST_LOST = 0.5
"""Share of a picture's variance that may be lost in its codes. 1 is what one flat colour loses."""
BF16_GAP = (0.1, 3.0)
"""(mean, largest) difference of a token's log-prob in bfloat16 from float32: of a scaled temperature, 1.3 for 1, the
mean is 0.1 or more in most models (`preflight`), and single tokens that are all but impossible move by some nats."""
PADDED, MOST_PADDING = 64, 1024
"""A vocabulary that is larger than its tokenizers is padded to a multiple of this, by fewer ids than that."""
WORDS = "A small red circle is on the left: 3 + 4 = 7"
PROMPT = InterleavedDocument((TextSegment("Describe a red circle, and draw it."),), "check")
CHUNK = 1024


@dataclass
class Subject:
    """The model that is looked at, and what came out of it for the page."""

    folder: Path
    policy: UnifiedPolicy
    original: bool
    """Read from its authors' files, in memory, as `limner convert` does it."""
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    text: str = ""
    sampled: list[Rollout] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.policy.model.device


def check_folder(folder: Path, family: str | None, options: dict[str, Any]) -> bool:
    """Whether it is an original. Raises InputError where it is no model folder, or of a layout that limner cannot read:
    before anything is loaded."""
    original = not (folder / SETTINGS_FILE).is_file()
    if original:
        family_for(folder, family, options)
    return original


def read(folder: Path, family: str | None, options: dict[str, Any], device: str, dtype: str) -> Subject:
    """The policy of a checkpoint, or of an original, which is converted in memory. Raises InputError."""
    if not (original := check_folder(folder, family, options)):
        return Subject(folder, load(folder, device, dtype), original)
    with without_bars():
        policy = family_for(folder, family, options).from_upstream(folder, **options)
    policy.model.to(torch.device(device), None if dtype == "auto" else getattr(torch, dtype))  # type: ignore[arg-type]
    policy.processor.image_tokenizer.to(torch.device(device))
    return Subject(folder, policy, original)


def sizes(subject: Subject) -> dict[str, Any]:
    """What the model is, for people."""
    policy, vocabulary = subject.policy, subject.policy.vocabulary
    config: Any = policy.model.config.get_text_config()
    rows, columns = policy.processor.image_tokenizer.shape
    return {
        "family": policy.family,
        "class": type(policy.model).__name__,
        "model type": policy.model.config.model_type,
        "read": "original, converted in memory" if subject.original else "checkpoint of limner",
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "layer types": layer_types(config),
        "window": widest_window(config) or None,
        "positions": policy.longest,
        "rope": getattr(config, "rope_parameters", None) or None,
        "rope switches at": policy.rope_switch,
        "text ids": vocabulary.text_size,
        "image codes": vocabulary.image_codes,
        "codes of a picture": f"{rows} x {columns}" + (f" x {vocabulary.depth}" if vocabulary.depth > 1 else ""),
        "tokens of a picture": 1 + len(vocabulary.image),
        "features of a given picture": vocabulary.features or None,
        "rows never trained": policy.new_rows or None,
    }


# ---- sizes and ids ----


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Every number is one: a NaN in a shard shows in scores only where its row is used."""
    named = dict(subject.policy.model.named_parameters())
    broken = [name for name, weight in named.items() if not bool(torch.isfinite(weight).all())]
    text = f"{len(named)} weights, all finite" if not broken else f"not finite: {', '.join(broken[:3])}"
    yield judged("weights", not broken, text, "fetch the weight files again", broken=len(broken))


def check_sizes(subject: Subject) -> Iterator[Finding]:
    """Rows of embeddings and heads are those that the tokenizers need, padding aside."""
    policy, vocabulary = subject.policy, subject.policy.vocabulary
    tokenizer, (rows, columns) = policy.processor.image_tokenizer, policy.processor.image_tokenizer.shape
    faults = []
    if (entries := tokenizer.codebook().shape[-2]) != vocabulary.image_codes:
        faults.append(f"a codebook of {entries:,} for {vocabulary.image_codes:,} image codes")
    if rows * columns != vocabulary.image_length:
        faults.append(f"{rows} x {columns} codes for pictures of {vocabulary.image_length}")
    for name, (weight, own) in policy.parts().items():
        start, stop, _ = own.indices(weight.shape[0])
        if vocabulary.depth > 1 and name == "image embedding":
            continue  # of the sum of a position's codebook entries, not a row a code
        if name.startswith("image") and stop - start != vocabulary.image_codes:
            faults.append(f"the {name} has {stop - start:,} rows for {vocabulary.image_codes:,} image codes")
    table: Any = policy.model.get_input_embeddings()
    behind = not policy.own_image_head and not policy.processor.code_ids
    needed, found = vocabulary.text_size + behind * vocabulary.image_codes, table.weight.shape[0]
    padding = found - needed
    if padding < 0 or (behind and padding and (found % PADDED or padding >= MOST_PADDING)):
        codes = f" and {vocabulary.image_codes:,} codes" if behind else ""
        faults.append(f"the language model has {found:,} ids, its tokenizers {needed:,} (text{codes})")
    if policy.longest <= 1 + len(vocabulary.image):
        faults.append(f"{policy.longest} positions for a picture of {1 + len(vocabulary.image)} tokens")
    text = f"{vocabulary.text_size:,} text ids, {vocabulary.image_codes:,} image codes, {rows} x {columns} a picture"
    remedy = "the image tokenizer, the tokenizer or config.json is that of another model"
    yield judged("sizes", not faults, "; ".join(faults) or text, remedy)


def check_ids(subject: Subject) -> Iterator[Finding]:
    """Control ids are apart, texts come back, and no text becomes a control or a code."""
    processor, vocabulary = subject.policy.processor, subject.policy.vocabulary
    controls = {name: getattr(vocabulary.controls, name) for name in ("bos", "eos", "boi", "eoi", "image")}
    known = {name: number for name, number in controls.items() if number is not None}
    faults = [
        f"{name} is id {number:,}, no text id" for name, number in known.items() if number >= vocabulary.text_size
    ]
    apart = [known[name] for name in ("eos", "boi", "eoi", "image") if name in known]
    if len({*apart}) < len(apart):
        faults.append("two of end of text, begin and end of image are one id")
    ids = processor.text_ids(WORDS)
    if (back := str(processor.tokenizer.decode(ids)).strip()) != WORDS:
        faults.append(f"{WORDS!r} comes back as {back!r}")
    kept_apart = {*vocabulary.never_sampled, *apart} - {vocabulary.controls.pad}
    names: Any = processor.tokenizer.convert_ids_to_tokens(
        [number for number in apart if number < vocabulary.text_size]
    )
    spelled = [name for name in names if {*processor.text_ids(f"a{name}b")} & kept_apart]
    faults += [f"a text can spell {name}" for name in spelled]
    text = ", ".join(f"{name} {number:,}" for name, number in known.items())
    remedy = "take the tokenizer files that were published with the weights, or see `template` in limner.json"
    yield judged("ids", not faults, "; ".join(faults) or text, remedy)


# ---- scores ----


def check_forward(subject: Subject) -> Iterator[Finding]:
    """As `convert` compares them: decoder, head, packed row and cache against the model's forward."""
    found = compare_scores(subject.policy, subject.policy.model)
    yield _scores(
        "scores, own forward", found, subject.device, "limner cannot train this class: open an issue with the JSON"
    )


def check_stock(subject: Subject) -> Iterator[Finding]:
    """The same against the language model that transformers reads from these files by itself: rope, masks, weights."""
    folder, name = stock_folder(subject.folder), "scores, stock class"
    if folder is None:
        yield Finding(name, "skipped", "transformers reads no language model from this folder", "none is needed")
        return
    chosen = subject.policy.model_class if folder == subject.folder else AutoModelForCausalLM
    with without_bars():
        stock: Any = read_model(chosen, folder)
    stock.to(subject.device, subject.policy.model.dtype)
    remedy = "rope, masks or weights are not as in the files: attach the JSON to an issue"
    yield _scores(name, compare_scores(subject.policy, stock), subject.device, remedy)


def stock_folder(folder: Path) -> Path | None:
    """Where a stock model with a language head lies: the folder, or a part of it that is one."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (path := place / "config.json").is_file() and any(place.glob("*.safetensors")):
            model_type = parse_json(path.read_bytes()).get("model_type")
            if model_type in (CONFIG_MAPPING if place == folder else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
                return place
    return None


def _scores(name: str, found: Apart, device: torch.device, remedy: str) -> Finding:
    slack = SLACK if device.type == "cpu" else found.slack  # elsewhere a mask is another kernel
    text = f"{found.few:.1e} apart on 16 tokens, {found.many:.1e} on {found.length:,}, packed and cached"
    text += f" (shares of their size; bounds {slack:g}, {found.slack:g})"
    holds = found.few <= slack and found.many <= found.slack
    return judged(name, holds, text, remedy, few=found.few, many=found.many, tokens=found.length)


# ---- pictures ----


def check_picture(subject: Subject) -> Iterator[Finding]:
    """Encoded and decoded, a picture is nearly itself; another one has other codes."""
    tokenizer, vocabulary = subject.policy.processor.image_tokenizer, subject.policy.vocabulary
    picture, other = draw_scene(SCENES[3]), draw_scene(SCENES[40])
    codes, others = tokenizer.encode([picture, other])
    (back,) = tokenizer.decode(codes[None])
    faults = []
    if codes.shape != vocabulary.code_shape or codes.min() < 0 or codes.max() >= vocabulary.image_codes:
        faults.append(f"{codes.size} codes from {codes.min()} to {codes.max()}, of {vocabulary.image_codes:,}")
    if np.array_equal(codes, others):
        faults.append("two pictures have the same codes")
    exact = ((centred_squares([picture], back.width)[0].numpy() + 1) / 2).transpose(1, 2, 0)
    error = float(((exact - np.asarray(back) / 255) ** 2).mean())
    lost = error / float(exact.var(axis=(0, 1)).mean())
    subject.pictures |= {"a picture": picture, "decoded from its codes": back}
    if not lost <= MOST_LOST:
        faults.append("what comes back is another picture")
    text = f"{back.width} pixels a side, mean squared error {error:.1e} (0 to 1), {lost:.1%} of its variance is lost"
    remedy = "the image tokenizer is untrained, or another's: see --image-tokenizer, and the two pictures on the page"
    yield judged("picture", not faults, "; ".join([*faults, text]), remedy, error=error, lost=lost)


# ---- samples ----


@torch.no_grad()
def check_samples(subject: Subject) -> Iterator[Finding]:
    """A text and a picture, each replayed through the training forward, within preflight's bounds."""
    policy, codes = subject.policy, 1 + len(subject.policy.vocabulary.image)
    for modality, sampling in (
        ("text", Sampling(TEXT_TOKENS, max_images=0)),
        ("image", Sampling(codes, max_images=1, begin_with_image=True)),
    ):
        (drawn,) = rollout(policy, [PROMPT], sampling)
        begun_by_us(drawn, sampling)
        subject.sampled.append(drawn)
        answer = drawn.completion.answer
        if modality == "image":
            subject.pictures["sampled"] = answer.images[0].pixels()
            ids = drawn.sequence.ids_T[drawn.sequence.ids_T >= policy.vocabulary.text_size]
            said = f"{len(ids):,} codes, {len(ids.unique()):,} of them different"
        else:
            subject.text = answer.text
            said = f"{len(drawn.sequence) - drawn.sequence.prompt_length} tokens"
        gap = _apart(drawn.logp_T, scored(policy, drawn.sequence, sampling.max_images), drawn.sequence)
        mean_bound, bound = gap_bounds(policy.model.dtype)
        text = f"{said}; replayed, |log ratio| mean {gap.mean():.1e}, largest {gap.max():.1e}"
        text += f" (bounds of {str(policy.model.dtype).removeprefix('torch.')}: {mean_bound:g}, {bound:g})"
        holds = bool(gap.mean() <= mean_bound and gap.max() <= bound)
        remedy = "what is sampled is not what is scored, so GRPO would learn from noise: attach the JSON to an issue"
        figures = {"mean": float(gap.mean()), "largest": float(gap.max()), "tokens": len(gap)}
        yield judged(f"sampled {modality}", holds, text, remedy, **figures)


def begun_by_us(drawn: Rollout, sampling: Sampling) -> None:
    """A picture that the settings began was no choice of the model's, hence none to score or to learn."""
    drawn.sequence.trainable_T[drawn.sequence.prompt_length] &= not sampling.begin_with_image


def scored(policy: UnifiedPolicy, sequence: TokenSequence, max_images: int | None) -> Tensor:
    """Log-probs [T] by the training forward, in training mode."""
    batch = collate([[sequence]], policy.vocabulary).to(policy.model.device)
    policy.model.train()
    try:
        return policy.log_probs(policy.model, batch, max_images=max_images, chunk=CHUNK)[0][0].cpu()
    finally:
        policy.model.eval()


def _apart(one_T: Tensor, other_T: Tensor, sequence: TokenSequence) -> Tensor:
    """|difference| where the model chose; one 0 where it never did."""
    gap = (one_T - other_T).abs()[sequence.trainable_T]
    return gap if len(gap) else torch.zeros(1)


@torch.no_grad()
def check_bf16(subject: Subject) -> Iterator[Finding]:
    """What bfloat16 does to log-probs: the samples by the training forward in float32, and under autocast."""
    policy = subject.policy
    with in_float32(policy):
        gaps = []
        for drawn, images in zip(subject.sampled, (0, 1), strict=True):
            exact = scored(policy, drawn.sequence, images)
            with torch.autocast(subject.device.type, torch.bfloat16):
                gaps.append(_apart(exact, scored(policy, drawn.sequence, images), drawn.sequence))
    text = ", ".join(
        f"{name}: |log ratio| mean {gap.mean():.1e}, largest {gap.max():.1e}"
        for name, gap in zip(("text", "image"), gaps, strict=True)
    )
    (mean_bound, bound), every = BF16_GAP, torch.cat(gaps)
    holds = bool(max(gap.mean() for gap in gaps) <= mean_bound and every.max() <= bound)
    text += f" (bounds {mean_bound:g}, {bound:g})"
    remedy = "train it in float32 (--bf16 false), or look for weights that are far too large"
    yield judged("bfloat16", holds, text, remedy, mean=float(every.mean()), largest=float(every.max()))


@contextmanager
def in_float32(policy: UnifiedPolicy) -> Iterator[None]:
    """The weights in float32, and afterwards as they were, to the bit."""
    stored = [(tensor, tensor.dtype) for tensor in (*policy.model.parameters(), *policy.model.buffers())]
    try:
        policy.model.float()
        yield
    finally:
        for tensor, dtype in stored:
            tensor.data = tensor.data.to(dtype)


Check = Callable[[Subject], Iterator[Finding]]
CHECKS: Sequence[tuple[str, Check]] = (
    ("weights", check_weights),
    ("sizes", check_sizes),
    ("ids", check_ids),
    ("scores, own forward", check_forward),
    ("scores, stock class", check_stock),
    ("picture", check_picture),
    ("samples", check_samples),
)
"""None of them needs another; `check_bf16` scores what `check_samples` has sampled."""
