"""Attention of a traced transformer as one operator of ONNX Runtime, with the biases of query, key and value.

Attention products stay float whatever the weights are, and as one operator they neither write the probabilities to
memory nor transpose. It is done after quantization, which looks at none of these operators. Residual sums and norms
stay apart: ``SkipLayerNormalization`` takes 1.7 times as long as what it replaces (ViT-L on two x86 cores).
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass
from onnxscript.rewriter.ort_fusions.mha import fuse_mha1, fuse_mha2
from onnxscript.rewriter.ort_fusions.mha_bias import fuse_mha_bias
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa
from onnxscript.rewriter.ort_fusions.sdpa_via_mha import replace_sdpa_by_mha

from vlmexport.artifact.trace import FEATURES

_BETWEEN = "ai.onnxruntime._fusion"
"""Domain of operators that the rules make for each other."""


def fuse(model: ir.Model) -> dict[str, int]:
    """Fuse in place.

    Guarantees: the same function up to float rounding, and the same names of weight products; a graph that holds none
    of the patterns is left as it is.

    Returns:
        how often each of ONNX Runtime's own operators stands in the graph.
    """
    for rule in (fuse_sdpa, fuse_mha1, fuse_mha2, fuse_mha_bias, replace_sdpa_by_mha):
        rule(model)
    # What makes the features stays where only a check reads them: pooling projectors take the encoder's map before.
    watched = [value for node in model.graph for value in node.outputs if value.name == FEATURES]
    model.graph.outputs.extend(watched)
    RemoveUnusedNodesPass()(model)
    for _ in watched:
        model.graph.outputs.pop()
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    model.opset_imports.pop(_BETWEEN, None)
    return dict(Counter(node.op_type for node in model.graph if node.domain == "com.microsoft"))
