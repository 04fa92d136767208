"""Weights of a graph that stay in the checkpoint until they are written: memory does not grow with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from vlmexport.checkpoint.tensors import DTYPES, LazyTensor
from vlmexport.errors import CheckpointError, VlmExportError
from vlmexport.model import plugins
from vlmexport.quantize.floats import refuse_not_finite, widen
from vlmexport.source.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_VALUES = 1 << 18
"""Values of a block: a megabyte as f32, which a core's own cache holds while it is worked on."""

_HEAD = "language.lm_head.weight"


def find(checkpoint: Checkpoint, name: str) -> LazyTensor:
    """The checkpoint's tensor of a parameter path of ``model.VLM``; a tied head is the embedding.

    Raises:
        CheckpointError: there is none.
    """
    component, _, rest = name.partition(".")
    found = checkpoint.tensors[component].get(rest)
    if found is not None:
        return found
    if name == _HEAD and checkpoint.spec.language.tie_word_embeddings:
        return plugins.token_table(checkpoint)
    raise CheckpointError(f"{checkpoint.path} holds no tensor for {name}", "use the published checkpoint")


def rows(tensor: LazyTensor) -> Iterator[tuple[int, F32]]:
    """Index of the first row, and f32 [rows, columns]: a few rows at a time, in memory that is used again.

    Raises:
        CheckpointError: a value is not finite.
    """
    columns, size = tensor.columns, DTYPES[tensor.dtype]
    count = tensor.numel // columns
    step = min(count, max(1, _VALUES // columns))
    raw, values = np.empty(step * columns * size, np.uint8), np.empty(step * columns, np.float32)
    for first in range(0, count, step):
        taken = min(step, count - first) * columns
        block = tensor.read_into(raw[: taken * size], first * columns)
        refuse_not_finite(tensor, block, first * columns)
        yield first, widen(block, tensor.dtype, values[:taken]).reshape(-1, columns)


def read(tensor: LazyTensor) -> F32:
    """f32 values of the tensor's shape.

    Raises:
        CheckpointError: one of them is not finite.
    """
    values = np.empty((tensor.numel // tensor.columns, tensor.columns), np.float32)
    for first, block in rows(tensor):
        values[first : first + len(block)] = block
    return values.reshape(tensor.shape)


def read_raw(tensor: LazyTensor) -> U8:
    """Its bytes as they are, all at once: a few long steps share the interpreter with tracing better than many short.

    Raises:
        CheckpointError: a value is not finite.
    """
    raw = tensor.read_into(np.empty(tensor.nbytes, np.uint8))
    refuse_not_finite(tensor, raw)
    return raw


class CheckpointWeight(ir.LazyTensor):
    """A tensor of the checkpoint as a float32 tensor of a graph, read each time it is asked for."""

    def __init__(self, source: LazyTensor, transposed: bool = False) -> None:
        self.source, self.transposed = source, transposed
        shape = source.shape[::-1] if transposed else source.shape
        super().__init__(self._load, ir.DataType.FLOAT, ir.Shape(shape), name=source.name)

    def _load(self) -> ir.TensorProtocol:
        values = read(self.source)
        if self.transposed:
            values = torch.from_numpy(values).t().contiguous().numpy()
        return ir.tensor(values, name=self.source.name)


def orientations(model: ir.Model, traced: dict[str, torch.Tensor]) -> dict[str, bool]:
    """Which parameters a graph holds under their own names, and whether transposed, which a comparison tells.

    Args:
        traced: parameters that the graph was traced with, by their path in ``model.VLM``.
    """
    return {
        name: _is_transposed(value.const_value.numpy(), traced[name].numpy(), name)
        for name, value in model.graph.initializers.items()
        if name in traced and value.const_value is not None
    }


def attach(model: ir.Model, transposed: dict[str, bool], checkpoint: Checkpoint) -> None:
    """Put in the checkpoint's tensors as the values of parameters; what is no parameter stays.

    Args:
        transposed: what ``orientations`` gave.

    Raises:
        CheckpointError: the checkpoint lacks one of them.
    """
    for name, turned in transposed.items():
        value = model.graph.initializers[name]
        value.const_value = CheckpointWeight(find(checkpoint, name), turned)
        value.shape = value.const_value.shape


def next_layer(checkpoint: Checkpoint) -> Callable[[str, ir.Value], ir.TensorProtocol]:
    """What ``layers.repeat`` asks for: the weight of a new layer, held as the traced layer holds its own."""

    def weight(name: str, old: ir.Value) -> ir.TensorProtocol:
        assert isinstance(old.const_value, CheckpointWeight)
        return CheckpointWeight(find(checkpoint, name), old.const_value.transposed)

    return weight


def _is_transposed(graph: F32, parameter: F32, name: str) -> bool:
    if np.array_equal(graph, parameter):
        return False
    if np.array_equal(graph, parameter.T):
        return True
    raise VlmExportError(f"the traced graph holds another {name} than the model", "report it with the config.json")
