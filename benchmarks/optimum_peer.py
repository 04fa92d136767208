"""The demo's vision encoder in int8: optimum's static presets beside ours. Table of docs/onnx.md.

    make optimum     # optimum in an environment of its own
    python benchmarks/optimum_peer.py --work out/optimum --json benchmarks/results/optimum.json

All are calibrated on the same images and compared with our fp32 graph on held-out pictures: the visual tokens, and the
answers that the fp32 decoder gives when it sees them. So nothing differs but the vision encoder.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.calibrate import Sample, calibration_samples, heldout_samples
from vlmexport.measures.arrays import ArrayMeasure
from vlmexport.measures.intervals import paired_drop
from vlmexport.pipeline import export
from vlmexport.processing.messages import asked
from vlmexport.recipe import resolve
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.ort.halves import OrtHalves

OURS = ("onnx-x86", "onnx-arm64")
PRESETS = ("avx512_vnni", "arm64")
MAX_NEW_TOKENS = 64
ENVIRONMENT = Path(os.environ.get("VLMEXPORT_TEST_OPTIMUM", Path(__file__).parents[1] / ".venv-optimum"))


def bundle(name: str, work: Path) -> Path:
    """A bundle of the demo, exported where it is not there yet."""
    folder = work / name
    return folder if folder.exists() else export("demo", resolve(name), folder)


def peer(preset: str, graph: Path, pixels: Path, work: Path) -> Path:
    """The graph as optimum quantizes it."""
    made = work / preset / f"{graph.stem}_quantized.onnx"
    if not made.exists():
        script = Path(__file__).with_name("optimum_quantize.py")
        files = [str(graph), str(pixels), preset, str(made.parent)]
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([ENVIRONMENT / "bin" / "python", script, *files], check=True, env=environ)
    return made


def encoders(runtime: Joined, work: Path) -> dict[str, Path]:
    """Name → graph: fp32, ours, optimum's."""
    graphs = {"fp32": bundle("onnx-fp32", work) / "onnx" / "vision_encoder.onnx"}
    for name in OURS:
        graphs[f"vlmexport {name}"] = bundle(name, work) / "onnx" / "vision_encoder_int8.onnx"
    pixels = work / "pixels.npy"
    if not pixels.exists():
        np.save(
            pixels, np.concatenate([runtime.pixels(sample.image()).pixel_values for sample in calibration_samples()])
        )
    first, second = (peer(preset, graphs["fp32"], pixels, work) for preset in PRESETS)
    if filecmp.cmp(first, second, shallow=False):  # optimum's presets for these two machines are one
        return graphs | {f"optimum {' = '.join(PRESETS)}": first}
    return graphs | {f"optimum {preset}": path for preset, path in zip(PRESETS, (first, second), strict=True)}


def measure(runtime: Joined, graphs: dict[str, Path], samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Name → measures of its visual tokens, share of right answers and of answers equal to those with fp32."""
    sessions = {name: open_session(path) for name, path in graphs.items()}
    tokens = {name: ArrayMeasure() for name in graphs}
    answers: dict[str, list[str]] = {name: [] for name in graphs}
    for sample in samples:
        processed = runtime.pixels(sample.image())
        pixels = processed.pixel_values
        seen = {name: run(session, {"pixel_values": pixels})["image_features"] for name, session in sessions.items()}
        for name, features in seen.items():
            tokens[name].add(seen["fp32"], features)
            prompt = runtime.prompt(asked(sample.question), [processed.views])
            ids = [token.id for token in runtime.generate(prompt, [features], MAX_NEW_TOKENS)]
            answers[name].append(runtime.decode(ids))
    expected = [sample.answer for sample in samples]
    right = {name: [a == b for a, b in zip(given, expected, strict=True)] for name, given in answers.items()}
    equal = {name: [a == b for a, b in zip(given, answers["fp32"], strict=True)] for name, given in answers.items()}
    found = {}
    for name, path in graphs.items():
        drop, low, high = paired_drop(right["fp32"], right[name])
        found[name] = {
            **tokens[name].metrics(), "accuracy": float(np.mean(right[name])), "equal": float(np.mean(equal[name])),
            "drop": drop, "drop_ci95": (high - low) / 2, "bytes": path.stat().st_size,
        }  # fmt: skip
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| vision encoder | MB | tokens cosine | 1st percentile | SQNR dB | equal answers | accuracy |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in found.items():
        decibels = "" if name == "fp32" else f"{row['sqnr_db']:.1f}"
        lines.append(
            f"| {name} | {row['bytes'] / 1e6:.1f} | {row['cosine']:.4f} | {row['cosine_p1']:.4f} | {decibels} | "
            f"{100 * row['equal']:.1f} % | {100 * row['accuracy']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the bundles and graphs, kept")
    parser.add_argument("--samples", type=int, default=250, help="held-out questions, one a picture")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    work: Path = arguments.work
    folder = bundle("onnx-fp32", work)
    with closing(join(OrtHalves(folder, read_manifest(folder)))) as runtime:
        found = measure(runtime, encoders(runtime, work), heldout_samples(arguments.samples))
    print(table(found))
    if arguments.json:
        facts: dict[str, Any] = {"samples": arguments.samples, "encoders": found}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
