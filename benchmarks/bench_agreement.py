"""Does `vlmexport bench` say what llama.cpp's and onnxruntime-genai's own benchmarks say of the same files?

    python benchmarks/bench_agreement.py --gguf GGUF_BUNDLE --llama-bench PATH/llama-bench \\
        --onnx ONNX_BUNDLE --genai-bench PATH/benchmark_e2e.py --json benchmarks/results/bench-agreement.json

``llama-bench`` comes from a build of llama.cpp, ``benchmark_e2e.py`` from onnxruntime-genai's repository (it needs
pandas, psutil and tqdm); both run unmodified, on as many threads, prompt positions and tokens as ours. They take turns
with ours, and ratios are taken turn by turn. Their prompts are token ids; ours holds a picture's visual tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from vlmexport.artifact.bundle.manifest import read_manifest

Times = dict[str, float]
REPEAT = 3


def ours(bundle: Path, tokens: int) -> tuple[Times, int, int, int]:
    """Seconds of a prompt and of a token in the runtime alone; positions of the prompt, decoded tokens, threads."""
    command = [sys.executable, "-m", "vlmexport", "bench", str(bundle), "--rounds", "1", "--new-tokens", str(tokens),
               "--json"]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[0]
    times = {name: found[f"decoder_{name}"]["median"] for name in ("prompt", "token")}
    return times, found["positions"], found["new_tokens"], found["threads"]


def llama_bench(program: Path, bundle: Path, positions: int, tokens: int, threads: int) -> Times:
    """Its own medians, without flash attention, as ours; its cache is float16, because it takes no float32, which ours
    is. It decodes from an empty cache unless told where to begin."""
    model = bundle / read_manifest(bundle).decoding.file("language")

    def seconds(*sizes: object) -> float:
        command = [str(program), "-m", str(model), "-t", str(threads), *map(str, sizes), "-b", "2048", "-ub", "2048",
                   "-fa", "0", "-r", str(REPEAT), "-o", "json"]  # fmt: skip
        (row,) = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return float(median(row["samples_ns"])) / 1e9

    return {
        "prompt": seconds("-p", positions, "-n", 0),
        "token": seconds("-p", 0, "-n", tokens, "-d", positions) / tokens,
    }


def genai_bench(script: Path, bundle: Path, positions: int, tokens: int, threads: int) -> Times:
    """Its own medians, greedy. The threads are those of its settings, which leave them to ONNX Runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(script), "-i", str(bundle.resolve()), "-l", str(positions), "-g", str(tokens),
                   "-r", str(REPEAT), "-w", "1", "-k", "1", "--aggregation", "median", "--use_random_tokens",
                   "--chat_template", "{input}", "-o", f"{scratch}/found.csv"]  # fmt: skip
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=script.parent,
                             env=os.environ | {"OMP_NUM_THREADS": str(threads)})  # fmt: skip
    shown = dict(re.findall(r"^Median (.+): ([\d.e-]+) ms$", run.stdout, re.MULTILINE))
    return {
        "prompt": float(shown["Time to First Token"]) / 1e3,
        "token": float(shown["Token Generation Latency (per token)"]) / 1e3,
    }


def compare(
    bundle: Path, peer: Callable[[Path, int, int, int], Times], turns: int, tokens: int
) -> dict[str, list[Times]]:
    """Both in turn."""
    found: dict[str, list[Times]] = {"vlmexport bench": [], "peer": []}
    for _ in range(turns):
        times, *sizes = ours(bundle, tokens)
        found["vlmexport bench"].append(times)
        found["peer"].append(peer(bundle, *sizes))
        print({name: rows[-1] for name, rows in found.items()}, file=sys.stderr, flush=True)
    return found


def table(found: dict[str, dict[str, list[Times]]]) -> str:
    """Markdown."""
    lines = ["| | prompt, ms | its own | ours ÷ its | token, ms | its own | ours ÷ its |", "|---" + "|---:" * 6 + "|"]
    for name, rows in found.items():
        cells = []
        for key in ("prompt", "token"):
            own, its = ([row[key] for row in rows[who]] for who in ("vlmexport bench", "peer"))
            ratios = sorted(a / b for a, b in zip(own, its, strict=True))
            cells += [f"{1e3 * median(own):.2f}", f"{1e3 * median(its):.2f}",
                      f"{median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--onnx", type=Path, nargs="*", default=[])
    parser.add_argument("--genai-bench", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--json", type=Path, required=True, help="figures are added to those it holds")
    arguments = parser.parse_args()
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for bundle in arguments.gguf:
        found[f"llama-bench, {bundle.name}"] = compare(
            bundle, lambda *sizes: llama_bench(arguments.llama_bench, *sizes), arguments.turns, arguments.tokens
        )
    for bundle in arguments.onnx:
        found[f"onnxruntime-genai, {bundle.name}"] = compare(
            bundle, lambda *sizes: genai_bench(arguments.genai_bench, *sizes), arguments.turns, arguments.tokens
        )
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
