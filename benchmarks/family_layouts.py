"""What ``families.py`` runs: a tiny checkpoint of each published layout, and changes to them that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests import checkpoints, fast_vlm, internvl, layouts, nano_vlm, smolvlm
from vlmexport.design import Design, create


@dataclass(frozen=True)
class Tiny:
    """A checkpoint on disk, the folder of its vision tower where that is not inside, and the folder that transformers
    loads the same weights from (None: transformers has no such model), or the model put together of its parts."""

    path: Path
    tower: Path | None = None
    theirs: Path | None = None
    parts: nano_vlm.NanoVlm | None = None


@dataclass(frozen=True)
class Layout:
    """A published layout of a file in ``vlmexport/families``. ``side`` is that of the published models' images in
    pixels, where they are one square."""

    family: str
    name: str
    write: Callable[[Path], Tiny]
    side: int | None = None


def _mobilevlm_v2(folder: Path) -> Tiny:
    return Tiny(checkpoints.write_checkpoint(folder / "v2", checkpoints.tiny_spec("ldpnetv2", num_layers=1)))


def _mobilevlm_v1(folder: Path) -> Tiny:
    return Tiny(*layouts.v1(folder))


def _llava(folder: Path) -> Tiny:
    """Beside it the same weights under the names of transformers."""
    path, _ = layouts.llava(folder)
    spec = layouts.short_spec()
    state = checkpoints.published(checkpoints.canonical_state(spec, dtype=torch.float32), checkpoints.hf_new)
    theirs = checkpoints.write_checkpoint(
        folder / "theirs", spec, state=state, pieces=384, config=checkpoints.hf_config(spec)
    )
    checkpoints.write_preprocessor(theirs, spec)
    _mark_image(theirs)
    return Tiny(path, theirs=theirs)


def _llava_hf(folder: Path) -> Tiny:
    path, _ = layouts.llava_hf(folder)
    return Tiny(path, theirs=path)


def _mark_image(folder: Path) -> None:
    added = {"384": {"content": "<image>", "special": True}, "385": {"content": "<pad>", "special": True}}
    checkpoints.write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, "pad_token": "<pad>"})


def _fast_vlm(folder: Path) -> Tiny:
    fast_vlm.write_transformers(folder / "hf")
    return Tiny(folder / "hf", theirs=folder / "hf")


def _fast_vlm_apple(folder: Path) -> Tiny:
    fast_vlm.write_transformers(folder / "hf")
    return Tiny(fast_vlm.write_apple(folder / "apple", folder / "hf"), theirs=folder / "hf")


def _tiles(kind: str) -> Callable[[Path], Tiny]:
    def write(folder: Path) -> Tiny:
        smolvlm.write_model(folder / kind, kind)
        return Tiny(folder / kind, theirs=folder / kind)

    return write


def _nano(generation: str) -> Callable[[Path], Tiny]:
    def write(folder: Path) -> Tiny:
        return Tiny(folder / "nano", parts=nano_vlm.write(folder / "nano", generation))

    return write


def _internvl(folder: Path) -> Tiny:
    internvl.write_model(folder / "hf", "qwen3")
    return Tiny(folder / "hf", theirs=folder / "hf")


def _internvl_chat(folder: Path) -> Tiny:
    model, processor = internvl.write_model(folder / "hf", "qwen2")
    return Tiny(internvl.write_own(folder / "own", model, processor), theirs=folder / "hf")


def _design(vision: str, projector: str, side: int) -> Callable[[Path], Tiny]:
    def write(folder: Path) -> Tiny:
        create(Design(vision, projector, "llama:tiny", image_size=side), folder / "design")
        return Tiny(folder / "design")

    return write


LAYOUTS = (
    Layout("original", "MobileVLM V1", _mobilevlm_v1),
    Layout("original", "MobileVLM V2", _mobilevlm_v2, 336),
    Layout("original", "LLaVA-1.5, its own layout", _llava, 336),
    Layout("llava_hf", "LLaVA-1.5, transformers' layout", _llava_hf, 336),
    Layout("fast_vlm", "FastVLM, transformers' layout", _fast_vlm, 1024),
    Layout("llava_qwen2", "FastVLM, Apple's layout", _fast_vlm_apple, 1024),
    Layout("idefics3", "Idefics3, SmolVLM", _tiles("idefics3")),
    Layout("smolvlm", "SmolVLM2", _tiles("smolvlm")),
    Layout("nanovlm", "nanoVLM 222M: one square", _nano("v0.1")),
    Layout("nanovlm", "nanoVLM: a grid of squares", _nano("whole")),
    Layout("internvl", "InternVL, transformers' layout", _internvl),
    Layout("internvl_chat", "InternVL, OpenGVLab's layout", _internvl_chat),
    Layout("design", "design: CLIP, LDPNetV2, Llama", _design("clip:tiny", "ldpnetv2", 168)),
    Layout("design", "design: EfficientNet, Q-Former, Llama", _design("timm:test_efficientnet", "qformer16x64", 128)),
)

Change = Callable[[dict[str, Any]], None]


def _set(*path: str, value: object) -> Change:
    """A value at a path of keys."""

    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


def _unknown(config: dict[str, Any]) -> None:
    config.update(model_type="qwen2_vl", architectures=["Qwen2VLForConditionalGeneration"])


REFUSED: tuple[tuple[str, str, Change], ...] = (
    ("MobileVLM V2", "a family that has no file", _unknown),
    ("LLaVA-1.5, its own layout", "images cut in tiles", _set("image_aspect_ratio", value="anyres")),
    ("LLaVA-1.5, transformers' layout", "another language model", _set("text_config", "model_type", value="mistral")),
    ("LLaVA-1.5, transformers' layout", "another tower",
     _set("vision_config", "model_type", value="siglip_vision_model")),
    ("LLaVA-1.5, transformers' layout", "another projector", _set("projector_hidden_act", value="relu")),
    ("FastVLM, transformers' layout", "a tower as it is trained", _set("vision_config", "model_args", value={})),
    ("FastVLM, Apple's layout", "another tower", _set("mm_vision_tower", value="google/siglip-so400m-patch14-384")),
    ("FastVLM, Apple's layout", "a sliding window", _set("use_sliding_window", value=True)),
    ("Idefics3, SmolVLM", "another language model", _set("text_config", "model_type", value="mistral")),
    ("Idefics3, SmolVLM", "a resampler", _set("text_config", "use_resampler", value=True)),
    ("SmolVLM2", "another scale factor", _set("scale_factor", value=2)),
    ("nanoVLM 222M: one square", "a class token", _set("vit_cls_flag", value=True)),
    ("nanoVLM: a grid of squares", "squares without marks", _set("max_img_size", value=320)),
    ("InternVL, transformers' layout", "the tower of 6B", _set("vision_config", "use_qk_norm", value=True)),
    ("InternVL, OpenGVLab's layout", "another language model",
     _set("llm_config", "architectures", value=["Phi3ForCausalLM"])),
    ("InternVL, OpenGVLab's layout", "another conversation", _set("template", value="internlm-chat")),
    ("InternVL, OpenGVLab's layout", "the tower of 6B", _set("vision_config", "norm_type", value="rms_norm")),
    ("InternVL, transformers' layout", "another language model", _set("text_config", "model_type", value="phi3")),
)  # fmt: skip
"""Layout, what was changed in its config, how."""


def changed(tiny: Tiny, change: Change, folder: Path) -> Path:
    """A copy of the checkpoint with another config."""
    shutil.copytree(tiny.path, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
