"""Where a checkpoint's tokenizer is: in its own folder, or where its config says."""

from __future__ import annotations

from pathlib import Path

from vlmexport.checkpoint.hub import download, is_hub_id
from vlmexport.console import QUIET, Console
from vlmexport.errors import CheckpointError
from vlmexport.processing.tokenizer_files import FILES, VOCABULARIES


def tokenizer_folder(named: str | None, checkpoint: Path, console: Console = QUIET) -> Path:
    """The folder that holds a tokenizer's files.

    Args:
        named: what the config names, for a checkpoint without one: a folder, from the checkpoint's own or from here, or
            a Hub id, of which the tokenizer's files alone are fetched. None where every such checkpoint carries its.

    Raises:
        CheckpointError: it is nowhere; the message says what to copy.
    """
    if named is None or any((checkpoint / name).is_file() for name in VOCABULARIES):
        return checkpoint
    for path in (checkpoint / named, Path(named)):
        if path.is_dir():
            return path
    missing = f"{checkpoint} holds no tokenizer, which is that of {named}"
    cure = f"copy tokenizer.json and tokenizer_config.json of {named} into the folder"
    if not is_hub_id(named):
        raise CheckpointError(missing, cure)
    try:
        return download(named, console, f"the tokenizer that {checkpoint / 'config.json'} names", FILES)
    except CheckpointError as error:
        raise CheckpointError(f"{missing}: {error.what}", f"{error.cure}; or {cure}") from error
