"""Questions to an index through the server: pictures, texts and sources of its documents, in both forms."""

import json
import socket
import time

import openai
import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.insertion.placements import Placement
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.writing import Model
from limner.retrieval.index.encoders import Encoders
from limner.retrieval.index.store import Index
from limner.serve.service import Service
from limner.serve.settings import ServeConfig

from .conftest import events_of, running
from .test_chat import LINK
from .test_security import HEAD

RED = Image.new("RGB", (80, 60), "red")
QUESTION = [{"role": "user", "content": "How is strudel pastry made?"}]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    place = tmp_path_factory.mktemp("served") / "index"
    parts = (TextSegment("Roll out the strudel pastry."), ImageSegment(RED, alt="pastry"), TextSegment("Bake it."))
    soup = InterleavedDocument((TextSegment("Boil the fennel soup."),), "soup.md")
    Index.create(place, Encoders()).add([InterleavedDocument(parts, "strudel.md", {"title": "Strudel"}), soup])
    return str(place)


@pytest.fixture(scope="module")
def server(policy, index):
    with running(policy, index=index) as found:
        yield found


def test_a_chat_shows_the_pictures_and_names_the_sources(server):
    names = [model["id"] for model in server.ask("/v1/models")[2]["data"]]
    assert names == ["tiny", "tiny-index"]
    _, _, reply = server.chat(QUESTION, model="tiny-index")
    content = reply["choices"][0]["message"]["content"]
    (link,) = LINK.findall(content)
    assert server.ask(link[len(server.url) :])[2].startswith(b"\x89PNG")
    before, _, after = LINK.split(content)
    assert "Roll out the strudel pastry." in before and after.strip() == "Bake it.\n\nSources:\n\n1. Strudel"
    (source,) = reply["limner"]["sources"]
    assert source == {"title": "Strudel", "document": "strudel.md", "text": True, "pictures": [1]}
    stream = events_of(server.chat(QUESTION, model="tiny-index", stream=True)[2])
    assert LINK.split("".join(c["choices"][0]["delta"].get("content", "") for c in stream[:-1]))[::2] == [before, after]


def test_responses_have_inserted_pictures_as_items(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        response = client.responses.create(model="tiny-index", input=QUESTION[0]["content"])
        kinds = [item.type for item in response.output]
        assert kinds == ["message", "image_generation_call", "message"]
        assert response.output[1].limner["origin"] == "inserted" and response.output[1].limner["candidate"] == 1
        assert response.limner["sources"][0]["title"] == "Strudel"
        with pytest.raises(openai.NotFoundError, match="nothing in the index") as caught:
            client.responses.create(model="tiny-index", input="quantum chromodynamics")
        assert caught.value.code == "nothing"


def test_the_served_model_answers_from_the_index_and_others_go_on(policy, index):
    with running(policy, index=index, strategy="unified", sampling={"max_new_tokens": 30}) as server:
        status, _, reply = server.chat(QUESTION, model="tiny-index")
        assert status == 200 and reply["limner"]["seed"] == 1
        assert reply == {**server.chat(QUESTION, model="tiny-index")[2], "id": reply["id"], "created": reply["created"],
                         "choices": reply["choices"]}  # fmt: skip
        assert server.chat(max_tokens=3)[0] == 200
        server.engine.pause()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            data = json.dumps({"model": "tiny-index", "input": QUESTION[0]["content"]}).encode()
            connection.sendall(f"{HEAD}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            until(lambda: not server.engine.idle)
        until(lambda: server.engine.idle)  # who has gone away waits for nothing
        server.engine.resume()


def test_an_inserter_puts_pictures_into_the_extract(policy, index, monkeypatch):
    asked = []

    class Last:
        def place(self, task):
            asked.append(task)
            return [Placement(len(task.sentences), 1)]

    monkeypatch.setattr(
        "limner.retrieval.strategies.inserter.load_inserter", lambda model, **_: asked.append(model) or Last()
    )
    with running(policy, index=index, strategy="inserter", inserter="runs/inserter") as server:
        content = server.chat(QUESTION, model="tiny-index")[2]["choices"][0]["message"]["content"]
        again = server.chat(QUESTION, model="tiny-index")[2]["choices"][0]["message"]["content"]
    before, link, after = LINK.split(content)
    assert "Bake it." in before and "Sources" in after and LINK.split(again)[0] == before
    assert asked[0] == "runs/inserter" and len(asked) == 3, "it is loaded once"


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_index_is_asked_in_words_and_must_be_one(server, policy, tmp_path):
    from .test_security import png, shown, uri

    assert server.chat(shown(uri(png())), model="tiny-index")[0] == 400
    for settings, said in (
        ({"index": str(tmp_path)}, "index"),
        ({"index": "x", "strategy": "llm"}, "strategy: 'llm'; one of rule, inserter, unified"),
        ({"index": "x", "strategy": "inserter"}, "inserter: the model of the strategy"),
    ):
        with pytest.raises(InputError, match=said):
            Service(Model(policy), ServeConfig(model="m", **settings))
