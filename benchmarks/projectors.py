"""Each projector trained for a short while behind the demo's tower: what it answers, in float and in static int8.

    python benchmarks/projectors.py --json benchmarks/results/projectors.json

The demo's tower and language model are taken, the projector begins with random weights (``vlmexport new --from demo``).
Then MobileVLM's two stages with the same pictures for all: the projector alone on captions, then projector and language
model on all questions. Float is scored on every question about the held-out scenes, and both on those that ``vlmexport
check`` of an ``onnx-x86`` bundle asks, in ONNX Runtime. Rows that the JSON file holds already are not made again;
``--only`` names a few. ``--show`` prints the table alone. Work lies in ``build/projectors``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from finetune import RECIPE, ROOT, Row, called, scores

from vlmexport.model import plugins
from vlmexport.source.checkpoint import open_checkpoint

PROJECTORS = (
    "ldpnetv2", "linear", "mlp2x_gelu", "mlp2x_relu4096", "bottleneck_transformer512", "ldpnet", "qformer96x768",
    "concat_mlp", "pool_avg", "pool_max", "pixel_shuffle", "quantized_fbgemm", "quantized_qnnpack",
)  # fmt: skip
STAGES = (("projector", 200, "1e-3"), ("instruct", 300, "3e-4"))
SCENES, ASKED = 2400, 400


def train(model: str, stage: tuple[str, int, str], out: Path, features: Path) -> None:
    """One of the stages."""
    name, steps, rate = stage
    called(
        str(RECIPE / "train.py"), model, "-o", str(out), "--stage", name, "--steps", str(steps), "--rate", rate,
        "--data", f"scenes:{SCENES}", "--batch", "4", "--mixed", "bf16", "--threads", "1", "--features", str(features),
        "--force",
    )  # fmt: skip


def checked(model: Path, bundle: Path) -> dict[str, Any]:
    """What ``check`` says of an int8 bundle; gates that fail are no fault here."""
    called("-m", "vlmexport", "onnx", str(model), "--target", "x86", "-o", str(bundle), "--force", "--quiet")
    called("-m", "vlmexport", "check", str(bundle), "--samples", str(ASKED), "--quiet", allowed=(0, 1))
    found: dict[str, Any] = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    return found


def measure(name: str, work: Path) -> Row:
    """Make, train, score, export, check."""
    place, features = work / name, work / "features"
    place.mkdir(parents=True, exist_ok=True)
    called(
        "-m", "vlmexport", "new", "--from", "demo", "--projector", name, "-o", str(place / "new"), "--force", "--quiet"
    )
    model = place / "new"
    scored: dict[str, Row] = {}
    for stage in STAGES:
        train(str(model), stage, place / stage[0], features)
        model = place / stage[0]
        scored[stage[0]] = scores(str(model), features)
    checkpoint = open_checkpoint(model)
    parity = checked(model, place / "bundle")
    stages = {(row["stage"], row["mode"]): row["metrics"] for row in parity["stages"]}
    return {
        "parameters": checkpoint.parameters("projector"),
        "tokens": plugins.num_tokens(checkpoint.spec.projector),
        "scores": scored,
        "losses": json.loads((model / "finetune.json").read_text(encoding="utf-8"))["losses"],
        "int8": {
            "questions": ASKED, "passed": parity["passed"], "tokens": stages["tokens", "local"],
            "logits": stages["logits", "chained"], "answer": stages["answer", "chained"],
        },
    }  # fmt: skip


def table(rows: dict[str, Row]) -> str:
    """Markdown: right answers in float over all held-out questions. ``architectures.py`` has those in int8."""
    lines = [
        "| projector | after the first stage | after both | position (left, right, top, bottom) | count | what "
        "| yes or no |",
        "|---|" + "---:|" * 6,
    ]
    for name, row in rows.items():
        first, both = row["scores"]["projector"], row["scores"]["instruct"]
        position = mean(both[kind] for kind in ("left", "right", "above", "below"))
        cells = (first["all"], both["all"], position, both["count"], both["what"], both["exists"])
        lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "projectors.json")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "projectors")
    parser.add_argument("--only", nargs="*", choices=PROJECTORS)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    rows: dict[str, Row] = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else {}
    for name in () if given.show else given.only or PROJECTORS:
        if name not in rows:
            found = measure(name, given.work)
            if given.json.exists():  # another process may have added some
                rows = json.loads(given.json.read_text(encoding="utf-8"))
            rows[name] = found
            ordered = {known: rows[known] for known in PROJECTORS if known in rows}
            given.json.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
