"""Texts of any language as short runs of letters, by which they are searched where no encoder reads them.

Two forms of a word, or a word and a compound of it, share most of their runs, whatever the grammar: this takes the
place of a stemmer and of a dictionary for each language (McNamee and Mayfield, Character N-Gram Tokenization for
European Language Text Retrieval, 2004; runs of two for Chinese and Japanese are the usual practice).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

KANA = r"\u3040-\u30ff"
IDEOGRAPHS = rf"{KANA}\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Chinese, Japanese, Korean: a character is a word or a syllable, so two of them, and one but for kana."""
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese, Khmer: letters, but no space between words."""
MARKS = r"\u0300-\u036f\u0900-\u0dff"
"""Parts of a letter, which Python does not take for word characters: accents, the vowels of India."""
RUN = re.compile(
    rf"(?P<ideographs>[{IDEOGRAPHS}]+)|(?P<unspaced>[{UNSPACED}]+)|(?:[^\W_{IDEOGRAPHS}{UNSPACED}]|[{MARKS}])+"
)
OPTIONAL = re.compile(r"[\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]")
"""Vowel points of Hebrew and Arabic, and the stretch of a word."""
LETTERS = 4
UNSPACED_LETTERS = 3
NAMES = {"CJK": "Han", "HIRAGANA": "kana", "KATAKANA": "kana", "KATAKANA-HIRAGANA": "kana"}
JAPANESE = 0.1
"""Share of kana that no other language has."""


def runs_of(text: str, without: frozenset[str] = frozenset()) -> list[str]:
    """Four letters of a word with `_` at both ends; three where no spaces are; of ideographs each one and each two.

    without: words left out.
    """
    found: list[str] = []
    for match in RUN.finditer(OPTIONAL.sub("", unicodedata.normalize("NFKC", text)).casefold()):
        word = match.group()
        if match["ideographs"]:
            found += [*re.sub(f"[{KANA}]", "", word), *_runs(word, 2)]
        elif match["unspaced"]:
            found += _runs(word, UNSPACED_LETTERS) or [word]
        elif word not in without:
            found += _runs(f"_{word}_", LETTERS) or [word]
    return found


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Shares of the letters, the largest first: `{"Han": 0.9, "Latin": 0.1}`."""
    letters = Counter(letter for text in texts for letter in text if letter.isalpha())
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        name = unicodedata.name(letter, "other").partition(" ")[0]
        counts[NAMES.get(name, name.capitalize())] += count
    return {name: count / counts.total() for name, count in counts.most_common()}


def script_of(text: str) -> str:
    """That of most letters; kana for Japanese also where it has more Han."""
    found = scripts([text])
    return "kana" if found.get("kana", 0) >= JAPANESE else next(iter(found), "no letters")


def _runs(word: Sequence[str], length: int) -> list[str]:
    return ["".join(word[start : start + length]) for start in range(len(word) - length + 1)]
