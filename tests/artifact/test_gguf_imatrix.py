"""The importance matrix: to llama.cpp's format and back, and what a bad file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import tiny_spec
from tests.gguf_bundles import export, metadata, random_statistics, shapes, tensors
from vlmexport.artifact.gguf_language import importance_names
from vlmexport.artifact.imatrix import Column, ImportanceMatrix, as_file, from_statistics, read
from vlmexport.checkpoint import Checkpoint
from vlmexport.errors import UsageError


def matrix(image_weight: float = 1.0) -> ImportanceMatrix:
    language = tiny_spec().language
    return from_statistics(random_statistics(language), importance_names(language), image_weight)


def save(path: Path, found: ImportanceMatrix) -> None:
    as_file(path.name, found).write(path.parent)


def test_round_trip(tmp_path: Path) -> None:
    written = matrix()
    save(tmp_path / "imatrix.gguf", written)
    found = read(tmp_path / "imatrix.gguf")
    assert (found.dataset, found.chunks) == (written.dataset, written.chunks)
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


def test_of_another_model(tiny: Checkpoint, tmp_path: Path) -> None:
    other = ImportanceMatrix({"blk.0.ffn_up.weight": Column(np.ones(64, np.float32), 4)}, "other", 1)
    save(tmp_path / "other.gguf", other)
    with pytest.raises(UsageError, match="another model"):
        export(tiny, tmp_path / "out", type="q4_0", imatrix=str(tmp_path / "other.gguf"))
    assert not (tmp_path / "out").exists()


def test_not_an_importance_matrix(tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "legacy.dat").write_bytes(b"\1\0\0\0" + bytes(64))
    with pytest.raises(UsageError, match="no GGUF importance matrix"):
        read(tmp_path / "legacy.dat")
    export(tiny, tmp_path / "out", type="f16")
    with pytest.raises(UsageError, match="no GGUF importance matrix"):
        read(tmp_path / "out" / "tiny-F16.gguf")
