"""Chat with pictures: every dialect becomes the same document, every conflict is a setting or a rule with a name."""

import base64
import json

import pytest

from limner.configs.errors import InputError
from limner.data.conversion import open_source, read_asked, try_source
from limner.data.shards import read_index
from limner.data.sources.report import Report
from limner.models.checkpoints.folder import save

from ...data_files import animation, converted, encoded, noisy, put, put_lines, put_parquet, shape

ASKED, SAID = "How many cups?", "Two."
WANTED = ["32*32", ASKED, SAID.upper()]


@pytest.fixture
def folder(tmp_path):
    put(tmp_path / "llava/coco/1.jpg", encoded("JPEG"))
    put(tmp_path / "llava/2.png", encoded("PNG", "blue", (48, 32)))
    return tmp_path / "llava"


def turns(asked=f"<image>\n{ASKED}", said=SAID):
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]


def messages(content, answer=SAID, **more):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer, **more}]


DATA_URI = "data:image/png;base64," + base64.b64encode(encoded()).decode()
DIALECTS = {
    "llava": {"conversations": turns(), "image": "coco/1.jpg"},
    "llava-list": {"conversations": turns(), "image": ["coco/1.jpg"]},
    "swift": {"messages": messages(f"<image>{ASKED}"), "images": ["coco/1.jpg"]},
    "swift-bytes": {"messages": messages(f"<image>{ASKED}"), "images": [{"bytes": None, "path": "coco/1.jpg"}]},
    "swift-query": {"query": f"<image>{ASKED}", "response": SAID, "images": "coco/1.jpg"},
    "swift-pairs": {"conversation": [{"human": f"<image>{ASKED}", "assistant": SAID}], "images": ["coco/1.jpg"]},
    "alpaca": {"instruction": "<image>How many", "input": "cups?", "output": SAID, "images": ["coco/1.jpg"]},
    "trl-parts": {"messages": messages([{"type": "image"}, {"type": "text", "text": ASKED}]), "images": ["coco/1.jpg"]},
    "trl-string": {"messages": messages(ASKED), "images": ["coco/1.jpg"]},
    "trl-split": {
        "prompt": messages(ASKED)[:1],
        "completion": messages(ASKED)[1:],
        "image": "coco/1.jpg",
    },
    "openai": {
        "messages": messages(
            [{"type": "image_url", "image_url": {"url": DATA_URI}}, {"type": "text", "text": ASKED}],
            [{"type": "text", "text": SAID}],
        )
    },
    "openai-responses": {
        "messages": messages([{"type": "input_image", "image_url": DATA_URI}, {"type": "input_text", "text": ASKED}])
    },
    "anthropic": {
        "messages": messages(
            [
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": DATA_URI.split(",")[1]},
                },
                {"type": "text", "text": ASKED},
            ]
        )
    },
    "cauldron": {"texts": [{"user": ASKED, "assistant": SAID, "source": "x"}], "images": ["coco/1.jpg"]},
    "as-string": {"conversations": json.dumps(turns()), "image": "coco/1.jpg"},
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_the_same_document(folder, name):
    report, (document,) = converted("chat", put_lines(folder / "mix.jsonl", DIALECTS[name]))
    wanted = [part.replace("many cups", "many\ncups") for part in WANTED] if name == "alpaca" else WANTED
    assert shape(document) == wanted and document.meta["kind"] == "understanding"
    assert report.rules()["left out"] == {}
    assert report.kept == ({"placed first": 1} if name in ("trl-string", "trl-split", "cauldron") else {})


def test_an_array_is_read_as_lines_are(folder):
    records = [{"id": number, **DIALECTS["llava"]} for number in range(3)]
    for name, text in {"a.json": json.dumps(records, indent=1), "b.json": "\n".join(map(json.dumps, records))}.items():
        report, documents = converted("chat", put(folder / name, text))
        assert [d.id for d in documents] == [f"{name}:{n}" for n in range(3)] and report.records == 3
    with pytest.raises(InputError, match="a.json: record 3: not JSON"):
        converted("chat", put(folder / "a.json", json.dumps(records)[:-20]))
    with pytest.raises(InputError, match="neither a JSON array nor JSON lines"):
        converted("chat", put(folder / "a.json", json.dumps({"data": records}, indent=1)))


def test_placeholders_and_pictures(folder):
    """Row 1: a number of places that is not that of pictures is refused; none at all puts them first."""
    two = turns("<image><image>\nSame?")
    report, documents = converted(
        "chat",
        put_lines(
            folder / "mix.jsonl",
            {"conversations": two, "image": "coco/1.jpg"},
            {"conversations": turns("Here <image> and <image>?"), "image": ["coco/1.jpg", "2.png"]},
            {"conversations": turns("Same?"), "images": ["coco/1.jpg", "2.png"]},
        ),
    )
    assert report.problems.counts == {"placeholder mismatch": 1} and "2 places for 1 pictures" in str(
        report.problems[0]
    )
    assert report.kept == {"placed first": 1}
    assert [shape(d)[:-1] for d in documents] == [
        ["Here", "32*32", "and", "48*32", "?"],
        ["32*32", "48*32", "Same?"],
    ]


def test_ids_of_two_types_are_one_id(folder):
    """Row 2: 7 and "7" collide; the second is left out, or kept under another id."""
    records = [{"id": 7, **DIALECTS["llava"]}, {"id": "7", **DIALECTS["llava-list"]}]
    path = put_lines(folder / "mix.jsonl", *records)
    report, documents = converted("chat", path)
    assert [d.id for d in documents] == ["mix.jsonl:7"] and report.problems.counts == {"duplicate id": 1}
    report, documents = converted("chat", path, keep_duplicates=True)
    assert [d.id for d in documents] == ["mix.jsonl:7", "mix.jsonl:7#2"] and report.kept == {"duplicate id": 1}


def test_text_alone(folder):
    """Row 3: without a picture, a placeholder in a sentence is a word; before one, a picture is missing."""
    path = put_lines(
        folder / "mix.jsonl",
        {"conversations": turns("What does <image> mean in HTML?")},
        {"conversations": turns("Hello")},
        {"conversations": turns(), "image": None},
    )
    report, documents = converted("chat", path)
    assert [shape(d)[0] for d in documents] == ["What does <image> mean in HTML?", "Hello"]
    assert report.kept == {"no picture": 2, "placeholder as text": 1} and report.problems.counts == {"missing": 1}
    with pytest.raises(InputError, match="gives no document.*no picture"):
        converted("chat", path, text_only="drop")


def test_pictures_that_are_not_what_they_say(folder):
    """Rows 4, 5, 12, and those of the list below: each by its rule, nothing opened that is outside."""
    secret = put(folder.parent / "secret.png", encoded())
    (folder / "link.png").symlink_to(secret)
    cut = noisy()[:-20]
    files = {
        "gif.jpg": animation(),
        "html.jpg": b"<html>403</html>",
        "cut.jpg": cut,
        "dot.png": encoded(size=(1, 1)),
        "strip.png": encoded(size=(4000, 10)),
        "photo.tif": encoded("TIFF"),
        "photo.avif": b"\0\0\0\x20ftypavif" + b"\0" * 40,
        "bomb.png": encoded(size=(9000, 9000)),
    }
    for name, data in files.items():
        put(folder / name, data)
    wanted = {
        "html.jpg": "corrupt",
        "cut.jpg": "corrupt",
        "dot.png": "too small",
        "strip.png": "aspect",
        "photo.tif": "format not supported",
        "photo.avif": "corrupt",
        "bomb.png": "too large",
        "nowhere.png": "missing",
        "/mnt/x/a.jpg": "outside",
        "../secret.png": "outside",
        "link.png": "outside",
        "https://e.org/a.jpg": "remote",
        "data:image/png;base64,!!": "corrupt",
        "a" * 5000: "missing",
        "a\0b": "missing",
    }
    records = [{"conversations": turns(), "image": name} for name in ["gif.jpg", *wanted]]
    report, (document,) = converted("chat", put_lines(folder / "mix.jsonl", *records))
    assert report.kept == {"frames": 1} and shape(document)[0] == "32*32"
    found = {problem.line: problem.kind for problem in report.problems}
    assert found == dict(enumerate(wanted.values(), 2))
    assert max(len(str(problem)) for problem in report.problems) < 600


def test_a_photo_is_turned_upright(folder):
    """Row 6: CMYK, and EXIF says it lies on its side."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (40, 20)).save(folder / "photo.jpg", exif=exif)
    report, (document,) = converted("chat", put_lines(folder / "a.jsonl", {**DIALECTS["llava"], "image": "photo.jpg"}))
    assert document.images[0].pixels().size == (20, 40) and report.kept == {"turned": 1}


def test_a_document_an_answer_with_what_was_said_before(folder):
    record = {
        "id": "r",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            *turns("<image>\nOne?", "A"),
            *turns("Two?", "B"),
            *turns("Three?", "C"),
        ],
        "image": "2.png",
    }
    path = put_lines(folder / "mix.jsonl", record)
    _, documents = converted("chat", path)
    assert [d.id for d in documents] == ["mix.jsonl:r", "mix.jsonl:r#2", "mix.jsonl:r#3"]
    assert shape(documents[0]) == ["Be brief.", "48*32", "One?", "A"]
    assert shape(documents[2]) == ["Be brief.", "48*32", "One?\nA\nTwo?\nB\nThree?", "C"]
    assert len({d.meta["group"] for d in documents}) == 1
    report, documents = converted("chat", path, max_turns=2)
    assert len(documents) == 2 and report.kept == {"more turns": 1}
    _, (last,) = converted("chat", path, turns="last")
    assert shape(last)[-1] == "C" and len(last.prompt.segments) == 3
    _, (whole,) = converted("chat", path, turns="whole")
    assert shape(whole) == ["Be brief.", "48*32", "One?", "A", "\nTwo?", "B", "\nThree?", "C"]


def test_what_a_message_says_of_its_loss(folder):
    record = {"messages": [*messages("a", "b", loss=False), *messages("c", "d", loss_scale=0), *messages("e", "f")]}
    _, (document,) = converted("chat", put_lines(folder / "a.jsonl", record))
    assert shape(document) == ["a\nb\nc\nd\ne", "F"]


def test_a_picture_in_an_answer_is_a_setting(folder):
    record = {"messages": messages("Draw a cup.", "Here: <image> done"), "images": ["2.png"]}
    path = put_lines(folder / "a.jsonl", record)
    with pytest.raises(InputError, match="assistant picture.*assistant_images=generate"):
        converted("chat", path)
    _, (document,) = converted("chat", path, assistant_images="generate")
    assert shape(document) == ["Draw a cup.", "HERE:", "48x32", "DONE"]
    assert document.meta["kind"] == "interleaved" and document.images[0].origin == "generated"
    _, (document,) = converted("chat", path, assistant_images="given")
    assert shape(document) == ["Draw a cup.", "HERE:", "48*32", "DONE"]


def test_records_that_no_training_could_use_are_named_by_rule(folder):
    records = {
        "unknown role": {"messages": [{"role": "tool", "content": "x"}]},
        "unknown part": {"messages": messages([{"type": "video", "video": "a.mp4"}])},
        "no answer": {"messages": messages("a")[:1]},
        "empty answer": {"messages": messages("a", " ")},
        "speech": {"messages": messages("<|speech_3|> Say it.")},
        "broken line": {"messages": messages("a", "\ud800")},
        "no turns": {"text": "a"},
        "no record": [1, 2],
    }
    path = put_lines(folder / "a.jsonl", *records.values(), DIALECTS["llava"])
    path.write_text(path.read_text() + '{"messages": [{"role"')
    report, documents = converted("chat", path)
    assert len(documents) == 1 and report.records == len(records) + 2
    assert [problem.kind for problem in report.problems] == [*records, "broken line"]
    assert read_index(folder / "out").report["rules"]["left out"]["broken line"] == 2


def test_ratings_by_name(folder):
    record = {
        "texts": [{"user": f"q{n}", "assistant": f"a{n}"} for n in range(3)],
        "images": [None],
        "relevance_ratings": [5, 1, None],
    }
    report, documents = converted("chat", put_lines(folder / "a.jsonl", record), min_ratings={"relevance": 3})
    assert [shape(d)[-1] for d in documents] == ["A0", "A2"] and report.problems.counts == {"rating": 1}


def test_a_table_says_what_columns_it_has(folder):
    rows = [{"texts": [{"user": ASKED, "assistant": SAID}], "images": [{"bytes": encoded(), "path": None}]}] * 2
    report, documents = converted("chat", put_parquet(folder / "t.parquet", *rows))
    assert [shape(d) for d in documents] == [WANTED] * 2 and report.kept == {"placed first": 2}
    with pytest.raises(InputError, match="t.parquet: no column 'photo'; it has texts, images"):
        converted("chat", folder / "t.parquet", pictures="photo")
    put_parquet(folder / "u.parquet", {"label": 1})
    with pytest.raises(InputError, match="u.parquet: no column 'messages'; it has label"):
        converted("chat", folder / "u.parquet")
    put(folder / "u.parquet", (folder / "t.parquet").read_bytes()[:-30])
    with pytest.raises(InputError, match="u.parquet: cannot be read"):
        converted("chat", folder / "u.parquet")


def test_the_converted_folder_of_emova(tmp_path):
    root = tmp_path / "emova"
    put(root / "websrc/0.png", encoded())
    record = {"id": "e-17", "image": "websrc/0.png", "conversations": turns()}
    put(root / "annotations/websrc.json", json.dumps([record]))
    put(root / "annotations/speech.json", json.dumps([{"conversations": turns("<|speech_3|>", "Yes.")}]))
    report, (document,) = converted("chat", root)
    assert shape(document) == WANTED and document.id == "annotations/websrc.json:e-17"
    assert report.problems.counts == {"speech": 1}


def test_the_list_of_llama_factory(tmp_path):
    root = tmp_path / "factory"
    put(root / "1.png", encoded())
    entry = {
        "file_name": "data.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "photos"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"},
    }
    put(root / "dataset_info.json", json.dumps({"mine": entry, "other": {"file_name": "other.json"}}))
    talk = [{"who": "me", "what": f"<image>{ASKED}"}, {"who": "it", "what": SAID}]
    put(root / "data.json", json.dumps([{"talk": talk, "photos": ["1.png"]}]))
    _, (document,) = converted("chat", root, dataset="mine")
    assert shape(document) == WANTED
    with pytest.raises(InputError, match="lists mine, other; name one"):
        converted("chat", root)


def test_a_trial_reads_so_many_records_and_no_more(folder):
    path = put_lines(folder / "a.jsonl", *[DIALECTS["llava"], {"messages": 3}] * 50)
    report = try_source(open_source("chat"), path, 10)
    assert report.records == 10 and report.documents == 5 and report.problems.counts == {"no turns": 5}
    lines = report.table().splitlines()
    assert lines[0] == "10 records: 5 documents, 5 images" and "a.jsonl:2: no turns" in lines[1]


def test_a_report_of_many_faults_stays_small(folder):
    path = put_lines(folder / "a.jsonl", DIALECTS["llava"], *[{"messages": 3}] * 500)
    report, _ = converted("chat", path)
    assert report.problems.counts == {"no turns": 500} and len(report.problems) == 100
    assert report.summary().splitlines()[-1] == "and 400 more of the same kinds"
    assert read_index(folder / "out").report["rules"]["left out"] == {"no turns": 500}


def test_answers_of_a_record_are_held_out_together(tmp_path):
    from limner.data.conversion import convert
    from limner.data.shards import read_documents

    talk = [*messages("a", "b"), *messages("c", "d")]
    for count in (2, 40):
        path = put_lines(tmp_path / "a.jsonl", *[{"id": n, "messages": talk} for n in range(count)])
        convert(open_source("chat"), path, tmp_path / "out", heldout_share=0.3, overwrite=True)
        groups = {
            split: {d.meta["group"] for d in read_documents(tmp_path / "out", split, shuffle_seed=None)}
            for split in ("train", "heldout")
        }
        assert groups["train"] and groups["heldout"] and not groups["train"] & groups["heldout"]
        assert sum(map(len, groups.values())) == count


def test_prompts_of_a_run_are_what_is_asked(folder):
    path = put_lines(
        folder / "a.jsonl",
        {"id": 1, "image": "2.png", "conversations": [*turns("<image>One?", "A"), *turns("Two?", "B")]},
        {"id": 2, "messages": messages("Write a story.")[:1]},
        {"id": 3, "image": "no.png", "conversations": turns()},
    )
    report = Report()
    prompts = read_asked(path, "chat", {}, report)
    assert [shape(prompt) for prompt in prompts] == [["48*32", "One?\nA\nTwo?"], ["Write a story."]]
    assert [prompt.id for prompt in prompts] == ["a.jsonl:1", "a.jsonl:2"] and report.problems.counts == {"missing": 1}
    with pytest.raises(InputError, match="2 prompts .a.jsonl:3: missing.*takes 3"):
        read_asked(path, "chat", {}, Report(), 3)
    own = put_lines(folder / "b.jsonl", {"prompt": ["Look:", {"image": "2.png"}], "answer": ["A cup."]})
    assert [shape(prompt) for prompt in read_asked(own, "jsonl", {}, Report())] == [["Look:", "48*32"]]


def test_a_run_reads_its_prompts_by_a_source(limner, folder, make_policy, tmp_path):
    """As far as the rewards, which the embedded world has for none but its own prompts."""
    save(make_policy(0), tmp_path / "model")
    path = put_lines(tmp_path / "a.jsonl", {"image": "2.png", "conversations": turns()}, {"messages": 3})
    words = ["preflight", "--config", "grpo/tiny", "--model", tmp_path / "model", "--prompts", path]
    words += ["--output_dir", tmp_path / "run", "--algorithm.replay", "null", "--prompts_source", "chat"]
    words += ["--per_device_train_batch_size", 2, "--num_generations", 2, "--steps_per_generation", 1]
    code, said, err = limner(*words, "--prompts_options", f"{{images: {folder}}}", "--max_completion_length", 8)
    assert code == 2 and "a.jsonl@1" in err and "outline" in err
    assert f"{path}: 1 prompts; left out: {{'no turns': 1}}" in said
    for more, message in {("--prompts_options.images", folder, "--prompts_source", ""): "prompts_options"}.items():
        code, _, err = limner(*words, *more)
        assert code == 2 and message in err
