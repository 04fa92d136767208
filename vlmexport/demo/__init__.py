"""The trained tiny MobileVLM V2 that ships with the package, and the scenes it was trained on."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """The checkpoint's folder, in the published MobileVLM layout."""
    return Path(__file__).parent / "model"
