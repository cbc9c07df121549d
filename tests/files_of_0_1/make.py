"""Makes the files beside it with the limner of commit 88336bf; README.md says how. The imports are those of then."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig

from limner import cli
from limner.data.picture_stories import SCENES, draw_scene, outlines, story, story_prompt
from limner.data.prompts import write_outlines
from limner.data.shards import ShardWriter, read_documents
from limner.models.checkpoint import load, save
from limner.models.generation import Sampling, generate
from limner.models.image_tokenizer import VQImageTokenizer
from limner.models.processing import Processor
from limner.models.shared_vocabulary import SharedVocabularyPolicy
from limner.models.text_tokenizer import train_text_tokenizer
from limner.models.writing import write
from limner.retrieval.index import Index
from limner.train.trajectories import read_trajectories

COMMANDS = """
data from-markdown markdown --out shards --heldout-share 0.3
index markdown --out index --text-encoder none
warmup --model start --sources "[{path: shards, weight: 1}, {path: stories, weight: 9}]" --output_dir warmup
    --max_steps 800 --pack_length 160 --learning_rate 1e-2
    --per_device_train_batch_size 2 --heldout_batches 1 --save_strategy no --logging_steps 200 --report_to none
    --use_cpu true
grpo --model warmup/model --prompts prompts.jsonl --output_dir grpo --max_steps 3 --save_steps 2
    --rewards "{format: 1, text_plan: 1, image_plan: 1, image_sentence: 1}"
    --algorithm.process_weight 1 --algorithm.beta "{text: 0.1, image: 0.1}"
    --algorithm.entropy_bonus "{text: 0.1, image: 0.1}"
    --num_generations 4 --per_device_train_batch_size 8 --max_completion_length 80 --learning_rate 1e-2
    --preflight false --trajectories_every 2 --logging_steps 1 --report_to none --use_cpu true --bf16 false
    --activation_checkpointing false
eval --benchmark picture_stories --model grpo/model --data prompts.jsonl --out eval --sampling.max_new_tokens 80
"""
SPLITS = ("train", "heldout")
QUESTIONS = ("Where is the big blue square?", "purple diamond")
PROMPT = story_prompt(outlines(1, 1)[0])


def main() -> None:
    torch.set_num_threads(1)
    write_markdown(Path("markdown"))
    write_outlines(Path("prompts.jsonl"), [outline for outline in outlines(0, 30) if len(outline) == 2][:4])
    with ShardWriter("stories") as writer:
        for number, scene in enumerate(SCENES):
            writer.write(story((scene, SCENES[7 * number % len(SCENES)])))
    save(start(), Path("start"))
    for command in COMMANDS.strip().replace("\n    ", " ").splitlines():
        cli.run(shlex.split(command))
    for name in ("start", "stories", "grpo/checkpoint-3"):  # from 2 a resumed run has a step to take
        shutil.rmtree(name)
    for name in ("report.html", ".lock"):  # written anew
        Path("eval", name).unlink()
    Path("expected.json").write_text(json.dumps(expected()) + "\n")


def write_markdown(folder: Path) -> None:
    folder.mkdir()
    for number, scene in enumerate(SCENES[5::37], 1):
        draw_scene(scene).save(folder / f"{number}.png")
        heading = f"# Figure {number}\n\n{scene.sentence}\n\n"
        (folder / f"{number}.md").write_text(f"{heading}![{scene.words}]({number}.png)\n\nThat is all of it.\n")


def start() -> SharedVocabularyPolicy:
    """Few weights, and like those of tests/conftest.py it prefers some tokens to others."""
    torch.manual_seed(0)
    pictures = VQImageTokenizer.create(image_size=8, patch=2, channels=(8,), codes=16, code_size=4).eval()
    with torch.no_grad():
        latents = pictures.latents(pictures.pixels([draw_scene(scene) for scene in SCENES]))
        latents = torch.unique(latents.movedim(1, -1).reshape(-1, 4), dim=0)
        pictures.model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:16]])
    texts = [story(SCENES[i : i + 2]).text for i in range(0, len(SCENES), 2)]
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    policy = SharedVocabularyPolicy.create(config, Processor(train_text_tokenizer(texts, 320), pictures))
    control = policy.vocabulary.controls
    with torch.no_grad():
        weight = policy.model.get_input_embeddings().weight.normal_(std=0.3)
        weight[:, 0] = -0.5
        weight[control.boi, 0], weight[control.eos, 0] = -5.0, -4.5
    return policy


def expected() -> dict:
    """What the limner that wrote the files reads in them."""
    policy, sampling = load("warmup/model"), Sampling(max_new_tokens=80, seed=3)
    prompt = policy.processor.encode_all([PROMPT])[0]
    (sample,) = generate(policy, [prompt], sampling)
    (answer,) = write(policy, [PROMPT], sampling)
    index = Index.open("index")
    return {
        "prompt": PROMPT.to_json(),
        "prompt_ids": prompt.ids_T.tolist(),
        "ids": sample.ids_C.tolist(),
        "logp": [round(value, 6) for value in sample.logp_C.tolist()],
        "text": answer.text,
        "pictures": [picture.tobytes().hex() for picture in answer.images],
        "image_tokenizer": policy.processor.image_tokenizer.fingerprint(),
        "shards": {split: [digest(d) for d in read_documents("shards", split, shuffle_seed=None)] for split in SPLITS},
        "index": {question: index.search(question)[0].chunk.id for question in QUESTIONS},
        "rewards": [[row.step, row.outcome] for row in read_trajectories(Path("grpo/trajectories"))],
        "scores": json.loads(Path("eval/results.json").read_text())["scores"],
    }


def digest(document) -> dict:
    """A document's text, and a hash of each of its pictures."""
    return {
        "id": document.id,
        "text": document.text,
        "trainable": [segment.trainable for segment in document.segments],
        "pictures": [hashlib.sha256(image.pixels().tobytes()).hexdigest() for image in document.images],
    }


if __name__ == "__main__":
    main()
