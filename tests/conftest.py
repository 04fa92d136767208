"""Checkpoints that several tests share, written once a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.smolvlm_bundle import Built
    from vlmexport.source.checkpoint import Checkpoint

FIXTURES = (
    "tests.onnx_bundles",
    "tests.fast_vlm_bundles",
    "tests.tiles",
    "tests.processors",
    "tests.transformers_js",
    "tests.tracing",
    "tests.hub",
    "tests.vocabularies",
)


def pytest_configure(config: pytest.Config) -> None:
    """Load what all tests share, but not where pytest-xdist only hands out tests: its workers would wait while torch
    is imported there for nothing, which is also why this file imports nothing heavy."""
    if not config.getoption("numprocesses", None):
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: pytest-xdist hands out files in turn, and a long one at the end keeps one process
    waiting for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Calibration statistics of tests stay out of the user's cache; arm64's onnxruntime is used where it is set up."""
    from vlmexport.runtime.ort.arm64.root import root_folder

    arm64, own = root_folder(), tmp_path_factory.mktemp("cache")
    if arm64.is_dir():
        (own / arm64.name).symlink_to(arm64)
    patch = pytest.MonkeyPatch()
    patch.setenv("VLMEXPORT_CACHE", str(own))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random MobileVLM V2."""
    from tests.checkpoints import tiny_spec, write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", tiny_spec("ldpnetv2"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    """The same, opened."""
    from vlmexport.source.checkpoint import open_checkpoint

    return open_checkpoint(tiny_folder)


@pytest.fixture(scope="session")
def tiny_smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A model whose pictures become tiles, its processor and its bundle."""
    from tests.smolvlm_bundle import build

    return build(tmp_path_factory.mktemp("smolvlm"))
