"""What each part of the static int8 recipe brings: the demo exported with one part changed at a time, each bundle
checked on the same held-out questions.

    python benchmarks/onnx_ablation.py --samples 300 --json benchmarks/results/onnx-ablation.json

Rows that the JSON file holds already are not measured again. ``--show`` prints the table alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from vlmexport.parity import check
from vlmexport.parity.result import ParityResult
from vlmexport.pipeline import export
from vlmexport.recipe import resolve

BASE = "onnx-x86"
ONE_TERM = {"onnx.twice_below_db": -1e3, "onnx.float_below_db": -1e3}
ROUGH = {"onnx.smooth": False, **ONE_TERM}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "as the recipe has it": (BASE, {}),
    "ranges: extremes": (BASE, {"onnx.observer": "minmax"}),
    "ranges: 99.99 %": (BASE, {"onnx.observer": "percentile"}),
    "ranges: torch's histogram": (BASE, {"onnx.observer": "histogram"}),
    "ranges: cosine": (BASE, {"onnx.observer": "cosine"}),
    "no SmoothQuant": (BASE, {"onnx.smooth": False}),
    "one term everywhere": (BASE, ONE_TERM),
    "no SmoothQuant, one term": (BASE, ROUGH),
    "extremes, nothing else": (BASE, {"onnx.observer": "minmax", **ROUGH}),
    "bias correction": (BASE, {"onnx.bias_correction": True}),
    "half the levels where AVX2 saturates": (BASE, {"onnx.saturation": "avx2"}),
    "qnnpack per channel": ("onnx-arm64", {}),
    "qnnpack per tensor": (BASE, {"onnx.scheme": "qnnpack-per-tensor"}),
    "qnnpack per tensor, bias correction": (
        BASE, {"onnx.scheme": "qnnpack-per-tensor", "onnx.bias_correction": True}
    ),
}  # fmt: skip


def measure(recipe: str, flags: dict[str, Any], samples: int) -> dict[str, float]:
    """Export, check, and keep what the table shows."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = export("demo", resolve(recipe, flags, environ={}), Path(scratch) / "bundle")
        result = check(bundle, samples=samples)
        report = json.loads((bundle / "vlmexport.json").read_text())["details"]["report"]
    stages = {(stage.stage, stage.mode): stage.metrics for stage in result.stages}
    counts = {key: sum(len(graph.get(key, ())) for name, graph in report.items() if name != "projector")
              for key in ("smoothed", "two_terms", "narrow", "bias_corrected")}  # fmt: skip
    return {
        "tokens_sqnr_db": stages["tokens", "chained"]["sqnr_db"],
        "kld": stages["logits", "local"]["kld"],
        "kld_chained": stages["logits", "chained"]["kld"],
        "equal": _equal(result),
        "task_drop": stages["answer", "chained"]["task_drop"],
        **counts,
    }


def _equal(result: ParityResult) -> float:
    return sum(answer.equal for answer in result.answers) / len(result.answers)


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    columns = {
        "tokens_sqnr_db": ("tokens, dB", ".1f"), "kld": ("KL: decoder", ".5f"), "kld_chained": ("KL: all", ".5f"),
        "equal": ("equal answers", ".3f"), "task_drop": ("accuracy lost", ".3f"), "smoothed": ("smoothed", ".0f"),
        "two_terms": ("two terms", ".0f"), "narrow": ("half levels", ".0f"),
    }  # fmt: skip
    lines = ["| | " + " | ".join(title for title, _ in columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in found.items():
        cells = (format(row[key], style) for key, (_, style) in columns.items())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name, (recipe, flags) in VARIANTS.items():
        if name not in found and not arguments.show:
            found[name] = measure(recipe, flags, arguments.samples)
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found[name], flush=True)
    print(table({name: found[name] for name in VARIANTS if name in found}))


if __name__ == "__main__":
    main()
