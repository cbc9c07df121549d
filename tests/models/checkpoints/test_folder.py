"""Checkpoints: what is saved is loaded, by us and by the stock libraries; whole or not at all; damage is named."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from limner.configs import whole
from limner.configs.errors import InputError
from limner.configs.registry import entries
from limner.configs.whole import whole_directory
from limner.models.checkpoints import folder as checkpoint
from limner.models.checkpoints.folder import about, load, save
from limner.models.checkpoints.hub import load_model, save_model
from limner.models.policy import family
from limner.models.tokens.sequence import collate
from limner.models.writing import About, Model
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy(5)


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / "model"
    save(policy, directory)
    return directory


def scores(policy):
    batch = collate([policy.processor.encode_all([story(SCENES[:2]), story(SCENES[5:8])])], policy.vocabulary)
    with torch.no_grad():
        return policy.log_probs(policy.model, batch)[0]


def files(directory: Path):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_a_checkpoint_says_of_itself(policy, saved, tmp_path):
    assert about(saved) == About() and "about" not in (saved / checkpoint.SETTINGS_FILE).read_text()
    said = About("Tales of <b>dots</b>.", ("Draw: a red dot.", "A blue one?"))
    save_model(Model(policy, said), tmp_path / "a")
    save_model(load_model(tmp_path / "a", "cpu"), tmp_path / "b")
    assert about(tmp_path / "b") == said
    file = tmp_path / "b" / checkpoint.SETTINGS_FILE
    settings = json.loads(file.read_text())
    for wrong in ("tales", {"examples": "Draw."}, {"examples": [1]}, {"knows": None}, {"exampels": []}):
        file.write_text(json.dumps({**settings, "about": wrong}))
        with pytest.raises(InputError, match=r'limner.json: about: give \{"knows": .*, or leave it out'):
            about(tmp_path / "b")


def test_what_is_saved_is_loaded(policy, saved):
    loaded = load(saved)
    assert type(loaded) is type(policy) and loaded.vocabulary == policy.vocabulary and not loaded.model.training
    assert torch.equal(scores(loaded), scores(policy))
    words = "A small <eos> circle.\n\t \U0001f373 <boi>"
    assert loaded.processor.text_ids(words) == policy.processor.text_ids(words)
    assert loaded.processor.tokenizer.decode(loaded.processor.text_ids(words)) == words
    pictures = [draw_scene(scene) for scene in SCENES[:3]]
    ours, theirs = policy.processor.image_tokenizer, loaded.processor.image_tokenizer
    codes = np.stack(ours.encode(pictures))
    assert np.array_equal(np.stack(theirs.encode(pictures)), codes) and theirs.fingerprint() == ours.fingerprint()
    for a, b in zip(theirs.decode(codes), ours.decode(codes), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def test_stock_libraries_load_it(policy, saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(saved)
    images = VQModel.from_pretrained(saved / "image_tokenizer")
    sequence = policy.processor.encode(story(SCENES[:2]))
    size, target = policy.vocabulary.text_size, sequence.ids_T[1:]
    with torch.no_grad():
        logits = model(input_ids=sequence.ids_T[None]).logits[0, :-1]
    # Image code c is the model's id V + c, and an image position is a choice among the codes alone.
    expected = torch.zeros(len(target))
    for t, i in enumerate(target.tolist()):
        allowed = torch.arange(size, size + 32) if i >= size else torch.arange(size)
        kept = allowed[~torch.isin(allowed, torch.tensor(policy.vocabulary.never_sampled))]
        if sequence.trainable_T[t + 1]:
            expected[t] = logits[t, i] - logits[t, kept].logsumexp(0)
    batch = collate([[sequence]], policy.vocabulary)
    with torch.no_grad():
        logp_T = policy.log_probs(policy.model, batch)[0][0, 1:]
    torch.testing.assert_close(logp_T, expected, atol=1e-5, rtol=1e-5)
    assert tokenizer.encode("A small circle.", add_special_tokens=False) == policy.processor.text_ids("A small circle.")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert torch.equal(images.quantize.embedding.weight, policy.processor.image_tokenizer.codebook())


def test_it_may_be_read_by_whom_the_umask_lets(policy, tmp_path):
    """safetensors makes its files for their owner alone."""
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            save(policy, tmp_path / "model")
        finally:
            os.umask(before)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*") if path.is_file()}
        assert set(modes.values()) == {mode}, modes


def test_no_path_of_this_machine_is_in_it(saved, tmp_path):
    """diffusers notes from which folder an image tokenizer was read."""
    save(load(saved), tmp_path / "again")
    name = Path("image_tokenizer/config.json")
    assert files(tmp_path / "again")[name] == files(saved)[name]
    assert all(str(saved.parent).encode() not in data for data in files(tmp_path / "again").values())


def test_nothing_in_it_is_a_pickle_or_code(saved):
    for name, data in files(saved).items():
        assert name.suffix in (".json", ".safetensors"), name
        assert name.suffix != ".json" or json.loads(data) is not None
    assert json.loads((saved / "limner.json").read_text())["family"] == "shared_vocabulary"


def test_a_family_is_registered_under_the_name_that_its_checkpoints_have():
    names = list(entries("family"))
    assert {"shared_vocabulary", "chameleon", "emu3", "janus"} <= {*names}
    assert [family(name).family for name in names] == names


def test_saving_over_a_checkpoint_replaces_it(make_policy, policy, saved, tmp_path):
    save(make_policy(6), tmp_path / "model")
    (tmp_path / "model" / "stale.safetensors").write_bytes(b"")
    save(policy, tmp_path / "model")
    assert files(tmp_path / "model") == files(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fails_at", ["save_pretrained", "rename"])
def test_a_failed_save_leaves_the_old_checkpoint(make_policy, saved, tmp_path, monkeypatch, fails_at):
    shutil.copytree(saved, tmp_path / "model")
    policy = make_policy(6)

    def full(*_args, **_options):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        if fails_at == "save_pretrained":  # the language model is written by then, the image tokenizer not
            patch.setattr(type(policy.processor.image_tokenizer), "save_pretrained", full)
        else:
            patch.setattr(whole, "_exchange", full)
        with pytest.raises(InputError, match="model: cannot be written: No space left"):
            save(policy, tmp_path / "model")
    assert files(tmp_path / "model") == files(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(KeyboardInterrupt), whole_directory(tmp_path / "new") as staging:
        (staging / "half").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave the name, and files that are empty."""
    events, fsync, rename = [], os.fsync, Path.rename

    def synced(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(path, to):
        found = rename(path, to)
        events.append("renamed")
        return found

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with whole_directory(tmp_path / "new") as staging:
        (staging / "part").mkdir()
        (staging / "part" / "weights").write_text("x")
    at = events.index("renamed")
    assert {*events[:at]} == {staging, staging / "part", staging / "part" / "weights"}
    assert events[at:] == ["renamed", tmp_path]


def refused(directory, says):
    with pytest.raises(InputError, match=says) as error:
        load(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)


def test_what_is_no_checkpoint_is_named(saved, tmp_path):
    refused(tmp_path / "nowhere", "nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no limner.json")
    refused(saved / "image_tokenizer", "no limner.json; .* `limner convert .*image_tokenizer --out DIR`")


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("{", "not a checkpoint description"),
        ("[1]", "not a checkpoint description"),
        ("{}", "not a checkpoint description"),
        ('{"family": "shared_vocabulary"}', "not a checkpoint description"),
        ('{"family": "shared_vocabulary", "format": 2}', "format 2; this limner reads 1"),
    ],
)
def test_a_bad_description_is_named(tmp_path, description, says):
    (tmp_path / "limner.json").write_text(description)
    refused(tmp_path, says)


@pytest.mark.parametrize("family", ['"telepathy"', '["shared_vocabulary"]'])
def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path, family):
    (tmp_path / "limner.json").write_text(f'{{"format": 1, "family": {family}}}')
    with pytest.raises(InputError, match="no base-model family is called .*shared_vocabulary"):
        load(tmp_path)


def drop_a_weight(path):
    weights = load_file(path)
    del weights[sorted(weights)[1]]
    save_file(weights, path, metadata={"format": "pt"})


def resize(path):
    config = json.loads(path.read_text())
    for name, value in {"vocab_size": 400, "num_vq_embeddings": 16}.items():
        if name in config:
            config[name] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "image_tokenizer/config.json",
        "image_tokenizer/diffusion_pytorch_model.safetensors",
        "image_tokenizer/image_tokenizer.json",
    ],
)
def test_a_damaged_checkpoint_is_refused(saved, tmp_path, name):
    """Never loaded with weights of chance in the place of those that are missing."""
    damages = [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:20]), lambda p: p.write_bytes(b"[]")]
    damages += [drop_a_weight] if name.endswith("safetensors") else []
    damages += [resize] if name.endswith("config.json") else []
    for number, damage in enumerate(damages):
        directory = shutil.copytree(saved, tmp_path / str(number))
        damage(directory / name)
        refused(directory, "/image_tokenizer" if "/" in name else f"{directory}: ")


def test_a_missing_image_tokenizer_is_named(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "model", ignore=shutil.ignore_patterns(checkpoint.IMAGE_TOKENIZER))
    refused(directory, "model/image_tokenizer: no image_tokenizer.json")


def test_remote_code_is_never_run(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "model")
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}
    (directory / "config.json").write_text(json.dumps(config))
    refused(directory, "custom code")
    assert not (tmp_path / "ran").exists()


def test_a_language_model_too_small_for_its_tokenizers_is_refused(policy, saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.resize_token_embeddings(policy.vocabulary.text_size + 31)
    model.save_pretrained(directory)
    with pytest.raises(InputError, match=r"has \d+ ids, its tokenizers need"):
        load(directory)


def test_saving_and_loading_draw_no_bars_and_leave_those_of_others(policy, tmp_path):
    drawn = []

    def seen(factory, args, kwargs):
        drawn.append(kwargs.get("desc"))
        return factory(*args, **kwargs)

    previous = logging.set_tqdm_hook(seen)
    try:
        save(policy, tmp_path / "model")
        load(tmp_path / "model")
        assert not drawn
        assert list(logging.tqdm([1], desc="mine")) == [1] and drawn == ["mine"]
    finally:
        logging.set_tqdm_hook(previous)
