"""FastVLM's bundles in an unmodified transformers.js under Node and in headless Chromium, by the class that it has for
them and by the one that finds a class."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

pytest.importorskip("timm", reason="timm is not installed")

from tests.fast_vlm_bundles import BUNDLES
from tests.onnx_bundles import Bundles, picture
from tests.prompts import ask, with_image
from tests.runtime.test_clients import SCRIPT, assert_same
from tests.serve import browser
from tests.serve.browser import loaded
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


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("fp32", CLASS), ("apple-fp32", FINDER), ("web-fp16", CLASS), ("x86", FINDER), ("apple-web-int4", CLASS)],
)
def test_node(name: str, kind: str, fast_vlm_bundle: Bundles, transformers_js: Path, tmp_path: Path) -> None:
    bundle = fast_vlm_bundle(name)
    runtime, expected = ours(bundle)
    FINAL.save(tmp_path / "picture.png")
    own = SCRIPT.parent == transformers_js
    script = SCRIPT if own else shutil.copy(SCRIPT, transformers_js / "transformers.run.mjs")
    command = ["node", str(script), str(bundle), str(tmp_path / "picture.png"), QUESTION, str(COUNT), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=transformers_js)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    prompt = ask(runtime, QUESTION, VISUAL)
    assert found["text"] == prompt.text
    assert found["input_ids"] == with_image(prompt, *[read_manifest(bundle).decoding.image_token_id] * VISUAL)
    np.testing.assert_allclose(found["pixels"], runtime.pixels(FINAL).pixel_values.ravel()[:12], atol=1e-6)
    assert_same(found["tokens"], expected, quantized(name))


IN_PAGE = """async ([kind, question, count, file]) => {
    const transformers = await import('/client/transformers.min.js');
    const { AutoProcessor, RawImage, env } = transformers;
    Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, localModelPath: '/' });
    Object.assign(env, { useBrowserCache: false, useWasmCache: false });
    env.backends.onnx.wasm.wasmPaths = {
        mjs: new URL('/client/ort-wasm-simd-threaded.mjs', location).href,
        wasm: new URL('/client/ort-wasm-simd-threaded.wasm', location).href,
    };
    env.backends.onnx.wasm.numThreads = 1;
    const processor = await AutoProcessor.from_pretrained('bundle');
    const model = await transformers[kind].from_pretrained('bundle');
    const content = [{ type: 'image' }, { type: 'text', text: question }];
    const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
    const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
    const inputs = await processor(await RawImage.fromBlob(new Blob([bytes])), text);
    const output = await model.generate({ ...inputs, max_new_tokens: count, do_sample: false });
    const ids = inputs.input_ids.tolist()[0].map(Number);
    return { ids, tokens: output.tolist()[0].map(Number).slice(ids.length) };
}"""


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
        given = base64.b64encode((tmp_path / "final.png").read_bytes()).decode()
        found = page.evaluate(IN_PAGE, [CLASS, QUESTION, COUNT, given])
        assert found["ids"] == with_image(prompt, *[read_manifest(bundle).decoding.image_token_id] * VISUAL)
        assert_same(found["tokens"], expected, quantized(name))
        browser.begin(page)
        browser.show(page, tmp_path / "wide.png", VISUAL)
        answer, ids = browser.ask(page, QUESTION)
        whole = list(runtime.generate(prompt, [wide], len(ids)))
        assert_same(ids, whole, quantized(name))
        if quantized(name) == "fp32":
            assert answer == runtime.decode(ids)
