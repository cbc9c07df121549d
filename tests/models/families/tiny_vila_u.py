"""A tiny VILA-U as its authors released it: three folders of named tensors, from the description of that layout.

Nothing here is the loader's: names and shapes stand as in mit-han-lab/vila-u-7b-256, the stock parts are stock.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import sentencepiece_model_pb2_new as pieces

from limner.models.families.vila_u.policy import VilaUPolicy
from limner.models.pictures.contract import centred_squares
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .tiny_vq import SENTENCES, lean

HIDDEN, ENTRY, WIDTH, CODES, DEPTH = 32, 48, 24, 64, 3
"""Of the Llama, of SigLIP and so of a codebook's entry, of the depth transformer."""
SIDE, PATCH, LATENT, CHANNELS = 16, 4, 8, 32
LEVELS = (1, 1, 2)
LLM = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


def published_vila_u(directory: Path, shared: bool = False, seed: int = 0) -> None:
    """`shared`: all depths have one codebook, which the file repeats, as it does when they do not."""
    torch.manual_seed(seed)
    for name in ("llm", "mm_projector", "vision_tower"):
        (directory / name).mkdir(parents=True)
    parts = {"llm_cfg": "llm", "mm_projector_cfg": "mm_projector", "vision_tower_cfg": "vision_tower"}
    _write(directory / "config.json", {"model_type": "vila_u_llama", "architectures": ["VILAULlamaModel"], **parts})
    size = _tokenizer(directory / "llm")
    _write(directory / "llm" / "config.json", LLM | {"vocab_size": size})
    llama = LlamaForCausalLM(LlamaConfig.from_pretrained(directory / "llm", initializer_range=0.1))
    save_file(llama.state_dict(), directory / "llm" / "model.safetensors", {"format": "pt"})
    _write(directory / "mm_projector" / "config.json", {"mm_projector_type": "mlp2x_gelu", "model_type": "projector"})
    projector = _linear("layers.0", HIDDEN, ENTRY, 1.5) | _linear("layers.2", HIDDEN, HIDDEN, 1.7)
    save_file(projector, directory / "mm_projector" / "model.safetensors", {"format": "pt"})
    encoder = _encoder()
    tower = _siglip(encoder) | _quantizer(_features(encoder), shared) | _decoder() | _depth_transformer()
    save_file(tower, directory / "vision_tower" / "model.safetensors", {"format": "pt"})
    pictures = {"pretrained_model": "google/siglip-large-patch16-256", "embed_dim": ENTRY, "n_embed": CODES}
    depth = {"head": {"n_layer": 2, "block": {"n_head": 4}}, "embed_dim": WIDTH, "block_size": [4, 4, DEPTH]}
    _write(directory / "vision_tower" / "config.json", {"rqvaesiglip": pictures, "rqtransformer": depth})


def tiny_vila_u(shared: bool = False) -> VilaUPolicy:
    with tempfile.TemporaryDirectory() as name:
        published_vila_u(Path(name), shared)
        policy = VilaUPolicy.from_upstream(Path(name))
    lean(policy.model, policy.processor.tokenizer, policy.processor.template.boi)
    last = policy.network.projector[2]
    with torch.no_grad():
        last.weight[0], last.bias[0] = 0, -0.5  # what is embedded by another way leans as well
    return policy


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2))


def _tokenizer(directory: Path) -> int:
    """A byte-pair model of SentencePiece as Llama has it: controls, bytes, pieces by rank, then single characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(SENTENCES * 4, trainers.BpeTrainer(vocab_size=90, show_progress=False))
    words = sorted(trained.get_vocab(), key=trained.token_to_id)
    model = pieces.ModelProto()
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    kinds = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    kinds += [(word, 1) for word in sorted(words, key=lambda word: len(word) == 1)]
    for number, (word, kind) in enumerate(kinds):
        model.pieces.add(piece=word, type=kind, score=-float(number))
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())
    added = ("<im_start>", "<im_end>", "<vi_start>", "<vi_end>")
    _write(directory / "added_tokens.json", {token: len(kinds) + number for number, token in enumerate(added)})
    return len(kinds) + len(added)


def _linear(name: str, out: int, into: int, scale: float = 1.0) -> dict[str, Tensor]:
    weight = torch.randn(out, into) * scale / into**0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.randn(out) * 0.1}


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width), f"{name}.bias": 0.1 * torch.randn(width)}


def _conv(name: str, out: int, into: int, side: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.randn(out, into, side, side) / (into * side**2) ** 0.5,
        f"{name}.bias": torch.randn(out) * 0.1,
    }


def _encoder() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=ENTRY,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=16,
        image_size=SIDE,
        patch_size=PATCH,
    )
    return SiglipVisionModel(config).eval()


def _siglip(encoder: SiglipVisionModel) -> dict[str, Tensor]:
    """Of the encoder, and of what nobody needs: the text half, and the scale of its loss."""
    prefix = "rqvaesiglip.siglip_model."
    state = {f"{prefix}vision_model.{name}": value for name, value in encoder.state_dict().items()}
    state[f"{prefix}text_model.embeddings.token_embedding.weight"] = torch.zeros(3, 2)
    return state | {f"{prefix}logit_scale": torch.zeros(1), "rqvaesiglip.logit_scale": torch.zeros(1)}


@torch.no_grad()
def _features(encoder: SiglipVisionModel) -> Tensor:
    """What its second last layer makes of pictures of the embedded world, [n, W]."""
    pixels = centred_squares([draw_scene(scene) for scene in SCENES[::4]], SIDE)
    return encoder(pixels, output_hidden_states=True).hidden_states[-2].flatten(0, 1)


def _quantizer(features: Tensor, shared: bool) -> dict[str, Tensor]:
    """Entries are features of pictures, then of what is left of them, so that different pictures have other codes."""
    books, rest = [], features
    for _ in range(DEPTH):
        entries = rest.unique(dim=0)
        book = books[0] if shared and books else entries[torch.randperm(len(entries))[:CODES]]
        books.append(book)
        rest = rest - book[torch.cdist(rest, book).argmin(1)]
    state = {}
    for number, book in enumerate(books):
        name = f"rqvaesiglip.quantizer.codebooks.{number}"
        state[f"{name}.weight"] = torch.cat([book, torch.zeros(1, ENTRY)])
        state |= {f"{name}.embed_ema": book.clone(), f"{name}.cluster_size_ema": torch.ones(CODES)}
    return state


def _decoder() -> dict[str, Tensor]:
    widths, prefix = [CHANNELS * level for level in LEVELS], "rqvaesiglip.decoder."
    top = widths[-1]

    def block(name: str, into: int, out: int) -> dict[str, Tensor]:
        state = _norm(f"{name}.norm1", into) | _conv(f"{name}.conv1", out, into, 3)
        state |= _norm(f"{name}.norm2", out) | _conv(f"{name}.conv2", out, out, 3)
        return state | (_conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {})

    def attention(name: str, width: int) -> dict[str, Tensor]:
        state = _norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            state |= _conv(f"{name}.{part}", width, width, 1)
        return state

    state = _conv("conv_in", top, LATENT, 3) | block("mid.block_1", top, top) | attention("mid.attn_1", top)
    state |= block("mid.block_2", top, top) | _norm("norm_out", widths[0]) | _conv("conv_out", 3, widths[0], 3)
    into = top
    for level in reversed(range(len(LEVELS))):
        for number in range(2):
            state |= block(f"up.{level}.block.{number}", into, widths[level])
            into = widths[level]
            if level == len(LEVELS) - 1:
                state |= attention(f"up.{level}.attn.{number}", into)
        state |= _conv(f"up.{level}.upsample.conv", into, into, 3) if level else {}
    state = {f"{prefix}{name}": value for name, value in state.items()}
    return state | _conv("rqvaesiglip.post_quant_conv", LATENT, ENTRY, 1)


def _depth_transformer() -> dict[str, Tensor]:
    state = _linear("in_mlp_1", WIDTH, ENTRY) | _linear("in_mlp_2", WIDTH, HIDDEN, 2.0)
    state["pos_emb_d"] = torch.randn(1, DEPTH, WIDTH)
    for number in range(2):
        name = f"head_transformer.blocks.{number}"
        state |= _norm(f"{name}.ln1", WIDTH) | _norm(f"{name}.ln2", WIDTH)
        for part in ("key", "query", "value", "proj"):
            state |= _linear(f"{name}.attn.{part}", WIDTH, WIDTH)
        state |= _linear(f"{name}.mlp.0", 4 * WIDTH, WIDTH) | _linear(f"{name}.mlp.2", WIDTH, 4 * WIDTH)
    state |= _norm("classifier_mlp.layer_norm", WIDTH) | _linear("classifier_mlp.linear", CODES, WIDTH)
    return {f"rqtransformer.{name}": value for name, value in state.items()}
