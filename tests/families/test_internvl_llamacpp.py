"""InternVL in llama.cpp: tokens and answers of the float model by a table of positions that the file has repaired."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.internvl import write_model
from tests.onnx_bundles import picture
from tests.smolvlm import CONVERSATIONS
from tests.smolvlm_gguf import opened, written
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.runtime.llamacpp.vision import LlamaCppVision
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import Runtime
from vlmexport.source.checkpoint import open_checkpoint

POSITIONS = "v.position_embd.weight"
SIZES = [(300, 220), (28, 28), (20, 90)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamacpp") / "internvl"
    write_model(folder, "qwen3")
    return written(folder)


@pytest.fixture(scope="module")
def reference(bundle: Path) -> ReferenceRuntime:
    return ReferenceRuntime(open_checkpoint(bundle.with_name("internvl")))


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Runtime]:
    with closing(opened(bundle)) as found:
        yield found


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_two_images_stage_by_stage(runtime: Runtime, reference: ReferenceRuntime) -> None:
    """libmtmd rounds pixels and the patches' kernel to float16."""
    images, seen = [picture(i, size) for i, size in enumerate(SIZES[:2])], {}
    for name, side in (("float", reference), ("llama.cpp", runtime)):
        made = [side.pixels(image) for image in images]
        features = [side.features(one) for one in made]
        tokens = [side.tokens(one) for one in features]
        prompt = side.prompt(CONVERSATIONS["two-images"], [one.views for one in made])
        answer = [token.id for token in side.generate(prompt, tokens, 8)]
        seen[name] = ([one.rows for one in features], tokens, prompt, side.logits(prompt, tokens, 0), answer)
    one, other = seen["float"], seen["llama.cpp"]
    for stage in (0, 1):
        assert max(map(apart, other[stage], one[stage])) < 3e-3  # type: ignore[arg-type]
    assert other[2] == one[2]
    assert apart(other[3], one[3]) < 3e-3  # type: ignore[arg-type]
    assert other[4] == one[4]


def test_given_features_reach_the_projector(runtime: Runtime, reference: ReferenceRuntime) -> None:
    features = reference.features(reference.pixels(picture(3, (300, 220))))
    assert apart(runtime.tokens(features), reference.tokens(features)) < 2e-3


def test_an_unmodified_llama_cpp_has_them_right(bundle: Path, runtime: Runtime, reference: ReferenceRuntime) -> None:
    """Of a picture that is a tile it has the same pixels; it knows of no repair. With the table as published it is
    wrong."""
    image = picture(5, (28, 28))
    assert isinstance(runtime.seeing, LlamaCppVision)
    stock = runtime.seeing.stock([picture(0)])
    assert stock is not None
    pixels, expected = stock.pixels(image), reference.pixels(image)
    np.testing.assert_allclose(pixels.pixel_values, expected.pixel_values, atol=1e-5)
    right = reference.tokens(reference.features(expected))
    assert apart(stock.tokens(stock.features(pixels)), right) < 3e-3
    mmproj = bundle / read_manifest(bundle).seeing.file("mmproj")
    data = bytearray(mmproj.read_bytes())
    table = next(tensor for tensor in gguf.GGUFReader(mmproj).tensors if tensor.name == POSITIONS)
    rolled = np.roll(np.asarray(table.data), 1, axis=0).tobytes()
    data[table.data_offset : table.data_offset + len(rolled)] = rolled
    wrong = mmproj.with_name("published.gguf")
    wrong.write_bytes(bytes(data))
    manifest = read_manifest(bundle)
    manifest.seeing.files["mmproj"] = wrong.name
    from vlmexport.runtime.joined import join
    from vlmexport.runtime.llamacpp.halves import LlamaCppHalves

    with closing(join(LlamaCppHalves(bundle, manifest, threads=1))) as other:
        assert apart(other.tokens(other.features(expected)), right) > 0.1
    wrong.unlink()


@pytest.mark.parametrize("size", SIZES)
def test_stock_grids(size: tuple[int, int], runtime: Runtime, reference: ReferenceRuntime) -> None:
    """As docs/llama-cpp.md says: one view where no side is longer than a tile, else other tiles than the model's."""
    assert isinstance(runtime.seeing, LlamaCppVision)
    stock = runtime.seeing.stock([picture(0, (300, 220))])
    assert stock is not None
    found, expected = stock.pixels(picture(0, size)).views, reference.pixels(picture(0, size)).views
    print(size, len(found.grids), len(expected.grids), found.tiles)
    assert len(found.grids) == found.tiles[0] * found.tiles[1] + 1
