import random
import time

import pytest

from limner.data.sentences import sentences

CASES = {
    "Peel. Cut the e.g. apple. Roll it, approx. 3 cm. Done!": 4,
    "1. Peel the apples.\n2. Roll out (thin). Then wait.\n\n- a\n- b": 5,
    'J. Smith said 3.5 cups. "Yes." He left... and came. ok': 3,
    "\u4f60\u597d\u3002\u4ed6\u8bf4\uff1a\u201c\u597d\u3002\u201d\u7136\u540e\u8d70\u4e86\uff01": 3,
    "See Fig. 3 for it. A No. 5 hat.": 2,
    "": 0,
}


@pytest.mark.parametrize(("text", "count"), CASES.items())
def test_sentences_end_where_a_reader_stops(text, count):
    assert len(sentences(text)) == count


def test_nothing_is_lost_and_no_sentence_is_empty():
    rng = random.Random(0)
    atoms = [
        "A",
        "b",
        " ",
        "\n",
        ".",
        "!",
        "?",
        '"',
        ")",
        "1",
        "\u3002",
        "\u201d",
        "etc.",
        "- ",
        "\u00e9",
        "\r\n",
        "```",
        "|",
        "|-|",
    ]
    for _ in range(3000):
        text = "".join(rng.choices(atoms, k=rng.randrange(30)))
        found = sentences(text)
        assert "".join(found) == text
        assert all(piece.strip() for piece in found) or not text.strip()


def test_tables_and_fenced_code_are_one_sentence():
    table = "\n| a. B | c |\n|:--|--:|\n| 1. One! | 2 |\n| 3 | 4 |"
    code = "\n```html\n<b>Hi. There.</b>\n\n~~~\n```"
    listed = "\n1. Run\n   ````sh\n   a. B\n   ```\n   c. D\n   ````"
    assert sentences(f"See it.{table}\nEnd.") == ["See it.", table, "\nEnd."]
    assert sentences(f"See it.{code}\nEnd.") == ["See it.", code, "\nEnd."]
    assert sentences(listed)[1].count("\n") == 5
    for none in ("a | b\nc. D | e", "```\nNever. Closed.", "```a``` Is. Inline.\n```", "a\n-\nb | c"):
        assert len(sentences(none)) > 1, none


def test_blocks_are_found_in_linear_time():
    def seconds(text: str) -> float:
        start = time.perf_counter()
        sentences(text)
        return time.perf_counter() - start

    for unit in ("```\n", "|\n|-|\n", "~~~~ `\n", "|-|\n", " \t|"):
        short, long = (min(seconds(unit * count) for _ in range(2)) for count in (4000, 16000))
        assert long < 10 * short + 0.1, unit
