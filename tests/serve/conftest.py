"""Fixtures of the page's tests."""

from __future__ import annotations

from tests.serve.browser import chromium

__all__ = ["chromium"]
