import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import pstdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.report.viewer import trajectories as viewer
from limner.report.viewer.trajectories import main, write_viewer
from limner.train.objective.advantages import dead_groups
from limner.train.watch.trajectories import SegmentScore, Trajectory, read_trajectories, write_trajectories
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story_prompt

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)>"
V = 100
NOISE = 1e-4
"""Of rewards, below what a group must differ by."""


class Scripts(HTMLParser):
    """Blocks of data by name, the scripts that run, the policy, and what else the page names from outside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.data: dict[str, dict] = {}
        self.code: list[str] = []
        self.policy, self.links, self.current = "", [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]
        self.current = named if tag == "script" else None

    def handle_endtag(self, tag):
        self.current = None

    def handle_data(self, data):
        if self.current is not None and self.current.get("type") == "application/json":
            self.data[self.current["id"]] = json.loads(data)
        elif self.current is not None:
            self.code.append(data)


def make(
    step=0, group=0, number=0, outcome: float | None = 0.5, prompt="p", picture=None, text="A red dot.", cut=False
) -> Trajectory:
    """A sentence of three tokens, a picture of four codes, and `<eos>` or a second picture that was cut."""
    segments = (TextSegment(text, True), ImageSegment(picture or draw_scene(SCENES[number]), True, "generated"))
    scores = (SegmentScore("text", 0.25, -1.5), SegmentScore("image", None, 0.75))
    ids, owners = [10, 11, 12, 3, *range(V, V + 4), 4], [0, 0, 0, 1, 1, 1, 1, 1, 1]
    pieces = [text, "", "", "<boi>", "", "", "", "", "<eoi>"]
    rest = [(3, "<boi>"), (V + 7, "")] if cut else [(2, "<eos>")]
    ids, owners = ids + [token for token, _ in rest], owners + [2] * len(rest)
    pieces += [piece for _, piece in rest]
    logp = [-0.5 * (place % 3) for place in range(len(ids))]
    return Trajectory(
        *(step, group, number, story_prompt(SCENES[:2], prompt), InterleavedDocument(segments), not cut, cut, outcome),
        *({"format": 1.0, "odd": None}, scores, V, tuple(ids), tuple(logp), tuple(owners), tuple(pieces)),
    )


def write_run(folder: Path, steps=(0, 5), gain=0.0, size=3) -> Path:
    """Two ranks that share a group; at each step the same two prompts, to the second of which all answers are alike."""
    for step in steps:
        rows = [
            make(step, group, number, (0.1, NOISE)[group] * number + 0.2 * group + gain, f"p{group}", cut=number == 2)
            for group in (0, 1)
            for number in range(size)
        ]
        for rank, half in enumerate((rows[: size - 1], rows[size - 1 :])):
            write_trajectories(folder / "trajectories", step, rank, half)
    return folder


def test_the_page_holds_every_group_whole(tmp_path):
    run = write_run(tmp_path / "run")
    assert write_viewer(tmp_path / "page.html", [run / "trajectories"], ["run"]) == (12, 4)
    data = Scripts((tmp_path / "page.html").read_text()).data
    index = data.pop("index")
    assert [(g["step"], g["group"], g["prompt"], len(g["rewards"])) for g in index["groups"]] == [
        *((0, 0, 0, 3), (0, 1, 1, 3)),
        *((5, 0, 0, 3), (5, 1, 1, 3)),
    ]
    assert [dead_groups(torch.tensor(g["rewards"]), 3).item() for g in index["groups"]] == [0, 1, 0, 1]
    assert [pstdev(g["rewards"]) < index["deadBelow"] for g in index["groups"]] == [False, True, False, True]
    assert index["asked"] == [story_prompt(SCENES[:2]).text] * 2 and index["groups"][0]["said"].count("A red dot.") == 3
    assert index["prompts"] == ["p0", "p1"] and sorted(data) == [f"group-{n}" for n in range(4)]
    group = data["group-0"]
    assert [rollout["number"] for rollout in group["rollouts"]] == [0, 1, 2]
    assert group["prompt"] == [{"kind": "text", "text": story_prompt(SCENES[:2]).text}]
    text, picture = group["rollouts"][0]["segments"]
    assert text["words"] == [["A red dot.", -0.0], ["", -0.5], ["", -1.0]] and (text["reward"], text["advantage"]) == (
        0.25,
        -1.5,
    )
    assert [code for code, _ in picture["codes"]] == [0, 1, 2, 3] and [w for w, _ in picture["words"]] == [
        "<boi>",
        "<eoi>",
    ]
    assert group["rollouts"][0]["rest"]["words"] == [["<eos>", -0.0]]
    assert group["rollouts"][2]["cut"] and group["rollouts"][2]["rest"]["codes"] == [[7, -0.5]]


def test_a_position_of_several_codes_shows_them_all(tmp_path):
    """Their id is no number that a browser could hold."""
    own = make()
    ids = tuple(token if token < V else V + 5 + 9 * 16384 + 7 * 16384**3 for token in own.ids)
    deep = replace(own, ids=ids, image_codes=16384, depth=4)
    path = write_trajectories(tmp_path / "run", 0, 0, [deep])
    assert [item.to_json() for item in read_trajectories(tmp_path / "run")] == [deep.to_json()]
    write_viewer(tmp_path / "page.html", [tmp_path / "run"], ["run"])
    picture = Scripts((tmp_path / "page.html").read_text()).data["group-0"]["rollouts"][0]["segments"][1]
    assert [code for code, _ in picture["codes"]] == ["5 9 0 7"] * 4
    old = [json.loads(line) for line in path.read_text().splitlines()]
    for item in old:
        del item["image_codes"], item["depth"]
    path.write_text("".join(json.dumps(item) + "\n" for item in old))
    assert next(read_trajectories(tmp_path / "run")).depth == 1


def test_pictures_are_sharp_where_small_and_light_where_large(tmp_path):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 150, 3), np.uint8))
    write_trajectories(tmp_path / "run", 0, 0, [make(number=0), make(number=1, picture=large)])
    write_viewer(tmp_path / "page.html", [tmp_path / "run"], ["run"])
    rollouts = Scripts((tmp_path / "page.html").read_text()).data["group-0"]["rollouts"]
    small, other = (rollout["segments"][1] for rollout in rollouts)
    assert small["small"] and small["size"] == [32, 32] and small["src"].startswith("data:image/png")
    seen = Image.open(io.BytesIO(base64.b64decode(small["src"].partition(",")[2])))
    assert np.array_equal(np.asarray(seen), np.asarray(draw_scene(SCENES[0])))
    assert not other["small"] and other["size"] == [150, 200] and other["src"].startswith("data:image/webp")


def test_an_inserted_picture_shows_its_number_and_its_marker(tmp_path):
    item, pieces = make(), ("A red dot.", "", "", "<img", "2", ">", "<eos>")
    inserted = ImageSegment(draw_scene(SCENES[0]), True, "inserted", candidate=2, alt="a dot")
    answer = InterleavedDocument((item.answer.segments[0], inserted))
    tokens = {"ids": (10, 11, 12, 13, 14, 15, 2), "token_segments": (0, 0, 0, 1, 1, 1, 2), "logp": (-0.5,) * 7}
    write_trajectories(tmp_path / "run", 0, 0, [replace(item, answer=answer, pieces=pieces, **tokens)])
    write_viewer(tmp_path / "page.html", [tmp_path / "run"], ["run"])
    (rollout,) = Scripts((tmp_path / "page.html").read_text()).data["group-0"]["rollouts"]
    picture = rollout["segments"][1]
    assert picture["alt"] == "candidate 2: a dot" and picture["src"] and not picture["codes"]
    assert [piece for piece, _ in picture["words"]] == ["<img", "2", ">"]


def test_hostile_text_stays_text_and_only_our_script_may_run(tmp_path):
    write_trajectories(tmp_path / "run", 0, 0, [make(text=HOSTILE, prompt=HOSTILE)])
    write_viewer(tmp_path / "page.html", [tmp_path / "run"], [HOSTILE])
    html = (tmp_path / "page.html").read_text()
    found = Scripts(html)
    assert "alert(1)</script>" not in html and "<img" not in html and not found.links
    assert found.data["index"]["prompts"] == [HOSTILE] == found.data["index"]["labels"]
    assert found.data["group-0"]["rollouts"][0]["segments"][0]["text"] == HOSTILE
    (code,) = found.code
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = dict(rule.strip().split(" ", 1) for rule in found.policy.split(";"))
    assert policy["default-src"] == "'none'" and policy["img-src"] == "data:"
    assert policy["script-src"] == f"'sha256-{digest}'" and "connect-src" not in policy
    forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|XMLHttp|import\(|https?:"
    assert not re.search(forbidden, code)
    assert "<noscript>" in html


def test_runs_side_by_side_by_prompt_id_or_by_what_the_prompt_says(tmp_path):
    before, after = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", steps=(9,))
    write_trajectories(after / "trajectories", 10, 0, [make(10, prompt="")])
    write_trajectories(before / "trajectories", 10, 0, [make(10, prompt="")])
    main([str(before), "--compare", str(after / "trajectories"), "--out", str(tmp_path / "page.html")])
    index = Scripts((tmp_path / "page.html").read_text()).data["index"]
    assert index["labels"] == [str(before), str(after)], "two runs of one name go by their paths"
    assert index["prompts"][:2] == ["p0", "p1"] and len(index["prompts"]) == 3
    assert [(g["folder"], g["step"], g["prompt"]) for g in index["groups"] if g["prompt"] == 2] == [
        (0, 10, 2),
        (1, 10, 2),
    ]


def test_command(tmp_path, capsys):
    run, page = write_run(tmp_path / "run"), tmp_path / "new" / "page.html"
    main([str(run), "--out", str(page)])
    said = f"{page}: 12 rollouts in 4 groups\nnext: open {page} in a browser\n"
    assert capsys.readouterr().out == said and "<h1>run</h1>" in page.read_text()
    main([str(run)])
    assert (run / "trajectories.html").read_text() == page.read_text()
    for words, fault in (
        (["nowhere", "--out", str(page)], "nowhere: no trajectories; .*--trajectories_every"),
        ([str(run), "--out", str(tmp_path)], "--out .* is a folder"),
        ([str(run), "--out", str(page), "--verbose"], "--verbose"),
    ):
        with pytest.raises(InputError, match=fault):
            main(words)


def test_the_command_needs_no_torch():
    told = "import sys, limner.report.viewer.trajectories; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "False\n"


def seen(page: Path, driver: str = "") -> str:
    """What a browser makes of the page, under its own policy; or of a copy that a script drives, without one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    if driver:
        html = page.read_text().replace(viewer.html.escape(viewer.CONTENT_POLICY), "img-src data:", 1)
        html = re.sub(r"; script-src [^\"]*", "", html, count=1).replace("</body>", f"<script>{driver}</script></body>")
        page = page.with_name("driven.html")
        page.write_text(html)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=500,900")
    words = [browser, *options, f"--user-data-dir={page.parent / 'home'}", page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout.partition('<script type="application/json"')[0]


def titled(drawn: str) -> Any:
    """What the driving script left in the title."""
    title = re.search(r"<title>(.*?)</title>", drawn)
    assert title
    return json.loads(viewer.html.unescape(title[1]))


@pytest.mark.slow
def test_a_group_without_difference_says_why_and_no_card_runs_off_the_window(tmp_path):
    def alike(group: int, outcome: float | None, advantage: float) -> list[Trajectory]:
        rows = [make(0, group, number, outcome, f"p{group}") for number in range(8)]
        return [replace(row, segments=tuple(replace(one, advantage=advantage) for one in row.segments)) for row in rows]

    rows = [*alike(0, 0.75, 0.0), *alike(1, 0.5, 0.3), *alike(2, None, 0.0)]
    rows += [make(0, 3, number, 0.1 * number, "p3") for number in range(8)]
    write_trajectories(tmp_path / "run", 0, 0, rows)
    write_viewer(tmp_path / "page.html", [tmp_path / "run"], ["run"])
    driver = """const lanes = [...document.querySelectorAll(".lane")];
    const beyond = [...document.querySelectorAll(".card, .card *")].filter(
      (one) => one.getBoundingClientRect().right > document.documentElement.clientWidth);
    document.title = JSON.stringify([lanes.map((lane) => lane.querySelector(".note")?.textContent ?? ""), beyond.length,
      document.querySelectorAll(".card").length]);"""
    said, beyond, cards = titled(seen(tmp_path / "page.html", driver))
    assert (beyond, cards) == (0, 32)
    assert re.search("the same score, 0.75: none is better .* every advantage A is 0 and nothing is learned", said[0])
    assert re.search("the same score, 0.50; an advantage A that is not 0 is from scores of their segments", said[1])
    assert re.search("No answer of this group has a score", said[2]) and said[3] == ""


@pytest.mark.slow
def test_in_a_browser(tmp_path):
    """The page under its own policy, and a copy that a script drives: order, filter, paging, two runs."""
    run, after = write_run(tmp_path / "run", steps=range(0, 30, 3)), write_run(tmp_path / "after", gain=0.3)
    write_trajectories(run / "trajectories", 0, 9, [make(0, 9, 0, text=HOSTILE, prompt=HOSTILE)])
    page = tmp_path / "page.html"
    write_viewer(page, [run / "trajectories"], ["run"])
    drawn = seen(page)
    assert drawn.count('<article class="entry">') == 8 and "1 / 3, 21 groups" in drawn
    assert drawn.count("&lt;img src=x onerror=alert(1)&gt;") == 2 and "<img src=x" not in drawn.replace('"', "")
    assert drawn.count("dead group") and 'log-prob \u22120.500, p 0.61"' in drawn

    driver = """const out = [], by = (id) => document.getElementById(id);
    const set = (id, value) => { by(id).value = value; by(id).dispatchEvent(new Event("input")); };
    const say = () => out.push([by("page").textContent, ...[...document.querySelectorAll(".lane")].slice(0, 2).map(
      (lane) => `${lane.querySelector("b.run")?.textContent} ${lane.querySelector(".lane-head .chip")?.textContent}`)]);
    say();
    const step = document.querySelector(".lane select");
    step.value = "1"; step.dispatchEvent(new Event("change"));
    out.push(document.querySelector(".lane select").value, document.querySelector("header .chip").textContent);
    set("order", "gain"); say(); set("step", "5"); say(); set("step", ""); set("unit", "group");
    out.push(by("order").value); say(); by("next").click(); by("next").click(); say(); set("find", "p1"); say();
    set("find", "RED DOT"); say(); out.push(document.querySelectorAll(".card.found").length);
    set("find", "illustrate: "); say(); set("find", "no such words"); say(); set("find", "");
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const read = () => out.push(by("readout").textContent.split(":")[0]);
    document.querySelector(".card [tabindex='0']").focus(); read();
    for (const key of [..."RRRRRRRLL"]) { press(key === "R" ? "ArrowRight" : "ArrowLeft"); read(); }
    press("End"); read(); press("Home"); read();
    out.push(document.querySelector(".card").querySelectorAll("[tabindex='0']").length);
    document.title = JSON.stringify(out);"""
    write_viewer(page, [run / "trajectories", after / "trajectories"], ["run", "after"])
    assert titled(seen(page, driver)) == [
        ["1 / 1, 3 prompts", "run mean 0.10", "after mean 0.40"],
        *("1", "change +0.30"),
        ["1 / 1, 3 prompts", "run mean 0.10", "after mean 0.40"],
        ["1 / 1, 2 prompts", "run undefined", "after mean 0.40"],
        "step",
        ["1 / 4, 25 groups", "run mean 0.10", "run mean 0.20"],
        ["3 / 4, 25 groups", "run mean 0.20", "run mean 0.10"],
        ["1 / 2, 12 groups", "run mean 0.20", "run mean 0.20"],
        *(["1 / 3, 24 groups", "run mean 0.10", "run mean 0.20"], 24),
        ["1 / 4, 25 groups", "run mean 0.10", "run mean 0.20"],
        ["1 / 1, 0 groups"],
        *('"A red dot."', '"\u00b7"', '"\u00b7"', *(f"code {n}, number {n}" for n in range(4)), '"<boi>"'),
        *("code 3, number 3", "code 2, number 2", '"<eos>"', '"A red dot."', 1),
    ]
