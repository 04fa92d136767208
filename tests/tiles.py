"""The trained model whose questions need the tiles: held-out questions, what transformers answers, bundles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from recipes.tiles.scenes import SEEDS, ask, make_scene, paint
from tests.gguf_bundles import export as export_gguf
from tests.onnx_bundles import Bundles
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import open_checkpoint

MODEL = Path(__file__).parents[1] / "models" / "tiles"
VIEWS, VISUAL = 10, 90
"""Of a picture of the scenes: 3x3 tiles and all of it."""
LONGEST = 6
"""Tokens of an answer: a name, two words of a place, the end."""


Answers = list[tuple[list[int], list[int]]]
"""Ids of a prompt and of its answer."""


@dataclass(frozen=True)
class Asked:
    """A question about a scene that training never saw."""

    seed: int
    text: str
    answer: str

    def image(self) -> Image.Image:
        """RGB, of 448 to 576 pixels a side."""
        return paint(make_scene(self.seed))


def heldout(scenes: int) -> list[Asked]:
    """One question of each kind about each scene."""
    return [
        Asked(seed, question.text, question.answer)
        for seed in SEEDS["heldout"][:scenes]
        for question in ask(make_scene(seed), each=1)
    ]


def with_line_breaks(folder: Path) -> Path:
    """The model with a token for two line breaks, as SmolLM2's whole vocabulary has one and the cut one has not: stock
    llama.cpp looks for it and cannot show a picture without. It means what one line break does."""
    shutil.copytree(MODEL, folder)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    free = next(token for token in document["added_tokens"] if "reserved" in token["content"])
    free |= {"content": "\n\n", "special": False}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    table = weights["model.text_model.embed_tokens.weight"]
    table[free["id"]] = table[document["model"]["vocab"]["Ċ"]]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def answered(asked: Sequence[Asked], folder: Path = MODEL) -> Answers:
    """Of each question the ids of the prompt, and of the greedy answer that transformers' own model gives in float32,
    with its processor on Pillow."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for one in asked:
        content = [{"type": "image"}, {"type": "text", "text": one.text}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=text, images=[one.image()], return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)[0].tolist()
        length = inputs["input_ids"].shape[1]
        found.append((ids[:length], ids[length:]))
    return found


def texts(answers: Answers) -> list[str]:
    """The answers as they are read."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for _, ids in answers]


@pytest.fixture(scope="session")
def tiles_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Bundles by name, exported once: ``fp32`` in ONNX, and ``gguf`` in F16, of the model ``with_line_breaks``,
    which lies beside it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiles"
    root.mkdir(exist_ok=True)

    @cache
    def bundle(name: str) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / name).exists():
                if name == "gguf":
                    model = open_checkpoint(with_line_breaks(root / "with-line-breaks"))
                    export_gguf(model, root / name, type="f16", mmproj_type="f16")
                else:
                    export(str(MODEL), resolve(f"onnx-{name}", environ={}), root / name)
        return root / name

    return bundle
