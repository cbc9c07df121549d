"""`limner check` on tiny models: what is sound holds, each planted fault is found under its name, and nothing is told
of the machine."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from limner.models.checkpoints.folder import load, save
from limner.models.families.janus.policy import JanusPolicy
from limner.models.pictures.contract import VQImageTokenizer
from limner.report.check import check_page
from limner.studies.check import model, training
from limner.studies.check.findings import Findings, Private
from limner.studies.check.model import Subject
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from ..models.families.tiny import FAMILIES, published_janus
from ..models.families.tiny_vq import SIDE, published_chameleon, published_emu3

TRAINING = ("warm-up step", "GRPO step")


@pytest.fixture(autouse=True)
def _random_image_tokenizers(monkeypatch):
    """Those of tiny models never learned to paint; one test looks that this is found."""
    monkeypatch.setattr(model, "MOST_LOST", float("inf"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "secret-project" / "model"
    save(FAMILIES["llama"](), folder)
    return folder


def faults(subject: Subject, *checks) -> dict[str, str]:
    """What the checks of a model say that does not hold."""
    found = Findings(Private(subject.folder), lambda _: None)
    for check in checks:
        found.look(check.__name__, lambda check=check: check(subject))
    return {finding.name: finding.text for finding in found.all if finding.state != "ok"}


def figures(file: Path) -> dict:
    return json.loads(file.read_text())


def states(file: Path) -> dict[str, str]:
    return {check["name"]: check["state"] for check in figures(file)["checks"]}


@pytest.mark.parametrize("family", ["llama", pytest.param("janus", marks=pytest.mark.slow)])
def test_a_sound_model_holds_and_nothing_is_told_of_the_machine(family, tmp_path, monkeypatch, limner):
    save(FAMILIES[family](), tmp_path / "secret-project")
    monkeypatch.chdir(tmp_path)
    code, said, err = limner("check", "secret-project", "--json", "check.json", "--device", "cpu")
    assert code == 0, said + err
    found, page = figures(tmp_path / "check.json"), (tmp_path / "secret-project-check.html").read_text()
    assert found["holds"] and {*states(tmp_path / "check.json").values()} == {"ok"}
    names = {check["name"] for check in found["checks"]}
    for stage in TRAINING:
        parts = [f"{name} {part}" for name in ("text", "image") for part in ("embedding", "head")]
        assert {stage, f"{stage}, memory", *(f"{stage}, gradient of the {part}" for part in parts)} <= names
    assert {"GRPO step, replayed log-probs, text", "GRPO step, replayed log-probs, image"} <= names
    assert found["versions"]["torch"] == version("torch")
    assert found["device"]["type"] == "cpu" and found["configuration"]["model_type"] == found["sizes"]["model type"]
    for text in (json.dumps(found), page):
        for private in ("secret-project", str(tmp_path), f"{Path.home()}/", str(Path.cwd())):
            assert private not in text
    assert page.count("data:image/png;base64,") == 3 and "Everything holds" in page


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_holds(family, tmp_path, limner):
    save(FAMILIES[family](), tmp_path / "model")
    code, said, err = limner("check", tmp_path / "model", "--out", tmp_path / "p.html", "--json", tmp_path / "c.json")
    faulty = {name for name, state in states(tmp_path / "c.json").items() if state != "ok"}
    untrained = {"picture"} if family.startswith("vila_u") else set()  # a decoder of random weights
    assert faulty <= untrained and code == len(faulty), said + err


@pytest.mark.parametrize("family", ["gemma3", "chameleon"])
def test_a_family_is_read_right(family, tmp_path):
    save(FAMILIES[family](), tmp_path / "model")
    subject = model.read(tmp_path / "model", None, {}, "cpu", "auto")
    assert faults(subject, *(check for _, check in model.CHECKS), model.check_bf16) == {}


@pytest.mark.parametrize("kind", ["janus", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("emu3", "anole"))])
def test_an_original_is_converted_in_memory(kind, tmp_path, limner):
    """In bfloat16, as they are released; nothing is written beside it."""
    source = tmp_path / "source"
    {"janus": published_janus, "emu3": published_emu3, "anole": published_chameleon}[kind](source)
    before = sorted(path.name for path in source.rglob("*"))
    words = ("--image-size", SIDE) if kind == "emu3" else ()
    flags = ("--out", tmp_path / "p.html", "--json", tmp_path / "c.json", "--no-training", "--dtype", "bfloat16")
    code, said, err = limner("check", source, *words, *flags)
    assert code == 0, said + err
    assert "read: original, converted in memory: family" in said and "bfloat16" in said
    assert sorted(path.name for path in source.rglob("*")) == before
    assert not set(TRAINING) & {*states(tmp_path / "c.json")}


# ---- planted faults ----


def test_a_wrong_rope_scaling_is_found(checkpoint):
    """In what limner runs, not in the files: only the stock class, which reads these by itself, can tell."""
    subject = model.read(checkpoint, None, {}, "cpu", "auto")
    assert faults(subject, model.check_forward, model.check_stock) == {}
    subject.policy.model.model.rotary_emb.inv_freq /= 2
    found = faults(subject, model.check_forward, model.check_stock)
    assert list(found) == ["scores, stock class"]


def test_a_picture_vocabulary_of_the_wrong_size_is_found(checkpoint, tmp_path, limner):
    policy = load(checkpoint)
    small = VQImageTokenizer.create(image_size=32, patch=8, channels=(16,), codes=32, code_size=8).eval()
    policy.processor.image_tokenizer = small
    save(policy, tmp_path / "model")
    flags = ("--out", tmp_path / "p.html", "--json", tmp_path / "c.json", "--no-training")
    code, said, _ = limner("check", tmp_path / "model", *flags)
    assert code == 1 and "FAIL  sizes: the language model has 364 ids, its tokenizers 332 (text and 32 codes)" in said
    found = states(tmp_path / "c.json")
    assert found["sizes"] == "failed" and found["scores, stock class"] == "ok", "the others were still made"


def test_a_model_that_cannot_be_put_together_is_a_finding(checkpoint, tmp_path, limner):
    """More codes than the model has ids: nothing but reading can be looked at, and it says what is wrong."""
    policy = load(checkpoint)
    large = VQImageTokenizer.create(image_size=32, patch=8, channels=(16,), codes=128, code_size=8).eval()
    policy.processor.image_tokenizer = large
    save(policy, tmp_path / "model")
    code, said, _ = limner("check", tmp_path / "model", "--out", tmp_path / "p.html", "--json", tmp_path / "c.json")
    assert code == 1 and "FAIL  read: MODEL: cannot be read: " not in said
    assert "FAIL  read: the language model has 364 ids, its tokenizers need 428" in said
    others = states(tmp_path / "c.json")
    assert others.pop("read") == "failed" and {*others.values()} == {"skipped"}
    assert "needs a model that can be read" in said


@pytest.mark.slow
def test_a_head_without_a_gradient_is_found(tmp_path, monkeypatch, limner):
    save(FAMILIES["janus"](), tmp_path / "model")
    scores = JanusPolicy.image_logits
    monkeypatch.setattr(JanusPolicy, "image_logits", lambda self, hidden: scores(self, hidden).detach())
    code, said, _ = limner("check", tmp_path / "model", "--out", tmp_path / "p.html", "--json", tmp_path / "c.json")
    failed = {name for name, state in states(tmp_path / "c.json").items() if state == "failed"}
    assert code == 1 and {f"{stage}, gradient of the image head" for stage in TRAINING} <= failed, said
    assert all("gradient of the image" in name for name in failed)


def test_samples_that_are_not_scored_are_found(checkpoint, monkeypatch):
    subject = model.read(checkpoint, None, {}, "cpu", "auto")
    scored = subject.policy.log_probs
    monkeypatch.setattr(subject.policy, "log_probs", lambda *a, **k: scored(*a, **{**k, "temperature": 1.3}))
    assert "sampled image" in faults(subject, model.check_samples)


def test_weights_that_are_no_numbers_are_found(checkpoint):
    subject = model.read(checkpoint, None, {}, "cpu", "auto")
    with torch.no_grad():
        subject.policy.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    assert faults(subject, model.check_weights) == {"weights": "not finite: model.layers.1.mlp.up_proj.weight"}


def test_an_image_tokenizer_that_never_learned_is_found(checkpoint, monkeypatch):
    monkeypatch.setattr(model, "MOST_LOST", 0.5)
    subject = model.read(checkpoint, None, {}, "cpu", "auto")
    assert "what comes back is another picture" in faults(subject, model.check_picture)["picture"]


def test_a_text_that_spells_a_control_is_found(checkpoint, monkeypatch):
    subject = model.read(checkpoint, None, {}, "cpu", "auto")
    tokenizer = subject.policy.processor.tokenizer
    monkeypatch.setattr(
        subject.policy.processor, "text_ids", lambda text: tokenizer.encode(text, add_special_tokens=False)
    )
    assert "a text can spell <eos>" in faults(subject, model.check_ids)["ids"]


def test_a_fault_of_ours_is_told_and_stops_nothing(checkpoint, tmp_path, monkeypatch, limner):
    def broken(_):
        raise ZeroDivisionError(f"in {checkpoint}/model.safetensors of {Path.home()}/me, hf_abcdefghijkl")

    monkeypatch.setattr(model, "CHECKS", [("sizes", broken), *model.CHECKS[2:3]])
    flags = ("--out", tmp_path / "p.html", "--json", tmp_path / "c.json", "--no-training")
    code, said, _ = limner("check", checkpoint, *flags)
    assert code == 1 and "ok    ids" in said
    (check,) = [check for check in figures(tmp_path / "c.json")["checks"] if check["name"] == "sizes"]
    assert re.fullmatch(
        r"ZeroDivisionError at test_check.py:\d+: in MODEL/model.safetensors of PATH, SECRET", check["text"]
    )


def test_too_little_memory_skips_the_steps(checkpoint, tmp_path, monkeypatch, limner):
    monkeypatch.setattr(training, "available", lambda _: 1000)
    flags = ("--out", tmp_path / "p.html", "--json", tmp_path / "c.json")
    code, said, _ = limner("check", checkpoint, *flags)
    found = states(tmp_path / "c.json")
    assert code == 1 and {found["plan"], *(found[stage] for stage in TRAINING)} == {"skipped"}
    assert "needs more memory" in said and "--no-training" in said


@pytest.mark.slow
def test_where_all_weights_do_not_fit_an_adapter_is_trained(checkpoint, tmp_path, monkeypatch, limner):
    pytest.importorskip("peft", reason="pip install 'limner[peft]'")
    needed = iter([10**12, 10**12, 1, 1])
    monkeypatch.setattr(training.Setup, "predicted", lambda self, run: next(needed, 10**6))
    code, said, err = limner("check", checkpoint, "--out", tmp_path / "p.html", "--json", tmp_path / "c.json")
    assert code == 0, said + err
    assert "plan: an adapter" in said and "warm-up step, gradient of the last adapter" in said


# ---- what cannot be checked, and what is written ----


def test_what_is_no_model_is_bad_input(tmp_path, limner):
    (tmp_path / "empty").mkdir()
    (tmp_path / "janus").mkdir()
    (tmp_path / "janus" / "config.json").write_text('{"model_type": "multi_modality"}')
    for name, words in {
        "empty": "no config.json; this is no model folder",
        "janus": "the original layout of Janus; take deepseek-community/Janus-Pro-1B",
        "nowhere": "no such folder, and not the name of a repository",
    }.items():
        code, _, err = limner("check", tmp_path / name, "--out", tmp_path / "p.html")
        assert code == 2 and words in err and err.count("\n") == 1
    assert not (tmp_path / "p.html").exists()
    code, _, err = limner("check", tmp_path / "empty", "--out", tmp_path / "p.pdf")
    assert code == 2 and ".html" in err


def test_the_page_escapes_hostile_names(checkpoint):
    bad = "</script><img src=x onerror=alert(1)>"
    finding = {"name": bad, "state": "failed", "text": bad, "remedy": bad, "seconds": 1.0, "figures": {}}
    hostile = {
        "model": bad,
        "holds": False,
        "counts": {"failed": 1},
        "checks": [finding],
        "sizes": {bad: bad},
        "versions": {bad: bad},
        "device": {"name": bad},
        "configuration": {bad: [bad, {bad: bad}]},
    }
    page = check_page(hostile, {bad: draw_scene(SCENES[3])}, bad)
    assert "onerror=alert(1)>" not in page and "<img src=x" not in page


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/models/a b/x.json: bad", "MODEL/x.json: bad"),
        ("see /home/me/x and '/tmp/y z'", "see PATH and 'PATH z'"),
        ("text/image, </b> and 1/2", "text/image, </b> and 1/2"),
        ("https://user:word@host/x", "https://SECRET" + "host/x"),
        ("hf_aBcDeFgHiJ0", "SECRET"),
    ],
)
def test_paths_and_tokens_are_taken_out(said, shown):
    assert Private(Path("/models/a b"))(said) == shown


def test_memory_that_plan_got_wrong_is_found(checkpoint, tmp_path):
    setup = training.Setup(model.read(checkpoint, None, {}, "cpu", "auto"), tmp_path, 0, False)
    list(training.check_plan(setup))
    run = setup.grpo_run()
    assert training._memory(setup, run, setup.predicted(run), "GRPO").state == "ok"
    assert training._memory(setup, run, 3 * training.GB, "GRPO").state == "failed"
