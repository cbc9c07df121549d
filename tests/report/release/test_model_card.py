"""The model card: metadata the Hub can read, and nothing claimed that is not known."""

import pytest
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.documents.rendering import to_markdown
from limner.models.sampler.generation import Sampling
from limner.models.writing import Answer
from limner.report.release.lineage import Source, Stage, presentable, summary
from limner.report.release.model_card import Release, eval_files, has_figures, model_card, read_entries, sample_document

GRPO = Stage(
    "grpo",
    {"learning_rate": 1e-5, "adafactor": False, "algorithm": {"max_images": 4}},
    (Source("data/mine", "replayed", 2.0, {"train": {"interleaved": 1200}, "heldout": {}}, {"documents": 1200}),),
    None,
)
ARMS = {
    "arms": {
        "warmup": {"sampled": {"story_exact": {"value": 0.1, "low": 0.05, "high": 0.2, "n": 600}}},
        "grpo": {"sampled": {"story_exact": {"value": 0.9, "low": 0.85, "high": 0.95, "n": 600}}},
    },
    "data": {"tokens": {"interleaved": {"documents": 7, "text": 4321, "image": 160}}},
}
ENTRY = {"dataset_id": "MMIE/MMIE", "task_id": "default", "value": 0.0, "notes": "judge x"}


def card(**changes) -> ModelCard:
    plain = Release("me/tiny", {"language model": "`LlamaForCausalLM`"}, Sampling())
    return ModelCard(model_card(Release(**{**{f: getattr(plain, f) for f in plain.__slots__}, **changes})))


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_what_is_not_known_is_said_to_be_unknown():
    text = card().text
    assert "No evaluation was given" in section(text, "Evaluation")
    assert "Not recorded" in section(text, "Training data") and "Not recorded" in section(text, "Settings")
    assert "None" in section(text, "Samples") and "None was stated" in section(text, "Licence")
    data = card().data
    assert data.pipeline_tag == "any-to-any" and data.library_name == "limner" and "grpo" not in data.tags
    assert data.license is None and data.base_model is None and data.datasets is None


def test_base_licence_and_data_sets():
    data = card(base="org/base", license="mit", datasets=["org/stories"], stages=[GRPO]).data
    assert (data.base_model, data.license, data.datasets) == ("org/base", "mit", ["org/stories"])
    assert "grpo" in data.tags
    validate_repo_id(data.base_model)
    own = card(base="org/base", license="deepseek", license_link="https://example.org/L")
    assert (own.data.license, own.data.license_name, own.data.license_link) == (
        "other",
        "deepseek",
        "https://example.org/L",
    )
    text = section(own.text, "Licence")
    assert "org/base" in text and "[deepseek](https://example.org/L)" in text


def test_data_and_settings_of_the_runs():
    text = card(stages=[GRPO], results={"metrics.json": ARMS}).text
    data, settings = section(text, "Training data"), section(text, "Settings")
    assert "| grpo | `data/mine` | replayed | 2 | train: interleaved 1,200 | documents 1200 |" in data
    assert "| interleaved | 7 | 4,321 | 160 |" in data
    assert "max_images: 4" in settings and "learning_rate: 1.0e-05" in settings and "training/1-grpo.yaml" in settings
    assert "adafactor" not in settings  # the file has it


def test_evaluation_tables():
    text = section(
        card(stages=[GRPO], results={"metrics.json": ARMS, "hub.json": {"eval_results": [ENTRY]}}).text, "Evaluation"
    )
    assert "**grpo** (this model)" in text and "| 0.10 [0.05, 0.20] | 0.90 [0.85, 0.95] |" in text
    assert "| MMIE/MMIE | default | 0.0 |" in text
    flat = section(card(results={"s.json": {"sampled": {"exact": {"value": 0.5, "n": 3}}}}).text, "Evaluation")
    assert "| sampled.exact | 0.50 | 3 |" in flat
    assert not any(map(has_figures, ({}, {"note": "text"}, [1, 2], {"arms": {"a": {}}})))


def test_results_in_the_hubs_format():
    files = eval_files(read_entries({"a.json": {"eval_results": [ENTRY, {**ENTRY, "notes": "strict"}]}, "b.json": {}}))
    assert list(files) == [".eval_results/mmie_default.yaml", ".eval_results/mmie_default_2.yaml"]
    for wrong in ({"dataset_id": "a/b"}, {**ENTRY, "source_name": "no link"}, {**ENTRY, "judge": "x"}):
        with pytest.raises(InputError, match="a.json: eval_results, entry 1"):
            read_entries({"a.json": {"eval_results": [wrong]}})
    assert parse_eval_result_entries([{"dataset": {"id": "a/b", "task_id": "t"}, "value": 1}])[0].value == 1


def test_samples_show_prompt_answer_and_cut(tmp_path):
    prompt = InterleavedDocument((ImageSegment(Image.new("RGB", (100, 90))), TextSegment("Two\nlines <script>")))
    completion = InterleavedDocument(
        (TextSegment("A.", True), ImageSegment(Image.new("RGB", (8, 8), "red"), True, "generated"))
    )
    text = to_markdown(sample_document([Answer(completion, False, True, prompt)]), tmp_path / "samples")
    assert "> Two\n> lines &lt;script>" in text and "samples/2.png" in text and "limit of tokens; an unfinished" in text
    assert Image.open(tmp_path / "samples/1.png").size == (100, 90)
    assert Image.open(tmp_path / "samples/2.png").size == (32, 32)  # enlarged


def test_settings_for_strangers():
    settings = {"hub_token": "hf_x", "judge": {"api_key": "k", "path": "/home/me/secret/judge"}, "list": ["~/a/b", 1]}
    assert presentable(settings) == {"judge": {"path": "judge"}, "list": ["b", 1]}


def test_a_converters_report_in_a_line():
    report = {"documents": 3, "problems": [{"kind": "missing"}, {"kind": "missing"}, {"kind": "remote"}], "empty": {}}
    assert summary(report) == "documents 3; problems 3 (missing 2, remote 1)"
