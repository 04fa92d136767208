"""Speed of an ONNX bundle beside its peers: the image, a prompt, decoding, and opening; two threads each.

    python benchmarks/onnx_speed.py CHECKPOINT --work DIR --repeat 3 --json onnx-speed.json

Peers: our own float32 graphs, ONNX Runtime's ``quantize_static`` at its defaults, libmtmd with an F16 mmproj, llama.cpp
with Q4_0, onnxruntime-genai's builder at its defaults. Everything is made once in DIR and kept there. Each measurement
is a process of its own that opens its file, warms up and measures; contenders take turns, and ratios are taken turn by
turn. A checkpoint of random weights is as fast as any other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from contenders import Step, llama_decoder, onnx_decoder, quantize_static
from onnx_export import builder, llama_folder

THREADS, PROMPT, IMAGE, STEPS = 2, 256, 144, 32
BLOCKS = (32, 64, 128)
VISION = ("int8", "float32", "quantize_static", "libmtmd F16")
PROJECTOR = ("projector int8", "projector float32")
LANGUAGE = (*(f"int4, block {block}" for block in BLOCKS), "float16", "llama.cpp Q4_0", "genai builder int4")
Times = dict[str, float]


def make(checkpoint: Path, work: Path) -> None:
    """Every file that is measured, where it is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    tool = [sys.executable, "-m", "vlmexport"]
    onnx = ["onnx", str(checkpoint), "--decoder", "int4"]
    nearest = {"VLMEXPORT_ONNX_ROUNDING": "nearest"}  # levels chosen otherwise are as fast
    jobs: dict[str, tuple[list[str], dict[str, str]]] = {
        "int8": ([*onnx, "--samples", "8"], nearest | {"VLMEXPORT_ONNX_BLOCK": str(BLOCKS[0])}),
        "float16": (["onnx", str(checkpoint), "--precision", "fp32", "--decoder", "fp16"], {}),
        "gguf": (["gguf", str(checkpoint), "--type", "q4_0", "--imatrix", "none"], {}),
    }
    for block in BLOCKS[1:]:
        jobs[f"block-{block}"] = ([*onnx, "--precision", "fp32"], {"VLMEXPORT_ONNX_BLOCK": str(block)})
    jobs["plain"] = ([*onnx, "--precision", "fp32"], {"VLMEXPORT_ONNX_FUSE": "false"})  # what the peer's tool expects
    for name, (command, settings) in jobs.items():
        if not (work / name).exists():
            subprocess.run([*tool, *command, "-o", str(work / name)], check=True, env=os.environ | settings)
    if not (work / "static" / "model.onnx").exists():
        tower = work / "plain" / "onnx" / "vision_encoder.onnx"
        quantize_static(tower, work / "static" / "model.onnx", (1, 3, 336, 336))
    if not (work / "genai").exists():
        builder(llama_folder(checkpoint, work / "llama"), work / "genai")


def best(call: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of a few calls, after one that warms up."""
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def vision(name: str, work: Path) -> Times:
    """Seconds from pixels to visual tokens (or, of the projector, from features)."""
    random = np.random.default_rng(0)
    pixels = random.standard_normal((1, 3, 336, 336), np.float32)
    if name == "libmtmd F16":
        from vlmexport.artifact.bundle.manifest import read_manifest
        from vlmexport.processing.image import PIXELS, ProcessedImage
        from vlmexport.processing.prompt import Views
        from vlmexport.runtime.joined import join
        from vlmexport.runtime.llamacpp.halves import LlamaCppHalves

        runtime = join(LlamaCppHalves(work / "gguf", read_manifest(work / "gguf"), threads=THREADS))
        image = ProcessedImage({PIXELS: pixels}, Views(((12, 12),)))
        return {"image": best(lambda: runtime.features(image))}
    from vlmexport.artifact.onnx.session import open_session

    fp32 = work / f"block-{BLOCKS[1]}"
    path = {
        "int8": work / "int8" / "onnx" / "vision_encoder_int8.onnx",
        "float32": fp32 / "onnx" / "vision_encoder.onnx",
        "quantize_static": work / "static" / "model.onnx",
        "projector int8": work / "int8" / "components" / "projector_int8.onnx",
        "projector float32": fp32 / "components" / "projector.onnx",
    }[name]
    session = open_session(path, THREADS)
    given = session.get_inputs()[0].name
    values = pixels if given == "pixel_values" else random.standard_normal((1, 576, 1024), np.float32)
    return {"image": best(lambda: session.run(None, {given: values}))}


def language(name: str, work: Path) -> Times:
    """Seconds of opening, of a prompt of ``PROMPT`` + ``IMAGE`` positions, and of one decoded token after it."""
    step, opening = _decoder(name, work)
    step(np.arange(16) + 1, True)
    start = time.perf_counter()
    step(np.arange(PROMPT + IMAGE) % 1000 + 1, True)
    prompt = time.perf_counter() - start
    step(np.array([5]), False)
    start = time.perf_counter()
    for token in range(STEPS):
        step(np.array([token + 1]), False)
    return {"opening": opening, "prompt": prompt, "token": (time.perf_counter() - start) / STEPS}


def _decoder(name: str, work: Path) -> tuple[Step, float]:
    """What decodes, and the seconds that opening took."""
    size = PROMPT + IMAGE + STEPS + 8
    if name == "llama.cpp Q4_0":
        path = next(p for p in (work / "gguf").glob("*.gguf") if not p.name.startswith("mmproj"))
        start = time.perf_counter()
        return llama_decoder(path, size, THREADS, size), time.perf_counter() - start
    if name == "genai builder int4":
        import onnxruntime_genai

        settings = onnxruntime_genai.Config(str(work / "genai"))
        settings.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": THREADS}}}}))
        start = time.perf_counter()
        found = onnxruntime_genai.Model(settings)
        opened = time.perf_counter() - start
        held: list[Any] = []

        def generate(ids: np.ndarray, anew: bool) -> None:
            if anew:
                params = onnxruntime_genai.GeneratorParams(found)
                params.set_search_options(max_length=size)
                held[:] = [onnxruntime_genai.Generator(found, params)]
            held[0].append_tokens(ids.astype(np.int32))

        return generate, opened
    from vlmexport.artifact.onnx.session import open_session

    folders = {f"int4, block {block}": f"block-{block}" for block in BLOCKS} | {f"int4, block {BLOCKS[0]}": "int8"}
    folder = work / folders.get(name, name) / "onnx"
    embedding = open_session(folder / "embed_tokens.onnx", THREADS)
    start = time.perf_counter()
    decoder = open_session(next(folder.glob("decoder_model_merged_*.onnx")), THREADS)
    return onnx_decoder(embedding, decoder, size), time.perf_counter() - start


def turns(names: tuple[str, ...], work: Path, repeat: int) -> dict[str, list[Times]]:
    """Name → times of every turn."""
    found: dict[str, list[Times]] = {name: [] for name in names}
    for _ in range(repeat):
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--work", str(work)]
            found[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def ratio(found: dict[str, list[Times]], key: str, ours: str, peer: str) -> float:
    """Median over the turns of our time divided by the peer's."""
    return median(a[key] / b[key] for a, b in zip(found[ours], found[peer], strict=True))


def milliseconds(found: dict[str, list[Times]], name: str, key: str) -> float:
    """Median over the turns."""
    return 1e3 * median(one[key] for one in found[name])


def speed_table(found: dict[str, list[Times]]) -> str:
    """Markdown: medians, and ours divided by each peer's, of the parts that were measured."""
    lines: list[str] = []
    if VISION[0] in found:
        lines += ["| image | ms | int8 ÷ it |", "|---|---:|---:|"]
        lines += [f"| {name} | {milliseconds(found, name, 'image'):.0f} | {ratio(found, 'image', 'int8', name):.2f} |"
                  for name in VISION]  # fmt: skip
        lines += ["", "| projector | ms | its tower ÷ it |", "|---|---:|---:|"]
        lines += [f"| {name} | {milliseconds(found, name, 'image'):.0f} | {ratio(found, 'image', tower, name):.0f} |"
                  for name, tower in zip(PROJECTOR, VISION, strict=False)]  # fmt: skip
    if LANGUAGE[0] in found:
        *_, llama, genai = LANGUAGE
        lines += ["", f"| decoder | a token, ms | ÷ {llama} | ÷ {genai} | prompt of 400, s | ÷ {llama} | opening, s |",
                  "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
        for name in LANGUAGE:
            token, prompt, opening = (milliseconds(found, name, key) for key in ("token", "prompt", "opening"))
            ratios = [f"{ratio(found, key, name, peer):.2f}"
                      for key, peer in (("token", llama), ("token", genai), ("prompt", llama))]  # fmt: skip
            lines.append(f"| {name} | {token:.0f} | {ratios[0]} | {ratios[1]} | {prompt / 1e3:.1f} | {ratios[2]} "
                         f"| {opening / 1e3:.1f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["vision", "language"], help="what to measure (anew)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work: Path = arguments.work
    if arguments.one:
        times = language(arguments.one, work) if arguments.one in LANGUAGE else vision(arguments.one, work)
        print(json.dumps(times))
        return
    make(arguments.checkpoint, work)
    found: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        found = json.loads(arguments.json.read_text())
    if "vision" in arguments.parts:
        found |= turns(VISION + PROJECTOR, work, arguments.repeat)
    if "language" in arguments.parts:
        found |= turns(LANGUAGE, work, arguments.repeat)
    print(speed_table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
