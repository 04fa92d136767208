"""Files that are not what was exported: by their hashes, and by what they compute where those were made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.mutations.conftest import Mutate
from vlmexport.errors import ParityFailed

pytestmark = pytest.mark.slow


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("graph", ["vision_encoder", "decoder_model_merged"])
def test_one_bit_flipped_in_a_weight_file(graph: str, mutant: Mutate) -> None:
    found = mutant("fp32")
    path = found.path(graph)
    flip_a_bit(path)
    with pytest.raises(ParityFailed, match=f"{path.name} is not the file that was exported"):
        found.check(rehash=False)


def test_stale_external_data(mutant: Mutate) -> None:
    """The graph is today's, its weights are those of a checkpoint some steps earlier in training."""
    found = mutant("fp32")
    path = found.path("decoder_model_merged")
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024)
    found.add(f"{path.name}_data", path.parent)
    assert found.check().passed
    data = path.with_name(f"{path.name}_data")
    now = np.fromfile(data, np.float32)
    (now * np.random.default_rng(0).normal(1, 0.05, now.size).astype(np.float32)).tofile(data)
    with pytest.raises(ParityFailed, match=f"{data.name} is not the file that was exported"):
        found.check(rehash=False)
    assert found.check().broken_stage == "logits"
