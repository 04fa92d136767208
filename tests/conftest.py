"""Checkpoints that several tests share, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.checkpoint import Checkpoint, open_checkpoint

pytest_plugins = ["tests.onnx_bundles", "tests.transformers_js"]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Calibration statistics of tests stay out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VLMEXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random MobileVLM V2."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", tiny_spec("ldpnetv2"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    """The same, opened."""
    return open_checkpoint(tiny_folder)
