"""Every format of models/tiles on held-out questions, beside ONNX Runtime's quantizers. Tables of docs/quantization.md.

    python benchmarks/tiles_formats.py --work DIR --scenes 300 --json benchmarks/results/tiles-formats.json
    python benchmarks/tiles_formats.py --work DIR --show

Questions are those of ``recipes.tiles.evaluate``: scenes that neither training nor calibration saw. Bundles are made
once in DIR and kept there, the float model's values too; rows that the JSON file holds are not measured again. Rows
"AVX2 alone" run on Linux and a processor whose cpuid can be made to fault (tests/avx2.c). ``--emulated N`` adds the
arm64 bundle on emulated arm64 cores, on N questions (``make arm64``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiles_peers

from recipes.tiles.scenes import SEEDS, ask, make_scene, paint
from vlmexport.artifact.bundle.halves import DECODER, VISION
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.calibrate.datasets import read
from vlmexport.flags import gguf_recipe, vision_flags
from vlmexport.measures.intervals import paired_drop
from vlmexport.measures.stage_result import StageResult
from vlmexport.parity import check
from vlmexport.parity.compare.one_runtime import Side
from vlmexport.parity.reference.recording import Recording
from vlmexport.parity.result import Answer
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.ort.int8_kernels import kernels_here

MODEL = str(Path(__file__).parents[1] / "models" / "tiles")
PLAIN = "plain"
"""The float bundle whose attention is ONNX's own operators, which ONNX Runtime's tools expect."""


@dataclass(frozen=True)
class Row:
    """A bundle and where it runs. ``make`` writes it to a folder, given the folder of the float bundle."""

    bundle: str
    make: Callable[[Path, Path], object]
    kernels: str = ""


def _onnx(name: str, _: Path, folder: Path, **flags: Any) -> None:
    told = {key.replace("__", "."): value for key, value in flags.items()}
    export(MODEL, resolve(name, told, environ={}), folder)


def _gguf(kind: str, _: Path, folder: Path, vision: str | None = None) -> None:
    name, flags = gguf_recipe(kind)
    flags = flags | vision_flags(vision, None, name, str(flags.get("name") or name))
    export(MODEL, resolve(name, flags, environ={}), folder)


def _dynamic(plain: Path, folder: Path) -> None:
    tiles_peers.dynamic(plain, folder)


def _static(plain: Path, folder: Path, graphs: int) -> None:
    tiles_peers.static(plain, folder, MODEL, graphs)


def _rows() -> dict[str, Row]:
    onnx = {
        name: Row(name, partial(_onnx, name))
        for name in ("onnx-fp32", "onnx-x86", "onnx-arm64", "onnx-x86-fp16", "onnx-x86-int4", "onnx-fp32-int4")
    }
    kinds = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
    gguf = {f"gguf-{kind}": Row(f"gguf-{kind}", partial(_gguf, kind)) for kind in kinds}
    return {
        **onnx,
        "onnx-x86, AVX2 alone": Row("onnx-x86", partial(_onnx, "onnx-x86"), "avx2"),
        **gguf,
        "hybrid, q4_k_m": Row("hybrid", partial(_gguf, "q4_k_m", vision="onnx")),
        "quantize_dynamic": Row("dynamic", _dynamic),
        "quantize_dynamic, AVX2 alone": Row("dynamic", _dynamic, "avx2"),
        "quantize_static": Row("static", partial(_static, graphs=2)),
        "quantize_static, decoder float": Row("static-vision", partial(_static, graphs=1)),
    }


ROWS = _rows()
KEPT = {
    "features": ("sqnr_db",), "tokens": ("sqnr_db", "cosine", "cosine_p1"), "logits": ("kld", "top1", "agreement"),
    "answer": ("agreement", "accuracy"),
}  # fmt: skip
"""Stage → metrics."""


def data(work: Path, scenes: int) -> Path:
    """The questions as `check --data` reads them."""
    folder = work / f"heldout-{scenes}"
    if not (folder / "questions.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for seed in SEEDS["heldout"][:scenes]:
            scene, name = make_scene(seed), f"{seed}.png"
            paint(scene).save(folder / name, compress_level=1)
            lines += [json.dumps({"image": name, "question": q.text, "answer": q.answer}) for q in ask(scene)]
        (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def avx2(work: Path) -> dict[str, str]:
    """An environment in which a process sees a processor without VNNI."""
    library, source = work / "avx2.so", Path(__file__).parents[1] / "tests" / "avx2.c"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library.resolve())}


def recorded(work: Path, data: Path, samples: list[Sample]) -> Recording:
    """The float model's values, from a file that is written at the first call."""
    path = work / f"{data.name}.safetensors"
    if not path.exists():
        check(work / PLAIN, samples=samples, record=path)
    return Recording(path)


def measure(name: str, work: Path, data: Path) -> dict[str, Any]:
    """One row: the bundle is made where it is not there, and asked all questions; the stages chained, as users run
    them."""
    row, bundle, samples = ROWS[name], work / ROWS[name].bundle, read(data)
    if not (work / PLAIN).exists():
        _onnx("onnx-fp32", work, work / PLAIN, onnx__fuse=False)
    if not bundle.exists():
        row.make(work / PLAIN, bundle)
    expected, seen = recorded(work, data, samples), ""
    with closing(open_runtime(bundle)) as runtime:
        side = Side(runtime, ("chained",))
        for sample in samples:
            if sample.image_id != seen:
                side.forget(seen)
                seen = sample.image_id
                values = expected.image(sample)
                side.image(seen, sample.image(), values)
            side.question(sample, expected.question(sample, [values.seen]), [values.tokens])
    kernels, size = kernels_here().name, read_manifest(bundle).size(VISION + DECODER)
    stages = {stage.stage: stage for stage in side.measured.stages() if stage.mode == "chained"}
    errors = {name: stage.error for name, stage in stages.items() if stage.error}
    return {"bytes": size, "kernels": kernels, "errors": errors, **figures(stages, side.measured.answers["chained"])}


def there(name: str, work: Path, data: Path) -> dict[str, Any]:
    """``measure`` in a process of its own, which sees a processor with AVX2 alone."""
    command = [sys.executable, __file__, "--work", str(work), "--here", name, "--data", str(data)]
    done = subprocess.run(command, env=os.environ | avx2(work), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def emulated(work: Path, data: Path, questions: int) -> dict[str, Any]:
    """The arm64 bundle on the core that `check --on arm64` emulates, and here: chained, against the float model."""
    result = check(work / "onnx-arm64", data=data, samples=questions, on="arm64")
    found = {core.core: (core.stages, core.answers) for core in result.cores}
    found["here"] = (result.stages, result.answers)
    return {
        name: figures({stage.stage: stage for stage in stages if stage.mode == "chained"}, answers)
        for name, (stages, answers) in found.items()
    }


def figures(stages: Mapping[str, StageResult], answers: list[Answer]) -> dict[str, Any]:
    """What the table shows, of chained stages by name."""
    reference = np.array([one.reference in one.expected for one in answers], float)
    bundle = np.array([one.bundle in one.expected for one in answers], float)
    drop, low, high = paired_drop(reference.tolist(), bundle.tolist())
    pictures = [one.sample.partition("#")[0] for one in answers]
    found: dict[str, Any] = {
        "questions": len(answers), "pictures": len(set(pictures)),
        "exact": float(bundle.mean()), "exact_se": clustered(bundle, pictures),
        "exact_float": float(reference.mean()), "drop": drop, "drop_ci95": [low, high],
        "drop_se": clustered(reference - bundle, pictures),
        "equal": float(np.mean([one.equal for one in answers])),
    }  # fmt: skip
    for stage, metrics in KEPT.items():
        found |= {f"{stage}_{name}": stages[stage].metrics[name] for name in metrics if name in stages[stage].metrics}
    return found


def clustered(values: np.ndarray, groups: list[str]) -> float:
    """Standard error of a mean whose values hang together within groups: questions about one picture."""
    residuals: dict[str, float] = {}
    for value, group in zip(values - values.mean(), groups, strict=True):
        residuals[group] = residuals.get(group, 0.0) + float(value)
    count = len(residuals)
    return float(np.sqrt(np.square(list(residuals.values())).sum() * count / (count - 1)) / len(values))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    heads = ("MB", "features, dB", "tokens, dB", "KL divergence", "top-1", "equal answers", "exact match",
             "lost, points")  # fmt: skip
    lines = ["| bundle | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in ROWS:
        if name in found:
            row = found[name]
            cells = [
                f"{row['bytes'] / 1e6:.2f}", f"{row['features_sqnr_db']:.1f}", f"{row['tokens_sqnr_db']:.1f}",
                f"{row['logits_kld']:.2g}", f"{row['logits_top1']:.4f}", f"{row['equal']:.4f}", f"{row['exact']:.4f}",
                f"{100 * row['drop']:+.2f} ± {100 * row['drop_se']:.2f}",
            ]  # fmt: skip
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--emulated", type=int, default=0, help="questions on emulated arm64 cores")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "tiles-formats.json")
    parser.add_argument("--show", action="store_true", help="the table alone")
    parser.add_argument("--here", help="one row, as a line of JSON")
    parser.add_argument("--data", type=Path)
    chosen = parser.parse_args()
    if chosen.here:
        print(json.dumps(measure(chosen.here, chosen.work, chosen.data)))
        return
    found: dict[str, Any] = json.loads(chosen.json.read_text()) if chosen.json.exists() else {"rows": {}}

    def keep() -> None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")

    if not chosen.show:
        asked = data(chosen.work, chosen.scenes)
        for name in chosen.rows:
            if name not in found["rows"]:
                ask_of = there if ROWS[name].kernels == "avx2" else measure
                found["rows"][name] = ask_of(name, chosen.work, asked)
                print(name, found["rows"][name], file=sys.stderr, flush=True)
                keep()
        if chosen.emulated:
            found["emulated"] = emulated(chosen.work, asked, chosen.emulated)
            keep()
    print(table(found["rows"]))


if __name__ == "__main__":
    main()
