"""Graphs kept between exports: what they depend on, and that a bundle does not show which way it was made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.checkpoints import tiny_spec
from tests.onnx_bundles import recipe
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.passes.clean import MODULE, module_of
from vlmexport.artifact.onnx.trace import cache as traces
from vlmexport.artifact.onnx.trace import components
from vlmexport.artifact.onnx.trace.cache import Part, Traces, pack, unpack
from vlmexport.pipeline import export_checkpoint
from vlmexport.source.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one."""
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def part() -> Part:
    """x · w + c with ``w`` a parameter, held transposed."""
    x, w, c = (ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
               for name, shape in (("x", [2, 3]), ("vision.w", [3, 4]), ("c", [4])))  # fmt: skip
    w.const_value, c.const_value = ir.tensor([[7.0] * 4] * 3), ir.tensor([1.0, 2.0, 3.0, 4.0])
    product = ir.node("MatMul", [x, w])
    total = ir.node("Add", [product.outputs[0], c])
    product.meta[MODULE], total.meta[MODULE] = "vision.fc", ""
    graph = ir.Graph([x], list(total.outputs), nodes=[product, total], initializers=[w, c], opset_imports={"": 21})
    return Part("tower", ir.Model(graph, ir_version=10), {"vision.w": True})


def test_everything_but_weights_is_kept() -> None:
    packed = pack(part())
    assert bytes(ir.tensor([[7.0] * 4]).tobytes()) not in packed
    found = unpack(packed)
    assert (found.name, found.transposed) == ("tower", {"vision.w": True})
    assert [value.name for value in found.model.graph.inputs] == ["x"]
    initializers = found.model.graph.initializers
    assert initializers["vision.w"].const_value is None
    assert initializers["c"].const_value is not None
    assert initializers["c"].const_value.numpy().tolist() == [1, 2, 3, 4]
    assert [module_of(node) for node in found.model.graph] == ["vision.fc", ""]


def test_what_a_graph_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec("ldpnetv2")
    Traces(spec).keep("vision", pack(part()))
    assert Traces(spec).find("vision") is not None
    assert Traces(replace(spec, name="another")).find("vision") is not None
    assert Traces(spec).find("projector") is None
    wider = replace(spec, language=replace(spec.language, intermediate_size=1))
    assert Traces(wider).find("vision") is not None
    Traces(spec).keep("language", pack(part()))
    assert Traces(wider).find("language") is None
    assert Traces(replace(spec, vision=replace(spec.vision, select_layer=-1))).find("vision") is None
    with monkeypatch.context() as patch:
        patch.setattr(traces, "_version", lambda package: f"{package} 999")
        assert Traces(spec).find("vision") is None
    with monkeypatch.context() as patch:
        patch.setattr(traces, "_code", lambda: "changed")
        assert Traces(spec).find("vision") is None


def test_a_damaged_one_is_none(cache: Path) -> None:
    spec = tiny_spec("ldpnetv2")
    Traces(spec).keep("vision", pack(part()))
    (path,) = (cache / "traces").iterdir()
    held = path.read_bytes()
    path.write_bytes(held[:-1])
    assert Traces(spec).find("vision") is None
    path.write_bytes(b"")
    assert Traces(spec).find("vision") is None
    path.write_bytes(held)
    assert Traces(spec).find("vision") is not None


def test_a_cache_that_cannot_be_written_is_none(cache: Path) -> None:
    spec = tiny_spec("ldpnetv2")
    cache.write_text("a file where the folder should be")
    Traces(spec).keep("vision", pack(part()))
    assert Traces(spec).find("vision") is None
    cache.unlink()
    (cache / "traces").mkdir(parents=True)
    Traces(spec).keep("vision", pack(part()))
    (kept,) = (cache / "traces").iterdir()
    kept.unlink()
    kept.mkdir()
    Traces(spec).keep("vision", pack(part()))
    assert list((cache / "traces").iterdir()) == [kept]


@pytest.mark.slow
def test_a_second_export_traces_nothing(short: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> dict[str, str]:
        export_checkpoint(short, recipe("fp32"), tmp_path / name)
        return {file.path: file.sha256 for file in read_manifest(tmp_path / name).files}

    traced = files("traced")

    def refuse(_: object) -> components.Traced:
        raise AssertionError("traced again")

    monkeypatch.setattr(components, "PARTS", dict.fromkeys(components.PARTS, refuse))
    assert files("kept") == traced
