"""The text tokenizer of VILA-U: Llama 2's, a SentencePiece model, with the tokens that were added to it.

SentencePiece puts a space before a text. A document is a row of texts and pictures, and where one text follows another
that space would be read back as one that nobody wrote; so here no text gets it, and the template spells it where the
model was trained with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges

from ....configs.errors import InputError, plain_file, reading
from ....configs.json_text import parse_json

SPACE = "\u2581"
NORMAL, UNKNOWN, BYTE = 1, 2, 6
"""Types of pieces; others are control tokens, or whole words of a user's."""
BPE = 2
"""The type of such a model; Unigram is 1."""
CONTROLS = ("<im_start>", "<im_end>")
LARGEST_FILE = 64 * 2**20


def read_tokenizer(directory: Path, config: Any) -> PreTrainedTokenizerFast:
    """Of `tokenizer.model` and `added_tokens.json`; begin, end and padding are those of the model's configuration.

    Raises InputError for a file that is missing or of another kind, and for ids that are not where they should be.
    """
    path = directory / "tokenizer.model"
    if not path.is_file():
        raise InputError(f"{directory}: no tokenizer.model")
    with reading(path):
        model = import_protobuf().ModelProto()
        model.ParseFromString(plain_file(path, LARGEST_FILE).read_bytes())
        pieces = list(model.pieces)
        if not pieces or model.trainer_spec.model_type != BPE:
            raise InputError(f"{path}: no byte-pair model of SentencePiece")
    vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
    control = [piece.piece for piece in pieces if piece.type not in (NORMAL, BYTE)]
    unknown = next((piece.piece for piece in pieces if piece.type == UNKNOWN), None)
    merges = generate_merges(vocabulary, skip_tokens=control)
    backend = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True, unk_token=unknown))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    added = _added(directory, len(pieces))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*control, *added)])
    named = {f"{name}_token": _token(backend, config, name) for name in ("bos", "eos", "pad")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown, **named)


def _added(directory: Path, first: int) -> list[str]:
    """The added tokens by their ids, which go on where the pieces end."""
    path = directory / "added_tokens.json"
    if not path.is_file():
        raise InputError(f"{directory}: no added_tokens.json; it says which ids {' and '.join(CONTROLS)} are")
    with reading(path):
        ids = parse_json(path.read_text(encoding="utf-8"))
        known = isinstance(ids, dict) and all(type(number) is int for number in ids.values())
        tokens = sorted(ids, key=ids.__getitem__) if known else []
        if not tokens or [ids[token] for token in tokens] != list(range(first, first + len(tokens))):
            raise InputError(f"{path}: its ids do not go on from {first}, where those of tokenizer.model end")
        if missing := [token for token in CONTROLS if token not in ids]:
            raise InputError(f"{path}: no {missing[0]}; it is another model's")
    return tokens


def _token(backend: Tokenizer, config: Any, name: str) -> str:
    number = getattr(config, f"{name}_token_id")
    token = None if number is None or number < 0 else backend.id_to_token(number)
    if token is None:
        raise InputError(f"config.json: {name}_token_id is {number}, which is no token of the tokenizer")
    return token
