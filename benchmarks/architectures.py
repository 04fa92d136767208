"""What encoders and projectors cost in ONNX Runtime, float32 and int8, and what int8 does to them.

    python benchmarks/architectures.py --json benchmarks/results/architectures.json

Weights are random: time and size do not depend on them, int8's error does, so its column compares designs and promises
nothing for a trained model. Float and int8 take turns of a few runs in one process, two threads each; medians. Rows
that the JSON file holds already are not measured again. ``--show`` prints the tables alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnxruntime import InferenceSession

from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.seeing import OnnxSeeing
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.artifact.onnx.trace.components import trace_projector
from vlmexport.calibrate import calibration_samples, collect
from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.statistics import Statistics
from vlmexport.console import no_advance
from vlmexport.costs.operations import count
from vlmexport.design import Design, create, specify
from vlmexport.errors import Unsupported
from vlmexport.measure import Measured, measure
from vlmexport.measures.arrays import ArrayMeasure
from vlmexport.model import load
from vlmexport.model.sketch import sketch
from vlmexport.quantize.int8 import Int8
from vlmexport.recipe import resolve
from vlmexport.source.locate import open_model

TOWER, LANGUAGE = "clip:l14-336", "llama:1.4b"
PROJECTORS = (
    "linear", "mlp2x_gelu", "mlp2x_relu4096", "bottleneck_transformer512", "ldpnet", "ldpnetv2", "qformer96x768",
    "concat_mlp", "pool_avg", "pool_max", "pixel_shuffle", "quantized_fbgemm", "quantized_qnnpack",
)  # fmt: skip
ENCODERS = (
    TOWER, "clip:l14", "clip:b16", "clip:b32", "siglip:b16-224", "vit:tutorial", "s2:clip:b16",
    "mobileformer:26m", "mobileformer:52m", "mobileformer:96m", "mobileformer:151m", "mobileformer:214m",
    "mobileformer:294m", "mobileformer:508m", "timm:mobilenetv3_small_100", "timm:mobilenetv3_large_100",
    "timm:efficientnet_lite0", "timm:efficientnet_b0", "timm:mobilevit_xxs", "timm:mobilevit_xs", "timm:mobilevit_s",
    "timm:mobilevitv2_100", "timm:efficientformer_l1", "timm:efficientformer_l3", "timm:efficientformerv2_s1",
    "timm:fastvit_t8", "timm:fastvit_mci0",
)  # fmt: skip
IMAGES, HELD_OUT = 16, 8
TURNS, RUNS = 3, 5
PAUSE = 0.1
"""Seconds before a turn: a session's threads wait for more work busily, and would take the other's time."""

LAYERS = 2
"""Of the tower that makes features for projectors: their time does not depend on what they are of."""

Row = dict[str, Any]


def encoder(name: str) -> Row:
    """An encoder with a linear projector."""
    samples = calibration_samples(IMAGES + HELD_OUT)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        spec = create(Design(name, "linear", "llama:tiny"), folder / "model")
        checkpoint = open_model(str(folder / "model"))
        vlm = load(checkpoint, components=("vision", "projector"))
        statistics = collect(vlm, checkpoint.prompts, samples[:IMAGES])
        sessions, sizes = {}, {}
        for precision, recipe in (("fp32", "onnx-fp32"), ("int8", "onnx-x86")):
            flags = {"onnx.decoder": "fp32", "onnx.fallback": "predicted"}
            chosen, place, aside = resolve(recipe, flags, environ={}), folder / precision, folder / f"{precision}-aside"
            place.mkdir()
            aside.mkdir()
            graphs = FloatGraphs(checkpoint, chosen, aside)
            int8 = measure(checkpoint, chosen, aside, graphs.model, statistics=statistics).int8
            half = OnnxSeeing(checkpoint, chosen.onnx, graphs)
            files = half.write(Measured(int8=int8), place, lambda role: no_advance).half.files
            sessions[precision] = open_session(place / files["vision_encoder"])
            sizes[precision] = sum(path.stat().st_size for path in (place / "onnx").iterdir())
        pixels = [vlm.pixels(sample.image()).numpy() for sample in samples[IMAGES:]]
        counted = count(spec)
        return {
            "parameters": checkpoint.parameters("vision"), "image_size": spec.vision.image_size,
            "tokens": spec.vision.num_patches, "width": spec.vision.hidden_size, "operations": counted.vision,
            "mb": {precision: size / 1e6 for precision, size in sizes.items()},
            **measured(sessions, [{"pixel_values": one} for one in pixels]),
        }  # fmt: skip


def projector(name: str) -> Row:
    """A projector alone, behind features of the tower's width."""
    spec = specify(Design(TOWER, name, LANGUAGE))
    vlm = sketch(spec, LAYERS, ("vision", "projector"))
    with torch.inference_mode():
        features = [vlm.features(vlm.pixels(sample.image())) for sample in calibration_samples(IMAGES + HELD_OUT)]
        with Recorder(vlm) as recorder:
            for one in features[:IMAGES]:
                vlm.tokens(one)
    statistics = Statistics(dict(sorted(recorder.layers.items())), ("0",))
    traced = trace_projector(vlm)
    with tempfile.TemporaryDirectory() as scratch:
        paths = {precision: Path(scratch) / f"{precision}.onnx" for precision in ("fp32", "int8")}
        save(traced.model, paths["fp32"])
        model = ir.load(paths["fp32"])
        Int8(resolve("onnx-x86", environ={}).onnx, statistics).quantize(model)
        save(model, paths["int8"])
        sessions = {precision: open_session(path) for precision, path in paths.items()}
        counted = count(spec)
        return {
            "parameters": sum(value.numel() for value in vlm.projector.parameters()),
            "tokens": counted.visual_tokens, "operations": counted.projector, "prompt_operations": counted.prompt,
            **measured(sessions, [{"features": one.numpy()} for one in features[IMAGES:]]),
        }  # fmt: skip


def measured(sessions: dict[str, InferenceSession], inputs: list[dict[str, npt.NDArray[np.float32]]]) -> Row:
    """Milliseconds of both, in turn, and how far int8 is from float."""
    loss = ArrayMeasure()
    for one in inputs:
        found = {precision: run(session, one)["image_features"][None] for precision, session in sessions.items()}
        loss.add(found["fp32"], found["int8"])
    times: dict[str, list[float]] = {precision: [] for precision in sessions}
    for _ in range(TURNS):
        for precision, session in sessions.items():
            time.sleep(PAUSE)
            run(session, inputs[0])
            for _ in range(RUNS):
                start = time.perf_counter()
                run(session, inputs[0])
                times[precision].append(1e3 * (time.perf_counter() - start))
    metrics = loss.metrics()
    return {
        "ms": {precision: median(values) for precision, values in times.items()},
        "cosine": metrics["cosine"], "sqnr_db": metrics["sqnr_db"],
    }  # fmt: skip


def tables(found: dict[str, dict[str, Row]], trained: dict[str, Row]) -> str:
    """Markdown: encoders, then projectors with what they answer where they were trained, then what projectors cost.

    Args:
        trained: rows of ``benchmarks/projectors.py``.
    """
    lines = [
        "| encoder | pixels | tokens × width | M parameters | G operations | float32, ms | int8, ms "
        "| int8 ÷ float | int8, dB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, row in found["encoders"].items():
        cells = (
            str(row["image_size"]), f"{row['tokens']} × {row['width']}", f"{row['parameters'] / 1e6:.1f}",
            f"{row['operations'] / 1e9:.3g}", *_times(row), f"{row['sqnr_db']:.1f}",
        )  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| projector | tokens | M parameters | of the tower's time, float32 | int8 | right answers, float | int8 "
        "| int8 tokens, dB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, row in found["projectors"].items():
        figures = [str(row["tokens"]), f"{row['parameters'] / 1e6:.1f}", *_shares(row, found["encoders"].get(TOWER))]
        if name in trained:
            int8 = trained[name]["int8"]
            figures += [f"{int8['answer'][f'{who}accuracy']:.3f}" for who in ("reference_", "")]
            figures.append(f"{int8['tokens']['sqnr_db']:.1f}")
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
    lines += [
        "",
        "| projector | G operations | prompt, G operations | float32, ms | int8, ms | int8 ÷ float | int8, dB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found["projectors"].items():
        costs = [f"{row['operations'] / 1e9:.3g}", f"{row['prompt_operations'] / 1e9:.0f}", *_times(row)]
        lines.append(f"| {name} | " + " | ".join([*costs, f"{row['sqnr_db']:.1f}"]) + " |")
    return "\n".join(lines)


def _shares(row: Row, tower: Row | None) -> list[str]:
    """Of the tower's time, in float32 and int8."""
    return [f"1/{tower['ms'][one] / row['ms'][one]:.0f}" if tower else "" for one in ("fp32", "int8")]


def _times(row: Row) -> tuple[str, str, str]:
    fp32, int8 = row["ms"]["fp32"], row["ms"]["int8"]
    return f"{fp32:.1f}", f"{int8:.1f}", f"{int8 / fp32:.2f}"


def main() -> None:
    """Parse, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Row]] = {"encoders": {}, "projectors": {}}
    if arguments.json.exists():
        found = json.loads(arguments.json.read_text())
    work: list[tuple[str, str, Callable[[str], Row]]] = [("projectors", name, projector) for name in PROJECTORS]
    work += [("encoders", name, encoder) for name in ENCODERS]
    for kind, name, measured_as in work:
        if name in found[kind] or arguments.show:
            continue
        try:
            found[kind][name] = measured_as(name)
        except Unsupported as error:
            print(f"{name}: {error}", flush=True)
            continue
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
        print(name, found[kind][name], flush=True)
    trained = arguments.json.with_name("projectors.json")
    print(tables(found, json.loads(trained.read_text()) if trained.exists() else {}))


if __name__ == "__main__":
    main()
