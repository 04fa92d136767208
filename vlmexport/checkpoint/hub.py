"""Folders from the Hugging Face Hub, through its own cache."""

from __future__ import annotations

import re
from pathlib import Path

from vlmexport.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.json", "*.safetensors", "*.bin", "tokenizer.model", "README.md"]


def is_hub_id(text: str) -> bool:
    """``owner/name``."""
    return _HUB_ID.fullmatch(text) is not None


def download(hub_id: str) -> Path:
    """The folder of a Hub id.

    Raises:
        CheckpointError: the Hub does not give it; the message says why.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{hub_id} is no folder here, and the Hub did not give it ({reason})", "check the name, or the connection"
        ) from error
