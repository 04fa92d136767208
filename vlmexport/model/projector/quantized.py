"""``quantized_fbgemm`` (or ``quantized``) and ``quantized_qnnpack``: a linear layer in torch's own static int8.

Input, weight and output are rounded as torch's default configurations of these engines round them: activations affine,
255 steps to their range or 127 (fbgemm; its kernels saturate at 255 all the same), weights symmetric per output channel
(fbgemm) or as one (qnnpack). The float model computes with rounded values, the traced graph holds QuantizeLinear and
DequantizeLinear in their place, and int8 recipes leave the layer as it is. ``input_range`` and ``output_range`` hold
the least and the largest value seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.model.squares import unchanged

if TYPE_CHECKING:
    import torch
    from torch import nn

PATTERN = r"quantized(?:_(fbgemm|qnnpack))?"
EXAMPLE = "quantized_fbgemm"
token_grid = unchanged
TOLERANCE = 1e-2
"""Float sums in another order put a value near the middle of a step on its other side, now and then."""

ROUNDS = True
"""Its output is one of 256 levels: what differs before it by 1e-7 differs behind it by a step, or not at all."""

_STEPS = {"fbgemm": 127, "qnnpack": 255}


def _module(spec: ProjectorSpec) -> nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional

    from vlmexport.model.fake_quantize import affine, symmetric
    from vlmexport.model.random_weights import Observer

    per_channel = not spec.kind.endswith("qnnpack")
    steps = _STEPS["fbgemm" if per_channel else "qnnpack"]

    class Quantized(Observer):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(spec.out_features, spec.in_features))
            self.bias = nn.Parameter(torch.empty(spec.out_features))
            self.input_range, self.output_range = (nn.Parameter(torch.empty(2)) for _ in range(2))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = self._rounded(features, self.input_range)
            y = functional.linear(x, symmetric(self.weight, per_channel), self.bias)
            return self._rounded(y, self.output_range)

        def _rounded(self, x: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
            if self.training:
                span.data.copy_(torch.stack(x.aminmax()))
            return affine(x, span, steps)

    with torch.device("meta"):
        return Quantized()


def build(spec: ProjectorSpec) -> nn.Module:
    """Names: ``weight``, ``bias``, ``input_range``, ``output_range``."""
    return _module(spec)


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    linear = {"weight": (spec.out_features, spec.in_features), "bias": (spec.out_features,)}
    return linear | {"input_range": (2,), "output_range": (2,)}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd has no linear projector, and no static int8."""
    raise Unsupported("libmtmd cannot hold a quantized linear projector", HYBRID)
