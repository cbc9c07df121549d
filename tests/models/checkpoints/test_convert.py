"""`limner convert`: every published layout becomes a checkpoint that is the same model; what is missing is named."""

import json
import shutil

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
)

from limner import cli
from limner.configs.errors import InputError
from limner.models.checkpoints.convert import convert, family_of
from limner.models.checkpoints.folder import load
from limner.models.families.janus.policy import JanusPolicy
from limner.models.pictures.vqgan import ChameleonImageTokenizer
from limner.models.tokens.sequence import collate
from limner.worlds.picture_stories.scenes import SCENES, story

from ..families.tiny import published_janus
from ..families.tiny_vq import (
    CODES,
    SIDE,
    TEXT,
    ids_of,
    own_ids,
    published_chameleon,
    published_emu3,
    published_liquid,
    published_tokenizer,
    released_vqgan,
    vqgan,
)


def published_llama(directory, model_class=LlamaForCausalLM, config_class=LlamaConfig, **settings):
    """A language model that knows nothing of pictures."""
    tokenizer = published_tokenizer(("<pad>", "<s>", "</s>"), (), code_is_special=False)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "num_key_value_heads": 2, **TEXT, **ids_of(tokenizer)}
    make = getattr(model_class, "from_config", model_class)
    make(config_class(**sizes, **settings)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    ChameleonImageTokenizer(vqgan(0)).save_pretrained(folder)
    return folder


@pytest.fixture
def released(tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    return released_vqgan(folder)


def scores_of_text(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


@pytest.mark.parametrize("kind", ["emu3", "anole", "chameleon", "liquid", "llama"])
def test_a_converted_checkpoint_is_the_same_model(kind, tmp_path, released, pictures, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    {
        "emu3": published_emu3,
        "anole": published_chameleon,
        "chameleon": lambda folder: published_chameleon(folder, decoder=False),
        "liquid": published_liquid,
        "llama": published_llama,
    }[kind](source)
    flags = {
        "emu3": ["--image-size", str(SIDE)],
        "chameleon": ["--image-tokenizer", str(released)],
        "liquid": ["--image-tokenizer", str(released.parent)],
        "llama": ["--image-tokenizer", str(pictures)],
    }
    cli.run(["convert", str(source), "--out", str(out), *flags.get(kind, [])])
    expected = {"anole": "chameleon", "liquid": "shared_vocabulary", "llama": "shared_vocabulary"}.get(kind, kind)
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"{out}: family {expected}, " in said and f"pictures of 4 x 4 codes of {CODES} (" in said
    assert said.startswith("wrote ") and said.endswith(
        f"next: limner warmup --config warmup/documents --model {out} --data DIR"
    )
    policy = load(out)
    assert policy.family == expected
    sequence = policy.processor.encode(story(SCENES[:2]))
    ids = own_ids(policy, sequence.ids_T)
    stock = (policy.model_class if kind != "llama" else AutoModelForCausalLM).from_pretrained(source).eval()
    size = policy.vocabulary.text_size
    if kind == "llama":  # it knew no codes and no controls
        ids, size = ids[:, ids[0] < stock.config.vocab_size], stock.config.vocab_size
    text = [i for i in range(size) if i not in {*policy.processor.code_ids}]
    assert torch.allclose(scores_of_text(policy.model, ids)[:, text], scores_of_text(stock, ids)[:, text], atol=1e-6)
    batch = collate([[sequence]], policy.vocabulary)
    with torch.no_grad():
        logp_BT, _ = policy.log_probs(policy.model, batch)
    assert torch.isfinite(logp_BT).all() and (logp_BT[batch.trainable_BT] < 0).all()


def test_janus_brings_all_its_parts(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    published_janus(source)
    loaded, direct = convert(source, out), JanusPolicy.from_upstream(source)
    batch = collate([[direct.processor.encode(story(SCENES[:2]))]], direct.vocabulary)
    with torch.no_grad():
        assert torch.equal(*(p.log_probs(p.model, batch)[0] for p in (loaded, direct)))
    refused(
        "--image-tokenizer: model family 'janus' does not take it", source, tmp_path / "new", image_tokenizer=source
    )


def refused(says, source, out, **options):
    with pytest.raises(InputError, match=says) as error:
        convert(source, out, **options)
    assert "\n" not in str(error.value) and not out.exists()


def test_what_is_missing_is_named(tmp_path, released, pictures):
    source, out = tmp_path / "source", tmp_path / "out"
    refused("source: no such folder", source, out)
    published_llama(source)
    refused("a language model alone; name its image tokenizer", source, out)
    refused("nowhere: no image tokenizer", source, out, image_tokenizer=tmp_path / "nowhere")
    refused("--image-size: model family 'shared_vocabulary' does not take it", source, out, image_size=8)
    refused("no base-model family is called 'vila'", source, out, family_name="vila")
    weights = source / "model.safetensors"
    kept = weights.read_bytes()
    torch.save({}, source / "pytorch_model.bin")
    weights.unlink()
    refused("source: cannot be read: .*model.safetensors", source, out, image_tokenizer=pictures)
    weights.write_bytes(kept)
    (source / "tokenizer.json").unlink()
    refused("source: no tokenizer.json", source, out, image_tokenizer=pictures)
    config = json.loads((source / "config.json").read_text())
    del config["model_type"]
    (source / "config.json").write_text(json.dumps(config))
    refused("config.json: cannot be read: 'model_type'", source, out)


def test_another_models_tokenizer_is_refused(tmp_path, released):
    source = tmp_path / "source"
    published_chameleon(source, decoder=False)
    published_tokenizer(("<pad>", "<s>", "</s>"), (), code_is_special=False).save_pretrained(source)
    refused("the tokenizer has no token <racm3:break>", source, tmp_path / "out", image_tokenizer=released)


def test_nothing_else_is_overwritten(tmp_path, pictures):
    source, out = tmp_path / "source", tmp_path / "out"
    published_llama(source)
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"out: exists and is no checkpoint of limner's"):
        convert(source, out, image_tokenizer=pictures)
    assert (out / "thesis.tex").read_text() == "x"
    convert(source, tmp_path / "model", image_tokenizer=pictures)
    convert(source, tmp_path / "model", overwrite=True, image_tokenizer=pictures)
    refused("is a checkpoint of limner's already", tmp_path / "model", out.with_name("new"))


def test_a_model_that_does_more_than_head_and_decoder_is_refused(tmp_path, pictures):
    """Cohere multiplies its scores by a constant; without it we would sample from another distribution."""
    published_llama(tmp_path / "source", CohereForCausalLM, CohereConfig, logit_scale=0.0625)
    says = "CohereForCausalLM: its scores are not those of its decoder and head"
    refused(says, tmp_path / "source", tmp_path / "out", image_tokenizer=pictures)


@pytest.mark.parametrize(
    ("config_class", "dtype"),
    [(MistralConfig, torch.bfloat16), (Phi3Config, torch.float32), (Gemma3TextConfig, torch.float32)],
)
def test_a_window_is_looked_behind(config_class, dtype, tmp_path, pictures, monkeypatch):
    """The comparison is on more tokens than the window has: with the mask of another model it does not hold."""
    settings = {"sliding_window": 40, "head_dim": 16, "initializer_range": 0.2, "dtype": dtype}
    published_llama(tmp_path / "source", AutoModelForCausalLM, config_class, **settings)
    convert(tmp_path / "source", tmp_path / "out", image_tokenizer=pictures)
    monkeypatch.setattr("limner.models.attention._in_window", lambda mask, window: mask)
    says = r"its attention on 88 tokens is not that of its configuration \(layer types: .*sliding_attention\)"
    refused(says, tmp_path / "source", tmp_path / "new", image_tokenizer=pictures)


def test_a_rope_that_switches_is_said(tmp_path, pictures, capsys):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    published_llama(tmp_path / "source", rope_parameters=rope)
    words = [str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--image-tokenizer", str(pictures)]
    cli.run(["convert", *words])
    assert "prompt and answer together have at most 512 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"model_type": "multi_modality"}, "original layout of Janus; take deepseek-community/Janus-Pro-1B"),
        ({"model_type": "Emu3"}, "original layout of Emu3; take BAAI/Emu3-Chat-hf"),
        ({"model_type": "showo"}, "no model type 'showo'"),
        ({"model_type": ["llama"]}, "no model type"),
        (None, "no config.json.*original layout of Chameleon or Anole: take"),
    ],
)
def test_a_layout_of_other_code_is_named_with_what_to_take(tmp_path, written, words):
    if written is None:
        (tmp_path / "models" / "7b").mkdir(parents=True)
        (tmp_path / "models" / "7b" / "consolidated.00.pth").write_bytes(b"")
    else:
        (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=words):
        family_of(tmp_path)


def test_the_family_is_found_by_the_model_type(tmp_path):
    for kind, name in {
        "chameleon": "chameleon",
        "emu3": "emu3",
        "janus": "janus",
        "qwen3": "shared_vocabulary",
    }.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert family_of(tmp_path).family == name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of repositories, ORG/NAME, and what was asked of them; only the files asked for reach the cache."""
    asked = []

    def snapshot_download(name, revision=None, allow_patterns=None):
        asked.append((name, revision, tuple(allow_patterns)))
        source, snapshot = tmp_path / "hub" / name, tmp_path / "cache" / name / "c0ffee"
        if not source.is_dir():
            raise OSError("401 Client Error")
        files = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, snapshot / file)
        return str(snapshot)

    monkeypatch.setattr("limner.models.checkpoints.hub.snapshot_download", snapshot_download)
    return asked


def test_an_original_of_the_hub_is_fetched_once_its_settings_will_do(hub, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published_llama(tmp_path / "hub" / "org" / "base")
    (tmp_path / "hub" / "org" / "base" / "code.py").write_text("raise SystemExit")
    convert("org/base", tmp_path / "out", image_tokenizer=pictures)
    assert [asked[:2] for asked in hub] == [("org/base", None), ("org/base", "c0ffee")]
    assert load(tmp_path / "out").family == "shared_vocabulary"
    assert not list((tmp_path / "cache").rglob("*.py"))

    (tmp_path / "hub" / "org" / "other").mkdir()
    (tmp_path / "hub" / "org" / "other" / "config.json").write_text('{"model_type": "showo"}')
    hub.clear()
    with pytest.raises(InputError, match="^org/other: transformers has no model type 'showo'"):
        convert("org/other", tmp_path / "out2")
    assert len(hub) == 1, "its weights were not fetched"
    with pytest.raises(
        InputError, match="^org/none: neither a folder here nor a repository that the Hub lets you read"
    ):
        convert("org/none", tmp_path / "out2")
    with pytest.raises(InputError, match="^base: no such folder, and not the name of a repository"):
        convert("base", tmp_path / "out2")
    with pytest.raises(InputError, match="^demo: is a checkpoint of limner's already"):
        convert("demo", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_a_checkpoint_is_replaced_only_when_asked(pictures, tmp_path):
    published_llama(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", image_tokenizer=pictures)
    (tmp_path / "out" / "mark").touch()
    with pytest.raises(InputError, match="--out .*out: holds a checkpoint; name another folder, or give --overwrite"):
        convert(tmp_path / "source", tmp_path / "out", image_tokenizer=pictures)
    assert (tmp_path / "out" / "mark").exists()
    words = [str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--image-tokenizer", str(pictures)]
    cli.run(["convert", *words, "--overwrite"])
    assert not (tmp_path / "out" / "mark").exists() and load(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="exists and is no checkpoint of limner's"):
        convert(tmp_path / "source", tmp_path / "mine", overwrite=True, image_tokenizer=pictures)
