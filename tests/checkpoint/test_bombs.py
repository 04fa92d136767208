"""Small files that would take any amount of memory: refused before the library that would take it reads them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmexport.artifact.gguf.imatrix_reader import read as read_imatrix
from vlmexport.checkpoint.documents import LARGEST, read_object
from vlmexport.checkpoint.tensors import open_tensors
from vlmexport.errors import CheckpointError, Unsupported, UsageError


def saved(folder: Path) -> Path:
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}, folder / "model.bin")
    return (folder / "model.bin").rename(folder / "pytorch_model.bin")


def rewritten(path: Path, change: Callable[[str, bytes], tuple[bytes, int]]) -> None:
    """The same archive with other bytes and another kind of compression for each member."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in members.items():
            archive.writestr(name, *change(name, held))


def deflated(path: Path) -> None:
    rewritten(path, lambda name, held: (held, zipfile.ZIP_DEFLATED if name.endswith("data/0") else zipfile.ZIP_STORED))


def inflating(path: Path) -> None:
    """A kilobyte of file for each megabyte of pickle."""
    padding = b"0" * (256 << 20)  # POP
    rewritten(
        path, lambda name, held: (held + padding if name.endswith(".pkl") else held, zipfile.ZIP_DEFLATED)
    )  # fmt: skip


def large_pickle(path: Path) -> None:
    rewritten(path, lambda name, held: (held + bytes(65 << 20) if name.endswith(".pkl") else held, zipfile.ZIP_STORED))


def overlapping(path: Path) -> None:
    """Every entry of the directory points at one member of a megabyte."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/8", bytes(1 << 20))
        one = archive.getinfo("model/data/8")
        for number in range(9, 300):
            other = zipfile.ZipInfo(f"model/data/{number}")
            other.header_offset, other.CRC = one.header_offset, one.CRC
            other.file_size = other.compress_size = one.file_size
            archive.filelist.append(other)


class Allocates:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 33,)


def allocating(path: Path) -> None:
    call = pickle.dumps({"a": Allocates()}, protocol=2)
    rewritten(path, lambda name, held: (call if name.endswith(".pkl") else held, zipfile.ZIP_STORED))


BOMBS: dict[Callable[[Path], None], str] = {
    deflated: "compressed", inflating: "compressed", large_pickle: "more than 64 MiB", overlapping: "overlap",
    allocating: "memory by a number",
}  # fmt: skip


def test_what_torch_saves_is_read(tmp_path: Path) -> None:
    saved(tmp_path)
    found = open_tensors(tmp_path)
    assert found["a"].torch().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].torch().tolist() == [1] * 4


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bin(bomb: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any, **__: Any) -> None:
        pytest.fail("torch was reached")

    bomb(saved(tmp_path))
    monkeypatch.setattr(torch, "load", reached)
    with pytest.raises(CheckpointError, match=BOMBS[bomb]) as caught:
        open_tensors(tmp_path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_torch_that_does_not_say_where_values_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setattr("vlmexport.checkpoint.tensors.OFFSET", "_not_there")
    with pytest.raises(Unsupported, match=rf"torch {torch.__version__.split('+')[0]}.* does not say where"):
        open_tensors(tmp_path)


def test_a_safetensors_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST + 8).to_bytes(8, "little") + b"{" + b" " * 64)
        file.truncate(LARGEST + 64)
    with pytest.raises(CheckpointError, match=rf"a header of {LARGEST + 8} bytes"):
        open_tensors(tmp_path)


def test_json(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors.index.json"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"{}")
            file.truncate(LARGEST + 1)
    with pytest.raises(CheckpointError, match="larger than 128 MiB"):
        read_object(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        open_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        open_tensors(tmp_path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(keys: bytes, count: int = 1, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + keys


GGUF = {
    "array without end": header(text("a") + struct.pack("<IIQ", 9, 4, 1 << 60)),
    "texts without end": header(text("a") + struct.pack("<IIQ", 9, 8, 1 << 60)),
    "array of arrays": header(text("a") + struct.pack("<IIQ", 9, 9, 3)),
    "many values": header(text("a") + struct.pack("<IIQ", 9, 0, 300_000) + bytes(300_000)),
    "keys without end": header(b"", 1 << 60),
    "tensors without end": header(b"", 0, 1 << 60),
    "a long text": header(text("a") + struct.pack("<IQ", 8, 1 << 60)),
    "dimensions without end": header(text("a") + struct.pack("<I", 1 << 31), 0, 1),
    "unknown type": header(text("a") + struct.pack("<I", 77)),
    "version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "nothing": b"GGUF",
}


@pytest.mark.parametrize("content", GGUF.values(), ids=GGUF)
def test_gguf(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UsageError, match="is no importance matrix"):
        read_imatrix(tmp_path / "x.gguf")
