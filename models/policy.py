"""UnifiedPolicy: what a base-model family must offer. Everything else in limner is written against this page.

A family must say `family`, `hidden`, `text_logits`, `image_logits` and `parts`. It may say `depth_states` (several
codes a position), `image_features` and `vision` (a picture encoder of its own), `standing_still` (what a sampler may
keep), `code_ids` (codes among the text ids), `from_upstream` (its authors' checkpoints), `new_layout` and `create`
(new models), and the class attributes. What is left is the same for all.

A family is passed the module to call (`model`) where gradients flow, because under DDP, FSDP or ZeRO that is the
*wrapped* one: log-probs of an unwrapped module would skip the gradient synchronisation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from ..configs.errors import InputError
from ..configs.registry import find
from .attention import attend_either_way, block_mask, check_layers, rope_switch, sees_all_before
from .heads import Float32Heads, in_chunks, tempered
from .pictures.vision import Vision
from .tokens.processing import Processor
from .tokens.sequence import TokenBatch
from .tokens.template import Template


class PromptTooLong(InputError):
    kind = "prompt too long"


class UnifiedPolicy(ABC):
    family: str
    """Name in the registry and in a checkpoint."""
    model_class: Any = AutoModelForCausalLM
    """The class that reads its weights, stock where there is one."""
    upstream_types: tuple[str, ...] = ()
    """Model types of its authors' checkpoints, where they are not that of `model_class`."""
    own_image_head = False
    """Image codes have an embedding and a head of their own, beside those of text."""
    never_trained: tuple[str, ...] = ()
    """Submodules that stay as they are: an image tokenizer inside, beside the processor's, which is the one used."""
    new_depth = 1
    """Codes a position of a new model's pictures."""
    new_rows = 0
    """Last rows of embedding and head that no training has reached yet: the model was extended by them."""

    def __init__(self, model: PreTrainedModel, processor: Processor):
        check_layers(model)
        _without_dropout(model)
        freeze(model, self.never_trained)
        self.model = model
        self.processor = processor
        self.vocabulary = processor.vocabulary
        if self.vocabulary.depth > 1 and type(self).depth_states is UnifiedPolicy.depth_states:
            depth = self.vocabulary.depth
            raise InputError(f"model family {self.family!r} draws one code a position, its image tokenizer has {depth}")
        self.float32_heads = Float32Heads()
        self.rope_switch = rope_switch(model.config.get_text_config())
        """Tokens of a sequence beyond which all of them would be rotated otherwise; longer ones are refused."""
        self.sees_all_before = sees_all_before(model.config.get_text_config())
        self._never_sampled = torch.tensor(self.vocabulary.never_sampled)
        self.flex_attention = False
        """Packed rows have a mask of blocks instead of a dense one."""
        self.compiled_forward: Callable[..., Any] | None = None
        """The decoder's, once somebody has asked for it (`sampler.steps`)."""
        self._stock_forward = model.forward
        # Not the bound method: accelerate takes a forward's function and binds it to the model.
        model.forward = partial(self._forward)  # type: ignore[method-assign]

    @classmethod
    def new_layout(cls, image_size: int, grid: tuple[int, int]) -> tuple[Template, Vision | None]:
        """What a new model of this family goes by, whose pictures have so many pixels a side and this grid of codes."""
        return Template(), None

    @classmethod
    def create(cls, config: Any, processor: Processor) -> UnifiedPolicy:
        """A new model of random weights around a language model of this configuration, with the processor's ids."""
        raise InputError(f"family {cls.family!r}: new models are not made; start from a checkpoint")

    @classmethod
    def vision(cls, directory: Path, config: Any) -> Vision | None:
        """The preprocessing of the model's own picture encoder, if it has one."""
        return None

    @classmethod
    def code_ids(cls, config: Any) -> Sequence[int]:
        """The text ids that are image codes, in the order of codes; none where codes come behind the vocabulary."""
        return ()

    @classmethod
    def image_choices(cls, config: Any) -> int | None:
        """Scores of an image token, D times the codes, where the model's configuration tells."""
        return None

    @classmethod
    def from_upstream(cls, directory: Path, **options: Any) -> UnifiedPolicy:
        """The checkpoint of its authors in a folder, as it was published.

        A family names the options that it takes, of `image_tokenizer` (a file or folder) and `image_size` (pixels of a
        side). Raises InputError where a part is missing.
        """
        raise InputError(f"model family {cls.family!r} reads no checkpoints but those that limner wrote")

    @abstractmethod
    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, T, H] of joint ids; `cache`, if given, takes their keys and values.

        `mask` is boolean [B, 1, T, cached + T], True where a token may attend; windows of single layers come on top
        (`attention_mask`). None is the causal one of rows that begin together, with nothing cached; that of packed rows
        may be one of blocks, which `attention_mask` hands on. `features` [n, H] stand at the n placeholders of the ids,
        in the order of rows and tokens.
        """

    @abstractmethod
    def text_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the V text ids, [..., V], by linear layers or `torch.nn.functional.linear`.

        Sampler and trainer call it inside `float32_heads`, where these are products in float32.
        """

    @abstractmethod
    def image_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the image codes, [..., codes], in the same way; of `depth_states` where a family has them."""

    def depth_states(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Of n positions of D codes with hidden states [n, H]: what their first codes are scored from, [n, d + 1, E].

        `before` [n, d], d < D, are the codes that are drawn already; the scores behind them may depend on those before
        and on no others. Called with all n at once by the sampler, code by code, and by the trainer with D - 1 of them.
        """
        raise NotImplementedError(f"{self.family}: a position of this model has one code")

    @abstractmethod
    def parts(self) -> dict[str, tuple[Tensor, slice]]:
        """The rows of a parameter that embed or score each modality, by a name that begins with the modality.

        A training step of interleaved documents must reach every one of them; preflight looks.
        """

    def image_features(self, pixels: Tensor) -> Tensor:
        """Pictures [n, 3, S, S] as the model's own encoder sees them, [n, features, H]; n may be 0 (`pixels` [0])."""
        raise NotImplementedError(f"{self.family}: this model sees given pictures as codes")

    @contextmanager
    def standing_still(self, images: bool) -> Iterator[None]:
        """Around many calls of `hidden` between which no weight changes: what each would compute anew may be kept.

        `images` says whether codes are to be expected.
        """
        yield

    def features_of(self, batch: TokenBatch) -> Tensor | None:
        """What stands at the placeholders of a batch, [n, H]; None for a model that sees pictures as codes."""
        if not self.vocabulary.features:
            return None
        seen_BT, picture_BT, place_BT = batch.placeholders(self.vocabulary)
        held_B = picture_BT.max(1).values + 1
        first_B = held_B.cumsum(0) - held_B
        features = self.image_features(batch.pictures(self.vocabulary))
        return features[(first_B[:, None] + picture_BT)[seen_BT], place_BT[seen_BT]]

    def log_probs(
        self,
        model: Any,
        batch: TokenBatch,
        temperature: float = 1.0,
        max_images: int | None = None,
        guidance: float = 1.0,
        chunk: int | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of each token under the distribution the sampler draws from, float32 [B, T].

        `model` is the module to call: the wrapped one where gradients flow. Text positions normalise over the text ids
        the grammar allows there, image positions over the image codes; forced and untrainable tokens get 0. It is the
        same softmax, mask, temperature and guidance as in `generation.generate`; a test replays samples and compares.
        With `chunk`, so many tokens are scored against the vocabulary at a time, and again in the backward pass.
        A position of D codes is one token: its log-prob is the sum over depth, and so is its entropy, of each code
        given those before it that were drawn. The entropy is to be looked at; with a gradient, for a bonus, it keeps
        two more tensors for the backward pass.
        """
        return model(
            token_batch=batch,
            temperature=temperature,
            max_images=max_images,
            guidance=guidance,
            chunk=chunk,
            entropy_gradient=entropy_gradient,
        )[:2]

    def log_probs_and_kl(
        self, model: Any, batch: TokenBatch, reference: tuple[Tensor, Tensor], **settings: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `log_probs`, and the KL of each token's whole distribution to the reference's `distributions`, [B, T]."""
        return model(token_batch=batch, reference=reference, **settings)

    @torch.no_grad()
    def distributions(self, model: Any, batch: TokenBatch, **settings: Any) -> tuple[Tensor, Tensor]:
        """Log-probs of all choices at the n text and m image tokens that are trained: float32 [n, V] and [m, codes], or
        [m, D, codes].

        They are those that `log_probs` with the same settings takes its tokens' from; -inf where the grammar forbids.
        """
        return model(token_batch=batch, whole=True, **settings)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model is made for."""
        most = self.model.config.get_text_config().max_position_embeddings
        return most if self.rope_switch is None else min(most, self.rope_switch)

    def check_prompt(self, tokens: int) -> None:
        """Raises PromptTooLong where the model has no position for an answer behind it."""
        if tokens >= self.longest:
            raise PromptTooLong(
                f"the prompt has {tokens:,} tokens, and the model {self.longest:,} positions; shorten it"
            )

    def check_length(self, tokens: int) -> None:
        """Raises InputError for a sequence that the model would see by other rotations than a shorter one."""
        if self.rope_switch is not None and tokens > self.rope_switch:
            raise InputError(
                f"a sequence of {tokens} tokens: beyond {self.rope_switch} the rope of {type(self.model).__name__} "
                "rotates all of them otherwise, so that none would be scored as it was sampled; "
                "prompt and answer must fit: shorten them, or lower the length limit"
            )

    def _forward(
        self,
        *args,
        token_batch: TokenBatch | None = None,
        temperature: float = 1.0,
        max_images: int | None = None,
        guidance: float = 1.0,
        chunk: int | None = None,
        entropy_gradient: bool = False,
        reference: tuple[Tensor, Tensor] | None = None,
        whole: bool = False,
        **kwargs,
    ):
        """The model's forward, which now also scores a TokenBatch.

        It must happen inside the module's own forward: DDP, FSDP, ZeRO and PEFT hook into that call.
        """
        if token_batch is None:
            return self._stock_forward(*args, **kwargs)
        return self._score_batch(
            token_batch, temperature, max_images, guidance, chunk, entropy_gradient, reference, whole
        )

    def _score_batch(
        self,
        batch: TokenBatch,
        temperature: float,
        max_images: int | None,
        guidance: float,
        chunk: int | None,
        entropy_gradient: bool,
        reference: tuple[Tensor, Tensor] | None,
        whole: bool,
    ) -> tuple[Tensor, ...]:
        """`log_probs_and_kl`, the KL 0 without a reference; or, where `whole`, `distributions`."""
        size = self.vocabulary.text_size
        if self.rope_switch is not None:
            self.check_length(int(batch.positions_BT.max()) + 1)
        features = self.features_of(batch)
        positions_BT, mask = self._seen_in(batch)
        hidden = self.hidden(batch.ids_BT, positions_BT, mask, None, features)[:, :-1]
        target = batch.ids_BT[:, 1:]
        chosen = batch.trainable_BT[:, 1:]
        text_at, image_at = chosen & (target < size), chosen & (target >= size)

        def text_scores(states: Tensor, images: Tensor) -> Tensor:
            return tempered(self.allowed_text_logits(states, images, max_images), temperature)

        def image_scores(before: Tensor, *states: Tensor) -> Tensor:
            if depth > 1:
                states = tuple(self.depth_states(part, before) for part in states)
            return tempered(self.guided_image_logits(*states, guidance=guidance), temperature)

        depth, codes = self.vocabulary.depth, self.vocabulary.codes_of(target[image_at])
        image_states = [codes[..., :-1] if depth > 1 else codes, hidden[image_at]]
        if guidance != 1.0:
            ids_BT, *other = batch.without_prompt(self.vocabulary)
            positions_BT, mask = (positions_BT, mask) if self.vocabulary.pads_prompt else other
            kept_BT = (ids_BT == batch.ids_BT)[batch.ids_BT == self.vocabulary.controls.image]
            unconditional = self.hidden(
                ids_BT, positions_BT, mask, None, None if features is None else features[kept_BT]
            )
            image_states.append(unconditional[:, :-1][image_at])
        images_before = batch.images_before_BT[:, 1:][text_at]
        if whole:
            scores = text_scores(hidden[text_at], images_before), image_scores(*image_states)
            return tuple(part.log_softmax(-1) for part in scores)
        logp = torch.zeros(target.shape, dtype=torch.float32, device=target.device)
        entropy, kl = torch.zeros_like(logp), torch.zeros_like(logp)
        text_states, of_codes = [hidden[text_at], images_before], chunk and max(chunk // depth, 1)
        for at, scores, choice, inputs, log_q, most in (
            (text_at, text_scores, target[text_at], text_states, reference and reference[0], chunk),
            (image_at, image_scores, codes, image_states, reference and reference[1], of_codes),
        ):
            p, h, d = in_chunks(scores, choice, inputs, log_q, most, entropy_gradient)
            logp = logp.masked_scatter(at, p)
            entropy = entropy.masked_scatter(at, h)
            kl = kl if d is None else kl.masked_scatter(at, d)
        return pad(logp, (1, 0)), pad(entropy, (1, 0)), pad(kl, (1, 0))

    def _seen_in(self, batch: TokenBatch) -> tuple[Tensor, Any]:
        """Positions and mask of a batch; none where attention may be causal and nothing else.

        Padding then has positions, too: where they began anew transformers would find a packed row.
        """
        rows, tokens = batch.ids_BT.shape
        if self.sees_all_before and batch.is_unpacked:
            return torch.arange(tokens, device=batch.ids_BT.device).expand(rows, -1), None
        return batch.positions_BT, block_mask(batch.sequence_BT) if self.flex_attention else batch.mask_BTT()

    def guided_image_logits(
        self, hidden: Tensor, without: Tensor | None = None, guidance: float | Tensor = 1.0
    ) -> Tensor:
        """Image scores in float32 of hidden or depth states; with those of the same tokens without their prompt:

        without + guidance * (with - without) (Ho and Salimans, arXiv 2207.12598, as VILA-U and Janus use it on logits).
        """
        with self.float32_heads.on(hidden.device):
            scores = self.image_logits(hidden).float()
            if without is None:
                return scores
            base = self.image_logits(without).float()
        return base + guidance * (scores - base)

    def pack_by_flex_attention(self) -> None:
        """Packed rows are scored by flex attention from now on. Raises InputError where that cannot be."""
        attend_either_way(self.model)
        self.flex_attention = True

    def freeze(self, names: Sequence[str]) -> None:
        """Training leaves these submodules as they are. Raises InputError for one that the model does not have."""
        freeze(self.model, names)

    def frozen_copy(self) -> UnifiedPolicy:
        """The policy as it is now, for a KL reference: own weights, no gradient."""
        model: Any = type(self.model)(self.model.config)
        model.to(self.model.device, self.model.dtype)
        model.load_state_dict(self.model.state_dict())
        model.requires_grad_(False).eval()
        return type(self)(model, self.processor)

    def allowed_text_logits(self, hidden: Tensor, images_before: Tensor, max_images: int | Tensor | None) -> Tensor:
        """Scores of the text ids in float32 [n, V], -inf for what the grammar forbids after so many images, [n].

        `max_images` is that of all, or [n].
        """
        with self.float32_heads.on(hidden.device):
            scores = self.text_logits(hidden).float()
        # In place, and few columns: a mask of all choices costs as much as the softmax.
        if self._never_sampled.device != scores.device:
            self._never_sampled = self._never_sampled.to(scores.device)
        scores.index_fill_(1, self._never_sampled, float("-inf"))
        if max_images is not None:
            boi = self.vocabulary.controls.boi
            scores[:, boi].masked_fill_(images_before >= max_images, float("-inf"))
        return scores


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Training leaves these submodules as they are. Raises InputError for one that the model does not have."""
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise InputError(f"freeze: the model has no submodule {name!r}; it has {', '.join(_outline(known))}")
        known[name].requires_grad_(False)


def _outline(names: Iterable[str]) -> list[str]:
    """The submodules of the two upper levels."""
    return [name for name in names if name and name.count(".") < 2]


def _without_dropout(model: nn.Module) -> None:
    """For good: with it the policy that is scored in training is not the one that was sampled (Emu3 has 0.1 of it)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


def family(name: str, place: str = "") -> type[UnifiedPolicy]:
    """The class of a registered family. Raises InputError that lists the known ones, and for a file or module: a
    checkpoint's own settings may not name code."""
    return find("family", name, place, files=False).thing
