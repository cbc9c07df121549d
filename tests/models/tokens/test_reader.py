"""Ids read one by one say what they say together, in any tokenizer, at a cost in proportion to their number."""

import random

import pytest
import torch

from limner.models.tokens.reader import BEGUN, BLOCK, Reader

from ..families.tiny import FAMILIES

TEXT = (
    "  Na\u00efve \U0001f642\U0001f469\u200d\U0001f680 \u65e5\u672c\u8a9e, don't:\n\n"
    "  a  b\t1. It's <img1> \u0643\u062a\u0627\u0628. "
)


@pytest.mark.parametrize("name", ["gemma3", "janus", "emu3", "liquid", "chameleon"])
def test_pieces_are_the_text_and_few_ids_are_decoded(name, monkeypatch):
    processor = FAMILIES[name]().processor
    ids = processor.text_ids(TEXT * 12)
    chance = random.Random(0)
    for start in (0, 1, 3):
        ids_here = ids[start:] if start < 3 else [chance.randrange(processor.vocabulary.text_size) for _ in range(400)]
        ids_here = [number for number in ids_here if number not in processor.vocabulary.never_sampled]
        control = processor.vocabulary.controls
        ids_here = [number for number in ids_here if number not in (control.boi, control.eos)]
        decoded, decode = [], processor.tokenizer.decode
        reader = Reader(processor, {})
        monkeypatch.setattr(
            processor.tokenizer, "decode", lambda ids, d=decode, n=decoded, **more: n.append(len(ids)) or d(ids, **more)
        )
        pieces = [piece for token in ids_here for piece in reader.take(token)]
        monkeypatch.setattr(processor.tokenizer, "decode", decode)
        spent = sum(decoded)
        pieces += reader.take(None)
        assert "".join(pieces) == decode(ids_here, skip_special_tokens=False)
        assert spent < 3 * BLOCK * len(ids_here)


@pytest.mark.parametrize("stop", [(), ("ut a",), ("1. It",)])
@pytest.mark.parametrize("name", ["gemma3", "janus"])
def test_ids_that_come_several_at_a_time_say_the_same(name, stop):
    processor, chance = FAMILIES[name]().processor, random.Random(0)
    control, picture = processor.vocabulary.controls, [*processor.vocabulary.image]
    codes = [number if number >= 0 else int(processor.vocabulary.ids_of(torch.tensor([2]))[0]) for number in picture]
    ids = [*processor.text_ids(TEXT), control.boi, *codes, *processor.text_ids(" But a b. " + TEXT), control.eos]
    one, several = Reader(processor, {}, stop), Reader(processor, {}, stop)
    parts = []
    for token in [*ids, None]:
        parts += [] if one.stopped else one.take(token)
    together, start = [], 0
    while start < len(ids):
        end = start + chance.randrange(1, 9)
        together += several.take_all(ids[start:end])
        start = end
    together += several.take_all([None])
    assert joined(together) == joined(parts) and several.ids == one.ids and several.stopped == one.stopped == bool(stop)


def joined(parts):
    """Texts between what is none."""
    found = [""]
    for part in parts:
        if isinstance(part, str):
            found[-1] += part
        else:
            found += ["begun" if part is BEGUN else part.codes_N.tolist(), ""]
    return found
