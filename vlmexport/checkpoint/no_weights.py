"""A folder without weights that can be read: what it holds instead, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmexport.errors import CheckpointError

_HOLDS: Sequence[tuple[str, str, str]] = (
    ("*.incomplete", "a download that was not finished", "download it again"),
    ("*.part", "a download that was not finished", "download it again"),
    ("*.crdownload", "a download that was not finished", "download it again"),
    ("*.aria2", "a download that was not finished", "download it again"),
    ("model-*-of-*.safetensors", "shards without their index", "put model.safetensors.index.json beside them"),
    ("pytorch_model-*-of-*.bin", "shards without their index", "put pytorch_model.bin.index.json beside them"),
    ("mm_projector.bin", "a projector alone, as pretraining leaves it",
     "put it into its language model, save both together, and pass that folder"),
    ("non_lora_trainables.bin", "a part of a LoRA training",
     "merge adapter and projector into the base model (docs/checkpoints.md)"),
    ("zero_to_fp32.py", "a checkpoint of DeepSpeed", "run its zero_to_fp32.py, and pass what it writes"),
    ("checkpoint-*", "a trainer's checkpoints", "pass one of them"),
    ("*.gguf", "a model that is a GGUF already", "pass the float model that it was made from"),
    ("*.onnx", "a model that is ONNX already", "pass the float model that it was made from"),
    ("consolidated*", "weights of another format", "convert them with transformers' script for this model"),
    ("*.msgpack", "weights of another format", "load them with transformers and save them as safetensors"),
    ("*.h5", "weights of another format", "load them with transformers and save them as safetensors"),
    ("*.safetensors", "weights under another name", "call them model.safetensors, if they are the whole model"),
    ("*.bin", "weights under another name", "call them pytorch_model.bin, if they are the whole model"),
)  # fmt: skip
"""Pattern of a name, what such a file says of the folder, the cure; the first that is there counts."""


def no_weights(folder: Path) -> CheckpointError:
    """The error of a folder that has none."""
    for pattern, what, cure in _HOLDS:
        name = min((path.name for path in folder.glob(pattern)), default=None)
        if name is not None:
            return CheckpointError(f"{folder} has no weights: it holds {what} ({name})", cure)
    return CheckpointError(
        f"{folder} has no weights",
        "expected model.safetensors, pytorch_model.bin or an index of shards beside config.json",
    )
