"""The page in headless Chromium, driven by clicks and keys: over the tiny model, and over an engine that says what a
test tells it to, behind the real server."""

import base64
import itertools
import json
import time

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from limner.models.documents.document import ImageSegment, InterleavedDocument, encode_png
from limner.models.sampler.request import Request
from limner.models.sampler.slots import Sampler
from limner.models.writing import About, Answer
from limner.serve.engine import Refused
from limner.serve.rows.events import Begun, Ended, Failed, Mailbox, Progress, Shown, Text
from limner.serve.rows.ticket import Ticket
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .browser import ENTER, ESCAPE, NULL, SHIFT, Browser, missing
from .conftest import running

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=document.title='caught'> ![x](javascript:alert(1)) </script><script>alert(1)</script>"
CODE = "    if x:\n        y()"
READY = "return document.title !== 'limner'"
DONE = "return document.querySelector('.turn:last-child .answer')?.getAttribute('aria-busy') === 'false'"
ITEMS = """return [...document.querySelectorAll('.turn:last-child .answer > *')].map((one) =>
  one.tagName === 'FIGURE' ? one.querySelector('img').alt : one.textContent)"""
DROP = """const held = new DataTransfer();
for (const [name, type, data] of arguments[1]) {
  held.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt())], name, { type }));
}
const kind = arguments[0] === 'paste' ? ClipboardEvent : DragEvent;
const options = { bubbles: true, cancelable: true, dataTransfer: held, clipboardData: held };
document.body.dispatchEvent(new kind(arguments[0], options));"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if lacking := missing():
        pytest.skip(f"no {lacking} here")
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


class Script:
    """In place of the engine's queue: keeps what is asked, and says what it is told to."""

    def __init__(self):
        self.tickets: list[Ticket] = []
        self.refusal: Exception | None = None
        self._numbers = itertools.count()

    def submit(self, asked, reply=None, notify=lambda: None) -> Ticket:
        if self.refusal:
            raise self.refusal
        ticket = Ticket(next(self._numbers), asked, Request([0], asked.sampling, 0), 1e12, Mailbox(notify))
        self.tickets.append(ticket)
        return ticket

    def asked(self):
        """The request that came last, once it has come."""
        end = time.monotonic() + 30
        while not self.tickets:
            assert time.monotonic() < end, "nothing was asked"
            time.sleep(0.02)
        return self.tickets[-1].asked

    def say(self, *events) -> None:
        self.asked()
        for event in events:
            self.tickets[-1].mailbox.put(event)

    def end(self, why="stop", told=None) -> None:
        self.say(Ended(Answer(InterleavedDocument(()), True, False, InterleavedDocument(())), why, told))


@pytest.fixture
def script(server, monkeypatch) -> Script:
    found = Script()
    monkeypatch.setattr(server.engine, "submit", found.submit)
    return found


def drawn(number=0):
    image = draw_scene(SCENES[number])
    return Begun(), Shown(ImageSegment(image, True, "generated"), encode_png(image))


def inserted(number, alt):
    image = draw_scene(SCENES[number])
    return Shown(ImageSegment(image, True, "inserted", candidate=number, alt=alt), encode_png(image))


def opened(browser, server, **size):
    browser.open(server.url, **size)
    browser.wait(READY)


def png(number=0) -> str:
    return base64.b64encode(encode_png(draw_scene(SCENES[number]))).decode()


def test_an_answer_of_the_model_grows_in_order_and_nothing_is_replaced(browser, server):
    _, _, whole = server.ask("/v1/responses", {"model": "tiny", "input": "Draw.", "seed": 5, "max_output_tokens": 90})
    opened(browser, server)
    browser.click("#show-settings")
    browser.keys("#seed", "5")
    browser.keys("#max_output_tokens", "90")
    browser.script("""window.lost = []; new MutationObserver((changes) => changes.forEach((one) =>
      window.lost.push(...[...one.removedNodes].map((node) => node.nodeName + node.textContent))))
      .observe(document.getElementById('turns'), { childList: true, subtree: true });""")
    browser.keys("#prompt", "Draw.", ENTER)
    browser.wait(DONE)
    assert browser.script("return window.lost") == []
    shown = browser.script(ITEMS)
    assert len(shown) == len(whole["output"]) and sum(item["type"] != "message" for item in whole["output"]) >= 2
    for item, words in zip(whole["output"], shown, strict=True):
        if item["type"] == "message":
            assert words.strip() == item["content"][0]["text"].strip()
        elif item["status"] == "completed":
            assert words.startswith("Picture ")
    assert "seed 5" in browser.script("return document.querySelector('.facts').textContent")
    assert browser.log() == []


def test_the_empty_page_says_what_the_model_knows_and_offers_its_prompts(browser, server, script, monkeypatch):
    opened(browser, server)
    assert browser.script("return document.getElementById('examples').hidden"), "of most models nothing is known"
    monkeypatch.setattr(server.service, "about", About(f"Dots. {HOSTILE}", ("Draw a dot.", HOSTILE, *"345")))
    opened(browser, server, width=390)
    assert browser.script("return document.getElementById('knows').textContent") == f"Dots. {HOSTILE}"
    offered = browser.script("return [...document.querySelectorAll('#examples button')].map((one) => one.textContent)")
    assert offered == ["Draw a dot.", HOSTILE, "3", "4"] and browser.script("return document.title") == "tiny"
    assert browser.script("return document.scrollingElement.scrollWidth <= innerWidth")
    browser.keys("#prompt", "half a thought")
    browser.click("#examples button")
    assert script.asked().prompt.text == "Draw a dot."
    script.say(Text("A dot."))
    script.end()
    browser.wait(DONE)
    assert browser.script("return document.getElementById('prompt').value") == "half a thought"
    assert browser.script("return document.getElementById('lead').hidden") and browser.log() == []


def test_texts_come_in_pieces_and_twenty_pictures_are_made_once(browser, server, script):
    opened(browser, server)
    browser.keys("#prompt", "Go on.", ENTER)
    script.say(Text("\n\n  One "), Text("piece"))
    browser.wait("return document.querySelector('.answer .words')?.textContent === '  One piece'")
    script.say(Text(" more.\n\n"), Begun(), Progress(0.25))
    browser.wait("return document.querySelector('.answer progress')?.value === 0.25")
    assert browser.script("return document.getElementById('status').textContent") == "Picture 1 is being drawn"
    assert browser.script("return document.querySelector('.answer').getAttribute('aria-busy')") == "true"
    script.say(drawn()[1])
    browser.wait("return document.querySelector('.answer img').naturalWidth")
    browser.script("window.first = [...document.querySelectorAll('.answer *')]")
    for number in range(1, 20):
        script.say(Text(f"{number}"), *drawn(number % len(SCENES)))
    script.end()
    browser.wait(DONE)
    browser.wait("return [...document.querySelectorAll('.answer img')].filter((one) => one.naturalWidth).length === 20")
    kept = "return window.first.every((one, place) => one === document.querySelectorAll('.answer *')[place])"
    assert browser.script(kept)
    expected = ["  One piece more.", "Picture 1, generated"]
    for number in range(1, 20):
        expected += [str(number), f"Picture {number + 1}, generated"]
    assert browser.script(ITEMS) == expected
    assert browser.log() == []


def test_hostile_words_stay_words_on_the_page_and_in_every_file(browser, server, script):
    opened(browser, server)
    browser.keys("#prompt", HOSTILE, ENTER)
    script.say(Text(HOSTILE), *drawn(), Text(f"\n{CODE}\n"), inserted(1, HOSTILE))
    script.end()
    browser.wait(DONE)
    browser.wait("return document.querySelectorAll('.answer figcaption .origin').length === 2")
    assert browser.script(ITEMS) == [HOSTILE, "Picture 1, generated", CODE, HOSTILE]
    assert browser.script("return document.querySelector('.asked .words').textContent") == HOSTILE
    counts = "return ['img', 'script', 'a'].map((name) => document.querySelectorAll(name).length)"
    assert browser.script(counts) == [2, 1, 0] and browser.script("return document.title") == "tiny"
    for kind in ("html", "md", "json"):
        browser.click(f"#save-{kind}")
    page, markdown, documents = (browser.downloaded(f".{kind}") for kind in ("html", "md", "json"))
    assert browser.log() == []

    (value,) = json.loads(documents.read_text())
    document = InterleavedDocument.from_json(value)
    assert document.prompt.text == document.completion.segments[0].text == HOSTILE
    assert [(image.origin, image.candidate) for image in document.images] == [("generated", None), ("inserted", 1)]
    assert document.images[1].pixels().tobytes() == draw_scene(SCENES[1]).tobytes()

    tokens = MarkdownIt("commonmark").parse(markdown.read_text())
    tokens += [inner for token in tokens for inner in token.children or ()]
    assert not any(token.type.startswith(("html", "link")) for token in tokens)
    pictures = [token for token in tokens if token.type == "image"]
    assert [token.content for token in tokens if token.type == "code_block"] == ["if x:\n    y()\n"]
    assert len(pictures) == 2 and all(one.attrs["src"].startswith("data:image/png") for one in pictures)
    assert pictures[1].content.replace("\\", "") == HOSTILE

    browser.open(page.as_uri())
    browser.wait("return [...document.images].every((one) => one.naturalWidth) && document.images.length === 2")
    words = "return [...document.querySelectorAll('.words')].map((one) => one.textContent)"
    assert browser.script(words) == [HOSTILE, HOSTILE, CODE]
    assert browser.script(counts) == [2, 0, 0] and browser.script("return document.title") == "tiny"
    kept = "return getComputedStyle(document.querySelectorAll('.words')[2]).whiteSpaceCollapse"
    assert browser.script(kept) == "preserve"
    loaded = browser.script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert all(name.startswith("data:") for name in loaded)


def test_stop_frees_the_slot(browser, server, monkeypatch):
    slow = Sampler.draw
    monkeypatch.setattr(Sampler, "draw", lambda sampler: (time.sleep(0.1), slow(sampler))[1])
    for stop in (lambda: browser.click("#stop"), lambda: browser.keys("#prompt", ESCAPE)):
        opened(browser, server)
        browser.click("#show-settings")
        browser.keys("#seed", "5")
        browser.keys("#prompt", "Draw.", ENTER)
        browser.wait("return document.querySelector('.answer')?.childElementCount")
        assert server.engine.running == 1
        stop()
        browser.wait(DONE)
        end = time.monotonic() + 10
        while server.engine.running:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert browser.script("return document.querySelector('.foot .note').textContent") == "Stopped."
        assert not browser.script("return document.getElementById('send').hidden")


def test_what_goes_wrong_is_said_in_plain_words_and_can_be_tried_again(browser, server, script):
    trouble = "return document.querySelector('.turn:last-child .trouble')?.textContent"
    opened(browser, server)
    script.refusal = Refused("full", "64 requests are waiting already", 3.0)
    browser.keys("#prompt", "Draw.", ENTER)
    said = browser.wait(trouble)
    assert said == "The server is busy: 64 requests are waiting already. Try again in 3 s."
    script.refusal = None
    browser.click(".turn:last-child button.main")
    script.say(Text("Half of it"), Begun())
    browser.wait("return document.querySelector('.turn:last-child progress')")
    script.say(Failed("engine", "the answer could not be painted"))
    assert browser.wait(trouble) == "the answer could not be painted"
    assert browser.script(ITEMS)[0] == "Half of it"
    assert "not finished" in browser.script("return document.querySelector('.answer figure').textContent")

    script.tickets.clear()
    browser.click(".turn:last-child button.main")
    script.say(Text("Half"))
    browser.wait("return document.querySelector('.answer .words')?.textContent === 'Half'")
    script.say(Shown(None, b""))  # type: ignore[arg-type]  # the server breaks the connection off
    assert browser.wait(trouble) == "The connection broke before the answer was complete."
    script.tickets.clear()
    browser.click(".turn:last-child button.main")
    script.say(Text("Whole."))
    script.end("length")
    browser.wait(DONE)
    assert browser.script(trouble) is None and browser.script("return document.querySelectorAll('.turn').length") == 1
    assert browser.script(ITEMS) == ["Whole."] and script.asked().prompt.text == "Draw."
    assert "limit of tokens" in browser.script("return document.querySelector('.foot .note').textContent")


def test_pictures_are_dropped_pasted_and_chosen_numbered_and_removed(browser, server, script, tmp_path):
    opened(browser, server)
    Image.new("RGB", (9, 7), "red").save(tmp_path / "chosen.png")
    browser.script(DROP, "drop", [["a.png", "image/png", png(0)], ["b.txt", "text/plain", png(0)]])
    assert "b.txt" in browser.script("return document.getElementById('notice').textContent")
    browser.script(DROP, "paste", [["c.png", "image/png", png(1)]])
    browser.keys("#files", str(tmp_path / "chosen.png"))
    browser.script(DROP, "drop", [["d.png", "image/png", png(2)]])
    numbers = "return [...document.querySelectorAll('.card .number')].map((one) => one.textContent)"
    assert browser.script(numbers) == ["1", "2", "3", "4"]
    browser.keys(".card:nth-child(2) input:not([type])", "a <b>caption</b>")
    browser.click(".card:nth-child(3) .may input")
    assert browser.script(numbers) == ["1", "2", "", "3"]
    browser.click(".card:nth-child(1) .remove")
    assert browser.script(numbers) == ["1", "", "2"]
    browser.script(DROP, "drop", [["broken.png", "image/png", "AAAA"]])
    browser.wait("return document.getElementById('notice').textContent.includes('broken.png')")
    browser.keys("#prompt", "Which?", ENTER)
    prompt = script.asked().prompt
    assert [(image.candidate, image.alt) for image in prompt.images] == [(1, "a <b>caption</b>"), (2, ""), (None, "")]
    assert [image.pixels().size for image in prompt.images] == [(32, 32), (32, 32), (9, 7)]
    assert prompt.images[0].pixels().tobytes() == draw_scene(SCENES[1]).tobytes()
    assert browser.script("return document.querySelectorAll('.card').length") == 0
    script.end()
    browser.wait(DONE)
    shown = "return [...document.querySelectorAll('.given figcaption')].map((one) => one.textContent)"
    assert browser.script(shown) == ["1. a <b>caption</b>", "shown", "2."]
    browser.click(".foot .row button")
    assert browser.script("return document.getElementById('prompt').value") == "Which?"
    captions = "return [...document.querySelectorAll('.card input:not([type])')].map((one) => one.value)"
    assert browser.script(captions) == ["a <b>caption</b>", "", ""] and browser.script(numbers) == ["1", "", "2"]
    assert browser.log() == []


def test_turns_stand_one_under_another_and_may_go_on_from_those_above(browser, server, script):
    opened(browser, server)
    browser.keys("#prompt", "First", SHIFT + ENTER + NULL, "line.")
    assert script.tickets == []
    browser.keys("#prompt", ENTER)
    assert script.asked().prompt.text == "First\nline."
    script.say(Text("Said."), *drawn())
    script.end()
    browser.wait(DONE)
    for go_on, expected, pictures in ((False, "Second.", 0), (True, "First\nline.\n\nSaid.", 1)):
        script.tickets.clear()
        if go_on:
            browser.click("#show-settings")
            browser.click("#go-on")
        browser.keys("#prompt", "Second.", ENTER)
        prompt = script.asked().prompt
        assert prompt.text.startswith(expected) and prompt.text.endswith("Second.")
        assert len(prompt.images) == pictures
        script.end()
        browser.wait(DONE)
    assert browser.script("return document.querySelectorAll('.turn').length") == 3


def test_settings_go_along_and_a_wrong_one_is_seen(browser, server, script):
    opened(browser, server)
    browser.click("#show-settings")
    for name, value in (("temperature", "0.5"), ("guidance", "1"), ("max_images", "2"), ("seed", "1.5")):
        browser.keys(f"#{name}", value)
    browser.click("#show-settings")
    browser.keys("#prompt", "Draw.", ENTER)
    browser.wait("return !document.getElementById('settings').hidden")
    assert not browser.script("return document.querySelector('.turn')")
    browser.script("document.getElementById('seed').value = ''")
    browser.keys("#seed", "7")
    browser.click("#send")
    sampling = script.asked().sampling
    assert (sampling.temperature, sampling.max_images, sampling.seed) == (0.5, 2, 7)
    script.end()
    browser.wait(DONE)


def test_probabilities_are_shown_when_asked_for(browser, server, script):
    opened(browser, server)
    browser.click("#show-settings")
    browser.click("#log-probs")
    browser.keys("#prompt", "Draw.", ENTER)
    assert script.asked().log_probs
    script.say(Text("A "), Text("dot."), *drawn())
    tokens = [("A ", -0.1), ("", -0.2), ("dot.", -4.0)]
    script.end(told=[[{"token": t, "bytes": [], "logprob": p, "top_logprobs": []} for t, p in tokens]])
    browser.wait(DONE)
    visible = (
        "return [...document.querySelectorAll('.answer .words')].filter((e) => e.offsetWidth).map((e) => e.className)"
    )
    assert browser.script(visible) == ["words"]
    browser.click(".foot button[aria-pressed]")
    assert browser.script(visible) == ["words tokens"]
    found = browser.script("return [...document.querySelectorAll('.token')].map((e) => [e.textContent, e.title])")
    assert [word for word, _ in found] == ["A ", "\u00b7", "dot."] and found[2][1].startswith("probability 0.018")
    browser.click(".foot button[aria-pressed]")
    assert browser.script(visible) == ["words"] and browser.log() == []


def test_a_key_is_asked_for_and_kept_nowhere(browser, policy):
    with running(policy, keys=["s3cret-\u00fc"]) as server:
        browser.open(server.url)
        browser.wait("return !document.getElementById('key-row').hidden")
        browser.keys("#key", "wrong", ENTER)
        browser.wait("return document.getElementById('notice').textContent.includes('key')")
        assert not browser.script(READY)
        browser.script("document.getElementById('key').value = ''")
        browser.keys("#key", "s3cret-\u00fc", ENTER)
        browser.wait(READY)
        browser.keys("#prompt", "Draw.", ENTER)
        browser.wait(DONE, seconds=120)
        assert browser.script("return document.querySelector('.turn .trouble')") is None
        assert browser.script("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_sources_of_an_index(browser, server, monkeypatch):
    class Index:
        def ask(self, question, mailbox):
            assert question.text == "Why?"
            sources = [{"title": "<b>Cranes</b>", "document": "a.md", "text": True, "pictures": [2]}]
            question.say_sources([*sources, {"title": "", "document": "b.md", "text": False, "pictures": []}])
            mailbox.put(Text("So."))
            mailbox.put(Ended(Answer(InterleavedDocument(()), True, False, InterleavedDocument(())), "stop"))

    monkeypatch.setattr(server.service, "indexed", Index())
    monkeypatch.setattr(server.service, "models", ["tiny", "tiny-index"])
    opened(browser, server)
    browser.click("#show-settings")
    browser.keys("#model", "tiny-index")
    browser.keys("#prompt", "Why?", ENTER)
    browser.wait(DONE)
    found = browser.script("return [...document.querySelectorAll('.sources li')].map((one) => one.textContent)")
    assert found == ["<b>Cranes</b> text, picture 2", "b.md"]


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(browser, server, script, width):
    opened(browser, server, width=width, height=800)
    beyond = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    browser.script(DROP, "drop", [[f"{number}.png", "image/png", png(number)] for number in range(6)])
    browser.click("#show-settings")
    browser.keys("#prompt", "W" * 300, ENTER)
    script.say(Text("M" * 300), *drawn(), inserted(1, "L" * 300), Begun())
    browser.wait("return document.querySelectorAll('.answer figure').length === 3")
    assert browser.script(beyond) == 0
    script.say(drawn(2)[1])
    script.end()
    browser.wait(DONE)
    assert browser.script(beyond) == 0
