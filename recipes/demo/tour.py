"""Check bundles of the demo model and show one table: stage × bundle, bytes, answers to three images.

`make demo` exports them and runs this:

    python recipes/demo/tour.py out/demo-x86 out/demo-arm64 out/demo-gguf
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from rich.table import Table

from vlmexport import ask, check
from vlmexport.artifact.bundle.card import number
from vlmexport.calibrate.samples import calibration_folder
from vlmexport.console import Console, Screen
from vlmexport.parity import ParityResult

ROWS = {
    "pixels": ("max_abs",),
    "features": ("cosine",),
    "tokens": ("cosine",),
    "logits": ("kld", "agreement"),
    "answer": ("agreement", "equal", "accuracy"),
}
WIDTH = 130
"""Columns of the picture and of a log; a terminal has its own."""

QUESTIONS = {
    "images/scene-4000000.jpg": "Describe the picture.",
    "images/scene-4000001.jpg": "How many objects are there?",
    "images/scene-4000002.jpg": "What color is the background?",
}


def size_of(folder: Path) -> int:
    """Bytes of a bundle."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(results: dict[str, ParityResult], sizes: dict[str, int], answers: dict[str, dict[str, str]]) -> Table:
    """Stage × bundle, then bytes and answers; the float model's answers last."""
    count = next(iter(results.values())).samples
    title = f"vlmexport demo: what a phone gets, against the float model ({count} held-out questions)"
    shown = Table(title=title, title_justify="left")
    for column in ("stage", *results, "float model"):
        shown.add_column(column)
    for stage, metrics in ROWS.items():
        for metric in metrics:
            values = [result.metric(stage, metric) for result in results.values()]
            cells = ["not run" if value is None else number(value) for value in values]
            reference = next(iter(results.values())).metric("answer", "reference_accuracy")
            last = number(reference) if metric == "accuracy" and reference is not None else ""
            shown.add_row(f"{stage} {metric}", *cells, last)
    shown.add_row("verdict", *("pass" if r.passed else f"FAIL at {r.broken_stage}" for r in results.values()), "")
    shown.add_row("MB", *(f"{sizes[name] / 1e6:.1f}" for name in results), f"{sizes['float'] / 1e6:.1f}")
    for question, given in answers.items():
        shown.add_row(question, *(given[name] for name in (*results, "float")))
    return shown


def main() -> int:
    """Check, ask, show; 1 when a bundle fails its gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles of the demo model")
    parser.add_argument("--samples", type=int, default=40, help="held-out samples for the verdicts")
    parser.add_argument("--picture", type=Path, help="also draw the table as an SVG file")
    arguments = parser.parse_args()
    console = Console()
    start = time.monotonic()
    folders = {folder.name.removeprefix("demo-"): folder for folder in arguments.bundles}
    results = {name: check(folder, samples=arguments.samples, console=console) for name, folder in folders.items()}
    models = {name: str(folder) for name, folder in folders.items()} | {"float": "demo"}
    answers: dict[str, dict[str, str]] = {}
    with console.progress(
        "asking them, and the float model, about three pictures", len(QUESTIONS) * len(models)
    ) as done:
        for image, question in QUESTIONS.items():
            given = answers[f"{Path(image).stem}: {question}"] = {}
            for name, model in models.items():
                given[name] = "".join(ask(model, calibration_folder() / image, question, 64))
                done()
    sizes = {name: size_of(folder) for name, folder in folders.items()}
    sizes["float"] = (Path(sys.modules["vlmexport"].__path__[0]) / "demo/model/model.safetensors").stat().st_size
    drawn = arguments.picture is not None
    screen = Screen(width=WIDTH if drawn or not sys.stdout.isatty() else None, record=drawn)
    screen.print(table(results, sizes, answers), soft_wrap=False)
    if arguments.picture:
        # rich's fonts lie on a server: the picture shall need none.
        svg = re.sub(r"@font-face {.*?}", "", screen.export_svg(title="make demo"), flags=re.DOTALL)
        arguments.picture.write_text(svg, encoding="utf-8")
    console.note(f"checked in {time.monotonic() - start:.0f} s; the whole verdict: vlmexport check BUNDLE")
    return 0 if all(result.passed for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
