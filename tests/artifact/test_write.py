"""One writer joins two halves, whatever runs either: nothing is done twice, no half outlives the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.artifact.gguf import language as gguf_language
from vlmexport.calibrate import Statistics
from vlmexport.checkpoint import hashes
from vlmexport.errors import CheckpointError
from vlmexport.pipeline import export_checkpoint
from vlmexport.recipe import Recipe, parse
from vlmexport.source import checkpoint as source
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

KINDS = {
    "onnx": {"format": "onnx", "onnx": {"vision": "fp32", "decoder": "fp32"}},
    "gguf": {"format": "gguf", "gguf": {"type": "q4_k_m", "imatrix": "auto"}},
    "hybrid": {"format": "gguf", "gguf": {"type": "q4_0", "vision": "onnx", "imatrix": "none"},
               "onnx": {"vision": "fp32"}},
}  # fmt: skip


def recipe(kind: str) -> Recipe:
    return parse({"name": "test", **KINDS[kind]}, "test")


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of every call of a function from here on, which is called all the same."""
    found: list[tuple[Any, ...]] = []
    function: Callable[..., Any] = getattr(module, name)

    def counting(*given: Any, **named: Any) -> Any:
        found.append(given)
        return function(*given, **named)

    monkeypatch.setattr(module, name, counting)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_done_twice(
    kind: str, short: Checkpoint, short_statistics: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are hashed once an export, the language model's file is planned once. Where an importance matrix is
    measured for it, it is made once more with that."""
    hashed, tensors = counted(monkeypatch, source, "hash_file"), counted(monkeypatch, gguf_language, "tensors_of")
    made = counted(monkeypatch, gguf_language, "entries")
    opened = open_checkpoint(short.path)
    found = export_checkpoint(opened, recipe(kind), tmp_path / kind, statistics=short_statistics)
    assert found.kind == kind
    assert [path.name for (path,) in hashed] == ["model.safetensors"]
    assert found.source.weights == {"model.safetensors": hashes.hash_file(short.path / "model.safetensors")}
    assert len(tensors) == (0 if kind == "onnx" else 1)
    assert len(made) == {"onnx": 0, "gguf": 2, "hybrid": 1}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["vision", "language"])
def test_the_half_that_fails_tells_why(kind: str, part: str, tmp_path: Path) -> None:
    """Not the one that is stopped for it; and nothing is left."""
    spec = tiny_spec("mlp2x_gelu", image_size=56, num_layers=1)
    folder = write_checkpoint(tmp_path / "tiny", spec)
    name = {"vision": "encoder.layers.0.mlp.fc1.weight", "language": "model.layers.0.mlp.up_proj.weight"}[part]
    tensor = open_checkpoint(folder).tensors[part][name]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(tensor.offset)
        file.write(np.array([np.nan], np.float16).tobytes())
    chosen = recipe(kind).model_copy(update={"gguf": recipe(kind).gguf.model_copy(update={"imatrix": "none"})})
    with pytest.raises(CheckpointError, match=rf"{name} holds NaN or infinity".replace(".", r"\.")):
        export_checkpoint(open_checkpoint(folder), chosen, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
