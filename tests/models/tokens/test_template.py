"""Chat templates and image grammars other than the embedded model's."""

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.processing import Processor
from limner.models.tokens.sequence import CODE, collate
from limner.models.tokens.template import Template
from limner.worlds.picture_stories.scenes import SCENES, story, story_prompt

ROWS = Template(start="<bos>Ask: ", answer=" Answer:", header="4*4", row_end="\n", footer=".")
"""Rows of codes with an end of line each, as Emu3 has them, and a template of ordinary words."""


@pytest.fixture(scope="module", params=["empty", "padded"])
def policy(request, make_policy, processor):
    template = Template(**{**{name: getattr(ROWS, name) for name in Template.__slots__}, "guidance": request.param})
    return SharedVocabularyPolicy(
        make_policy(0).model, Processor(processor.tokenizer, processor.image_tokenizer, template)
    )


def test_the_pattern_of_an_image(policy, processor):
    header, line, footer = (processor.text_ids(text) for text in ("4*4", "\n", "."))
    expected = [*header, *[*[CODE] * 4, *line] * 4, *footer, policy.vocabulary.controls.eoi]
    assert list(policy.vocabulary.image) == list(policy.vocabulary.given) == expected


def test_documents_round_trip_through_the_pattern(policy):
    document = story(SCENES[:2])
    sequence = policy.processor.encode(document)
    reading = policy.processor.read(sequence.ids_T[sequence.prompt_length :].tolist())
    assert reading.ended and not reading.cut_image
    codes = policy.processor.image_tokenizer.encode([image.pixels() for image in document.images])
    assert [image.codes_N.tolist() for image in reading.document.images] == [part.tolist() for part in codes]
    assert torch.equal(reading.chosen_C, sequence.trainable_T[sequence.prompt_length :])
    joined = policy.processor.join(
        policy.processor.encode(document.prompt), sequence.ids_T[sequence.prompt_length :], reading
    )
    own = [(slot.start, slot.stop, slot.role) for slot in sequence.slots]
    assert [(slot.start, slot.stop, slot.role) for slot in joined.slots] == own


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampled_is_replayed(policy, guidance):
    prompts = policy.processor.encode_all([story_prompt(SCENES[:2]), story_prompt(SCENES[3:4])])
    samples = generate(policy, prompts, Sampling(90, seed=3, guidance=guidance, max_images=3), 6)
    readings = [policy.processor.read(sample.ids_C.tolist()) for sample in samples]
    assert sum(len(reading.document.images) for reading in readings) > 3
    prompts = [prompt for prompt in prompts for _ in range(6)]
    rows = [
        [policy.processor.join(prompt, sample.ids_C, reading)]
        for prompt, sample, reading in zip(prompts, samples, readings, strict=True)
    ]
    with torch.no_grad():
        options = {"guidance": guidance, "max_images": 3}
        logp_BT, _ = policy.log_probs(policy.model, collate(rows, policy.vocabulary), **options)
    for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        replayed = logp_BT[row, len(prompt) : len(prompt) + len(sample.ids_C)]
        assert (replayed - sample.logp_C).abs().max() < 1e-4


def test_a_template_of_another_tokenizer_is_refused(processor):
    with pytest.raises(InputError, match="no token <begin_of_image> .boi."):
        Processor(processor.tokenizer, processor.image_tokenizer, Template(boi="<begin_of_image>"))
    for value in ([], {"boy": "<boi>"}, {"boi": 3}, {"reencode": "yes"}):
        with pytest.raises(ValueError, match="template"):
            Template.from_json(value)
