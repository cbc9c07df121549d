"""The benchmark of the sampler: all write the same documents, and the ceiling does all that the model must."""

import json

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.sampler.generation import Sampling, generate
from limner.studies.bench import sampler as bench_sampler
from limner.studies.bench.baselines import (
    OneHeadBaseline,
    columns,
    run_ceiling,
    segments,
    write_batched,
    write_unbatched,
)
from limner.studies.bench.models import MODELS, BenchModel
from limner.studies.bench.sampler import STEPS, BenchConfig, Steps, main, peak_bytes, run
from limner.worlds.picture_stories.scenes import SCENES, story_prompt

TEXT = 6


def written(policy, group):
    """(prompt, samples) of documents of three steps."""
    prompt = policy.processor.encode(story_prompt(SCENES[:2]))
    steps = Steps(policy, prompt, TEXT)
    return prompt, generate(policy, [prompt], Sampling(steps.limit, max_images=STEPS, seed=1), group)


def test_documents_have_three_steps_and_rows_differ_in_modality(make_policy):
    policy = make_policy(0)
    _, samples = written(policy, 8)
    control, images = policy.vocabulary.controls, len(policy.vocabulary.image)
    opened = []
    for sample in samples:
        parts = segments(sample.ids_C, policy.vocabulary)
        assert torch.equal(torch.cat(parts), sample.ids_C)
        assert [part[-1].item() for part in parts] == [control.boi, control.eoi] * STEPS + [control.eos]
        assert all(len(part) == images for part in parts[1::2])
        opened.append((sample.ids_C == control.boi).nonzero()[:, 0].tolist())
    places = [sorted(row[picture] for row in opened) for picture in range(STEPS)]
    period = TEXT + 1 + images
    for picture, found in enumerate(places):
        start = TEXT // 2 + picture * period
        assert start <= found[0] < found[-1] < start + TEXT


def check_contenders(policy, baseline):
    """The others write the same ids, or raise; the ceiling scores each choice once, with the sampler's figures."""
    prompt, samples = written(policy, 3)
    documents = [sample.ids_C for sample in samples]
    write_unbatched(baseline, prompt.ids_T, documents[:1])
    write_batched(baseline, prompt.ids_T, documents)

    table, size = columns(documents, policy.vocabulary), policy.vocabulary.text_size
    assert sum(len(column.ids_R) for column in table) == sum(map(len, documents))
    scores = {False: [], True: []}
    logits = baseline.logits

    def recorded(hidden, image, ids):
        scores[image].append(logits(hidden, image, ids))
        return scores[image][-1]

    baseline.logits = recorded
    run_ceiling(baseline, prompt.ids_T, table)
    texts = [part for ids_C in documents for part in segments(ids_C, policy.vocabulary)[::2]]
    assert sum(map(len, scores[False])) == sum(map(len, texts))
    ids = torch.cat([column.ids_R[column.image] for column in table if len(column.image)])
    codes = policy.vocabulary.codes_of(ids).view(len(ids), -1)
    logp = torch.cat(scores[True]).view(*codes.shape, -1).log_softmax(-1).gather(-1, codes[..., None])[..., 0].sum(1)
    order = sorted(range(len(samples)), key=lambda row: -len(documents[row]))
    at = [sample.ids_C >= size for sample in samples]
    sampled = [
        samples[row].logp_C[step]
        for step in range(len(table))
        for row in order
        if step < len(documents[row]) and at[row][step]
    ]
    assert len(sampled) == len(documents) * STEPS * policy.vocabulary.image_length
    assert torch.allclose(logp, torch.stack(sampled), atol=1e-4)


def test_all_write_the_same_documents(make_policy):
    policy = make_policy(0)
    check_contenders(policy, OneHeadBaseline(policy))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "llama_50m"])
def test_all_write_the_same_documents_with_every_class(name):
    policy = MODELS[name].make()
    policy.model.eval()
    check_contenders(policy, MODELS[name].baseline(policy))


def test_other_ids_than_the_wanted_ones_are_an_error(make_policy, monkeypatch):
    policy = make_policy(0)
    prompt, samples = written(policy, 2)
    monkeypatch.setattr("limner.studies.bench.baselines.Wanted.__call__", lambda self, input_ids, scores: scores)
    with pytest.raises(RuntimeError, match="other ids"):
        write_batched(OneHeadBaseline(policy), prompt.ids_T, [sample.ids_C for sample in samples])


def test_the_peak_is_the_largest_sum_of_living_tensors():
    def work():
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = torch.cat([second, second])
        return third[:10].clone()  # a view is no memory of its own

    assert peak_bytes(work) == 4 * (1000 + 2000 + 10)


@pytest.mark.slow
def test_figures_and_table(make_policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "small", BenchModel(lambda: make_policy(0)))
    flags = ["--models", "small", "--groups", "2", "--turns", "2", "--text_tokens", "3"]
    main([*flags, "--json", str(tmp_path / "bench.json")])
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["model"], row["group"]) for row in figures["rows"]] == [("small", 2)]
    for row in figures["rows"]:
        names = {"limner", "unbatched", "batched", "ceiling"}
        assert set(row["tokens_per_second"]) == set(row["peak_bytes"]) == names
        assert min(row["tokens_per_second"].values()) > 0
        assert row["peak_bytes"]["unbatched"] < row["peak_bytes"]["batched"]
        assert {len(way["seconds"]) for way in row["unequal_lengths"].values()} == {2}
        assert 0 < row["waits_a_step"]["limner"] < row["waits_a_step"]["batched"]
        for name, ratio in row["limner_over"].items():
            paired = [a / b for a, b in zip(row["turns"]["limner"], row["turns"][name], strict=True)]
            assert ratio == pytest.approx({"value": sum(paired) / 2, "low": min(paired), "high": max(paired)})
    printed = capsys.readouterr().out
    assert ">= 1.50" in printed and "missed:" in printed and printed.count("small") >= 4


@pytest.mark.parametrize(
    "changes, named", [({"models": ["gpt"]}, "tiny_llama"), ({"groups": []}, "groups"), ({"turns": 0}, "turns")]
)
def test_settings_that_cannot_be_are_refused(changes, named):
    with pytest.raises(InputError, match=named):
        run(BenchConfig(**changes))


def test_a_goal_that_is_missed_is_named():
    ratio = {"value": 1.0, "low": 1.0, "high": 1.0}
    over = {name: ratio for name in bench_sampler.GOALS}
    rates = dict.fromkeys(("limner", *over), 1.0)
    row = {"model": "m", "group": 8, "tokens_per_second": rates, "limner_over": over, "limner_over_cpu": over}
    row |= {"waits": {"text": 1.0, "picture": 0.0}, "waits_a_step": {"limner": 0.5, "batched": 9.0}}
    row["unequal_lengths"] = {"refilled": {"steps": 7, "rows": 14, "seconds": [1.0]}}
    row["unequal_lengths"]["waves"] = {"steps": 9, "rows": 13, "seconds": [2.0]}
    settings = {"device": "cpu", "threads": 1, "torch": "", "transformers": "", "steps": STEPS, "groups": [8]}
    printed = bench_sampler.table({"rows": [{**row, "peak_bytes": rates}], "settings": settings})
    assert "missed: m 8 unbatched, m 8 batched\n" in printed
    assert "7 / 14" in printed and "9 / 13" in printed and "2.00 [2.00, 2.00]" in printed
