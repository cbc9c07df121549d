"""Where a page shows pictures: exactly what is cut out, and in time that is in proportion to its length."""

import re
import time
from random import Random

import pytest

from limner.data.sources.markdown.embedded import taken_out
from limner.data.sources.markdown.front_matter import front_matter
from limner.data.sources.markdown.leftovers import leftovers
from limner.data.sources.markdown.page import parse

PICTURES = "![a](b.png)~[![x](y.png)](z)~![al\nt](<u v.png>)~<img src='q.png'>~<img\n alt=1 src=r>"
DIALECTS = "![[w.png|3]]~{{< figure src=h.png >}}~![a](b c.png =2x)~<Image src={x('j.png')}/>~{% img l.png %}"
BLOCKS = "\n~\n\n~> ~- ~1. ~    ~\t~text ~`![n](n)`~```\n~<div>\n~# ~===\n~*~<!-- ~-->~<pre>"
MORE = '=== "T"\n~!!! n\n~```{note}\n~:::{figure} f.png\n~:::\n~:a: b\n~{{<\n~[^1]: ~: ~<picture>~</picture>~<svg>'
STRAY = "\u00a0\n~\f\n~\u2028~\\~![~[~](~)~&amp;~\u00e9\U0001f373"
BRACES = "{{~}}~{~}"


def test_every_reference_is_cut_out_exactly_in_random_markdown():
    """Also where blocks of all kinds open and close anyhow. Of the old marks alone, each cut is one picture."""
    random, total = Random(0), 0
    for number in range(1500):
        simple = number % 3 == 0
        atoms = "~".join(
            (PICTURES, BLOCKS, STRAY) if simple else (PICTURES, DIALECTS, BLOCKS, MORE, STRAY, BRACES)
        ).split("~")
        text = "".join(random.choices(atoms, k=random.randint(1, 25)))
        end = 0
        for cut in parse(text, 0).cuts:
            assert end <= cut.start <= cut.end <= len(text), text
            end = cut.end
            if cut.shown and cut.end > cut.start:
                total += 1
                assert re.match(r"!\[|\[|<|\{\{|\{%|```\{|:::\{|:a:|\s*[>:=]?", text[cut.start :]), text
                assert not simple or re.fullmatch(r"(!\[|\[|<).*[)>\]}]", text[cut.start : cut.end], re.DOTALL), text
    assert total > 1000


HOSTILE = (
    '![~[~![a](~![a][~![a](b c~![a](((~![a]( "x~<img ~<img src={~<img src="~<a a="~<Image a=\'"~<a `{ ~<x~</x>~<svg>~'
    '<picture><source srcset=a.png>~<!--x ~<?~<![CDATA[~`~*a_ ~![[a|~[[File:~{{< a ~{{ "~{% a \n~{{\n~{# ~> ~- a\n ~'
    "[a]: x\n~[a]: x.png\n![b][a]\n\n~```{note}\n~```{figure}\n---\n~```{figure}\n:a: b\n~:::\n~:::{a}\n~:::{code}\n~"
    "=== \"a\"\n~!!! a\n\n    ~<div>\n~[^a]: x\n~a\n: b\n~import a from 'b.png'\n~`x`\nimport a from 'b.png'\n~"
    'data:image/~data:image/png;base64,~data:image/png;a;a;~data:image/png;base64,AAAA\n~![a](b.png){~src = "a~url(~'
    'image::a~.. |a| ~include_graphics(~!a~{"a":~---\na: ~+++\na=~[[a.~http://a\n~    ![a](b)\n~<details>\n![a](b'
)


def seconds(text):
    """Of all that is done to a page before its pictures are looked for, in CPU time."""
    begin = time.process_time()
    text, _ = taken_out(text)
    start = front_matter(text).end
    list(leftovers(text, start, parse(text, start)))
    return time.process_time() - begin


@pytest.mark.parametrize("mark", HOSTILE.split("~"), ids=repr)
def test_a_page_twice_as_long_takes_twice_as_long(mark):
    short, long = (mark * (size // len(mark)) for size in (2000, 8000))
    assert seconds(long) < 8 * max(seconds(short), 0.02)  # four times the length; in the square of it, sixteen times


@pytest.mark.parametrize(
    ("text", "left", "gone"),
    [
        ("a\n\n<video poster=p.png src=x.mp4>\nno\n</video>\n\nb", "a\n\n\nno\n\n\nb", ["shell tag"]),
        ('<div style="background:url(x.png)">\n\nhi <b>x</b>\n\n</div>\n', "\n\nhi <b>x</b>\n\n\n", ["shell tag"]),
        ("| ![a](a.png) | ![b](b.png) |\n|:--:|---|\n| ![c](c.png) | |\n\nwords", "\nwords", ["empty table"]),
        ("| Name | P |\n|---|---|\n| Lamp | ![c](c.png) |\n", "| Name | P |\n|---|---|\n| Lamp |  |\n", []),
        ("::: {.column}\ntext\n:::\n", "\ntext\n\n", ["template tag"] * 2),
        ("::: warning Mind it\nx\n:::\n", "::: warning Mind it\nx\n\n", ["template tag"]),
        ("```\n| | |\n|-|-|\n:::\n```\n", "```\n| | |\n|-|-|\n:::\n```\n", []),
    ],
)
def test_what_says_nothing_without_its_picture_goes(text, left, gone):
    page = parse(text, 0)
    ends = [0, *(cut.end for cut in page.cuts)]
    starts = [*(cut.start for cut in page.cuts), len(text)]
    assert "".join(text[a:b] for a, b in zip(ends, starts, strict=True)) == left
    assert [cut.what for cut in page.cuts if cut.what] == gone
