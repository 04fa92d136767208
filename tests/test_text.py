"""No text of a user is markup: in Markdown, the terminal, XML, SVG and HTML it is shown as it is."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from tests.command import vlmexport
from tests.manifests import manifest as made
from tests.manifests import source_named
from tests.report.results import result
from vlmexport.artifact.bundle.card import card
from vlmexport.artifact.bundle.manifest import File, Manifest
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.console import Screen
from vlmexport.parity.result import Answer
from vlmexport.recipe import Recipe
from vlmexport.report.bundle import facts, table
from vlmexport.report.html import html
from vlmexport.report.junit import junit
from vlmexport.report.markdown import markdown as report
from vlmexport.report.scatter import Panel, Point, svg
from vlmexport.report.terminal import parity
from vlmexport.text import markdown, markdown_code, one_line, plain

HARD = (
    "out[v2]", "a[/b]", "[bold]x[/bold]", ":smile: a:b", "<script>alert(1)</script>", "a|b", "a\\|b\\", "`x` ``",
    "*a* _b_ __c__", "1. one", "- two", "+ three", "---", "# head #", "[x](http://y) ![z](w)", "www.a.org and me@b.org",
    "@you #12", "~~x~~", "a & b &amp; &#65;", "x\ny\n::error::z", "\x1b[31mred", "caf\udcff", "\u202egnp.x", "$x$",
    "snake_case_name", "=", "    code",
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(HARD), st.text("[]/\\`*_|<>&#:@.-+=~!$() \n1aé\x1b\x00\ud800😀", min_size=1, max_size=12)
)
CASES = settings(max_examples=60, deadline=None)


def shown(source: str) -> list[str]:
    """What a reader of Markdown sees, block by block; fails where anything in it is markup."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(source)
    found = []
    for block in blocks:
        assert block.type not in ("html_block", "code_block", "fence", "hr"), source
        pieces = block.children or []
        allowed = {"text", "text_special", "code_inline"} | {
            "html_inline" for p in pieces if p.content in ("<code>", "</code>")
        }
        assert {piece.type for piece in pieces} <= allowed, source
        if block.type == "inline":
            found.append("".join(p.content for p in pieces if p.type != "html_inline").replace("\u200b", ""))
    return found


@CASES
@given(TEXTS)
def test_markdown(text: str) -> None:
    if not (line := one_line(text)):
        return
    for escaped in (markdown(text), markdown_code(line)):
        assert shown(f"## {escaped}\n") == [line]
        assert shown(f"- {escaped}\n") == [line]
        assert shown(f"| a | b |\n|---|---|\n| {escaped} | x |\n") == ["a", "b", line, "x"]


@pytest.mark.parametrize("text", ["@you", "#12", ":smile:", "http://a.org", "www.a.org", "me@b.org"])
def test_what_github_links_by_itself_is_broken(text: str) -> None:
    assert "\u200b" in markdown(text)
    assert markdown("12:30 a_b.onnx, 3.5: x") == "12:30 a_b.onnx, 3.5: x"


@CASES
@given(TEXTS)
def test_terminal(text: str) -> None:
    for force in (False, True):
        out = StringIO()
        screen = Screen(file=out, width=200, force_terminal=force, color_system=None)
        table = Table(title=text, caption=text, title_justify="left")
        table.add_column(one_line(text))
        table.add_row(one_line(text))
        table.add_row(Text(one_line(text), style="red"))
        screen.print(table)
        screen.print(text)
        screen.out(text)
        written = out.getvalue()
        assert plain(written) == written
        assert written.count(one_line(text)) >= 3
        assert text.strip() == "" or plain(text).splitlines()[0].strip() in written


def test_terminal_in_another_encoding(tmp_path: Path) -> None:
    """A stream that knows ASCII alone gets a frame of ASCII, and question marks."""
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        table = Table("stage", "é → 😀")
        table.add_row("x", "≥ \udcff")
        Screen(file=file, width=60).print(table)
    assert "? ? ?" in (tmp_path / "out").read_text(encoding="ascii")


class Page(HTMLParser):
    """Elements and the text of the heading."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.heading, self._inside = "", False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self._inside = tag == "h1"

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "h1"

    def handle_data(self, data: str) -> None:
        self.heading += data if self._inside else ""


def manifest(name: str) -> Manifest:
    source = source_named(name)
    try:
        file = File(path=name, bytes=1, sha256="0" * 64, role="mmproj")
    except ValidationError:  # no path inside of a bundle
        file = File(path="a", bytes=1, sha256="0" * 64)
    recipe = Recipe(name=name)
    return made("onnx", source, recipe=recipe, files=[file], notes=[name or "-"])


def whole(text: str) -> Answer:
    return Answer(sample=text, question=text, expected=[text], reference=text, bundle=text, equal=False)


ELEMENTS = Page(html(result(True), manifest("x"))).elements | {"br", "code"}


@CASES
@given(TEXTS)
@example("a\r\nb")
def test_reports(text: str) -> None:
    found = result(True, bundle=text, recipe=text, reference=text, runtime=text, notes=[text], answers=[whole(text)])
    page = html(found, manifest(plain(text)))  # a manifest is JSON, which holds text alone
    page.encode()
    assert Page(page).elements <= ELEMENTS
    assert Page(page).heading == plain(text)
    suite = ET.fromstring(junit(found)).find("testsuite")
    assert suite is not None
    assert suite.get("name") == f"vlmexport check {plain(text)}"
    summary = report(found).replace("<details><summary>1 of 1 answers differ</summary>", "").replace("</details>", "")
    seen = shown(summary)
    if line := one_line(text):
        assert f"{line} passes" in seen
        assert seen.count(line) >= 4


@CASES
@given(TEXTS)
def test_card(text: str) -> None:
    if line := one_line(text):
        seen = shown(card(manifest(text)).replace("`vlmexport run . --image IMAGE QUESTION`", "it"))
        assert seen[0] == f"{line}, {line}"
        assert seen.count(line) >= (2 if manifest(text).files[0].path == text else 1), "a note, and a path"


@CASES
@given(TEXTS)
def test_plots(text: str) -> None:
    drawn = svg([Panel(text, text, text, [Point(text, 1.0, 2.0), Point("other", 2.0, 1.0)])])
    labels = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert labels.count(plain(text)) >= 3


def test_a_name_with_brackets_is_shown(tmp_path: Path) -> None:
    """The folder, the files and the recipe of a bundle; a path that holds what rich takes for a closing tag."""
    folder = tmp_path / "a[" / "out]:smile:[v2]"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(manifest("[int8]enc.onnx").model_dump_json())
    found = vlmexport("inspect", folder)
    assert (found.returncode, found.stderr) == (0, "")
    assert str(folder) in found.stdout.replace("\n", "")
    assert found.stdout.count("[int8]enc.onnx") == 2
    assert "[/x" in vlmexport("inspect", "no[/x").stderr


def test_a_verdict_shows_names_and_answers() -> None:
    out = StringIO()
    found = result(False, bundle="out[v2]", answers=[whole("is [it] :cat: red?\n::error::no")])
    Screen(file=out, width=200).print(parity(found))
    Screen(file=out, width=200).print(table(facts(Path("out[v2]"), manifest("[x]"))))
    assert out.getvalue().count("out[v2]") == 3
    assert "is [it] :cat: red? ::error::no → " in out.getvalue()
