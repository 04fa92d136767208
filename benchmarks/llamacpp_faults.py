"""What stock llama.cpp makes of a right bundle: the figures of docs/llama-cpp.md.

    python benchmarks/llamacpp_faults.py demo --samples 100

Exports F16, runs the held-out samples repaired and as the installed libmtmd computes them by itself, and measures what
an mmproj without ``feature_layer`` loses (the tower then stops one layer early).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vlmexport import export, open_model, resolve
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.gguf import mmproj
from vlmexport.calibrate import heldout_samples
from vlmexport.measures.arrays import ArrayMeasure
from vlmexport.parity.compare.evaluate import run_samples
from vlmexport.parity.compare.measured import Measured
from vlmexport.runtime.joined import join
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.runtime.llamacpp.probe.probe import probe
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint

SHOWN = {
    "features": ("cosine", "cosine_p1"),
    "tokens": ("cosine", "cosine_p1"),
    "logits": ("kld", "top1"),
    "answer": ("equal", "accuracy", "reference_accuracy"),
}
LAYER = "clip.vision.feature_layer"


def show(title: str, measured: Measured) -> None:
    """One line a stage, chained."""
    print(f"{title}: {measured.samples} samples")
    for stage in measured.stages():
        if stage.mode == "chained" and stage.stage in SHOWN:
            print(f"  {stage.stage}: {', '.join(f'{name} {stage.metrics[name]:.5f}' for name in SHOWN[stage.stage])}")


def one_layer_less(bundle: Path, checkpoint: Checkpoint, samples: int) -> None:
    """The same mmproj without its feature layer, class token repaired."""
    manifest = read_manifest(bundle)
    file = mmproj.file(checkpoint, manifest.recipe.gguf.mmproj_type)
    without = {key: value for key, value in file.fields.items() if key != LAYER}
    replace(file, fields=without).write(bundle)
    reference, features, tokens = ReferenceRuntime(checkpoint), ArrayMeasure(), ArrayMeasure()
    with closing(join(LlamaCppHalves(bundle, manifest))) as runtime:
        for sample in heldout_samples(samples):
            pixels = reference.pixels(sample.image())
            expected, found = reference.features(pixels), runtime.features(pixels)
            features.add(expected.rows, found.rows)
            tokens.add(reference.tokens(expected), runtime.tokens(found))
    values = {name: measure.metrics() for name, measure in (("features", features), ("tokens", tokens))}
    print(f"without {LAYER}, class token repaired: {samples} images")
    for name, metrics in values.items():
        print(f"  {name}: cosine {metrics['cosine']:.5f}, cosine_p1 {metrics['cosine_p1']:.5f}")


def main() -> None:
    """Export, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=100)
    arguments = parser.parse_args()
    print(probe().text())
    checkpoint = open_model(arguments.model)
    with TemporaryDirectory() as folder:
        bundle = export(arguments.model, resolve("gguf-f16"), Path(folder) / "bundle")
        samples = heldout_samples(arguments.samples)
        run = run_samples(bundle, checkpoint, samples, stock=len(samples))
        show("repaired", run.measured)
        if run.stock is not None:
            show("stock", run.stock)
        one_layer_less(bundle, checkpoint, min(20, arguments.samples))


if __name__ == "__main__":
    main()
