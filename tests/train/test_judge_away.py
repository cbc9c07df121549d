"""GRPO whose judge was never there, or dies in the middle: it ends in seconds that were stated, in one line."""

import threading
import time

import pytest

from limner.configs.errors import InputError
from limner.models.chat.choice import SharedEndpoint
from limner.rewards.build import RewardGuardConfig
from limner.train.before.preflight import check_servers
from limner.train.grpo import RunConfig, run

from ..scripted_server import Fault, ScriptedServer
from .runs import PROMPTS, settings


def judged(policy, folder, url, *, preflight=False, **arguments):
    """A run against a judge at that address, with the settings that a user gives."""
    config = RunConfig(
        rewards={"judge/helpfulness": {"weight": 1, "endpoint": "critic"}},
        reward_guard=RewardGuardConfig(timeout=3, patience=3),
        endpoints={"critic": SharedEndpoint(url, "scripted", timeout=2, patience=2, retries=1, backoff=0.1)},
        preflight=preflight,
    )
    return run(config, settings(folder, **arguments), policy, prompts=PROMPTS)


@pytest.mark.parametrize("preflight", [True, False])
def test_a_judge_that_was_never_there_ends_the_run_at_once(preflight, make_policy, tmp_path):
    start = time.monotonic()
    with pytest.raises(
        InputError, match="http://127.0.0.1:9/v1: connection: .*start the server, or correct base_url"
    ) as e:
        judged(make_policy(0), tmp_path, "http://127.0.0.1:9/v1", preflight=preflight)
    assert time.monotonic() - start < 20 and "num_generations" not in str(e.value)
    assert str(e.value).startswith("preflight: ") == preflight


def test_a_server_of_another_kind_is_no_judge(make_policy, tmp_path):
    """`python -m http.server` answers each question with 501."""
    with ScriptedServer(lambda body: Fault(501)) as server:
        with pytest.raises(InputError, match=f"does not answer: {server.url}: server error: HTTP 501") as caught:
            judged(make_policy(0), tmp_path, server.url, preflight=True)
        assert len(server.bodies) == 1 and "num_generations" not in str(caught.value)


class Dying:
    """A judge that grades so many answers; then nobody is there."""

    def __init__(self, answers):
        self.left, self.server = answers, ScriptedServer(self)

    def __call__(self, body):
        self.left -= 1
        if not self.left:
            threading.Thread(target=self.server.__exit__).start()
        return f"<score>{self.left % 10 + 1}</score>"


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_judge_that_dies_is_waited_for_and_the_run_says_what_is_kept(checkpoints, make_policy, tmp_path):
    judge = Dying(24)  # of three steps
    saving = {"save_strategy": "steps", "save_steps": 2} if checkpoints else {}
    with judge.server as server, pytest.raises(InputError) as caught:
        judged(make_policy(0), tmp_path, server.url, max_steps=9, **saving)
    said = str(caught.value)
    assert server.url in said and "no answer for 3 s (reward_guard.patience)" in said
    kept = f"{tmp_path / 'checkpoint-2'} is kept; the same command with --resume_from_checkpoint last goes on from it"
    nothing = f"{tmp_path}: no checkpoint was written yet, so start again (--save_steps says how often one is)"
    assert said.endswith(f"Steps done: 3; {kept if checkpoints else nothing}")


def test_local_judges_and_exact_rewards_have_no_server(make_policy):
    class Trainer:
        reward = object()

    check_servers(Trainer())  # type: ignore[arg-type]
