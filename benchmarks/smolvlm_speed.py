"""Speed of a SmolVLM at full size beside its peers: all views of a picture, a prompt about it, a token, size, memory.

    python benchmarks/generate_smolvlm.py 256m /data/SmolVLM-256M
    python benchmarks/smolvlm_speed.py /data/SmolVLM-256M --work DIR --threads 1 --json smolvlm-speed.json

Peers: what ``quantize_dynamic`` and ``quantize_static`` of ONNX Runtime make of our float graphs, libmtmd with F16 and
Q8_0, llama.cpp with Q4_0. Everything is made once in DIR and kept there. All contenders are open in one process and
take turns, view by view and prompt by prompt, with a pause before each, so that what else runs on the machine hits them
alike; memory is that of a process of its own for each. A checkpoint of random weights is as fast as any other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import contenders
import numpy as np
from PIL import Image

PICTURES = {"17 views": (2048, 2048), "13 views": (4032, 3024)}
"""Width and height."""

VISION = ("int8", "dynamic int8", "quantize_static", "libmtmd F16", "libmtmd Q8_0")
NAIVE = "int4, attention not tiled"
LANGUAGE = ("int4", NAIVE, "int8", "dynamic int8", "llama.cpp Q4_0")
QUESTION = "What is in the picture?"
STEPS, BATCH = 24, 512
PAUSE = 0.1
"""Seconds before a turn: threads wait for more work busily, and would take the next one's time."""

MADE_OF = {
    "int8": "int8", "int4": "int4", NAIVE: "int4", "dynamic int8": "plain", "quantize_static": "plain",
    "libmtmd F16": "f16", "libmtmd Q8_0": "q8_0", "llama.cpp Q4_0": "f16",
}  # fmt: skip
"""Contender → the bundle that its files are from."""

Times = dict[str, list[float]]


def make(checkpoint: Path, work: Path, samples: int, only: Sequence[str]) -> None:
    """Every file of these contenders, where it is not there yet."""
    tool, model = [sys.executable, "-m", "vlmexport"], str(checkpoint)
    calibrated = ["--samples", str(samples)]
    settings = {"VLMEXPORT_ONNX_FALLBACK": "predicted", "VLMEXPORT_ONNX_ROUNDING": "nearest"}  # as fast as chosen ones
    jobs = {
        "int8": ["onnx", model, "--target", "x86", *calibrated],
        "int4": ["onnx", model, "--target", "x86", "--decoder", "int4", *calibrated],
        "f16": ["gguf", model, "--type", "q4_0", "--imatrix", "none"],
        "q8_0": ["gguf", model, "--recipe", "gguf-q8_0-mmproj", "--type", "q4_0", "--imatrix", "none"],
        "plain": ["onnx", model, "--precision", "fp32"],
    }
    for name, command in jobs.items():
        if name in {MADE_OF[one] for one in only} and not (work / name).exists():
            unfused = {"VLMEXPORT_ONNX_FUSE": "false"} if name == "plain" else {}  # what ONNX Runtime's tools expect
            subprocess.run([*tool, *command, "-o", str(work / name)], check=True, env=os.environ | settings | unfused)
    for name in ("vision_encoder", "decoder_model_merged") if "dynamic int8" in only else ():
        if not (work / "dynamic" / f"{name}.onnx").exists():
            contenders.quantize_dynamic(work / "plain" / "onnx" / f"{name}.onnx", work / "dynamic" / f"{name}.onnx")
    if "quantize_static" in only and not (work / "static" / "vision_encoder.onnx").exists():
        tower = work / "plain" / "onnx" / "vision_encoder.onnx"
        contenders.quantize_static(tower, work / "static" / "vision_encoder.onnx", (1, 1, 3, 512, 512))


def files(what: str, name: str, work: Path) -> list[Path]:
    """Those that a contender opens, the first by its path."""
    graph = {"vision": "vision_encoder", "language": "decoder_model_merged"}[what]
    if name.startswith(("libmtmd", "llama")):
        found = (work / ("q8_0" if name.endswith("Q8_0") else "f16")).glob("*.gguf")
        return [path for path in found if path.name.startswith("mmproj") == (what == "vision")]
    folder = {"dynamic int8": "dynamic", "quantize_static": "static"}.get(name, f"{MADE_OF[name]}/onnx")
    return sorted((work / folder).glob(f"{graph}{'_' * folder.endswith('onnx')}*.onnx*"))


class Tower:
    """A contender that makes visual tokens of views."""

    def __init__(self, name: str, work: Path, threads: int) -> None:
        path, *_ = files("vision", name, work)
        (words,) = files("language", "llama.cpp Q4_0", work)
        self._mtmd = contenders.Mtmd(path, words, threads) if name.startswith("libmtmd") else None
        if self._mtmd is None:
            opened = contenders.open_as_ours if name == VISION[0] else contenders.open_as_theirs
            self._session = opened(path, threads)
            self._pixels = np.random.default_rng(0).uniform(-1, 1, (1, 1, 3, 512, 512)).astype(np.float32)

    def show(self, size: tuple[int, int]) -> int:
        """A picture of this width and height; how many views it became."""
        if self._mtmd is None:
            columns, rows = (-(-edge * 2048 // max(size) // 512) for edge in size)
            return rows * columns + 1
        return self._mtmd.show(np.asarray(picture(size)))

    def encode(self, view: int) -> None:
        """One of its views."""
        if self._mtmd is None:
            self._session.run(["image_features"], {"pixel_values": self._pixels})
        else:
            self._mtmd.encode(view)

    def at_once(self, views: int) -> None:
        """All of them in one run, as transformers.js has it."""
        self._session.run(["image_features"], {"pixel_values": np.repeat(self._pixels, views, 1)})


def picture(size: tuple[int, int]) -> Image.Image:
    """Coloured blobs."""
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def positions(checkpoint: Path, size: tuple[int, int]) -> int:
    """Of a prompt about such a picture."""
    from vlmexport.processing.messages import asked
    from vlmexport.processing.prompt import Views
    from vlmexport.source.checkpoint import open_checkpoint

    found = open_checkpoint(checkpoint)
    columns, rows = (-(-edge * 2048 // max(size) // 512) for edge in size)
    views = Views(((8, 8),) * (rows * columns + 1), (rows, columns))
    return len(found.prompts.prompt(asked(QUESTION), [views]).ids)


def open_decoder(name: str, work: Path, length: int, threads: int) -> contenders.Step:
    """A contender that decodes, with room for a prompt of so many positions and an answer."""
    path, *_ = files("language", name, work)
    room = length + STEPS + 8
    if name.startswith("llama"):
        return contenders.llama_decoder(path, room, threads, BATCH)
    embedding, *_ = work.glob("*/onnx/embed_tokens.onnx")  # the same in all of them
    os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] = "1" if name == NAIVE else "0"  # read when a graph is opened
    decoder = (contenders.open_as_theirs if name == "dynamic int8" else contenders.open_as_ours)(path, threads)
    return contenders.onnx_decoder(contenders.open_as_ours(embedding, threads), decoder, room)


def seconds(call: Callable[[], object], threads: int) -> float:
    """Of one call, after a pause: in one thread those of the processor, which other programs disturb less."""
    clock = time.process_time if threads == 1 else time.perf_counter
    time.sleep(PAUSE)
    start = clock()
    call()
    return clock() - start


def see(names: Sequence[str], work: Path, threads: int, rounds: int, most: int) -> dict[str, Times]:
    """Picture → contender → seconds of each view, of ``most`` at most, round after round."""
    towers = {name: Tower(name, work, threads) for name in names}
    found: dict[str, Times] = {}
    for title, size in PICTURES.items():
        counts = {tower.show(size) for tower in towers.values()}
        assert counts == {int(title.split()[0])}, counts
        found[title] = {name: [] for name in names}
        for tower in towers.values():
            tower.encode(0)
        for _ in range(rounds):
            for view in range(min(most, *counts)):
                for name, tower in towers.items():
                    found[title][name].append(seconds(partial(tower.encode, view), threads))
    return found


def decode(names: Sequence[str], work: Path, threads: int, rounds: int, length: int) -> dict[str, Times]:
    """``prompt`` and ``token`` → contender → seconds, round after round."""
    steps = {name: open_decoder(name, work, length, threads) for name in names}
    prompt = np.arange(length) % 1000 + 1
    found: dict[str, Times] = {key: {name: [] for name in names} for key in ("prompt", "token")}

    def answer(step: contenders.Step) -> None:
        for token in range(STEPS):
            step(prompt[token : token + 1], False)

    for step in steps.values():
        step(prompt[:16], True)
    for _ in range(rounds):
        for name, step in steps.items():
            found["prompt"][name].append(seconds(partial(step, prompt, True), threads))
            step(prompt[:1], False)
            found["token"][name].append(seconds(partial(answer, step), threads) / STEPS)
    return found


def peaks(work: Path, length: int, only: Sequence[str]) -> dict[str, dict[str, float]]:
    """Peak MB of a process that does one thing: a tower one view, ours all views, and ONNX Runtime's all at once; a
    decoder its prompt and a few tokens."""
    found: dict[str, dict[str, float]] = {}
    tasks = [("vision", name, "1 view") for name in VISION] + [("vision", VISION[0], "17 views")]
    tasks += [("vision", name, "17 at once") for name in VISION[:3]] + [
        ("language", name, "prompt") for name in LANGUAGE
    ]
    for what, name, task in tasks:
        if name in only:
            command = [sys.executable, __file__, "--work", str(work), "--json", os.devnull]
            command += ["--one", what, name, task, str(length)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            found.setdefault(f"{what}: {name}", {})[task] = float(done.stdout)
    return found


def one(work: Path, what: str, name: str, task: str, length: int) -> float:
    """Peak MB of this process after a task of ``peaks``, in one thread."""
    from vlmexport.workers.memory import peak_bytes

    if what == "vision":
        tower = Tower(name, work, 1)
        views = tower.show(PICTURES["17 views"])
        if task.endswith("at once"):
            tower.at_once(views)
        for view in range(0 if task.endswith("at once") else int(task.split()[0])):
            tower.encode(view)
    else:
        step = open_decoder(name, work, length, 1)
        step(np.arange(length) % 1000 + 1, True)
        for token in range(4):
            step(np.array([token + 1]), False)
    return (peak_bytes() or 0) / 1e6


def table(times: Mapping[str, Times], scale: Mapping[str, float]) -> str:
    """Markdown: of each kind of work the median, and the first contender's time divided by the others', pair by pair:
    median, and least to greatest of the middle nine tenths."""
    lines = []
    for title, found in times.items():
        first, *_ = found
        lines += ["", f"| {title} | {'ms' if title == 'token' else 's'} | {first} ÷ it |", "|---|---:|---:|"]
        for name, values in found.items():
            ratios = sorted(a / b for a, b in zip(found[first], values, strict=True))
            cut = len(ratios) // 20
            low, high = ratios[cut], ratios[-1 - cut]
            shown = f"{median(ratios):.2f} ({low:.2f}–{high:.2f})" if name != first else "1"
            lines.append(f"| {name} | {median(values) * scale[title]:.3g} | {shown} |")
    return "\n".join(lines[1:])


def show(found: dict[str, Any]) -> str:
    """All tables that were measured."""
    parts = []
    for key in sorted(key for key in found if key.startswith(("vision", "language"))):
        threads = key.split()[1]
        scale = {title: int(title.split()[0]) for title in PICTURES} | {"prompt": 1, "token": 1000}
        parts.append(f"Threads: {threads}\n\n{table(found[key], scale)}")
    if "memory" in found:
        lines = ["| | MB of files | peak MB |", "|---|---:|---|"]
        for name, tasks in found["memory"].items():
            cells = ", ".join(f"{task} {peak:.0f}" for task, peak in tasks.items())
            lines.append(f"| {name} | {found['bytes'][name] / 1e6:.0f} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=8, help="to calibrate with")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--views", type=int, default=17, help="of each picture, at most: one takes as long as another")
    parser.add_argument("--parts", nargs="+", default=["vision", "language", "memory"], help="what to measure (anew)")
    parser.add_argument("--only", nargs="+", choices=MADE_OF, default=list(MADE_OF), help="contenders")
    parser.add_argument("--json", type=Path, required=True, help="figures are added to those it holds")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work: Path = arguments.work
    if arguments.one:
        what, name, task, count = arguments.one
        print(one(work, what, name, task, int(count)))
        return
    only: list[str] = arguments.only
    make(arguments.checkpoint, work, arguments.samples, only)
    found: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    length = positions(arguments.checkpoint, PICTURES["17 views"])
    for part in arguments.parts:
        if part == "memory":
            found["memory"] = peaks(work, length, only)
            contenders = (key.split(": ") for key in found["memory"])
            found["bytes"] = {
                f"{what}: {name}": sum(file.stat().st_size for file in files(what, name, work))
                for what, name in contenders
            }
        for threads in arguments.threads if part != "memory" else ():
            key = f"{part} {threads}"
            names = [name for name in (VISION if part == "vision" else LANGUAGE) if name in only]
            found[key] = (see(names, work, threads, arguments.rounds, arguments.views) if part == "vision"
                          else decode(names, work, threads, arguments.rounds, length))  # fmt: skip
        arguments.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(f"Prompt: {length} positions\n\n{show(found)}")


if __name__ == "__main__":
    main()
