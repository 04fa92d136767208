from __future__ import annotations

from pathlib import Path

import pytest

from tests.manifests import manifest
from vlmexport.artifact.bundle.contents import list_files, source_of, verify
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.artifact.bundle.staging import MANIFEST, staged
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.errors import CheckpointError, ParityFailed, UsageError
from vlmexport.source.checkpoint import Checkpoint


def make(folder: Path, checkpoint: Checkpoint, force: bool = False) -> Manifest:
    with staged(folder, force) as partial:
        (partial / "onnx").mkdir()
        (partial / "onnx" / "a.onnx").write_bytes(b"weights")
        found = manifest("onnx", source_of(checkpoint), files=list_files(partial, {}))
        write_manifest(partial, found)
    return found


def test_round_trip(tmp_path: Path, tiny: Checkpoint) -> None:
    made = make(tmp_path / "b", tiny)
    found = read_manifest(tmp_path / "b")
    assert found.files == made.files
    assert [file.path for file in found.files] == ["onnx/a.onnx"]
    assert set(found.source.weights) == {"model.safetensors"}
    verify(tmp_path / "b", found)
    assert "Not checked yet" in (tmp_path / "b" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


@pytest.mark.parametrize("damage", [b"weightz", b"weight", None])
def test_a_changed_file_is_found(tmp_path: Path, tiny: Checkpoint, damage: bytes | None) -> None:
    made = make(tmp_path / "b", tiny)
    path = tmp_path / "b" / "onnx" / "a.onnx"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(ParityFailed, match=r"a\.onnx"):
        verify(tmp_path / "b", made)


def test_a_damaged_manifest(tmp_path: Path, tiny: Checkpoint) -> None:
    make(tmp_path / "b", tiny)
    (tmp_path / "b" / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(tmp_path / "b")
    with pytest.raises(UsageError, match="is not a bundle"):
        read_manifest(tmp_path)
