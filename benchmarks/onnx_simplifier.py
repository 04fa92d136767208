"""What onnxsim does to the traced graphs of a model: nodes before and after, those that ONNX Runtime's own optimisation
leaves, and time.

    python benchmarks/onnx_simplifier.py demo [CHECKPOINT …] --json onnx-simplifier.json

Each graph is a sketch of at most three layers. ``weights alone`` is what an export does
(artifact/onnx/trace/simplify.py); the others may pack and fold weights, so they can only be measured. Graphs take
turns; a ratio is the median over turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim

from vlmexport.artifact.onnx.passes import repeat_layers
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import open_session
from vlmexport.artifact.onnx.trace import compare, components, simplify
from vlmexport.model.sketch import sketch
from vlmexport.source.locate import open_model

TRACERS: dict[str, Callable[..., components.Traced]] = {
    "vision": components.trace_vision, "projector": components.trace_projector, "language": components.trace_decoder,
}  # fmt: skip
PACKING: dict[str, dict[str, Any]] = {"onnxsim": {}, "without fuse_qkv": {"skipped_optimizers": ["fuse_qkv"]}}
TURNS = 7


def measure(model: str) -> dict[str, dict[str, Any]]:
    """Part → figures of a checkpoint folder, a Hub id or ``demo``."""
    vlm = sketch(open_model(model).spec, repeat_layers.TRACED)
    found = {}
    with TemporaryDirectory() as scratch:
        for part, tracer in TRACERS.items():
            traced, path = tracer(vlm), Path(scratch) / f"{part}.onnx"
            save(traced.model, path)
            compare.check(traced, path)
            _, alone = simplify.simplify(traced, Path(scratch))
            paths = {"traced": path} | {name: packed(path, name) for name in PACKING}
            sizes = {name: nodes(one) for name, one in paths.items()} | {"weights alone": alone["nodes_after"]}
            found[part] = {
                "nodes": sizes, "runtime_nodes": {name: nodes(optimised(one)) for name, one in paths.items()},
                "off": {name: compare.check(traced, paths[name]) for name in PACKING},
                "seconds": seconds(traced, paths),
            }  # fmt: skip
    return found


def packed(path: Path, name: str) -> Path:
    """onnxsim's graph of a graph file."""
    result = path.with_suffix(f".{name}.onnx")
    onnx.save(onnxsim.simplify(onnx.load(path), **PACKING[name])[0], result)
    return result


def nodes(path: Path) -> int:
    """Of a graph file."""
    return len(onnx.load(path).graph.node)


def optimised(path: Path) -> Path:
    """What ONNX Runtime makes of it when it opens it at its defaults."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return path.with_suffix(".optimised.onnx")


def seconds(traced: components.Traced, paths: dict[str, Path]) -> dict[str, list[float]]:
    """The fastest of a few runs on the smallest probe, in every turn."""
    sessions = {name: open_session(path) for name, path in paths.items()}
    names = [value.name for value in sessions["traced"].get_inputs()]
    given = dict(zip(names, compare.flat(traced.probes[0]), strict=True))
    found: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(TURNS):
        for name, session in sessions.items():
            session.run(None, given)
            found[name].append(min(_once(session, given) for _ in range(5)))
    return found


def _once(session: onnxruntime.InferenceSession, given: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(None, given)
    return time.perf_counter() - start


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown."""
    lines = [
        "| model | graph | nodes | weights alone | onnxsim | without `fuse_qkv` | left by ONNX Runtime | of onnxsim's "
        "| without `fuse_qkv` | time ÷ traced: onnxsim | without `fuse_qkv` |",
        "|---|---|" + "---:|" * 9,
    ]
    for model, parts in found.items():
        for part, figures in parts.items():
            sizes, left = figures["nodes"], figures["runtime_nodes"]
            shown = [sizes["traced"], sizes["weights alone"], *(sizes[name] for name in PACKING)]
            shown += [left["traced"], *(left[name] for name in PACKING)]
            shown += [f"{ratio(figures['seconds'], name):.2f}" for name in PACKING]
            lines.append(f"| {Path(model).name} | {part} | " + " | ".join(map(str, shown)) + " |")
    return "\n".join(lines)


def ratio(times: dict[str, list[float]], name: str) -> float:
    """Median over the turns of a graph's time divided by that of the traced one."""
    return median(a / b for a, b in zip(times[name], times["traced"], strict=True))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {model: measure(model) for model in arguments.models}
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
