"""The same pixels in JavaScript: a module without dependencies, for pages, workers and Node."""

from __future__ import annotations

from pathlib import Path

MODULE = Path(__file__).with_name("pixels.js")
"""Its file, which web bundles hold under its name."""
