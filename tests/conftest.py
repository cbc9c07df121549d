"""Fixtures of many tests: a tiny processor, fresh tiny policies over it, and the folder of real data."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from limner.cli import main
from limner.models.documents.document import TextSegment
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.pictures.contract import VQImageTokenizer
from limner.models.tokens.processing import Processor
from limner.models.tokens.text_tokenizer import train_text_tokenizer
from limner.worlds.picture_stories.scenes import QUESTIONS, SCENES, draw_scene, story

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=50, help="processes that tests/kills kills (default 50)")
    parser.addoption("--fuzz-cases", type=int, default=2000, help="spoilt inputs of tests/fuzz (default 2000)")
    parser.addoption("--fuzz-requests", type=int, default=5000, help="of tests/serve/test_load.py (default 5000)")
    parser.addoption("--fuzz-only", default="", metavar="'TARGET N'", help="one of them alone")


@pytest.fixture(scope="module", autouse=True)
def _what_lives_on_is_not_searched_for_garbage() -> Iterator[None]:
    """Training begins with a collection (accelerate's `free_memory`), which walks all that was ever imported."""
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(scope="session")
def processor() -> Processor:
    """A small vocabulary that knows the world's wording; untrained image codes, 16 of 32 kinds an image."""
    documents = [story(SCENES[i : i + 2]) for i in range(0, len(SCENES), 2)]
    texts = [segment.text for d in documents for segment in d.segments if isinstance(segment, TextSegment)]
    texts += [*QUESTIONS.values(), "Describe the picture.", "Draw: "] * 4
    torch.manual_seed(0)
    image_tokenizer = VQImageTokenizer.create(image_size=32, patch=8, channels=(16,), codes=32, code_size=8).eval()
    with torch.no_grad():  # codes that pictures really have, so that different ones have different codes
        latents = image_tokenizer.latents(image_tokenizer.pixels([draw_scene(scene) for scene in SCENES]))
        latents = torch.unique(latents.movedim(1, -1).reshape(-1, 8), dim=0)
        image_tokenizer.model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:32]])
    return Processor(train_text_tokenizer(texts, 512), image_tokenizer)


@pytest.fixture(scope="session")
def make_policy(processor: Processor) -> Callable[..., SharedVocabularyPolicy]:
    """`make_policy(seed)`: a new stock Llama of random weights, fp32, in evaluation mode; its owner may train it.

    It prefers some tokens to others; about one text token in eight opens an image, one in twenty ends the document.
    """

    def make(seed: int = 0) -> SharedVocabularyPolicy:
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
        policy = SharedVocabularyPolicy.create(config, processor)
        policy.model.float().eval()
        control = policy.vocabulary.controls
        with torch.no_grad():
            # Every token pushes the hidden state's first number down, so the head's first column is a bias.
            weight = policy.model.get_input_embeddings().weight.normal_(std=0.3)
            weight[:, 0] = -0.5
            weight[control.boi, 0], weight[control.eos, 0] = -5.0, -4.5
        return policy

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real documents and benchmark records, which the repository does not carry; a test that needs them is skipped."""
    given = os.environ.get("LIMNER_TEST_DATA")
    path = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data in {path}; set LIMNER_TEST_DATA to a folder that holds it")
    return path


@pytest.fixture
def limner(monkeypatch, capsys):
    """Runs `limner ARGS` in this process; returns (exit code, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["limner", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
