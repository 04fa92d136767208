"""Weights of linear layers as float16, read and turned when they are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir
import torch

from vlmexport.artifact.onnx.passes.attach_weights import rows
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import Unsupported


def half_weight(sources: Sequence[LazyTensor], name: str) -> ir.LazyTensor:
    """f16 [columns, outputs]: the weights [outputs, columns] of layers that read one input, side by side."""
    shape = ir.Shape((sources[0].columns, sum(source.shape[0] for source in sources)))
    return ir.LazyTensor(partial(_read, sources), ir.DataType.FLOAT16, shape, name=name)


def _read(sources: Sequence[LazyTensor]) -> ir.TensorProtocol:
    """Round to nearest; a float16 checkpoint is what it was.

    Raises:
        CheckpointError: a value is NaN or infinite.
        Unsupported: a value does not fit into float16.
    """
    values = torch.empty((sources[0].columns, sum(source.shape[0] for source in sources)), dtype=torch.float16)
    done = 0
    for source in sources:
        for first, block in rows(source):
            half = torch.from_numpy(block).half()
            if not half.isfinite().all():
                raise Unsupported(
                    f"{source.path}: tensor {source.name} holds values so large that float16 cannot hold them",
                    "pass --decoder fp32, int8 or int4",
                )
            values[:, done + first : done + first + len(block)] = half.t()
        done += source.shape[0]
    return ir.tensor(values.numpy())
