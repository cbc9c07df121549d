"""Image codes behind the vocabulary of a language model: Liquid as it is published, and any other that is extended."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from limner.configs.errors import InputError
from limner.models.families.shared_vocabulary import LIQUID, SharedVocabularyPolicy
from limner.models.pictures.vqgan import ChameleonImageTokenizer
from limner.models.tokens.sequence import collate
from limner.models.tokens.template import Template
from limner.worlds.picture_stories.scenes import SCENES, story

from .tiny_vq import CODES, TEXT, greedy_text, published_tokenizer, replay_gap, saved_and_loaded, tiny_liquid, vqgan

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def liquid():
    return tiny_liquid()


def pictures():
    return ChameleonImageTokenizer(vqgan(0))


def llama(tokenizer, tied: bool, spare: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer) + spare, num_key_value_heads=1, tie_word_embeddings=tied, **TEXT)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            weight.normal_(mean=0.1, std=0.3)
    return model


def test_liquids_codes_begin_behind_its_tokenizer(liquid):
    size = len(liquid.processor.tokenizer)
    assert liquid.vocabulary.text_size == size and liquid.codes == slice(size, size + CODES)
    assert liquid.processor.template == LIQUID
    prompt = liquid.processor.encode(story(SCENES[:1]).prompt)
    text = liquid.processor.tokenizer.decode(prompt.ids_T)
    assert text.startswith("<bos><start_of_turn>user\n") and text.endswith("<end_of_turn>\n<start_of_turn>model\n")
    for typed in ("<boi>", "<end_of_turn>", "<eos>"):
        assert liquid.processor.tokenizer.convert_tokens_to_ids(typed) not in liquid.processor.text_ids(typed)


def test_liquids_guidance_is_by_its_unconditional_prompt(liquid):
    """Scored as by hand: the second forward reads `<bos><unconditional>` and then the completion, nothing else."""
    sequence = liquid.processor.encode(story(SCENES[:2]))
    without = [liquid.processor.tokenizer.convert_tokens_to_ids(name) for name in ("<bos>", "<unconditional>")]
    completion = sequence.ids_T[sequence.prompt_length :]
    states = []
    for ids_T in (sequence.ids_T, torch.cat([torch.tensor(without), completion])):
        order = torch.arange(len(ids_T))
        mask = (order[:, None] >= order)[None, None]
        states.append(liquid.hidden(ids_T[None], order[None], mask, None)[0, -len(completion) - 1 : -1])
    image = completion >= liquid.vocabulary.text_size
    scores = liquid.guided_image_logits(*(state[image] for state in states), guidance=7.0).log_softmax(-1)
    expected = scores.gather(1, completion[image, None] - liquid.vocabulary.text_size)[:, 0]
    rows = [[liquid.processor.encode(story(SCENES[:1])), sequence]]  # packed, so that places differ
    found, _ = liquid.log_probs(liquid.model, collate(rows, liquid.vocabulary), guidance=7.0)
    assert torch.allclose(found[0, -len(completion) :][image], expected, atol=1e-4)
    plain, _ = liquid.log_probs(liquid.model, collate(rows, liquid.vocabulary))
    assert not torch.allclose(plain[0, -len(completion) :][image], expected, atol=3e-3)


def test_liquids_greedy_text_is_the_stock_generate(liquid):
    ours, theirs = greedy_text(liquid)
    assert ours == theirs


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_replayed_log_probs_are_the_sampled_ones(liquid, guidance):
    gap, drawn = replay_gap(liquid, guidance)
    assert gap < 1e-4 and drawn >= 4


def test_what_is_saved_is_loaded(liquid, tmp_path):
    loaded = saved_and_loaded(liquid, tmp_path / "model")
    assert loaded.vocabulary == liquid.vocabulary
    batch = collate([[liquid.processor.encode(story(SCENES[:2]))]], liquid.vocabulary)
    with torch.no_grad():
        assert torch.equal(*(p.log_probs(p.model, batch)[0] for p in (liquid, loaded)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 200])
def test_an_extended_model_is_still_the_same_model_of_text(tied, spare, tmp_path):
    """`spare`: rows that the model has and its tokenizer does not, as many releases have them."""
    tokenizer = published_tokenizer(("<pad>", "<s>", "</s>"), (), code_is_special=False)
    model, kept = llama(tokenizer, tied, spare), len(tokenizer)
    ids = torch.randint(3, kept, (2, 9))
    with torch.no_grad():
        before = model(input_ids=ids).logits[..., :kept]
        text_rows = model.get_input_embeddings().weight[:kept].clone()
    policy = SharedVocabularyPolicy.extend(model, tokenizer, pictures())
    vocabulary = policy.vocabulary
    assert vocabulary.text_size == kept + 3 and policy.codes == slice(kept + 3, kept + 3 + CODES)
    assert model.config.vocab_size == kept + 3 + CODES == model.get_output_embeddings().weight.shape[0]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is embedding) is tied and torch.equal(embedding[:kept], text_rows)
    with torch.no_grad():
        after = model(input_ids=ids).logits
    assert torch.equal(after[..., :kept], before)

    mean = text_rows.mean(0)
    assert torch.allclose(embedding[kept : kept + 3], mean.expand(3, -1), atol=1e-6)
    codes = embedding[policy.codes] - mean
    spread = policy.processor.image_tokenizer.codebook()
    spread = spread - spread.mean(0)
    near = torch.corrcoef(torch.stack([torch.cdist(codes, codes).flatten(), torch.cdist(spread, spread).flatten()]))
    assert near[0, 1] > 0.8, "similar codes begin with similar embeddings"
    assert 0.5 < codes.std() / text_rows.std() < 2
    if not tied:
        assert (after[..., policy.codes] - after[..., policy.codes.start :][..., :1]).abs().max() < 1e-5, "all alike"
    loaded = saved_and_loaded(policy, tmp_path / "model")
    assert loaded.vocabulary == vocabulary
    batch = collate([[policy.processor.encode(story(SCENES[:2]))]], vocabulary)
    with torch.no_grad():
        assert torch.equal(*(p.log_probs(p.model, batch)[0] for p in (policy, loaded)))


def test_the_tokenizers_own_chat_is_the_template():
    tokenizer = published_tokenizer(("<pad>", "<s>", "</s>"), (), code_is_special=False)
    tokenizer.chat_template = CHAT
    policy = SharedVocabularyPolicy.extend(llama(tokenizer, True), tokenizer, pictures())
    template = policy.processor.template
    assert (template.start, template.answer) == ("<s>[user] ", "</s>[assistant]")
    assert (template.pad, template.bos, template.eos, template.boi) == ("<pad>", "<s>", "</s>", "<boi>")
    document = story(SCENES[:1])
    prompt = policy.processor.encode(document.prompt)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": document.prompt.text}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.ids_T.tolist() == tokenizer.encode(chat, add_special_tokens=False)
    assert "<answer>" not in tokenizer.get_vocab()


def test_control_tokens_that_are_missing_are_added_and_no_text_spells_them():
    tokenizer = published_tokenizer(("<|end|>", "<|begin|>", "<|stop|>"), (), code_is_special=False)
    tokenizer.pad_token = tokenizer.bos_token = None
    tokenizer.eos_token = "<|end|>"
    policy = SharedVocabularyPolicy.extend(llama(tokenizer, True), tokenizer, pictures())
    assert policy.processor.template == Template("<pad>", "<|end|>", "<|end|>", start="<|end|>")
    for token in ("<pad>", "<boi>", "<eoi>", "<answer>"):
        number = tokenizer.convert_tokens_to_ids(token)
        assert number in policy.vocabulary.never_sampled or token == "<boi>"
        assert number not in policy.processor.text_ids(f"so {token} there")
    assert tokenizer.eos_token_id not in policy.vocabulary.never_sampled
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="names no end-of-text token"):
        SharedVocabularyPolicy.extend(llama(tokenizer, True), tokenizer, pictures())


def test_there_is_no_dropout_in_training():
    tokenizer = published_tokenizer(("<pad>", "<s>", "</s>"), (), code_is_special=False)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2)
    policy = SharedVocabularyPolicy.extend(GPT2LMHeadModel(config), tokenizer, pictures())
    batch = collate([[policy.processor.encode(story(SCENES[:1]))]], policy.vocabulary)
    with torch.no_grad():
        scores = [policy.log_probs(policy.model.train(mode), batch)[0] for mode in (True, True, False)]
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[1], scores[2])
