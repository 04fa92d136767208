"""The ONNX bundle: its files, its contract with clients, what is int8 in it, and that it is the same every time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.onnx_bundles import Bundles, recipe
from tests.quantize.graphs import fused
from vlmexport.artifact.bundle.contents import verify
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.errors import UsageError
from vlmexport.pipeline import export_checkpoint
from vlmexport.source.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

FILES = {
    "components/projector.onnx", "config.json", "decoder.onnx", "embedding.onnx", "genai_config.json",
    "generation_config.json", "onnx/decoder_model_merged.onnx", "onnx/decoder_model_merged.onnx_data",
    "onnx/embed_tokens.onnx", "onnx/vision_encoder.onnx", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def test_files(onnx_bundle: Bundles) -> None:
    manifest = read_manifest(onnx_bundle("fp32"))
    assert {file.path for file in manifest.files} == FILES
    verify(onnx_bundle("fp32"), manifest)
    assert manifest.tensors == {}
    quantized = {file.path for file in read_manifest(onnx_bundle("int8")).files}
    parts = ("components/projector.onnx", "decoder.onnx", "onnx/decoder_model_merged.onnx",
             "onnx/decoder_model_merged.onnx_data", "onnx/vision_encoder.onnx")  # fmt: skip
    assert quantized ^ FILES == {part.replace(".onnx", f"{suffix}.onnx") for part in parts for suffix in ("", "_int8")}


def test_configuration(onnx_bundle: Bundles) -> None:
    folder = onnx_bundle("int8")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["image_token_index"] == 384
    assert config["text_config"]["vocab_size"] == 385
    dtype = {"vision_encoder": "int8", "embed_tokens": "fp32", "decoder_model_merged": "int8"}
    assert config["transformers.js_config"]["dtype"] == dtype
    processor = json.loads((folder / "processor_config.json").read_text())
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (28, 0)
    colour = json.loads((folder / "preprocessor_config.json").read_text())["background_color"]
    np.testing.assert_allclose(colour, [-2.86989, -2.85498, -0.33990], atol=1e-4)


def test_float16_halves_the_decoder_and_products_run_in_float32(onnx_bundle: Bundles, tmp_path: Path) -> None:
    folder = onnx_bundle("fp16")
    assert read_manifest(folder).reports["decoder_model_merged"].precision == "fp16"
    graph = onnx.load(folder / "onnx/decoder_model_merged_fp16.onnx").graph
    matrices = {i.data_type for i in graph.initializer if len(i.dims) == 2 and "rotary" not in i.name}
    assert matrices == {onnx.TensorProto.FLOAT16}
    assert {v.type.tensor_type.elem_type for v in graph.output} == {onnx.TensorProto.FLOAT}
    kinds = fused(folder / "onnx/decoder_model_merged_fp16.onnx", tmp_path)
    assert (kinds.count("MatMul"), kinds.count("Cast")) == (6, 2)  # the casts are of lengths


def test_coverage(onnx_bundle: Bundles) -> None:
    manifest = read_manifest(onnx_bundle("int8"))
    report = manifest.reports
    assert report["decoder_model_merged"].int8_share == 1.0
    assert report["projector"].int8_share > 0.97
    assert manifest.tensors == {
        "vision.embeddings.patch_embedding": "float32 (patch embedding)", "projector.peg.peg.0": "float32 (depthwise)"
    }  # fmt: skip
    graph = onnx.load(onnx_bundle("int8") / "onnx/decoder_model_merged_int8.onnx").graph
    large = [(i.name, i.data_type) for i in graph.initializer if np.prod(i.dims) > 4096]
    assert large
    assert {kind for _, kind in large} == {onnx.TensorProto.INT8}


def test_onnxruntime_computes_int8(onnx_bundle: Bundles, tmp_path: Path) -> None:
    """Every int8 layer is one fused integer product (two where it takes two terms); float ones are attention's, which
    in the tower is one operator a layer."""
    folder = onnx_bundle("int8")
    report = read_manifest(folder).reports
    for graph, layers, fused_attention, attention in (
        ("vision_encoder", 2 * 6 + 2, 2, 0), ("decoder_model_merged", 8, 0, 1)
    ):  # fmt: skip
        kinds = fused(folder / f"onnx/{graph}_int8.onnx", tmp_path)
        assert kinds.count("MatMulIntegerToFloat") == layers + len(report[graph].two_terms)
        assert sum(kind in ("MatMul", "FusedMatMul") for kind in kinds) == 2 * attention
        assert kinds.count("MultiHeadAttention") == fused_attention


def test_the_same_input_gives_the_same_bytes(onnx_bundle: Bundles) -> None:
    first, second = (read_manifest(onnx_bundle(name)) for name in ("int8", "again"))
    assert first == second
    for name in ("vlmexport.json", "config.json"):  # the order of their keys too
        assert (onnx_bundle("int8") / name).read_bytes() == (onnx_bundle("again") / name).read_bytes()


def test_nothing_tells_where_it_was_made(onnx_bundle: Bundles) -> None:
    telling = re.compile(rb"site-packages|/home/|/root|/tmp/|\.py\b|stack_trace|pkg\.torch|line \d+")
    for path in [*onnx_bundle("fp32").rglob("*"), *onnx_bundle("int8").rglob("*")]:
        if path.is_file() and path.name not in ("README.md", "vlmexport.json"):
            assert not telling.search(path.read_bytes()), path


def test_an_existing_bundle_stays(tiny: Checkpoint, onnx_bundle: Bundles) -> None:
    with pytest.raises(UsageError, match="--force"):
        export_checkpoint(tiny, recipe("fp32"), onnx_bundle("fp32"))
