"""The importance matrix of a bundle: to llama.cpp's format and back, and what llama.cpp makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.checkpoints import tiny_spec
from tests.gguf_bundles import export, metadata, random_statistics, shapes, tensors
from tests.llama_quantize import llama_quantize, read_imatrix
from vlmexport.artifact.gguf.imatrix import ImportanceMatrix, as_file, from_statistics
from vlmexport.artifact.gguf.imatrix_reader import read
from vlmexport.artifact.gguf.language import importance_names
from vlmexport.source.checkpoint import Checkpoint


def matrix(image_weight: float = 1.0) -> ImportanceMatrix:
    language = tiny_spec().language
    return from_statistics(random_statistics(language), importance_names(language), image_weight)


def save(path: Path, found: ImportanceMatrix) -> None:
    as_file(path.name, found).write(path.parent)


def test_round_trip(tmp_path: Path) -> None:
    written = matrix()
    save(tmp_path / "imatrix.gguf", written)
    found = read(tmp_path / "imatrix.gguf")
    assert (found.datasets, found.chunks, found.chunk_size) == (written.datasets, written.chunks, 12)
    assert list(found.columns) == sorted(written.columns)
    for name, column in written.columns.items():
        assert found.columns[name].count == column.count == 24
        assert np.array_equal(found.columns[name].sum_sq, column.sum_sq)


def test_file_is_llama_imatrix_format(tmp_path: Path) -> None:
    save(tmp_path / "imatrix.gguf", matrix())
    keys = metadata(tmp_path / "imatrix.gguf")
    assert keys["general.type"] == "imatrix"
    assert keys["imatrix.datasets"] == ["vlmexport calibration, image weight 1"]
    assert (keys["imatrix.chunk_count"], keys["imatrix.chunk_size"]) == (2, 12)
    assert "general.architecture" not in keys
    sizes = shapes(tmp_path / "imatrix.gguf")
    assert sizes["blk.1.ffn_down.weight.in_sum2"] == (1, 512)
    assert sizes["blk.1.ffn_down.weight.counts"] == (1, 1)
    assert len(sizes) == 2 * (2 * 7 + 1)


def test_image_weight() -> None:
    language = tiny_spec().language
    layer = random_statistics(language).layers["language.model.layers.0.mlp.down_proj"]
    text_only = matrix(0.0).columns["blk.0.ffn_down.weight"]
    assert text_only.count == 8
    assert np.allclose(text_only.mean, layer.sum_sq_text / 8, rtol=1e-6)
    double = matrix(2.0).columns["blk.0.ffn_down.weight"]
    assert np.allclose(double.mean, (2 * layer.sum_sq_image + layer.sum_sq_text) / 40, rtol=1e-6)


def test_a_tied_output_weighs_the_embedding() -> None:
    names = importance_names(tiny_spec(tie_word_embeddings=True).language)
    assert names["language.lm_head"] == "token_embd.weight"


def test_export_from_its_own_file_is_the_same(tiny: Checkpoint, tmp_path: Path) -> None:
    statistics = random_statistics(tiny.spec.language)
    export(tiny, tmp_path / "a", statistics, type="q4_k_m", imatrix="auto", image_weight=0.5)
    export(tiny, tmp_path / "b", type="q4_k_m", imatrix=str(tmp_path / "a" / "imatrix.gguf"))
    export(tiny, tmp_path / "c", type="q4_k_m", imatrix="none")
    first, second, none = (tensors(tmp_path / name / "tiny-Q4_K_M.gguf") for name in "abc")
    assert all(np.array_equal(first[name][1], second[name][1]) for name in first)
    assert not np.array_equal(first["blk.0.ffn_up.weight"][1], none["blk.0.ffn_up.weight"][1])
    assert not (tmp_path / "c" / "imatrix.gguf").exists()


def test_llama_cpp_reads_it_and_makes_the_same_bytes(tiny: Checkpoint, tmp_path: Path) -> None:
    """The bundle's matrix through libggml's own reader to llama.cpp's quantizer: the bundle's own language model."""
    statistics = random_statistics(tiny.spec.language)
    export(tiny, tmp_path / "ours", statistics, type="q4_k_m", imatrix="auto", image_weight=0.7)
    export(tiny, tmp_path / "source", type="f16")
    datasets, chunks, size, means = read_imatrix(tmp_path / "ours" / "imatrix.gguf")
    assert (datasets, chunks, size) == (["vlmexport calibration, image weight 0.7"], 2, 9)
    assert llama_quantize(tmp_path / "source" / "tiny-F16.gguf", tmp_path / "theirs.gguf", 15, means)
    ours, theirs = tensors(tmp_path / "ours" / "tiny-Q4_K_M.gguf"), tensors(tmp_path / "theirs.gguf")
    assert all(ours[name][0] == kind and np.array_equal(ours[name][1], data) for name, (kind, data) in theirs.items())
