"""Faults of other servers, each a test: docs/serving.md says what is refused."""

import base64
import gc
import hmac
import io
import json
import logging
import re
import socket
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from limner.serve import access, api
from limner.serve.store import PictureStore

from .conftest import PROMPT, events_of, running

HEAD = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KEY = "sk-canary-0123456789"


@pytest.fixture(scope="module")
def keyed(policy):
    with running(policy, [KEY, "other"]) as server:
        yield server


def png(size=(8, 8), mode="RGB", kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(url, **more):
    return {"type": "image_url", "image_url": {"url": url}, **more}


def shown(url, **more):
    return [picture(url, **more), {"type": "text", "text": PROMPT}]


def works(server, headers=None):
    status, _, reply = server.chat(max_tokens=3, headers=headers)
    assert status == 200, reply


# ---- keys ----


def test_wrong_keys_of_any_kind_are_401(keyed, monkeypatch):
    compared = []
    stock = hmac.compare_digest
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or stock(a, b))
    for sent in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        KEY,
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer \xff\xfe",
    ):
        status, headers, reply = keyed.ask("/v1/models", headers={"Authorization": sent.encode("latin-1")})
        assert (status, headers["www-authenticate"]) == (401, "Bearer"), sent
        assert reply["error"]["code"] == "invalid_api_key" and KEY not in json.dumps(reply)
    assert len(compared) == 16 and {len(a) for pair in compared for a in pair} == {32}, "digests, of both keys"
    for key in (KEY, "other"):
        assert keyed.ask("/v1/models", headers={"Authorization": f"Bearer {key}"})[0] == 200


def test_every_route_but_the_open_ones_needs_the_key(keyed):
    paths = {route.path: route.methods for route in api.make_app(keyed.service).app.routes}
    open_ones = {"/health", "/ready", "/v1/images/{name}", "/{name:path}"}
    assert open_ones < paths.keys()
    for path, methods in paths.items():
        for method in methods - {"HEAD"}:
            status, _, _ = keyed.ask(path.format(name="x") if "{name}" in path else path, method=method)
            assert (status == 401) == (path not in open_ones), path


def test_an_address_of_others_needs_a_key(limner, monkeypatch):
    monkeypatch.delenv("LIMNER_SERVE_KEYS", raising=False)
    code, _, err = limner("serve", "--model", "x", "--host", "0.0.0.0")
    assert code == 2 and "set a key: export LIMNER_SERVE_KEYS=..." in err


# ---- connections and bodies ----


def raw(server, data, wait=10.0):
    """What the server says to bytes that are sent as they are."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        try:
            connection.sendall(data)
            said = b""
            while b"\r\n\r\n" not in said and (more := connection.recv(2**16)):
                said += more
            return said
        except (ConnectionResetError, BrokenPipeError):
            return b""


def test_headers_are_bounded(server):
    for lines in (["X: " + "a" * 2**17], [f"X{number}: a" for number in range(10_000)]):
        said = raw(server, ("GET /health HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        assert not said or re.match(rb"HTTP/1.1 4\d\d", said)
        works(server)


@pytest.mark.slow
def test_who_says_nothing_or_too_slowly_is_hung_up_on(policy, monkeypatch):
    monkeypatch.setattr("limner.serve.server.HEADERS_S", 0.3)
    monkeypatch.setattr(access, "BODY_S", 0.3)
    with running(policy) as server:
        for begun in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=8) as connection:
                connection.sendall(begun)
                try:
                    while connection.recv(2**16):
                        pass
                except ConnectionResetError:
                    pass
        assert b" 408 " in raw(server, f"{HEAD}Content-Length: 9\r\n\r\n{{".encode())
        works(server)


def test_bodies_are_bounded_before_they_are_read(policy):
    with running(policy, max_megabytes=1) as server:
        assert b" 413 " in raw(server, f"{HEAD}Content-Length: 99999999999\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"a" * 2**16 + b"\r\n"
        assert b" 413 " in raw(server, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + 20 * chunk)
        assert b" 400 " in raw(server, f"{HEAD}Content-Length: -1\r\n\r\n".encode())
        works(server)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe\x00",
        b'{"a":' * 10**5,
        b"9" * 10**5,
        b'{"model":"\\ud800"}',
        b"NaN",
    ],
)
def test_what_is_no_request_is_a_400(server, body):
    for path in api.FORMS:
        status, _, reply = server.ask(path, body, {"Content-Type": "application/json"}, "POST")
        assert status == 400 and reply["error"]["type"] == "invalid_request_error"


def test_only_json_is_taken(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""):
        body = json.dumps({"model": "tiny", "input": PROMPT})
        assert server.ask("/v1/responses", body, {"Content-Type": kind})[0] == 415


# ---- pictures ----


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.png",
        "http://[::1]/a.png",
        "http://169.254.169.254/latest",
        "http://10.0.0.1/",
        "http://[fd00::1]/",
        "http://a\\@b/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://user:pw@example.org/",
        "ht\ttp://example.org/",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "data:text/html;base64,PGI+",
        "data:image/png,plain",
        "ftp://example.org/a.png",
        "javascript:alert(1)",
        "http://evil/v1/images/../../etc/passwd",
        "/v1/images/..%2f..%2fetc%2fpasswd",
        "/v1/images/AAAAAAAAAAAAAAAAAAAAAA",
        "",
    ],
)
def test_no_address_is_fetched_and_no_file_opened(server, url, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    status, _, reply = server.chat(shown(url))
    assert status == 400 and reply["error"]["param"] == "messages[0].content[0].image_url"
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    assert server.ask("/v1/responses", {"model": "tiny", "input": items})[0] == 400


def test_no_name_of_a_client_reaches_the_disk(server):
    for path in ("/v1/images/..%2f..%2fsetup.py", "/..%2fapi.py", "/%2e%2e/api.py", "//etc/passwd", "/api.py", "/a\\b"):
        assert server.ask(path)[0] == 404, path


def bomb(side=60_000):
    """A PNG that says it has 3.6 gigapixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 2**16)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def frames():
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(
        buffer, "GIF", save_all=True, append_images=[Image.new("P", (8, 8), n) for n in range(50)]
    )
    return buffer.getvalue()


ODD = {
    "one pixel": png((1, 1)),
    "a line": png((1, 9999)),
    "cmyk": png(mode="CMYK", kind="JPEG"),
    "16 bit": png(mode="I;16"),
    "palette": png(mode="P"),
    "grey alpha": png(mode="LA"),
    "float": png(mode="F", kind="TIFF"),
    "animated": frames(),
    "cut": png((64, 64))[:60],
    "cut later": png((64, 64), "RGB", compress_level=0)[:-500],
    "empty": b"",
    "zeros": b"\0" * 1000,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "bomb": bomb(),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}
LEAKS = re.compile(r"0x[0-9a-f]{4}|/(?:work|usr|home|tmp)/|\.py|BytesIO|PIL|Error\b|<class")


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_answered_or_refused_and_say_nothing_of_the_inside(server, name):
    status, _, reply = server.chat(shown(uri(ODD[name])), max_tokens=3)
    assert status in (200, 400, 413)
    assert not LEAKS.search(json.dumps({**reply, "id": ""}))
    works(server)


def test_pictures_of_a_request_are_bounded_together(policy):
    with running(policy, max_pictures=3, max_megapixels=1) as server:
        small, large = picture(uri(png())), picture(uri(png((700, 700))))
        assert server.chat([*[small] * 3, {"type": "text", "text": "a"}], max_tokens=2)[0] == 200
        assert server.chat([*[small] * 4, {"type": "text", "text": "a"}])[0] == 413
        assert server.chat([*[large] * 3, {"type": "text", "text": "a"}])[0] == 413
        works(server)


def test_kept_pictures_are_bounded_and_their_ids_cannot_be_guessed():
    store = PictureStore(most_bytes=100, seconds=60)
    names = [store.put(b"a" * 40) for _ in range(5)]
    assert [store.get(name) is not None for name in names] == [False, False, False, True, True] and store.bytes == 80
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", name) for name in names) and len(set(names)) == 5
    store.seconds = 0
    time.sleep(0.01)
    assert store.get(names[-1]) is None and not store.bytes


# ---- texts ----


def test_control_tokens_typed_by_a_client_stay_letters(server, policy):
    control = sorted(policy.processor.tokenizer.get_added_vocab())
    assert control
    typed = " ".join([*control, "<img1>", "<img3>", "<image>", "<|im_end|>", "</s>"])
    parts = [
        {"type": "text", "text": typed},
        picture(uri(png()), candidate=1, caption=typed),
        {"type": "text", "text": typed},
    ]
    messages = [{"role": "system", "content": typed}, {"role": "user", "content": parts}]
    status, _, reply = server.chat(messages, max_tokens=5)
    assert status == 200
    controls = {getattr(policy.vocabulary.controls, name) for name in ("boi", "eos", "eoi")}
    assert not controls & {*policy.processor.text_ids(typed)}
    works(server)


# ---- browsers ----


def test_pages_of_others_get_nothing(server):
    status, headers, _ = server.ask("/v1/models", headers={"Origin": "https://evil.example"})
    assert status == 200 and not [name for name in headers if name.startswith("access-control")]
    assert server.ask("/v1/responses", method="OPTIONS", headers={"Origin": "https://evil.example"})[0] == 405
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert server.ask("/v1/models", headers={"Host": host})[0] == 403, host
    for host in (f"localhost:{server.port}", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert server.ask("/v1/models", headers={"Host": host})[0] == 200, host


def test_a_named_host_is_served_and_links_lead_there(policy):
    with running(policy, hosts=["limner.example.org"], public_url="https://limner.example.org") as server:
        assert server.ask("/v1/models", headers={"Host": "limner.example.org"})[0] == 200
        _, _, reply = server.chat(max_tokens=60)
        assert "](https://limner.example.org/v1/images/" in reply["choices"][0]["message"]["content"]


def test_every_answer_has_the_headers_of_safety(server):
    for path in ("/", "/v1/models", "/nothing", "/v1/images/x", "/metrics"):
        _, headers, _ = server.ask(path)
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


# ---- limits by key ----


def test_a_key_s_use_is_limited_and_others_go_on(policy):
    with running(policy, ["a", "b"], key_requests=2, key_tokens=1000) as server:
        states = [server.chat(max_tokens=3, headers={"Authorization": "Bearer a"}) for _ in range(3)]
        assert [status for status, _, _ in states] == [200, 200, 429]
        assert states[2][2]["error"]["type"] == "rate_limit_error" and 1 <= int(states[2][1]["retry-after"]) <= 60
        works(server, {"Authorization": "Bearer b"})
    with running(policy, ["a"], key_pictures=1) as server:
        first = server.chat(headers={"Authorization": "Bearer a"})
        assert first[0] == 200 and "/v1/images/" in str(first[2])
        assert server.chat(headers={"Authorization": "Bearer a"})[2]["error"]["code"] == "pictures"


@pytest.mark.slow
def test_who_goes_away_has_used_what_was_drawn(policy):
    with running(policy, ["a"], key_tokens=20) as server:
        data = json.dumps({"model": "tiny", "input": PROMPT, "max_output_tokens": 450, "stream": True}).encode()
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                head = f"{HEAD}Authorization: Bearer a\r\nContent-Length: {len(data)}\r\n\r\n"
                connection.sendall(head.encode() + data)
                if b" 429 " in (said := connection.recv(20)):
                    return
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    said += connection.recv(2**16)
            time.sleep(0.1)
        raise AssertionError("it went on for ever")


def test_what_asks_for_too_much_is_cut_or_refused(policy):
    with running(policy, max_tokens=7, max_images=0) as server:
        _, _, reply = server.chat(max_tokens=10**6, max_images=100, seed=1)
        assert reply["usage"]["completion_tokens"] == 7 and "/v1/images/" not in str(reply["choices"])
        assert server.chat(n=2)[2]["error"]["param"] == "n"
        assert server.chat(temperature=-1)[2]["error"]["param"] == "temperature"
        assert server.chat(max_tokens=True)[2]["error"]["param"] == "max_tokens"
        assert (
            server.chat(top_p="high")[2]["error"]["message"] == "top_p: expected a whole number or a number, got a text"
        )


# ---- who goes away, and what is written down ----


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_slot(server, stream):
    body = {"model": "tiny", "input": PROMPT, "max_output_tokens": 450, "temperature": 2.0, "stream": stream}
    data = json.dumps(body).encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"{HEAD}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            if stream:
                connection.recv(100)
            else:
                time.sleep(0.05)
    end = time.monotonic() + 20
    while not server.engine.idle:
        assert time.monotonic() < end
        time.sleep(0.01)
    works(server)
    while server.engine.slots_in_use:
        assert time.monotonic() < end


def test_secrets_stand_in_no_log_metric_or_error(keyed, caplog, capfd):
    canary = "canary-7f3a"
    headers = {"Authorization": f"Bearer {KEY}", "X-Other": canary}
    with caplog.at_level(logging.DEBUG):
        _, _, good = keyed.chat(f"{canary} a", max_tokens=2, headers=headers)
        _, _, bad = keyed.chat(shown(f"https://{canary}.example/a.png?q={canary}", caption=canary), headers=headers)
        keyed.ask(f"/v1/models?key={canary}", headers={"Authorization": f"Bearer {canary}"})
        keyed.ask(f"/{canary}", headers=headers)
    _, _, metrics = keyed.ask("/metrics", headers=headers)
    out, err = capfd.readouterr()
    for text in (caplog.text, out, err, metrics.decode(), json.dumps(bad)):
        assert canary not in text and KEY not in text
    assert canary not in json.dumps({**good, "choices": []})


def test_nothing_in_the_room_unpickles():
    found = [
        path.name
        for path in Path(api.__file__).parent.rglob("*.py")
        if re.search(
            r"\b(?:pickle|dill|cloudpickle|shelve|marshal)\b|torch\.load|yaml\.load\b", path.read_text("utf-8")
        )
    ]
    assert not found


def test_memory_of_pictures_is_given_back(server):
    for _ in range(3):
        server.chat(shown(uri(png((500, 500)))), max_tokens=2)
    gc.collect()
    assert not server.engine.running and server.engine.idle


def test_events_of_a_stream_are_whole_lines(server):
    _, _, stream = server.chat(stream=True)
    assert events_of(stream)[-1] == "[DONE]" and stream.endswith(b"\n\n")
