"""Folders from the Hugging Face Hub, through its own client and into its own cache."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from vlmexport.checkpoint.hub_files import wanted
from vlmexport.checkpoint.tensors import weight_files
from vlmexport.console import QUIET, Advance, Console
from vlmexport.errors import CheckpointError, first_line

CONFIG = "config.json"
_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_HUB_ID = re.compile(rf"({_NAME})(?:@([\w.-][\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A repository; ``revision`` is a branch, a tag or a commit, the main branch where it is None."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def hub_id(text: str) -> HubId | None:
    """``owner/name`` or ``owner/name@revision``; None where a text is neither."""
    match = _HUB_ID.fullmatch(text)
    return HubId(match[1], match[2]) if match else None


def is_hub_id(text: str) -> bool:
    """Whether a text is one."""
    return hub_id(text) is not None


def pinned(text: str, folder: Path) -> str:
    """A Hub id with the commit that its folder holds, so that it means the same for ever.

    Args:
        folder: of the Hub's cache, which names each snapshot by its commit.
    """
    found = hub_id(text)
    return str(HubId(found.name, folder.name)) if found else text


def name_of(origin: str) -> str:
    """What a model is called: the repository's name of a Hub id, else the last part."""
    found = hub_id(origin)
    return Path(found.name if found else origin).name


def download(text: str, console: Console = QUIET, what: str = "", only: Collection[str] = ()) -> Path:
    """The folder of a Hub id; what was fetched before is not fetched again.

    Args:
        what: what it is, where that is worth a note: its name and size are told before it is fetched.
        only: names of files; where there are none, all that a checkpoint is made of.

    Raises:
        CheckpointError: the Hub does not give it; the message says why, and what to do.
    """
    asked = hub_id(text)
    if asked is None:
        raise CheckpointError(f"{text} is no Hub id", "write it like owner/name or owner/name@revision")
    try:
        return _fetched(asked, console, what, only)
    except Exception as error:  # the client's, and those of the HTTP library below it, which changes with its version
        from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

        wrong = isinstance(error, HFValidationError | RevisionNotFoundError)
        if wrong or (found := _whole(asked, only)) is None:
            raise _told(asked, error) from error
        console.note(f"{asked} is taken from the Hub's cache: {_told(asked, error).what}")
        return found


def _fetched(asked: HubId, console: Console, what: str, only: Collection[str]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi(library_name="vlmexport").model_info(asked.name, revision=asked.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    names = sorted(sizes.keys() & set(only)) if only else wanted(sizes)
    if not names or info.sha is None:
        raise CheckpointError(f"{asked} holds no model", "pass another repository")
    missing = [name for name in names if _place(asked.name, name, info.sha) is None]
    if what:
        where = "fetched from the Hub" if missing else "from the Hub's cache"
        console.note(f"{what}: {asked}, {decimal(sum(sizes[name] for name in names))}, {where}")
    first = CONFIG if CONFIG in names else names[0]  # a gate shows there, before anything large
    known = _place(asked.name, first, asked.revision)
    todo = [] if known and known.name == info.sha else [(first, asked.revision)]  # the cache learns what a branch is
    todo += [(name, info.sha) for name in missing if (name, asked.revision) not in todo]
    total = sum(sizes[name] for name in missing)
    with (console if missing else QUIET).progress(f"fetching {asked}", total, "bytes") as advance:
        bar: Any = _bar(advance)
        for name, revision in todo:
            hf_hub_download(asked.name, name, revision=revision, tqdm_class=bar, library_name="vlmexport")
    folder = _place(asked.name, first, info.sha)
    if folder is None:
        raise CheckpointError(f"{asked} changed while it was fetched", "run it again")
    return folder


def _bar(advance: Advance) -> type:
    """What the client takes for a class of ``tqdm`` bars, one a file: it tells our own of bytes that were written."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            advance(initial)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, amount: float | None = 1) -> None:
            advance(int(amount or 0))

        def nothing(self, *_: Any, **__: Any) -> None:
            pass

        close = update_transfer = set_postfix_str = set_transfer_postfix_str = nothing

    return Bar


def _whole(asked: HubId, only: Collection[str]) -> Path | None:
    """The folder of the cache, where a download of it was finished; of some files, where one of them is there."""
    if only:
        return next(filter(None, (_place(asked.name, name, asked.revision) for name in sorted(only))), None)
    folder = _place(asked.name, CONFIG, asked.revision)
    try:
        return folder if folder is not None and weight_files(folder) else None
    except CheckpointError:
        return None


def _place(name: str, file: str, revision: str | None) -> Path | None:
    """The folder of the cache that holds a file of a revision."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _told(asked: HubId, error: Exception) -> CheckpointError:
    """What happened, and the cure that works."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{asked.name}"
    http: type = errors.HfHubHTTPError.__bases__[0]  # the HTTP library's own, of lost connections too
    again = f"fetching {asked} failed"
    match error:
        case CheckpointError():
            return error
        case errors.HFValidationError():
            return CheckpointError(f"{asked} is no folder here, and no Hub id ({first_line(error)})", "pass owner/name")
        case errors.GatedRepoError():
            cure = f"accept its licence at {page}, then `hf auth login`"
            return CheckpointError(f"{asked} is gated: the Hub gives it to those who accepted its licence", cure)
        case errors.RevisionNotFoundError():
            return CheckpointError(
                f"{asked.name} has no revision {asked.revision}", f"see its branches, tags and commits at {page}"
            )
        case errors.RepositoryNotFoundError():
            what = f"{asked} is no folder here, and the Hub has no such repository, or none that you may see"
            return CheckpointError(what, "check the name; if it is private, `hf auth login`")
        case errors.OfflineModeIsEnabled():
            what = f"{asked} is no folder here, and not in the Hub's cache, which HF_HUB_OFFLINE leaves"
            return CheckpointError(what, "unset HF_HUB_OFFLINE to fetch it, or pass a folder")
        case errors.DisabledRepoError():
            return CheckpointError(f"{asked} was disabled on the Hub", "take another repository")
        case errors.HfHubHTTPError():
            code = error.response.status_code
            cure = "`hf auth login`" if code in (401, 403) else "try again in a few minutes"
            return CheckpointError(f"{again}: the Hub answered HTTP {code} ({first_line(error)})", cure)
        case errors.LocalEntryNotFoundError() | ConnectionError():
            pass
        case OSError() if not isinstance(error, http):
            return CheckpointError(
                f"{again} ({first_line(error)})", "free some space, or set HF_HOME to another folder"
            )
        case _ if not isinstance(error, http):
            return CheckpointError(f"{again} ({first_line(error)})", "try again, or download it and pass the folder")
    what = f"{asked} is no folder here, and the Hub ({constants.ENDPOINT}) cannot be reached ({first_line(error)})"
    return CheckpointError(what, "check the connection, or pass a folder")
