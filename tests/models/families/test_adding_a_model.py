"""The family that `docs/adding_a_model.md` writes is one: its text, as it stands there, passes the suite."""

import re
from pathlib import Path

import pytest

from limner.configs import registry
from limner.models.tokens.processing import Processor
from limner.models.tokens.text_tokenizer import train_text_tokenizer

from .conformance import CHECKS, check_adapter, check_checkpoint
from .tiny import SENTENCES, TEXT_SIZE, lean, vq_tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "adding_a_model.md"


@pytest.fixture(scope="module")
def make():
    """A new policy of the page's family, which is known as long as these tests run."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(code.splitlines()) < 150
    known, names = dict(registry._marked), {}
    exec(compile(code, str(PAGE), "exec"), names)

    def make():
        policy = names["tiny"](Processor(train_text_tokenizer(SENTENCES * 4, TEXT_SIZE), vq_tokenizer()))
        lean(policy.model, policy.processor.tokenizer, policy.processor.template.boi)
        return policy

    yield make
    registry._marked.clear()
    registry._marked.update(known)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_conforms(make, check):
    check(make())


def test_its_checkpoints_give_the_same_numbers(make, tmp_path):
    check_checkpoint(make(), tmp_path)


def test_its_adapters_give_the_same_numbers(make):
    pytest.importorskip("peft", reason="pip install 'limner[peft]'")
    check_adapter(make())
