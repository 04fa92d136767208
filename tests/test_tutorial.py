"""The way that docs/tutorial.md shows, block by block as it stands there: a fine-tune in transformers, its bundle, its
comparison, a page of one's own from a server of files, and the page of ``serve``."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.command import vlmexport
from tests.serve import browser
from vlmexport.processing.images import read_image
from vlmexport.processing.messages import asked as messages_of
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.stages import see

pytestmark = pytest.mark.slow

chromium = browser.chromium
ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
CDN = "https://cdn.jsdelivr.net/npm/"


def fenced(language: str) -> str:
    """The one block of a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", TUTORIAL, re.DOTALL | re.MULTILINE)
    return str(block)


def commands() -> list[list[str]]:
    """What is typed, in its order."""
    plain = re.sub(r"^```.*?^```", "", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in re.findall(r"^    (\S.*)", plain, re.MULTILINE)]


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after everything that is typed up to the first server."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "models").symlink_to(ROOT / "models")
    (folder / "finetune.py").write_text(fenced("python"), encoding="utf-8")
    (folder / "page.html").write_text(fenced("html"), encoding="utf-8")
    install, finetune, export, check, serve_files, serve = commands()
    assert install == ["pip", "install", "-e", ".[export]"]
    assert finetune == ["python", "finetune.py"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path("finetune.py")
    for words in (export, check):
        assert words[0] == "vlmexport"
        done = vlmexport(*words[1:], cwd=folder)
        assert done.returncode == 0, done.stderr + done.stdout
    assert serve_files[:3] == ["python", "-m", "http.server"]
    assert serve == ["vlmexport", "serve", "web"]
    return folder


def test_what_was_trained_is_exported(way: Path) -> None:
    trained, before = (folder / "model.safetensors" for folder in (way / "fine-tuned", ROOT / "models" / "tiles"))
    assert trained.read_bytes() != before.read_bytes()
    parity = json.loads((way / "web" / "parity.json").read_text(encoding="utf-8"))
    assert (parity["passed"], parity["samples"]) == (True, len(questions(way)))


def questions(way: Path) -> list[dict[str, str]]:
    """Those that were held out."""
    lines = (way / "held-out" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def asked(way: Path) -> list[tuple[Path, str, str]]:
    """Three questions about held-out pictures, and the bundle's answers."""
    found = []
    with closing(open_runtime(way / "web")) as runtime:
        for line in questions(way)[::4][:3]:
            file = way / "held-out" / line["image"]
            seen = see(runtime, read_image(file))
            prompt = runtime.prompt(messages_of(line["question"]), [seen.views])
            ids = [token.id for token in runtime.generate(prompt, [seen.tokens], 64)]
            found.append((file, line["question"], runtime.decode(ids)))
    return found


@contextmanager
def files_served(folder: Path) -> Iterator[str]:
    """The server of files as it is typed, on a free port."""
    (words,) = [words for words in commands() if "http.server" in words]
    command = [sys.executable, "-u", *("0" if word == "8000" else word for word in words[1:])]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = re.findall(r"port (\d+)", process.stdout.readline())[0]
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.kill()


def from_npm(modules: Path, route: Route) -> None:
    """What the CDN would send: it has npm's packages."""
    package, _, rest = re.sub(r"@[\d.]+[\w.-]*(?=/|$)", "", route.request.url.removeprefix(CDN)).partition("/dist/")
    name = f"dist/{rest}" if rest else json.loads((modules / package / "package.json").read_text())["jsdelivr"]
    route.fulfill(path=modules / package / name, headers={"Access-Control-Allow-Origin": "*"})


def test_a_page(way: Path, chromium: Browser, transformers_js: Path) -> None:
    with files_served(way) as url, closing(chromium.new_page()) as page:
        page.route(f"{CDN}**", lambda route: from_npm(transformers_js / "node_modules", route))
        page.goto(f"{url}page.html")
        for file, question, answer in asked(way):
            expect(page.locator("#ask")).to_be_enabled(timeout=browser.PATIENCE)
            page.locator("#file").set_input_files(file)
            page.locator("#question").fill(question)
            page.locator("#ask").click()
            expect(page.locator("#answer")).to_have_text(answer, timeout=browser.PATIENCE)


def test_the_page_of_serve(way: Path, chromium: Browser, transformers_js: Path) -> None:
    file, question, answer = asked(way)[0]
    with browser.loaded(chromium, way / "web", transformers_js) as page:
        browser.show(page, file, 90)
        expect(page.locator("#seen")).to_contain_text("3 × 3 tiles and all of it")
        assert browser.ask(page, question)[0] == answer
