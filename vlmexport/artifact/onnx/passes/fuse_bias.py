"""The bias of an int8 pointwise convolution as part of ONNX Runtime's integer product, where a GELU follows.

ONNX Runtime makes one operator of the bias and the GELU instead, which takes 1.6 times as long as a GELU; in the
product a bias costs nothing. It is done after quantization, for U8 inputs alone: a product of S8 inputs has no fast
kernel on x86 under this name.
"""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "com.microsoft"
OPERATOR = "MatMulIntegerToFloat"
"""Inputs: levels, int8 weight, scale of either, zero point of either, bias."""


def fuse(model: ir.Model) -> int:
    """Fuse in place; how many there were.

    Guarantees: the same values, and the same names of weight products.
    """
    found = 0
    for gelu in [node for node in model.graph if node.op_type == "Gelu"]:
        add = _behind(_behind(gelu, "Transpose"), "Add")
        product = _behind(add, "MatMul")
        if add is None or product is None:
            continue
        operands = _operands(product)
        if operands is None:
            continue
        fused = ir.node(OPERATOR, [*operands, add.inputs[1]], name=product.name, domain=DOMAIN)
        add.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        replaced = [add, product, *_taken_back(product)]
        ir.convenience.replace_nodes_and_values(model.graph, add, replaced, [fused], add.outputs, fused.outputs)
        found += 1
    if found:
        model.opset_imports.setdefault(DOMAIN, 1)
    return found


def _behind(node: ir.Node | None, kind: str) -> ir.Node | None:
    """The node of a kind that makes a node's first input, for that node alone."""
    value = node.inputs[0] if node is not None else None
    made = value.producer() if value is not None else None
    return made if value is not None and made is not None and made.op_type == kind and len(value.uses()) == 1 else None


def _operands(product: ir.Node) -> list[ir.Value | None] | None:
    """The first six inputs of the integer product; None where a product is none, or its input is S8."""
    back = _taken_back(product)
    if len(back) != 2:
        return None
    (levels, step, zero), (weight, steps, zeros) = (node.inputs for node in back)
    if zero is None or zero.dtype != ir.DataType.UINT8:
        return None
    return [levels, weight, step, steps, zero, zeros]


def _taken_back(product: ir.Node) -> list[ir.Node]:
    """Those of its inputs' makers that take integers back to float for it alone."""
    makers = [value.producer() for value in product.inputs if value is not None and len(value.uses()) == 1]
    return [node for node in makers if node is not None and node.op_type == "DequantizeLinear"]
