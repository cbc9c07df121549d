"""Tags of a reply: what `re.finditer` finds, in one pass."""

import re

import pytest

from limner.models.chat.tags import tagged


@pytest.mark.parametrize("text", ["", "<a>1</a>", "<a><a>1</a></a> <a>2", "</a><a>\n</a><a>3</a>", "<A>4</A>"])
@pytest.mark.parametrize(
    "pattern",
    [
        "<a>(.*?)</a>",
        "<[ab]>(.*?)</[ab]>",
        "(?:<a>(.*?)</a>)+",
        "(?i)<a>(.*?)</a>",
        "<a>(.*?)(?:</a>)",
        r"<a>(\d)",
        "(.*?)</a>",
    ],
)
def test_it_finds_what_the_pattern_finds(pattern, text):
    assert [*tagged(pattern, text)] == [(match[1], match[0]) for match in re.finditer(pattern, text, re.DOTALL)]
