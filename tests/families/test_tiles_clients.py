"""The trained model of tiles in unmodified clients: they answer as transformers does, token for token, where they see
the same pixels."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests import tiles
from tests.onnx_bundles import Bundles
from tests.runtime.gguf_clients import LlamaCppPython, serve, user
from tests.serve import browser
from tests.tiles import LONGEST, VISUAL, Answers, answered, texts
from tests.transformers_js import ask_node
from vlmexport.prepare import prepare

pytestmark = pytest.mark.slow

chromium = browser.chromium
CLASSES = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
ASKED = tiles.heldout(3)


@pytest.fixture(scope="module")
def expected() -> Answers:
    """Ids of prompts and of transformers' answers, which are mostly right and depend on the picture."""
    found = answered(ASKED)
    right = [text == one.answer for text, one in zip(texts(found), ASKED, strict=True)]
    assert sum(right) > len(ASKED) / 2
    assert len(set(texts(found))) > len(ASKED) / 2
    return found


def prepared(bundle: Path, folder: Path) -> list[tuple[Path, str]]:
    """Pictures and questions as clients are given them: ``vlmexport prepare`` has resized them."""
    folder.mkdir(exist_ok=True)
    pictures = {one.seed: folder / f"{one.seed}.png" for one in ASKED}
    for one in ASKED:
        one.image().save(pictures[one.seed])
    ready = {one.source: one.file for one in prepare(bundle, list(pictures.values()), folder / "ready")}
    return [(ready[pictures[one.seed]], one.text) for one in ASKED]


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_js_under_node(
    kind: str, expected: Answers, tiles_bundle: Bundles, transformers_js: Path, tmp_path: Path
) -> None:
    bundle = tiles_bundle("fp32")
    found = ask_node(transformers_js, bundle, prepared(bundle, tmp_path), LONGEST, kind)
    assert [(one["input_ids"], one["tokens"]) for one in found] == expected


def test_transformers_js_in_chromium(
    expected: Answers, tiles_bundle: Bundles, chromium: Browser, transformers_js: Path, tmp_path: Path
) -> None:
    """By itself with prepared pictures, and by the page of ``serve``, which makes views itself, with them as they
    are."""
    bundle = tiles_bundle("fp32")
    with browser.loaded(chromium, bundle, transformers_js) as page:
        for kind in CLASSES:
            found = browser.ask_client(page, prepared(bundle, tmp_path / kind), LONGEST, kind)
            assert [(one["input_ids"], one["tokens"]) for one in found] == expected
        seen: set[int] = set()
        for one, (_, ids), text in zip(ASKED, expected, texts(expected), strict=True):
            browser.begin(page)
            if one.seed not in seen:
                one.image().save(tmp_path / "picture.png")
                browser.show(page, tmp_path / "picture.png", VISUAL)
            seen.add(one.seed)
            assert browser.ask(page, one.text) == (text, ids)


@pytest.fixture(scope="module")
def spoken(tiles_bundle: Bundles) -> list[str]:
    """What transformers answers of the model in the GGUF bundle."""
    return texts(answered(ASKED, tiles_bundle("gguf").with_name("with-line-breaks")))


def test_llama_cpp_python(spoken: list[str], tiles_bundle: Bundles) -> None:
    """By its handler for any mmproj; libmtmd cuts the pictures as they are."""
    with closing(LlamaCppPython(tiles_bundle("gguf"))) as client:
        assert [client.ask(user(one.image(), one.text)).strip() for one in ASKED] == spoken


def test_xllamacpps_server(spoken: list[str], tiles_bundle: Bundles) -> None:
    """Over HTTP, pictures as data URLs; sampling is what the file says."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    with serve(tiles_bundle("gguf")) as server:
        assert [server.ask(user(one.image(), one.text)).strip() for one in ASKED] == spoken
