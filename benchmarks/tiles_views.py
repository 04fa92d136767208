"""What a budget of views costs models/tiles, in float and in the x86 int8 bundle. Table of docs/pixels.md.

    python benchmarks/tiles_views.py --work DIR --json benchmarks/results/tiles-views.json
    python benchmarks/tiles_views.py --json benchmarks/results/tiles-views.json --show

Bundles are made in DIR and checked on held-out questions, which neither training nor calibration saw. A check says all
of it: the bundle beside the float model under the same budget, and that beside itself with all views. Budgets that the
JSON file holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tiles_formats import data

from vlmexport.measures.stage_result import StageResult
from vlmexport.parity import check
from vlmexport.parity.result import ParityResult
from vlmexport.pipeline import export
from vlmexport.recipe import resolve

MODEL = str(Path(__file__).parents[1] / "models" / "tiles")
BUDGETS = {"1": 1, "5": 5, "all": None}
"""Name of a row → views of a picture, at most."""


def measure(name: str, work: Path, scenes: int) -> dict[str, Any]:
    """One row."""
    asked, bundle = data(work, scenes), work / f"views-{name}"
    if not bundle.exists():
        export(MODEL, resolve("onnx-x86", {"max_views": BUDGETS[name]}, environ={}), bundle)
    count = len((asked / "questions.jsonl").read_text(encoding="utf-8").splitlines())
    told = bundle / "parity.json"
    if told.exists():
        result = ParityResult.model_validate_json(told.read_text(encoding="utf-8"))
        if result.samples == count:
            return figures(result)
    return figures(check(bundle, data=asked, samples=count))


def figures(result: ParityResult) -> dict[str, Any]:
    """What the table shows. ``drop`` is of the bundle against the float model under the same budget."""
    stages = {(stage.stage, stage.mode): stage.metrics for stage in result.stages}
    logits, answer = stages["logits", "chained"], stages["answer", "chained"]
    found = {
        "questions": result.samples, "pictures": result.images, "float": answer["reference_accuracy"],
        "int8": answer["accuracy"], "drop": answer["task_drop"],
        "drop_ci95": [answer["task_drop_low"], answer["task_drop_high"]], "kld": logits["kld"], "passed": result.passed,
    }  # fmt: skip
    if result.views is not None:
        told: dict[str, StageResult] = {stage.stage: stage for stage in result.views.stages}
        found["views"] = result.views.most
        found["budget"] = told["logits"].metrics | told["answer"].metrics
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| `--max-views` | float | int8 | int8: KL | points lost | the budget: KL | points lost |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in BUDGETS:
        row, budget = found[name], found[name].get("budget")
        own = (_short(budget["kld"]), _points(budget["task_drop"], _ci(budget))) if budget else ("", "")
        cells = (name, f"{row['float']:.3f}", f"{row['int8']:.3f}", _short(row["kld"]))
        lines.append(f"| {' | '.join((*cells, _points(row['drop'], row['drop_ci95']), *own))} |")
    return "\n".join(lines)


def _ci(metrics: dict[str, float]) -> list[float]:
    return [metrics["task_drop_low"], metrics["task_drop_high"]]


def _short(value: float) -> str:
    return format(value, ".2g")


def _points(drop: float, interval: list[float]) -> str:
    low, high = interval
    return f"{100 * drop:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main() -> None:
    """Parse, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="the table alone")
    chosen = parser.parse_args()
    found: dict[str, Any] = json.loads(chosen.json.read_text(encoding="utf-8")) if chosen.json.exists() else {}
    for name in () if chosen.show else BUDGETS:
        if name not in found:
            found[name] = measure(name, chosen.work, chosen.scenes)
            print(name, found[name], file=sys.stderr, flush=True)
            chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
