"""A tiny CLIP tower with an ``mlp2x_gelu`` projector: as an mmproj, and in NumPy. The probe compares the two."""

from __future__ import annotations

from math import erf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlmexport.artifact.gguf import mmproj
from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.artifact.gguf.rows import Entry
from vlmexport.checkpoint.spec import ImageProcessorSpec, LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec

F32 = npt.NDArray[np.float32]
_VISION = VisionSpec("clip", 56, 14, 32, 64, 3, 2, select_layer=-2)
_HIDDEN = 48
SPEC = Spec(
    "probe", "mobilevlm", ImageProcessorSpec.square(56, pads=True), _VISION,
    ProjectorSpec("mlp2x_gelu", 32, _HIDDEN, _VISION.num_patches),
    LanguageSpec("llama", 384, _HIDDEN, 64, 1, 1, 1, 48, 1e-5, 10000.0, 64, False), PromptSpec(), 1, 2, None, "float32",
)  # fmt: skip
"""16 patches, two layers in use of three: whatever libmtmd does with layers, order and positions shows in 16 tokens."""


def weights() -> dict[str, F32]:
    """GGUF name → values, the same in every run; position embeddings large enough for a shift to show."""
    rng, width, inner = np.random.default_rng(0), _VISION.hidden_size, _VISION.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "v.class_embd": (width,), "v.patch_embd.weight": (width, 3, 14, 14), "mm.0.weight": (_HIDDEN, width),
        "v.position_embd.weight": (_VISION.num_patches + 1, width), "mm.2.weight": (_HIDDEN, _HIDDEN),
        "v.pre_ln.weight": (width,), "v.pre_ln.bias": (width,), "mm.0.bias": (_HIDDEN,), "mm.2.bias": (_HIDDEN,),
    }  # fmt: skip
    rows = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out", "ffn_down"), width) | {"ffn_up": inner}
    for layer in range(_VISION.used_layers):
        for name, count in rows.items():
            shapes[f"v.blk.{layer}.{name}.weight"] = (count, inner if name == "ffn_down" else width)
            shapes[f"v.blk.{layer}.{name}.bias"] = (count,)
        shapes |= {f"v.blk.{layer}.{norm}.{part}": (width,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
    return {name: _random(rng, name, shape) for name, shape in shapes.items()}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F32:
    """Gains near one, products that keep the size of what goes in, embeddings as large as what they are added to."""
    values = rng.standard_normal(shape, np.float32)
    if name in ("v.class_embd", "v.position_embd.weight"):
        return values
    if len(shape) == 1:
        return values / np.float32(10) + np.float32("ln" in name and name.endswith("weight"))
    return values / np.float32(np.prod(shape[1:]) ** 0.5)


def write(folder: Path) -> Path:
    """The mmproj, all in F32."""
    entries = [Entry(name, values.shape, "f32", values) for name, values in weights().items()]
    file = GgufFile("probe.gguf", mmproj.ARCHITECTURE, mmproj.fields(SPEC, "f32"), entries)
    file.write(folder, threads=1)
    return folder / file.name


def pixels() -> F32:
    """Noise: [1, 3, height, width]."""
    shape = (1, 3, _VISION.image_size, _VISION.image_size)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def tokens(values: F32) -> F32:
    """[1, 3, height, width] → [1, patches, hidden], as CLIP and LLaVA compute it."""
    w, grid, patch = weights(), _VISION.grid, _VISION.patch_size
    cut = values.reshape(3, grid, patch, grid, patch).transpose(1, 3, 0, 2, 4).reshape(grid**2, -1)
    x = np.concatenate([w["v.class_embd"][None], cut @ w["v.patch_embd.weight"].reshape(_VISION.hidden_size, -1).T])
    x = _norm(x + w["v.position_embd.weight"], w, "v.pre_ln")
    for layer in range(_VISION.used_layers):
        x = _block(x, w, f"v.blk.{layer}.")
    y = _linear(x[1:], w, "mm.0")
    gelu = y * (1 + np.vectorize(erf)(y / np.sqrt(2))) / 2
    return _linear(gelu.astype(np.float32), w, "mm.2")[None]


def _linear(x: F32, w: dict[str, F32], name: str) -> F32:
    found: F32 = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    return found


def _norm(x: F32, w: dict[str, F32], name: str) -> F32:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(_VISION.layer_norm_eps))
    found: F32 = scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
    return found


def _block(x: F32, w: dict[str, F32], at: str) -> F32:
    """A pre-norm transformer layer with quick GELU."""
    heads, y = _VISION.num_heads, _norm(x, w, f"{at}ln1")
    parts = (_linear(y, w, f"{at}attn_{part}") for part in "qkv")
    q, k, v = (part.reshape(len(x), heads, -1).swapaxes(0, 1) for part in parts)
    scores = np.exp(q @ k.swapaxes(1, 2) / np.float32(q.shape[-1]) ** 0.5)
    mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
    x = x + _linear(mixed, w, f"{at}attn_out")
    up = _linear(_norm(x, w, f"{at}ln2"), w, f"{at}ffn_up")
    return x + _linear(up / (1 + np.exp(-1.702 * up)), w, f"{at}ffn_down")
