"""Memory of a check over many images, and of calibration and a check with a large vocabulary and long prompts.

    python benchmarks/memory.py images --count 5000
    python benchmarks/memory.py calibration
    python benchmarks/memory.py check

Models are generated: a tiny tower and a decoder of few layers, with the widths, the vocabulary and the prompts that
fill memory. What is printed is the resident memory beyond what there is once the weights are loaded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vlmexport.calibrate import Sample, collect
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.design import Design, create
from vlmexport.model import load
from vlmexport.model.language import llama
from vlmexport.parity.compare import one_runtime
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.reference import values
from vlmexport.parity.reference.values import Live
from vlmexport.pipeline import export
from vlmexport.processing.messages import asked
from vlmexport.processing.prompt import Prompt, Views
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.source.locate import open_model

VOCABULARY, POSITIONS = 262_144, 4096
WIDE = LanguageSpec("llama", VOCABULARY, 1152, 6912, 8, 4, 1, 256, 1e-6, 1e6, 8192, True)
"""Widths of Gemma 3 1B, which has 26 layers."""

NARROW = LanguageSpec("llama", VOCABULARY, 256, 512, 2, 4, 4, 64, 1e-6, 1e6, 8192, True)


def checkpoint(folder: Path, language: LanguageSpec, side: int) -> Checkpoint:
    """Random weights behind a tiny tower for pictures of so many pixels a side."""
    llama._VARIANTS["benchmark"] = language
    create(Design("clip:tiny", "mlp2x_gelu", "llama:benchmark", image_size=side), folder)
    return open_model(str(folder))


def picture(seed: int) -> Image.Image:
    """Coloured blobs."""
    pixels = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((300, 220))


def samples(count: int, question: str) -> list[Sample]:
    """Two questions about each picture."""
    return [Sample(f"{i}", f"{i // 2}", question, partial(picture, i // 2)) for i in range(count)]


def prompt_of(found: Checkpoint, question: str) -> Prompt:
    """About one image, whose patches are its visual tokens."""
    return found.prompts.prompt(asked(question), [Views(((1, found.spec.projector.in_tokens),))])


def long_question(found: Checkpoint, positions: int) -> str:
    """One that makes a prompt of so many positions, its image's included."""
    empty = len(prompt_of(found, "").ids)
    word = " what is it"
    each = len(found.tokenizer.encode(word * 9)) - len(found.tokenizer.encode(word * 8))
    return word * ((positions - empty) // each)


@contextmanager
def beyond(what: str) -> Iterator[None]:
    """Prints how far resident memory rises within."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    before = resident("VmRSS")
    yield
    print(f"{what}: {resident('VmHWM') - before:.0f} MB beyond {before:.0f} MB", flush=True)


def resident(key: str) -> float:
    """MB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6


def calibration(folder: Path, count: int) -> None:
    """Statistics of all components."""
    found = checkpoint(folder / "model", WIDE, 56)
    vlm, question = load(found, resident=True), long_question(found, POSITIONS)
    print(f"prompts of {len(prompt_of(found, question).ids)} positions")
    with beyond(f"calibration on {count} samples"):
        collect(vlm, found.prompts, samples(count, question))


def compare(found: Checkpoint, bundle: Path, chosen: list[Sample], every: int) -> None:
    """What ``check`` does, with the memory shown on the way."""
    runtime = open_runtime(bundle)
    comparison = Comparison(Live(ReferenceRuntime(found, resident=True)), runtime)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done % every == 0:
            print(f"after {done} questions: {resident('VmRSS'):.0f} MB, peak {resident('VmHWM'):.0f} MB", flush=True)

    with beyond(f"a check on {len(chosen)} questions"):
        comparison.run(chosen, advance)
    runtime.close()


def check(folder: Path, count: int) -> None:
    """Long prompts, a large vocabulary."""
    found = checkpoint(folder / "model", NARROW, 56)
    bundle = export(str(folder / "model"), resolve("onnx-fp32"), folder / "bundle")
    compare(found, bundle, samples(count, long_question(found, POSITIONS)), 4)


def images(folder: Path, count: int) -> None:
    """576 visual tokens an image, two questions each; answers are cut to one token."""
    values.MAX_NEW_TOKENS = one_runtime.MAX_NEW_TOKENS = 1  # type: ignore[attr-defined]
    found = checkpoint(folder / "model", replace(NARROW, vocab_size=1536), 336)
    bundle = export(str(folder / "model"), resolve("onnx-fp32"), folder / "bundle")
    compare(found, bundle, samples(2 * count, "what is it ?"), 500)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "calibration", "check"))
    parser.add_argument("--count", type=int, default=8, help="images, or samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"images": images, "calibration": calibration, "check": check}[arguments.what](Path(folder), arguments.count)


if __name__ == "__main__":
    main()
