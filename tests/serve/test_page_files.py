"""The page without a browser: what is served, under which headers, and what its files never do."""

import re
from pathlib import Path

import limner.serve.api as api
from limner.models.documents.rendering import PAGE_CSS

PAGE = Path(api.__file__).with_name("page")
FORBIDDEN = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|Function\(|import\(|https?:|[sS]torage|cookie"


def test_every_file_is_served_under_the_policy(server):
    _, headers, html = server.ask("/")
    assert headers["content-type"] == "text/html; charset=utf-8" and b"<textarea" in html
    policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    named = re.findall(r'(?:src|href)="([^"]+)"', html.decode())
    assert named == ["data:,", "look.css", "page.css", "page.js"]
    for path in PAGE.iterdir():
        status, headers, body = server.ask(f"/{path.name}")
        assert status == 200 and headers["content-type"] == api.TYPES[path.suffix] and body == path.read_bytes()
        for module in re.findall(r'from "\./([^"]+)"', path.read_text()):
            assert (PAGE / module).is_file()


def test_it_looks_like_our_reports(server):
    _, headers, css = server.ask("/look.css")
    assert headers["content-type"] == "text/css; charset=utf-8" and css.decode().startswith(PAGE_CSS)


def test_words_only_become_text_and_nothing_is_kept_or_fetched_from_elsewhere():
    for path in PAGE.glob("*.js"):
        assert not (found := re.search(FORBIDDEN, path.read_text())), f"{path.name}: {found}"
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|<script(?![^>]* src=)|\son\w+=|javascript:|https?:", html)
