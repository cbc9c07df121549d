"""The stock client of OpenAI reads both forms from the running server."""

import base64
import io
import time

import openai
import pytest
from PIL import Image

from limner.models.documents.document import ImageSegment

from .conftest import PROMPT, running
from .test_chat import LINK, alone, texts


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=30) as client:
        yield client


ASK = {"model": "tiny", "extra_body": {"seed": 1, "max_images": 8}}


def order(answer):
    """Texts, and None for each picture, as they stand."""
    return [None if isinstance(segment, ImageSegment) else segment.text for segment in answer.document.segments]


def test_responses_keep_the_order_of_texts_and_pictures(client, policy):
    answer = alone(policy)
    whole = client.responses.create(input=PROMPT, max_output_tokens=60, **ASK)
    with client.responses.stream(input=PROMPT, max_output_tokens=60, **ASK) as stream:
        events = list(stream)
    kinds, streamed = [event.type for event in events], events[-1].response
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == ("response.completed" if answer.ended else "response.incomplete")
    for response in (whole, streamed):
        items = response.output
        if answer.cut_image:
            assert items[-1].status == "failed" and items.pop().result is None
        assert [item.content[0].text if item.type == "message" else None for item in items] == order(answer)
        assert all(item.status == "completed" for item in items)
        assert response.usage.output_tokens == len(answer.ids_C)
        assert response.usage.output_tokens_details.image_tokens == 16 * len(answer.images)
        pictures = [item for item in items if item.type == "image_generation_call"]
        for item, image in zip(pictures, answer.images, strict=True):
            drawn = Image.open(io.BytesIO(base64.b64decode(item.result)))
            assert drawn.tobytes() == image.tobytes() and item.limner["origin"] == "generated"


def test_chat_streams_links_and_pictures_in_order(client, policy):
    ask = {**ASK, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60}
    with client.chat.completions.stream(**ask) as stream:
        content = [event.content for event in stream if event.type == "content.done"][0]
    assert LINK.split(content)[::2] == texts(alone(policy))
    with client.chat.completions.stream(**ask, modalities=["text", "image"]) as stream:
        for _ in stream:
            pass
        message = stream.current_completion_snapshot.choices[0].message
    at = [0, *(image["offset"] for image in message.images), len(message.content)]
    assert [message.content[a:b] for a, b in zip(at, at[1:], strict=False)] == texts(alone(policy))
    assert [image["index"] for image in message.images] == list(range(len(alone(policy).images)))


def test_log_probs_come_with_the_texts(client, policy):
    with client.responses.stream(
        input=PROMPT, max_output_tokens=60, include=["message.output_text.logprobs"], **ASK
    ) as stream:
        *_, last = stream
    items = last.response.output
    for item in items:
        if item.type == "message":
            part = item.content[0]
            assert "".join(entry.token for entry in part.logprobs) == part.text
            assert all(entry.logprob <= 0 for entry in part.logprobs)


def test_an_answer_goes_back_into_the_conversation(client):
    first = client.responses.create(input=PROMPT, max_output_tokens=60, **ASK)
    items = [{"role": "user", "content": PROMPT}, *first.output, {"role": "user", "content": "Go on."}]
    second = client.responses.create(input=items, max_output_tokens=5, **ASK)
    assert second.usage.input_tokens > first.usage.input_tokens + 16
    chat = client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], max_tokens=60, **ASK)
    back = [{"role": "user", "content": PROMPT}, chat.choices[0].message.model_dump(include={"role", "content"})]
    again = client.chat.completions.create(messages=[*back, {"role": "user", "content": "Go on."}], max_tokens=5, **ASK)
    assert again.usage.prompt_tokens == second.usage.input_tokens, "links are the pictures again"


def test_faults_are_typed(client):
    with pytest.raises(openai.BadRequestError, match="temperatur: no such field") as caught:
        client.responses.create(model="tiny", input=PROMPT, extra_body={"temperatur": 1})
    assert caught.value.param == "temperatur"
    with pytest.raises(openai.NotFoundError, match="is not served here; tiny"):
        client.responses.create(model="other", input=PROMPT)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="tiny", input=PROMPT, previous_response_id="resp_1")


def test_a_client_that_is_sent_away_waits_and_comes_back(policy):
    with running(policy, key_concurrency=1) as server:
        slow = server.service.engine
        slow.pause()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3) as client:
            stream = client.responses.with_streaming_response.create(input=PROMPT, stream=True, **ASK)
            import threading

            first = threading.Thread(target=lambda: stream.__enter__().read())
            first.start()
            while not len(slow._waiting):
                time.sleep(0.01)
            threading.Timer(0.3, slow.resume).start()
            with pytest.raises(openai.RateLimitError) as caught:
                client.with_options(max_retries=0).responses.create(input=PROMPT, max_output_tokens=3, **ASK)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert client.responses.create(input=PROMPT, max_output_tokens=3, **ASK).usage.output_tokens
            first.join()
