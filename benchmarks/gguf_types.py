"""GGUF types side by side: size, KL divergence, top-1, accuracy, speed of decoding. Tables of docs/quantization.md.

    python benchmarks/gguf_types.py quality --samples 500 --json benchmarks/results/gguf-types.json
    python benchmarks/gguf_types.py weights --json benchmarks/results/gguf-image-weight.json
    python benchmarks/gguf_types.py speed CHECKPOINT --json benchmarks/results/gguf-speed.json
    python benchmarks/gguf_types.py show benchmarks/results docs     # plots need pip install 'vlmexport[bench]'

quality: the demo, each type made four times at one size: by llama.cpp's quantizer from F16 (its users have no matrix
that fits a model with eyes), by us with an importance matrix of text positions alone, with one of images and text,
and with a budget of the same bytes. llama.cpp decodes; visual tokens, prompts and answers are the float model's, so
only the language model differs. Questions are about every other held-out scene; ``weights`` compares image weights on
the rest.

speed: tokens a second of a checkpoint (random weights do) in each type, all types in turn. Our files and
llama-quantize's have the same types, so one figure serves both.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from llama_cpp import Llama, llama_cpp

from vlmexport.artifact.bundle.halves import DECODER, VISION
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample, heldout_samples
from vlmexport.flags import gguf_recipe
from vlmexport.measures.intervals import paired_drop
from vlmexport.measures.logits import LogitsMeasure
from vlmexport.parity.reference.values import MAX_NEW_TOKENS, Live, QuestionValues
from vlmexport.pipeline import export, open_whole
from vlmexport.quantize.gguf_mix import find_mix
from vlmexport.recipe import Recipe, resolve
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import F32

KINDS = ("q2_k", "q3_k_m", "q4_0", "iq4_xs", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
ROWS = {
    "none": "llama-quantize, no matrix", "text": "text-only matrix", "images": "matrix of images and text",
    "budget": "budget of the same bytes",
}  # fmt: skip
PROMPT, STEPS = 32, 16
SILENT = llama_cpp.llama_log_callback(lambda *_: None)
"""llama.cpp keeps its address."""


@dataclass(frozen=True)
class Question:
    """A held-out sample, the float model's visual tokens of its image, and what the float model says."""

    sample: Sample
    tokens: F32
    values: QuestionValues


def questions(count: int, odd: bool) -> list[Question]:
    """The float model asked about every other scene of the held-out part."""
    samples = [s for s in heldout_samples() if int(s.image_id.removeprefix("scene-")) % 2 == odd][:count]
    expected, seen, found = Live(ReferenceRuntime(open_whole("demo"))), {}, []
    for sample in samples:
        if sample.image_id not in seen:
            seen[sample.image_id] = expected.image(sample).seen
        values = expected.question(sample, [seen[sample.image_id]])
        found.append(Question(sample, seen[sample.image_id].tokens, values))
    return found


def asked(bundle: Path, questions: Iterable[Question]) -> dict[str, Any]:
    """Measures of the language model of a bundle, in llama.cpp."""
    measure, rows = LogitsMeasure(), []
    manifest = read_manifest(bundle)
    with closing(LlamaCppHalves(bundle, manifest, threads=1).decoding()) as decoder:
        for question in questions:
            expected = question.values
            prompt, tokens = expected.prompt, [question.tokens]
            logits = decoder.logits(prompt.answered(expected.answer[:-1]), tokens, len(expected.answer))
            measure.add(expected.logits, logits, expected.answer)
            text = expected.text
            if logits[0].argmax(-1).tolist() != expected.answer:
                ids = [token.id for token in decoder.generate(prompt, tokens, MAX_NEW_TOKENS)]
                text = decoder.decode(ids)
            rows.append((question.sample.answer, expected.text, text))
    drop, low, high = paired_drop(
        [float_ == right for right, float_, _ in rows], [own == right for right, _, own in rows]
    )
    return measure.metrics() | {
        "samples": len(rows),
        "equal": float(np.mean([own == float_ for _, float_, own in rows])),
        "accuracy": float(np.mean([own == right for right, _, own in rows])),
        "drop": drop,
        "drop_ci95": (high - low) / 2,
        "bytes": (bundle / manifest.decoding.file("language")).stat().st_size,
        "kld_each": [float(f"{value:.3g}") for value in np.concatenate(measure.kld)],
    }


def recipe(kind: str, **changes: Any) -> Recipe:
    """The shipped recipe of a type, with changes: keys with ``__`` for the dot."""
    name, flags = gguf_recipe(kind)
    return resolve(name, flags | {key.replace("__", "."): value for key, value in changes.items()})


def llama_quantized(half: Path, bundle: Path, kind: str) -> None:
    """Write llama.cpp's own quantization of an F16 bundle over the language model of a bundle."""
    llama_cpp.llama_log_set(SILENT, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, find_mix(kind).file_type
    source, target = (folder / read_manifest(folder).decoding.file("language") for folder in (half, bundle))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not quantize to {kind}")


def quality(kinds: list[str], count: int, scratch: Path) -> list[dict[str, Any]]:
    """Every type, made in every way."""
    asking = questions(count, odd=True)
    half = export("demo", recipe("f16"), scratch / "f16")
    rows = [{"type": "f16", "from": "none"} | asked(half, asking)]
    for kind in kinds:
        ways: dict[str, dict[str, Any]] = {"none": {"gguf__imatrix": "none"}}
        if recipe(kind).gguf.uses_importance:
            ways |= {"text": {"calibration__image_weight": 0.0}, "images": {}}
        for way, changes in ways.items():
            bundle = export("demo", recipe(kind, **changes), scratch / f"{kind}-{way}")
            if way == "none":
                llama_quantized(half, bundle, kind)
            rows.append({"type": kind, "from": way} | asked(bundle, asking))
            print(line(rows[-1]), file=sys.stderr, flush=True)
        size = read_manifest(bundle).size(VISION + DECODER)
        bundle = export(
            "demo", recipe(kind, gguf__imatrix="auto", gguf__max_size=f"{size}B"), scratch / f"{kind}-budget"
        )
        rows.append({"type": kind, "from": "budget"} | asked(bundle, asking))
        print(line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def weights(kinds: list[str], count: int, scratch: Path) -> list[dict[str, Any]]:
    """Image weights of the importance matrix, on scenes that ``quality`` does not ask about."""
    asking, rows = questions(count, odd=False), []
    for kind in kinds:
        for weight in WEIGHTS:
            bundle = export("demo", recipe(kind, calibration__image_weight=weight), scratch / f"{kind}-{weight}")
            rows.append({"type": kind, "from": f"{weight:g}"} | asked(bundle, asking))
            print(line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def speed(checkpoint: str, kinds: list[str], turns: int, scratch: Path) -> list[dict[str, Any]]:
    """Tokens a second of every type. All types decode in turn; a turn's figure is divided by q4_0's of that turn."""
    tool = [sys.executable, "-m", "vlmexport", "gguf", checkpoint, "--imatrix", "none", "--quiet"]
    models, sizes = {}, {}
    for kind in [*kinds, "f16"]:
        bundle = scratch / kind
        subprocess.run([*tool, "--type", kind, "-o", str(bundle)], check=True)
        path = bundle / read_manifest(bundle).decoding.file("language")
        sizes[kind] = path.stat().st_size
        models[kind] = Llama(str(path), n_ctx=256, n_threads=2, n_threads_batch=2, verbose=False)
        print(f"{kind}: {sizes[kind] / 1e6:.0f} MB", file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(turns):
        for kind, model in models.items():
            model.reset()
            model.eval(range(1, PROMPT + 1))
            start = time.perf_counter()
            for token in range(1, STEPS + 1):
                model.eval([token])
            seconds[kind].append((time.perf_counter() - start) / STEPS)
    return [
        {
            "type": kind,
            "bytes": sizes[kind],
            "tokens_per_second": 1 / median(found),
            "against_q4_0": median(base / one for base, one in zip(seconds["q4_0"], found, strict=True)),
        }
        for kind, found in seconds.items()
    ]


def line(row: dict[str, Any]) -> str:
    """A row of the table of ``quality`` or ``weights``."""
    drop = f"{-row['drop']:+.3f} ± {row['drop_ci95']:.3f}"
    return (
        f"| {row['type']} | {ROWS.get(row['from'], row['from'])} | {row['bytes'] / 1e6:.3f} | {row['kld']:.5f} | "
        f"{row['top1']:.4f} | {row['equal']:.3f} | {row['accuracy']:.3f} | {drop} |"
    )


def against(rows: list[dict[str, Any]], base: str) -> str:
    """Markdown: each row's KL divergence against that of row ``base`` of the same type, position by position."""
    lines = ["| type | from | KL divergence | difference, 95 % interval |", "|---|---|---:|---:|"]
    bases = {row["type"]: np.array(row["kld_each"]) for row in rows if row["from"] == base}
    for row in rows:
        if row["type"] in bases:
            other, own = bases[row["type"]], np.array(row["kld_each"])
            half = 1.96 * (own - other).std(ddof=1) / len(own) ** 0.5 / other.mean()
            change = own.mean() / other.mean() - 1
            lines.append(
                f"| {row['type']} | {ROWS.get(row['from'], row['from'])} | {own.mean():.5f} | "
                f"{change:+.0%} ± {half:.0%} |"
            )
    return "\n".join(lines)


def show(results: Path, docs: Path) -> None:
    """Tables of all results on stdout, and plots as SVG."""
    import matplotlib.pyplot as plt

    found = json.loads((results / "gguf-types.json").read_text(encoding="utf-8"))
    head = "| type | made by | MB | KL divergence | top-1 | equal answers | accuracy | against float |"
    print(head, "|---|---|---:|---:|---:|---:|---:|---:|", *map(line, found), "", against(found, "none"), sep="\n")
    speeds = json.loads((results / "gguf-speed.json").read_text(encoding="utf-8"))
    print("\n| type | MB | tokens/s | ÷ q4_0 |", "|---|---:|---:|---:|", sep="\n")
    for row in speeds:
        print(
            f"| {row['type']} | {row['bytes'] / 1e6:.0f} | {row['tokens_per_second']:.1f} | {row['against_q4_0']:.2f} |"
        )
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for (way, label), marker in zip(ROWS.items(), "osDv", strict=True):
        rows = sorted((row for row in found if row["from"] == way and row["type"] != "f16"), key=lambda r: r["bytes"])
        sizes, klds = [row["bytes"] / 1e6 for row in rows], [row["kld"] for row in rows]
        left.plot(sizes, klds, marker=marker, markersize=5, linewidth=1, label=label)
    _label(left, [row for row in found if row["from"] == "none" and row["type"] != "f16"], "kld", ((4, 5), (4, -9)))
    left.set(
        xlabel="language model, MB", ylabel="KL divergence, nats", yscale="log", title="demo, held-out image questions"
    )
    left.legend(fontsize=8)
    right.plot([row["bytes"] / 1e6 for row in speeds], [row["against_q4_0"] for row in speeds], "o", markersize=5)
    _label(right, speeds, "against_q4_0", ((6, -3), (-6, -3)))
    right.set(xlabel="language model, MB", ylabel="tokens a second ÷ q4_0", title="1.7B, decoding on two x86 cores")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(docs / "gguf-types.svg", metadata={"Date": None})


def _label(axes: Any, rows: list[dict[str, Any]], key: str, offsets: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Names of types beside their points, on two sides by turns."""
    for number, row in enumerate(sorted(rows, key=lambda row: int(row["bytes"]))):
        x, y = offsets[number % 2]
        side = "right" if x < 0 else "left"
        place = (row["bytes"] / 1e6, row[key])
        axes.annotate(row["type"], place, fontsize=7, xytext=(x, y), textcoords="offset points", ha=side)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("quality", "weights", "speed"):
        command = commands.add_parser(name)
        if name == "speed":
            command.add_argument("checkpoint")
            command.add_argument("--turns", type=int, default=5)
        else:
            command.add_argument("--samples", type=int, default=500)
        default = ["q2_k", "q3_k_m", "q4_k_m"] if name == "weights" else KINDS
        command.add_argument("--types", nargs="+", default=default)
        command.add_argument("--scratch", type=Path, help="where to write")
        command.add_argument("--json", type=Path, required=True, help="where figures go")
    command = commands.add_parser("show")
    command.add_argument("results", type=Path)
    command.add_argument("docs", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "show":
        show(arguments.results, arguments.docs)
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="gguf-types-") as scratch:
        if arguments.command == "speed":
            rows = speed(arguments.checkpoint, arguments.types, arguments.turns, Path(scratch))
        else:
            measure = quality if arguments.command == "quality" else weights
            rows = measure(arguments.types, arguments.samples, Path(scratch))
            print(against(rows, "none" if measure is quality else "1"))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
