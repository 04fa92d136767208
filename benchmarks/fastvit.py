"""Static int8 of FastViTHD at 1024 pixels, of random weights: which layers suffer, and what it takes beside float.

    python benchmarks/fastvit.py --photographs calibration/images --json fastvit.json

Random weights of convolutions behind one another fade, so batch norms are given what reaches them first. Each kind of
layer is int8 alone, then all of them, then those that we ship. Float and int8 take turns; ratios are those of the
processor's seconds, because they move less than wall time where other programs run. One thread, or ``--threads``.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import onnx_ir as ir
import torch
from PIL import Image
from torch import nn

from vlmexport.artifact.onnx.passes import fold_batch_norm, fuse_bias
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.passes.fuse_attention import fuse
from vlmexport.artifact.onnx.session import open_session
from vlmexport.artifact.onnx.trace.components import trace_module
from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.statistics import F32, Statistics
from vlmexport.design import vision_of
from vlmexport.model import VLM, plugins
from vlmexport.model.random_weights import measure_statistics, randomise
from vlmexport.quantize.int8 import Int8
from vlmexport.recipe import resolve

SIDE = 1024


class Tower(nn.Module):
    """The encoder, under the paths that it has in ``model.VLM``."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = vision_of("fastvit:mci3", SIDE)
        self.vision = plugins.vision(self.spec).build(self.spec)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return plugins.vision(self.spec).features(self.vision, pixel_values, self.spec)


def photograph(path: Path) -> torch.Tensor:
    """f32 [1, 3, SIDE, SIDE] from 0 to 1."""
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255)


def make(images: list[torch.Tensor], folder: Path) -> tuple[Tower, Statistics]:
    """A tower, its float graph in ``folder``, and what its layers read of the images."""
    tower = Tower()
    randomise(tower, torch.Generator().manual_seed(0))
    tower.eval()
    measure_statistics(tower, lambda: tower(torch.cat(images[:2])))
    example = torch.rand(2, 3, SIDE, SIDE)
    graph = trace_module(tower, (example,), ({0: "num_images"},), ["pixel_values"], ["features"])
    fold_batch_norm.fold(graph)
    save(graph, folder / "plain.onnx")
    fuse(graph)
    save(graph, folder / "float.onnx")
    with Recorder(cast(VLM, tower)) as recorder, torch.inference_mode():
        for image in images:
            tower(image)
    return tower, Statistics(dict(sorted(recorder.layers.items())), ("0",))


def quantize(folder: Path, name: str, int8: Int8, layers: set[str] | None = None) -> int:
    """Write a graph in which the layers are int8, all that can be where it is None; how many there are."""
    model = ir.load(folder / "plain.onnx")
    found = int8.decide(model)
    if layers is not None:
        found.kept |= dict.fromkeys(found.choices.keys() - layers, "not asked")
        found.choices = {path: choice for path, choice in found.choices.items() if path in layers}
    int8.apply(model, found)
    fuse_bias.fuse(model)
    fuse(model)
    save(model, folder / f"{name}.onnx")
    return len(found.choices)


def kinds(folder: Path, int8: Int8) -> dict[str, set[str]]:
    """Kind of layer in a stage → paths."""
    found: dict[str, set[str]] = {}
    for path in int8.decide(ir.load(folder / "plain.onnx")).choices:
        found.setdefault(re.sub(r"blocks\.\d+\.", "", path), set()).add(path)
    return found


def decibels(want: F32, got: F32) -> float:
    """Signal, its mean taken off, to noise."""
    return float(10 * np.log10(np.square(want - want.mean()).sum() / np.square(want - got).sum()))


def judge(folder: Path, statistics: Statistics, kept: dict[str, str], image: F32) -> Iterator[tuple[str, int, float]]:
    """Name, number of int8 layers and decibels of features: as shipped, all layers, each kind alone."""
    settings = resolve("onnx-x86", environ={}).onnx
    everything, shipped = Int8(settings, statistics), Int8(settings, statistics, kept)
    want = features(folder / "float.onnx", image)
    yield "shipped", quantize(folder, "shipped", shipped), decibels(want, features(folder / "shipped.onnx", image))
    yield "all", quantize(folder, "all", everything), decibels(want, features(folder / "all.onnx", image))
    for kind, paths in kinds(folder, everything).items():
        count = quantize(folder, "part", everything, paths)
        yield kind, count, decibels(want, features(folder / "part.onnx", image))


def features(path: Path, image: F32) -> F32:
    """Of a graph."""
    found: F32 = open_session(path).run(None, {"pixel_values": image})[0]
    return found


def seconds(folder: Path, names: tuple[str, ...], image: F32, turns: int, threads: int) -> dict[str, list[float]]:
    """Of the processor, by graph, turn after turn."""
    sessions = {name: open_session(folder / f"{name}.onnx", threads) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns + 1):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, {"pixel_values": image})
            found[name].append(time.process_time() - start)
    return {name: taken[1:] for name, taken in found.items()}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder; the last one is judged")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times-alone", action="store_true", help="judge the shipped layers alone")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    *images, judged = [photograph(path) for path in sorted(arguments.photographs.glob("photo-*"))]
    with tempfile.TemporaryDirectory(prefix="fastvit-") as scratch:
        folder = Path(scratch)
        tower, statistics = make(images, folder)
        image, rows = judged.numpy(), []
        for row in judge(folder, statistics, plugins.float_layers(tower.spec), image):
            rows.append(row)
            print(f"{row[0]:50} {row[1]:4} {row[2]:6.1f} dB", flush=True)
            if arguments.times_alone and row[0] == "all":
                break
        taken = seconds(folder, ("float", "shipped", "all"), image, arguments.turns, arguments.threads)
    ratios = {name: [mine / other for mine, other in zip(values, taken["float"], strict=True)]
              for name, values in taken.items()}  # fmt: skip
    for name, values in taken.items():
        print(f"{name:10} {min(values):.2f} s, ÷ float {median(ratios[name]):.2f} ({min(ratios[name]):.2f} least)")
    arguments.json.write_text(json.dumps({"decibels": rows, "seconds": taken}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
