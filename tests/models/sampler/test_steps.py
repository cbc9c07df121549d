"""Fixed, compiled and recorded steps draw what plain ones draw, or say why they cannot."""

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.sampler.generation import complete, generate
from limner.models.sampler.request import Request, Sampling
from limner.models.sampler.slots import Sampler
from limner.models.sampler.steps import Recorded, check_steps, compile_decoder

from ..families.conformance import documents
from ..families.schedules import check_same, mixed
from ..families.tiny import FAMILIES


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy(1)


@pytest.fixture(scope="module")
def prompts(policy):
    return policy.processor.encode_all([document.prompt for document in documents()[:3]])


def on_a_tape(work):
    """What a CUDA graph does, without one: runs the work again, over the same memory and into the same result."""
    result = work().clone()
    return result, lambda: result.copy_(work())


@pytest.mark.parametrize("family", ["llama", "janus_reencode", "emu3"])
def test_recorded_steps_draw_the_same(family, monkeypatch):
    policy = FAMILIES[family]()
    requests, recordings = mixed(policy), []
    plain = complete(policy, requests, at_once=3)
    monkeypatch.setattr("limner.models.sampler.slots.check_steps", lambda *_: None)
    monkeypatch.setattr(Recorded, "__init__", _recording(Recorded.__init__, recordings))
    check_same(complete(policy, requests, 3, "graphs"), plain)
    assert 1 < len(recordings) < 20, "once a shape of the cache"


def _recording(begin, recordings):
    def counted(self, work):
        begin(self, work, lambda run: recordings.append(1) or on_a_tape(run))

    return counted


def test_a_recording_that_keeps_old_inputs_is_found(policy, prompts, monkeypatch):
    requests = [Request(prompt, Sampling(20, seed=4), row) for row, prompt in enumerate(prompts)]
    plain = complete(policy, requests)
    monkeypatch.setattr("limner.models.sampler.slots.check_steps", lambda *_: None)
    monkeypatch.setattr(Recorded, "__init__", _recording(Recorded.__init__, []))
    monkeypatch.setattr(Recorded, "__call__", lambda self, moved, *inputs: _stale(self, moved, *inputs))
    with pytest.raises(AssertionError):
        check_same(complete(policy, requests, steps="graphs"), plain)


def _stale(recorded, moved, *inputs):
    if recorded.result is None or moved != recorded.moved:
        recorded.moved, recorded.inputs = moved, inputs
        recorded.result, recorded.play = recorded.record(lambda: recorded.work(*recorded.inputs))
    recorded.play()
    return recorded.result


def test_graphs_are_refused_where_they_cannot_run(policy, monkeypatch):
    with pytest.raises(InputError, match="^steps 'graphs': CUDA graphs need a GPU, and the model is on cpu; .*fixed"):
        Sampler(policy, "graphs")
    monkeypatch.setattr(policy, "rope_switch", 60)
    with pytest.raises(InputError, match="^steps 'graphs': the rope of this model"):
        check_steps(policy, "graphs", torch.device("cuda"))


@pytest.mark.slow
def test_compiled_steps_draw_the_same(make_policy, prompts):
    policy = make_policy(1)
    plain = generate(policy, prompts, Sampling(40, seed=5), 2)
    stock = policy.model.get_decoder().forward
    check_same(generate(policy, prompts, Sampling(40, seed=5), 2, steps="compiled"), plain)
    assert policy.model.get_decoder().forward == stock, "for rollouts alone"
    compile_decoder(policy)
    for room in (40, 20):  # two lengths, one program
        compiled = generate(policy, prompts, Sampling(room, seed=5), 2)
        assert [sample.ids_C.tolist() for sample in compiled] == [sample.ids_C[:room].tolist() for sample in plain]
