"""Which model is asked: exactly one, and what is wrong with it is said by the name of its option."""

import pytest

from limner.configs.errors import InputError
from limner.models.chat.choice import ChatConfig, chat_model
from limner.models.chat.endpoint import Endpoint, EndpointConfig
from limner.models.chat.local_vlm import LocalVLMConfig

SERVER = EndpointConfig("http://localhost:1/v1", "m")


def test_the_model_that_is_given_is_made():
    with chat_model(ChatConfig(endpoint=SERVER), "judge") as model:
        assert isinstance(model, Endpoint) and model.config is SERVER


@pytest.mark.parametrize(
    ("config", "section", "says"),
    [
        (ChatConfig(), "judge", "judge.endpoint, judge.local: give one of them, --judge.endpoint.base_url URL"),
        (ChatConfig(SERVER, LocalVLMConfig("x")), "", "endpoint, local: give one of them, --endpoint.base_url URL"),
        (ChatConfig(EndpointConfig(model="m")), "rewards.judge", "rewards.judge.endpoint: base_url: give the server"),
        (ChatConfig(local=LocalVLMConfig()), "", "local: model: missing"),
        (ChatConfig(local=LocalVLMConfig("no/where/x")), "judge", "judge.local: no/where/x: cannot be read"),
    ],
)
def test_a_fault_names_its_option(config, section, says):
    with pytest.raises(InputError) as error:
        chat_model(config, section)
    assert str(error.value).startswith(says) and "\n" not in str(error.value)
