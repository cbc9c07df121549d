"""Memory of one GPU in extended GRPO, as arithmetic: a model's shape and a run's settings in, bytes out.

Every function below is one row of the table: its docstring has the formula and where it comes from. Psi is the number
of parameters, N that of GPUs. Four moments are added up, because hardly anything lives through all of them:

    rollout     the sampler's last step, its cache full
    log-probs   end of the forward pass: activations kept for backward, scores against the vocabulary
    backward    a decoder layer's backward pass, all the gradients there
    step        the optimizer's step
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...models.sampler.cache import BLOCK

Strategy = Literal["ddp", "zero2", "zero3", "fsdp"]
Phase = Literal["rollout", "log-probs", "backward", "step"]
PHASES: tuple[Phase, ...] = ("rollout", "log-probs", "backward", "step")

SCORE_SAVED, SCORE_PASSING = 4, 12
"""Bytes of one score (token x choice) that autograd keeps, and that come and go: `models.policy._score`."""
SAMPLER_SCORE = 29
"""Bytes of one score in the sampler's draw: three float32, two float64, a mask: `models.sampler.draw`."""
BATCH_TOKEN = 54
"""Bytes of one token in the rollout buffer: five int64, three float32, two masks: `TokenBatch`."""
CONTEXT = 2**30
"""CUDA context, cuBLAS and NCCL: an allowance, not a prediction."""
ZERO_BUCKET, ZERO_LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults, in elements: `reduce_bucket_size`, `stage3_max_live_parameters`."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A causal language model of pre-norm layers with gated MLPs (Llama, Qwen, Gemma, Mistral)."""

    parameters: int
    """Psi; a tied head is counted once."""
    trainable: int
    """Of them those that training without an adapter changes: all but the frozen ones."""
    embedding: int
    """Of them in the token embedding."""
    head: int
    """Of them in a head of its own; 0 where tied."""
    layer: int
    """Of them in one decoder layer."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    """Rows of the head: text and image ids."""
    image_codes: int
    """Of them image codes, of all depths of a position; 0 where unknown."""
    linear: int
    """Of them in the linear layers that an adapter goes on."""
    linear_sides: int
    """Inputs plus outputs of those layers: the adapter's parameters at rank 1."""
    stored: int
    """Bytes of a parameter as the checkpoint has it."""
    windowed: bool = False
    """Layers see a window, so that every batch has a mask."""
    new_rows: bool = False
    """Embedding and head have rows that were never trained: a warm-up trains them beside an adapter."""


@dataclass(frozen=True, slots=True)
class Run:
    """What of a configuration has to do with memory; lengths are those of a long row."""

    rows: int
    """per_device_train_batch_size"""
    steps_per_generation: int
    """0 for a warm-up, which samples nothing; its rows are all completion."""
    accumulation: int
    num_generations: int
    prompt: int
    completion: int
    iterations: int = 1
    """Times that a rollout is trained on: num_iterations."""
    gpus: int = 1
    strategy: Strategy = "ddp"
    half: bool = True
    """bf16 (or fp16) arithmetic."""
    checkpointing: bool = True
    lora_rank: int | None = None
    reference: bool = False
    """A KL term, hence a frozen copy; LoRA has it for nothing, with the adapter off."""
    guided: bool = False
    rollout_rows: int | None = None
    fixed_steps: bool = False
    """The sampler's steps have few shapes: slots are a power of two, columns whole blocks."""
    score_chunk: int | None = None
    micro_batch_tokens: int | None = None
    image_share: float = 0.0
    """Share of the completion that is image codes."""
    replay_rows: int = 0
    replay_length: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def rollouts(self) -> int:
        """Rows that one GPU samples for a generation batch."""
        return self.rows * self.steps_per_generation

    @property
    def sampled_rows(self) -> int:
        """Those of them that it samples at a time."""
        return min(self.rollouts, self.rollout_rows or self.rollouts)

    @property
    def slots(self) -> int:
        """Of the sampler's cache: a guided row has two."""
        slots = self.forwards * self.sampled_rows
        return 1 << (slots - 1).bit_length() if self.fixed_steps and slots else slots

    @property
    def columns(self) -> int:
        """Of the sampler's cache, when it is full."""
        return -(-self.length // BLOCK) * BLOCK if self.fixed_steps else self.length

    @property
    def part_rows(self) -> int:
        """Rows of one forward and backward pass."""
        limit = self.micro_batch_tokens
        return self.rows if limit is None else min(self.rows, max(1, limit // self.length))

    @property
    def forwards(self) -> int:
        """Passes through the layers; guidance has a second one, without the prompts."""
        return 2 if self.guided else 1

    @property
    def graph_tokens(self) -> int:
        """Tokens through the layers for one backward pass."""
        return self.forwards * self.part_rows * self.length + self.replay_rows * self.replay_length

    @property
    def graph_squares(self) -> int:
        """Entries of their attention masks: those of packed rows, and of guidance, which takes prompts away."""
        masked = self.part_rows if self.guided or not self.rollouts else 0
        return masked * self.length**2 + self.replay_rows * self.replay_length**2

    @property
    def scored_tokens(self) -> int:
        return self.part_rows * self.completion + self.replay_rows * self.replay_length


# ---- number formats ----


def compute(model: ModelShape, run: Run) -> int:
    """Bytes of a number in matrix products."""
    return 2 if run.half else untrained_bytes(model, run)


def untrained_bytes(model: ModelShape, run: Run) -> int:
    """Of a parameter that stays as it is: as stored, but DeepSpeed casts it to 16 bits, full training in fp32 to 4."""
    if run.half and run.strategy in ("zero2", "zero3"):
        return 2
    return model.stored if run.half or (run.lora_rank is not None and not model.new_rows) else 4


def beside_adapter(model: ModelShape, run: Run) -> int:
    """Embedding and head, where rows of them are trained beside an adapter: gradient and moments are of all rows."""
    return model.embedding + model.head if run.lora_rank is not None and model.new_rows else 0


def autocast(model: ModelShape, run: Run) -> bool:
    """fp32 parameters whose products run in bf16, cast as they go."""
    return run.strategy == "ddp" and run.half and (run.lora_rank is None or model.stored == 4)


def sampled(model: ModelShape, run: Run) -> int:
    """Bytes of a number in the sampler, which runs under the autocast of the training forward."""
    return compute(model, run)


def trained(model: ModelShape, run: Run) -> int:
    """Trained parameters: Psi less the frozen ones, or with LoRA rank x (inputs + outputs) of its layers (Hu et al)."""
    if run.lora_rank is None:
        return model.trainable
    return run.lora_rank * model.linear_sides + beside_adapter(model, run)


def trained_bytes(model: ModelShape, run: Run) -> int:
    """Bytes of a trained parameter: fp32 (`train.scale.precision`), but DeepSpeed keeps its fp32 copies apart."""
    return 2 if run.half and run.strategy in ("zero2", "zero3") else 4


def _shards(run: Run, *strategies: Strategy) -> int:
    return run.gpus if run.strategy in strategies else 1


# ---- weights, gradients, optimizer ----


def weights(model: ModelShape, run: Run) -> int:
    """Trained x 4 and the others x their dtype; ZeRO-3 and FSDP: / N (Rajbhandari et al. 2020, section 5).

    With LoRA all of the model is among the others, and its adapters are trained.
    """
    others = model.parameters - (model.trainable if run.lora_rank is None else beside_adapter(model, run))
    size = trained(model, run) * trained_bytes(model, run) + others * untrained_bytes(model, run)
    return size // _shards(run, "zero3", "fsdp")


def master_weights(model: ModelShape, run: Run) -> int:
    """4 bytes x trained / N: DeepSpeed's own fp32 copy, in ZeRO of any stage (Rajbhandari et al. 2020, section 3.1)."""
    return 4 * trained(model, run) // run.gpus if run.strategy in ("zero2", "zero3") else 0


def optimizer_state(model: ModelShape, run: Run) -> int:
    """Two moments x trained (AdamW): 8 bytes of fp32; ZeRO, FSDP: / N."""
    return 8 * trained(model, run) // _shards(run, "zero2", "zero3", "fsdp")


def reference(model: ModelShape, run: Run) -> int:
    """Psi x the dtype of what is not trained where there is a KL term: `frozen_copy`, whole on every GPU."""
    return model.parameters * untrained_bytes(model, run) if run.reference and run.lora_rank is None else 0


def rollout_weights(model: ModelShape, run: Run) -> int:
    """dtype x linear layers: what autocast would cast for every token, or adapters merged: `sampling_weights`."""
    merged = model.linear if run.lora_rank is not None else 0
    cast = model.layers * model.layer if autocast(model, run) else 0
    return max(merged, cast) * sampled(model, run) if run.rollouts else 0


def head_copy(model: ModelShape, run: Run) -> int:
    """4 bytes x vocabulary x hidden: a head in 16 bits is cast once a batch of rollouts: `Float32Heads.kept`."""
    if not run.rollouts or _head_bytes(model, run) == 4:
        return 0
    return 4 * model.vocabulary * model.hidden


def _head_bytes(model: ModelShape, run: Run) -> int:
    """Of a number of the head as the sampler finds it; ZeRO-3 and FSDP gather it as matrix products take it."""
    if _shards(run, "zero3", "fsdp") > 1:
        return compute(model, run)
    return trained_bytes(model, run) if run.lora_rank is None else untrained_bytes(model, run)


def gathered_rollout(model: ModelShape, run: Run) -> int:
    """Psi x dtype: ZeRO-3 and FSDP gather the weights once a rollout, not once a token."""
    return model.parameters * compute(model, run) if run.rollouts and _shards(run, "zero3", "fsdp") > 1 else 0


def gathered_update(model: ModelShape, run: Run) -> int:
    """dtype x what is whole at a time: ZeRO-3 min(Psi, its live limit), FSDP two layers, embedding and head."""
    if _shards(run, "zero3", "fsdp") == 1:
        return 0
    at_a_time = ZERO_LIVE if run.strategy == "zero3" else 2 * model.layer + model.embedding + model.head
    return compute(model, run) * min(model.parameters, at_a_time)


def cast_weights(model: ModelShape, run: Run) -> int:
    """2 bytes x layers: autocast keeps bf16 copies of fp32 weights until the backward pass; heads multiply in fp32."""
    return 2 * model.layers * model.layer if autocast(model, run) else 0


def gradients(model: ModelShape, run: Run) -> int:
    """Trained x dtype; ZeRO and FSDP: / N (Rajbhandari et al. 2020, section 5)."""
    return trained(model, run) * trained_bytes(model, run) // _shards(run, "zero2", "zero3", "fsdp")


def gradient_buffers(model: ModelShape, run: Run) -> int:
    """Before they are reduced: DDP's buckets repeat all gradients, ZeRO has one bucket, FSDP a layer."""
    if run.gpus == 1:
        return 0
    at_a_time = {"zero2": ZERO_BUCKET, "zero3": ZERO_BUCKET, "fsdp": model.layer}.get(run.strategy, model.parameters)
    return trained_bytes(model, run) * min(trained(model, run), at_a_time)


def fp32_gradients(model: ModelShape, run: Run) -> int:
    """4 bytes x trained / N: DeepSpeed casts its share of the gradients for the step (stage_1_and_2.py)."""
    return 4 * trained(model, run) // run.gpus if run.strategy in ("zero2", "zero3") else 0


def head_gradient(model: ModelShape, run: Run) -> int:
    """2 x dtype x vocabulary x hidden: the gradients of the head's two slices have the size of the whole head each."""
    if run.lora_rank is not None and not model.new_rows:
        return 0
    return 2 * trained_bytes(model, run) * model.vocabulary * model.hidden


def tied_gradient(model: ModelShape, run: Run) -> int:
    """dtype x vocabulary x hidden: a tied head's gradient waits for that of the embedding, which comes last."""
    return 0 if model.head else head_gradient(model, run) // 2


# ---- rollout ----


def kv_cache(model: ModelShape, run: Run) -> int:
    """rows x (prompt + completion) x layers x kv heads x head dim x 2 x dtype; twice under guidance: `sampler.cache`.

    The rows are those sampled at a time; the cache grows to that in blocks. Fixed steps round rows and columns up.
    """
    token = model.layers * model.kv_heads * model.head_dim * 2 * sampled(model, run)
    return run.slots * run.columns * token


def sampler_step(model: ModelShape, run: Run) -> int:
    """rows x V x 29, and keys and values of one layer repeated for grouped queries; or the prefill, if larger.

    A prefill has prompts x length x (3 intermediate + 4 hidden) x dtype: transformers' layers without autograd.
    """
    size = sampled(model, run)
    repeated = 2 * model.heads * model.head_dim * size * run.length if model.heads != model.kv_heads else 0
    text_choices = model.vocabulary - model.image_codes
    scored = run.slots if run.fixed_steps else run.sampled_rows  # then both heads run on all slots
    step = scored * text_choices * SAMPLER_SCORE + run.slots * repeated
    prompts = -(-run.sampled_rows // run.num_generations)
    return max(step, prompts * run.prompt * (3 * model.intermediate + 4 * model.hidden) * size)


def rollout_tensors(model: ModelShape, run: Run) -> int:
    """rows x (prompt + completion) x 53: the buffer TRL keeps for `steps_per_generation` micro-batches."""
    return run.rollouts * run.length * BATCH_TOKEN


# ---- forward and backward ----


def layer_token(model: ModelShape, run: Run) -> int:
    """Bytes a token that one layer keeps for its backward pass, but for the attention mask.

    As Korthikanti et al. 2022 ("Reducing Activation Recomputation", section 4.1) count them, for RMSNorm in fp32, a
    gated MLP, no dropout and sdpa, which keeps no scores: two norms of 24, 26 or 16 x hidden in all (fp32, autocast,
    bf16), q and the output, k and v (repeated for grouped queries), 4 x intermediate.
    """
    size, queries = compute(model, run), model.heads * model.head_dim
    keys = queries if model.heads != model.kv_heads else model.kv_heads * model.head_dim
    norms = 26 if autocast(model, run) else 24 if size == 4 else 16
    return norms * model.hidden + 8 + size * (2 * queries + 2 * keys + 4 * model.intermediate) + 4 * model.heads


def layer_activations(model: ModelShape, run: Run) -> int:
    """tokens x `layer_token` + rows x length^2 x dtype: sdpa turns the boolean mask into numbers, in every layer."""
    return run.graph_tokens * layer_token(model, run) + mask_entries(model, run) * compute(model, run)


def mask_entries(model: ModelShape, run: Run) -> int:
    """rows x length^2, but for rows of one sequence each, whose attention is causal without a mask."""
    unmasked = run.forwards * run.part_rows * run.length**2 if model.windowed else 0
    return max(unmasked + run.replay_rows * run.replay_length**2, run.graph_squares)


def activations(model: ModelShape, run: Run) -> int:
    """layers x `layer_activations`, or with checkpointing layers x tokens x hidden x dtype; the last norm; the mask."""
    stream = 4 if autocast(model, run) else compute(model, run)
    kept = run.graph_tokens * model.hidden * stream if run.checkpointing else layer_activations(model, run)
    return model.layers * kept + run.graph_tokens * model.hidden * (4 + stream) + mask_entries(model, run)


def layer_backward(model: ModelShape, run: Run) -> int:
    """tokens x 2 intermediate x dtype (an MLP's gradients less what they free); with checkpointing its activations."""
    passing = run.graph_tokens * 2 * model.intermediate * compute(model, run)
    return passing + (layer_activations(model, run) if run.checkpointing else 0)


def scores(model: ModelShape, run: Run) -> int:
    """Scores held at a time: text tokens x V + image tokens x codes; `score_chunk` bounds the tokens."""
    image = round(run.scored_tokens * run.image_share)
    text, choices = run.scored_tokens - image, model.vocabulary - model.image_codes
    if not image:  # which tokens they are is not known
        choices = max(choices, model.image_codes)
    if run.score_chunk is None or max(text, image) <= run.score_chunk:
        return text * choices + image * model.image_codes
    return max(min(text, run.score_chunk) * choices, min(image, run.score_chunk) * model.image_codes)


def log_probs(model: ModelShape, run: Run) -> int:
    """`scores` x 16 + hidden states of the scored tokens.

    The fp32 log-softmax stays; for the entropy come its exponential, a clamped copy and their product.
    """
    states = run.scored_tokens * model.hidden * compute(model, run)
    return scores(model, run) * (SCORE_SAVED + SCORE_PASSING) + run.forwards * states


# ---- all of it ----

Rule = Callable[[ModelShape, Run], int]
ITEMS: tuple[tuple[str, Rule, tuple[Phase, ...]], ...] = (
    ("CUDA context, libraries", lambda model, run: CONTEXT, PHASES),
    ("weights", weights, PHASES),
    ("fp32 master weights", master_weights, PHASES),
    ("optimizer state", optimizer_state, PHASES),
    ("KL reference", reference, PHASES),
    ("cast or merged, rollout", rollout_weights, ("rollout",)),
    ("head in fp32, rollout", head_copy, ("rollout",)),
    ("gathered weights, rollout", gathered_rollout, ("rollout",)),
    ("gathered weights, update", gathered_update, ("log-probs", "backward")),
    ("weights cast by autocast", cast_weights, ("log-probs", "backward")),
    ("gradients", gradients, ("log-probs", "backward", "step")),
    ("gradient buckets", gradient_buffers, PHASES),
    ("fp32 gradients", fp32_gradients, ("step",)),
    ("KV cache", kv_cache, ("rollout",)),
    ("sampler's scores, prefill", sampler_step, ("rollout",)),
    ("rollout buffer", rollout_tensors, PHASES),
    ("activations", activations, ("log-probs", "backward")),
    ("one layer's backward", layer_backward, ("backward",)),
    ("log-probs", log_probs, ("log-probs",)),
    ("gradient of the head", head_gradient, ("log-probs",)),
    ("gradient of a tied head", tied_gradient, ("backward",)),
)


@dataclass(frozen=True, slots=True)
class Plan:
    rows: tuple[tuple[str, int, tuple[Phase, ...]], ...]
    """Name, bytes, and the moments at which they are there."""
    phases: tuple[Phase, ...] = PHASES

    def total(self, phase: Phase) -> int:
        return sum(size for _, size, phases in self.rows if phase in phases)

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(map(self.total, self.phases))


def predict(model: ModelShape, run: Run) -> Plan:
    rows = tuple((name, rule(model, run), phases) for name, rule, phases in ITEMS)
    return Plan(rows, PHASES if run.rollouts else PHASES[1:])
