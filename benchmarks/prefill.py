"""What the head over a whole prompt costs: time and memory with the logits of every position, and of the last.

    python benchmarks/prefill.py --positions 256 --turns 3

Int4 decoders with random weights: the sizes of Qwen2 0.5B and of MobileLLaMA 1.4B (the decoder of MobileVLM V2 1.7B),
each with a vocabulary of 32,000 and of 151,936. Both ways run in turn in one session, on one thread; what is
counted are seconds of the processor, which other programs disturb less. Peak memory is that of a process of its own for
each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

SIZES = {"0.5B": "qwen2:0.5b", "1.7B": "llama:1.4b"}
VOCABULARIES = (32_000, 151_936)
THREADS = 1


def decoder(folder: Path, name: str, vocabulary: int) -> Path:
    """The graph of a size."""
    from vlmexport.artifact.onnx.build import fused_decoder
    from vlmexport.artifact.onnx.passes.clean import save
    from vlmexport.design import Design, create, language_of
    from vlmexport.model.language import llama, qwen2
    from vlmexport.source.locate import open_model

    spec = replace(language_of(name), vocab_size=vocabulary, max_positions=2048)
    (qwen2 if spec.kind == "qwen2" else llama)._VARIANTS["benchmark"] = spec
    create(Design("clip:tiny", "mlp2x_gelu", f"{spec.kind}:benchmark", image_size=56), folder / "model")
    path = folder / "decoder.onnx"
    save(fused_decoder.build(open_model(str(folder / "model")), fused_decoder.Weights(128)), path, outside=0)
    return path


def run(path: Path, positions: int, turns: int, ways: tuple[int, ...]) -> dict[int, list[float]]:
    """Rows of logits (0: all) → seconds of each turn."""
    from vlmexport.artifact.onnx.session import open_session
    from vlmexport.runtime.ort.cache import open_cache

    session = open_session(path, THREADS)
    width = next(value.shape[2] for value in session.get_inputs() if value.name == "inputs_embeds")
    embeds = np.random.default_rng(0).standard_normal((1, positions, width), np.float32) * np.float32(0.02)
    found: dict[int, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way in ways:
            cache = open_cache(session, positions)
            start = time.process_time()
            cache.step(embeds, way)
            found[way].append(time.process_time() - start)
    return found


def peak(path: Path, positions: int, way: int) -> float:
    """MB of a process that runs one prompt."""
    command = [sys.executable, __file__, "--one", str(path), "--way", str(way), "--positions", str(positions)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        from vlmexport.workers.memory import peak_bytes

        run(arguments.one, arguments.positions, 1, (arguments.way,))
        print((peak_bytes() or 0) / 1e6)
        return
    print("| decoder | vocabulary | all, s | last, s | last ÷ all (turns) | all, MB | last, MB |", flush=True)
    for size in arguments.sizes:
        for vocabulary in VOCABULARIES:
            with tempfile.TemporaryDirectory() as folder:
                path = decoder(Path(folder), SIZES[size], vocabulary)
                times = run(path, arguments.positions, arguments.turns, (0, 1))
                ratios = [last / every for every, last in zip(times[0], times[1], strict=True)]
                memory = [peak(path, arguments.positions, way) for way in (0, 1)]
            seconds = " | ".join(f"{median(times[way]):.2f}" for way in (0, 1))
            shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {size} | {vocabulary:,} | {seconds} | {median(ratios):.2f} ({shown}) | "
                  f"{memory[0]:.0f} | {memory[1]:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
