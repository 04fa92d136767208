"""What works for each family: a tiny checkpoint of each layout through every format, transformers and the clients.

    python benchmarks/families.py          # measures all, writes benchmarks/results/families.json and docs/families.md
    python benchmarks/families.py --only fast_vlm
    python benchmarks/families.py --check  # fails where the tables in docs/families.md are not those of the JSON file

Weights are random and answers short: this shows that a format carries a family's operators, names, template and
pixels. What quantization costs a trained model is another question (docs/quantization.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from family_layouts import LAYOUTS, REFUSED, Layout, Tiny, changed  # noqa: E402
from family_oracles import beside_parts, beside_transformers, clients  # noqa: E402
from family_pixels import resized  # noqa: E402
from family_table import PAGE, RESULTS, complaint, page  # noqa: E402

from vlmexport import check, export, open_model, resolve  # noqa: E402
from vlmexport.errors import VlmExportError  # noqa: E402
from vlmexport.parity.compare import one_runtime  # noqa: E402
from vlmexport.parity.reference import values  # noqa: E402

FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "ONNX fp32": ("onnx-fp32", {}),
    "ONNX int8": ("onnx-x86", {}),
    "int4 decoder": ("onnx-fp32-int4", {}),
    "fp16 decoder": ("onnx-fp32-fp16", {}),
    "GGUF F16": ("gguf-f16", {}),
    "GGUF Q4_K_M": ("gguf-q4_k_m", {}),
    "hybrid": ("gguf-q4_k_m", {"gguf.vision": "onnx"}),
}
"""Column → recipe and flags."""

CALIBRATION, SAMPLES, TOKENS = 24, 20, 6
Cell = dict[str, Any]
Row = dict[str, Any]


def attempted(work: Callable[[], Cell], scratch: Path) -> Cell:
    """The tool's own line where it refuses, without the folder that it names."""
    try:
        return work()
    except VlmExportError as error:
        kind = "refused" if error.exit_code in (2, 3) else "skipped" if error.exit_code == 4 else "fails"
        return {"status": kind, "reason": error.what.replace(f"{scratch}/", "")}


def exported(tiny: Tiny, column: str, bundle: Path) -> Cell:
    """Export, then check: the KL divergence of logits in nats, and gates that fail."""
    recipe, flags = FORMATS[column]
    chosen = resolve(recipe, {"calibration.samples": CALIBRATION, **flags}, environ={})
    export(str(tiny.path), chosen, bundle, vision_tower=str(tiny.tower) if tiny.tower else None)
    result = check(bundle, samples=SAMPLES)
    (logits,) = (one.metrics for one in result.stages if (one.stage, one.mode) == ("logits", "chained"))
    failed = [f"{gate.stage} {gate.metric}" for gate in result.gates if not gate.passed]
    return {"status": "gate fails" if failed else "works", "kld": logits["kld"], "failed": sorted(set(failed))}


def measured(layout: Layout, scratch: Path) -> Row:
    """A row: formats, clients, transformers."""
    tiny = layout.write(scratch)
    row: Row = {"family": layout.family, "layout": layout.name, "formats": {}, "clients": {}}
    for column in FORMATS:
        bundle = scratch / column.replace(" ", "-").lower()
        row["formats"][column] = attempted(partial(exported, tiny, column, bundle), scratch)
        print(layout.name, column, row["formats"][column], flush=True)
    if (scratch / "onnx-fp32").exists():
        row["clients"] = clients(scratch / "onnx-fp32", scratch)
    row["transformers"] = beside_parts(tiny) if tiny.parts else beside_transformers(tiny) if tiny.theirs else None
    print(layout.name, row["clients"], row["transformers"], flush=True)
    return row


def refused() -> list[Row]:
    """Configs that are not known: the tool's line."""
    rows = []
    for name, what, change in REFUSED:
        with tempfile.TemporaryDirectory() as scratch:
            (layout,) = (one for one in LAYOUTS if one.name == name)
            path = changed(layout.write(Path(scratch)), change, Path(scratch) / "changed")
            try:
                open_model(str(path))
            except VlmExportError as error:
                line = error.what.replace(f"{path}/", "")
                rows.append({"layout": name, "change": what, "reason": line, "exit_code": error.exit_code})
            else:
                raise AssertionError(f"{name} with {what} is not refused")
    return rows


def pixels() -> list[Row]:
    """What clients make of pictures that they have to resize, by the files of a bundle for the published size."""
    rows = []
    for layout in LAYOUTS:
        if layout.side is None:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            tiny = layout.write(Path(scratch))
            spec = open_model(str(tiny.path), str(tiny.tower) if tiny.tower else None).spec
            found = resized(spec, layout.side, Path(scratch) / "bundle")
        rows.append({"layout": layout.name, "side": layout.side, "clients": found})
        print(layout.name, found, flush=True)
    return rows


def main() -> None:
    """Parse; measure; write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="a family's file, or none; the other rows of the first tables stay as they are")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--show", action="store_true", help="write the tables alone")
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": []}
    text = PAGE.read_text(encoding="utf-8")
    if arguments.check:
        sys.exit(complaint(text, found))
    if not arguments.show:
        for module in (values, one_runtime):
            vars(module)["MAX_NEW_TOKENS"] = TOKENS
        old = {row["layout"]: row for row in found["rows"]}
        for layout in LAYOUTS:
            if arguments.only in (None, layout.family):
                with tempfile.TemporaryDirectory() as scratch:
                    old[layout.name] = measured(layout, Path(scratch))
        rows = [old[layout.name] for layout in LAYOUTS if layout.name in old]
        found = {"rows": rows, "refused": refused(), "pixels": pixels()}
        RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(text, found), encoding="utf-8")
    wrong = complaint(PAGE.read_text(encoding="utf-8"), found)
    if wrong:
        sys.exit(wrong)


if __name__ == "__main__":
    main()
