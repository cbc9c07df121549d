"""Each published data set from a small copy of its layout, defects included. All of it is invented."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.sources.published.timeline import frames_at
from limner.data.sources.report import Refused

from ....data_files import converted, encoded, put, put_lines, put_parquet, put_tar, shape

av = pytest.importorskip("av")


def striped(number: int, size=(64, 48)) -> Image.Image:
    """Frames that differ: a bright column that moves."""
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    pixels[:, (number * 5) % size[0] : (number * 5) % size[0] + 8] = 60 + 6 * (number % 30)
    return Image.fromarray(pixels)


def video(path, frames=50, fps=25, cut=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_image(striped(number))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    if cut:
        path.write_bytes(path.read_bytes()[:cut])
    return path


def close(image, number):
    return np.abs(np.asarray(image, int) - np.asarray(striped(number), int)).mean() < 12


def test_frames_are_those_shown_at_a_moment(tmp_path):
    path = video(tmp_path / "a.mp4")
    moments = [1.0, 0.0, 1.5, 1.999, 2.03]
    for image, number in zip(frames_at(path, moments), (25, 0, 37, 49, 49), strict=True):
        assert close(image, number)
    with pytest.raises(Refused) as caught:
        frames_at(path, [0.5, 3.0])
    assert (caught.value.rule, caught.value.reason) == ("missing frame", "a.mp4 shows 1.96 s last, and no 3.00 s")
    for content in (b"", b"no video" * 100):
        with pytest.raises(Refused):
            frames_at(put(tmp_path / "b.mp4", content), [0.0])


def activitynet(tmp_path):
    root = tmp_path / "activitynet"
    video(root / "videos/v_aaaaaaaaaa1.mp4", frames=50)
    events = {"duration": 2.0, "timestamps": [[0.5, 1.0], [0.0, 0.3], [1.2, 9.0], [1.0, 1.0], [1.5, 0.2]]}
    captions = {
        "v_aaaaaaaaaa1": {**events, "sentences": ["Second <b>.", " First.", "Third.", "Never.", "Reversed."]},
        "v_aaaaaaaaaa2": {"duration": 9, "timestamps": [[0, 1], [1, 2]], "sentences": ["a", "b"]},
        "v_aaaaaaaaaa3": {"duration": 9, "timestamps": [[0, 1]], "sentences": ["a"]},
    }
    put(root / "train.json", json.dumps(captions))
    return root


def test_activitynet(tmp_path):
    root = activitynet(tmp_path)
    report, (document,) = converted("activitynet", root)
    given, first, *answer = shape(document)
    assert given.endswith("step by step. <BEGIN> First.") and first == "64*48"
    assert answer == [
        "<THINK>SECOND (B).</THINK> <VIS>",
        "64x48",
        "</VIS> <THINK>THIRD.</THINK> <VIS>",
        "64x48",
        "</VIS>",
    ]
    assert report.kept == {"clamped": 1}
    assert report.problems.counts == {"empty interval": 1, "reversed": 1, "missing": 1, "too short": 1}
    assert document.id == "activitynet:v_aaaaaaaaaa1" and document.meta["group"] == "v_aaaaaaaaaa1"
    _, (plain,) = converted("activitynet", root, form="plain")
    assert shape(plain)[2:] == ["SECOND (B).", "64x48", "THIRD.", "64x48"]
    _, views = converted("activitynet", root, views=["t2t", "t2i", "ti2i"])
    assert [d.id.partition("#")[2] for d in views] == ["t2t", "t2i0", "t2i1", "t2i2", "ti2i1", "ti2i2"]
    assert len({d.meta["group"] for d in views}) == 1


def test_frames_that_somebody_has_cut(tmp_path):
    root = activitynet(tmp_path)
    for number in (3, 20, 40):
        buffer = io.BytesIO()
        striped(number).save(buffer, "PNG")
        put(root / f"frames/v_aaaaaaaaaa1/{number}.png", buffer.getvalue())
    (root / "videos/v_aaaaaaaaaa1.mp4").unlink()
    _, (document,) = converted("activitynet", root)
    assert [close(image.pixels(), n) for image, n in zip(document.images, (3, 20, 40), strict=True)] == [True] * 3


def test_genhowto_and_showhowto(tmp_path):
    root = tmp_path / "genhowto"
    video(root / "videos/-bbbbbbbbb2.mp4")
    head = "VID_ID,DS_CAT,DS_CAT_NAME,FRAME_S1,FRAME_S2,FRAME_AC,SCORE,{},FILENAME\n"
    row = '{},0,apple,0,1,{},0.9,"a person peels, then cuts",x.jpg\n'
    rows = [row.format("-bbbbbbbbb2", 1), row.format("-bbbbbbbbb2", 1), row.format("ccccccccc22", 0)]
    put(root / "actions.heldout.txt", head.format("FRAME_AC_PROMPT") + "".join(rows))
    put(root / "states.heldout.txt", head.format("FRAME_S2_PROMPT") + rows[0])
    video(root / "videos/-bbbbbbbbb2.mp4")
    report, documents = converted("genhowto", root)
    # Action and last state are one second: the last frame is a still, and two steps are left.
    assert report.problems.counts == {"repeated": 1, "still": 1, "no pair": 1} and len(documents) == 1
    assert "How is this apple changed? <BEGIN>" in shape(documents[0])[0]

    root = tmp_path / "showhowto"
    strip = Image.new("RGB", (96, 32))
    for at in range(3):
        strip.paste(striped(at * 4, (32, 32)), (at * 32, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=95)
    put(root / "imgseqs/ccccccccc_3.jpg", buffer.getvalue())
    put(root / "imgseqs/ddddddddd_1.jpg", encoded("JPEG", size=(100, 32)))
    prompts = ["a bowl with flour", "water is poured", "a ball of dough"]
    put(tmp_path / "elsewhere.jpg", buffer.getvalue())
    names = ("ccccccccc_3", "ddddddddd_1", "eeeeeeeee_1", "../../elsewhere")
    put(root / "prompts.json", json.dumps(dict.fromkeys(names, prompts)))
    report, (document,) = converted("showhowto", root)
    assert shape(document)[1] == "32*32" and len(document.images) == 3
    assert report.problems.counts == {"strip": 1, "missing": 1, "outside": 1}


def test_openstory(tmp_path):
    root, key = tmp_path / "openstory", "ddddddddd_4"
    told = {"caption": "a man saw a plank", "origin_caption": "a man"}
    stamps = ["00-00-00-040", "00-00-01-000", "00-00-01-600"]
    rows = [
        {
            "__key__": f"{key}_keyframe_{stamp}",
            "video_id": key,
            "time_stamp": stamp,
            "json": json.dumps(told),
            "png": b"m",
        }
        for stamp in reversed(stamps)
    ]
    rows.append({**rows[0], "__key__": "a_override_b"})
    rows.append({**rows[0], "video_id": "gone_1"})
    put_parquet(root / "story/train-00000-of-00001.parquet", *rows, {**rows[0], "video_id": "gone_1"})
    video(root / f"videos/{key}.mp4")
    report, (document,) = converted("openstory", root)
    assert len(document.images) == 3 and "A MAN SAW A PLANK" in shape(document)[2]
    assert all(close(i.pixels(), n) for i, n in zip(document.images, (1, 25, 40), strict=True))
    assert report.problems.counts == {"duplicate": 1, "missing": 1}
    (root / f"videos/{key}.mp4").unlink()
    for number, stamp in enumerate(stamps):
        buffer = io.BytesIO()
        striped(number * 9).save(buffer, "JPEG")
        put(root / f"frames/{key}/{key}_keyframe_{stamp}.jpg", buffer.getvalue())
    _, (document,) = converted("openstory", root, text="origin_caption")
    assert len(document.images) == 3 and "A MAN<" in shape(document)[2]


def test_vist(tmp_path):
    root = tmp_path / "vist"
    entries = []
    for story, photos in (("9", (0, 4, 3, 2, 1)), ("10", (0, 1))):
        for order in photos:
            photo = f"{story}{order}"
            one = {
                "story_id": story,
                "photo_flickr_id": photo,
                "worker_arranged_photo_order": order,
                "text": f"s{order}",
            }
            entries.append([one])
            buffer = io.BytesIO()
            striped(order * 4).save(buffer, "JPEG")
            put(root / f"images/{photo}.jpg", buffer.getvalue())
    put(root / "sis/train.story-in-sequence.json", json.dumps({"annotations": entries, "images": []}))
    put(root / "sis/test.story-in-sequence.json", json.dumps({"annotations": entries[:5], "images": []}))
    report, (document,) = converted("vist", root, form="plain")
    assert [part for part in shape(document)[2:] if "x" not in part] == ["S1", "S2", "S3", "S4"]
    assert report.problems.counts == {"too short": 1}


def test_zebra_cot(tmp_path):
    root = tmp_path / "zebra"
    picture = {"bytes": encoded(), "path": None}
    trace = "".join(f"THOUGHT {n}: look {n}. <image_start>[reasoning_image_{n}]<image_end> " for n in (2, 10))
    row = {
        "Question": "Next? <image_start>[problem_image_1]<image_end>",
        "Text Reasoning Trace": trace,
        "Final Answer": "left",
        "problem_image_1": picture,
        "reasoning_image_2": {"bytes": encoded(size=(40, 32)), "path": None},
        "reasoning_image_10": picture,
    }
    put_parquet(root / "Jigsaw/train-00000-of-00001.parquet", row, {**row, "reasoning_image_10": None})
    report, (document,) = converted("zebra-cot", root)
    assert shape(document) == [
        "Next?",
        "32*32",
        "<THINK>LOOK 2.</THINK>",
        "40x32",
        "<THINK>LOOK 10.</THINK>",
        "32x32",
        "<ANSWER>LEFT</ANSWER>",
    ]
    assert report.problems.counts == {"missing": 1} and "reasoning_image_10" in str(report.problems[0])
    with pytest.raises(InputError, match="no column 'Question'; it has a"):
        converted("zebra-cot", put_parquet(tmp_path / "z/a.parquet", {"a": 1}))


def test_journeydb(tmp_path):
    root = tmp_path / "journeydb"
    put_tar(root / "data/train/imgs/007.tgz", {"./007/a.jpg": encoded("JPEG"), "./007/b.jpg": encoded("JPEG")}, "w:gz")
    lines = [{"img_path": f"./007/{name}.jpg", "prompt": "a boat,", "Task2": {"Caption": "c"}} for name in "abz"]
    lines.append({**lines[0], "Task2": "c"})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"img_path'
    name = "train_anno_realease_repath.jsonl"
    put_tar(root / f"data/train/{name}.tgz", {name: text.encode()}, "w:gz")
    report, documents = converted("journeydb", root)
    assert [shape(d) for d in documents] == [["Draw: a boat,", "32x32"]] * 2
    assert len({d.meta["group"] for d in documents}) == 1
    assert report.problems.counts == {"missing": 1, "broken line": 2}
    whole = (root / "data/train/imgs/007.tgz").read_bytes()
    put(root / "data/train/imgs/007.tgz", whole[: len(whole) // 2])
    with pytest.raises(InputError, match="007.tgz: cannot be read"):
        converted("journeydb", root)


def test_sharegpt4o_image(tmp_path):
    root = tmp_path / "sharegpt4o"
    put(root / "text_to_image.json", json.dumps([{"input_prompt": "a kite", "output_image": "image/o.png"}]))
    edits = [
        {"input_prompt": "make it night", "input_image": ["image/in.png"], "output_image": "image/out.png"},
        {"input_prompt": "make it day", "input_image": ["image/none.png"], "output_image": "image/out.png"},
    ]
    put(root / "text_and_image_to_image.json", json.dumps(edits))
    put(root / "image/o.png", encoded())
    members = {"image/in.png": encoded(), "image/out.png": encoded(size=(40, 32))}
    put_tar(root / "text_and_image_to_image_part_0.tar", members)
    report, documents = converted("sharegpt4o-image", root)
    assert {tuple(shape(d)) for d in documents} == {("Draw: a kite", "32x32"), ("32*32", "make it night", "40x32")}
    assert report.problems.counts == {"missing": 1}


def test_emova(tmp_path):
    turns = [{"from": "human", "value": "<image>\nLeft?"}, {"from": "gpt", "value": "A pear."}]
    picture = {"bytes": encoded("JPEG"), "path": None}
    rows = [
        {"id": "e-1", "image": picture, "conversations": turns},
        {"id": "e-2", "image": None, "conversations": turns},
    ]
    put_parquet(tmp_path / "emova/websrc/train-00000-of-00001.parquet", *rows)
    spoken = [{"from": "human", "value": "<|speech_3|>"}, turns[1]]
    put_lines(tmp_path / "emova/speech/a.jsonl", {"id": "s", "conversations": spoken})
    report, (document,) = converted("emova", tmp_path / "emova")
    assert shape(document) == ["32*32", "Left?", "A PEAR."]
    assert report.problems.counts == {"missing": 1, "speech": 1}
