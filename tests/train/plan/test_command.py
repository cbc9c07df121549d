"""`limner plan`: its arithmetic against real tensors, its answer, and its advice."""

import gc
import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import save
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.sampler.request import Request, Sampling
from limner.models.sampler.slots import Sampler
from limner.models.tokens.processing import Processor
from limner.models.tokens.sequence import TokenBatch, TokenSequence
from limner.train.plan import memory
from limner.train.plan.command import GB, advise, main, model_shape, report
from limner.train.plan.memory import ModelShape, Run, predict
from limner.train.scale import precision
from limner.train.scale.lora import LoraConfig, adapted, linear_layers, train_rows
from limner.train.scale.precision import sampling_weights, train_in_fp32

from ...models.families.test_shared_vocabulary import llama, pictures
from ...models.families.tiny import FAMILIES
from ...models.families.tiny_vq import published_tokenizer

PROMPT, ROWS = 16, 2
RUN = Run(
    rows=ROWS,
    steps_per_generation=1,
    accumulation=1,
    num_generations=2,
    prompt=PROMPT,
    completion=48,
    half=False,
    checkpointing=False,
    image_share=0.25,
)
GROUPED = LlamaConfig(
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)
LARGE = ModelShape(
    parameters=7_000_000_000,
    trainable=7_000_000_000,
    embedding=264_000 * 4096,
    head=264_000 * 4096,
    layer=(7_000_000_000 - 2 * 264_000 * 4096) // 32,
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocabulary=264_000,
    image_codes=8192,
    linear=32 * 218_103_808,
    linear_sides=32 * 98_304,
    stored=2,
)
LARGE_RUN = Run(
    rows=4,
    steps_per_generation=4,
    accumulation=4,
    num_generations=8,
    prompt=500,
    completion=1500,
    checkpointing=False,
    reference=True,
)


@pytest.fixture
def policy(processor: Processor) -> SharedVocabularyPolicy:
    torch.manual_seed(0)
    return SharedVocabularyPolicy.create(GROUPED, processor)


def shape_of(policy: SharedVocabularyPolicy, folder) -> ModelShape:
    policy.model.config.save_pretrained(folder)
    return model_shape(folder, policy.vocabulary.image_codes)


def batch_of(policy: SharedVocabularyPolicy, run: Run) -> TokenBatch:
    """Rows of one document each; the last share of every completion is image codes."""
    text, length = policy.vocabulary.text_size, run.length
    ids_BT = torch.randint(100, text, (run.rows, length))
    ids_BT[:, length - round(run.completion * run.image_share) :] = text
    rows_BT = torch.arange(length).expand(run.rows, length)
    zeros_BT = torch.zeros_like(ids_BT)
    answer_BT, no_pictures = rows_BT >= run.prompt, torch.zeros(run.rows, 0)
    sequence_BT = zeros_BT if run.rollouts else (rows_BT >= length // 2).long()  # a warm-up packs its rows
    return TokenBatch(ids_BT, rows_BT, sequence_BT, zeros_BT, answer_BT, zeros_BT, ~answer_BT, no_pictures)


def bytes_saved(policy: SharedVocabularyPolicy, run: Run, under) -> int:
    """Bytes that autograd keeps for the backward pass of one scoring, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor lives, so its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), under:
        policy.log_probs(policy.model, batch_of(policy, run), guidance=2.0 if run.guided else 1.0)
    return sum(size for size, _ in kept.values())


def peak_bytes(policy: SharedVocabularyPolicy, run: Run) -> int:
    """Largest number of bytes allocated at a time by one forward and backward pass."""
    policy.model.train()
    if run.checkpointing:
        policy.model.activation_checkpointing_enable()
    batch = batch_of(policy, run)
    policy.log_probs(policy.model, batch)[0].sum().backward()  # an earlier micro-batch, so that there are gradients
    gc.collect()  # what was left by others is not freed, and so not counted, in between
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        policy.log_probs(policy.model, batch, chunk=run.score_chunk)[0].sum().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_parameters_optimizer_and_gradients_are_exact(policy, make_policy, tmp_path):
    for real in (policy, make_policy()):
        shape = shape_of(real, tmp_path)
        embedding, head = real.model.get_input_embeddings().weight, real.model.get_output_embeddings().weight
        assert shape.parameters == sum(parameter.numel() for parameter in real.model.parameters())
        assert (shape.embedding, shape.head) == (embedding.numel(), 0 if head is embedding else head.numel())
        optimizer = torch.optim.AdamW(real.model.parameters())
        real.log_probs(real.model, batch_of(real, RUN))[0].sum().backward()
        optimizer.step()
        state = [value for group in optimizer.state.values() for name, value in group.items() if name != "step"]
        assert memory.optimizer_state(shape, RUN) == sum(value.nbytes for value in state)
        assert memory.weights(shape, RUN) == sum(parameter.nbytes for parameter in real.model.parameters())
        assert memory.gradients(shape, RUN) == sum(p.grad.nbytes for p in real.model.parameters() if p.grad is not None)


def test_lora_has_peft_s_number_of_parameters(policy, tmp_path):
    peft = pytest.importorskip("peft")
    shape = shape_of(policy, tmp_path)
    adapted = peft.get_peft_model(policy.model, peft.LoraConfig(r=4, target_modules="all-linear"))
    real = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert memory.trained(shape, replace(RUN, lora_rank=4)) == real


@pytest.mark.parametrize("tied", [False, True])
def test_rows_beside_an_adapter_are_counted(tied, tmp_path):
    pytest.importorskip("peft")
    tokenizer = published_tokenizer(("<pad>", "<s>", "</s>"), (), code_is_special=False)
    policy = SharedVocabularyPolicy.extend(llama(tokenizer, tied=tied), tokenizer, pictures())
    save(policy, tmp_path)
    shape = model_shape(tmp_path)
    adapted_model = adapted(policy.model, LoraConfig(rank=4), seed=0)
    train_rows(policy.model, policy.new_rows)
    real = sum(weight.numel() for weight in adapted_model.parameters() if weight.requires_grad)
    assert memory.trained(shape, replace(RUN, lora_rank=4)) == real
    others = sum(weight.numel() for weight in adapted_model.parameters() if not weight.requires_grad)
    expected = 4 * real + memory.untrained_bytes(shape, RUN) * others
    assert memory.weights(shape, replace(RUN, lora_rank=4)) == expected


@pytest.mark.parametrize("settings", [{}, {"targets": ["q_proj", "up_proj"]}])
def test_what_is_frozen_is_neither_trained_nor_adapted(settings, tmp_path):
    """Janus has an image tokenizer inside that no training touches, and here its picture encoder stays as well."""
    peft = pytest.importorskip("peft")
    janus, lora = FAMILIES["janus"](), LoraConfig(rank=4, **settings)
    save(janus, tmp_path)
    janus.freeze(["model.vision_model"])
    shape = model_shape(tmp_path, frozen=["model.vision_model"], targets=lora.targets)
    trained = [weight for weight in janus.model.parameters() if weight.requires_grad]
    assert memory.trained(shape, RUN) == sum(weight.numel() for weight in trained) < shape.parameters
    assert model_shape(tmp_path).trainable < shape.parameters
    adapted = peft.get_peft_model(janus.model, lora.adapter(janus.model))
    real = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert memory.trained(shape, replace(RUN, lora_rank=4)) == real


def test_a_warm_up_by_lora_is_planned(policy, tmp_path, capsys):
    pytest.importorskip("peft")
    shape, run = shape_of(policy, tmp_path), replace(RUN, steps_per_generation=0, prompt=0, lora_rank=4)
    argv = ["--stage", "warmup", "--model", str(tmp_path), "--output_dir", str(tmp_path), "--pack_length", "512"]
    main([*argv, "--lora.rank", "4"])
    answer = capsys.readouterr().out
    assert "fits: " in answer and "optimizer step: 8 rows, at most 4,096 tokens" in answer
    assert "rollout" not in answer and "KV cache" not in answer
    with pytest.raises(SystemExit):
        main([*argv, "--memory", "1.01", "--per_device_train_batch_size", "64"])
    advice = capsys.readouterr().out
    assert "\n  score_chunk 1024: saves" in advice and "algorithm" not in advice and "_generation" not in advice

    model = adapted(policy.model, LoraConfig(rank=4), seed=0)
    optimizer = torch.optim.AdamW(weight for weight in model.parameters() if weight.requires_grad)
    policy.log_probs(model, batch_of(policy, RUN))[0].sum().backward()
    optimizer.step()
    state = [value for group in optimizer.state.values() for name, value in group.items() if name != "step"]
    assert memory.optimizer_state(shape, run) == sum(value.nbytes for value in state)
    assert memory.weights(shape, run) == sum(weight.nbytes for weight in model.parameters())


@pytest.mark.parametrize("adapted_too", [False, True])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_what_training_holds_of_a_checkpoint_is_exact(policy, stored, adapted_too, tmp_path, monkeypatch):
    """Under autocast: master weights, what is frozen, the reference, and what rollouts have beside them."""
    policy.model.to(stored)
    policy.freeze(["model.embed_tokens"])
    shape = replace(shape_of(policy, tmp_path), stored=stored.itemsize)
    frozen = sum(weight.numel() for weight in policy.model.parameters() if not weight.requires_grad)
    linear = linear_layers(policy.model).values()
    shape = replace(shape, trainable=shape.parameters - frozen, linear=sum(m.weight.numel() for m in linear))
    shape = replace(shape, linear_sides=sum(m.in_features + m.out_features for m in linear))
    run = replace(RUN, half=True, reference=True, lora_rank=4 if adapted_too else None)
    reference = policy.frozen_copy()
    model = adapted(policy.model, LoraConfig(rank=4), seed=0) if adapted_too else policy.model
    train_in_fp32(model, SimpleNamespace(mixed_precision="bf16", distributed_type="NO"), adapted_too)
    held = []
    monkeypatch.setattr(precision, "exchanged", lambda exchanges: held.extend(exchanges) or nullcontext())
    with torch.autocast("cpu", torch.bfloat16), sampling_weights(policy):
        pass
    assert memory.weights(shape, run) == sum(weight.nbytes for weight in model.parameters())
    assert adapted_too or memory.reference(shape, run) == sum(w.nbytes for w in reference.model.parameters())
    found = sum(numbers.nbytes for _, _, numbers in held)
    assert memory.rollout_weights(shape, run) == pytest.approx(
        found, rel=0.01
    )  # the norms are none of the linear layers
    states = torch.zeros(1, shape.hidden)
    with policy.float32_heads.kept(policy.model):
        policy.allowed_text_logits(states, torch.zeros(1), None), policy.guided_image_logits(states)
        copies = policy.float32_heads._copies or {}
    assert memory.head_copy(shape, run) == sum(copy.nbytes for copy in copies.values())


@pytest.mark.parametrize("steps", ["plain", "fixed"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_kv_cache_is_exact(policy, guidance, steps, tmp_path):
    ids_T = torch.tensor([*policy.vocabulary.start, *range(100, 100 + PROMPT - 2), *policy.vocabulary.answer])
    prompt = TokenSequence(ids_T, torch.zeros(PROMPT), torch.zeros(PROMPT, dtype=torch.bool), PROMPT)
    run = replace(RUN, steps_per_generation=3, guided=guidance != 1, fixed_steps=steps == "fixed")
    shape = shape_of(policy, tmp_path)
    for half, under in ((False, nullcontext()), (True, torch.autocast("cpu", torch.bfloat16))):
        with torch.no_grad(), under:
            sampler = Sampler(policy, steps)
            request = Request(prompt, Sampling(run.completion, guidance=guidance), 0)
            sampler.admit(range(6), [request] * 6)
            sampler._reserve(run.length)  # as it is before the last step
        real = sum(tensor.nbytes for layer in sampler.cache.layers for tensor in (layer.keys, layer.values))
        assert memory.kv_cache(shape, replace(run, half=half)) == real


@pytest.mark.parametrize(("completion", "packed"), [(48, False), (240, False), (240, True)])
@pytest.mark.parametrize("numbers", ["fp32", "autocast", "bf16"])
def test_saved_activations_are_within_5_percent(policy, make_policy, numbers, completion, packed, tmp_path):
    for real in (policy, make_policy()):
        strategy = "zero2" if numbers == "bf16" else "ddp"  # DeepSpeed's model is in bf16 itself
        run = replace(RUN, completion=completion, half=numbers != "fp32", strategy=strategy)
        run = replace(run, steps_per_generation=0 if packed else 1)
        real.model.to(torch.bfloat16 if numbers == "bf16" else torch.float32)
        shape = replace(shape_of(real, tmp_path), stored=2 if numbers == "bf16" else 4)
        under = torch.autocast("cpu", torch.bfloat16) if numbers == "autocast" else nullcontext()
        predicted = memory.activations(shape, run) + memory.cast_weights(shape, run) + memory.log_probs(shape, run)
        predicted -= memory.SCORE_PASSING * memory.scores(shape, run)
        assert predicted == pytest.approx(bytes_saved(real, run, under), rel=0.05)


def test_rows_sampled_at_a_time_bound_the_cache(policy, tmp_path):
    run, shape = replace(RUN, steps_per_generation=8), shape_of(policy, tmp_path)
    all_at_once = memory.kv_cache(shape, run)
    assert memory.kv_cache(shape, replace(run, rollout_rows=4)) == all_at_once // 4
    assert memory.kv_cache(shape, replace(run, rollout_rows=100)) == all_at_once
    assert memory.sampler_step(shape, replace(run, rollout_rows=4)) < memory.sampler_step(shape, run)


def test_guidance_saves_a_second_pass(policy, tmp_path):
    run, shape = replace(RUN, completion=240, guided=True), shape_of(policy, tmp_path)
    predicted = memory.activations(shape, run) + memory.log_probs(shape, run)
    predicted -= memory.SCORE_PASSING * memory.scores(shape, run)
    assert predicted == pytest.approx(bytes_saved(policy, run, nullcontext()), rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("chunk", [None, 16])
def test_peak_of_an_update_is_within_10_percent(policy, make_policy, checkpointing, chunk, tmp_path):
    for real in (policy, make_policy()):
        run = replace(RUN, completion=240, checkpointing=checkpointing, score_chunk=chunk)
        shape = shape_of(real, tmp_path)
        plan = predict(shape, run)
        predicted = max(plan.total("log-probs"), plan.total("backward")) - plan.total("step")
        assert predicted == pytest.approx(peak_bytes(real, run), rel=0.1)


def test_sharing_divides_and_lora_shrinks():
    alone = predict(LARGE, LARGE_RUN)
    for strategy, divided in (
        ("zero2", ("optimizer state", "gradients", "fp32 master weights")),
        ("zero3", ("optimizer state", "gradients", "fp32 master weights", "weights")),
        ("fsdp", ("optimizer state", "gradients", "weights")),
    ):
        one, eight = (
            {name: size for name, size, _ in predict(LARGE, replace(LARGE_RUN, strategy=strategy, gpus=n)).rows}
            for n in (1, 8)
        )
        for name in one:
            if name in divided:
                assert one[name] == 8 * eight[name] > 0, (strategy, name)
            elif name not in ("gradient buckets", "gathered weights, update") and not name.endswith(", rollout"):
                assert one[name] == eight[name] or name == "fp32 gradients", (strategy, name)
    # Rajbhandari et al. 2020, figure 1: 16 bytes a parameter in mixed precision, whatever holds them.
    rows = {name: size for name, size, _ in predict(LARGE, replace(LARGE_RUN, strategy="zero2")).rows}
    model_states = ("weights", "gradients", "optimizer state", "fp32 master weights")
    assert sum(rows[name] for name in model_states) == 16 * LARGE.parameters
    adapted = {name: size for name, size, _ in predict(LARGE, replace(LARGE_RUN, lora_rank=16)).rows}
    assert adapted["KL reference"] == 0 and adapted["optimizer state"] == 8 * 16 * LARGE.linear_sides
    assert predict(LARGE, replace(LARGE_RUN, lora_rank=16)).peak < alone.peak


def test_advice_makes_it_fit_and_no_step_of_it_can_be_left_out():
    for run, memory_gb in (
        (LARGE_RUN, 141),
        (replace(LARGE_RUN, gpus=8), 80),
        (replace(LARGE_RUN, gpus=8, reference=False, steps_per_generation=64), 80),
    ):
        assert predict(LARGE, run).peak > memory_gb * GB
        path, others = advise(LARGE, run, memory_gb * GB)
        assert path[-1][2] <= memory_gb * GB
        assert path[-1][2] == predict(LARGE, run).peak - sum(saved for _, saved, _ in path)
        assert all(left > memory_gb * GB for _, _, left in path[:-1]) and all(saved > 0 for _, saved in others)
    assert path[0][0].startswith("algorithm.score_chunk")


def test_what_cannot_fit_is_said(capsys):
    text, fits = report(LARGE, LARGE_RUN, 4)
    assert not fits and "Even so it does not fit" in text


def test_command(policy, tmp_path, capsys):
    policy.model.config.save_pretrained(tmp_path / "model")
    argv = ["--model", str(tmp_path / "model" / "config.json"), "--output_dir", str(tmp_path), "--prompts", "unread"]
    argv += ["--per_device_train_batch_size", "1", "--num_generations", "8", "--gpus", "8"]
    main(argv)
    answer = capsys.readouterr().out
    assert "fits: " in answer and "8 sequences in 1 group of 8" in answer and "KV cache" in answer
    with pytest.raises(SystemExit) as stopped:
        main([*argv, "--memory", "1.01", "--max_completion_length", "4000"])
    assert stopped.value.code == 1 and "Change, in this order:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "nowhere"], "nowhere: no such folder"),
        ([], "model: missing"),
        (["--model", "MODEL", "--memory", "-1"], "^--memory: expected a number"),
        (["--config", "grpo/tiny", "--model", "MODEL", "--gpus", "0"], "^--gpus: expected a number 1 to"),
        (["--model", "MODEL", "--strategy", "zero4"], "zero4"),
        (["--model", "MODEL", "--image_share", "0.5"], "--image_codes"),
        (["--model", "BROKEN"], "cannot be read"),
        (["--model", "MODEL", "--freeze", "vision"], "freeze: the model has no submodule 'vision'"),
        (["--model", "MODEL", "--lora.targets", "query"], "lora.targets: query is no layer"),
        (["--model", "MODEL", "--lora.rank", "0"], "^--lora.rank: expected a number 1 to"),
    ],
)
def test_bad_input(policy, tmp_path, words, complaint):
    policy.model.config.save_pretrained(tmp_path / "MODEL")
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    words = [str(tmp_path / word) if word in ("MODEL", "BROKEN") else word for word in words]
    with pytest.raises(InputError, match=complaint):
        main([*words, "--output_dir", str(tmp_path)])


def test_a_model_with_more_than_a_decoder(tmp_path):
    """Its picture encoder and image tokenizer weigh something, and are no part of a layer."""
    policy = FAMILIES["janus"]()
    save(policy, tmp_path / "janus")
    shape, model = model_shape(tmp_path / "janus"), policy.model
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layer == sum(parameter.numel() for parameter in model.model.language_model.layers[0].parameters())
    assert shape.image_codes == policy.vocabulary.image_codes
    assert shape.vocabulary == model.lm_head.weight.shape[0] + shape.image_codes


def test_codes_of_all_depths_are_scored(tmp_path):
    policy = FAMILIES["vila_u"]()
    save(policy, tmp_path / "model")
    shape, vocabulary = model_shape(tmp_path / "model"), policy.vocabulary
    assert shape.parameters == sum(parameter.numel() for parameter in policy.model.parameters())
    assert shape.trainable == shape.parameters - policy.model.codebooks.weight.numel()
    assert shape.image_codes == vocabulary.depth * vocabulary.image_codes
    assert shape.vocabulary == vocabulary.text_size + shape.image_codes


@pytest.mark.parametrize("family", ["chameleon", "emu3", "liquid"])
def test_codes_inside_the_vocabulary(family, tmp_path):
    policy = FAMILIES[family]()
    save(policy, tmp_path / family)
    shape = model_shape(tmp_path / family)
    assert shape.parameters == sum(parameter.numel() for parameter in policy.model.parameters())
    assert shape.image_codes == policy.vocabulary.image_codes < shape.vocabulary
