"""Judges that are known to be good or bad, over real HTTP: their figures, the gate, and the readers of pairs."""

import itertools
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from limner.cli import run
from limner.configs.errors import InputError
from limner.data.shards import ShardWriter
from limner.eval.qualification import command as command
from limner.eval.qualification.ballots import Ballot, faults, figures
from limner.eval.qualification.command import PairwiseConfig, QualifyConfig, qualify
from limner.eval.qualification.preference_pairs import CORRUPTIONS, Pair, Skipped, read_pairs, sanity_pairs
from limner.models.chat.choice import SharedEndpoint
from limner.models.chat.endpoint import EndpointConfig
from limner.models.documents.document import TextSegment
from limner.worlds.picture_stories.scenes import outlines, read_pictures, read_sentence, story

from ...scripted_server import ScriptedServer, images, parts, texts
from ..benchmark_data import picture

PAIRS = 8


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Eight pairs, in half of them people prefer `a`, and one on which they tie."""
    rows = [("It is right.", "It is wrong.", "a"), ("It is wrong.", "It is right.", "b")] * (PAIRS // 2)
    rows += [("It is fine.", "It is good.", "tie")]
    lines = [
        json.dumps({"id": str(i), "prompt": f"Say {i}.", "a": a, "b": b, "preferred": preferred})
        for i, (a, b, preferred) in enumerate(rows)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path / "pairs.jsonl"


@pytest.fixture
def documents(tmp_path) -> Path:
    lines = [json.dumps(story(outline, f"story-{i}").to_json()) for i, outline in enumerate(outlines(0, 5))]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    return tmp_path / "documents.jsonl"


def endpoint(server: ScriptedServer, **others) -> EndpointConfig:
    return EndpointConfig(server.url, "scripted", concurrency=4, timeout=20.0, **others)


def pairwise(server: ScriptedServer) -> PairwiseConfig:
    return PairwiseConfig(endpoint=endpoint(server))


def pointwise(server: ScriptedServer, *templates: str, **parts) -> dict:
    """Settings: parts with their weights, and templates that ask the server."""
    rewards = {**parts, **{f"judge/{template}": {"weight": 1, "endpoint": "mine"} for template in templates}}
    return {"rewards": rewards, "endpoints": {"mine": SharedEndpoint(**vars(endpoint(server)))}}


def slots(body) -> list[list]:
    """The two answers as the judge sees them: texts and pictures."""
    shown: list[list] = []
    for part in parts(body):
        if isinstance(part, Image.Image):
            shown[-1].append(part)
            continue
        part = part.partition("The two answers:")[2] or part
        for piece in re.split("(First answer:|Second answer:)", part.partition(">>>")[0]):
            if piece.endswith(" answer:"):
                shown.append([])
            elif shown:
                shown[-1].append(piece.strip())
    return shown


def matching(answer: list) -> int:
    """Pictures that show what the sentence before them says."""
    steps = [(x, y) for x, y in itertools.pairwise(answer) if isinstance(x, str) and isinstance(y, Image.Image)]
    return sum(read_pictures([y])[0] == read_sentence(x) is not None for x, y in steps)


def better(first, second) -> str:
    return f"So it is. <better>{0 if first == second else 1 if first > second else 2}</better>"


def reads_words(body) -> str:
    return better(*("It is right." in answer for answer in slots(body)))


def sees(body) -> str:
    return better(*map(matching, slots(body)))


def sees_one(body) -> str:
    """What a judge says of one picture and its own sentence."""
    asked = re.search(r"The text:\n<<<\n(.*?)\n>>>", texts(body), re.DOTALL)
    assert asked
    scene = read_sentence(asked[1].strip())
    return f"<score>{10 if scene and read_pictures(images(body))[0] == scene else 2}</score>"


def value(estimate) -> float:
    return estimate["value"]


def test_a_perfect_judge_of_pairs_agrees_in_both_orders(pairs, tmp_path):
    with ScriptedServer(reads_words) as server:
        results = qualify(QualifyConfig(pairs=str(pairs), judge=pairwise(server), out=str(tmp_path / "out")))
        found = results["rows"]["judge"]["preferences"]
        assert len(server.bodies) == 2 * (PAIRS + 1)  # each order is a question of its own
    assert (found["pairs"], found["with_verdict"], found["people_tie"]) == (PAIRS + 1, PAIRS + 1, 1)
    assert found["agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": PAIRS}
    assert value(found["first_slot"]) == 0.5 and value(found["same_both_ways"]) == 1.0
    assert value(found["ties"]) == pytest.approx(1 / (PAIRS + 1))
    assert results["passed"] is None  # without a sanity set nothing is promised
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def test_a_judge_that_prefers_the_first_is_at_chance_and_shows_it(pairs, documents, tmp_path):
    with ScriptedServer(lambda body: "<better>1</better>") as server:
        files = {"pairs": str(pairs), "documents": str(documents), "out": str(tmp_path / "out")}
        results = qualify(QualifyConfig(judge=pairwise(server), **files))
    found = results["rows"]["judge"]["preferences"]
    assert value(found["agreement"]) == 0.5 and value(found["decided"]) == 0.5
    assert value(found["first_slot"]) == 1.0 and value(found["same_both_ways"]) == 0.0
    assert results["passed"] is False and len(results["faults"]["judge"]) == len(CORRUPTIONS)


def test_one_mark_for_everything_is_a_tie_at_chance_and_no_lower_score(pairs, documents, tmp_path):
    with ScriptedServer(lambda body: "<score>7</score>") as server:
        files = {"pairs": str(pairs), "documents": str(documents), "out": str(tmp_path / "out")}
        results = qualify(QualifyConfig(**pointwise(server, "helpfulness", format=1), **files))
    assert set(results["rows"]) == {"format", "judge_helpfulness", "total"} and results["gated"] == ["total"]
    found = results["rows"]["judge_helpfulness"]["preferences"]
    assert value(found["agreement"]) == 0.5 and value(found["ties"]) == 1.0
    assert found["decided"] is None and "first_slot" not in found
    for corruption in CORRUPTIONS:
        assert value(results["rows"]["total"][corruption]["outright"]) == 0.0
    assert results["passed"] is False


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_a_refusing_judge_has_no_verdict_and_does_not_qualify(kind, pairs, documents, tmp_path):
    with ScriptedServer(lambda body: "I'm sorry, I can't help with that.") as server:
        scorer = {"judge": pairwise(server)} if kind == "pairwise" else pointwise(server, "helpfulness")
        files = {"pairs": str(pairs), "documents": str(documents), "out": str(tmp_path / "out")}
        results = qualify(QualifyConfig(**scorer, **files))
    (row,) = results["rows"].values()
    assert row["preferences"]["with_verdict"] == 0 and row["preferences"]["agreement"] is None
    assert set(row["failed"]) == {"refused"} and row["failed"]["refused"] >= 2 * PAIRS
    assert results["passed"] is False
    assert all("0 of 5 have a verdict" in fault for faults in results["faults"].values() for fault in faults)


def test_a_failed_judge_leaves_the_total_without_a_vote(documents, tmp_path):
    """Else `format`, which scores both answers alike, would speak for it."""
    with ScriptedServer(lambda body: "As an AI I have no view.") as server:
        config = QualifyConfig(documents=str(documents), **pointwise(server, "helpfulness", format=1))
        config.out = str(tmp_path / "out")
        rows = qualify(config)["rows"]
    assert rows["format"]["blank_pictures"]["with_verdict"] == 5
    assert rows["total"]["blank_pictures"]["with_verdict"] == 0


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_a_judge_that_sees_qualifies_and_is_asked_once(kind, documents, tmp_path):
    with ScriptedServer(sees if kind == "pairwise" else sees_one) as server:
        for _ in range(2):
            scorer = {"judge": pairwise(server)}
            if kind == "pointwise":
                scorer = pointwise(server, "image_text_alignment")
            results = qualify(QualifyConfig(documents=str(documents), **scorer, out=str(tmp_path / "out")))
            asked = len(server.bodies)
            assert results["passed"] is True, results["faults"]
        assert len(server.bodies) == asked > 0  # the second call found all replies in OUT
    (row,) = results["rows"].values()
    for corruption in CORRUPTIONS:
        assert row[corruption]["pairs"] == 5 and value(row[corruption]["outright"]) == 1.0


def test_the_exact_verifiers_qualify_and_a_reward_of_form_does_not(documents, tmp_path, capsys):
    for part, code in (("picture_stories/image_plan", 1), ("picture_stories/image_sentence", 0), ("format", 1)):
        settings = {"rewards": {part: 1}, "documents": str(documents), "out": str(tmp_path / part)}
        (tmp_path / "qualify.yaml").write_text(json.dumps(settings))
        with pytest.raises(SystemExit) if code else pytest.MonkeyPatch.context() as stopped:
            run(["qualify-judge", "--config", str(tmp_path / "qualify.yaml")])
        assert not code or stopped.value.code == code
        said = capsys.readouterr().out
        *_, verdict, ending = said.splitlines()
        assert ending.startswith(f"wrote {tmp_path / part / 'results.json'}; next: ")
        assert verdict == ("not qualified: do not train against it" if code else "qualified")
    assert "exchanged_texts: 0.000 score lower, the threshold is 0.8" in said


def test_shards_are_documents_too(tmp_path):
    with ShardWriter(tmp_path / "shards") as writer:
        for number, outline in enumerate(outlines(0, 6)):
            writer.write(story(outline, f"story-{number}"), "heldout" if number < 4 else "train")
    settings = {"rewards": {"picture_stories/image_plan": 1}, "out": str(tmp_path / "out")}
    config = QualifyConfig(documents=str(tmp_path / "shards"), limit=3, **settings)
    assert qualify(config)["rows"]["picture_stories_image_plan"]["blank_pictures"]["with_verdict"] == 3
    config.documents = str(tmp_path / "none")
    with pytest.raises(InputError, match="none"):
        qualify(config)


def test_one_of_two_orders_may_fail():
    found = figures([Ballot("preferences", "a", ("a", None)), Ballot("preferences", "b", ("b", "a"))])
    assert value(found["agreement"]) == 0.75
    assert found["same_both_ways"]["n"] == 1  # a bias shows only where both orders were answered


def test_the_gate_wants_verdicts_and_every_damage():
    told = [Ballot("blank_pictures", "a", ("a",))] * 7 + [Ballot("blank_pictures", "a", (None,))] * 3
    groups = {"blank_pictures": figures(told)}
    assert faults(groups, ["blank_pictures"], 0.7) == []
    assert faults(groups, ["blank_pictures"], 0.8) == ["blank_pictures: only 7 of 10 have a verdict"]
    assert "no document" in faults(groups, ["exchanged_texts"], 0.7)[0]


def test_damage_changes_one_thing_only():
    stories = [story(outline, f"story-{i}") for i, outline in enumerate(outlines(0, 4))]
    damaged = list(sanity_pairs(stories, list(CORRUPTIONS)))
    assert len(damaged) == 12
    for pair in damaged:
        assert isinstance(pair, Pair) and pair.preferred == "a"
        assert [type(x) for x in pair.a.segments] == [type(x) for x in pair.b.segments]
        same_text = pair.a.text == pair.b.text
        seen = [[image.pixels().tobytes() for image in document.images] for document in (pair.a, pair.b)]
        assert same_text == (pair.group != "exchanged_texts") and (seen[0] == seen[1]) != same_text


def test_what_damage_would_not_change_is_skipped():
    twins = [story(outlines(0, 1)[0], name) for name in "ab"]
    found = list(sanity_pairs(twins, ["shuffled_pictures", "exchanged_texts"]))
    assert [skipped.kind for skipped in found if isinstance(skipped, Skipped)] == [
        "no shuffled_pictures",
        "no exchanged_texts",
    ] * 2


def test_mmrb2(tmp_path):
    red, blue = (picture(tmp_path / "images" / f"{colour}.png", colour) for colour in ("red", "blue"))
    answers = {"response_a": {"response_content": [["text", "Red."], ["image", red]]}}
    answers["response_b"] = {"response_content": [["image", blue], ["text", "Blue."]]}
    prompt = {"prompt_content": [["text", "Draw."]]}
    lost = {"response_content": [["image", "images/lost.png"]]}
    records = [
        {"id": "one", "chosen": "B", **prompt, **answers},
        {"pair_id": "two", "human_preference": "A", **prompt, **answers},
        {"id": "three", "chosen": "A", **prompt, **answers, "response_b": lost},
    ]
    file = tmp_path / "interleaved.json"
    file.write_text(json.dumps({"task": "interleaved", "pairs": records}))
    first, second, third = read_pairs(file, "mmrb2")
    assert isinstance(first, Pair) and (first.id, first.preferred) == ("one", "b")
    assert [type(segment).__name__ for segment in first.b.segments] == ["ImageSegment", "TextSegment"]
    assert first.b.images[0].pixels().getpixel((0, 0)) == (0, 0, 255)
    assert isinstance(second, Pair) and (second.id, second.preferred) == ("two", "a")
    assert isinstance(third, Skipped) and third.kind == "missing image"

    file.write_text(json.dumps({"pairs": [{"id": "one", "chosen": "A", **answers}]}))
    with pytest.raises(InputError, match="record 1: no `prompt_content`"):
        list(read_pairs(file, "mmrb2"))
    outside = {"response_content": [["image", "../secret.png"]]}
    file.write_text(json.dumps({"pairs": [{"id": "one", "chosen": "A", **prompt, **answers, "response_b": outside}]}))
    with pytest.raises(InputError, match="is outside"):
        list(read_pairs(file, "mmrb2"))


def test_opening(tmp_path):
    picture(tmp_path / "OpenING-Benchmark" / "in.png", "white")
    for folder, colour in (("anole_output", "red"), ("GILL_output", "blue")):
        picture(tmp_path / folder / "7-o-0.png", colour)
        steps = [{"text": f"{colour} <image>", "image": "/home/x/7-o-0.png"}, {"text": "The end.", "image": None}]
        turns = [{"input": [{"text": "<BEGIN> Go on. <image>", "image": "in.png"}]}, {"output": steps}]
        (tmp_path / folder / "7.json").write_text(json.dumps({"total_uid": "7", "conversations": turns}))
    models = {"model_A": {"name": "Anole", "id": 1}, "model_B": {"name": "GILL", "id": 2}}  # the folder is `anole`
    records = [
        {"data_id": uid, **models, "winner": winner} for uid, winner in (("7", "Tie(A)"), ("7", "B"), ("8", "A"))
    ]
    file = tmp_path / "Interleaved_Arena" / "judge_modelAB_results.json"
    file.parent.mkdir()
    file.write_text(json.dumps(records))
    tie, lost, absent = read_pairs(file, "opening")
    assert isinstance(tie, Pair) and isinstance(lost, Pair)
    assert (tie.preferred, lost.preferred) == ("tie", "b")
    assert [s.text for s in lost.prompt.segments if isinstance(s, TextSegment)] == ["Go on."]
    assert len(lost.prompt.images) == 1
    assert [s.text for s in lost.a.segments if isinstance(s, TextSegment)] == ["red", "The end."]
    assert lost.b.images[0].pixels().getpixel((0, 0)) == (0, 0, 255)
    assert isinstance(absent, Skipped) and absent.kind == "missing answer"


def test_opening_as_it_is_released(tmp_path, capsys):
    """Answers in gen_outputs, one of them a pretty-printed .jsonl; the benchmark's folder in another case."""
    picture(tmp_path / "OpenING-benchmark" / "images" / "in.png", "white")
    turns = [{"input": [{"text": "<BEGIN> Go on. <image>", "image": "./images/in.png"}]}]
    for model, suffix in (("M1", "json"), ("M2", "jsonl")):
        picture(tmp_path / "gen_outputs" / f"{model}_output" / "01-o-0.png")
        said = [*turns, {"output": [{"text": model, "image": f"./{model}_output/01-o-0.png"}]}]
        file = tmp_path / "gen_outputs" / f"{model}_output" / f"01.{suffix}"
        file.write_text(json.dumps({"conversations": said}, indent=4))
    record = {"data_id": "01", "model_A": {"name": "M1"}, "model_B": {"name": "M2"}, "winner": "A"}
    pairs = tmp_path / "Interleaved_Arena" / "judge_modelAB_results.json"
    pairs.parent.mkdir()
    pairs.write_text(json.dumps([record, {**record, "model_B": {"name": "M3"}}]))
    both, absent = read_pairs(pairs, "opening")
    assert isinstance(both, Pair) and (both.a.text, both.b.text, len(both.prompt.images)) == ("M1", "M2", 1)
    assert isinstance(absent, Skipped) and "M3_output/01.json" in absent.reason

    (tmp_path / "qualify.yaml").write_text("rewards: {format: 1}")
    flags = ["--config", str(tmp_path / "qualify.yaml"), "--pairs", str(pairs), "--form", "opening"]
    command.main([*flags, "--out", str(tmp_path / "one")])
    pairs.write_text(json.dumps([{**record, "model_B": {"name": "M3"}}]))
    with pytest.raises(SystemExit) as end:
        command.main([*flags, "--out", str(tmp_path / "none")])
    assert end.value.code == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("limner: error: not one pair was compared: 1 missing answer") and "M3_output/01" in first


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"documents": "x"}, "rewards, judge: give what is to be qualified"),
        ({"documents": "x", "rewards": {}}, "rewards, judge: give what is to be qualified"),
        ({"rewards": {"format": 0}}, "pairs, documents: give one or both"),
        ({"documents": "x", "rewards": {"format": 0}}, "no part has a weight"),
        ({"documents": "x", "rewards": {"format": 1}, "threshold": 80}, "threshold: expected a number 0 to 1, got 80"),
    ],
)
def test_settings_that_cannot_work(settings, words, tmp_path):
    (tmp_path / "qualify.yaml").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=words):
        command.main(["--config", str(tmp_path / "qualify.yaml")])


def test_a_line_that_is_no_pair_is_named(tmp_path):
    file = tmp_path / "pairs.jsonl"
    for line, words in (
        ({"prompt": "p", "a": "x"}, r"pairs.jsonl:1: lacks 'b'"),
        ({"prompt": "p", "a": "x", "b": "y", "preferred": "c"}, "preferred: 'c' is none of"),
        ({"prompt": "p", "a": {"segments": 1}, "b": "y", "preferred": "a"}, ":1: a: document"),
    ):
        file.write_text(json.dumps(line))
        with pytest.raises(InputError, match=words):
            list(read_pairs(file, "jsonl"))
