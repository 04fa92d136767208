"""The head of a decoder computed where it is asked for: the graph input ``num_logits_to_keep``.

Its name, type and meaning are those that transformers.js passes: int64 without axes, 0 for the logits of all positions,
n for those of the last n (``setNumLogitsToKeep`` in its ``models/modeling_utils.js``). onnxruntime-genai feeds no
inputs that it does not know, so its graph is another one over the same weights, where the number is 1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vlmexport.artifact.onnx.passes.clean import module_of, rename_dimensions
from vlmexport.artifact.onnx.session import NUM_LOGITS as NAME

ROWS = "num_logits"
"""What the axis of the logits is called."""

_TO_THE_END = np.iinfo(np.int64).max


def add_input(model: ir.Model, value: ir.Value) -> None:
    """Let everything behind a value f32 [batch, sequence, …] be computed for the last positions alone, in place."""
    count = ir.Value(name=NAME, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.INT64))
    one, end = _constant(model, "kept.one", 1), _constant(model, "kept.end", _TO_THE_END)
    users = list(value.uses())
    back = ir.node("Neg", [count], name="kept.back")
    start = ir.node("Reshape", [back.outputs[0], one], name="kept.start")
    last = ir.node("Slice", [value, start.outputs[0], end, one], name="kept.rows")
    for node in (back, start, last):
        node.outputs[0].name = str(node.name)
    last.outputs[0].type = value.type
    for user, place in users:
        user.replace_input_with(place, last.outputs[0])
    model.graph.inputs.append(count)
    model.graph.insert_before(min((user for user, _ in users), key=list(model.graph).index), [back, start, last])


def add_to_traced(model: ir.Model) -> None:
    """The same with a traced decoder, in front of the norm that its head reads: norm and head stay neighbours, as
    quantization looks for them. Where something stands between them (a view in GPT-2), in front of the head."""
    head = next(node for node in model.graph if model.graph.outputs[0] in node.outputs)
    read = next(value for value in head.inputs if value is not None and value.producer() is not None)
    made = read.producer()
    assert made is not None
    norm = [node for node in model.graph if module_of(node) == module_of(made)]
    own = {output for node in norm for output in node.outputs}
    given = {value for node in norm for value in node.inputs if value is not None and value not in own}
    streams = [value for value in given if not value.is_initializer()]
    add_input(model, streams[0] if len(streams) == 1 else read)


def last_alone(model: ir.Model) -> None:
    """The input becomes the number 1, in place."""
    count = next(value for value in model.graph.inputs if value.name == NAME)
    model.graph.inputs.remove(count)
    count.const_value = ir.tensor(np.array(1, np.int64), name=NAME)
    model.graph.register_initializer(count)
    logits = model.graph.outputs[0]
    assert logits.shape is not None
    rename_dimensions(model, {"logits": ("batch_size", 1, logits.shape[2])})  # type: ignore[dict-item]


def _constant(model: ir.Model, name: str, number: int) -> ir.Value:
    tensor = ir.tensor(np.array([number], np.int64), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
    model.graph.register_initializer(value)
    return value
