"""The pages that a new user follows are run as they stand: every command, every example, on a few records."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from limner import load
from limner.cli import run
from limner.configs import registry
from limner.configs.errors import InputError
from limner.worlds.picture_stories.scenes import parse_scene, read_pictures, read_sentence

from .data_files import noisy, put, put_lines
from .pages import ROOT, blocks_of, commands_of
from .serve.conftest import running

README, QUICKSTART, DOCUMENTS = ROOT / "README.md", ROOT / "docs/quickstart.md", ROOT / "docs/your_documents.md"
ASKED = ("small red circle top left", "big blue square bottom right")
QUIET = "--report_to none --disable_tqdm true"
SMALL = {
    "warmup": "--max_steps 2 --pack_length 512 --heldout_batches 1 --new_model.hidden_size 32 --new_model.layers 1 "
    "--new_model.intermediate_size 64 --new_model.text_vocabulary 512 --new_model.image_tokenizer.image_size 32 "
    "--new_model.image_tokenizer.autoencoder_steps 2 --new_model.image_tokenizer.quantised_steps 2 "
    f"--new_model.image_tokenizer.decoder_steps 2 {QUIET}",
    "generate": "--max-new-tokens 8",
    "grpo": "--max_steps 1 --max_completion_length 24 --num_generations 2 --per_device_train_batch_size 2 "
    f"--use_cpu true --steps_per_generation 1 --preflight false {QUIET} --bf16 false "
    "--algorithm.replay.pack_length 512 --gradient_accumulation_steps 1 --activation_checkpointing false",
}
"""Flags that make a command of docs/your_documents.md small. Those of the other pages are run as they are."""


def walk(page, small=None):
    """Runs the blocks of a page in their order, in the folder that is the current one; files first where it asks for
    them. Returns the names that its Python has defined."""
    names: dict = {}
    for block in blocks_of(page):
        if block.language == "text" or block.mark.startswith("not run: "):
            continue
        if block.file:
            put(Path(block.file), block.text)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        else:
            assert block.language == "bash", block.place
            for program, *words in commands_of(block.text):
                assert program == "limner", f"{block.place}: {program}: say that it is not run, and why"
                run([*words, *shlex.split((small or {}).get(words[0], ""))])
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the pages say that a reader has: Markdown, chats, photos, captioned pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    for number in range(6):
        text = f"# Fold a boat {number}\n\nFold it {number} times.\n\n![a](p{number}.jpg)\n\nDone."
        put(tmp_path / f"pages/p{number}.md", text)
        put(tmp_path / f"pages/p{number}.jpg", noisy())
        put(tmp_path / f"photos/{number}.jpg", noisy())
        put(tmp_path / f"pictures/{number}.jpg", noisy())
        put(tmp_path / f"pictures/{number}.txt", f"a kite {number}")
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A kite."}]
    put_lines(tmp_path / "chats.jsonl", *[{"id": n, "image": f"{n}.jpg", "conversations": talk} for n in range(6)])
    return tmp_path


def is_right(text: str, images) -> bool:
    """Whether a story is what the pages ask for, in every sentence and picture."""
    planned = [parse_scene(words) for words in ASKED]
    sentences = [read_sentence(f"{words}.") for words in text.strip().removesuffix(".").split(".")]
    return sentences == planned == read_pictures(images)


@pytest.mark.parametrize("page", [README, QUICKSTART], ids=lambda page: page.name)
def test_the_example_of_the_page_shows_a_right_answer(page, folder, capsys):
    (block,) = [b for b in blocks_of(page) if b.language == "python" and "load(" in b.text]
    names: dict = {}
    exec(block.text, names)
    answer, said = names["answer"], capsys.readouterr().out.strip()
    assert is_right(answer.text, answer.images) and " ".join(answer.text.split()) == " ".join(said.split())
    assert all(" ".join(words.split()) == " ".join(said.split()) for words in re.findall(r"text\)  # (.*)", block.text))


def test_the_request_of_the_pages_is_answered():
    asked = [
        words
        for page in (README, QUICKSTART)
        for block in blocks_of(page)
        for words in commands_of(block.text)
        if block.language == "bash" and words[0] == "curl"
    ]
    assert len(asked) == 2
    with running(load("demo").policy, name="demo") as server:
        for words in asked:
            (address,) = [word for word in words if word.startswith("http")]
            body = json.loads(words[words.index("-d") + 1])
            status, _, answer = server.ask(re.sub(r"^http://[^/]*", "", address), {**body, "seed": 0, "stream": False})
            assert status == 200
            assert answer["choices"][0]["message"]["content"].count("![picture") == 2


@pytest.mark.slow
def test_the_readme_runs(folder):
    walk(README)
    assert all((folder / name).is_file() for name in ("answer.html", "answer.md", "rollouts.html", "boat.html"))
    assert (folder / "shards/pages/index.json").is_file() and (folder / "runs/blue/model").is_dir()


@pytest.mark.slow
def test_ten_minutes_run_and_the_pictures_turn_blue(folder):
    walk(QUICKSTART)
    assert (folder / "rollouts.html").is_file() and (folder / "after.html").is_file()
    state = json.loads((folder / "runs/blue/checkpoint-20/trainer_state.json").read_text())
    rewards = [line["rewards/blue"] for line in state["log_history"] if "rewards/blue" in line]
    assert len(rewards) == 20 and rewards[0] < 0.5 and min(rewards[-5:]) > 0.8
    after = load("runs/blue/model").write(f"Illustrate: {'; '.join(ASKED)}.", temperature=0)
    colours = [scene.colour if scene else None for scene in read_pictures(after.images)]
    assert colours and {*colours} == {"blue"}


@pytest.mark.slow
def test_what_varies_is_as_the_table_says(folder, capsys):
    """The two ends of its columns. Other processors draw other answers: within four groups of the sixteen."""
    blocks = blocks_of(QUICKSTART)
    for block in blocks:
        if block.file:
            put(Path(block.file), block.text)
        elif block.language == "python" and "named.jsonl" in block.text:
            exec(block.text, {})
    (command,) = [
        words
        for block in blocks
        if block.language == "bash"
        for words in commands_of(block.text)
        if "named.jsonl" in words
    ]
    table = re.findall(r"^\| `(\w+)`: .*? \| (.*) \|$", QUICKSTART.read_text(), re.MULTILINE)
    assert [name for name, _ in table] == ["blue", "says_blue", "short", "please"]
    for column, prompts, temperature in ((0, "named.jsonl", "1"), (2, "named.jsonl", "1.6"), (3, "open.jsonl", "1")):
        with pytest.raises(InputError, match="preflight: reward"):
            run([*command[1:], "--prompts", prompts, "--temperature", temperature])
        said = capsys.readouterr().out
        for name, shares in table:
            (line,) = re.findall(rf"reward {name}: (.*)", said)
            found = 100 if "for every answer" in line else int(re.findall(r"(\d+)% of groups", line)[0])
            expected = int(shares.split(" % | ")[column].removesuffix(" %"))
            assert abs(found - expected) <= 26, (name, prompts, temperature)


@pytest.mark.slow
def test_own_data_and_an_own_reward_run(folder):
    names = walk(DOCUMENTS, SMALL)
    assert len(names["scores"].outcome) == 4
    assert (folder / "answer.html").is_file() and (folder / "rollouts.html").is_file()
    assert json.loads((folder / "shards/pages-coded/index.json").read_text())["fingerprint"]
    assert "Calm" in (folder / "runs/grpo/config.yaml").read_text() and (folder / "runs/grpo/model").is_dir()
