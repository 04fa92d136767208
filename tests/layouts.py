"""A tiny random checkpoint of every published layout, with what each of them is known to differ in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaTokenizer

from tests.checkpoints import (
    canonical_state,
    hf_config,
    hf_new,
    hf_old,
    original,
    original_bare,
    published,
    tiny_spec,
    write_checkpoint,
    write_clip,
    write_json,
    write_preprocessor,
)
from vlmexport.checkpoint.spec import Spec

LLAVA = {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
MARKS = {"<im_patch>": 384, "<im_start>": 385, "<im_end>": 386}


def short_spec(projector: str = "mlp2x_gelu", **vision: Any) -> Spec:
    """One decoder layer; a vocabulary padded beyond the tokenizer's 384 pieces."""
    spec = tiny_spec(projector, vocab_size=448, num_layers=1)
    spec = replace(spec, vision=replace(spec.vision, **vision))
    return replace(spec, projector=replace(spec.projector, in_tokens=spec.vision.num_patches))


def v1(folder: Path) -> tuple[Path, Path | None]:
    """MobileVLM V1, its tower in its own folder."""
    spec = short_spec("ldpnet")
    state = canonical_state(spec)
    tower = write_clip(folder / "clip", spec, state.pop("vision"))
    return write_checkpoint(folder / "v1", spec, state=published(state), pieces=384), tower


def llava(folder: Path) -> tuple[Path, Path | None]:
    """LLaVA-1.5's own layout in shards of float32, its tower without ``vision_model.``."""
    spec = short_spec()
    state = published(canonical_state(spec, dtype=torch.float32), original_bare)
    return write_checkpoint(folder / "llava", spec, state=state, pieces=384, shards=2, **LLAVA), None


def llava_hf(folder: Path, naming: Callable[[str, str], str] = hf_new) -> tuple[Path, Path | None]:
    """LLaVA-1.5 of transformers: ``<image>`` and ``<pad>`` added, centre crop."""
    spec = short_spec(select_layer=-1)
    state = published(canonical_state(spec), naming)
    path = write_checkpoint(folder / "hf", spec, state=state, pieces=384, config=hf_config(spec))
    write_preprocessor(path, spec)
    decoder = {str(i): {"content": text, "special": True} for i, text in ((384, "<image>"), (385, "<pad>"))}
    write_json(path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "pad_token": "<pad>"})
    return path, None


def marked(folder: Path) -> tuple[Path, Path | None]:
    """An image between ``<im_start>`` and ``<im_end>``, ``tokenizer.json`` alone, a layer earlier, bfloat16, no pad."""
    spec = short_spec("ldpnetv2", select_layer=-3)
    state = published(canonical_state(spec, dtype=torch.bfloat16), original)
    changes = {"mm_use_im_start_end": True, "mm_use_im_patch_token": True, "image_aspect_ratio": "square"}
    path = write_checkpoint(folder / "marked", spec, state=state, pieces=384, kind="bin", **changes)
    legacy_json(path)
    write_json(path / "added_tokens.json", MARKS)
    write_json(path / "special_tokens_map.json", {"additional_special_tokens": list(MARKS)})
    return path, None


def legacy_json(path: Path) -> None:
    """``tokenizer.json`` in place of ``tokenizer.model``."""
    LlamaTokenizer.from_pretrained(path).save_pretrained(path)
    document = json.loads((path / "tokenizer.json").read_text())
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    document |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    write_json(path / "tokenizer.json", document)
    (path / "tokenizer_config.json").unlink()
    (path / "tokenizer.model").unlink()


def linear(folder: Path) -> tuple[Path, Path | None]:
    """LLaVA with one linear layer, and the class token kept."""
    spec = short_spec("linear", select_feature="cls_patch")
    path = write_checkpoint(folder / "linear", spec, state=published(canonical_state(spec)), pieces=384, **LLAVA)
    return path, None


def write_all(folder: Path) -> None:
    """``v1`` (its tower in ``clip``), ``v2``, ``llava``, ``hf``, ``old/hf`` and ``marked``."""
    write_checkpoint(folder / "v2", tiny_spec("ldpnetv2"))
    for write in (v1, llava, llava_hf, marked):
        write(folder)
    llava_hf(folder / "old", hf_old)
