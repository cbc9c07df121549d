"""Small benchmarks in the published schemas, and a judge for them: what several tests of this folder need."""

import json
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from limner.eval.run import EvalConfig
from limner.models.chat.choice import ChatConfig
from limner.models.chat.endpoint import EndpointConfig

from ..scripted_server import texts

RUBRICS = '''
import nothing_that_exists
SA_RUBRIC = """Judge the story. """
PBL_RUBRIC = """Judge the method. """
MSR_RUBRIC = """Judge the solution. """

def get_prompt(data_id):
    if "SA" in data_id:
        return SA_RUBRIC + "### Question\\n{question}\\n### Answer\\n{answer}\\n### Feedback\\n"
    elif "PBL" in data_id:
        return PBL_RUBRIC + "### Question\\n{question}\\n### Answer\\n{answer}\\n### Feedback\\n"
    elif 'MSR' in data_id:
        return MSR_RUBRIC + "### Question\\n{question}\\n### Answer\\n{answer}\\n### Truth\\n{gt_answer}\\n### End\\n"
    else:
        print("Unknown")

raise SystemExit("this file is data, and must not be run")
'''
"""In the form of the official prompts.py; the words are ours."""
MMIE_IDS = ("SA-1", "SA-2", "PBL-1", "PBL-2", "PBL-SALAD-1", "MSR-1", "MSR-2")


def picture(path: Path, colour: str = "red") -> str:
    """Writes one and returns its name relative to the benchmark's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return f"{path.parent.name}/{path.name}"


def pairs(*texts_and_images: tuple[str | None, str | None]) -> list[dict]:
    return [{"text": text, "image": image} for text, image in texts_and_images]


def write_mmie(folder: Path, ids=MMIE_IDS) -> Path:
    """Seven outputs in the scorer's schema, a picture in each question and answer."""
    records = []
    for identifier in ids:
        asked = picture(folder / "images" / f"{identifier}-q.png", "blue")
        drawn = picture(folder / "images" / f"{identifier}-a.png", "green")
        records.append(
            {
                "id": identifier,
                "question": pairs((f"Question {identifier}.", asked)),
                "answer": pairs((f"Answer to {identifier}.", drawn), ("The end.", None)),
                "model": "m",
                "gt_answer": pairs(("42" if "MSR" in identifier else None, None)),
            }
        )
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "prompts.py").write_text(RUBRICS)
    return folder / "data.json"


def judge_config(url: str, **others) -> ChatConfig:
    settings = {"retries": 2, "backoff": 0.0, "timeout": 20.0, "concurrency": 4, **others}
    return ChatConfig(endpoint=EndpointConfig(url, "scripted", **settings))


def eval_config(answers: Path, out: Path, url: str, **others) -> EvalConfig:
    return EvalConfig(answers=str(answers), out=str(out), judge=judge_config(url), **others)


def results(out: Path | str) -> dict:
    return json.loads((Path(out) / "results.json").read_text())


def asked_about(body: dict) -> str:
    """The id that a question of `write_mmie` names."""
    found = re.search(r"Question ([\w-]+)\.", texts(body))
    assert found, texts(body)
    return found[1]


def asked(server) -> Counter:
    return Counter(asked_about(body) for body in server.bodies)
