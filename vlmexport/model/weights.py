"""Where the float reference keeps its weights: in memory as float32, or mapped from the file in the file's own type.

A mapped matrix is converted when its layer runs and forgotten afterwards. Widening to float32 is exact and the product
is the same, so the results are too, bit by bit; it costs the time of the conversion at every call. Only a matrix larger
than ``AT_ONCE``, which is the head of a large vocabulary, is multiplied in parts, and equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import psutil
import torch
from torch import nn
from torch.nn import functional

from vlmexport.checkpoint.tensors import LazyTensor

AT_ONCE = 2**26
"""Values of a mapped matrix that are converted together: 256 MB. A head of 262,144 rows would be gigabytes."""


class MappedLinear(nn.Linear):
    """A linear layer whose weight is in the checkpoint's type; input, product and output are float32.

    ``scratch`` is the memory that the layers of a model take turns in: fresh memory for every conversion would take
    the system several times as long as the conversion itself.
    """

    scratch: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        shared = not (torch.compiler.is_compiling() or torch.is_grad_enabled())  # neither a graph nor a gradient may
        if weight.dtype == torch.float32 or not shared:
            weight = cast(nn.Parameter, weight.float())
        elif weight.numel() > self.scratch.numel():
            return self._in_parts(x)
        else:
            weight = self._widened(weight)
        return functional.linear(x, weight, self.bias)

    def _widened(self, weight: torch.Tensor) -> nn.Parameter:
        return cast(nn.Parameter, self.scratch[: weight.numel()].view(weight.shape).copy_(weight))

    def _in_parts(self, x: torch.Tensor) -> torch.Tensor:
        """As many rows of the weight at a time as ``scratch`` holds."""
        rows = max(self.scratch.numel() // self.in_features, 1)
        output = x.new_empty(*x.shape[:-1], self.out_features)
        for start in range(0, self.out_features, rows):
            part = slice(start, start + rows)
            output[..., part] = functional.linear(x, self._widened(self.weight[part]))
        return output if self.bias is None else output + self.bias


def fill(module: nn.Module, tensors: Mapping[str, LazyTensor], resident: bool) -> None:
    """Give a module its parameters.

    Args:
        tensors: by the module's own names, of its shapes.
        resident: all as float32 in memory; else the matrices of linear layers and the token embedding stay mapped.
    """
    mapped = set() if resident else _matrices(module)
    state = {}
    for name, tensor in tensors.items():
        state[name] = tensor.torch() if name in mapped else tensor.torch().float()
    module.load_state_dict(state, assign=True, strict=False)
    scratch = torch.empty(min(max((tensors[name].numel for name in mapped & set(tensors)), default=0), AT_ONCE))
    for layer in module.modules():
        if mapped and type(layer) is nn.Linear:
            layer.__class__ = MappedLinear  # the module's path, and who refers to it, stay as they are
            cast(MappedLinear, layer).scratch = scratch


def _matrices(module: nn.Module) -> set[str]:
    """Names of what is worth mapping."""
    names = {f"{path}.weight" for path, layer in module.named_modules() if type(layer) is nn.Linear}
    if hasattr(module, "get_input_embeddings") and hasattr(module, "lm_head"):
        table = module.get_input_embeddings()  # type: ignore[operator]
        names |= {f"{path}.weight" for path, layer in module.named_modules() if layer is table}
    return names


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    found = int(psutil.virtual_memory().available)
    try:  # a container may be allowed less
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        return min(found, int(limit) - int(used))
    except (OSError, ValueError):
        return found
