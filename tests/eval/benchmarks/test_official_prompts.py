"""Judge prompts read from a script: by the names they stand under, in several shapes, and never by running it."""

import pytest

from limner.configs.errors import InputError
from limner.eval.benchmarks.interleavedbench import ASPECTS, PROMPT_NAMES, InterleavedBenchConfig, official_templates
from limner.eval.benchmarks.official_prompts import read_prompts
from limner.eval.run import evaluate
from limner.models.chat.requests import Reply
from limner.rewards.judges.grading import read_verdict

from ...scripted_server import ScriptedServer, images, texts
from ..benchmark_data import eval_config, results
from .test_interleavedbench import REPORT, write_bench

RUBRIC = "Rate how well the answer does in what is said above, from 0 to 5, and say why in a sentence or two. "
DICT = f'''
import nothing_that_exists
RUBRIC = {RUBRIC!r}
PROMPTS = {{
    "text_quality": "Is the text good? " + RUBRIC,
    "Perceptual Quality": "Are the pictures good? " + RUBRIC,
    "image-coherence": f"Do the pictures belong together? {{RUBRIC}}",
    "textImageCoherence": "Do text and pictures fit? " + RUBRIC,
    "helpfulness": """Does it help? """ + RUBRIC,
}}
TITLES = {{"helpfulness": "Helpfulness"}}
raise SystemExit("this file is data, and must not be run")
'''
BRANCHES = f"""
def get_prompt(aspect, instruction, output):
    rubric = {RUBRIC!r}
    if aspect == "text quality":
        return f"Text? {{rubric}} INPUT: {{instruction}} OUTPUT: {{output}} Score:"
    elif aspect == "perceptual":
        prompt = f"Pictures? {{rubric}} INPUT: {{instruction}} OUTPUT: {{output}} Score:"
    elif aspect == "text-image coherence":
        return f"Fit? {{rubric}} INPUT: {{instruction}} OUTPUT: {{output}} Score:"
    elif aspect == "image coherence":
        return f"Together? {{rubric}} INPUT: {{instruction}} OUTPUT: {{output}} Score:"
    return prompt
HELP = "Help? "
"""


def script(folder, text):
    (folder / "interleavedeval_gpt4o.py").write_text(text)
    return folder / "interleavedeval_gpt4o.py"


def test_texts_are_found_by_their_names(tmp_path):
    prompts, sha256 = read_prompts(script(tmp_path, DICT), PROMPT_NAMES, {})
    assert {key: prompt.text.partition("?")[0] for key, prompt in prompts.items()} == {
        "text_quality": "Is the text good",
        "perceptual_quality": "Are the pictures good",
        "image_coherence": "Do the pictures belong together",
        "text_image_coherence": "Do text and pictures fit",
        "helpfulness": "Does it help",
    }
    assert prompts["helpfulness"].names == "PROMPTS.helpfulness" and len(sha256) == 64
    assert all(prompt.text.count("{prompt}") == prompt.text.count("{answer}") == 1 for prompt in prompts.values())


def test_places_are_those_of_the_script(tmp_path):
    """What no name tells is asked for, and may be put together from two texts."""
    path = script(tmp_path, BRANCHES)
    with pytest.raises(
        InputError, match=r"none of .*get_prompt.text quality.* is the prompt of helpfulness.*prompt_names"
    ):
        read_prompts(path, PROMPT_NAMES, {})
    with pytest.raises(InputError, match="no text is called 'HELPS'; there are .*HELP"):
        read_prompts(path, PROMPT_NAMES, {"helpfulness": "HELPS"})
    chosen = {"helpfulness": "HELP + get_prompt.rubric"}
    prompts, _ = read_prompts(path, PROMPT_NAMES, chosen)
    assert prompts["text_image_coherence"].text == f"Fit? {RUBRIC} INPUT: {{prompt}} OUTPUT: {{answer}} Score:"
    assert prompts["perceptual_quality"].names == "get_prompt.perceptual.prompt"
    assert prompts["helpfulness"].text.startswith(f"Help?\n\n{RUBRIC.strip()}\n\nThe request:\n{{prompt}}")
    two = DICT.replace("TITLES = ", f'HELP = "Another one. " + {RUBRIC!r}\nTITLES = ')
    with pytest.raises(InputError, match="HELP.* may all be the prompt of helpfulness"):
        read_prompts(script(tmp_path, two), PROMPT_NAMES, {})
    with pytest.raises(InputError, match="interleavedeval_gpt4o.py: cannot be read"):
        read_prompts(script(tmp_path, "def ("), PROMPT_NAMES, {})


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Fine.\nScore: 4", 4),
        ("**Score**: 3/5", 3),
        ('{"reason": "so", "score": 2}', 2),
        ("5", 5),
        ("Score (0-5): 1", 1),  # not the 0 of the scale
        ("Score: 0-5", None),
        ("Score: 7", None),
        ("4 of the pictures are good.", None),
        ("Score: 2, I mean score: 3", None),
    ],
)
def test_scores_are_read_strictly(reply, score, tmp_path):
    templates, _ = official_templates(InterleavedBenchConfig(prompts=str(script(tmp_path, DICT))))
    verdict = read_verdict(Reply(reply), templates["helpfulness"])
    assert verdict.score == score and bool(verdict.failure) == (score is None)


def test_a_run_with_official_prompts(tmp_path):
    """The judge is asked with them, and manifest and report say so."""
    path = script(tmp_path, DICT)
    with ScriptedServer(lambda body: "Score: 4") as server:
        config = eval_config(
            write_bench(tmp_path / "data", REPORT),
            tmp_path / "out",
            server.url,
            benchmark="interleavedbench",
            options={"prompts": str(path)},
        )
        assert evaluate(config)
        bodies = server.bodies
    assert len(bodies) == 5 and all(RUBRIC.strip() in texts(body) and len(images(body)) == 2 for body in bodies)
    assert all("Continue 0." in texts(body) and "Answer 0." in texts(body) for body in bodies)
    outcome = results(tmp_path / "out")
    assert outcome["scores"]["AVG"]["value"] == 4
    used = outcome["manifest"]["scoring"]["prompts"]
    assert used["file"] == path.name and used["names"]["text_quality"] == "PROMPTS.text_quality"
    assert set(used["names"]) == set(ASPECTS)
    assert any("the official ones" in caveat for caveat in outcome["caveats"])


def test_settings_that_exclude_each_other():
    for words, settings in {
        "templates: with prompts": {"prompts": "a.py", "templates": {"helpfulness": "b.yaml"}},
        "prompt_names: name the file": {"prompt_names": {"helpfulness": "A"}},
        "prompt_names: 'help' is no aspect": {"prompts": "a.py", "prompt_names": {"help": "A"}},
    }.items():
        with pytest.raises(InputError, match=words):
            InterleavedBenchConfig(**settings)
