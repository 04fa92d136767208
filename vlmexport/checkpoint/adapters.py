"""Weights that still have an adapter beside them: what peft saves of a model before it is merged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vlmexport.errors import CheckpointError

_BESIDE = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|original_module)\.")


def refuse_adapter(path: Path, names: Iterable[str]) -> None:
    """Raise where tensors are an adapter's, or those that one was put beside.

    Raises:
        CheckpointError: names the first of them.
    """
    found = next((name for name in names if _BESIDE.search(name)), None)
    if found is not None:
        raise CheckpointError(
            f"{path} holds an adapter that is not merged ({found})",
            "save what peft's merge_and_unload() gives, and pass its folder (docs/checkpoints.md)",
        )
