"""What ONNX Runtime's own quantizers make of models/tiles: bundles whose graphs are theirs, so that `check` runs them.

``dynamic`` is what transformers.js' ``scripts/quantize.py`` publishes as ``*_quantized.onnx``: one scale a weight, U8
where the graph has a convolution, else S8. ``static`` is ``quantize_static`` with minima and maxima of the same
calibration set, U8 activations and S8 weights, which its documentation names for x86, one scale a channel.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.calibrate import calibration_samples
from vlmexport.calibrate.sensitivity import sequence
from vlmexport.model import load
from vlmexport.source.locate import open_model

GRAPHS = ("vision_encoder", "decoder_model_merged", "embed_tokens")
Feed = dict[str, np.ndarray]


def dynamic(plain: Path, folder: Path) -> None:
    """A float bundle with its three graphs quantized dynamically."""
    for name, source, target in _copied(plain, folder, GRAPHS):
        kinds = {node.op_type for node in onnx.load(source, load_external_data=False).graph.node}
        kind = QuantType.QUInt8 if "Conv" in kinds else QuantType.QInt8
        options = {"MatMulConstBOnly": True, "EnableSubgraph": True}
        quantize_dynamic(source, target, weight_type=kind, extra_options=options)
        _tell(folder, name)


def static(plain: Path, folder: Path, model: str, graphs: int = 2) -> None:
    """A float bundle with vision encoder and decoder, or the first alone, quantized statically, a scale a channel; the
    embedding is a table, and stays."""
    for name, source, target in _copied(plain, folder, GRAPHS[:graphs]):
        ready = folder / "ready.onnx"
        onnx.save(onnx.load(source), ready)  # in one file: the tool loses sight of a second one
        quant_pre_process(ready, ready, skip_symbolic_shape=True)
        feeds = _views(model) if name == "vision_encoder" else _prompts(model, ready)
        quantize_static(
            ready, target, _Reader(feeds), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        ready.unlink()
        _tell(folder, name)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _views(model: str) -> Iterator[Feed]:
    """All views of the calibration set, one by one."""
    vlm = load(open_model(model), components=("vision", "projector"))
    for sample in calibration_samples():
        for view in vlm.pixels(sample.image()).numpy():
            yield {"pixel_values": view[None, None]}


def _prompts(model: str, graph: Path) -> Iterator[Feed]:
    """Prompts and the float model's answers to them, from an empty cache."""
    checkpoint = open_model(model)
    vlm = load(checkpoint)
    inputs = onnx.load(graph, load_external_data=False).graph.input
    caches = {
        one.name: [size.dim_value for size in one.type.tensor_type.shape.dim]
        for one in inputs if one.name.startswith("past")
    }  # fmt: skip
    for sample in calibration_samples():
        with torch.no_grad():
            embeds = sequence(vlm, checkpoint.prompts, sample).inputs.embeds.numpy()
        length = embeds.shape[1]
        yield {
            "inputs_embeds": embeds, "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length)[None], "num_logits_to_keep": np.array(0),
            **{name: np.zeros((1, heads, 0, size), np.float32) for name, (_, heads, _, size) in caches.items()},
        }  # fmt: skip


def _copied(plain: Path, folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Path, Path]]:
    """Of each graph: name, where the float one is, and where another is to take its place in a copy of the bundle."""
    shutil.copytree(plain, folder)
    for name in names:
        path = Path(read_manifest(plain).graphs()[name])  # type: ignore[index]
        (folder / path).unlink()
        (folder / f"{path}_data").unlink(missing_ok=True)
        yield name, plain / path, folder / path


def _tell(folder: Path, name: str) -> None:
    """The manifest of what the files are now."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = [entry for entry in manifest["files"] if (folder / entry["path"]).exists()]
    for entry in manifest["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry["bytes"], entry["sha256"] = len(content), sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
