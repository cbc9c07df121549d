"""THE sampler: rows that join and leave while others run, each with state of its own.

A step draws an id for every row (`draw`) and runs the model over them (`feed`). A row may be inside an image while its
neighbour writes text. The grammar is forced (the whole pattern of an image behind `<boi>`, at most `max_images`), each
id is drawn with the uniform that belongs to its row and its place in it, and every log-prob is that of the distribution
that was really sampled. So an answer does not depend on its neighbours, nor on when it was admitted. No step runs
Python per row, and none inside a picture waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..policy import UnifiedPolicy
from ..tokens.sequence import CODE
from .cache import SlotCache
from .draw import Kinds, draw, uniforms
from .grammar import ANY_TEXT, TEXT, Grammar
from .prefill import Prefix, key_of, key_without, prefill
from .request import Request, Sample
from .state import FREE, NO_LIMIT, TWIN, Message, Mirror, State
from .steps import Recorded, Steps, check_steps


class Sampler:
    """`steps`: the shapes that steps have, and how they run; the ids are the same. Raises InputError for `graphs` where
    there is no GPU. Steps are compiled by whoever calls (`generation.evaluating`).

    `late`: the ids of a text are read behind the forward pass that they go into, so that a GPU always has work; by
    default on a GPU. A row that has ended then runs through one more.
    """

    def __init__(self, policy: UnifiedPolicy, steps: Steps = "plain", late: bool | None = None):
        self.policy, self.vocabulary, self.fixed = policy, policy.vocabulary, steps != "plain"
        self.device = next(policy.model.parameters()).device
        check_steps(policy, steps, self.device)
        self.recorded = Recorded(self._model) if steps == "graphs" else None
        self.late = self.device.type == "cuda" if late is None else late
        self.grammar = Grammar(self.vocabulary, self.device)
        self.state, self.mirror = State.empty(self.device, self.vocabulary.depth), Mirror()
        self.cache = SlotCache(policy.model.config.get_text_config().num_hidden_layers, self.device)
        self.hidden: Tensor | None = None
        """Of the last token of every slot, [slots, H]."""
        self.requests: dict[int, Request] = {}
        self.kinds, self._need = Kinds(), 0
        self._known: list[Prefix] = []
        """The prompt that came last: the rest of its group may follow."""
        self._seen_again: Tensor | None = None
        """Features of the last picture of each slot, [slots, features, H], for a model that looks at its own."""
        self._looks_at_its_own = self.vocabulary.controls.image in self.vocabulary.image
        self._indices: dict[str, tuple[np.ndarray, Tensor]] = {}
        self._message: tuple[np.ndarray, np.ndarray, Message] | None = None
        """The ids that were drawn last, on their way; the slots of texts, and where those stood at the draw."""

    @property
    def running(self) -> int:
        """Rows that have not ended, as far as the host knows."""
        return int(np.count_nonzero(self._rows()))

    @property
    def slots(self) -> int:
        return len(self.mirror.key)

    @property
    def busy(self) -> int:
        """Slots of running rows and of their twins."""
        return int(np.count_nonzero(self._alive()))

    def _rows(self) -> np.ndarray:
        return (self.mirror.key >= 0) & (self.mirror.place != self.grammar.finished)

    def _alive(self) -> np.ndarray:
        """Running rows and their twins."""
        return self._rows()[self.mirror.leader] if self.slots else self._rows()

    # ---- who comes and goes ----

    def admit(self, keys: Sequence[int], requests: Sequence[Request]) -> None:
        """Rows that run from the next `draw` on, under numbers of the caller's that no running row has.

        Raises InputError for a prompt that leaves no position for an answer (PromptTooLong), and for a row that is
        longer than the model rotates as it does shorter ones.
        """
        for request in requests:
            self.policy.check_prompt(len(request.prompt))
            self.policy.check_length(len(request.prompt) + request.sampling.max_new_tokens)
        if not requests:
            return
        guided = [row for row, request in enumerate(requests) if request.sampling.guided]
        slots = self._empty(len(requests) + len(guided))
        own, twins = slots[: len(requests)], slots[len(requests) :]
        twin_of = own.copy()
        twin_of[guided] = twins
        self.requests |= dict(zip(keys, requests, strict=True))
        self._settings_changed()
        starts = [key_of(request.prompt) for request in requests]
        starts += [key_without(self.policy, requests[row].prompt) for row in guided]
        length = self._prefill(requests, starts, slots)
        mirror = self.mirror
        mirror.key[own], mirror.key[twins], mirror.length[slots] = keys, TWIN, length
        mirror.leader[slots], mirror.twin[slots] = np.concatenate([own, own[guided]]), np.concatenate([twin_of, twins])
        self._link()
        self.state.put(slots, position=length)
        self._begin(requests, own)

    def _prefill(self, requests: Sequence[Request], starts: Sequence, slots: np.ndarray) -> np.ndarray:
        """Fills cache and hidden states of these slots, and says how many tokens each begins with."""
        fresh = prefill(self.policy, requests, [key for prefix in self._known for key in prefix.row])
        prefixes = [*self._known, *([] if fresh is None else [fresh])]
        length = np.zeros(len(slots), dtype=np.int64)
        for prefix in prefixes:
            if not (at := [n for n, key in enumerate(starts) if key in prefix.row]):
                continue
            rows = [prefix.row[starts[n]] for n in at]
            length[at] = [prefix.length[row] for row in rows]
            if self.hidden is None:
                self.hidden = prefix.hidden.new_zeros(self.slots, prefix.hidden.shape[1])
            self._reserve(int(max(length[at])) + 1)
            slots_n, rows_n = (torch.tensor(list(part), device=self.device) for part in (slots[at], rows))
            self.cache.admit(slots_n, prefix.layers, rows_n, torch.from_numpy(length[at]).to(self.device))
            self.hidden[slots_n] = prefix.hidden[rows_n]
        last = requests[-1].prompt
        kept = (key_of(last), key_without(self.policy, last))
        self._known = [prefix.only(kept, [last]) for prefix in prefixes if prefix.row.keys() & {*kept}]
        return length

    def _reserve(self, tokens: int) -> None:
        self.cache.reserve(tokens, NO_LIMIT if self.fixed else self._need)

    def _begin(self, requests: Sequence[Request], own: np.ndarray) -> None:
        """Settings, random stream and counters of new rows."""
        asked = [request.sampling for request in requests]
        limit = np.array([sampling.max_new_tokens for sampling in asked])
        self.state.widen(int(limit.max()))
        numbers, depth = np.zeros((len(asked), *self.state.uniforms.shape[1:])), self.vocabulary.depth
        for row, request in enumerate(requests):
            numbers[row, : limit[row]] = uniforms(request.sampling.seed, request.row, int(limit[row]), depth)
        place = np.array([self.grammar.opening if sampling.begin_with_image else TEXT for sampling in asked])
        mirror = self.mirror
        mirror.place[own], mirror.limit[own], mirror.drawn[own], mirror.read[own] = place, limit, 0, 0
        self.state.put(
            own,
            place=place,
            limit=limit,
            drawn=0 * limit,
            images=0 * limit,
            max_images=[NO_LIMIT if s.max_images is None else s.max_images for s in asked],
            temperature=[sampling.temperature for sampling in asked],
            top_k=[sampling.top_k for sampling in asked],
            top_p=[sampling.top_p for sampling in asked],
            guidance=[sampling.guidance for sampling in asked],
            uniforms=numbers,
        )

    def know(self, prefix: Prefix) -> None:
        """What rows of the next `admit` begin with need not be prefilled there."""
        self._known.append(prefix)

    def end(self, keys: Sequence[int]) -> None:
        """These rows end where they are, as if they had reached their limit. Between `feed` and `draw`."""
        slots = np.flatnonzero(np.isin(self.mirror.key, list(keys)))
        self.settle()
        self.mirror.place[slots] = self.grammar.finished
        self.state.put(slots, place=self.mirror.place[slots])

    def leave(self) -> dict[int, Sample]:
        """The rows that have ended; their slots are free from now on."""
        self.settle()  # what is on its way may be of a slot that `shrink` drops
        mirror = self.mirror
        done = np.flatnonzero((mirror.key >= 0) & (mirror.place == self.grammar.finished))
        if not len(done):
            return {}
        at, longest = torch.from_numpy(done).to(self.device), int(mirror.drawn[done].max())
        ids, logp = self.state.ids[at, :longest].cpu(), self.state.logp[at, :longest].cpu()
        samples = {}
        with torch.inference_mode(False):  # copies that a loss may hold
            for row, slot in enumerate(done):
                key, length = int(mirror.key[slot]), int(mirror.drawn[slot])
                samples[key] = Sample(ids[row, :length].clone(), logp[row, :length].clone())
                del self.requests[key]
        freed = np.union1d(done, mirror.twin[done])
        mirror.key[freed], mirror.leader[freed], mirror.twin[freed], mirror.length[freed] = FREE, freed, freed, 0
        self.cache.free(torch.from_numpy(freed).to(self.device))
        self._link()
        self._settings_changed()
        return samples

    def shrink(self) -> None:
        """Drops free slots."""
        kept = np.flatnonzero(self.mirror.key != FREE)
        added = self._bucket(len(kept)) - len(kept)
        if len(kept) + added < self.slots:
            self._arrange(kept, added)

    def _empty(self, count: int) -> np.ndarray:
        """Free slots, new ones if need be."""
        free = np.flatnonzero(self.mirror.key == FREE)
        if len(free) < count:
            self._arrange(np.arange(self.slots), self._bucket(self.slots + count - len(free)) - self.slots)
            free = np.flatnonzero(self.mirror.key == FREE)
        return free[:count]

    def _bucket(self, slots: int) -> int:
        return 1 << (slots - 1).bit_length() if self.fixed and slots else slots

    def _arrange(self, order: np.ndarray, added: int) -> None:
        """All that is kept by slot: these slots in this order, and free ones behind."""
        order_S = torch.from_numpy(order).to(self.device)
        place_of = np.full(self.slots, -1)
        place_of[order] = np.arange(len(order))
        if self._message is not None:
            text, stood, message = self._message
            self._message = place_of[text], stood, message
        self.mirror.arrange(order, added)
        new = np.arange(len(order) + added)
        for links in (self.mirror.leader, self.mirror.twin):
            links[: len(order)] = place_of[links[: len(order)]]
            links[len(order) :] = new[len(order) :]
        for places in (self.mirror.place, self.mirror.before):
            places[len(order) :] = self.grammar.finished
        self.state.arrange(order_S, added)
        self.state.place[len(order) :] = self.grammar.finished
        self.cache.arrange(order_S, added)
        for name in ("hidden", "_seen_again"):
            if (tensor := getattr(self, name)) is not None:
                setattr(self, name, torch.cat([tensor[order_S], tensor.new_zeros(added, *tensor.shape[1:])]))
        self._link()

    def _link(self) -> None:
        """Who belongs to whom, as the mirror has it."""
        self.state.leader = torch.from_numpy(self.mirror.leader).to(self.device)
        self.state.twin = torch.from_numpy(self.mirror.twin).to(self.device)

    def _settings_changed(self) -> None:
        running = self.requests.values()
        self.kinds = Kinds.of([request.sampling for request in running])
        self._need = max((len(item.prompt) + item.sampling.max_new_tokens for item in running), default=0)

    # ---- a step ----

    def draw(self) -> None:
        """The next id of every running row."""
        state, grammar = self.state, self.grammar
        known = grammar.host_due[self.mirror.place]
        text, image = (self._at(kind, known) for kind in (ANY_TEXT, CODE))
        due, place = grammar.due.index_select(0, state.place), grammar.after.index_select(0, state.place)
        ids, logp = due.clone(), torch.zeros_like(due, dtype=torch.float32)
        here = state.first + state.drawn
        uniform = state.uniforms.flatten(0, 1).index_select(0, here)
        if text is not None:
            chosen, p = self._text(text, uniform[:, 0])
            led_to = grammar.led_to.index_select(0, chosen)
            self._put(ANY_TEXT, due, text, (ids, chosen), (logp, p), (place, led_to))
        if image is not None:
            chosen, p = self._image(image, uniform)
            self._put(CODE, due, image, (ids, chosen), (logp, p))
        alive = state.place != grammar.finished
        state.ids.view(-1).index_copy_(0, here, ids)
        state.logp.view(-1).index_copy_(0, here, logp)
        state.drawn += alive
        state.images += place == 1
        state.place = place.masked_fill(state.drawn >= state.limit, grammar.finished)
        state.next = ids
        self._follow(known, ids)
        if not self.late:
            self.settle()

    def _text(self, at: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        state, hidden = self.state, cast(Tensor, self.hidden)
        limit = state.max_images.index_select(0, at) if self.kinds.limited else None
        scores = self.policy.allowed_text_logits(hidden.index_select(0, at), state.images.index_select(0, at), limit)
        return draw(scores, uniform.index_select(0, at), state.rules(at, self.kinds), self.kinds)

    def _image(self, at: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of codes; a row without guidance is its own twin, so that the formula leaves its scores as they are.

        Of D codes a position, `uniform` [slots, D], each is drawn by those before it; with them go their log-probs.
        """
        state, hidden = self.state, cast(Tensor, self.hidden)
        states, guidance = [hidden.index_select(0, at)], state.guidance.index_select(0, at)[:, None]
        if self.kinds.guided:
            states.append(hidden.index_select(0, state.twin.index_select(0, at)))
        own, rules = uniform.index_select(0, at), state.rules(at, self.kinds)
        if self.vocabulary.depth == 1:
            codes, logp = draw(self._scores(states, guidance), own[:, 0], rules, self.kinds)
            return self.vocabulary.ids_of(codes), logp
        codes, logp = at.new_zeros(len(at), 0), torch.zeros(len(at), device=at.device)
        for number in range(self.vocabulary.depth):
            scores = self._scores(self._deeper(states, codes), guidance)
            code, p = draw(scores, own[:, number], rules, self.kinds)
            codes, logp = torch.cat([codes, code[:, None]], 1), logp + p
        return self.vocabulary.ids_of(codes), logp

    def _scores(self, states: Sequence[Tensor], guidance: Tensor) -> Tensor:
        return self.policy.guided_image_logits(states[0], *states[1:], guidance=guidance)

    def _deeper(self, states: Sequence[Tensor], codes: Tensor) -> Sequence[Tensor]:
        """What the next code of each position is scored from; rows and their twins go through the model together."""
        deep = self.policy.depth_states(torch.cat(list(states)), codes.repeat(len(states), 1))
        return deep[:, -1].chunk(len(states))

    def _put(self, kind: int, due: Tensor, at: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
        """Into each of the first the values of the second, which are of the slots `at`, where that kind is due."""
        for target, values in pairs:
            if self.fixed:
                target.copy_(torch.where(due == kind, values, target))
            else:
                target.index_copy_(0, at, values)

    def _at(self, kind: int, known: np.ndarray) -> Tensor | None:
        """The slots at which that is due; None for none. In buckets all slots, whatever is due."""
        slots = np.arange(self.slots) if self.fixed else (known == kind).nonzero()[0]
        return self._index(str(kind), slots) if len(slots) else None

    def _index(self, name: str, slots: np.ndarray) -> Tensor:
        """Slots as a tensor, which is made anew only where it is another than at the step before."""
        kept = self._indices.get(name)
        if kept is None or len(kept[0]) != len(slots) or (kept[0] != slots).any():
            kept = self._indices[name] = slots, torch.from_numpy(slots).to(self.device)
        return kept[1]

    def _follow(self, known: np.ndarray, ids: Tensor) -> None:
        """The host's part of a draw, where that was due: counters and places, all but where a text leads."""
        mirror, grammar = self.mirror, self.grammar
        mirror.before = mirror.place
        text = (known == ANY_TEXT).nonzero()[0]
        mirror.drawn = mirror.drawn + (mirror.before != grammar.finished)
        mirror.place = grammar.host_after[mirror.before]
        if len(text):
            self._message = text, text, Message(ids)
        painted = mirror.place == grammar.painted
        mirror.place[mirror.drawn >= mirror.limit] = grammar.finished
        if self._looks_at_its_own and painted.any():
            self._see_again(np.flatnonzero(painted))

    def read(self) -> dict[int, list[int]]:
        """By row, the ids that nobody has read yet; those of a picture only once it is whole, or the row has ended."""
        mirror, grammar = self.mirror, self.grammar
        at, start, place = (mirror.key >= 0).nonzero()[0], mirror.read, mirror.place
        inside = (place > 1) & (place < grammar.painted)
        stop = mirror.drawn - np.where(inside, place - 1, 0)  # the picture's first id says that it is begun
        at = at[stop[at] > start[at]]
        if not len(at) or self._message is not None:
            return {}
        start, stop, keys = start[at], stop[at], mirror.key[at].tolist()
        mirror.read[at] = stop
        if (stop - start == 1).all() and (grammar.host_due[mirror.before[at]] == ANY_TEXT).all():
            return {key: [told] for key, told in zip(keys, mirror.told[at].tolist(), strict=True)}
        first, last = int(start.min()), int(stop.max())
        ids = self.state.ids[torch.from_numpy(at).to(self.device), first:last].tolist()
        spans = zip((start - first).tolist(), (stop - first).tolist(), strict=True)
        return {key: row[slice(*span)] for key, row, span in zip(keys, ids, spans, strict=True)}

    def shares_painted(self) -> dict[int, float]:
        """By row that is in a picture, how much of it has been drawn, 0 to 1."""
        mirror, grammar = self.mirror, self.grammar
        at = ((mirror.key >= 0) & grammar.inside(mirror.place)).nonzero()[0]
        shares = np.minimum(mirror.place[at] / grammar.painted, 1.0)
        return dict(zip(mirror.key[at].tolist(), shares.tolist(), strict=True))

    def settle(self) -> None:
        """Learns which texts go on, open a picture or end; the one wait of a step, and of none inside pictures."""
        if self._message is None:
            return
        (text, stood, message), self._message = self._message, None
        mirror, ids = self.mirror, message.read()[stood]
        mirror.told[text] = ids
        mirror.place[text] = self.grammar.host_led_to[ids]
        mirror.place[mirror.drawn >= mirror.limit] = self.grammar.finished

    def feed(self) -> None:
        """The model over the ids that were drawn last."""
        alive, state, length = self._alive(), self.state, self.mirror.length
        if not len(lengths := length[alive]):
            self.settle()
            return
        seen = int(lengths.max()) + 1
        self._reserve(seen)
        mask = self.cache.begin(self.cache.columns if self.fixed else seen)
        inputs, features = (self._led(state.next), state.position, mask, self.cache.at_S), self._features()
        if self.recorded is None or features is not None:
            self.hidden = self._model(*inputs, features)
        else:
            self.hidden = self.recorded(self.cache.moved, *inputs)
        running = self._led(state.place) != self.grammar.finished
        state.position += running
        self.cache.length_S += running
        self.mirror.length = length + alive
        self.settle()

    def _model(self, ids_S: Tensor, position_S: Tensor, mask: Tensor, at_S: Tensor, *features: Tensor | None) -> Tensor:
        """The hidden state of each slot behind its id, [slots, H]; keys and values go where the cache has `at_S`."""
        self.cache.at_S = at_S
        return self.policy.hidden(ids_S[:, None], position_S[:, None], mask, self.cache, *features)[:, -1]

    def _led(self, of_leaders: Tensor) -> Tensor:
        """Twins go by their rows."""
        return of_leaders.index_select(0, self.state.leader) if self.kinds.guided else of_leaders

    # ---- a model with a picture encoder of its own ----

    def _see_again(self, painted: np.ndarray) -> None:
        """Features of the pictures that these rows have just finished."""
        vocabulary, processor, mirror = self.vocabulary, self.policy.processor, self.mirror
        pattern = np.array(vocabulary.image[: vocabulary.last_code + 1])
        behind = np.flatnonzero(pattern == CODE) - len(pattern)
        at = torch.from_numpy(painted).to(self.device)
        columns = torch.from_numpy(mirror.drawn[painted, None] + behind).to(self.device)
        codes_nN = vocabulary.codes_of(self.state.ids[at].gather(1, columns)).cpu().numpy()
        pixels = torch.stack([processor.seen_again(codes_N) for codes_N in codes_nN])
        features = self.policy.image_features(pixels.to(self.device))
        if self._seen_again is None:
            self._seen_again = features.new_zeros(self.slots, *features.shape[1:])
        self._seen_again[at] = features

    def _features(self) -> Tensor | None:
        """What stands at the placeholders among the ids to be fed, in the order of slots; None where there are none."""
        if self._seen_again is None:
            return None
        image, leader = self.vocabulary.controls.image, self.mirror.leader
        drawn_at = self.mirror.before[leader]
        at = np.flatnonzero(self.grammar.host_due[drawn_at] == image)
        if not len(at):
            return None
        number = np.cumsum(self.grammar.host_due == image) - 1
        of, which = (torch.from_numpy(part[at]).to(self.device) for part in (leader, number[drawn_at]))
        return self._seen_again[of, which]
