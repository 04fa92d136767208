"""The page in headless Chromium: unmodified transformers.js on the demo's bundle answers as ``vlmexport run`` does."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from playwright.sync_api import Browser, Page, expect
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests import prompts
from tests.onnx_bundles import picture
from tests.serve.browser import PATIENCE, ask, begin, loaded, look, show
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.artifact.onnx.client_files import Layout, processor
from vlmexport.calibrate.samples import calibration_folder, heldout_samples
from vlmexport.checkpoint.spec import Spec
from vlmexport.demo.heldout import heldout_scenes
from vlmexport.demo.paint import paint
from vlmexport.pipeline import export
from vlmexport.processing.images import read_image
from vlmexport.processing.messages import Message, asked
from vlmexport.processing.prompt import Seen
from vlmexport.processing.square import prepared
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.stages import F32, see
from vlmexport.source.locate import open_model

pytestmark = pytest.mark.slow

PHOTO = calibration_folder() / "images" / "photo-chelsea.jpg"
"""Wider than it is high, and nothing that the demo model knows."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = resolve("onnx-web", {"calibration.samples": 8}, {})
    return export("demo", recipe, tmp_path_factory.mktemp("serve") / "demo")


@pytest.fixture(scope="module")
def page(chromium: Browser, demo: Path, transformers_js: Path) -> Iterator[Page]:
    """The demo's."""
    with loaded(chromium, demo, transformers_js) as opened:
        yield opened


@pytest.fixture
def scenes(tmp_path: Path) -> list[Path]:
    """Files of pictures that the demo model knows."""
    files = []
    for scene in heldout_scenes(3):
        files.append(tmp_path / f"scene-{scene.seed}.png")
        paint(scene).save(files[-1])
    return files


def test_the_same_tokens_as_run(page: Page, demo: Path, tmp_path: Path) -> None:
    samples = heldout_samples()
    pictures = {f"scene-{scene.seed}": paint(scene) for scene in heldout_scenes(3)} | {"photo": read_image(PHOTO)}
    answers = set()
    with closing(open_runtime(demo)) as runtime:
        for name, image in pictures.items():
            image.save(tmp_path / f"{name}.png")
            look(page, tmp_path / f"{name}.png")
            tokens = runtime.tokens(runtime.features(runtime.pixels(image)))
            asked = [sample.question for sample in samples if sample.image_id == name] or ["Describe the picture."]
            for question in asked:
                expected = [token.id for token in runtime.generate(prompts.ask(runtime, question), [tokens], 64)]
                begin(page)
                assert ask(page, question) == (runtime.decode(expected), expected)
                answers.add(runtime.decode(expected))
    assert len(answers) > 6  # they depend on picture and question


QUESTIONS = ("Describe the picture.", "How many objects are there?", "What is on the left?")


def assert_conversation(page: Page, bundle: Path, turns: list[tuple[list[Path], str]]) -> None:
    """Ask each question with its new pictures: the answers are those of ONNX Runtime to the conversation so far."""
    messages: list[Message] = []
    seen: list[Seen[F32]] = []
    with closing(open_runtime(bundle)) as runtime:
        for files, question in turns:
            for file in files:
                show(page, file)
                seen.append(see(runtime, read_image(file)))
            messages += asked(question, len(files))
            prompt, tokens = runtime.prompt(messages, [one.views for one in seen]), [one.tokens for one in seen]
            expected = [token.id for token in runtime.generate(prompt, tokens, 64)]
            assert ask(page, question) == (runtime.decode(expected), expected)
            expect(page.locator("article").last.locator("img")).to_have_count(len(files))
            length = page.locator("summary").last.inner_text()
            assert length == f"{len(expected)} tokens, after a prompt of {len(prompt.ids)}"
            messages.append(Message("assistant", (runtime.decode(expected),)))


def test_several_turns(page: Page, demo: Path, scenes: list[Path]) -> None:
    begin(page)
    first, *others = QUESTIONS
    assert_conversation(page, demo, [(scenes[:1], first), *(([], question) for question in others)])


def test_a_second_picture_is_refused_where_one_was_trained(page: Page, scenes: list[Path]) -> None:
    look(page, scenes[0])
    show(page, scenes[1])  # instead of the first: nothing was said of it
    (_, whole) = ask(page, QUESTIONS[0])
    page.locator("#file").set_input_files(scenes[2])
    expect(page.locator("#status")).to_have_text("The model was trained with one picture: begin a new conversation.")
    expect(page.locator("#shown")).to_have_attribute("alt", f"The picture: {scenes[1].name}")
    begin(page)  # about the same picture
    expect(page.locator("article")).to_have_count(0)
    assert ask(page, QUESTIONS[0])[1] == whole
    begin(page)
    show(page, scenes[2])
    assert ask(page, QUESTIONS[0])[1] != whole


def test_several_pictures(
    chromium: Browser, demo: Path, transformers_js: Path, scenes: list[Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(demo, tmp_path / "several")
    manifest = read_manifest(bundle)
    manifest.source.spec.max_images = None
    write_manifest(bundle, manifest)
    first, second, third = QUESTIONS
    with loaded(chromium, bundle, transformers_js) as page:
        assert_conversation(page, bundle, [(scenes[:2], first), ([], second), (scenes[2:], third)])


def test_a_marker_in_a_question_is_refused(page: Page, scenes: list[Path]) -> None:
    look(page, scenes[0])
    page.locator("#question").fill("Is <image> a picture?")
    page.locator("#ask").click()
    expect(page.locator("article .wrong")).to_have_text(
        "No answer: <image> stands for a picture, leave it out of what is said"
    )
    ask(page, QUESTIONS[0])  # the picture still waits for a question


def test_speed_is_shown(page: Page) -> None:
    look(page, PHOTO)
    ask(page, "Describe the picture.")
    assert re.fullmatch(r"image ([\d.]+ m?s), 144 visual tokens", page.locator("#seen").inner_text())
    measures = page.locator("article .measures").last.inner_text()
    ids = (page.locator("article .ids").last.text_content() or "").split()
    assert page.locator("summary").last.inner_text() == f"{len(ids)} tokens, after a prompt of 185"
    assert re.fullmatch(r"first token [\d.]+ m?s · [\d.]+ tokens/s", measures)
    threads = min(os.cpu_count() or 1, 4)
    assert f"WebAssembly, {threads} thread" in page.locator("#facts").inner_text()


LEVELS = """async ([file, config]) => {
    const { cut, decode } = await import('/pixels.js');
    const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
    const { pictures } = cut(await decode(new Blob([bytes])), config);
    return btoa(pictures.map(({ data }) => Array.from(data, (level) => String.fromCharCode(level)).join('')).join(''));
}"""


def levels(page: Page, file: Path, config: dict[str, Any]) -> np.ndarray:
    """u8 of all views, as the page cuts a picture file."""
    found = page.evaluate(LEVELS, [base64.b64encode(file.read_bytes()).decode(), config])
    return np.frombuffer(base64.b64decode(found), np.uint8)


def told(spec: Spec) -> dict[str, Any]:
    """A bundle's ``processor_config.json``."""
    return processor(Layout(spec, image_token=0, image_tokens=144, special={}))


@pytest.mark.parametrize("aspect_ratio", ["pad", "crop"])
@pytest.mark.parametrize("size", [None, (500, 211), (70, 90), (336, 336)])  # None: a JPEG; others lie on their side
def test_the_same_pixels_as_pil(size: tuple[int, int] | None, aspect_ratio: str, page: Page, tmp_path: Path) -> None:
    file = PHOTO
    if size is not None:
        file = tmp_path / "picture.png"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        picture(7, size).save(file, exif=exif)
    spec = open_model("demo").spec
    spec = replace(spec, image_processor=spec.image_processor.with_padding(aspect_ratio == "pad"))
    expected = np.asarray(prepared(read_image(file), spec.image_processor))
    np.testing.assert_array_equal(levels(page, file, told(spec)), expected.ravel())


def test_the_same_tiles_as_pil(page: Page, tmp_path: Path) -> None:
    """Of a telephone's picture, which lies on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(PHOTO).resize((4032, 3024)).save(tmp_path / "photo.jpg", exif=exif)
    tiles = Idefics3ImageProcessorPil(size={"longest_edge": 1024}, max_image_size={"longest_edge": 512})
    image = read_image(tmp_path / "photo.jpg")
    assert image.size == (3024, 4032)
    expected = np.asarray(tiles(image, do_rescale=False, do_normalize=False)["pixel_values"][0])
    found = levels(page, tmp_path / "photo.jpg", json.loads(tiles.to_json_string()))
    np.testing.assert_array_equal(found, expected.transpose(0, 2, 3, 1).ravel())


def test_what_is_transparent_is_white(page: Page, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 4), dtype=np.uint8)
    pixels[..., 3] = np.where(pixels[..., 3] > 128, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    spec = open_model("demo").spec
    expected = np.asarray(prepared(read_image(tmp_path / "picture.png"), spec.image_processor))
    np.testing.assert_array_equal(levels(page, tmp_path / "picture.png", told(spec)), expected.ravel())


GIVE = """([file, kind]) => {
    const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], 'given.png', { type: 'image/png' }));
    const event = kind === 'drop' ? new DragEvent('drop', { dataTransfer: transfer, bubbles: true })
        : new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true });
    document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(kind: str, page: Page, tmp_path: Path) -> None:
    look(page, PHOTO)
    file = tmp_path / "scene.png"
    paint(next(heldout_scenes(1))).save(file)
    page.evaluate(GIVE, [base64.b64encode(file.read_bytes()).decode(), kind])
    expect(page.locator("#shown")).to_have_attribute("alt", "The picture: given.png")
    expect(page.locator("#seen")).to_contain_text("visual tokens", timeout=PATIENCE)
    (sample, *_) = heldout_samples()
    assert ask(page, sample.question)[0] == sample.answer


def test_keyboard_alone(page: Page) -> None:
    begin(page)
    page.locator("#file").focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the second example
    expect(page.locator("#shown")).to_have_attribute("alt", re.compile("example"))
    expect(page.locator("#seen")).to_contain_text("visual tokens", timeout=PATIENCE)
    for _ in range(2):  # the third example, the question
        page.keyboard.press("Tab")
    expect(page.get_by_role("textbox", name="Question")).to_be_focused()
    page.keyboard.type("How many objects are there?")
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(1)
    expect(page.locator("article .ids")).to_have_count(1, timeout=PATIENCE)
    for key in ("Shift+Tab", "Enter"):  # the button of a new conversation
        page.keyboard.press(key)
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_role("textbox", name="Question")).to_be_focused()


def test_stop(page: Page) -> None:
    look(page, PHOTO)
    _, whole = ask(page, "Describe the picture.")
    begin(page)
    page.evaluate("() => { document.forms[0].requestSubmit(); document.getElementById('stop').click(); }")
    expect(page.locator("article .ids")).to_have_count(1, timeout=PATIENCE)
    assert page.locator("article .ids").last.text_content() == str(whole[0])
    assert len(whole) > 1


def test_an_unreadable_picture(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    begin(page)
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    expect(page.locator("#status")).to_contain_text("This picture cannot be read", timeout=PATIENCE)
    expect(page.locator("#ask")).to_be_disabled()
    look(page, PHOTO)
    expect(page.locator("#ask")).to_be_enabled()
