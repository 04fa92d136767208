"""An engine is a folder with a module ``engine``; a manifest names one for each half."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vlmexport.runtime
from tests.manifests import ENGINES, manifest
from vlmexport.errors import CheckpointError
from vlmexport.runtime.engines import find_engine
from vlmexport.runtime.open import open_runtime

FOLDERS = {path.parent.name for path in Path(vlmexport.runtime.__file__).parent.glob("*/engine.py")}


def test_every_folder_is_found_by_its_name() -> None:
    names = {name for pair in ENGINES.values() for name in pair}
    found = {find_engine(name) for name in names}
    assert {engine.NAME for engine in found} == names
    assert len(found) == len(FOLDERS)


@pytest.mark.parametrize("half", ["seeing", "decoding"])
def test_an_unknown_engine_is_refused_in_one_line(half: str, tmp_path: Path) -> None:
    made = manifest("onnx")
    getattr(made, half).engine = "tflite"
    said = "vlmexport.json names an engine 'tflite', known are llama.cpp, onnxruntime: install a newer vlmexport"
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_runtime(tmp_path, made)


@pytest.mark.parametrize("kind", ENGINES)
def test_kinds_are_names_of_engines(kind: str) -> None:
    assert manifest(kind).kind == kind
