"""The page in headless Chromium."""

from __future__ import annotations

import base64
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from vlmexport.console import QUIET
from vlmexport.serve.server import open_server

CHROMIUM = shutil.which(os.environ.get("VLMEXPORT_TEST_CHROMIUM", "chromium"))
PATIENCE = 60_000  # milliseconds, for a loaded machine


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def serving(bundle: Path, transformers_js: Path) -> Iterator[str]:
    """The address of a bundle's page."""
    with open_server(bundle, None, transformers_js, QUIET) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def loaded(chromium: Browser, bundle: Path, transformers_js: Path) -> Iterator[Page]:
    """A bundle's page, loaded; at the end it has asked no other server and had no error."""
    wrong: list[str] = []
    with serving(bundle, transformers_js) as url, closing(chromium.new_page()) as opened:
        opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("request", lambda sent: wrong.append(sent.url) if not re.match(f"(blob:)?{url}", sent.url) else None)
        opened.goto(url)
        expect(opened.locator("#facts")).to_contain_text("thread", timeout=PATIENCE)
        yield opened
    assert wrong == []


def look(page: Page, file: Path, visual: int = 144) -> None:
    """Begin a conversation about a picture, and wait until the model has seen it."""
    begin(page)
    show(page, file, visual)


def begin(page: Page) -> None:
    """Begin a conversation, where the page is in one."""
    if page.locator("#anew").is_visible():
        page.locator("#anew").click()


def show(page: Page, file: Path, visual: int = 144) -> None:
    """Give a picture, and wait until the model has seen it."""
    page.locator("#file").set_input_files(file)
    expect(page.locator("#status")).to_be_empty(timeout=PATIENCE)
    expect(page.locator("#seen")).to_contain_text(f"{visual} visual tokens", timeout=PATIENCE)


def ask(page: Page, question: str) -> tuple[str, list[int]]:
    """The answer and its token ids."""
    page.locator("#question").fill(question)
    page.locator("#ask").click()
    turn = page.locator("article").last
    expect(turn.locator(".ids")).to_be_attached(timeout=PATIENCE)
    assert turn.locator(".question").inner_text() == question
    ids = turn.locator(".ids").text_content() or ""
    return turn.locator(".answer").inner_text(), [int(number) for number in ids.split()]


_CLIENT = """async ([kind, count, asked]) => {
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
    const textFirst = ['Idefics3ForConditionalGeneration', 'SmolVLMForConditionalGeneration'].includes(kind);
    const found = [];
    for (const [file, question] of asked) {
        const content = [{ type: 'image' }, { type: 'text', text: question }];
        const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
        const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
        const image = await RawImage.fromBlob(new Blob([bytes]));
        const inputs = await (textFirst ? processor(text, [image]) : processor(image, text));
        const output = await model.generate({ ...inputs, max_new_tokens: count, do_sample: false });
        const input_ids = inputs.input_ids.tolist()[0].map(Number);
        found.push({ input_ids, tokens: output.tolist()[0].map(Number).slice(input_ids.length) });
    }
    return found;
}"""


def ask_client(page: Page, asked: Sequence[tuple[Path, str]], count: int, kind: str) -> list[dict[str, Any]]:
    """Answers of transformers.js by itself, without what the page does, to pairs of picture and question: ids of the
    prompt and of the answer, ``count`` at most.

    Args:
        kind: the class that opens the bundle.
    """
    given = [[base64.b64encode(file.read_bytes()).decode(), question] for file, question in asked]
    found: list[dict[str, Any]] = page.evaluate(_CLIENT, [kind, count, given])
    return found
