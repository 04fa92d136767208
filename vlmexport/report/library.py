"""The installed libmtmd, as ``vlmexport inspect`` shows it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlmexport.errors import VlmExportError
from vlmexport.runtime.llamacpp.probe.probe import probe


def facts() -> dict[str, Any]:
    """What the probe found, with ``text`` for people; ``error`` where there is no library that can be asked."""
    try:
        found = probe()
    except VlmExportError as error:
        return {"error": error.what, "text": f"libmtmd: {error.what}"}
    return {**asdict(found), "right": found.right, "repairable": found.repairable, "text": found.text()}
