"""libggml's kernels: sizes, errors of rounding, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from vlmexport.errors import MissingDependency
from vlmexport.quantize import ggml


def test_table_agrees_with_gguf() -> None:
    for name, kind in ggml.TYPES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]] == (kind.block, kind.bytes)
        assert gguf.GGMLQuantizationType[name.upper()] == kind.id


@pytest.mark.parametrize("name", ["f32", "f16", "q8_0", "q4_k"])
def test_rounds_to_what_gguf_reads(name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((700, 512), np.float32)
    data = ggml.quantize(rows, name)
    assert data.shape == (700, ggml.row_bytes(name, 512))
    kind = gguf.GGMLQuantizationType(ggml.TYPES[name].id)
    error = gguf.quants.dequantize(data.reshape(-1), kind).reshape(700, 512) - rows
    assert np.sqrt(np.mean(error**2)) < {"f32": 1e-9, "f16": 1e-3, "q8_0": 0.01, "q4_k": 0.1}[name]


def test_importance_moves_the_error() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    weights = np.ones(256, np.float32)
    weights[:32] = 100

    def error(importance: ggml.F32 | None) -> float:
        data = ggml.quantize(rows, "q4_k", importance)
        back = gguf.quants.dequantize(data.reshape(-1), gguf.GGMLQuantizationType.Q4_K).reshape(rows.shape)
        return float(np.mean(weights * (back - rows) ** 2))

    assert error(weights) < error(None)


def test_refuses_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        ggml.quantize(np.zeros((2, 100), np.float32), "q4_k")
    with pytest.raises(ValueError, match="importance"):
        ggml.quantize(np.zeros((2, 256), np.float32), "q4_k", np.ones(255, np.float32))


def test_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="LLAMA_CPP_LIB_PATH"):
        ggml.library_path("ggml-base")
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    monkeypatch.setattr(ggml, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install 'vlmexport\[gguf\]'"):
        ggml.library_path("ggml-base")


@pytest.mark.parametrize("name", ["iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])
@pytest.mark.slow
def test_tables_of_iq_types_are_made_once_by_many_threads(name: str) -> None:
    """In a process of its own, where no table is made yet: eight threads ask for it at a time."""
    code = f"""
import concurrent.futures, numpy as np
from vlmexport.quantize import ggml
rows = np.random.default_rng(0).standard_normal((8, 256), np.float32)
ones = np.ones(256, np.float32)
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda row: ggml.quantize(row[None], {name!r}, ones), rows))
assert np.array_equal(np.concatenate(found), ggml.quantize(rows, {name!r}, ones))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
