"""`/v1/chat/completions`: the answer of `write`, whole and streamed, with links or pictures."""

import re

from limner.models.documents.forms import read_prompt
from limner.models.sampler.request import Sampling
from limner.models.writing import write

from .conftest import PROMPT, events_of

LINK = re.compile(r"\n\n!\[[^\]]*\]\((http://[^)]*/v1/images/[\w-]{22})\)\n\n")


def alone(policy, prompt=PROMPT, **settings):
    sampling = Sampling(**{"max_new_tokens": 60, "max_images": 8, "seed": 1, **settings})
    (answer,) = write(policy, [read_prompt(prompt)], sampling)
    return answer


def test_a_whole_answer_is_that_of_write(server, policy):
    status, _, reply = server.chat()
    answer = alone(policy)
    content, choice = reply["choices"][0]["message"]["content"], reply["choices"][0]
    assert status == 200 and answer.images
    assert LINK.split(content)[::2] == texts(answer)
    assert choice["finish_reason"] == ("stop" if answer.ended else "length")
    assert reply["usage"]["completion_tokens"] == len(answer.ids_C)
    assert reply["usage"]["completion_tokens_details"]["image_tokens"] == 16 * len(answer.images)
    for url in LINK.findall(content):
        status, headers, png = server.ask(url[len(server.url) :])
        assert status == 200 and headers["content-type"] == "image/png" and png.startswith(b"\x89PNG")
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"].startswith("private")


def test_log_probs_come_whole_or_with_the_last_chunk(server):
    whole = server.chat(logprobs=True)[2]["choices"][0]["logprobs"]["content"]
    chunks = events_of(server.chat(logprobs=True, stream=True)[2])
    assert whole and chunks[-2]["choices"][0]["logprobs"]["content"] == whole
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks[:-2])
    assert server.chat()[2]["choices"][0]["logprobs"] is None


def texts(answer):
    parts = [""]
    for segment in answer.document.segments:
        if hasattr(segment, "text"):
            parts[-1] += segment.text
        else:
            parts.append("")
    return parts


def test_a_stream_says_the_same_in_order(server, policy):
    _, headers, stream = server.chat(stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events_of(stream)
    assert headers["content-type"].startswith("text/event-stream") and headers["x-accel-buffering"] == "no"
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"]
    said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    links = [piece for piece in said if "/v1/images/" in piece]
    assert all(LINK.fullmatch(piece) for piece in links), "a link is alone in its chunk"
    assert LINK.split("".join(said))[::2] == texts(alone(policy))
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
