"""onnxsim on a traced graph: what it leaves out, and whether its graph takes the place of ours.

Weights are inputs of the graph that it sees. Left to itself it packs them (query, key and value into one product, bias
and product into a Gemm between two reshapes). Then the checkpoint's could not be put in, no layer could be repeated,
and int8 would find no layer by its path; docs/onnx.md says what it would bring. Nor does it need memory for weights
this way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlmexport.artifact.onnx.passes import repeat_layers
from vlmexport.artifact.onnx.passes.clean import MODULE, clean, module_of, save
from vlmexport.artifact.onnx.session import FEATURES
from vlmexport.artifact.onnx.trace import compare
from vlmexport.artifact.onnx.trace.components import Traced
from vlmexport.errors import ParityFailed, Unsupported, first_line


def simplify(traced: Traced, scratch: Path, stack: str | None = None) -> tuple[Traced, dict[str, Any]]:
    """The graph to go on with, and what the manifest says: nodes before and after, whether the graph of onnxsim is
    used, else why not.

    It is used where it has fewer nodes, all of them nodes of the graph before, still repeats layer by layer, and gives
    what PyTorch gives.

    Args:
        scratch: folder for the graph while it is compared.
        stack: what comes before a layer's number in module paths, where layers are to be repeated.
    """
    try:
        model = _simplified(traced)
    except ModuleNotFoundError:
        return traced, _refused("onnxsim is not installed")
    except Exception as error:  # onnxsim's exceptions share no base class
        return traced, _refused(f"onnxsim failed ({first_line(error)})")
    counts = {"nodes_before": len(traced.model.graph), "nodes_after": len(model.graph)}
    found = replace(traced, model=model)
    objection = _objection(traced.model, model) or (_unlike(model, stack) if stack else None)
    objection = objection or _off(found, scratch / f"{traced.name}.simplified.onnx")
    if objection:
        return traced, counts | _refused(objection)
    return found, counts | {"used": True}


def _simplified(traced: Traced) -> ir.Model:
    import onnxsim

    bare = traced.model.clone()
    weights: dict[str, ir.TensorProtocol | None] = {}
    for name in traced.module.state_dict():
        if name in bare.graph.initializers:
            value = bare.graph.initializers.pop(name)
            weights[name], value.const_value = value.const_value, None
            bare.graph.inputs.append(value)
    proto, _ = onnxsim.simplify(ir.to_proto(bare))
    model: ir.Model = ir.from_proto(proto)
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)
    modules = {node.name: module_of(node) for node in traced.model.graph}
    for node in clean(model).graph:
        node.meta[MODULE] = modules.get(node.name, "")
    return model


def _objection(before: ir.Model, after: ir.Model) -> str | None:
    """What speaks against a graph that may well compute the same."""
    if len(after.graph) >= len(before.graph):
        return "it leaves out nothing"
    new = {node.name for node in after.graph} - {node.name for node in before.graph}
    if new:
        return f"it makes {len(new)} nodes that belong to no module"
    if FEATURES in _made(before) - _made(after):
        return f"it leaves out {FEATURES}"
    return None


def _unlike(model: ir.Model, stack: str) -> str | None:
    """One more layer, on trial."""
    try:
        repeat_layers.repeat(model.clone(), stack, repeat_layers.TRACED + 1, _same)
    except Unsupported as error:
        return error.what
    return None


def _same(name: str, old: ir.Value) -> ir.TensorProtocol:
    """A weight of the layer on trial."""
    assert old.const_value is not None, name
    return old.const_value


def _off(traced: Traced, path: Path) -> str | None:
    save(traced.model, path)
    try:
        compare.check(traced, path)
    except ParityFailed as error:
        return error.what
    return None


def _made(model: ir.Model) -> set[str]:
    return {str(value.name) for node in model.graph for value in node.outputs}


def _refused(why: str) -> dict[str, Any]:
    return {"used": False, "why": why}
