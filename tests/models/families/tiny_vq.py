"""Tiny policies of the families whose pictures are codes of the language model's own ids: Chameleon, Emu3, Liquid.

Each is written as its authors publish it, in small, on its real classes, and read by the family's `from_upstream`.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    Emu3Config,
    Emu3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedTokenizerFast,
)

from limner.models.checkpoints.folder import load, save
from limner.models.families.chameleon import ChameleonPolicy
from limner.models.families.emu3 import Emu3Policy
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.pictures.contract import centred_squares
from limner.models.pictures.vqgan import ChameleonVQGAN
from limner.models.policy import UnifiedPolicy
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.sequence import collate
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story_prompt

CODES, SIDE = 64, 8
"""Image codes; pixels of a picture, which is 4 x 4 codes."""
SENTENCES = (
    "A red circle is on the left.",
    "Fold the paper in half.\n\n",
    "Describe this picture: ",
    "You are USER: 4*4",
)
VQ = {
    "embed_dim": 8,
    "num_embeddings": CODES,
    "latent_channels": 8,
    "resolution": SIDE,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}


def published_tokenizer(
    controls: Sequence[str], codes: Sequence[str], code_is_special: bool
) -> PreTrainedTokenizerFast:
    """A byte-level BPE: control tokens (pad, begin and end of text first), then codes, then text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(SENTENCES * 4, trainer)
    words = sorted(trained.get_vocab(), key=trained.token_to_id)
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in words[: words.index(word)] and word[cut:] in words[: words.index(word)]
    ]
    vocabulary = {token: index for index, token in enumerate([*controls, *codes, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    special = [*controls, *(codes if code_is_special else ())]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    pad, bos, eos = controls[:3]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)


def ids_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


@torch.no_grad()
def spread(vqmodel: nn.Module) -> None:
    """Gives the codebook latents of pictures, so that different pictures have different codes."""
    seen = []
    hook = vqmodel.quantize.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = centred_squares([draw_scene(scene) for scene in SCENES[::4]], SIDE)
    sizes = () if isinstance(vqmodel, ChameleonVQGAN) else (torch.full((len(pixels), 2), SIDE),)
    vqmodel.encode(pixels, *sizes)
    hook.remove()
    latents = seen[0].movedim(-3, -1).flatten(0, -2).unique(dim=0)
    vqmodel.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:CODES]])


@torch.no_grad()
def lean(model: nn.Module, tokenizer: PreTrainedTokenizerFast, boi: str) -> None:
    """Makes `boi` and the end of text likely: every id pushes the first number down, so its column is a bias."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for weight in {embedding, head}:
        weight.normal_(std=0.3)
        weight[:, 0] = -0.5
    head[tokenizer.convert_tokens_to_ids(boi), 0] = -4.5
    head[tokenizer.eos_token_id, 0] = -4.0


def vqgan(seed: int) -> ChameleonVQGAN:
    torch.manual_seed(seed)
    model = ChameleonVQGAN(ChameleonVQVAEConfig(**VQ)).eval()
    spread(model)
    return model


def code_name(code: int) -> str:
    """As Chameleon spells it: digits as letters from A on."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def published_chameleon(directory: Path, seed: int = 0, decoder: bool = True) -> None:
    """Chameleon's layout, the ids of codes not in the order of codes; with the decoder it is Anole's."""
    torch.manual_seed(seed)
    controls = ("<pad>", "<s>", "</s>", "<unk>", "<eoss>", "<racm3:break>", "<reserved08706>", "<image>")
    shuffled = [code_name(int(code)) for code in torch.randperm(CODES)]
    tokenizer = published_tokenizer(controls, shuffled, code_is_special=False)
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        vocabulary_map=tokenizer.get_vocab(),
        vq_config=VQ,
        **ids_of(tokenizer),
        **TEXT,
    )
    model = ChameleonForConditionalGeneration(config)
    lean(model, tokenizer, "<racm3:break>")
    pictures = vqgan(seed)
    state = model.state_dict() | {f"model.vqmodel.{name}": value for name, value in pictures.state_dict().items()}
    if not decoder:
        state = {name: value for name, value in state.items() if "decoder" not in name}
    model.save_pretrained(directory, state_dict=state)
    tokenizer.save_pretrained(directory)


def published_emu3(directory: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    controls = ["<|endoftext|>", "<|extra_203|>", "<|extra_204|>", "<image>", "<|image token|>"]
    controls += ["<|image start|>", "<|image end|>", "<|extra_200|>", "<|extra_201|>"]
    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    tokenizer = published_tokenizer(controls, codes, code_is_special=True)
    config = Emu3Config(
        text_config={"vocab_size": len(tokenizer), "num_key_value_heads": 1, **ids_of(tokenizer), **TEXT},
        vq_config={
            "codebook_size": CODES,
            "base_channels": 32,
            "channel_multiplier": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [1],
            "hidden_size": 64,
        },
        vocabulary_map=tokenizer.get_vocab(),
    )
    model = Emu3ForConditionalGeneration(config)
    lean(model, tokenizer, "<|image start|>")
    spread(model.model.vqmodel)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def published_liquid(directory: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    controls = (
        "<pad>",
        "<bos>",
        "<eos>",
        "<unk>",
        "<boi>",
        "<eoi>",
        "<unconditional>",
        "<start_of_turn>",
        "<end_of_turn>",
    )
    tokenizer = published_tokenizer(controls, (), code_is_special=False)
    size = len(tokenizer) + CODES
    model = GemmaForCausalLM(
        GemmaConfig(vocab_size=size, num_key_value_heads=2, head_dim=16, **ids_of(tokenizer), **TEXT)
    )
    lean(model, tokenizer, "<boi>")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def released_vqgan(directory: Path, seed: int = 0) -> Path:
    """`vqgan.ckpt` and `vqgan.yaml` as Meta released them, and as Liquid ships them."""
    params = {"n_embed": CODES, "embed_dim": VQ["embed_dim"], "lossconfig": {"target": "x"}, "ckpt_path": "null"}
    shape = {"double_z": False, "in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0}
    shape |= {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8, "resolution": SIDE}
    # Text made of JSON is YAML as well.
    text = str({"model": {"params": {**params, "ddconfig": shape}}}).replace("False", "false").replace("'", '"')
    (directory / "vqgan.yaml").write_text(text)
    state = dict(vqgan(seed).state_dict()) | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3}, directory / "vqgan.ckpt")
    return directory / "vqgan.ckpt"


def tiny_chameleon(seed: int = 0) -> UnifiedPolicy:
    with tempfile.TemporaryDirectory() as name:
        published_chameleon(Path(name), seed)
        return ChameleonPolicy.from_upstream(Path(name))


def tiny_emu3(seed: int = 0) -> UnifiedPolicy:
    with tempfile.TemporaryDirectory() as name:
        published_emu3(Path(name), seed)
        return Emu3Policy.from_upstream(Path(name), image_size=SIDE)


def tiny_liquid(seed: int = 0) -> UnifiedPolicy:
    with tempfile.TemporaryDirectory() as name:
        published_liquid(Path(name), seed)
        return SharedVocabularyPolicy.from_upstream(Path(name), image_tokenizer=released_vqgan(Path(name), seed))


# ---- what each family's tests ask ----


def prompts(policy: UnifiedPolicy) -> list:
    documents = [story_prompt(SCENES[:2]), story_prompt(SCENES[7:8])]
    return policy.processor.encode_all(documents)


def own_ids(policy: UnifiedPolicy, ids: torch.Tensor) -> torch.Tensor:
    """Joint ids as those of the stock model, [1, T]."""
    return policy._own(ids)[None]


def replay_gap(policy: UnifiedPolicy, guidance: float = 1.0) -> tuple[float, int]:
    """Largest difference of sampled and replayed log-probs in training mode, and how many pictures were drawn."""
    sampling = Sampling(70, temperature=0.9, max_images=2, guidance=guidance, seed=1)
    starts = prompts(policy)
    samples = generate(policy, starts, sampling, 3)
    readings = [policy.processor.read(sample.ids_C.tolist()) for sample in samples]
    policy.model.train()
    gap = 0.0
    for index, (sample, reading) in enumerate(zip(samples, readings, strict=True)):
        prompt = starts[index // 3]
        batch = collate([[policy.processor.join(prompt, sample.ids_C, reading)]], policy.vocabulary)
        with torch.no_grad():
            logp_BT, _ = policy.log_probs(policy.model, batch, 0.9, max_images=2, guidance=guidance)
        gap = max(gap, (logp_BT[0, len(prompt) :] - sample.logp_C).abs().max().item())
    policy.model.eval()
    return gap, sum(len(reading.document.images) for reading in readings)


def saved_and_loaded(policy: UnifiedPolicy, directory: Path) -> UnifiedPolicy:
    save(policy, directory)
    return load(directory)


def greedy_text(policy: UnifiedPolicy, limit: int = 24) -> tuple[list[int], list[int]]:
    """Text without pictures by our sampler and by the stock `generate`, which may not say what our grammar forbids."""
    control, head = policy.vocabulary.controls, policy.model.get_output_embeddings().weight
    prompt = prompts(policy)[0]
    ids, forbidden = own_ids(policy, prompt.ids_T), [*policy.vocabulary.never_sampled, control.boi]
    leaning = head[control.eos, 0].item()
    with torch.no_grad():
        head[control.eos, 0] = 0  # else it ends at once
        ours = generate(policy, [prompt], Sampling(limit, temperature=0, max_images=0))[0].ids_C.tolist()
        theirs = policy.model.generate(ids, max_new_tokens=limit, do_sample=False, suppress_tokens=forbidden)
        head[control.eos, 0] = leaning
    return ours, theirs[0, ids.shape[1] :].tolist()
