"""SigLIP's vision transformer as Idefics3 and SmolVLM have it: features go through the last norm.

Positions are found as fractions of a side among the borders of the table's cells, in float32. For whole views of the
published sizes (26, 27 and 32 patches a side) that is one after the other; for a side of 25 it is not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import HALF, Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.protocols import HYBRID, GgufTower
from vlmexport.model.transformer_tower import TransformerTower

if TYPE_CHECKING:
    import torch

EXAMPLE = "idefics3:tiny"
_BASE = VisionSpec("idefics3", 512, 16, 768, 3072, 12, 12, "gelu_pytorch_tanh", 1e-6, select_layer=-1)
_VARIANTS = {
    "b16-512": _BASE,
    "so400m-384": replace(_BASE, image_size=384, patch_size=14, hidden_size=1152, intermediate_size=4304,
                          num_layers=27, num_heads=16),
    "tiny": replace(_BASE, image_size=96, hidden_size=64, intermediate_size=128, num_layers=3, num_heads=2),
}  # fmt: skip
"""Those of SmolVLM (256M and 500M, 2.2B), and one for tests."""


def places(side: int) -> torch.Tensor:
    """Of each of so many patches in a row, which cell of the table of positions it has: i64 [side]."""
    import torch

    borders = torch.arange(1 / side, 1.0, 1 / side)
    fractions = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))
    return torch.bucketize(fractions.clamp(max=1.0 - 1e-6), borders, right=True)


_TOWER = TransformerTower(
    "SiglipVisionModel", "SiglipVisionConfig", ("head.",), norm_after="post_layernorm",
    options={"vision_use_head": False}, places=places,
)  # fmt: skip
layers, unused, build, features = _TOWER.layers, _TOWER.unused, _TOWER.build, _TOWER.features


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``."""
    return plugins.sized(plugins.variant_of(kind, variant, _VARIANTS), image_size)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """A half, both."""
    return HALF, HALF


_IN_ORDER = (8, 9, 14, 26, 27, 32)
"""Patches along a side of the published sizes, and of three small ones: torch need not be asked for ``places``."""

_GGUF = {"embeddings.patch_embedding": "v.patch_embd", "post_layernorm": "v.post_ln"}
_POSITIONS = "v.position_embd.weight"


def gguf(spec: VisionSpec) -> GgufTower:
    """As libmtmd's SigLIP, which runs every layer and the last norm. It gives the patches the table's rows in their
    order: where two patches have one row, the file has that row twice. The embeddings are F32, as llama.cpp's converter
    writes them.

    Raises:
        Unsupported: not every layer is in use.
    """
    if spec.used_layers != spec.num_layers or spec.select_feature != "patch":
        raise Unsupported(f"libmtmd cannot stop at hidden state {spec.used_layers}", HYBRID)
    names = {f"{name}.{part}": f"{held}.{part}" for name, held in _GGUF.items() for part in ("weight", "bias")}
    table = {"embeddings.position_embedding.weight": _POSITIONS}
    rows = {}
    if spec.grid not in _IN_ORDER:
        cells = places(spec.grid).tolist()
        rows[_POSITIONS] = [row * spec.grid + column for row in cells for column in cells]
    floats = frozenset({_POSITIONS, "v.patch_embd.weight"})
    return GgufTower(("idefics3",), names | table, _TOWER.gguf_inside, floats, rows=rows)
