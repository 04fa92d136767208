"""MODEL on the command line: a folder, a Hub id, or ``demo``."""

from __future__ import annotations

import re
from pathlib import Path

from vlmexport.checkpoint.layout import Checkpoint, open_checkpoint
from vlmexport.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.json", "*.safetensors", "*.bin", "tokenizer.model"]


def demo_folder() -> Path:
    """The trained model that ships with the package."""
    return Path(__file__).parents[1] / "demo" / "model"


def open_model(model: str) -> Checkpoint:
    """Open MODEL; what it was called is remembered as the checkpoint's origin.

    Raises:
        CheckpointError: it is missing, damaged, or the Hub does not give it.
        Unsupported: a model type that is not known.
    """
    folder = locate(model)
    return open_checkpoint(folder, None if Path(model).exists() else model)


def locate(model: str) -> Path:
    """The folder of a model; a Hub id is downloaded into the Hub's own cache.

    Raises:
        CheckpointError: no such folder, or the Hub does not give it.
    """
    if model == "demo":
        return demo_folder()
    path = Path(model)
    if path.exists() or not _HUB_ID.fullmatch(model):
        if not path.exists():
            raise CheckpointError(f"{model} does not exist", "pass the folder of a checkpoint, a Hub id, or `demo`")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} is no folder here, and the Hub did not give it ({reason})", "check the name, or the connection"
        ) from error
