"""libggml's kernels and llama.cpp's mixes: bytes and types equal to ``llama_model_quantize``."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export, metadata, random_statistics, tensors
from vlmexport.artifact.gguf_language import importance_names
from vlmexport.artifact.imatrix import ImportanceMatrix, from_statistics
from vlmexport.calibrate import Statistics
from vlmexport.checkpoint import Checkpoint, open_checkpoint
from vlmexport.errors import MissingDependency, UsageError
from vlmexport.quantize import ggml
from vlmexport.quantize.gguf_mix import Decoder, find_mix, in_order, tensor_types

WITH_IMPORTANCE = ("q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s",
                   "q5_k_m", "q6_k", "iq4_nl", "iq4_xs")  # fmt: skip
WITHOUT = ("q4_0", "q8_0", "q4_k_m", "iq4_xs", "bf16")
SHAPES = {
    "grouped": {"num_layers": 8, "intermediate_size": 256, "num_kv_heads": 1},
    "odd rows": {
        "num_layers": 1,
        "hidden_size": 96,
        "intermediate_size": 272,
        "num_heads": 3,
        "num_kv_heads": 3,
        "head_dim": 32,
    },
    "tied": {"num_layers": 1, "intermediate_size": 288, "tie_word_embeddings": True},
}


@dataclass
class Case:
    checkpoint: Checkpoint
    f16: Path
    statistics: Statistics
    matrix: ImportanceMatrix


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Decoders on which every rule of the mixes shows: eighths of layers, grouped heads, fallbacks, a tied output."""
    folder = tmp_path_factory.mktemp("mixes")
    checkpoint = open_checkpoint(write_checkpoint(folder / "tiny", tiny_spec(**SHAPES[request.param])))
    export(checkpoint, folder / "source", type="f16")
    language = checkpoint.spec.language
    statistics = random_statistics(language)
    matrix = from_statistics(statistics, importance_names(language), 1.0)
    return Case(checkpoint, folder / "source" / "tiny-F16.gguf", statistics, matrix)


def llama_quantize(source: Path, target: Path, file_type: int, matrix: ImportanceMatrix | None) -> None:
    """llama.cpp's own quantizer."""
    from llama_cpp import _utils, llama_cpp

    for null in (_utils.outnull_file, _utils.errnull_file):
        null.close()  # opened at import and never closed
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, file_type
    means = {name.encode(): column.mean for name, column in matrix.columns.items()} if matrix else {}
    data = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, mean) in zip(data, means.items(), strict=False):
        entry.name, entry.size = name, mean.size
        entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if matrix:
        params.imatrix = data
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


@pytest.mark.parametrize(
    ("mix", "important"), [(mix, True) for mix in WITH_IMPORTANCE] + [(mix, False) for mix in WITHOUT]
)
def test_equals_llama_model_quantize(case: Case, tmp_path: Path, mix: str, important: bool) -> None:
    ours, theirs = tmp_path / "ours" / f"tiny-{mix.upper()}.gguf", tmp_path / "theirs.gguf"
    if important:
        export(case.checkpoint, ours.parent, case.statistics, type=mix, imatrix="auto")
    else:
        export(case.checkpoint, ours.parent, type=mix)
    llama_quantize(case.f16, theirs, find_mix(mix).file_type, case.matrix if important else None)
    expected, found = tensors(theirs), tensors(ours)
    assert list(found) == list(expected)
    assert {name: kind for name, (kind, _) in found.items()} == {name: kind for name, (kind, _) in expected.items()}
    for name, (_, data) in found.items():
        assert np.array_equal(data, expected[name][1]), name
    assert metadata(ours) == metadata(theirs)


def test_from_an_f32_source(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "tiny", tiny_spec(num_layers=1)))
    export(checkpoint, tmp_path / "source", type="f32")
    export(checkpoint, tmp_path / "ours", type="q5_k_m")
    llama_quantize(tmp_path / "source" / "tiny-F32.gguf", tmp_path / "theirs.gguf", 17, None)
    expected = tensors(tmp_path / "theirs.gguf")
    found = tensors(tmp_path / "ours" / "tiny-Q5_K_M.gguf")
    assert all(np.array_equal(data, expected[name][1]) for name, (_, data) in found.items())


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


def test_unknown_mix_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'q4_k_m'"):
        find_mix("Q4_KM")


def test_q4_k_m_of_mobilevlm() -> None:
    """24 layers as in the 1.7B model: 12 of them carry more bits in value and down projections."""
    shapes = {f"blk.{i}.{part}.weight": (2048, 2048) for i in range(24) for part in ("attn_v", "ffn_down", "ffn_up")}
    shapes |= {"output.weight": (32000, 2048), "token_embd.weight": (32000, 2048), "output_norm.weight": (2048,)}
    types = tensor_types(find_mix("q4_k_m"), shapes, Decoder(24, 1), importance=False)
    more = [i for i in range(24) if types[f"blk.{i}.attn_v.weight"] == "q6_k"]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert types["output.weight"] == "q6_k"
    assert types["token_embd.weight"] == types["blk.3.ffn_up.weight"] == "q4_k"
    assert types["output_norm.weight"] == "f32"


def test_order_is_by_layer_number() -> None:
    names = ["blk.10.a", "blk.9.b", "token_embd.weight", "output.weight", "blk.9.a"]
    assert in_order(names) == ["output.weight", "token_embd.weight", "blk.9.a", "blk.9.b", "blk.10.a"]


def test_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="LLAMA_CPP_LIB_PATH"):
        ggml.library_path("ggml-base")
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    monkeypatch.setattr(ggml, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install 'vlmexport\[gguf\]'"):
        ggml.library_path("ggml-base")
