"""MODEL: a folder, ``demo``, or a Hub id (in the Hub's own cache layout; no network)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlmexport.errors import CheckpointError
from vlmexport.source.locate import demo_folder, locate, open_model

REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_folder_and_demo(tiny_folder: Path) -> None:
    assert locate(str(tiny_folder)) == tiny_folder
    assert locate("demo") == demo_folder()
    assert open_model(str(tiny_folder)).origin == str(tiny_folder.resolve())


def test_hub_id_from_the_hubs_cache(tiny_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--tiny-vlm"
    shutil.copytree(tiny_folder, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    code = (
        "from vlmexport.source.locate import open_model\n"
        "c = open_model('someone/tiny-vlm'); print(c.origin, c.spec.name, c.spec.projector.kind)\n"
        "from vlmexport.errors import CheckpointError\n"
        "try: open_model('someone/other')\n"
        "except CheckpointError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert first == f"someone/tiny-vlm@{REVISION} tiny-vlm ldpnetv2"
    assert second.startswith("someone/other is no folder here, and not in the Hub's cache")


def test_a_wrong_path_is_not_taken_for_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        locate("./models/mine")
