"""Score an exported demo checkpoint on held-out scenes: exact match per kind of question.

    python recipes/demo/evaluate.py [--model vlmexport/demo/model] [--scenes 250] [--types q4_k_m q2_k]

The float16 weights are computed in float32. An answer is right when every greedy token up to the end of text is the
expected one; that is what greedy decoding gives, found in one pass. `--types` quantizes the language model with
libggml's kernels to these GGUF mixes, without an importance matrix, and scores what they decode to.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from data import normalized
from export import TOWER_PREFIX
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from language import LAYERS, Language, Projector
from packing import answer_logits, exact, pack
from prompts import Prompts
from safetensors.torch import load_file
from torch import Tensor
from tower import USED_LAYERS, Tower

from vlmexport.artifact.gguf.language import gguf_name
from vlmexport.demo.heldout import SCENES, heldout_questions, heldout_scenes
from vlmexport.demo.paint import paint
from vlmexport.demo.scenes import Scene
from vlmexport.model import plugins
from vlmexport.quantize import ggml
from vlmexport.quantize.gguf_mix import Decoder, find_mix, tensor_types

ROOT = Path(__file__).parents[2]
_LLAMA = plugins.decoder("llama").preset("tiny")


class Exported:
    """The three parts of an exported folder, in float32."""

    def __init__(self, folder: Path) -> None:
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        vision = {n.removeprefix(TOWER_PREFIX).removeprefix("encoder."): t for n, t in tensors.items() if "vision" in n}
        unused = (f"layers.{USED_LAYERS}.", "post_layernorm.")
        self.tower, self.projector = Tower().eval(), Projector().eval()
        self.tower.load_state_dict({n: t for n, t in vision.items() if not n.startswith(unused)})
        pre = "model.mm_projector."
        self.projector.load_state_dict({n.removeprefix(pre): t for n, t in tensors.items() if n.startswith(pre)})
        rest = {n.removeprefix("model."): t for n, t in tensors.items() if "vision" not in n and "mm_" not in n}
        self.language = Language(len(tensors["lm_head.weight"])).eval()
        self.language.load_state_dict(rest)
        self.prompts = Prompts(folder / "tokenizer.model")

    @torch.no_grad()
    def visual(self, scenes: list[Scene]) -> Tensor:
        """Visual tokens of these scenes, [n, 144, 256]."""
        pictures = np.stack([np.asarray(paint(scene)) for scene in scenes])
        return self.projector(self.tower.whole(normalized(pictures)))  # type: ignore[no-any-return]


@torch.no_grad()
def quantize(language: Language, mix: str) -> None:
    """Replace the weights by what a GGUF mix keeps of them."""
    named = {
        gguf_name(_LLAMA, name if name.startswith("lm_head") else f"model.{name}"): parameter
        for name, parameter in language.named_parameters()
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    types = tensor_types(find_mix(mix), shapes, Decoder(layers=LAYERS, groups=1), importance=False)
    for name, parameter in named.items():
        if types[name] != "f32":
            rows = ggml.quantize(parameter.contiguous().numpy(), types[name])
            kept = dequantize(rows.reshape(len(parameter), -1), GGMLQuantizationType[types[name].upper()])
            parameter.copy_(torch.from_numpy(kept))


@torch.no_grad()
def scores(model: Exported, scenes: list[Scene], visual: Tensor, batch: int = 10) -> dict[str, dict[str, float]]:
    """Per kind and over all: questions asked and exact match."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for at in range(0, len(scenes), batch):
        packed = pack([heldout_questions(scene, None) for scene in scenes[at : at + batch]], model.prompts)
        logits = answer_logits(model.language, visual[at : at + batch], packed)
        for question, good in zip(packed.questions, exact(logits, packed), strict=True):
            for kind in (question.kind, "all"):
                total[kind] += 1
                right[kind] += good
    return {kind: {"questions": total[kind], "exact": round(right[kind] / total[kind], 4)} for kind in sorted(total)}


def evaluate(folder: Path, count: int, mixes: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores in float and with quantized language models."""
    model, scenes = Exported(folder), list(heldout_scenes(count))
    visual = torch.cat([model.visual(scenes[at : at + 10]) for at in range(0, count, 10)])
    found = {"float": scores(model, scenes, visual)}
    for mix in mixes:
        again = Exported(folder)
        quantize(again.language, mix)
        found[mix] = scores(again, scenes, visual)
    return found


def main() -> None:
    """Print a table and write the scores as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "vlmexport" / "demo" / "model")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--types", nargs="*", default=[], help="GGUF mixes such as q4_k_m")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = evaluate(arguments.model, arguments.scenes, arguments.types)
    print("kind".ljust(12), "questions", *(name.rjust(7) for name in found))
    for kind, score in found["float"].items():
        row = [f"{of[kind]['exact']:7.3f}" for of in found.values()]
        print(kind.ljust(12), f"{score['questions']:9.0f}", *row)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
