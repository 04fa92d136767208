"""FastVLM's decoder in every GGUF type, a budget, an importance matrix that has seen images; and no mmproj."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("timm", reason="timm is not installed")

from tests.command import vlmexport
from tests.fast_vlm_bundles import LAYOUTS, questions
from tests.gguf_bundles import metadata, tensors
from tests.llama_quantize import llama_quantize
from tests.onnx_bundles import Bundles
from tests.prompts import ask
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.halves import DECODER, VISION
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.gguf.decoding import GgufDecoding
from vlmexport.artifact.gguf.imatrix_reader import read
from vlmexport.calibrate import Statistics
from vlmexport.console import QUIET
from vlmexport.flags import vision_flags
from vlmexport.measure import Measured
from vlmexport.measures.logits import kl_divergence
from vlmexport.pipeline import export_checkpoint
from vlmexport.plan import plan
from vlmexport.quantize.gguf_mix import find_mix, mixes
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(fast_vlm_root: Path) -> Checkpoint:
    return open_checkpoint(fast_vlm_root / "hf")


@pytest.fixture(scope="module")
def statistics(fast_vlm_statistics: Callable[[str], Statistics]) -> Statistics:
    return fast_vlm_statistics("hf")


@pytest.fixture(scope="module")
def source(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder in F32."""
    return written(checkpoint, "f32", None, tmp_path_factory.mktemp("gguf"))


def written(checkpoint: Checkpoint, kind: str, statistics: Statistics | None, folder: Path) -> Path:
    """The language model's file of a type; with an importance matrix where there are statistics."""
    chosen = resolve("gguf-f32", {"gguf.type": kind, "gguf.imatrix": "auto" if statistics else "none"}, environ={})
    measured = Measured(statistics=statistics)
    decoder = GgufDecoding(checkpoint, chosen, 0)
    decoder.settle(measured, QUIET)
    decoder.write(measured, folder, lambda _: lambda _: None)
    return folder / f"hf-{kind.upper()}.gguf"


LONG = ("iq2_s", "iq3_xxs")
"""libggml makes tables of them for seconds; tests/quantize/test_gguf_mix.py compares them, too."""


@pytest.mark.parametrize("kind", [name for name in mixes() if name not in ("f32", *LONG)])
def test_every_type_is_what_llama_cpp_makes(
    kind: str, checkpoint: Checkpoint, statistics: Statistics, source: Path, tmp_path: Path
) -> None:
    """The same metadata, types and bytes, from our F32 file and our importance matrix; llama.cpp opens it for that."""
    ours = written(checkpoint, kind, statistics, tmp_path)
    matrix = tmp_path / "imatrix.gguf"
    means = {name: column.mean for name, column in read(matrix).columns.items()} if matrix.exists() else None
    assert llama_quantize(source, tmp_path / "theirs.gguf", find_mix(kind).file_type, means)
    expected, found = tensors(tmp_path / "theirs.gguf"), tensors(ours)
    assert {name: of for name, (of, _) in found.items()} == {name: of for name, (of, _) in expected.items()}
    assert all(np.array_equal(data, expected[name][1]) for name, (_, data) in found.items())
    facts = metadata(ours)
    assert facts == metadata(tmp_path / "theirs.gguf") | {"general.quantization_version": 2}
    assert (facts["general.architecture"], facts["tokenizer.ggml.pre"]) == ("qwen2", "qwen2")


@pytest.mark.parametrize("kind", LONG)
def test_types_that_need_a_table_are_written(
    kind: str, checkpoint: Checkpoint, statistics: Statistics, tmp_path: Path
) -> None:
    types = {of for of, _ in tensors(written(checkpoint, kind, statistics, tmp_path)).values()}
    assert find_mix(kind).default in types


def test_the_importance_matrix_has_seen_images(fast_vlm_bundle: Bundles, statistics: Statistics) -> None:
    """Sixteen positions of each picture, and those of the text, weighed as the recipe says."""
    manifest = read_manifest(fast_vlm_bundle("hybrid"))
    layer = statistics.layers["language.model.layers.0.mlp.down_proj"]
    assert layer.count_image == 6 * 16
    assert layer.count_text > layer.count_image
    column = read(fast_vlm_bundle("hybrid") / "imatrix.gguf").columns["blk.0.ffn_down.weight"]
    weight = manifest.recipe.calibration.image_weight
    seen = weight * layer.sum_sq_image + layer.sum_sq_text
    np.testing.assert_allclose(column.mean, seen / (weight * layer.count_image + layer.count_text), rtol=1e-5)


def test_a_budget_is_kept_and_runs(
    checkpoint: Checkpoint, statistics: Statistics, source: Path, tmp_path: Path
) -> None:
    """What sees is in it."""
    vision = vision_flags("onnx-fp32", None, "gguf-q4_k_m", "gguf-q4_k_m")
    recipe = resolve("gguf-q4_k_m", vision, environ={})
    (tower,) = (part.bytes for part in plan(checkpoint, [recipe])[0].parts if part.name == "vision_encoder")
    limit = tower + source.stat().st_size // 5
    flags = vision | {"gguf.max_size": f"{limit}B", "calibration.samples": 2}
    folder = tmp_path / "bundle"
    manifest = export_checkpoint(checkpoint, resolve("gguf-q4_k_m", flags, environ={}), folder, statistics=statistics)
    assert manifest.decoding.budget is not None
    assert limit * 0.97 < manifest.size(VISION + DECODER) <= limit
    reference = ReferenceRuntime(checkpoint)
    (sample,) = questions(1)
    with closing(open_runtime(folder)) as runtime:
        tokens = reference.tokens(reference.features(reference.pixels(sample.image())))
        prompt = ask(reference, sample.question, 16)
        found, expected = (side.logits(prompt, [tokens], 4)[0] for side in (runtime, reference))
    assert kl_divergence(expected, found).mean() < 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_mmproj_is_refused_and_a_hybrid_offered(layout: str, fast_vlm_root: Path, tmp_path: Path) -> None:
    done = vlmexport("gguf", fast_vlm_root / layout, "--type", "f16", cwd=tmp_path)
    assert_one_line_error(done, 3, "no mmproj holds a 'fastvit' vision encoder", "hybrid", "--vision onnx")
    assert not list(tmp_path.iterdir())
