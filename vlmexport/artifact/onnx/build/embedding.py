"""Token embeddings, and their merge with image features, as graphs over one table. A few nodes each: built, not traced,
and compared with PyTorch like the rest."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tape
from torch import nn

from vlmexport.artifact.onnx.trace.components import OPSET, Traced

TABLE = "table"
_IDS = ("batch_size", "sequence_length")


class Embedding(nn.Module):
    """Token ids → embeddings; ids from the vocabulary's size on (``<image>``) get zeros.

    The table is float16 where that holds every value of it; rows become float32 once taken.

    Args:
        table: [vocabulary, hidden] of any float type.
        rows: rows to fill it up to.
    """

    def __init__(self, table: torch.Tensor, rows: int) -> None:
        super().__init__()
        half = table.half()
        exact = table.dtype == torch.float16 or bool((half.to(table.dtype) == table).all())
        padded = nn.functional.pad(half if exact else table.float(), (0, 0, 0, rows - table.shape[0]))
        self.table = nn.Parameter(padded, requires_grad=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(input_ids, self.table).float()


class Merge(nn.Module):
    """Token ids and image features → embeddings, the features in place of ``<image>`` (what onnxruntime-genai runs)."""

    def __init__(self, embedding: Embedding, image_token: int) -> None:
        super().__init__()
        self.embedding, self.image_token = embedding, image_token

    def forward(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.embedding(input_ids)
        embeds[input_ids == self.image_token] = image_features
        return embeds


def alone(module: Embedding) -> Traced:
    """``input_ids`` [batch_size, sequence_length] → ``inputs_embeds``."""
    op = tape.Tape()
    ids = _value("input_ids", ir.DataType.INT64, _IDS)
    model = _model(op, [ids], _rows(op, ids, module), module)
    last = module.table.shape[0] - 1
    return Traced("embed_tokens", model, module, ((torch.tensor([[1]]),), (torch.tensor([[3, last], [0, 2]]),)))


def merged(module: Embedding, image_token: int) -> Traced:
    """``input_ids`` [batch_size, sequence_length], ``image_features`` [num_image_tokens, hidden] → embeddings."""
    op = tape.Tape()
    hidden = module.table.shape[1]
    ids = _value("input_ids", ir.DataType.INT64, _IDS)
    features = _value("image_features", ir.DataType.FLOAT, ("num_image_tokens", hidden))
    is_image = op.op("Equal", [ids, _constant(op, "image_token", np.array(image_token, np.int64))], name="is_image")
    # ScatterND takes the places of all images at once, and none while decoding.
    places = op.op("Transpose", [op.op("NonZero", [is_image], name="places")], {"perm": [1, 0]}, name="places_by_row")
    result = op.op("ScatterND", [_rows(op, ids, module), places, features], name="merged")
    model = _model(op, [ids, features], result, module)
    random = torch.Generator().manual_seed(2)
    several = torch.tensor([[1, image_token, image_token, 4], [image_token, 2, 3, 1]])
    probes = (
        (torch.tensor([[1]]), torch.empty(0, hidden)),
        (several[:1], torch.randn(2, hidden, generator=random)),
        (several, torch.randn(3, hidden, generator=random)),
    )
    return Traced("embedding", model, Merge(module, image_token), probes)


def _rows(op: tape.Tape, ids: ir.Value, module: Embedding) -> ir.Value:
    rows = op.op("Gather", [_constant(op, TABLE, module.table.numpy()), ids], {"axis": 0}, name="rows")
    if module.table.dtype == torch.float32:
        return rows
    return op.op("Cast", [rows], {"to": ir.DataType.FLOAT.value}, name="rows_float")


def _model(op: tape.Tape, inputs: list[ir.Value], result: ir.Value, module: Embedding) -> ir.Model:
    result.name, result.type = "inputs_embeds", ir.TensorType(ir.DataType.FLOAT)
    result.shape = ir.Shape((*_IDS, module.table.shape[1]))
    graph = ir.Graph(
        inputs, [result], nodes=op.nodes, initializers=op.initializers, opset_imports={"": OPSET}, name="graph"
    )
    return ir.Model(graph, ir_version=10, producer_name="vlmexport")


def _constant(op: tape.Tape, name: str, array: np.ndarray) -> ir.Value:
    return op.initializer(ir.tensor(array, name=name), name)


def _value(name: str, dtype: ir.DataType, shape: tuple[str | int, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
