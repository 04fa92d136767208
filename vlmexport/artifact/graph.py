"""What every traced graph goes through: nodes named after the model's modules, weights folded, sources removed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from vlmexport.quantize.products import weight_of

EXTERNAL_FROM = 256 * 2**20
"""Bytes of weights from which they leave the graph file: there they can be mapped instead of copied, and a protobuf
file ends at 2 GiB."""

_SHARD = 1_900 * 2**20
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: ir.Model) -> ir.Model:
    """Name products and weights after their modules, transpose weights once and for all, drop where things came from.

    Guarantees: the same values; no stack traces, paths or source lines; products named by module path and their
    weights ``<path>.weight``.
    """
    _fold_transposes(model)
    for node in model.graph:
        weight = weight_of(node)
        if weight is None:
            continue
        node.name = _module_path(node) or node.name
        if len(weight.uses()) == 1:
            weight.name = f"{node.name}.weight"
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in _values(model):
        value.metadata_props.clear()
        value.doc_string = None
    model.producer_name, model.producer_version, model.graph.name = "vlmexport", None, "graph"
    return model


def rename_dimensions(model: ir.Model, names: dict[str, tuple[str | int, ...]]) -> None:
    """Set the shapes that inputs and outputs show."""
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.name in names:
            value.shape = ir.Shape(names[value.name])


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(int(value.const_value.nbytes) for value in model.graph.initializers.values() if value.const_value)


def save(model: ir.Model, path: Path) -> int:
    """Write a graph, its weights beside it from ``EXTERNAL_FROM`` on. Shape constants stay inside (1 KiB).

    Returns:
        Number of external data files: ``<name>.onnx_data``, ``<name>.onnx_data_1`` …
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if weight_bytes(model) < EXTERNAL_FROM:
        ir.save(model, path)
        return 0
    # onnx-ir names shards its own way; clients look for _data, _data_1, …
    parts = _shards(model)
    kept = {name: value.const_value for name, value in model.graph.initializers.items()}
    for number, names in enumerate(parts):
        name = f"{path.name}_data" + (f"_{number}" if number else "")
        tensors = [tensor for key in names if (tensor := kept[key]) is not None]
        for key, tensor in zip(names, ir.external_data.convert_tensors_to_external(tensors, path.parent, name),
                               strict=True):  # fmt: skip
            model.graph.initializers[key].const_value = tensor
    ir.save(model, path)
    for name, tensor in kept.items():
        model.graph.initializers[name].const_value = tensor
    return len(parts)


def _shards(model: ir.Model) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    size = 0
    for name, value in model.graph.initializers.items():
        if value.const_value is None or value.const_value.nbytes < 1024:
            continue
        if parts[-1] and size + value.const_value.nbytes > _SHARD:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += value.const_value.nbytes
    return parts


def _module_path(node: ir.Node) -> str | None:
    """The exporter's record of the modules around a node ends with the module and the operation in it."""
    scopes = node.metadata_props.get(_SCOPES)
    if scopes is None:
        return None
    names = ast.literal_eval(scopes)
    return str(names[-2]) if len(names) >= 2 and names[-2] else None


def _fold_transposes(model: ir.Model) -> None:
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.const_value is None:
            continue
        array = source.const_value.numpy()
        permutation = node.attributes.get("perm")
        axes = permutation.as_ints() if permutation is not None else None
        folded = ir.tensor(np.ascontiguousarray(array.transpose(axes)), name=node.outputs[0].name)
        value = ir.Value(name=node.outputs[0].name, const_value=folded)
        value.shape, value.type = ir.Shape(array.transpose(axes).shape), ir.TensorType(folded.dtype)
        node.outputs[0].name = f"{value.name}.unused"
        model.graph.register_initializer(value)
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        if not source.uses():
            model.graph.initializers.pop(str(source.name))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def halve_tables(model: ir.Model) -> None:
    """Store tables that rows are taken from as float16 where that loses nothing; rows become float32 once taken."""
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is None or table.const_value is None or table.dtype != ir.DataType.FLOAT:
            continue
        array = table.const_value.numpy()
        half = array.astype(np.float16)
        if array.size < 1024 or len(table.uses()) > 1 or not np.array_equal(half.astype(np.float32), array):
            continue
        table.const_value, table.dtype = ir.tensor(half, name=table.name), ir.DataType.FLOAT16
        rows, old = ir.node("Gather", [table, node.inputs[1]], {"axis": 0}), node.outputs[0]
        cast = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value})
        rows.name, cast.name = f"{table.name}.rows", f"{table.name}.float"
        rows.outputs[0].name, result = f"{table.name}.rows", cast.outputs[0]
        result.name, result.shape, result.dtype = f"{table.name}.float", old.shape, ir.DataType.FLOAT
        rows.outputs[0].shape, rows.outputs[0].dtype = old.shape, ir.DataType.FLOAT16
        model.graph.insert_before(node, [rows, cast])
        name = old.name
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        if result.is_graph_output():
            result.name = name
