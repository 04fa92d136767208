"""MODEL on the command line: a folder, a Hub id, or ``demo``."""

from __future__ import annotations

from pathlib import Path

from vlmexport.checkpoint.hub import download, is_hub_id, pinned
from vlmexport.console import QUIET, Console
from vlmexport.errors import CheckpointError
from vlmexport.extras import require
from vlmexport.source.checkpoint import Checkpoint, FoundAt, open_checkpoint
from vlmexport.text import is_utf8


def demo_folder() -> Path:
    """The trained model that ships with the package."""
    return Path(__file__).parents[1] / "demo" / "model"


def open_model(model: str, vision_tower: str | None = None, console: Console = QUIET) -> Checkpoint:
    """Open MODEL; what it was called is remembered as the checkpoint's origin, a Hub id with the commit it stands for.

    Args:
        vision_tower: a CLIP folder, for a checkpoint that does not carry its tower.
        console: where downloads are told of.

    Raises:
        CheckpointError: it is missing, damaged, or the Hub does not give it.
        MissingDependency: this installation only runs bundles.
        Unsupported: a model type that is not known.
    """
    require("export")
    folder = locate(model, console)
    origin = None if Path(model).exists() else pinned(model, folder)
    return open_checkpoint(folder, origin, vision_tower, console)


def open_again(found: FoundAt) -> Checkpoint:
    """Open a checkpoint as it was; raises what ``open_model`` does."""
    return open_model(found.model, found.vision_tower).within(found.max_views)


def locate(model: str, console: Console = QUIET) -> Path:
    """The folder of a model; a Hub id is downloaded into the Hub's own cache.

    Raises:
        CheckpointError: no such folder, or the Hub does not give it.
    """
    if model == "demo":
        return demo_folder()
    path = Path(model)
    if path.exists():
        if not is_utf8(folder := str(path.resolve())):
            raise CheckpointError(f"the name of {folder!a} is no UTF-8", "rename the folder")
        return path
    if not is_hub_id(model):
        raise CheckpointError(f"{model} does not exist", "pass the folder of a checkpoint, a Hub id, or `demo`")
    return download(model, console)
