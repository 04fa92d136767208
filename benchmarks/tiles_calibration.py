"""Whether tiles and whole pictures should weigh alike when the SigLIP tower of models/tiles is calibrated.

    python benchmarks/tiles_calibration.py --scenes 40 --json benchmarks/results/tiles-calibration.json
    python benchmarks/tiles_calibration.py --scenes 12 --first 4 8 24    # how many pictures are enough

Statistics of tiles and of whole pictures are taken apart and added with weights; the float model then computes its
tower and connector as their int8 products would be (``fallback.simulated``), on held-out pictures, tiles and whole
pictures apart. Calibrated on all of the calibration set, on its scenes alone and on its photographs alone: the others
are held out then.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from recipes.tiles.scenes import SEEDS, make_scene, paint
from vlmexport.calibrate import Histogram, LayerStatistics, Statistics, calibration_samples
from vlmexport.calibrate.collect import always_float
from vlmexport.calibrate.recorder import Recorder
from vlmexport.fallback.simulated import int8_layers
from vlmexport.measures.arrays import ArrayMeasure
from vlmexport.model import VLM, load, plugins
from vlmexport.pipeline import export
from vlmexport.quantize.int8 import Int8
from vlmexport.recipe import resolve
from vlmexport.source.locate import open_model

MODEL = str(Path(__file__).parents[1] / "models" / "tiles")
JUDGED = {"all": "scenes", "scenes": "photographs", "photographs": "scenes"}
"""What is calibrated on, and the held-out pictures that it is judged on."""

WEIGHTS = {"1 : 1": (1, 1), "1 : 9, the same share": (1, 9), "1 : 36": (1, 36), "1 : 0": (1, 0), "0 : 1": (0, 1)}
"""What a tile and a whole picture weigh."""

Apart = tuple[torch.Tensor, torch.Tensor]
"""Tiles, and the whole picture."""


def cut(vlm: VLM, images: list[Any]) -> list[Apart]:
    """f32 [views, 3, side, side] of both kinds."""
    pixels = [vlm.pixels(image) for image in images]
    return [(views[:-1], views[-1:]) for views in pixels]


def statistics(vlm: VLM, pictures: list[Apart], kind: int) -> dict[str, LayerStatistics]:
    """Of tiles (0) or of whole pictures (1), view by view."""
    with Recorder(vlm, always_float(vlm)) as recorder, torch.inference_mode():
        for picture in pictures:
            for view in picture[kind]:
                vlm.tokens(vlm.features(view[None]))
    return recorder.layers


def weighed(layer: LayerStatistics, times: int) -> LayerStatistics:
    """As if each row had come so many times."""
    histogram = Histogram(layer.histogram.exponent, layer.histogram.counts * times)
    return replace(layer, histogram=histogram, sum_sq_image=layer.sum_sq_image * times, sum=layer.sum * times,
                   count_image=layer.count_image * times)  # fmt: skip


def mixed(apart: list[dict[str, LayerStatistics]], weights: tuple[int, int]) -> Statistics:
    """Both kinds, weighed; one of weight 0 was not seen at all."""
    total = Statistics()
    for layers, times in zip(apart, weights, strict=True):
        if times:
            total += Statistics({name: weighed(layer, times) for name, layer in layers.items()})
    return total


def seen(vlm: VLM, pictures: list[Apart]) -> dict[str, list[np.ndarray]]:
    """Features and visual tokens of the views of each kind."""
    found: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for picture in pictures:
            for kind, views in zip(("tile", "whole"), picture, strict=True):
                features = vlm.features(views)
                found.setdefault(f"features, {kind}", []).append(features.numpy())
                found.setdefault(f"tokens, {kind}", []).append(vlm.tokens(features).numpy())
    return found


def decibels(expected: dict[str, list[np.ndarray]], found: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Signal to noise ratio of each."""
    ratios = {}
    for name, arrays in expected.items():
        measure = ArrayMeasure()
        for a, b in zip(arrays, found[name], strict=True):
            measure.add(a, b)
        ratios[name] = measure.metrics()["sqnr_db"]
    return ratios


Found = dict[str, dict[str, dict[str, float]]]


def measure(model: str, scenes: int, graph: Path, first: list[int]) -> Found:
    """Calibration set → weights → ratios; of the set's first pictures, and not weighed, where they are asked for."""
    checkpoint = open_model(model)
    vlm = load(checkpoint, components=("vision", "projector"), resident=True)
    of_photographs = [sample for sample in calibration_samples() if "photo" in sample.id]
    of_scenes = [sample for sample in calibration_samples() if sample not in of_photographs]
    sets = {"all": of_scenes + of_photographs, "scenes": of_scenes, "photographs": of_photographs}
    held = {"scenes": cut(vlm, [paint(make_scene(seed)) for seed in SEEDS["heldout"][:scenes]]),
            "photographs": cut(vlm, [sample.image() for sample in of_photographs])}  # fmt: skip
    settings, found = resolve("onnx-x86", {"onnx.saturation": "none"}, environ={}).onnx, Found()
    sets |= {f"the first {count}": calibration_samples(count) for count in first}
    for name in [f"the first {count}" for count in first] or JUDGED:
        judged = JUDGED.get(name, "scenes")
        expected, pictures = seen(vlm, held[judged]), cut(vlm, [sample.image() for sample in sets[name]])
        apart = [statistics(vlm, pictures, kind) for kind in range(2)]
        for label, weights in list(WEIGHTS.items())[: 1 if first else None]:
            int8 = Int8(settings, mixed(apart, weights), plugins.float_layers(checkpoint.spec.vision))
            choices = int8.decide(ir.load(graph)).choices
            with int8_layers(vlm, choices, choices):
                found.setdefault(name, {})[label] = decibels(expected, seen(vlm, held[judged]))
            print(name, label, found[name][label], file=sys.stderr, flush=True)
    return found


def table(found: Found) -> str:
    """Markdown."""
    columns = ("features, tile", "features, whole", "tokens, tile", "tokens, whole")
    lines = ["| calibrated on | judged on | tile : whole | " + " | ".join(columns) + " |",
             "|---|---|---|" + "---:|" * len(columns)]  # fmt: skip
    for name, rows in found.items():
        for label, ratios in rows.items():
            cells = " | ".join(f"{ratios[column]:.1f}" for column in columns)
            lines.append(f"| {name} | {JUDGED.get(name, 'scenes')} | {label} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--first", type=int, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = export(
            arguments.model, resolve("onnx-fp32", {"onnx.fuse": False}, environ={}), Path(scratch) / "bundle"
        )
        found = measure(arguments.model, arguments.scenes, bundle / "onnx" / "vision_encoder.onnx", arguments.first)
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
