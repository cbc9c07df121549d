"""What every family must do, as checks of a policy: each raises AssertionError where it does not.

`test_conformance.py` makes them of every family, and plants faults that they must find. The policy is tiny and of
random weights; it draws pictures and ends documents often (`families.lean`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import load, save
from limner.models.documents.candidates import offer
from limner.models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from limner.models.policy import UnifiedPolicy
from limner.models.sampler.generation import Sample, Sampling, generate
from limner.models.tokens.sequence import CODE, TokenBatch, TokenSequence, collate, images_before
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .depths import check_depth
from .schedules import check_rows_that_come_and_go

TOLERANCE = 1e-4
ROOM = 90
"""Tokens that hold at least two pictures of any tiny family."""


def text(words: str) -> TextSegment:
    return TextSegment(words, trainable=True)


def drawn(scene: int) -> ImageSegment:
    return ImageSegment(draw_scene(SCENES[scene]), trainable=True, origin="generated")


def given(scene: int) -> ImageSegment:
    return ImageSegment(draw_scene(SCENES[scene]))


def documents() -> list[InterleavedDocument]:
    """Of both modalities, one, and the other, with none, one and two given pictures, of different lengths."""
    parts: list[tuple[Segment, ...]] = [
        (TextSegment("Describe this picture: "), given(3), text("A red circle."), drawn(9), text("Then wait.\n")),
        (TextSegment("Fold"), drawn(1), text(" the paper."), drawn(2)),
        (given(5), TextSegment("or"), given(40), TextSegment("?"), text("A circle is on the left.")),
        (TextSegment("What is left?"), text("Nothing.")),
    ]
    return [InterleavedDocument(segments, f"document-{index}") for index, segments in enumerate(parts)]


def sampled(
    policy: UnifiedPolicy, sampling: Sampling, group: int = 2
) -> tuple[list[TokenSequence], list[Sample], list[TokenSequence]]:
    """Prompts, the samples of each, and prompts and samples as sequences."""
    processor = policy.processor
    prompts = processor.encode_all([document.prompt for document in documents()])
    samples = generate(policy, prompts, sampling, group)
    joined = [
        processor.join(prompts[row // group], sample.ids_C, processor.read(sample.ids_C.tolist()))
        for row, sample in enumerate(samples)
    ]
    return prompts, samples, joined


def scored(policy: UnifiedPolicy, batch: TokenBatch, model: torch.nn.Module | None = None, **options) -> Tensor:
    """Log-probs [B, T] by the training forward."""
    with torch.no_grad():
        return policy.log_probs(model or policy.model, batch, **options)[0]


def of_row(policy: UnifiedPolicy, sequence: TokenSequence, **options) -> Tensor:
    return scored(policy, collate([[sequence]], policy.vocabulary), **options)[0]


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape and (found - expected).abs().max() < tolerance


# ---- documents ----


def check_documents(policy: UnifiedPolicy) -> None:
    """A document is read back from its ids as it was; its prompt alone is its beginning."""
    processor = policy.processor
    for document in documents():
        sequence, prompt = processor.encode(document), processor.encode(document.prompt)
        start = sequence.prompt_length
        assert len(prompt) == start and prompt.ids_T.tolist() == sequence.ids_T[:start].tolist()
        reading = processor.read(sequence.ids_T[start:].tolist())
        expected = [segment for segment in document.segments if segment.trainable]
        assert reading.ended and not reading.cut_image and len(reading.document.segments) == len(expected)
        for found, segment in zip(processor.paint([reading.document])[0].segments, expected, strict=True):
            if isinstance(segment, TextSegment):
                assert found == segment
                continue
            assert isinstance(found, ImageSegment)
            codes = processor.image_tokenizer.encode([segment.pixels()])[0]
            assert np.array_equal(found.codes_N, codes)
            picture = processor.image_tokenizer.decode(codes[None])[0]
            assert np.array_equal(np.asarray(found.pixels()), np.asarray(picture))
        joined = processor.join(prompt, sequence.ids_T[start:], reading)
        assert torch.equal(joined.ids_T, sequence.ids_T) and torch.equal(joined.trainable_T, sequence.trainable_T)
        for a, b in zip(joined.slots, sequence.slots, strict=True):
            assert (a.start, a.stop, a.role) == (b.start, b.stop, b.role)
            assert (a.pixels is None) == (b.pixels is None) and (a.pixels is None or torch.equal(a.pixels, b.pixels))


def check_images_stand(policy: UnifiedPolicy) -> None:
    """Given and generated pictures stand at their slots, as codes or as features."""
    processor, vocabulary = policy.processor, policy.vocabulary
    length, controls = prod(processor.image_tokenizer.shape), vocabulary.controls
    assert vocabulary.image_length == length == vocabulary.image.count(CODE)
    for document in documents():
        sequence = processor.encode(document)
        assert len(sequence.slots) == len(document.images)
        for slot, image in zip(sequence.slots, document.images, strict=True):
            ids = sequence.ids_T[slot.start : slot.stop + 1]
            by_features = bool(vocabulary.features) and not image.trainable
            pattern = vocabulary.given if by_features else vocabulary.image
            assert [i if i < vocabulary.text_size else CODE for i in ids.tolist()] == list(pattern)
            assert sequence.ids_T[slot.start - 1] == controls.boi and ids[-1] == controls.eoi
            assert (slot.role, slot.segment) == (image.origin, document.segments.index(image))
            shown = image.pixels()
            if not by_features:
                codes = processor.image_tokenizer.encode([shown])[0]
                assert vocabulary.codes_of(ids[ids >= vocabulary.text_size]).tolist() == codes.tolist()
                shown = processor.image_tokenizer.decode(codes[None])[0]
            if controls.image in pattern:
                assert slot.pixels is not None and torch.equal(slot.pixels, processor.vision([shown])[0])  # type: ignore[misc]
            else:
                assert slot.pixels is None


def check_candidates(policy: UnifiedPolicy) -> None:
    """Given, generated and inserted pictures stand where they should: an inserted one is its marker, never pixels."""
    processor, size = policy.processor, policy.vocabulary.text_size
    prompt = offer("Tell the story. <img1>", [(draw_scene(SCENES[n]), "") for n in (3, 9, 40)])
    chosen = prompt.candidates
    parts: list[Segment] = [text("A circle."), chosen[3], chosen[1], text(" Then <img9> a "), drawn(5), chosen[2]]
    document = replace(prompt, segments=(*prompt.segments, *parts), id="d")
    sequence, before = processor.encode(document), len(prompt.segments)
    assert [slot.role for slot in sequence.slots] == ["given"] * 3 + ["generated"]
    assert [slot.segment for slot in sequence.slots] == [1, 3, 5, before + 4]
    for index, part in enumerate(parts):
        own = sequence.segment_T == before + index
        if isinstance(part, ImageSegment) and part.origin == "generated":
            continue
        assert own.any() and sequence.trainable_T[own].all()
        if isinstance(part, ImageSegment):
            ids = sequence.ids_T[own].tolist()
            assert max(ids) < size and processor.tokenizer.decode(ids).strip() == f"<img{part.candidate}>"
    begun = images_before(sequence)[sequence.segment_T == before + 5]
    assert begun.tolist() == [1] * len(begun), "an inserted picture counts as a drawn one"

    ids_C = sequence.ids_T[sequence.prompt_length :]
    reading = processor.read(ids_C.tolist(), chosen)
    assert reading.ended and reading.faults == {"out of range": 1}
    found = processor.paint([reading.document])[0].segments
    assert [s.text if isinstance(s, TextSegment) else (s.origin, s.candidate) for s in found] == [
        s.text if isinstance(s, TextSegment) else (s.origin, s.candidate) for s in parts
    ]
    assert all(a is b for a, b in zip(found, parts, strict=True) if isinstance(b, ImageSegment) and b.candidate)
    joined = processor.join(processor.encode(prompt), ids_C, reading)
    assert all(torch.equal(getattr(joined, name), getattr(sequence, name)) for name in ("ids_T", "trainable_T"))
    assert torch.equal(joined.segment_T[joined.prompt_length :] + before, sequence.segment_T[sequence.prompt_length :])
    close(of_row(policy, joined), of_row(policy, sequence))
    # Without candidates in the prompt the same ids are text.
    assert not any(image.origin == "inserted" for image in processor.read(ids_C.tolist()).document.images)
    for wrong in ((*parts, chosen[3]), (replace(chosen[3], candidate=4),)):
        try:
            processor.encode(replace(document, segments=(*prompt.segments, *wrong)))
        except InputError as error:
            assert "document 'd', segment" in str(error)
        else:
            raise AssertionError("a picture was inserted that is not there to be inserted")


def check_candidates_are_scored(policy: UnifiedPolicy) -> None:
    """Behind a prompt with candidates, samples are scored as they were drawn, whatever they are read as."""
    prompt = offer("Go on.", [(draw_scene(SCENES[n]), "a word") for n in (3, 9)])
    (start,) = policy.processor.encode_all([prompt])
    samples = generate(policy, [start], Sampling(ROOM, max_images=1, seed=9), 4)
    for sample in samples:
        reading = policy.processor.read(sample.ids_C.tolist(), prompt.candidates)
        sequence = policy.processor.join(start, sample.ids_C, reading)
        assert torch.equal(sequence.ids_T[len(start) :], sample.ids_C)
        close(of_row(policy, sequence, max_images=1)[len(start) :], sample.logp_C)


def check_pictures_are_seen(policy: UnifiedPolicy) -> None:
    """Another given picture changes what stands behind its first tokens, and nothing before; the order counts."""

    def hidden(first: int, second: int) -> tuple[Tensor, TokenSequence]:
        prompt = InterleavedDocument((TextSegment("See "), given(first), TextSegment("or"), given(second)))
        sequence = policy.processor.encode(prompt)
        batch = collate([[sequence]], policy.vocabulary)
        with torch.no_grad():
            features = policy.features_of(batch)
            return policy.hidden(batch.ids_BT, batch.positions_BT, batch.mask_BTT(), None, features)[0], sequence

    (a, sequence), (b, _), (swapped, _) = hidden(3, 40), hidden(3, 9), hidden(40, 3)
    first, second = sequence.slots
    assert torch.allclose(a[: second.start], b[: second.start], atol=1e-6)
    assert (a - b)[second.stop].abs().max() > 1e-4
    assert torch.allclose(a[: first.start], swapped[: first.start], atol=1e-6)
    assert (a - swapped)[first.stop].abs().max() > 1e-4 and (a - swapped)[-1].abs().max() > 1e-4


# ---- sampled is scored ----


def check_replay(policy: UnifiedPolicy) -> None:
    """The sampler's log-probs are those of the training forward, in rows of their own and packed."""
    for sampling in (
        Sampling(ROOM, temperature=0.7, max_images=1, seed=4),
        Sampling(ROOM, temperature=1.3, guidance=2.5, seed=5),
    ):
        _, samples, sequences = sampled(policy, sampling)
        ids = torch.cat([sample.ids_C for sample in samples])
        assert (ids >= policy.vocabulary.text_size).sum() >= 2 * policy.vocabulary.image_length, "too few pictures"
        options = {name: getattr(sampling, name) for name in ("temperature", "max_images", "guidance")}
        expected = [sample.logp_C for sample in samples]
        batch = collate([[sequence] for sequence in sequences], policy.vocabulary)
        logp_BT = scored(policy, batch, **options)
        assert not logp_BT[~batch.trainable_BT].any()
        for row, (sequence, logp_C) in enumerate(zip(sequences, expected, strict=True)):
            close(logp_BT[row, sequence.prompt_length : len(sequence)], logp_C)
        packed = scored(policy, collate([sequences[:3], sequences[3:]], policy.vocabulary), **options)
        found = [packed[0, : sum(map(len, sequences[:3]))], packed[1, : sum(map(len, sequences[3:]))]]
        close(torch.cat(found), torch.cat([logp_BT[row, : len(sequence)] for row, sequence in enumerate(sequences)]))


def check_guidance(policy: UnifiedPolicy) -> None:
    """Guidance of one, taken the long way, is none; more of it is another distribution."""
    _, plain, sequences = sampled(policy, Sampling(ROOM, seed=6))
    almost = np.nextafter(1.0, 2.0)
    _, guided, _ = sampled(policy, Sampling(ROOM, seed=6, guidance=almost))
    for a, b in zip(plain, guided, strict=True):
        assert a.ids_C.tolist() == b.ids_C.tolist()
        close(b.logp_C, a.logp_C)
    batch = collate([[sequence] for sequence in sequences], policy.vocabulary)
    none = scored(policy, batch)
    close(scored(policy, batch, guidance=almost), none)
    assert (scored(policy, batch, guidance=3.0) - none).abs().max() > 1e-2


# ---- batches ----


def check_rows_alone(policy: UnifiedPolicy) -> None:
    """Neither in sampling nor in scoring does a row depend on its neighbours."""
    sampling = Sampling(ROOM, guidance=1.5, seed=7)
    prompts, together, sequences = sampled(policy, sampling)
    for row in (1, 4):
        alone = generate(policy, [prompts[row // 2]], sampling, rows=[row])[0]
        assert alone.ids_C.tolist() == together[row].ids_C.tolist()
        close(alone.logp_C, together[row].logp_C)
    sequences += policy.processor.encode_all(documents())
    assert len({len(sequence) for sequence in sequences}) > 3, "rows of one length need no padding"
    logp_BT = scored(policy, collate([[sequence] for sequence in sequences], policy.vocabulary))
    for row, sequence in enumerate(sequences):
        close(logp_BT[row, : len(sequence)], of_row(policy, sequence))


def check_padding(policy: UnifiedPolicy) -> None:
    """Where the padding stands, and how much there is, changes nothing."""
    sequences = policy.processor.encode_all(documents())
    rows = [[sequence] for sequence in sequences]
    batch = collate(rows, policy.vocabulary)
    width = batch.ids_BT.shape[1]
    expected = scored(policy, batch, guidance=1.5)
    wide = scored(policy, collate(rows, policy.vocabulary, width + 9), guidance=1.5)
    close(wide[:, :width], expected)
    shift = [width - len(sequence) for sequence in sequences]

    def to_the_right(values: Tensor) -> Tensor:
        return torch.stack([row.roll(by) for row, by in zip(values, shift, strict=True)])

    moved = {name: to_the_right(getattr(batch, name)) for name in batch.__slots__ if name.endswith("_BT")}
    close(scored(policy, replace(batch, **moved), guidance=1.5), to_the_right(expected))


def check_training_mode(policy: UnifiedPolicy) -> None:
    """A model in training is the one that was sampled: without dropout."""
    batch = collate([policy.processor.encode_all(documents())], policy.vocabulary)
    expected = scored(policy, batch)
    policy.model.train()
    found = scored(policy, batch)
    policy.model.eval()
    close(found, expected)


# ---- gradients ----


def check_gradients(policy: UnifiedPolicy) -> None:
    """Text reaches the text head alone, pictures the image head alone, both together every trainable parameter."""
    vocabulary, parts = policy.vocabulary, policy.parts()
    size, trainable = vocabulary.text_size, [p for p in policy.model.parameters() if p.requires_grad]
    whole = collate([policy.processor.encode_all(documents())], vocabulary)
    ids = whole.ids_BT.unique()
    first = (ids[ids >= size] - size) % vocabulary.image_codes  # of the codes of a position
    held = {"text": int((ids < size).sum()), "image": len(first.unique())}
    assert held["image"] < vocabulary.image_codes and held["text"] < size - len(vocabulary.never_sampled)

    def reached(target_BT: Tensor) -> dict[str, int]:
        """Rows of each part with a gradient of the log-probs of these tokens."""
        policy.model.zero_grad()
        logp_BT, _ = policy.log_probs(policy.model, replace(whole, trainable_BT=whole.trainable_BT & target_BT))
        logp_BT.sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in policy.model.parameters())
        return {name: int((p.grad[rows] != 0).any(-1).sum()) for name, (p, rows) in parts.items()}  # type: ignore[index]

    text_only, image_only = reached(whole.ids_BT < size), reached(whole.ids_BT >= size)
    # A softmax reaches every choice. Rows that a batch reads may have a gradient of that, where the two are tied.
    rows = {name: len(range(*span.indices(len(parameter)))) for name, (parameter, span) in parts.items()}
    assert text_only["text head"] >= rows["text head"] - len(vocabulary.never_sampled)
    assert image_only["image head"] == rows["image head"] == vocabulary.image_codes
    assert text_only["image head"] <= held["image"] and image_only["text head"] <= held["text"]
    both = reached(torch.ones_like(whole.trainable_BT))
    assert all(both.values())
    assert all((p.grad != 0).any() and p.grad.isfinite().all() for p in trainable)
    # Without pictures of any kind a parameter's gradient is zero, not absent: ranks wait for each other's.
    plain = collate([policy.processor.encode_all(documents()[-1:])], vocabulary)
    policy.model.zero_grad()
    policy.log_probs(policy.model, plain)[0].sum().backward()
    assert all(p.grad is not None for p in trainable)
    policy.model.zero_grad()


# ---- grammar ----


def check_grammar(policy: UnifiedPolicy) -> None:
    """An image has exactly its codes; texts have none; `max_images` and `<eos>` hold."""
    vocabulary = policy.vocabulary
    controls, length = vocabulary.controls, prod(policy.processor.image_tokenizer.shape)
    ended = images = 0
    for sampling in (Sampling(ROOM, seed=1), Sampling(ROOM, 1.5, max_images=1, seed=2), Sampling(9, max_images=0)):
        for sample in sampled(policy, sampling)[1]:
            ids, found, at = sample.ids_C.tolist(), 0, 0
            assert controls.eos not in ids[:-1] and (ids[-1] == controls.eos or len(ids) == sampling.max_new_tokens)
            ended += ids[-1] == controls.eos
            while at < len(ids):
                if ids[at] != controls.boi:
                    assert ids[at] < vocabulary.text_size and ids[at] not in vocabulary.never_sampled
                    at += 1
                    continue
                found += 1
                picture = ids[at + 1 : at + 1 + len(vocabulary.image)]
                at += 1 + len(picture)
                if at < len(ids):
                    codes = [i for i in picture if i >= vocabulary.text_size]
                    assert len(codes) == length and picture[-1] == controls.eoi
                    assert max(codes) < vocabulary.text_size + vocabulary.image_codes**vocabulary.depth
            assert sampling.max_images is None or found <= sampling.max_images
            images += found
    assert ended > 1 and images > 4


def check_cut_images(policy: UnifiedPolicy) -> None:
    """A picture that the length limit cuts is dropped, and said to be; what is left is still scored as sampled."""
    cut = whole = 0
    for room in (9, policy.vocabulary.image_length + 9, 2 * len(policy.vocabulary.image)):
        _, samples, sequences = sampled(policy, Sampling(room, guidance=1.5, seed=1))
        for sample, sequence in zip(samples, sequences, strict=True):
            reading = policy.processor.read(sample.ids_C.tolist())
            codes, pictures = int((sample.ids_C >= policy.vocabulary.text_size).sum()), reading.document.images
            assert len(pictures) == codes // policy.vocabulary.image_length
            assert all(image.codes_N.shape == policy.vocabulary.code_shape for image in pictures)  # type: ignore[union-attr]
            begun = sample.ids_C[-1] == policy.vocabulary.controls.boi
            assert reading.cut_image >= bool(codes % policy.vocabulary.image_length or (begun and not pictures))
            assert reading.cut_image <= (not reading.ended)
            cut, whole = cut + reading.cut_image, whole + len(pictures)
            close(of_row(policy, sequence, guidance=1.5)[sequence.prompt_length :], sample.logp_C)
    assert cut > 1 and whole > 1


# ---- checkpoints ----


def check_checkpoint(policy: UnifiedPolicy, directory: Path) -> None:
    """Saved and loaded, in one file and in shards, it gives the same numbers."""
    batch = collate([policy.processor.encode_all(documents())], policy.vocabulary)
    expected = scored(policy, batch)
    save(policy, directory / "model")
    loaded = load(directory / "model")
    assert type(loaded) is type(policy) and loaded.vocabulary == policy.vocabulary
    assert loaded.processor.image_tokenizer.fingerprint() == policy.processor.image_tokenizer.fingerprint()
    again = collate([loaded.processor.encode_all(documents())], loaded.vocabulary)
    assert torch.equal(again.ids_BT, batch.ids_BT) and torch.equal(again.pixels_BI, batch.pixels_BI)
    assert torch.equal(scored(loaded, again), expected)
    trained = [[n for n, p in model.named_parameters() if p.requires_grad] for model in (policy.model, loaded.model)]
    assert trained[0] == trained[1]
    (directory / "model" / "model.safetensors").unlink()
    policy.model.save_pretrained(directory / "model", max_shard_size="50KB")
    assert len(list((directory / "model").glob("model-*.safetensors"))) > 1
    assert torch.equal(scored(load(directory / "model"), batch), expected)


def check_adapter(policy: UnifiedPolicy) -> None:
    """An adapter is where something may be trained, and merged into the weights it gives the same numbers.

    The policy is adapted in place: use it no more.
    """
    from peft import get_peft_model

    from limner.train.scale.lora import LoraConfig
    from limner.train.scale.sharding import merged_copy

    batch = collate([policy.processor.encode_all(documents())], policy.vocabulary)
    before = scored(policy, batch)
    config = LoraConfig(rank=2).adapter(policy.model)
    fixed = {name for name, parameter in policy.model.named_parameters() if not parameter.requires_grad}
    get_peft_model(policy.model, config)  # type: ignore[arg-type]
    adapted = {name.split(".lora_")[0] for name, _ in policy.model.named_parameters() if ".lora_" in name}
    assert adapted and not {name.rpartition(".")[0] for name in fixed} & adapted
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    found = scored(policy, batch)
    assert (found - before).abs().max() > 1e-2
    close(scored(merged_copy(policy, config), batch), found)


CHECKS: Sequence[Callable[[UnifiedPolicy], None]] = (
    check_documents,
    check_images_stand,
    check_candidates,
    check_candidates_are_scored,
    check_pictures_are_seen,
    check_replay,
    check_guidance,
    check_rows_alone,
    check_rows_that_come_and_go,
    check_padding,
    check_training_mode,
    check_gradients,
    check_grammar,
    check_cut_images,
    check_depth,
)
"""Those of a policy that they leave as it was."""
