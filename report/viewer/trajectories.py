"""The trajectory viewer: one HTML file of groups of rollouts, their pictures, rewards, advantages and log-probs.

    limner trajectories runs/a --out groups.html
    limner trajectories runs/before --compare runs/after --out groups.html

The data lie in the page as JSON, a block for each group, and `trajectories.js` draws a few groups at a time; so a page
of thousands of rollouts opens at once. It asks the network for nothing, and its content policy names the one script
that may run, by its hash. What a rollout says only ever becomes text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...configs.errors import ArgumentParser, InputError
from ...configs.terminal import say, say_next
from ...configs.whole import write_atomically
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment, data_uri
from ...models.documents.rendering import CONTENT_POLICY, SMALL_PICTURE, html_page
from ...train.objective.spread import SPREAD_FLOOR
from ...train.watch.trajectories import Trajectory, read_trajectories
from ..page import element, escape, note, style

FOLDER = "trajectories"
"""Where a run keeps its trajectories."""
WEBP_QUALITY = 80

CONTROLS = """<div id="controls" role="search">
<label>Show <select id="unit">
<option value="group">groups</option>
<option value="prompt">prompts</option>
</select></label>
<label>Step <select id="step"><option value="">all</option></select></label>
<label>Order <select id="order">
<option value="step">by step</option>
<option value="low">lowest reward first</option>
<option value="high">highest reward first</option>
<option value="spread">widest spread first</option>
<option value="dead">dead groups first</option>
<option value="loss">largest loss first</option>
<option value="gain">largest gain first</option>
</select></label>
<label>Find <input id="find" type="search" placeholder="words, or a prompt's id" autocomplete="off"></label>
<label><input id="heat" type="checkbox" checked> log-probs</label>
</div>"""

LEGEND = """<p class="note legend">A chip <span class="chip none">r</span> is a segment's reward. <span class="chip
none">A</span> is the advantage of its tokens: how much better (+) or worse (&minus;) they did than the other answers to
the same prompt. Training makes tokens above 0 likelier and those below 0 less likely; where the answers do not differ,
A is 0. Colour is surprise: <span class="scale"></span> from certain to a log-prob of <span id="text-scale"></span> or
less in text and <span id="image-scale"></span> or less in pictures, which is no better than chance. The square beside a
picture holds its codes in the order they were sampled. Point at a token, touch it, or go there with Tab and the arrow
keys, to read it below.</p>"""

BAR = """<footer id="bar"><button id="previous" type="button">&lsaquo; Previous</button><span id="page"></span><button
id="next" type="button">Next &rsaquo;</button><output id="readout"></output></footer>"""


def write_viewer(out_html: Path, folders: Sequence[Path], labels: Sequence[str]) -> tuple[int, int]:
    """One page of all trajectories in the folders; returns how many rollouts and groups it has.

    Several folders stand side by side, by the id of the prompt. Raises InputError for a folder without trajectories or
    a damaged one.
    """
    prompts: dict[str, int] = {}
    asked: list[str] = []
    groups, blocks, codes = [], [], 2
    for number, folder in enumerate(folders):
        for group in _groups(folder):
            key = _prompt_key(group[0].prompt)
            rewards = [item.outcome for item in group]
            if key not in prompts:
                prompts[key] = len(prompts)
                asked.append(group[0].prompt.text)
            place = {"folder": number, "step": group[0].step, "group": group[0].group}
            said = "\n".join(item.answer.text for item in group)
            groups.append({**place, "prompt": prompts[key], "rewards": rewards, "said": said})
            blocks.append(_inert(f"group-{len(blocks)}", _group_json(group)))
            codes = max(codes, *(max(item.ids, default=0) - item.text_size + 1 for item in group))
    rollouts = sum(len(group["rewards"]) for group in groups)
    steps = [group["step"] for group in groups]
    span = f"steps {min(steps)} to {max(steps)}"
    lead = f"{rollouts:,} rollouts in {len(groups):,} groups, {len(prompts):,} prompts, {span}."
    bounds = {"chance": math.log(codes), "deadBelow": SPREAD_FLOOR}
    index = {"labels": list(labels), "prompts": list(prompts), "asked": asked, "groups": groups, **bounds}
    write_atomically(out_html, _page(", ".join(labels), lead, [_inert("index", index), *blocks]))
    return rollouts, len(groups)


def main(argv: Sequence[str]) -> None:
    parser = ArgumentParser(prog="limner trajectories", description="A page of the groups that a GRPO run sampled.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run folder, or its folder of trajectories")
    parser.add_argument("--compare", nargs="+", type=Path, default=[], metavar="DIR", help="runs to show beside it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (default RUN_DIR/trajectories.html)")
    arguments = parser.parse_args(argv)
    arguments.out = arguments.out or arguments.run / "trajectories.html"
    if arguments.out.is_dir():
        raise InputError(f"--out {arguments.out}: is a folder; name the HTML file to write")
    folders = [_folder(run) for run in (arguments.run, *arguments.compare)]
    rollouts, groups = write_viewer(arguments.out, folders, _labels(folders))
    say(f"{arguments.out}: {rollouts} rollouts in {groups} groups")
    say_next(page=arguments.out)


def _folder(run: Path) -> Path:
    """Where the run's trajectories are. Raises InputError where it has none."""
    for folder in (run / FOLDER, run):
        if any(folder.glob("step-*.jsonl")):
            return folder
    raise InputError(
        f"{run}: no trajectories; `limner grpo --trajectories_every 10` keeps some, from its first step on"
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    """The names of the runs; their paths where two have the same name."""
    runs = [path.parent if path.name == FOLDER else path for path in map(Path.absolute, folders)]
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _groups(folder: Path) -> Iterator[list[Trajectory]]:
    """Groups by step and number. Ranks may share a group, so a step is read as a whole."""
    for _, rollouts in itertools.groupby(read_trajectories(folder), key=lambda item: item.step):
        inside = sorted(rollouts, key=lambda item: (item.group, item.number))
        for _, group in itertools.groupby(inside, key=lambda item: item.group):
            yield list(group)


def _prompt_key(prompt: InterleavedDocument) -> str:
    """Its id; without one a digest of what it says."""
    said = json.dumps(prompt.to_json()["segments"]).encode()
    return prompt.id or "prompt " + hashlib.sha256(said).hexdigest()[:12]


def _group_json(group: Sequence[Trajectory]) -> dict[str, Any]:
    """What the script draws: segments as {kind, text | src ...}, with their tokens' log-probs where sampled."""
    return {
        "prompt": [_segment_json(segment) for segment in group[0].prompt.segments],
        "rollouts": [_rollout_json(item) for item in group],
    }


def _rollout_json(item: Trajectory) -> dict[str, Any]:
    tokens: list[list[tuple[int | str | None, float | None, str]]] = [[] for _ in range(len(item.segments) + 1)]
    for token, logp, owner, piece in zip(item.ids, item.logp, item.token_segments, item.pieces, strict=True):
        code = None
        if token >= item.text_size:
            codes = item.codes_of(token)
            code = codes[0] if len(codes) == 1 else " ".join(map(str, codes))
        tokens[owner].append((code, logp, piece))
    segments = []
    for segment, score, own in zip(item.answer.segments, item.segments, tokens[:-1], strict=True):
        drawn = {**_segment_json(segment), "reward": score.reward, "advantage": score.advantage}
        segments.append({**drawn, **_tokens_json(own)})
    return {
        "number": item.number,
        "outcome": item.outcome,
        "breakdown": item.breakdown,
        "ended": item.ended,
        "cut": item.cut_image,
        "segments": segments,
        "rest": _tokens_json(tokens[-1]),
    }


def _tokens_json(tokens: Sequence[tuple[int | str | None, float | None, str]]) -> dict[str, Any]:
    """Text tokens and controls as [piece, log-prob], image codes as [code, log-prob], or all codes of a position."""
    return {
        "words": [[piece, logp] for code, logp, piece in tokens if code is None],
        "codes": [[code, logp] for code, logp, _ in tokens if code is not None],
    }


def _segment_json(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, TextSegment):
        return {"kind": "text", "text": segment.text}
    try:
        picture = segment.pixels()
    except ValueError:
        return {"kind": "image", "src": None, "alt": segment.alt}
    small = max(picture.size) <= SMALL_PICTURE
    number = f"candidate {segment.candidate}" if segment.candidate is not None else ""
    return {
        "kind": "image",
        "src": data_uri(picture) if small else _webp(segment),
        "alt": ": ".join(filter(None, (number, segment.alt))),
        "size": picture.size,
        "small": small,
    }


def _webp(segment: ImageSegment) -> str:
    """A tenth of the bytes of a PNG, which counts where a page holds thousands of pictures."""
    buffer = io.BytesIO()
    segment.pixels().save(buffer, format="WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _inert(name: str, value: Any) -> str:
    """A block of JSON that no browser runs; without any `<`, nothing in it can end the block or begin a tag."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _page(title: str, lead: str, blocks: Sequence[str]) -> str:
    here = Path(__file__).parent
    script = (here / "trajectories.js").read_text(encoding="utf-8")
    css = style() + (here / "trajectories.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"{CONTENT_POLICY}; script-src 'sha256-{digest}'"
    parts = [
        "<main>",
        element("p", "limner trajectories", style="kicker"),
        element("h1", title),
        element("p", lead, style="lead"),
        f"<noscript>{note('A script inside this page draws the groups; allow scripts to see them.')}</noscript>",
        *(CONTROLS, LEGEND, '<div id="groups"></div></main>', BAR, *blocks),
        f"<script>{script}</script>",
    ]
    frame = html_page(f"Trajectories: {title}", "\n".join(parts), css)
    return frame.replace(html.escape(CONTENT_POLICY), escape(policy), 1)
