"""What each part of the static int8 recipe brings, and what measured float fallback does, on the demo.

    python benchmarks/onnx_ablation.py parts --samples 300 --json benchmarks/results/onnx-ablation.json
    python benchmarks/onnx_ablation.py fallback --json benchmarks/results/onnx-fallback.json
    python benchmarks/onnx_ablation.py show benchmarks/results docs

``parts`` exports the demo with one part changed at a time and checks every bundle on the same held-out questions; rows
that the JSON file holds already are not measured again. ``fallback`` sends layers of int8 at its roughest back to float
one after another, in three orders. ``show`` writes tables into docs/onnx.md and plots beside it, those of the speeds
that ``onnx_speed.py`` measured too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_speed import LANGUAGE, VISION, milliseconds, speed_table

from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import calibration_samples
from vlmexport.calibrate.cache import statistics
from vlmexport.console import QUIET
from vlmexport.fallback.search import SAMPLES, LogitsLoss, TokensLoss, groups
from vlmexport.fallback.simulated import int8_layers
from vlmexport.model import load
from vlmexport.parity import check
from vlmexport.pipeline import export
from vlmexport.quantize.int8 import Int8
from vlmexport.recipe import Recipe, resolve
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.source.locate import open_model

BASE = "onnx-x86"
ONE_TERM = {"onnx.twice_below_db": -1e3, "onnx.float_below_db": -1e3}
ROUGH = {"onnx.smooth": False, **ONE_TERM}
PER_TENSOR = {"onnx.scheme": "qnnpack-per-tensor"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "as the recipe has it, no pairs bounded": (BASE, {}),
    "ranges: extremes": (BASE, {"onnx.observer": "minmax"}),
    "ranges: 99.99 %": (BASE, {"onnx.observer": "percentile"}),
    "ranges: torch's histogram": (BASE, {"onnx.observer": "histogram"}),
    "ranges: cosine": (BASE, {"onnx.observer": "cosine"}),
    "no SmoothQuant": (BASE, {"onnx.smooth": False}),
    "one term everywhere": (BASE, ONE_TERM),
    "no SmoothQuant, one term": (BASE, ROUGH),
    "extremes, nothing else": (BASE, {"onnx.observer": "minmax", **ROUGH}),
    "bias correction": (BASE, {"onnx.bias_correction": True}),
    "pairs of weights bounded": (BASE, {"onnx.saturation": "avx2"}),
    "qnnpack per channel": ("onnx-arm64", {}),
    "qnnpack per tensor": (BASE, PER_TENSOR),
    "qnnpack per tensor, bias correction": (BASE, {**PER_TENSOR, "onnx.bias_correction": True}),
    "qnnpack per tensor, extremes, nothing else": (BASE, {**PER_TENSOR, "onnx.observer": "minmax", **ROUGH}),
}
ROUGHEST = "qnnpack per tensor, extremes, nothing else"
ORDERS = ("measured alone", "predicted", "as in the model")
ASKED = {"nmse": 1e-4, "kld": 5e-4}
"""What a recipe with tight gates would ask for; the demo's own hold without any layer in float."""


def variant(name: str) -> Recipe:
    """A variant's recipe; no layer goes back to float by measurement, and no pairs are bounded unasked."""
    recipe, flags = VARIANTS[name]
    return resolve(recipe, {"onnx.fallback": "predicted", "onnx.saturation": "none", **flags}, environ={})


def parts(name: str, samples: int) -> dict[str, float]:
    """Export, check, and keep what the table shows."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = export("demo", variant(name), Path(scratch) / "bundle")
        result = check(bundle, samples=samples)
        reports = read_manifest(bundle).reports
    stages = {(stage.stage, stage.mode): stage.metrics for stage in result.stages}
    counts = {key: sum(len(getattr(report, key) or ()) for role, report in reports.items() if role != "projector")
              for key in ("smoothed", "two_terms", "pair_max", "bias_corrected")}  # fmt: skip
    return {
        "tokens_sqnr_db": stages["tokens", "chained"]["sqnr_db"],
        "kld": stages["logits", "local"]["kld"],
        "kld_chained": stages["logits", "chained"]["kld"],
        "equal": sum(answer.equal for answer in result.answers) / len(result.answers),
        "task_drop": stages["answer", "chained"]["task_drop"],
        **counts,
    }


def fallback() -> dict[str, Any]:
    """Of the vision encoder and of the decoder."""
    checkpoint = open_model("demo")
    with tempfile.TemporaryDirectory() as scratch:
        bundle = export("demo", resolve("onnx-fp32", {"onnx.fuse": False}, environ={}), Path(scratch) / "bundle")
        graphs = read_manifest(bundle).graphs()
        kinds: dict[Role, type[TokensLoss] | type[LogitsLoss]] = {
            "vision_encoder": TokensLoss, "decoder_model_merged": LogitsLoss
        }  # fmt: skip
        return {stage.name: curves(checkpoint, bundle / graphs[name], stage) for name, stage in kinds.items()}


def curves(checkpoint: Checkpoint, graph: Path, stage: type[TokensLoss] | type[LogitsLoss]) -> dict[str, Any]:
    """Every group's loss alone, and the loss when the first 0, 1, 2 … groups of an order are in float."""
    recipe, vlm = variant(ROUGHEST), load(checkpoint, resident=True)
    samples = calibration_samples(recipe.calibration.samples)
    quantizer = Int8(recipe.onnx, statistics(checkpoint, samples, QUIET))
    decisions = quantizer.decide(ir.load(graph))
    measured, members = stage(vlm, checkpoint.prompts, samples[:SAMPLES]), groups(decisions)

    def loss(left: list[list[str]]) -> float:
        paths = [path for group in left for path in group]
        with int8_layers(vlm, decisions.choices, paths):
            return measured.metrics()[stage.loss]

    alone = {group[0]: loss([group]) for group in members}
    orders = {
        "measured alone": sorted(members, key=lambda group: -alone[group[0]]),
        "predicted": sorted(members, key=lambda group: min(decisions.choices[path].ratio for path in group)),
        "as in the model": members,
    }
    found = {order: [loss(ranked[count:]) for count in range(len(ranked))] for order, ranked in orders.items()}
    return {"measure": stage.loss, "alone": alone, "curves": found}


def parts_table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    columns = {
        "tokens_sqnr_db": ("tokens, dB", ".1f"), "kld": ("KL: decoder", ".5f"), "kld_chained": ("KL: all", ".5f"),
        "equal": ("equal answers", ".3f"), "task_drop": ("accuracy lost", ".3f"), "smoothed": ("smoothed", ".0f"),
        "two_terms": ("two terms", ".0f"), "pair_max": ("pairs bounded", ".0f"),
    }  # fmt: skip
    lines = ["| | " + " | ".join(title for title, _ in columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for name in VARIANTS:
        if name in found:
            cells = (format(found[name][key], style) for key, (_, style) in columns.items())
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fallback_table(found: dict[str, Any]) -> str:
    """Markdown: how many groups each order needs in float, and the worst groups."""
    lines = ["| | groups | all in int8 | asked | in float: " + " | ".join(ORDERS) + " | the worst, alone |",
             "|---|---:|---:|---:|" + "---:|" * len(ORDERS) + "---|"]  # fmt: skip
    for stage, row in found.items():
        needed = [str(_needed(row["curves"][order], row["measure"])) for order in ORDERS]
        worst = sorted(row["alone"].items(), key=lambda item: -item[1])[:4]
        shown = ", ".join(f"`{path.split('.', 1)[1]}` {loss:.2g}" for path, loss in worst)
        start = f"{row['measure']} {row['curves'][ORDERS[0]][0]:.2g}"
        counts = " | ".join([str(len(row["alone"])), start, f"{ASKED[row['measure']]:.0e}", *needed])
        lines.append(f"| {stage} | {counts} | {shown} |")
    return "\n".join(lines)


def _needed(curve: list[float], measure: str) -> int:
    return next((count for count, loss in enumerate(curve) if loss <= ASKED[measure]), len(curve))


def plots(parts_found: dict[str, Any], fallback_found: dict[str, Any], speeds: dict[str, Any], docs: Path) -> None:
    """Three SVGs, the same from the same figures."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "vlmexport", "svg.fonttype": "none"})
    names = [name for name in VARIANTS if name in parts_found]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    left.barh(names, [parts_found[name]["kld_chained"] for name in names])
    left.set(xscale="log", xlabel="KL divergence of the whole model, nats")
    left.invert_yaxis()
    right.barh(names, [parts_found[name]["tokens_sqnr_db"] for name in names])
    right.set(xlabel="visual tokens, dB")
    _save(figure, docs / "onnx-ablation.svg", left, right)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.0), layout="constrained")
    for (stage, row), panel in zip(fallback_found.items(), axes, strict=True):
        for order, marker in zip(ORDERS, "osD", strict=True):
            curve = row["curves"][order]
            panel.plot(curve, marker=marker, markersize=3, linewidth=1, label=order)
        panel.axhline(ASKED[row["measure"]], color="gray", linewidth=1, linestyle="--", label="asked")
        panel.set(xlabel="groups in float", ylabel=row["measure"], yscale="log", title=stage)
        panel.legend(fontsize=8)
    _save(figure, docs / "onnx-fallback.svg", *axes)

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), layout="constrained")
    measures = {"image": VISION, "token": LANGUAGE, "prompt": LANGUAGE}
    for panel, (key, contenders) in zip(axes, measures.items(), strict=True):
        shown = [name for name in contenders if name in speeds]
        peers = ("quantize", "libmtmd", "llama", "genai")
        colors = ["tab:gray" if name.startswith(peers) else "tab:blue" for name in shown]
        panel.barh(shown, [milliseconds(speeds, name, key) for name in shown], color=colors)
        panel.set(xlabel=f"{key}, ms")
        panel.invert_yaxis()
    _save(figure, docs / "onnx-speed.svg", *axes)


def _save(figure: Any, path: Path, *panels: Any) -> None:
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def show(results: Path, docs: Path) -> None:
    """Tables between their marks in docs/onnx.md, and plots."""
    read = {name: json.loads((results / f"onnx-{name}.json").read_text()) for name in ("ablation", "fallback", "speed")}
    made = {"ablation": parts_table, "fallback": fallback_table, "speed": speed_table}
    page = docs / "onnx.md"
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        start, end = f"<!-- {name}: benchmarks/onnx_ablation.py show -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            sys.exit(f"{page}: no place for {name}; put {start} and {end} where it belongs")
        text = f"{before}{start}\n{table(read[name])}\n{end}{after}"
    page.write_text(text, encoding="utf-8")
    plots(read["ablation"], read["fallback"], read["speed"], docs)


def main() -> None:
    """Parse, measure what is missing, or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("parts")
    command.add_argument("--samples", type=int, default=300)
    command.add_argument("--json", type=Path, required=True)
    command = commands.add_parser("fallback")
    command.add_argument("--json", type=Path, required=True)
    command = commands.add_parser("show")
    command.add_argument("results", type=Path)
    command.add_argument("docs", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "show":
        show(arguments.results, arguments.docs)
        return
    if arguments.command == "fallback":
        arguments.json.write_text(json.dumps(fallback(), indent=1) + "\n")
        return
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name in VARIANTS:
        if name not in found:
            found[name] = parts(name, arguments.samples)
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
