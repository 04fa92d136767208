"""Token embeddings and their merge with image features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from vlmexport.artifact.onnx.build import embedding
from vlmexport.artifact.onnx.passes.clean import save, share
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.artifact.onnx.trace import compare

IMAGE = 40


def table(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_both_graphs(dtype: torch.dtype, tmp_path: Path) -> None:
    module = embedding.Embedding(table(dtype), IMAGE + 1)
    for traced in (embedding.alone(module), embedding.merged(module, IMAGE)):
        save(traced.model, tmp_path / f"{traced.name}.onnx")
        assert compare.check(traced, tmp_path / f"{traced.name}.onnx") == 0.0
    ids, image = np.array([[1, IMAGE, IMAGE, 7]]), np.ones((2, 8), np.float32)
    inputs = {"input_ids": ids, "image_features": image}
    merged = run(open_session(tmp_path / "embedding.onnx"), inputs)["inputs_embeds"]
    np.testing.assert_array_equal(merged[0, 1:3], image)
    np.testing.assert_array_equal(merged[0, [0, 3]], table(dtype)[[1, 7]].float().numpy())


def test_a_table_is_float16_where_that_loses_nothing() -> None:
    assert embedding.Embedding(table(torch.float16).float(), 41).table.dtype == torch.float16
    assert embedding.Embedding(table(torch.float32), 41).table.dtype == torch.float32


def test_external_data_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmexport.artifact.onnx.passes.clean.EXTERNAL_FROM", 1024)
    module = embedding.Embedding(torch.randn(200, 8), 201)
    alone, merged = embedding.alone(module), embedding.merged(module, 200)
    inner, outer = tmp_path / "onnx" / "embed_tokens.onnx", tmp_path / "embedding.onnx"
    assert save(alone.model, inner) == 1
    share(merged.model, outer, inner)
    assert save(merged.model, outer) == 0
    assert sorted(path.name for path in tmp_path.rglob("*_data")) == ["embed_tokens.onnx_data"]
    assert outer.stat().st_size < 2000
    assert compare.check(merged, outer) == 0.0
    tensor = ir.load(outer).graph.initializers[embedding.TABLE].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.location == "onnx/embed_tokens.onnx_data"
