"""``--imatrix FILE``: llama-imatrix's two formats, and what is said of a file that is of no use."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import tiny_spec
from tests.gguf_bundles import export, metadata, random_statistics, tensors
from tests.llama_quantize import read_imatrix
from tests.test_plan import size
from vlmexport.artifact.gguf.imatrix import Column, ImportanceMatrix, as_file, from_statistics
from vlmexport.artifact.gguf.imatrix_reader import read
from vlmexport.artifact.gguf.language import importance_names
from vlmexport.errors import UsageError
from vlmexport.plan import plan
from vlmexport.recipe import parse
from vlmexport.source.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]


def columns(output: bool = True) -> dict[str, Column]:
    language = tiny_spec().language
    found = dict(from_statistics(random_statistics(language), importance_names(language), 1.0).columns)
    if not output:
        del found["output.weight"]
    return found


def save(path: Path, found: Mapping[str, Column]) -> Path:
    as_file(path.name, ImportanceMatrix(found, ("wiki.raw", "more.txt"), 6, 512)).write(path.parent)
    return path


def save_dat(path: Path, found: Mapping[str, Column], chunks: int = 6) -> Path:
    """As ``llama-imatrix --output-format dat``: means times the number of chunks."""
    data = struct.pack("<i", len(found))
    for name, column in found.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", chunks, column.mean.size)
        data += (column.mean * np.float32(chunks)).astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", chunks, 8) + b"wiki.raw")
    return path


def write_gguf(path: Path, values: Mapping[str, npt.NDArray[np.generic]], kind: str = "imatrix") -> Path:
    """A file by gguf's own writer, as little alike to ours as can be."""
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.kv_data[0].clear()
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["wiki.raw"])
    writer.add_uint32("imatrix.chunk_count", 6)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, array in values.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_imatrix(found: Mapping[str, Column]) -> dict[str, npt.NDArray[np.generic]]:
    """Tensors in the shapes of llama-imatrix: [matrices, columns] and [matrices, 1]."""
    values: dict[str, npt.NDArray[np.generic]] = {}
    for name, column in found.items():
        values[f"{name}.in_sum2"] = column.sum_sq[None]
        values[f"{name}.counts"] = np.array([[column.count]], np.float32)
    return values


@pytest.mark.slow
def test_a_file_of_llama_imatrix(tiny: Checkpoint, tmp_path: Path) -> None:
    """Without the output, as it writes by default: the output is quantized without importance, the plan is exact."""
    path = write_gguf(tmp_path / "theirs.gguf", llama_imatrix(columns(output=False)))
    written = export(tiny, tmp_path / "out", type="iq2_s", imatrix=str(path))
    planned = parse({"format": "gguf", "gguf": {"type": "iq2_s", "imatrix": str(path)}}, "test")
    assert plan(tiny, [planned])[0].bytes == size(written)
    assert written.calibration is None
    datasets, chunks, chunk_size, means = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    assert (datasets, chunks, chunk_size) == (["wiki.raw"], 6, 512)
    assert {name: mean.tolist() for name, mean in means.items()} == {
        name: column.mean.tolist() for name, column in columns(output=False).items()
    }


def test_both_formats_give_the_same_bytes(tiny: Checkpoint, tmp_path: Path) -> None:
    power_of_two = {name: Column(column.sum_sq, 32) for name, column in columns().items()}
    new, old = save(tmp_path / "new.gguf", power_of_two), save_dat(tmp_path / "old.dat", power_of_two, chunks=4)
    for path in (new, old):
        export(tiny, tmp_path / path.stem, type="q4_0", imatrix=str(path))
    first, second = (tensors(tmp_path / name / "tiny-Q4_0.gguf") for name in ("new", "old"))
    assert all(np.array_equal(first[name][1], second[name][1]) for name in first)
    keys = metadata(tmp_path / "old" / "imatrix.gguf")
    assert (keys["imatrix.datasets"], keys["imatrix.chunk_count"], keys["imatrix.chunk_size"]) == (["wiki.raw"], 4, 1)
    assert metadata(tmp_path / "new" / "imatrix.gguf")["imatrix.datasets"] == ["wiki.raw", "more.txt"]


def test_a_dat_without_its_end(tmp_path: Path) -> None:
    """Older files stop after the last tensor."""
    path = save_dat(tmp_path / "old.dat", columns())
    path.write_bytes(path.read_bytes()[: -(8 + 8)])
    found = read(path)
    assert (found.datasets, found.chunks, len(found.columns)) == ((), 0, len(columns()))


def changed(**changes: Column | None) -> dict[str, Column]:
    """Columns with some replaced or left out; ``blk_0_ffn_up`` for ``blk.0.ffn_up.weight``."""
    found: dict[str, Column | None] = dict(columns())
    for key, value in changes.items():
        block, layer, rest = key.split("_", 2)
        found[f"{block}.{layer}.{rest}.weight"] = value
    return {name: column for name, column in found.items() if column is not None}


ONES = np.ones(256, np.float32)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (changed(blk_0_ffn_up=Column(ONES[:64], 4)), r"64 columns for blk\.0\.ffn_up\.weight.*has 256.*another"),
        (changed(blk_1_attn_k=None), r"lacks blk\.1\.attn_k\.weight, which the model has: it was measured on another"),
        (changed(blk_0_attn_k=None, blk_1_attn_k=None), r"lacks blk\.0\.attn_k\.weight and 1 more"),
        (changed(blk_2_attn_k=Column(ONES, 4)), r"holds blk\.2\.attn_k\.weight, which the model has not"),
        (changed(blk_0_attn_k=Column(ONES * np.nan, 4)), r"blk\.0\.attn_k\.weight holds NaN, infinity or a negative"),
        (changed(blk_0_attn_k=Column(ONES * np.inf, 4)), "NaN, infinity or a negative"),
        (changed(blk_0_attn_k=Column(-ONES, 4)), "NaN, infinity or a negative"),
        (changed(blk_0_attn_k=Column(ONES, 0)), r"lacks blk\.0\.attn_k\.weight"),
        ({}, "without tensors"),
    ],
)  # fmt: skip
def test_of_no_use(found: dict[str, Column], message: str, tiny: Checkpoint, tmp_path: Path) -> None:
    path = save(tmp_path / "bad.gguf", found)
    with pytest.raises(UsageError, match=message):
        export(tiny, tmp_path / "out", type="q4_0", imatrix=str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a.weight.in_sum2": ONES[None]}, "a.weight has no count"),
        ({"a.weight.in_sum2": np.ones((2, 256), np.float32), "a.weight.counts": np.ones((2, 1), np.float32)},
         "2 counts: importance matrices of models with experts"),
        ({"a.weight.in_sum2": ONES.astype(np.float16)[None], "a.weight.counts": np.ones((1, 1), np.float32)},
         "in_sum2 is not F32"),
        ({"a.weight.in_sum2": ONES[None], "a.weight.counts": np.full((1, 1), np.nan, np.float32)}, "the count nan"),
    ],
)  # fmt: skip
def test_odd_files(values: dict[str, npt.NDArray[np.generic]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read(write_gguf(tmp_path / "odd.gguf", values))


def test_not_an_importance_matrix(tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "text.dat").write_bytes(b"\1\0\0\0" + bytes(64))
    with pytest.raises(UsageError, match=r"no importance matrix of llama\.cpp \(an entry without name"):
        export(tiny, tmp_path / "out", type="q4_0", imatrix=str(tmp_path / "text.dat"))
    export(tiny, tmp_path / "out", type="f16")
    with pytest.raises(UsageError, match=r"no importance matrix of llama\.cpp \(general\.type is 'model'\)"):
        read(tmp_path / "out" / "tiny-F16.gguf")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    small = {"blk.0.ffn_up.weight": Column(np.ones(8, np.float32), 4)}
    path = data.draw(st.sampled_from([save, save_dat]))(folder / "small", small)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        found = read(path)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert all(np.isfinite(column.mean).all() for column in found.columns.values())
