"""What is named like a key is left out, at any depth; what only sounds like it stays."""

import pytest

from limner.configs.redaction import is_secret, texts_in, without_secrets


@pytest.mark.parametrize(
    "name",
    ["api_key", "apikey", "X-Api-Key", "openaiApiKey", "Authorization", "Proxy-Authorization", "token", "hub_token"]
    + ["accessToken", "push_to_hub_token", "password", "db_password", "client_secret", "secret_key", "Cookie"],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["api_key_env", "max_tokens", "max_new_tokens", "pad_token", "boi_token", "tokenizer", "key", "keys", "author", 3]
    + ["token_entropy", "patience", "cookies_per_jar", "importance_sampling_level", "secretary"],
)
def test_names_that_only_sound_like_it(name):
    assert not is_secret(name)


def test_what_is_left_out_is_named_and_nothing_is_changed():
    value = {
        "a": [{"token": "t1", "b": 1}],
        "Authorization": {"user": "u", "words": ["w"]},
        "password": None,
        "token": 5,
    }
    kept, left = without_secrets(value)
    assert kept == {"a": [{"b": 1}], "token": 5}  # a number is a setting
    assert left == {"a.0.token": "t1", "Authorization": {"user": "u", "words": ["w"]}}
    assert list(texts_in(left)) == ["t1", "u", "w"] and value["a"][0]["token"] == "t1"
