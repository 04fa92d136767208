"""What every traced graph goes through: nodes named after the model's modules, weights folded, sources removed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from vlmexport.checkpoint.shards import shards
from vlmexport.console import Advance, no_advance
from vlmexport.errors import VlmExportError
from vlmexport.quantize.products import weight_of
from vlmexport.threads import cores

EXTERNAL_FROM = 64 * 2**20
"""Bytes of weights from which they leave the graph file: there they can be mapped instead of copied, and a protobuf
file ends at 2 GiB."""

_SHARD = 1_900 * 2**20
_ALIGNMENT = 65_536
"""Of external weights, so that every system can map them."""

_IN_FLIGHT = 256 * 2**20
"""Bytes of weights that are held at a time while they are written."""
_SCOPES = "pkg.torch.onnx.name_scopes"
MODULE = "module"
"""Key of a cleaned node's ``meta``: the path of the module that it came from."""


def clean(model: ir.Model) -> ir.Model:
    """Name products and weights after their modules, transpose weights once and for all, drop where things came from.

    Guarantees: the same values; no stack traces, paths or source lines; products named by module path and their
    weights ``<path>.weight``.
    """
    _fold_transposes(model)
    for node in model.graph:
        node.meta[MODULE] = _module_path(node) or ""
        weight = weight_of(node)
        if weight is None:
            continue
        node.name = module_of(node) or node.name
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


def names_modules(model: ir.Model) -> bool:
    """Whether the exporter wrote down around a node, before ``clean``, which modules it comes from."""
    return any(_SCOPES in node.metadata_props for node in model.graph)


def rename_dimensions(model: ir.Model, names: dict[str, tuple[str | int, ...]]) -> None:
    """Set the shapes that inputs and outputs show."""
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.name in names:
            value.shape = ir.Shape(names[value.name])


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the initializers that no file holds yet."""
    return sum(int(tensor.nbytes) for _, tensor in _own(model))


def _own(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor):
            yield name, value.const_value


def save(model: ir.Model, path: Path, advance: Advance = no_advance, outside: int | None = None) -> int:
    """Write a graph, its weights beside it from ``EXTERNAL_FROM`` on. Shape constants stay inside (1 KiB).

    Lazy weights are made and written one after the other, by as many threads as there are processors.

    Args:
        advance: told of the bytes of weights that are written.
        outside: bytes from which on weights are beside it; ``EXTERNAL_FROM`` where it is None.

    Returns:
        Number of external data files: ``<name>.onnx_data``, ``<name>.onnx_data_1`` …
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if weight_bytes(model) < (EXTERNAL_FROM if outside is None else outside):
        total = weight_bytes(model)
        _write(model, path)
        advance(total)
        return 0
    # onnx-ir names shards its own way; clients look for _data, _data_1, …
    kept = dict(_own(model))
    parts = shards(((key, tensor.nbytes) for key, tensor in kept.items() if tensor.nbytes >= 1024), _SHARD)
    for number, names in enumerate(parts):
        name = f"{path.name}_data" + (f"_{number}" if number else "")
        tensors = [kept[key] for key in names]
        external = ir.external_data.convert_tensors_to_external(
            tensors, path.parent, name, lambda tensor, _: advance(int(tensor.nbytes)),
            max_workers=cores(), max_in_flight_bytes=_IN_FLIGHT, alignment=_ALIGNMENT,
        )  # fmt: skip
        for key, written in zip(names, external, strict=True):
            model.graph.initializers[key].const_value = written
    _write(model, path)
    for key, tensor in kept.items():
        model.graph.initializers[key].const_value = tensor
    return len(parts)


def _write(model: ir.Model, path: Path) -> None:
    """onnx-ir wraps what a lazy weight raises; users get to see the error itself."""
    try:
        ir.save(model, path)
    except ir.serde.SerdeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, VlmExportError):
            cause = cause.__cause__ or cause.__context__  # its message reads the weight again, and fails over it
        raise cause or error from error


def share(model: ir.Model, path: Path, other: Path) -> None:
    """Let a graph that will be saved at ``path`` read its weights of 1 KiB and more from those of ``other``, by their
    order; nothing happens where ``other`` holds its weights inside."""
    found = [v.const_value for v in ir.load(other).graph.initializers.values()]
    external = [tensor for tensor in found if isinstance(tensor, ir.ExternalTensor)]
    large = [name for name, tensor in _own(model) if tensor.nbytes >= 1024]
    for name, tensor in zip(large, external, strict=False):
        location = (other.parent / tensor.location).relative_to(path.parent).as_posix()
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name, base_dir=path.parent
        )


def module_of(node: ir.Node) -> str:
    """Path of the module that a cleaned node came from; empty where it came from none."""
    return str(node.meta.get(MODULE, ""))


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
