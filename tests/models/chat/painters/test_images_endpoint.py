"""Pictures over real HTTP: what is asked, what is tried again, and what is never fetched or trusted."""

import base64

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.chat.painters.images_endpoint import ImagesEndpoint, ImagesEndpointConfig
from limner.models.chat.painters.painter import REFUSED, Painted, Wanted
from limner.models.chat.requests import Failure

from ....scripted_server import BROKEN, TOO_MANY, Fault, ScriptedServer, picture

RED = picture(Image.new("RGB", (8, 8), "red"))
POLICY = Fault(400, '{"error": {"code": "content_policy_violation", "message": "Rejected."}}')


def painted(script, *wanted, **settings):
    """(what was painted, the server, the counts)"""
    with ScriptedServer(script) as server:
        settings = {"retries": 1, "backoff": 0.01, **settings}
        with ImagesEndpoint(ImagesEndpointConfig(base_url=server.url, model="scripted", **settings)) as painter:
            return painter.paint(wanted or [Wanted("a red square", 5)]), server, painter.counts


def test_a_description_becomes_a_picture_and_the_request_says_what_it_must():
    (one,), server, counts = painted(lambda body: RED, size="512x512", extra_body={"quality": "low"})
    assert isinstance(one, Painted) and one.image.getpixel((0, 0)) == (255, 0, 0) and not one.notes
    wanted = {"model": "scripted", "prompt": "a red square", "n": 1, "size": "512x512"}
    assert server.bodies == [{**wanted, "response_format": "b64_json", "quality": "low"}]
    _, server, _ = painted(lambda body: RED, send_seed=True, extra_body={"response_format": None})
    assert server.bodies == [{**wanted, "size": "1024x1024", "seed": 5}]


def test_two_seeds_of_one_description_are_two_pictures_and_the_cache_keeps_both(tmp_path):
    cache = str(tmp_path / "pictures.sqlite")
    wanted = [Wanted("a", 1), Wanted("a", 2), Wanted("a", 1)]
    _, server, counts = painted(lambda body: RED, *wanted, cache=cache)
    assert len(server.bodies) == 2 and counts["shared"] + counts["cached"] == 1
    again, server, counts = painted(lambda body: BROKEN, *wanted, cache=cache)
    assert (
        not server.bodies
        and counts["cached"] + counts["shared"] == 3
        and all(isinstance(one, Painted) for one in again)
    )


def test_faults_are_tried_again_and_a_refusal_is_none():
    answers = iter([TOO_MANY, RED])
    (one,), server, counts = painted(lambda body: next(answers))
    assert isinstance(one, Painted) and counts["retries"] == 1
    (one,), server, counts = painted(lambda body: BROKEN)
    assert isinstance(one, Failure) and one.kind == "server error" and len(server.bodies) == 2
    (one,), server, counts = painted(lambda body: POLICY)
    assert one.image is None and one.notes == (REFUSED,) and len(server.bodies) == 1 and counts[REFUSED] == 1
    (one,), server, _ = painted(lambda body: Fault(401, '{"error": {"message": "bad key"}}'))
    assert isinstance(one, Failure) and one.kind == "rejected"


@pytest.mark.parametrize(
    "answer",
    [
        {"data": []},
        {"data": [{"b64_json": "!!"}]},
        {"data": [{"b64_json": base64.b64encode(b"no picture").decode()}]},
        {"data": [{"b64_json": 7}]},
        {"data": "x"},
        {"choices": []},
    ],
)
def test_what_is_no_picture_is_malformed(answer):
    (one,), server, _ = painted(lambda body: answer)
    assert isinstance(one, Failure) and one.kind == "malformed" and len(server.bodies) == 2


def test_an_address_is_fetched_from_named_hosts_alone_and_without_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-of-ours")
    data = base64.b64decode(RED["data"][0]["b64_json"])

    def run(url, **settings):
        def script(body):
            server.files["/red.png"] = data
            return {"data": [{"url": url.format(root=server.url.removesuffix("/v1"))}]}

        with ScriptedServer(script) as server:
            config = ImagesEndpointConfig(base_url=server.url, model="m", retries=0, **settings)
            with ImagesEndpoint(config) as painter:
                return painter.paint([Wanted("a", 0)])[0], server.headers

    refused, headers = run("{root}/red.png")
    assert isinstance(refused, Failure) and "url_hosts: [127.0.0.1]" in refused.reason and len(headers) == 1
    fetched, headers = run("{root}/red.png", url_hosts=["127.0.0.1"])
    assert isinstance(fetched, Painted) and fetched.image.size == (8, 8)
    assert "authorization" in headers[0] and "authorization" not in headers[1]
    for url in ("file:///etc/passwd", "http://169.254.169.254/", "{root}/none.png"):
        lost, _ = run(url, url_hosts=["127.0.0.1"])
        assert isinstance(lost, Failure), url
    inline, headers = run("data:image/png;base64," + RED["data"][0]["b64_json"])
    assert isinstance(inline, Painted) and len(headers) == 1


def test_settings_that_cannot_be_are_named():
    with pytest.raises(InputError, match="size: 'big'"):
        ImagesEndpointConfig(size="big")
