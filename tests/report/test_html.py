"""One file that needs nothing else, says what the result says, and fits a phone."""

from __future__ import annotations

import base64
import html as escaping
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.manifests import manifest as made
from tests.manifests import source_named
from tests.report.results import VIEWS, gate, measured, result, stock, views
from vlmexport.artifact.bundle.halves import ONNXRUNTIME, Budget, DecodingHalf, Role, TensorChoice
from vlmexport.artifact.bundle.manifest import File, Manifest
from vlmexport.bench import Component
from vlmexport.parity.baseline import compared
from vlmexport.parity.result import Answer, BisectResult, LayerDifference, LayerLoss, ParityResult, Picture, View
from vlmexport.recipe import parse
from vlmexport.report.html import html

DECODER: Role = "decoder_model_merged"
_VOID = {"meta", "img", "br"}
WHOLE = View(
    box=(0, 0, 64, 64), cosines={"features": [1.0] * 15 + [0.5], "tokens": [0.99] * 5}, grids={"features": (4, 4)}
)
"""One view; five tokens lie nowhere."""


def manifest(budget: Budget | None = None) -> Manifest:
    source = source_named("demo", configuration={}, weights={})
    files = [
        File(path=path, bytes=size, sha256="", role=role)
        for path, size, role in (("a", 1_500_000, DECODER), ("b", 500_000, DECODER), ("c", 10_000, None))
    ]
    recipe = parse({"name": "onnx-x86", "target": "x86"}, "test")
    decoding = DecodingHalf(engine=ONNXRUNTIME, precision="fp32", budget=budget)
    return made("onnx", source, recipe=recipe, tools={"torch": "2.12.0"}, files=files, decoding=decoding)


def picture(*views: View) -> Picture:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(content, "JPEG")
    jpeg = base64.b64encode(content.getvalue()).decode()
    return Picture(image="scene", rank="worst", views=list(views or [WHOLE]), jpeg=jpeg, size=(64, 64))


def failing() -> ParityResult:
    stages = measured(features={"cosine": 0.7}) + measured("chained", tokens={"cosine": 0.6}, logits={"kld": 0.02})
    gates = [gate(0.7), gate(0.6, "tokens", "chained")]
    hostile = (
        "the <script>alert(1)</script> & a very long answer with oneverylongwordthatdoesnotbreakanywhere" + "e" * 99
    )
    answers = [
        Answer(
            sample="1", question="What is it?", expected=["the cat"], reference="the cat", bundle=hostile, equal=False,
            first_difference=1, margin=0.25, kld=0.02,
        ),
        Answer(sample="2", question="And?", expected=[], reference="a", bundle="a", equal=True, kld=1e-9),
    ]  # fmt: skip
    found = result(False, stages=stages, gates=gates, answers=answers, pictures=[picture()])
    return compared(found, result(True, stages=measured("chained", tokens={"cosine": 0.9})))


class Page(HTMLParser):
    """Tags with their attributes, and the text by the nearest element with a class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text = " ".join([*self.text.split(), *data.split()])

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def test_it_needs_nothing_else() -> None:
    page = Page(html(failing(), manifest()))
    links = [*page.attributes("href"), *page.attributes("src")]
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    for link in page.attributes("href"):
        if link.startswith("data:"):
            with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as shown:
                assert shown.size == (64, 64)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", html(failing(), manifest()))


def test_it_says_where_it_broke() -> None:
    page = Page(html(failing(), manifest()))
    assert "Fails at features" in page.text
    strip = [attributes["class"] for tag, attributes in page.tags if tag == "li" and "class" in attributes]
    assert strip == ["missing", "broke", "fails", "passes", "missing"]
    assert "features fed by reference: cosine is 0.7, the gate is ≥ 0.99" in page.text
    assert "cosine is 0.6, the baseline's 0.9 allows ≥ 0.88999" in page.text
    assert Page(html(result(True), manifest())).text.count("Passes") == 1


def test_memory_stands_beside_size() -> None:
    halves = [Component(name="vision", bytes=2_500_000, peak_bytes=81_000_000),
              Component(name="decoder", bytes=4_000_000, peak_bytes=None)]  # fmt: skip
    page = Page(html(result(True, components=halves), manifest()))
    assert "vision 2.50 81 decoder 4.00 ?" in page.text
    assert "alone in a process" not in Page(html(result(True), manifest())).text


def test_layers() -> None:
    layers = [
        LayerDifference(layer="vision.a", stage="features", nmse=1e-13),
        LayerDifference(layer="vision.b", stage="features", nmse=None, note="values that are not finite"),
    ]
    loss = LayerLoss(layer="language.c", stage="logits", metric="kld", loss=0.125)
    found = BisectResult(sample="scene", layers=layers, first={"features": "vision.b"}, losses=[loss])
    page = Page(html(result(False, bisect=found), manifest()))
    assert "features : the first layer that diverges is vision.b ." in page.text
    assert "vision.b features values that are not finite" in page.text
    assert "language.c kld of logits 0.125" in page.text
    assert "features fed by reference: the first layer that diverges is vision.b" in page.text
    right = found.model_copy(update={"first": {}})
    assert "No layer diverges." in Page(html(result(True, bisect=right), manifest())).text
    assert "Layer by layer" not in Page(html(result(True), manifest())).text


def test_stock_says_whether_it_counts() -> None:
    for strict, words in ((False, "on 20 samples; it does not count"), (True, "on 20 samples; it counts")):
        page = Page(html(result(not strict, stock=stock(0.5), strict_stock=strict), manifest()))
        assert words in page.text
    assert "Stock is" not in Page(html(result(True), manifest())).text


def test_answers_are_text_and_part_where_they_part() -> None:
    page = html(failing(), manifest())
    assert "<script>" not in page
    assert re.search(r"<td>the <mark class=\"ours\">cat</mark></td>\s*<td>the <mark class=\"theirs\">&lt;script", page)
    assert "1 of 2 answers are equal" in page
    assert "token 2" in page


def test_patches() -> None:
    page = Page(html(failing(), manifest()))
    cells = [attributes for tag, attributes in page.tags if tag == "rect"]
    places = [(cell["x"], cell["y"], cell["width"], cell["height"], cell.get("opacity")) for cell in cells]
    assert places == [("48.0", "48.0", "16.0", "16.0", "0.9"), ("48.0", "48.0", "16.0", "16.0", None)]
    assert "worst 0.5 in row 4, column 4" in page.text
    assert "tokens : mean" not in page.text


def test_patches_of_several_views() -> None:
    """Two tiles are one map, the picture as a whole is another; each cell is where its view shows it."""
    left = View(box=(0, 0, 32, 64), cosines={"tokens": [1.0, 0.9]}, grids={"tokens": (2, 1)})
    right = View(box=(31.5, 0, 64, 64), cosines={"tokens": [1.0, 1.0, 0.8, 1.0]}, grids={"tokens": (2, 2)})
    page = Page(html(result(False, pictures=[picture(left, right, WHOLE)]), manifest()))
    cells = [attributes for tag, attributes in page.tags if tag == "rect" and "class" not in attributes]
    found = [tuple(float(cell[name]) for name in ("x", "y", "width", "height")) for cell in cells]
    assert found == [(0, 32, 32, 32), (31.5, 32, 16.25, 32), (48, 48, 16, 16)]
    lines = [attributes for tag, attributes in page.tags if tag == "rect" and attributes.get("class") == "view"]
    places = [tuple(float(line[name]) for name in ("x", "y", "width", "height")) for line in lines]
    assert places == [(0, 0, 32, 64), (31.5, 0, 32.5, 64)] * 2, "over the picture, and over the tokens of both"
    assert "as the model sees it, in 3 views" in page.text
    assert "tokens , views 1–2: mean cosine 0.95, worst 0.8 in view 2, row 2, column 1" in page.text
    assert "features , view 3: mean cosine 0.96875, worst 0.5 in view 3, row 4, column 4" in page.text


def test_sizes_budget_and_versions() -> None:
    tried = {"q4_k": (2000, 0.01), "q6_k": (3000, 0.001)}
    tensor = TensorChoice(tensor="blk.0", type="q4_k", bytes=2000, tried=tried)
    budget = Budget(tensor_bytes=3000, predicted_kld=0.01, tensors=[tensor])
    text = Page(html(result(True), manifest(budget=budget))).text
    assert "decoder 2.00 other files 0.01 all 2.01" in text
    assert "blk.0 q4_k 2,000 0.01 q6_k: 0.001" in text
    assert "2.13.0 (exported with 2.12.0)" in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_within_its_width(width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium here")
    strip = picture().model_copy(update={"size": (32, 224)})
    page = escaping.escape(html(failing().model_copy(update={"pictures": [picture(), strip]}), manifest()))
    frame = (
        f'<iframe style="width:{width}px;border:0" srcdoc="{page}"></iframe>'
        '<script>onload = () => { const page = document.querySelector("iframe").contentDocument;'
        " const { scrollWidth, clientWidth } = page.documentElement;"
        ' const high = Math.max(...[...page.querySelectorAll("svg")].map((one) => one.getBoundingClientRect().height));'
        " document.title = [scrollWidth - clientWidth, high > 60, high <= 360].join() }</script>"
    )
    (tmp_path / "frame.html").write_text(f"<!doctype html><title></title>{frame}", encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [browser, *flags, "--virtual-time-budget=3000", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search("<title>(.*)</title>", done.stdout)
    assert found, done.stderr
    assert found[1] == "0,true,true"  # nothing sticks out, and a strip does not fill the page


def test_a_budget_of_views_is_told() -> None:
    assert f"<p>T{VIEWS}. It is no gate" in html(result(True, views=views()), manifest())
    assert "budget of views" not in html(result(True), manifest())
