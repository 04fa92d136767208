"""What the layouts of InternVL share: its tower, its projector, and what stands for an image in a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import whole
from vlmexport.checkpoint.image_text import ImageText
from vlmexport.checkpoint.spec import Colour, ProjectorSpec, Spec, VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.bundles import Mmproj
from vlmexport.families.reading.defaults import refuse_unread
from vlmexport.families.reading.published import Shapes

IMAGE_TEXT = ImageText(
    tile="",
    row_end="",
    whole="",
    alone="",
    end="</img>",
    start="<img>",
    token="<IMG_CONTEXT>",
)
"""All visual tokens of an image in a row, whatever views they are of."""

COLOURS: tuple[Colour, Colour] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and deviation."""

LANGUAGES = ("llama", "qwen2", "qwen3")

_OTHER_GRIDS = (
    "stock llama.cpp cuts a picture otherwise than this model: one that is no larger than a tile is one view there, "
    "others are padded to a grid that another rule chooses; vlmexport runs the bundle with the model's own views"
)

_MODEL_TYPE = "internvl_vision"
_READ = (
    "image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "hidden_act", "layer_norm_eps", "attention_bias", "layer_scale_init_value",
)  # fmt: skip
_LARGE = {"use_qk_norm": (False, "queries and keys that are normed"), "norm_type": ("layer_norm", "RMSNorm")}
"""What the tower of 6B has otherwise: key → the value of 300M, what another one means."""

_CURE = "config and weights belong to different models: fix one of them"


def tower(given: Mapping[str, Any], shapes: Shapes, path: Path, select_layer: Any) -> VisionSpec:
    """InternViT's Spec. Sizes are read from the tensors; a config that says otherwise is an error.

    Args:
        given: the section of the tower, with the defaults of its class, in the terms of ``InternVLVisionConfig``.
        shapes: of the tower's tensors.
        path: the file that says so, for messages.
        select_layer: which hidden state the features are.

    Raises:
        CheckpointError: config and tensors differ, or a size is no number.
        Unsupported: the tower of 6B, or something that is not known.
    """
    for key, (known, what) in _LARGE.items():
        if given[key] != known:
            raise Unsupported(
                f"{path}: {what} (vision_config.{key} is {given[key]!r}), as InternViT of 6B has, is not known",
                "use a model with InternViT of 300M: InternVL up to 8B has it",
            )
    if given["use_mean_pooling"] is not True:
        raise Unsupported(f"{path}: a norm behind InternViT (use_mean_pooling) is not known", "known: true")
    refuse_unread(given, _MODEL_TYPE, _READ, f"{path}, vision_config")
    if not isinstance(select_layer, int):
        raise Unsupported(f"{path}: features of several layers ({select_layer}) are not known", "known: one layer, -1")
    sizes = _measured(shapes, path)
    try:
        told = {key: _side(given, key) if key.endswith("_size") else whole(given, key) for key in sizes}
        heads, epsilon = whole(given, "num_attention_heads"), float(given["layer_norm_eps"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: vision_config garbles {error}", "use the published config.json") from error
    for key, value in sizes.items():
        if told[key] != value:
            raise CheckpointError(f"{path}: vision_config.{key} is {told[key]}, the tensors say {value}", _CURE)
    spec = VisionSpec(
        kind="internvit",
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=heads,
        hidden_act=str(given["hidden_act"]),
        layer_norm_eps=epsilon,
        select_layer=select_layer,
        section={"attention_bias": given["attention_bias"]},
    )
    if heads < 1 or spec.hidden_size % heads:
        raise CheckpointError(f"{path}: a tower {spec.hidden_size} wide cannot have {heads} heads", _CURE)
    if not 0 <= spec.used_layers <= spec.num_layers:
        raise CheckpointError(f"{path}: layer {select_layer} of {spec.num_layers} is selected", _CURE)
    return spec


def projector(encoder: VisionSpec, width: int, ratio: Any, path: Path) -> ProjectorSpec:
    """Squares of 2x2 features become one token.

    Args:
        width: of the language model.
        ratio: ``downsample_ratio``.

    Raises:
        Unsupported: other squares.
    """
    if ratio != 0.5:
        raise Unsupported(f"{path}: downsample_ratio is {ratio!r}, which is not known", "known: 0.5")
    return ProjectorSpec("pixel_shuffle", encoder.hidden_size, width, encoder.num_patches)


def gguf(spec: Spec) -> Mmproj:
    """libmtmd chooses other grids than the model, and pads a picture where the model stretches it: it is told how many
    tiles there may be, and a note tells the rest."""
    pixels = spec.image_processor
    most = pixels.max_patches if pixels.do_image_splitting else 1
    tiles = {"clip.vision.preproc_min_tiles": pixels.min_patches, "clip.vision.preproc_max_tiles": most}
    return Mmproj({key: ("u32", value) for key, value in tiles.items()}, (_OTHER_GRIDS,), ("<img>", "</img>"))


def _measured(shapes: Shapes, path: Path) -> dict[str, int]:
    names = (
        "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
        "encoder.layer.0.mlp.fc1.weight",
    )  # fmt: skip
    missing = [name for name in names if not shapes.get(name)]
    if missing:
        raise CheckpointError(f"{path.parent}: the vision tower lacks the tensor {missing[0]}", "download it again")
    patch, positions, inner = (shapes[name] for name in names)
    if len(patch) != 4 or len(positions) != 3:
        raise CheckpointError(f"{path.parent}: {names[0]} has the shape {list(patch)}", "it is no InternViT")
    layers = [re.match(r"encoder\.layer\.(\d+)\.", name) for name in shapes]
    return {
        "hidden_size": patch[0],
        "patch_size": patch[2],
        "image_size": round((positions[1] - 1) ** 0.5) * patch[2],
        "intermediate_size": inner[0],
        "num_hidden_layers": 1 + max(int(layer[1]) for layer in layers if layer),
    }


def _side(given: Mapping[str, Any], key: str) -> int:
    """``448`` or ``[448, 448]`` → 448.

    Raises:
        TypeError: neither.
    """
    value = given[key]
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1:
        raise TypeError(f"{key} ({value!r} is no square)")
    return whole({key: sides.pop()}, key)
