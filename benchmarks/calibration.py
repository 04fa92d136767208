"""Calibration of the vision encoder: seconds an image and peak memory, for few and for many images.

    python benchmarks/calibration.py CHECKPOINT --samples 8 32 --json calibration.json

No peer: ONNX Runtime's ``quantize_static`` calibrates and quantizes in one, with every tensor of every image in
memory. Seconds an image are those after loading: of two runs, the difference over the difference in images.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from measure import Figures, run

SCRIPT = """
import sys
from pathlib import Path
from vlmexport.calibrate import calibration_samples, collect
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.model import load
count = int(sys.argv[2])
samples = calibration_samples(min(count, 72))
samples = (samples * (count // len(samples) + 1))[:count]
vlm = load(open_checkpoint(Path(sys.argv[1])), components=("vision", "projector"))
collect(vlm, None, samples).save(Path(sys.argv[3]))
"""


def calibrate(checkpoint: Path, count: int) -> Figures:
    """Statistics of ``count`` images (the calibration set, again from its start where it ends)."""
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "statistics.safetensors")
        return run([sys.executable, "-c", SCRIPT, str(checkpoint), str(count), output])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {count: calibrate(arguments.checkpoint, count) for count in arguments.samples}
    print("| images | wall s | s an image | peak MB |", "|---|---|---|---|", sep="\n")
    before: tuple[int, float] | None = None
    for count, figures in found.items():
        each = "" if before is None else f"{(figures.wall - before[1]) / (count - before[0]):.2f}"
        print(f"| {count} | {figures.wall:.1f} | {each} | {figures.peak_mb:.0f} |")
        before = (count, figures.wall)
    if arguments.json:
        rows = [{"images": count} | asdict(figures) for count, figures in found.items()]
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
