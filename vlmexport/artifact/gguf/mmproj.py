"""The mmproj: vision encoder and projector as GGUF, for llama.cpp's libmtmd. Their files in ``model`` say how each is
held, the family's what else. Only the layers in use are written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from vlmexport import families
from vlmexport.artifact.gguf import metadata as gguf_about
from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.artifact.gguf.rows import Entry
from vlmexport.checkpoint.spec import Spec, VisionSpec
from vlmexport.checkpoint.tensors import LazyTensor, to_float32
from vlmexport.errors import Unsupported
from vlmexport.families.reading.bundles import Field
from vlmexport.model import plugins
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.quantize.ggml import F32, TYPES

if TYPE_CHECKING:  # the probe writes an mmproj without a checkpoint
    from vlmexport.source.checkpoint import Checkpoint

ARCHITECTURE = "clip"
_ACTIVATIONS: dict[str, dict[str, Field]] = {
    "quick_gelu": {},
    "gelu": {"clip.use_gelu": ("bool", True)},
    "gelu_pytorch_tanh": {"clip.use_gelu": ("bool", True)},
    "gelu_new": {"clip.use_gelu": ("bool", True)},
    "silu": {"clip.use_silu": ("bool", True)},
}
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}


def projector_of(spec: Spec) -> GgufProjector:
    """How the mmproj holds this model's projector, after checking the tower.

    Raises:
        Unsupported: libmtmd cannot hold tower or projector, or would compute them wrongly.
    """
    vision = spec.vision
    tower = plugins.gguf_tower(vision)
    if vision.hidden_act not in _ACTIVATIONS:
        raise Unsupported(f"libmtmd has no activation {vision.hidden_act!r}", HYBRID)
    if vision.intermediate_size == vision.hidden_size:
        raise Unsupported("libmtmd swaps the two layers of an MLP that is as wide as its tower", HYBRID)
    found = plugins.projector(spec.projector).gguf(spec.projector)
    if found.projector_type not in tower.projectors:
        raise Unsupported(f"libmtmd has no {found.projector_type} behind a {vision.kind!r} tower", HYBRID)
    if spec.image_processor.mode != found.mode:
        raise Unsupported(f"libmtmd cuts pictures another way before {found.projector_type} ({found.mode})", HYBRID)
    if found.norm_eps not in (None, vision.layer_norm_eps):
        raise Unsupported(
            f"libmtmd takes the tower's epsilon {vision.layer_norm_eps:g} for the projector's norms, whose own is "
            f"{found.norm_eps:g}", HYBRID,
        )  # fmt: skip
    return found


def tower_name(name: str, vision: VisionSpec) -> str | None:
    """The GGUF name of a vision encoder's tensor; None where no feature depends on it.

    Raises:
        Unsupported: libmtmd has no such tensor.
    """
    plugin, held = plugins.vision(vision), plugins.gguf_tower(vision)
    if name in held.outside:
        return held.outside[name]
    match = re.fullmatch(rf"{re.escape(plugin.layers(vision) or '')}(\d+)\.(.+)\.(weight|bias)", name)
    if name.startswith(plugin.unused(vision)) or (match and int(match[1]) >= vision.used_layers):
        return None
    if match and match[2] in held.inside:
        return f"v.blk.{match[1]}.{held.inside[match[2]]}.{match[3]}"
    raise Unsupported(f"an mmproj cannot hold the vision encoder's tensor {name}", HYBRID)


def fields(spec: Spec, type_name: str) -> dict[str, Field]:
    """Metadata of the mmproj."""
    vision, projector = spec.vision, projector_of(spec)
    found: dict[str, Field] = {
        "general.type": ("str", "mmproj"),
        "general.name": ("str", spec.name),
        "general.file_type": ("u32", _FILE_TYPES[type_name]),
        "clip.has_vision_encoder": ("bool", True),
        "clip.projector_type": ("str", projector.projector_type),
        "clip.vision.image_size": ("u32", vision.image_size),
        "clip.vision.patch_size": ("u32", vision.patch_size),
        "clip.vision.embedding_length": ("u32", vision.hidden_size),
        "clip.vision.feed_forward_length": ("u32", vision.intermediate_size),
        "clip.vision.block_count": ("u32", vision.used_layers),
        "clip.vision.projection_dim": ("u32", spec.projector.out_features),
        "clip.vision.attention.head_count": ("u32", vision.num_heads),
        "clip.vision.attention.layer_norm_epsilon": ("f32", vision.layer_norm_eps),
        "clip.vision.image_mean": ("f32[]", list(spec.image_processor.mean)),
        "clip.vision.image_std": ("f32[]", list(spec.image_processor.std)),
    }
    return found | plugins.gguf_tower(vision).fields | projector.fields | _ACTIVATIONS[vision.hidden_act]


def entries(checkpoint: Checkpoint, type_name: str) -> list[Entry]:
    """The file's tensors: matrices in ``type_name``, vectors F32, depthwise kernels F16.

    Where that is q8_0, the patch embedding and matrices whose rows are no whole blocks are F16.
    """
    spec = checkpoint.spec
    projector, held = projector_of(spec), plugins.gguf_tower(spec.vision)
    found: list[Entry] = []
    for name, tensor in checkpoint.tensors["vision"].items():
        target = tower_name(name, spec.vision)
        if target is not None:
            shape = tuple(size for size in tensor.shape if size != 1) if len(tensor.shape) == 3 else tensor.shape
            exact = target in held.f32 or (target in held.kernels and type_name != "f16")
            kind = "f32" if exact else _type(shape, type_name)
            source = _values(tensor).reshape(shape)[held.rows[target]] if target in held.rows else tensor
            found.append(Entry(target, shape, kind, source))
    for name, tensor in checkpoint.tensors["projector"].items():
        if name not in projector.tensors:
            raise Unsupported(f"libmtmd's {projector.projector_type} has no tensor {name}", HYBRID)
        shape = tuple(size for size in tensor.shape if size != 1) if len(tensor.shape) == 4 else tensor.shape
        kind = "f16" if name in projector.f16 else _type(shape, type_name)
        found.append(Entry(projector.tensors[name], shape, kind, tensor))
    return found


def _values(tensor: LazyTensor) -> F32:
    return to_float32(tensor.read_into(np.empty(tensor.nbytes, np.uint8)), tensor.dtype).reshape(tensor.shape)


def _type(shape: tuple[int, ...], wanted: str) -> str:
    if len(shape) == 1:
        return "f32"
    whole = len(shape) == 2 and shape[-1] % TYPES[wanted].block == 0
    return wanted if whole or TYPES[wanted].block == 1 else "f16"


def file(checkpoint: Checkpoint, type_name: str) -> GgufFile:
    """The whole file, not yet written.

    Raises:
        Unsupported: libmtmd cannot hold it, or would compute it wrongly.
    """
    spec = checkpoint.spec
    said = families.gguf(checkpoint.family, spec)
    tensors, metadata = entries(checkpoint, type_name), {**fields(spec, type_name), **said.fields}
    metadata |= gguf_about.fields(checkpoint, "vision", "projector")
    return GgufFile(f"mmproj-{spec.name}-{type_name.upper()}.gguf", ARCHITECTURE, metadata, tensors)
