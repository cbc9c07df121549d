"""Stage I, the warm-up: next-token cross-entropy on interleaved, understanding and text-to-image documents.

for rows in packed mixture:                       data.mixture
    logp = policy.log_probs(model, rows)          both modalities, the sampler's own softmax
    loss = - sum w_t logp_t                       train.objective.losses, denominators of all micro-batches, ranks

limner warmup --config warmup/tiny
torchrun --nproc-per-node 2 -m limner.train.warmup --config warmup/tiny
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..configs import parse
from ..configs.bounds import Above0, NoneOrMore, OneOrMore
from ..configs.errors import InputError, keeping, reading, run_or_exit
from ..configs.schema import check_ranges
from ..configs.terminal import say
from ..data.mixture import PackedRows, Place, SourceConfig, split_long
from ..data.packing import pack
from ..data.shards import read_documents
from ..models.checkpoints.folder import load, save
from ..models.checkpoints.hub import find_checkpoint
from ..models.policy import UnifiedPolicy
from ..models.tokens.sequence import TokenBatch, TokenSequence, collate
from .from_scratch.new_model import NewModelConfig, new_policy, new_processor
from .objective.losses import NORMALISATIONS, Counts, Normalisation, imitation_loss, token_weights, tokens_of
from .scale.builds import checked
from .scale.checkpointing import WholeCheckpoints
from .scale.lora import LoraConfig, adapted, check_rows, train_rows
from .scale.precision import save_whole, stored_dtypes, train_in_fp32
from .scale.run_folder import NEW_MODEL, check_model, how_to_go_on, resume_point, save_settings
from .scale.sharding import check_setup, gathered_copy, is_sharded, use_all_weights
from .watch.progress import check_trackers, show_progress

SAY_FROM = 100
"""Rows without one picture at which that is said."""
HELDOUT_CHUNK = 16
"""Held-out documents whose pictures are encoded together."""
BESIDE = "new_rows.safetensors"
"""In a checkpoint of an adapter: rows that are trained beside it."""
PLACE = "data_place_{}.json"
"""In a checkpoint: where the rows of a process stand."""
TOKENIZER_DOCUMENTS = 2000
"""Documents whose pictures train a new image tokenizer."""


@dataclass
class WarmupConfig:
    model: str = ""
    """Checkpoint to start from, a folder or ORG/NAME; without one `new_model` is made, its tokenizers from the data."""
    new_model: NewModelConfig = field(default_factory=NewModelConfig)
    sources: list[SourceConfig] = field(default_factory=list)
    """Shard folders and their weights."""
    data: str | None = None
    """One shard folder, instead of `sources`."""
    temperature: Above0 | None = None
    """Draw from a source by its size to the power of 1 / temperature as well: 1 by size, large for all alike."""
    pack_length: OneOrMore = 256
    """Tokens of a row; a longer document is cut between segments."""
    normalisation: Normalisation = "token"
    score_chunk: OneOrMore | None = None
    """Score so many tokens at a time against the vocabulary, and again in the backward pass; saves memory."""
    flex_attention: bool = False
    """Packed rows by flex attention, which skips what no token sees; on a GPU alone."""
    lora: LoraConfig | None = None
    """Train an adapter instead of the model's own weights; it is merged into the model that the run writes. Rows for
    pictures that `limner convert` has just added are trained beside it."""
    freeze: list[str] = field(default_factory=list)
    """Submodules that stay as they are, by name, such as `model.vision_model`; an adapter leaves them alone, too."""
    heldout_batches: NoneOrMore = 8
    """Rows of the held-out split to report the loss on, by modality; 0 for none."""


class WarmupTrainer(WholeCheckpoints, Trainer):
    """A Trainer whose loader is left alone: it is already split by rank, and sharding it again would lose half."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        policy: UnifiedPolicy,
        config: WarmupConfig,
        args: TrainingArguments,
        say: Callable[[str], None] = say,
        *,
        train_dataset: PackedRows,
        new_rows: int = 0,
        **kwargs: Any,
    ):
        """new_rows: last rows of embedding and head to train beside an adapter. Raises InputError where they are
        sharded."""
        self.policy, self.config, self.rows = policy, config, train_dataset
        self._say = say
        self._counts: Counts | None = None
        self._sums: dict[str, torch.Tensor] = {}
        self._rows = torch.zeros(2)
        self._said = SAY_FROM
        self.stored = stored_dtypes(policy.model)
        model: Any = adapted(policy.model, config.lora, args.seed) if config.lora else policy.model
        self.adapter: Any = model.peft_config["default"] if config.lora else None
        self.beside = train_rows(policy.model, new_rows) if config.lora and new_rows else {}
        self._new_rows = new_rows
        use_all_weights(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=self._collate,
            processing_class=policy.processor.tokenizer,
            **kwargs,
        )
        check_setup(self.accelerator)
        if self.beside and is_sharded(self.accelerator):
            raise InputError(
                "lora: rows for pictures that were never trained are trained beside an adapter on whole models alone; "
                "warm up without ZeRO-3 or FSDP, or in full"
            )
        train_in_fp32(policy.model, self.accelerator, config.lora is not None and not self.beside)

    def say(self, words: str) -> None:
        """Once, by the first process."""
        if self.accelerator.is_main_process:
            self._say(words)

    def _collate(self, rows: Sequence[Any]) -> dict[str, TokenBatch]:
        return {"token_batch": collate(rows, self.policy.vocabulary)}

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.rows.place.save(Path(output_dir) / PLACE.format(self.args.process_index))
        if self.beside and self.accelerator.is_main_process:
            rows = {name: weight.detach()[-self._new_rows :].contiguous() for name, weight in self.beside.items()}
            save_file(rows, Path(output_dir) / BESIDE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.beside:
            return
        with reading(Path(resume_from_checkpoint) / BESIDE), torch.no_grad():
            for name, rows in load_file(Path(resume_from_checkpoint) / BESIDE).items():
                self.beside[name][-self._new_rows :] = rows.to(self.beside[name].device)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        beside = {id(weight) for weight in self.beside.values()}
        kept = {name for name, weight in model.named_parameters() if id(weight) in beside}
        return [name for name in super().get_decay_parameter_names(model) if name not in kept]

    def get_train_dataloader(self) -> DataLoader:
        own = torch.Generator()  # a loader draws a seed when it begins; a resumed run begins once more
        size = self._train_batch_size
        return DataLoader(self.rows, batch_size=size, collate_fn=self._collate, generator=own)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples:
            counts = torch.stack([self._count(sample["token_batch"]) for sample in samples]).sum(0).to(device)
            self._counts = Counts(*self.accelerator.reduce(counts, "sum"))
        return samples, items

    def _count(self, batch: TokenBatch) -> torch.Tensor:
        return Counts.of(tokens_of(batch, self.policy.vocabulary.text_size)).stack()

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs=False, num_items_in_batch=None):
        batch: TokenBatch = inputs["token_batch"].to(self.args.device)
        tokens = tokens_of(batch, self.policy.vocabulary.text_size)
        logp_BT, _ = self.policy.log_probs(model, batch, chunk=self.config.score_chunk)
        assert self._counts is not None
        pictured_B = (batch.ids_BT == self.policy.vocabulary.controls.boi).any(1)
        self._rows += torch.tensor([len(pictured_B), int(pictured_B.sum())])
        weights_BT = token_weights(tokens, self._counts, self.config.normalisation)
        for name, at in (("text", ~tokens.image_BT), ("image", tokens.image_BT)):
            at = at & tokens.trained_BT
            self._sums[name] = self._sums.get(name, 0) + torch.stack([-logp_BT.detach()[at].sum(), at.sum()])
        # Gradients are averaged over ranks, and the weights already count all of them.
        return imitation_loss(logp_BT, weights_BT) * self.accelerator.num_processes

    def rows_read(self) -> tuple[int, int]:
        """Rows of this run so far, and those of them with a picture, over all processes, which call it together."""
        rows, pictured = self.accelerator.reduce(self._rows.to(self.args.device), "sum").tolist()
        return int(rows), int(pictured)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, total in self._sums.items():
                loss, tokens = self.accelerator.reduce(total.to(self.args.device), "sum").tolist()
                if tokens:
                    logs[f"loss/{name}"] = loss / tokens
                logs[f"tokens/{name}"] = tokens
            self._sums.clear()
            rows, pictured = self.rows_read()
            if not pictured and rows >= self._said:  # now and then, each time after twice as many
                self._said = 2 * rows
                self.say(f"no picture in the {rows:,} rows so far")
            logs |= self._of_sources()
        super().log(logs, start_time)

    def _of_sources(self) -> dict[str, float]:
        """How often each source was read, and how many tokens of it, by all ranks."""
        place, mixture = self.rows.place, self.rows.mixture
        tokens = torch.tensor(place.tokens or [0] * len(mixture.names), dtype=torch.float32)
        tokens = self.accelerator.reduce(tokens.to(self.args.device), "sum").tolist()
        logs = {f"source/{name}/epochs": round(epochs, 4) for name, epochs in mixture.epochs(place.block + 1).items()}
        return logs | {f"source/{name}/tokens": count for name, count in zip(mixture.names, tokens, strict=True)}


@torch.no_grad()
def heldout_loss(policy: UnifiedPolicy, folders: Sequence[str], length: int, rows: int) -> dict[str, float]:
    """Mean cross-entropy in nats a token of the held-out documents of the folders, by modality.

    The folders give a document each in turn, and no more are read than so many rows hold.
    """
    sums = torch.zeros(2, 2)
    for row in itertools.islice(pack(_heldout(policy, folders, length), length), rows):
        batch = collate([row], policy.vocabulary).to(policy.model.device)
        logp_BT, _ = policy.log_probs(policy.model, batch)
        image_BT = batch.ids_BT >= policy.vocabulary.text_size
        for index, at in enumerate((batch.trainable_BT & ~image_BT, batch.trainable_BT & image_BT)):
            sums[index] += torch.stack([-logp_BT[at].sum(), at.sum()]).cpu()
    return {name: (sums[i, 0] / sums[i, 1]).item() for i, name in enumerate(("text", "image")) if sums[i, 1] > 0}


def _heldout(policy: UnifiedPolicy, folders: Sequence[str], length: int) -> Iterator[TokenSequence]:
    turns = itertools.zip_longest(*(read_documents(folder, "heldout", shuffle_seed=None) for folder in folders))
    documents = (document for turn in turns for document in turn if document is not None)
    while chunk := list(itertools.islice(documents, HELDOUT_CHUNK)):
        for document, whole in zip(chunk, policy.processor.encode_all(chunk), strict=True):
            yield from split_long(whole, document, length)


def _new_policy(sources: Sequence[SourceConfig], config: NewModelConfig, output_dir: Path) -> UnifiedPolicy:
    """The model a run without a checkpoint starts from. One process makes it, the others wait and read it."""
    start = output_dir / NEW_MODEL
    with PartialState().main_process_first():
        if PartialState().is_main_process:  # one that an earlier run left may be of other data
            documents = [d for source in sources for d in read_documents(source.path, "train", shuffle_seed=None)]
            pictures = [image.pixels() for document in documents[:TOKENIZER_DOCUMENTS] for image in document.images]
            if not pictures:
                raise InputError(f"{sources[0].path}: no pictures to train the image tokenizer on; give --model DIR")
            processor, _ = new_processor([document.text for document in documents], pictures, config)
            save(new_policy(processor, config), start)
    return load(start)


def run(
    config: WarmupConfig,
    args: TrainingArguments,
    policy: UnifiedPolicy | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    say: Callable[[str], None] = say,
) -> WarmupTrainer:
    """Trains and writes the checkpoint to `output_dir/model`."""
    if config.normalisation not in NORMALISATIONS:
        raise InputError(f"normalisation: {config.normalisation!r} is none of {', '.join(NORMALISATIONS)}")
    sources = [SourceConfig(config.data)] if config.data else config.sources
    if not sources:
        raise InputError("data: missing; name a folder of shards (--data DIR)")
    if args.max_steps <= 0:
        raise InputError("max_steps: missing; the stream of rows has no end, so say how many steps to train")
    if args.save_strategy == SaveStrategy.EPOCH:
        raise InputError("save_strategy: epoch; the stream of rows has no end, so give steps (--save_steps), or no")
    check_ranges(config)
    if config.lora and policy is None and not config.model:
        raise InputError("lora: an adapter needs a trained model under it; name it (--model DIR)")
    assert args.output_dir is not None
    check_trackers(args)
    resume = resume_point(Path(args.output_dir), args.resume_from_checkpoint)
    check_model(resume, config.model)
    if policy is None:
        start = find_checkpoint(config.model) if config.model else resume
        policy = load(start) if start else _new_policy(sources, config.new_model, Path(args.output_dir))
    policy.freeze(config.freeze)
    if config.flex_attention:
        policy.pack_by_flex_attention()
    new_rows = check_rows(policy)
    rows = PackedRows(
        sources,
        policy.processor,
        length=config.pack_length,
        seed=args.seed,
        rank=args.process_index,
        world_size=args.world_size,
        workers=args.dataloader_num_workers,
        temperature=config.temperature,
    )
    args.ignore_data_skip = True  # rows know where they stand; skipping would read them all again
    trainer = WarmupTrainer(policy, config, args, say, train_dataset=rows, new_rows=new_rows, callbacks=list(callbacks))
    show_progress(trainer, "warm-up")
    folders = [source.path for source in sources]
    main = trainer.accelerator.is_main_process
    report = main and config.heldout_batches > 0
    if main:
        save_settings(Path(args.output_dir), resume, config, args)
    with trainer.accelerator.autocast():
        before = heldout_loss(policy, folders, config.pack_length, config.heldout_batches) if report else {}
    if resume:
        go_on(rows, Path(resume), args, trainer.say)
    trainer.train(resume_from_checkpoint=resume)
    trainer.accelerator.wait_for_everyone()
    say_of_pictures(trainer)
    save_whole(policy, trainer.accelerator, trainer.adapter, trainer.stored, Path(args.output_dir) / "model")
    if is_sharded(trainer.accelerator):
        policy = gathered_copy(policy, trainer.accelerator, trainer.adapter)
    if report:
        with trainer.accelerator.autocast():
            after = heldout_loss(policy, folders, config.pack_length, config.heldout_batches)
        for name in before:
            rose = "; it rose: train fewer steps, more gently, or on more documents"
            said = f"held-out loss, {name}: {before[name]:.3f} -> {after[name]:.3f} nats a token"
            say(said + (rose if after[name] > before[name] else ""))
    return trainer


def go_on(rows: PackedRows, checkpoint: Path, args: TrainingArguments, say: Callable[[str], None]) -> None:
    """Where the rows stood at the checkpoint. Raises InputError for one that another number of processes wrote."""
    if (place := checkpoint / PLACE.format(args.process_index)).is_file():
        count = len(list(checkpoint.glob(PLACE.format("*"))))
        if count != args.world_size:
            raise InputError(f"{checkpoint}: written by {count} processes; go on with as many, not {args.world_size}")
        rows.place = Place.load(place)
        return
    # A checkpoint of limner 0.2 or before does not say: its rows were drawn in another order.
    step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    say(f"{checkpoint}: of an older limner; the rest of the run draws its documents in the order of this one")
    rows.skip(step * args.gradient_accumulation_steps * args.per_device_train_batch_size)


def say_of_pictures(trainer: WarmupTrainer) -> None:
    """Says so where the run has learned from no picture: a long document fills many rows before its first one."""
    count, pictured = trainer.rows_read()
    if count and not pictured:
        trainer.say(
            f"no picture was among the {count:,} rows that were trained on, so none was learned; a long document fills "
            "many rows before its first picture: train longer (--max_steps), in longer rows (--pack_length), or on "
            "documents that are cut into shorter ones"
        )


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse((WarmupConfig, TrainingArguments), argv, prog="limner warmup", section="warmup")
    with keeping(lambda: how_to_go_on(args.output_dir)):
        trainer = run(config, args)
    if trainer.accelerator.is_main_process:
        model = Path(args.output_dir or "") / "model"
        following = f"limner grpo --config grpo/default --model {model} --prompts FILE.jsonl"
        say(f"wrote {model} after {trainer.state.global_step} steps; next: {following}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    run_or_exit(checked(main))
