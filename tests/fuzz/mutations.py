"""Sound inputs made unsound, by a seeded generator: JSON by its values, any text by its bytes."""

import json
from copy import deepcopy
from random import Random
from typing import Any

RAW = {"@DIGITS@": "9" * 5000, "@HUGE@": "9" * 400, "@INFINITE@": "1e999", "@NAN@": "NaN"}
RAW |= {"@DEEP@": "[" * 3000 + "]" * 3000, "@DEEPER@": '{"a":' * 120 + "1" + "}" * 120, "@HALF@": '"\\ud800"'}
"""What json.dumps would not write, by what stands in for it."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 1.5, -0.0, 2**31, 2**63, 10**18, "", "x", "1", [], {}, [[]], [None], [{}], {"": 0}),
    *(
        "x" * 5000,
        "a\0b.png",
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "file:///etc/passwd",
        "http://0.0.0.0:1/",
    ),
    *("\x1b[31mred\x1b]0;owned\x07", "\u202eabc", "<img src=x>" * 50, "<score>" * 200, "![](" * 200, "[[" * 200),
    *("data:image/png;base64,AAAA", "data:image/png;base64," + "A" * 5000, "id", "image", "\ufeff", "\u2028", *RAW),
)
PIECES = (
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        "\u202e".encode(),
        b"\r",
        b"\n\n",
        b"\n---\n",
        b"\t",
        b" " * 300,
    ),
    *(
        b"[" * 500,
        b"![" * 300,
        b"![a](" * 200,
        b"<" * 500,
        b"<img a=" * 200,
        b"`" * 301,
        b"> " * 200,
        b"- " * 200,
        b"*" * 400,
    ),
    *(b"{{ x }}", b"{% raw %}", b"$$", b"|---|", b"&amp;" * 100, b"<!--", b"]]>", b"![[a.png]]", b"~~~", b":::note"),
    *(b"!!int x", b"&a [*a]", b"*a", b"!!python/object:os.system x", b"<<: *a", b"? [a]\n: b", b"0x_", b"%YAML 9.9\n"),
    *(b'"', b"'", b"{", b"}", b"]", b",", b":", b"\\u", b"\\ud800", b"1e999", b"-", b"9" * 5000, b"NaN", b"#", b"="),
)


def json_text(value: Any, rng: Random) -> bytes:
    """A JSON value with one to three of its parts replaced, left out, or doubled, as text; some spoilt."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng)
    text = json.dumps(value)
    for word, raw in RAW.items():
        text = text.replace(f'"{word}"', raw)
    return text_bytes(text.encode(), rng) if rng.random() < 0.15 else text.encode()


def json_lines(values: list[Any], rng: Random) -> bytes:
    at = rng.randrange(len(values))
    return b"\n".join(json_text(v, rng) if n == at else json.dumps(v).encode() for n, v in enumerate(values)) + b"\n"


def text_bytes(data: bytes, rng: Random) -> bytes:
    """Bytes with one to four pieces cut, doubled, moved, spoilt, or put in."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.randint(1, 40)
        match rng.randrange(6):
            case 0:
                data = data[:at] + data[at + length :]
            case 1:
                data = data[:at] + data[at : at + length] * rng.randint(2, 50) + data[at:]
            case 2:
                data = data[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 8))) + data[at + length :]
            case 3:
                data = data[: max(at, 1)]
            case _:
                data = data[:at] + rng.choice(PIECES) + data[at:]
    return data


def _changed(value: Any, rng: Random) -> Any:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.1:
        return deepcopy(rng.choice(VALUES))
    key = rng.choice(keys)
    match rng.randrange(8):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[f"{key}{rng.choice(['s', ' ', '_', chr(0)])}"] = value.pop(key)
        case 1:
            value.insert(key, deepcopy(value[key]))
        case 2 | 3:
            value[key] = deepcopy(rng.choice(VALUES))
        case _:
            value[key] = _changed(value[key], rng)
    return value
