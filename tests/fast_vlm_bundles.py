"""A tiny FastVLM in both layouts and its bundles, written once a session. Together they have every precision and
target: what sees is float or int8 of each scheme, what decodes float32, float16, int8, int4 or a GGUF."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.onnx_bundles import Bundles, picture
from vlmexport.calibrate import Sample, Statistics, collect
from vlmexport.flags import vision_flags
from vlmexport.model import load
from vlmexport.pipeline import export_checkpoint
from vlmexport.recipe import Recipe, resolve
from vlmexport.source.checkpoint import open_checkpoint

LAYOUTS = ("hf", "apple")
"""transformers' cuts the middle out of a picture, Apple's pads it."""

BUNDLES: dict[str, tuple[str, str, str | None]] = {
    "fp32": ("hf", "onnx-fp32", None),
    "x86": ("hf", "onnx-x86", None),
    "arm64-int4": ("hf", "onnx-arm64-int4", None),
    "web-fp16": ("hf", "onnx-web-fp16", None),
    "hybrid": ("hf", "gguf-q4_k_m", "onnx"),
    "apple-fp32": ("apple", "onnx-fp32", None),
    "apple-arm64": ("apple", "onnx-arm64", None),
    "apple-web-int4": ("apple", "onnx-web-int4", None),
    "apple-x86-fp16": ("apple", "onnx-x86-fp16", None),
    "apple-hybrid": ("apple", "gguf-f16", "onnx-fp32"),
}
"""Name → layout, recipe, and the recipe of a hybrid's vision."""


def questions(count: int, first: int = 100) -> list[Sample]:
    """Questions about pictures of which half are squares."""
    sizes = ((300, 220), (256, 256), (180, 330), (90, 90))
    return [
        Sample(f"{n}", f"{n}", f"what is the {n} ?", lambda n=n: picture(n, sizes[n % 4]), answer="a chat")
        for n in range(first, first + count)
    ]


def recipe_of(name: str) -> Recipe:
    """Of a bundle; which int8 layers go back to float is predicted, in a moment."""
    _, base, vision = BUNDLES[name]
    flags: dict[str, Any] = vision_flags(vision, None, base, base) if vision else {}
    return resolve(base, flags | {"onnx.fallback": "predicted"}, environ={})


@pytest.fixture(scope="session")
def fast_vlm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``hf`` and ``apple``. Workers of pytest-xdist share it: the first that needs it writes it."""
    from tests.fast_vlm import write_apple, write_transformers

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "fast_vlm"
    with FileLock(f"{root}.lock"):
        if not (root / "apple").exists():
            write_transformers(root / "hf")
            write_apple(root / "apple", root / "hf")
    return root


@pytest.fixture(scope="session")
def fast_vlm_statistics(fast_vlm_root: Path) -> Callable[[str], Statistics]:
    """Of six pictures, for a layout."""

    @cache
    def statistics(layout: str) -> Statistics:
        checkpoint = open_checkpoint(fast_vlm_root / layout)
        return collect(load(checkpoint), checkpoint.prompts, questions(6, first=0))

    return statistics


@pytest.fixture(scope="session")
def fast_vlm_bundle(fast_vlm_root: Path, fast_vlm_statistics: Callable[[str], Statistics]) -> Bundles:
    """A bundle of ``BUNDLES`` by its name."""

    @cache
    def bundle(name: str) -> Path:
        layout, recipe = BUNDLES[name][0], recipe_of(name)
        folder = fast_vlm_root / name
        with FileLock(fast_vlm_root / f"{name}.lock"):
            if not folder.exists():
                statistics = fast_vlm_statistics(layout)
                export_checkpoint(open_checkpoint(fast_vlm_root / layout), recipe, folder, statistics=statistics)
        return folder

    return bundle
