"""Score an exported demo checkpoint on held-out scenes: exact match per kind of question.

    python recipes/demo/evaluate.py [--model vlmexport/demo/model] [--scenes 250] [--bits 4 3 2]

The float16 weights are computed in float32. An answer is right when every greedy token up to the end of text is the
expected one; that is what greedy decoding gives, found in one pass. `--bits` rounds the language model's matrices
to so many bits (blocks of 32, minimum and scale), a rough forecast of what GGUF types cost.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from data import normalized
from export import TOWER_PREFIX
from language import Language, Projector
from packing import answer_logits, exact, pack
from prompts import Prompts
from safetensors.torch import load_file
from torch import Tensor
from tower import USED_LAYERS, Tower

from vlmexport.demo.heldout import SCENES, heldout_questions, heldout_scenes
from vlmexport.demo.paint import paint
from vlmexport.demo.scenes import Scene

ROOT = Path(__file__).parents[2]


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


def rounded(weight: Tensor, bits: int, block: int = 32) -> Tensor:
    """Round to nearest with a minimum and a scale per block of a row."""
    blocks = weight.view(-1, block)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = (high - low).clamp_min(1e-12) / (2**bits - 1)
    return (((blocks - low) / scale).round() * scale + low).view_as(weight)


def round_language(language: Language, bits: int) -> None:
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if parameter.ndim == 2 and name.startswith("layers"):
                parameter.copy_(rounded(parameter, bits))


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


def evaluate(folder: Path, count: int, bits: list[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores in float and with rounded language models."""
    model, scenes = Exported(folder), list(heldout_scenes(count))
    visual = torch.cat([model.visual(scenes[at : at + 10]) for at in range(0, count, 10)])
    found = {"float": scores(model, scenes, visual)}
    for width in bits:
        again = Exported(folder)
        round_language(again.language, width)
        found[f"{width}-bit"] = scores(again, scenes, visual)
    return found


def main() -> None:
    """Print a table and write the scores as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "vlmexport" / "demo" / "model")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--bits", type=int, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = evaluate(arguments.model, arguments.scenes, arguments.bits)
    print("kind".ljust(12), "questions", *(name.rjust(7) for name in found))
    for kind, score in found["float"].items():
        row = [f"{of[kind]['exact']:7.3f}" for of in found.values()]
        print(kind.ljust(12), f"{score['questions']:9.0f}", *row)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
