"""Bias correction: int8 weights shift the mean of a layer's output, and the layer's bias takes the shift back.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2, with the means of the calibration set.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from vlmexport.quantize.products import Product
from vlmexport.quantize.ranges import F32, F64, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme


def bias_of(product: Product) -> ir.Value | None:
    """The constant f32 [outputs] that is added to a product; None where it has none, or one that others read too."""
    node = product.node
    found = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
    users = [user for user, _ in node.outputs[0].uses()]
    if node.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
        found = next((value for value in users[0].inputs if value is not node.outputs[0]), None)
    if found is None or found.const_value is None or len(found.uses()) != 1:
        return None
    return found if tuple(found.const_value.shape) == (product.shape[product.output_axis],) else None


def shift(weight: F32, mean: F64, scheme: Scheme) -> F64:
    """f64 [outputs]: what rounding adds to the mean output of f32 [columns, outputs], ``mean`` f64 [columns] its
    input's."""
    scales = weight_scales(weight, 1, scheme)
    found: F64 = mean @ (quantize_weight(weight, scales, 1, scheme) * scales - weight).astype(np.float64)
    return found


def correct(product: Product, mean: F64, scheme: Scheme) -> bool:
    """Take the shift of a matrix product's int8 weight out of its bias, in place; False where there is no bias for it.

    Both are read when the bias is written. Guarantees: nothing but the bias changes.
    """
    bias, weight = bias_of(product), product.weight.const_value
    old = bias.const_value if bias is not None else None
    if bias is None or old is None or weight is None or product.node.op_type != "MatMul":
        return False
    make = _corrected(old, weight, mean, scheme)
    bias.const_value = ir.LazyTensor(
        make, ir.DataType.FLOAT, ir.Shape([product.shape[product.output_axis]]), name=bias.name
    )
    return True


def _corrected(
    bias: ir.TensorProtocol, weight: ir.TensorProtocol, mean: F64, scheme: Scheme
) -> Callable[[], ir.TensorProtocol]:
    def make() -> ir.TensorProtocol:
        moved = shift(np.asarray(weight.numpy(), np.float32), mean, scheme)
        return ir.tensor((np.asarray(bias.numpy(), np.float64) - moved).astype(np.float32))

    return make
