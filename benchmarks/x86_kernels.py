"""The demo's bundles and int8 products on both kinds of x86 processor: with VNNI, and with AVX2 alone.

    python benchmarks/x86_kernels.py --work DIR --samples 120 --json benchmarks/results/x86-kernels.json

It runs on Linux, on a processor with VNNI whose cpuid can be made to fault: tests/avx2.c hides VNNI, AVX-512 and AMX
from a process, whose libraries then take the kernels of AVX2 at their native speed. One thread; all that is timed
in one process takes turns, and the best of its rounds counts. Bundles are made once in DIR and kept there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from vlmexport.calibrate import heldout_samples
from vlmexport.parity import check
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.ort.int8_kernels import kernels_here

BUNDLES: dict[str, tuple[str, dict[str, Any]]] = {
    'x86, `saturation = "none"`': ("onnx-x86", {"onnx.saturation": "none"}),
    "x86": ("onnx-x86", {}),
    "arm64, in our own sessions": ("onnx-arm64", {}),
}
ALLOWED = {"session.qdqisint8allowed": "1"}
PRODUCTS: dict[str, tuple[type, type, dict[str, str]]] = {
    "U8 activations, S8 weights": (np.uint8, np.int8, {}),
    "S8 activations, ONNX Runtime's default settings": (np.int8, np.int8, {}),
    "S8 activations, `session.qdqisint8allowed`": (np.int8, np.int8, ALLOWED),
    "U8 activations, U8 weights": (np.uint8, np.uint8, {}),
}
SHAPES = ((577, 1024, 1024), (577, 1024, 4096), (577, 4096, 1024))
ROUNDS = 9


def turns(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Processor seconds of each, the best of its rounds: one thread, whatever else the machine does."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def session(shape: tuple[int, int, int], kinds: tuple[type, type], settings: dict[str, str]) -> Any:
    """x [1, rows, inputs] → Q/DQ → times weights that are as large as they can be."""
    _, inputs, outputs = shape
    zeros = [128 if kind is np.uint8 else 0 for kind in kinds]
    arrays = {
        "s": np.float32(1), "z": kinds[0](zeros[0]), "w": np.full((inputs, outputs), 127 + zeros[1], kinds[1]),
        "ws": np.ones(outputs, np.float32), "wz": np.full(outputs, zeros[1], kinds[1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wdq"], axis=1),
        helper.make_node("MatMul", ["dq", "wdq"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
              for name, size in (("x", ["batch", "rows", inputs]), ("y", None))]  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def products() -> dict[str, dict[str, Any]]:
    """Time of each product over that of U8·S8, the least and the most of the shapes, and whether it is exact."""
    found: dict[str, dict[str, Any]] = {name: {"ratios": [], "exact": True} for name in PRODUCTS}
    for shape in SHAPES:
        sessions = {name: session(shape, (a, b), settings) for name, (a, b, settings) in PRODUCTS.items()}
        x = np.full((1, *shape[:2]), 127, np.float32)
        for name, one in sessions.items():
            found[name]["exact"] &= bool((one.run(None, {"x": x})[0] == 127.0 * 127 * shape[1]).all())
        best = turns({name: partial(one.run, None, {"x": x}) for name, one in sessions.items()})
        for name, seconds in best.items():
            found[name]["ratios"].append(seconds / best["U8 activations, S8 weights"])
    return found


def bundles(work: Path, samples: int) -> dict[str, dict[str, float]]:
    """What `check` measures of each, and the time of an image over that of the first."""
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(BUNDLES):
        result = check(work / str(number), samples=samples)
        stages = {(stage.stage, stage.mode): stage.metrics for stage in result.stages}
        found[name] = {
            "features_db": stages["features", "chained"]["sqnr_db"],
            "tokens_db": stages["tokens", "chained"]["sqnr_db"],
            "kld": stages["logits", "chained"]["kld"],
            "equal": sum(answer.equal for answer in result.answers) / len(result.answers),
        }
    image = next(iter(heldout_samples(1))).image()
    runtimes = {name: open_runtime(work / str(number)) for number, name in enumerate(BUNDLES)}
    pixels = {name: runtime.pixels(image) for name, runtime in runtimes.items()}
    best = turns({name: partial(runtime.features, pixels[name]) for name, runtime in runtimes.items()})
    for name in found:
        found[name]["time"] = best[name] / best[next(iter(BUNDLES))]
    return found


def there(library: Path | None, arguments: list[str]) -> dict[str, Any]:
    """What this program measures in a process of its own."""
    hidden = {"LD_PRELOAD": str(library)} if library else {}
    calm = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, *arguments, "--here"]
    done = subprocess.run(command, env=os.environ | calm | hidden, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: bundles, then products."""
    kernels = list(found)
    columns = {"features_db": ".1f", "tokens_db": ".1f", "kld": ".5f", "equal": ".3f", "time": ".2f"}
    heads = [
        f"{title}, {name}" for name in kernels for title in ("features, dB", "tokens, dB", "KL: all", "equal", "time")
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in BUNDLES:
        cells = [
            format(found[kernel]["bundles"][name][key], style) for kernel in kernels for key, style in columns.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| | " + " | ".join(f"{name}, time | exact" for name in kernels) + " |",
        "|---|" + "---:|---|" * len(kernels),
    ]
    for name in PRODUCTS:
        cells = []
        for kernel in kernels:
            row = found[kernel]["products"][name]
            cells += [f"{min(row['ratios']):.1f}–{max(row['ratios']):.1f}", "yes" if row["exact"] else "no"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Export, then measure on both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help="measure in this process; it writes one line of JSON")
    chosen = parser.parse_args()
    if chosen.here:
        found = {
            "kernels": kernels_here().name,
            "products": products(),
            "bundles": bundles(chosen.work, chosen.samples),
        }
        print(json.dumps(found))
        return
    chosen.work.mkdir(parents=True, exist_ok=True)
    for number, (recipe, flags) in enumerate(BUNDLES.values()):
        if not (chosen.work / str(number)).exists():
            export("demo", resolve(recipe, flags, environ={}), chosen.work / str(number))
    library = chosen.work / "avx2.so"
    source = Path(__file__).parents[1] / "tests" / "avx2.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    arguments = ["--work", str(chosen.work), "--samples", str(chosen.samples)]
    measured = [there(None, arguments), there(library.resolve(), arguments)]
    results = {one.pop("kernels"): one for one in measured}
    print(table(results))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
