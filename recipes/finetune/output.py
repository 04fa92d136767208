"""The checkpoint that comes out: the layout, the types and the tokenizer of the one that went in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vlmexport.artifact.bundle.staging import staged
from vlmexport.checkpoint.documents import read_object
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.errors import UsageError
from vlmexport.model import VLM
from vlmexport.processing import tokenizer_files
from vlmexport.source.checkpoint import Checkpoint

MARK = "finetune.json"
"""How a checkpoint was trained, and what tells its folder from others."""

_BESIDE = (
    *tokenizer_files.FILES,
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "chat_template.jinja",
)  # fmt: skip
_SIZES = {
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "intermediate_size", "tie_word_embeddings": "tie_word_embeddings",
}  # fmt: skip


def write(checkpoint: Checkpoint, vlm: VLM, folder: Path, facts: dict[str, Any], force: bool) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        checkpoint: that ``vlm`` was loaded from; what was not trained is taken from its files.
        facts: for ``finetune.json``.
        force: replace one that is there.

    Raises:
        UsageError: the folder exists, there is no room, or a weight does not fit into the checkpoint's type.
    """
    tensors = published(checkpoint, vlm)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with staged(folder, force, needed, MARK) as new:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        for name in _BESIDE:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, new / name)
        _write_json(new / "config.json", config(checkpoint, vlm.spec.language))
        _write_json(new / MARK, facts)


def published(checkpoint: Checkpoint, vlm: VLM) -> dict[str, torch.Tensor]:
    """Published name → value in the type that it had. A tower in its own folder stays there."""
    state, found = vlm.state_dict(), {}
    for component, tensors in checkpoint.tensors.items():
        if component == "vision" and checkpoint.tower is not None:
            continue
        for canonical, tensor in tensors.items():
            old = tensor.torch()
            if component == "vision":
                found[tensor.name] = old.clone()
                continue
            if canonical == "lm_head.weight" and vlm.spec.language.tie_word_embeddings:
                continue
            value = state[f"{component}.{canonical}"].to(old.dtype).contiguous()
            if not value.isfinite().all():
                raise UsageError(
                    f"{tensor.name} holds values that {tensor.dtype} cannot hold", "train with a smaller --rate"
                )
            found[tensor.name] = value.clone()
    return found


def config(checkpoint: Checkpoint, language: LanguageSpec) -> dict[str, Any]:
    """``config.json`` with the sizes that changed, and the tower's place as an absolute one."""
    document = read_object(checkpoint.path / "config.json")
    before = checkpoint.spec.language
    changed = {key: getattr(language, name) for key, name in _SIZES.items()
               if getattr(language, name) != getattr(before, name)}  # fmt: skip
    if "num_attention_heads" in changed:
        changed["head_dim"] = language.head_dim  # it follows from their number only as long as there are all of them
    document.get("text_config", document).update(changed)
    if checkpoint.tower is not None:
        document["mm_vision_tower"] = checkpoint.tower.origin
    return document


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8", newline="\n")
