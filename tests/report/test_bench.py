"""What bundles cost, on the terminal and as a plot."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vlmexport.artifact.bundle.summary import ParitySummary
from vlmexport.bench import BundleBench, Component, Spread
from vlmexport.report.bench import plot, table, unchecked
from vlmexport.report.scatter import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Panel, Point, svg

_SVG = "{http://www.w3.org/2000/svg}"


def checked(passed: bool, **fields: Any) -> ParitySummary:
    return ParitySummary(**{"passed": passed, "samples": 20, "runtime": "x", "notes": [], "stages": {}} | fields)


def bundle(name: str, kld: float | None = None, **changes: Any) -> BundleBench:
    parity = None if kld is None else checked(True, stages={"logits": {"kld": kld}})
    spread = Spread.of([0.01, 0.02, 0.04])
    values: dict[str, Any] = {
        "bundle": name, "kind": "onnx", "recipe": "onnx-x86", "runtime": "onnxruntime 1.31.1", "threads": 2,
        "positions": 200, "new_tokens": 64, "bytes": 12_000_000,
        "components": [Component(name="vision", bytes=3_000_000, peak_bytes=90_000_000),
                       Component(name="decoder", bytes=4_000_000, peak_bytes=None)],
        "cold": spread, "image": spread, "prompt": spread, "token": spread, "decoder_prompt": spread,
        "decoder_token": spread, "joules": None, "parity": parity,
    }  # fmt: skip
    return BundleBench(**(values | changes))


def shown(*found: BundleBench) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(found))
    return capture.get()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line)


def test_table() -> None:
    text = shown(bundle("one", 0.002), bundle("two"))
    assert row(text, "image, ms").count("20.0 (10.0–40.0)") == 2
    assert "3.0, 90" in row(text, "vision: files")
    assert "4.0, ?" in row(text, "decoder: files")
    assert "20.0 (10.0–40.0)" in row(text, "token, the runtime alone")
    assert "50.0" in row(text, "decode, tokens/s")
    assert "10000 (of 200)" in row(text, "prompt, tokens/s")
    assert "40.0" in row(text, "image to first token")
    assert "not measurable here" in row(text, "energy")
    assert "pass, KLD 0.002" in row(text, "last check")
    assert "not checked" in row(text, "last check")


def test_energy_and_a_failed_check() -> None:
    failed = checked(False, broken_stage="tokens")
    text = shown(bundle("one", joules=Spread.of([3.0, 4.0]), parity=failed))
    assert "3.5" in row(text, "energy")
    assert "FAIL at tokens" in row(text, "last check")


def test_plot_shows_parity_where_it_is_known() -> None:
    found = [bundle("one", 0.002), bundle("two")]
    assert unchecked(found) == ["two"]
    root = ElementTree.fromstring(plot(found))
    titles = [text.text for text in root.iter(f"{_SVG}text") if text.get("class") == "title"]
    assert len(titles) == 2
    assert len(list(root.iter(f"{_SVG}circle"))) == 3
    alone = ElementTree.fromstring(plot(found[1:]))
    assert len([text for text in alone.iter(f"{_SVG}text") if text.get("class") == "title"]) == 1


@given(
    st.lists(st.tuples(st.floats(0.01, 1e5), st.floats(1e-9, 1e6)), min_size=1, max_size=6),
    st.booleans(),
)
def test_points_lie_between_the_axes(values: list[tuple[float, float]], is_log: bool) -> None:
    points = [Point("<&>", x, y) for x, y in values]
    root = ElementTree.fromstring(svg([Panel("title", "MB", "y", points, is_log)]))
    for circle in root.iter(f"{_SVG}circle"):
        assert LEFT <= float(circle.get("cx", "")) <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= float(circle.get("cy", "")) <= HEIGHT - BOTTOM + 0.1
    assert len(re.findall("&lt;&amp;&gt;", svg([Panel("title", "MB", "y", points, is_log)]))) >= 2 * len(points)
