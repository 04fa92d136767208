"""FastVLM's bundles in an unmodified transformers.js under Node and in headless Chromium, by the class that it has for
them and by the one that finds a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

pytest.importorskip("timm", reason="timm is not installed")

from tests.fast_vlm_bundles import BUNDLES
from tests.onnx_bundles import Bundles, picture
from tests.prompts import ask, with_image
from tests.runtime.test_clients import assert_same
from tests.serve import browser
from tests.serve.browser import loaded
from tests.transformers_js import ask_node
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.ort.halves import OrtHalves
from vlmexport.runtime.stages import Token

pytestmark = pytest.mark.slow

chromium = browser.chromium
QUESTION, COUNT, VISUAL = "what is the chat ?", 8, 16
CLASS, FINDER = "LlavaQwen2ForCausalLM", "AutoModelForImageTextToText"
FINAL = picture(5, (256, 256))
"""A picture of the size that the tower takes."""


def ours(bundle: Path) -> tuple[Joined, list[Token]]:
    """Our runtime, and its answer about a picture that no client has to resize."""
    runtime = join(OrtHalves(bundle, read_manifest(bundle)))
    tokens = runtime.tokens(runtime.features(runtime.pixels(FINAL)))
    return runtime, list(runtime.generate(ask(runtime, QUESTION, VISUAL), [tokens], COUNT))


def quantized(name: str) -> str:
    return "fp32" if "fp32" in BUNDLES[name][1] else "quantized"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fp32", CLASS), ("apple-fp32", FINDER), ("web-fp16", CLASS), ("x86", FINDER), ("apple-web-int4", CLASS)],
)
def test_node(name: str, kind: str, fast_vlm_bundle: Bundles, transformers_js: Path, tmp_path: Path) -> None:
    bundle = fast_vlm_bundle(name)
    runtime, expected = ours(bundle)
    FINAL.save(tmp_path / "picture.png")
    (found,) = ask_node(transformers_js, bundle, [(tmp_path / "picture.png", QUESTION)], COUNT, kind)
    prompt = ask(runtime, QUESTION, VISUAL)
    assert found["text"] == prompt.text
    assert found["input_ids"] == with_image(prompt, *[read_manifest(bundle).decoding.image_token_id] * VISUAL)
    np.testing.assert_allclose(found["pixels"], runtime.pixels(FINAL).pixel_values.ravel()[:12], atol=1e-6)
    assert_same(found["tokens"], expected, quantized(name))


@pytest.mark.parametrize("name", ["fp32", "x86", "apple-web-int4"])
def test_chromium(
    name: str, fast_vlm_bundle: Bundles, chromium: Browser, transformers_js: Path, tmp_path: Path
) -> None:
    """The page of ``serve`` answers about pictures of any size as our runtime does, because it resizes them itself; and
    transformers.js by itself about one that has its final size."""
    bundle = fast_vlm_bundle(name)
    runtime, expected = ours(bundle)
    prompt = ask(runtime, QUESTION, VISUAL)
    FINAL.save(tmp_path / "final.png")
    picture(6, (300, 220)).save(tmp_path / "wide.png")
    wide = runtime.tokens(runtime.features(runtime.pixels(picture(6, (300, 220)))))
    with loaded(chromium, bundle, transformers_js) as page:
        (found,) = browser.ask_client(page, [(tmp_path / "final.png", QUESTION)], COUNT, CLASS)
        assert found["input_ids"] == with_image(prompt, *[read_manifest(bundle).decoding.image_token_id] * VISUAL)
        assert_same(found["tokens"], expected, quantized(name))
        browser.begin(page)
        browser.show(page, tmp_path / "wide.png", VISUAL)
        answer, ids = browser.ask(page, QUESTION)
        whole = list(runtime.generate(prompt, [wide], len(ids)))
        assert_same(ids, whole, quantized(name))
        if quantized(name) == "fp32":
            assert answer == runtime.decode(ids)
