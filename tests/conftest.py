"""Checkpoints that several tests share, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.checkpoint import Checkpoint, open_checkpoint
from vlmexport.runtime.arm64_root import root_folder

pytest_plugins = ["tests.onnx_bundles", "tests.transformers_js"]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Calibration statistics of tests stay out of the user's cache; arm64's onnxruntime is used where it is set up."""
    arm64, own = root_folder(), tmp_path_factory.mktemp("cache")
    if arm64.is_dir():
        (own / arm64.name).symlink_to(arm64)
    patch = pytest.MonkeyPatch()
    patch.setenv("VLMEXPORT_CACHE", str(own))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random MobileVLM V2."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", tiny_spec("ldpnetv2"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    """The same, opened."""
    return open_checkpoint(tiny_folder)
