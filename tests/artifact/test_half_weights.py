"""Float16 weights from checkpoints of every float type, and the ones that float16 cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlmexport.artifact.onnx.build.half_weights import half_weight
from vlmexport.artifact.onnx.passes import attach_weights
from vlmexport.checkpoint.tensors import LazyTensor, open_tensors
from vlmexport.errors import CheckpointError, Unsupported


def on_disk(folder: Path, tensors: list[torch.Tensor]) -> list[LazyTensor]:
    save_file({f"layer.{i}.weight": tensor for i, tensor in enumerate(tensors)}, folder / "model.safetensors")
    found = open_tensors(folder)
    return [found[f"layer.{i}.weight"] for i in range(len(tensors))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_side_by_side_and_turned(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_weights, "_VALUES", 64)  # three rows at a time
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(outputs, 20, generator=random).to(dtype) for outputs in (7, 4)]
    held = half_weight(on_disk(tmp_path, tensors), "both")
    assert (tuple(held.shape), held.nbytes) == ((20, 11), 20 * 11 * 2)
    np.testing.assert_array_equal(held.numpy(), torch.cat(tensors).half().t().numpy())


def test_a_value_that_float16_cannot_hold(tmp_path: Path) -> None:
    values = torch.ones(9, 20)
    values[3, 5] = 65519.0  # rounds to the largest float16
    assert np.isfinite(half_weight(on_disk(tmp_path, [values]), "a").numpy()).all()
    values[3, 5] = -65520.0
    with pytest.raises(Unsupported, match=r"tensor layer\.0\.weight holds values so large that float16") as caught:
        half_weight(on_disk(tmp_path, [values]), "a").numpy()
    assert caught.value.cure == "pass --decoder fp32, int8 or int4"
    values[3, 5] = torch.nan
    with pytest.raises(CheckpointError, match="holds NaN or infinity, first in row 3"):
        half_weight(on_disk(tmp_path, [values]), "a").numpy()
