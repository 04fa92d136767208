"""Blocks of rows: the same bytes however a tensor is cut, and values that no file may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export
from vlmexport.artifact.gguf import file as gguf_file
from vlmexport.artifact.gguf import rows as gguf_rows
from vlmexport.artifact.gguf.rows import Entry, interleave
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.quantize import ggml
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint
from vlmexport.workers.in_order import Buffers


def on_disk(folder: Path, values: np.ndarray, dtype: str) -> LazyTensor:
    path = folder / "weights"
    path.write_bytes(b"header." + values.tobytes())
    return LazyTensor("layer.weight", values.shape, dtype, path, 7)


def encoded(entry: Entry) -> bytes:
    return b"".join(block.encode(Buffers()).tobytes() for block in entry.blocks())


@pytest.mark.parametrize("values", [1, 1000, 1 << 20])
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
@pytest.mark.parametrize("kind", ["f16", "f32", "q8_0", "q4_k"])
@pytest.mark.parametrize("heads", [0, 3])
def test_a_tensor_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: int, dtype: str, kind: str, heads: int
) -> None:
    monkeypatch.setattr(gguf_rows, "VALUES", values)
    rows = np.random.default_rng(0).standard_normal((12, 256)).astype({"f16": "f2", "f32": "f4", "f64": "f8"}[dtype])
    entry = Entry("a", rows.shape, kind, on_disk(tmp_path, rows, dtype), heads)
    whole = rows.astype(np.float32)
    whole = interleave(whole, heads) if heads else whole
    assert encoded(entry) == ggml.quantize(whole, kind).tobytes() + bytes(entry.padding)


def test_a_bias_of_q_is_reordered(tmp_path: Path) -> None:
    bias = np.arange(10, dtype=np.float16)
    entry = Entry("blk.0.attn_q.bias", bias.shape, "f32", on_disk(tmp_path, bias, "f16"), 1)
    expected = np.array([0, 5, 1, 6, 2, 7, 3, 8, 4, 9], np.float32)
    assert encoded(entry) == expected.tobytes() + bytes(24)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_a_weight_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bad: float) -> None:
    monkeypatch.setattr(gguf_rows, "VALUES", 128)
    rows = np.ones((9, 64), np.float16)
    rows[7, 5] = rows[8, 0] = bad
    with pytest.raises(CheckpointError, match=r"weights: tensor layer\.weight holds NaN or infinity, first in row 7"):
        encoded(Entry("a", rows.shape, kind, on_disk(tmp_path, rows, "f16")))


@pytest.mark.parametrize("kind", [name for name, kind in ggml.TYPES.items() if kind.scales[1] and name[:3] != "iq2"])
def test_a_weight_that_a_type_cannot_hold(tmp_path: Path, kind: str) -> None:
    """Scales are f16: what overflows them would be infinite, and llama.cpp would not load it."""
    rows = np.random.default_rng(0).standard_normal((2, 256), np.float32)
    encoded(Entry("a", rows.shape, kind, on_disk(tmp_path, rows, "f32")))
    rows[1] *= 1e10
    with pytest.raises(Unsupported, match=f"so large that {kind} cannot hold them"):
        encoded(Entry("a", rows.shape, kind, on_disk(tmp_path, rows, "f32")))


def test_bytes_do_not_depend_on_threads(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_rows, "VALUES", 1 << 12)
    for threads in (1, 3):
        monkeypatch.setattr(gguf_file, "cores", lambda count=threads: count)
        export(tiny, tmp_path / str(threads), type="q4_k_m")
    one, three = (tmp_path / "1", tmp_path / "3")
    for path in one.iterdir():
        assert path.read_bytes() == (three / path.name).read_bytes()


def test_a_damaged_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "tiny", tiny_spec(num_layers=1)))
    tensor = checkpoint.tensors["language"]["model.norm.weight"]
    with tensor.path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff" * (tensor.nbytes // tensor.numel))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds NaN"):
        export(checkpoint, tmp_path / "out", type="q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
