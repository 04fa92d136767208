"""llama.cpp against the float model, stage by stage; and what happens when it dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export
from tests.prompts import around, ask, texts
from tests.runtime.rows import assert_rows_are_those_that_are_asked_for
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.errors import CheckpointError, MissingDependency, UsageError, VlmExportError
from vlmexport.model import plugins
from vlmexport.prepare import prepare
from vlmexport.processing.image import PIXELS, ProcessedImage, pixel_values
from vlmexport.processing.prompt import PLACEHOLDER, Prompt, Span, Views
from vlmexport.processing.square import as_square
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.llamacpp import vision as llamacpp
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.runtime.llamacpp.probe.probe import probe
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import F32, Features, Repairing, Runtime
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

posix = pytest.mark.skipif(os.name != "posix", reason="looks at signals")
QUESTION = "What's left of the\nchat? Ü"


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Blobs of colour, 336 pixels square."""
    pixels = np.random.default_rng(0).integers(0, 255, (21, 21, 3), np.uint8)
    return Image.fromarray(pixels).resize((336, 336), Image.Resampling.BICUBIC)


def cosine(a: F32 | Features, b: F32 | Features) -> float:
    """Smallest cosine of two rows."""
    a, b = (value.rows if isinstance(value, Features) else value for value in (a, b))
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


@pytest.fixture(scope="module", params=["mlp2x_gelu", "ldpnet", "ldpnetv2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("llamacpp") / "tiny"
    return open_checkpoint(write_checkpoint(folder, tiny_spec(request.param, num_kv_heads=2)))


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> ReferenceRuntime:
    return ReferenceRuntime(checkpoint)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint) -> Path:
    folder = checkpoint.path.parent / "f16"
    export(checkpoint, folder, type="f16")
    return folder


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Joined]:
    with closing(join(LlamaCppHalves(bundle, read_manifest(bundle)))) as opened:
        yield opened


@pytest.fixture
def small(tiny: Checkpoint, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    export(tiny, tmp_path / "bundle", type="q8_0")
    return tmp_path / "bundle"


def open_bundle(folder: Path, **options: bool | int) -> Joined:
    return join(LlamaCppHalves(folder, read_manifest(folder), **options))


def test_is_a_runtime(runtime: Runtime) -> None:
    assert runtime.name.startswith("llama-cpp-python 0.")
    assert runtime.stop_token_ids == (2,)


def test_pixels(runtime: Joined, reference: ReferenceRuntime, image: Image.Image) -> None:
    assert np.abs(runtime.pixels(image).pixel_values - reference.pixels(image).pixel_values).max() < 1e-6


@pytest.mark.parametrize("size", [(400, 300), (120, 500), (1, 1), (1, 40), (333, 336)])
@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_pictures_that_are_not_square(
    aspect: str, size: tuple[int, int], bundle: Path, runtime: Joined, image: Image.Image
) -> None:
    """They are made square before the call. What the library makes of them by itself is shown as stock."""
    manifest, picture = read_manifest(bundle), image.resize(size)
    spec = manifest.image_processor.with_padding(aspect == "pad")
    expected = pixel_values(picture, spec)
    found = runtime.seeing.preprocess(as_square(picture, spec), own=False)
    assert np.abs(found.pixel_values - expected).max() < 1e-6
    if aspect != "pad":
        return
    assert np.abs(runtime.pixels(picture).pixel_values - expected).max() < 1e-6
    view = runtime.stock([picture])
    assert view is not None
    if max(size) / min(size) > 1.1:
        assert np.abs(view.pixels(picture).pixel_values - expected).max() > 0.02


def test_a_prepared_picture_is_taken_as_it_is(
    bundle: Path, runtime: Joined, image: Image.Image, tmp_path: Path
) -> None:
    """Stock libmtmd has nothing to resize or to pad."""
    image.resize((300, 900)).save(tmp_path / "photo.png")
    (one,) = prepare(bundle, [tmp_path / "photo.png"], tmp_path / "out")
    expected = pixel_values(Image.open(one.source), read_manifest(bundle).image_processor)
    found = runtime.seeing.preprocess(Image.open(one.file), own=False)
    assert np.abs(found.pixel_values - expected).max() < 1e-6


def test_of_square_pictures_nothing_runs_twice(
    bundle: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library places the class token right, stock differs for pictures that are not square."""
    monkeypatch.setattr(llamacpp, "probe", lambda: replace(probe(), class_token="first", stock=1.0))
    with closing(open_bundle(bundle)) as right:
        assert right.stock([image, image]) is None
        assert right.stock([image, image.resize((40, 30))]) is not None


def test_features_and_tokens(runtime: Joined, reference: ReferenceRuntime, image: Image.Image) -> None:
    pixels = reference.pixels(image)
    features = reference.features(pixels)
    tokens = reference.tokens(features)
    assert cosine(runtime.features(pixels), features) > 0.9999
    assert cosine(runtime.tokens(features), tokens) > 0.9999
    assert cosine(runtime.tokens(runtime.features(runtime.pixels(image))), tokens) > 0.9999


def test_stages_take_what_they_are_given(runtime: Joined, reference: ReferenceRuntime) -> None:
    """No stage looks at an earlier one's input: random pixels and random features go through."""
    rng = np.random.default_rng(1)
    pixels = ProcessedImage({PIXELS: rng.standard_normal((2, 3, 336, 336), np.float32)}, Views(((1, 1),) * 2))
    features = Features(tuple(rng.standard_normal((2, 576, 64), np.float32)))
    assert cosine(runtime.features(pixels), reference.features(pixels)) > 0.9999
    assert cosine(runtime.tokens(features), reference.tokens(features)) > 0.9999


def test_prompt(runtime: Joined, reference: ReferenceRuntime) -> None:
    expected = ask(reference, QUESTION)
    assert ask(runtime, QUESTION) == expected
    before, after = texts(expected)
    assert before[0] == 1
    assert after[0] != 1
    assert ask(runtime, "") == ask(reference, "")


def test_logits_and_answer(runtime: Joined, reference: ReferenceRuntime, image: Image.Image) -> None:
    tokens = reference.tokens(reference.features(reference.pixels(image)))
    prompt = ask(reference, QUESTION, len(tokens))
    expected, found = reference.logits(prompt, [tokens], 0), runtime.logits(prompt, [tokens], 0)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.02
    assert_rows_are_those_that_are_asked_for(runtime, prompt, tokens)
    answer = list(reference.generate(prompt, [tokens], 10))
    ours = list(runtime.generate(prompt, [tokens], 10))
    assert [token.id for token in ours] == [token.id for token in answer]
    assert np.allclose([token.margin for token in ours], [token.margin for token in answer], atol=0.02)
    assert runtime.decode([token.id for token in ours]) == reference.decode([token.id for token in answer])


def test_long_prompts_go_in_batches(runtime: Joined, reference: ReferenceRuntime) -> None:
    prompt = around((1, *range(5, 300)) * 2, (7,) * 40, 600)
    tokens = np.random.default_rng(2).standard_normal((600, 256), np.float32) * 0.05
    found = runtime.logits(prompt, [tokens], 0)
    assert np.abs(found - reference.logits(prompt, [tokens], 0)).max() < 0.05
    for last in (1, 41, 700):  # the last batch, two pieces, three
        np.testing.assert_allclose(runtime.logits(prompt, [tokens], last), found[:, -last:], atol=1e-3 * found.max())


def test_views_and_images_go_in_their_order(runtime: Joined, reference: ReferenceRuntime) -> None:
    """Ids before, between and behind views; two views of an image side by side; the second image without an id before
    it, and longer than a batch."""
    ids = [1, *range(5, 12)]
    spans: list[Span] = []
    for image, view, grid, behind in ((0, 0, (2, 3), (7, 8)), (0, 1, (2, 3), ()), (0, 2, (1, 4), ()),
                                      (1, 0, (20, 30), (9,)), (1, 1, (2, 2), (10, 11, 12))):  # fmt: skip
        count = grid[0] * grid[1]
        spans.append(Span(len(ids), count, image, view, grid))
        ids += [*[PLACEHOLDER] * count, *behind]
    prompt = Prompt("", tuple(ids), tuple(spans))
    random = np.random.default_rng(3)
    tokens = [random.standard_normal((count, 256), np.float32) * 0.05 for count in (16, 604)]
    expected = reference.logits(prompt, tokens, 0)
    assert np.abs(runtime.logits(prompt, tokens, 0) - expected).max() < 0.05
    others = [tokens[0][::-1].copy(), tokens[1]]
    assert np.abs(runtime.logits(prompt, others, 0) - expected).max() > 0.5, "the order counts"


def test_without_repair_features_are_wrong(
    bundle: Path, runtime: Joined, reference: ReferenceRuntime, image: Image.Image
) -> None:
    """Contract A: should this fail because a newer libmtmd is right, the notes say so and the repair does nothing."""
    assert any("class-token repair" in note for note in runtime.notes)
    pixels = reference.pixels(image)
    with closing(open_bundle(bundle, repair=False)) as stock:
        assert any("left as it is" in note for note in stock.notes)
        assert cosine(stock.features(pixels), reference.features(pixels)) < 0.9
        assert stock.stock([image]) is None
    view = runtime.stock([image])
    assert isinstance(runtime, Repairing)
    assert view is not None
    assert cosine(view.features(pixels), reference.features(pixels)) < 0.9
    assert cosine(runtime.features(pixels), reference.features(pixels)) > 0.9999
    view.close()
    assert ask(runtime, "A?").text


@pytest.mark.slow
def test_an_mmproj_in_q8_0(checkpoint: Checkpoint, reference: ReferenceRuntime, image: Image.Image) -> None:
    folder = checkpoint.path.parent / "q8_0"
    export(checkpoint, folder, type="f16", mmproj_type="q8_0", force=True)
    features = reference.features(reference.pixels(image))
    with closing(open_bundle(folder)) as runtime:
        assert cosine(runtime.features(reference.pixels(image)), features) > 0.999
        tokens = runtime.tokens(runtime.features(runtime.pixels(image)))
    assert 0.999 < cosine(tokens, reference.tokens(features)) < 0.99999


@pytest.mark.slow
def test_f32_is_exact(tiny: Checkpoint, tmp_path: Path, image: Image.Image) -> None:
    export(tiny, tmp_path / "f32", type="f32", mmproj_type="f32")
    reference = ReferenceRuntime(tiny)
    prompt = ask(reference, QUESTION)
    pixels = reference.pixels(image)
    features = reference.features(pixels)
    tokens = reference.tokens(features)
    with closing(open_bundle(tmp_path / "f32")) as runtime:
        assert cosine(runtime.features(pixels), features) > 0.999999
        assert np.abs(runtime.logits(prompt, [tokens], 0) - reference.logits(prompt, [tokens], 0)).max() < 1e-4


def test_one_answer_at_a_time(runtime: Joined, reference: ReferenceRuntime) -> None:
    prompt, tokens = ask(reference, "A?", 4), np.zeros((4, 256), np.float32)
    first = runtime.generate(prompt, [tokens], 5)
    next(first)
    runtime.logits(prompt, [tokens], 0)
    with pytest.raises(VlmExportError, match="cache of this answer is gone"):
        next(first)


def test_tokens_of_another_width(runtime: Joined) -> None:
    assert runtime.context == 2048
    with pytest.raises(UsageError, match="64 wide, the decoder 256"):
        runtime.logits(around((1,), (1,)), np.zeros((1, 144, 64), np.float32), 0)


def test_incomplete_characters(runtime: Joined) -> None:
    umlaut = [byte + 3 for byte in "Ü".encode()]
    assert runtime.decode(umlaut) == "Ü"
    assert runtime.decode(umlaut[:1]) == "\N{REPLACEMENT CHARACTER}"


@posix
def test_a_killed_worker_is_an_error(small: Path) -> None:
    with closing(open_bundle(small)) as runtime:
        os.kill(runtime.decoding.process.pid, signal.SIGKILL)
        with pytest.raises(VlmExportError, match=r"died while tokenizing a prompt \(signal 9\)"):
            ask(runtime, "A?")
        with pytest.raises(VlmExportError, match="was closed"):
            ask(runtime, "A?")


@posix
def test_an_assertion_in_ggml_is_an_error(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract C: an F32 depthwise kernel ends the process that computes it, which must not be ours."""
    module = plugins.projector(tiny.spec.projector)
    real = module.gguf
    monkeypatch.setattr(module, "gguf", lambda spec: replace(real(spec), f16=frozenset()))
    export(tiny, tmp_path / "bundle", type="f16", mmproj_type="f32")
    with (
        closing(open_bundle(tmp_path / "bundle")) as runtime,
        pytest.raises(VlmExportError, match=r"died while encoding an image \(signal 6: ggml/src.*GGML_ASSERT"),
    ):
        runtime.features(ProcessedImage({PIXELS: np.zeros((1, 3, 336, 336), np.float32)}, Views(((1, 1),))))


@pytest.mark.parametrize(("name", "reason"), [("tiny-Q8_0.gguf", "llama.cpp"), ("mmproj-tiny-F16.gguf", "libmtmd")])
def test_a_truncated_file(small: Path, name: str, reason: str) -> None:
    path = small / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VlmExportError, match=f"{reason} cannot load .*{name}"):
        open_bundle(small)


def test_another_end_token(small: Path) -> None:
    manifest: Manifest = read_manifest(small)
    manifest.source.spec.eos_token_id = 7
    with pytest.raises(CheckpointError, match="ends answers with token 2"):
        join(LlamaCppHalves(small, manifest))


def test_without_llama_cpp(small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="no library 'llama'"):
        open_bundle(small)
