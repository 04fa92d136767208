"""Attention of a traced transformer as one operator of ONNX Runtime, with the biases of query, key and value.

Attention products stay float whatever the weights are, and as one operator they neither write the probabilities to
memory nor transpose. It is done after quantization, which looks at none of these operators. Residual sums and norms
stay apart: ``SkipLayerNormalization`` takes 1.7 times as long as what it replaces (ViT-L on two x86 cores).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module

import onnx_ir as ir
import onnxscript
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from vlmexport.artifact.onnx.session import FEATURES
from vlmexport.errors import MissingDependency

_BETWEEN = "ai.onnxruntime._fusion"
"""Domain of operators that the rules make for each other."""

_RULES = (
    ("sdpa", "fuse_sdpa"), ("mha", "fuse_mha1"), ("mha", "fuse_mha2"), ("mha_bias", "fuse_mha_bias"),
    ("sdpa_via_mha", "replace_sdpa_by_mha"),
)  # fmt: skip
"""Module in ``onnxscript.rewriter.ort_fusions``, which nobody promises to keep, and rule, in their order."""


def fuse(model: ir.Model) -> dict[str, int]:
    """Fuse in place.

    Guarantees: the same function up to float rounding, and the same names of weight products; a graph that holds none
    of the patterns is left as it is.

    Returns:
        how often each of ONNX Runtime's own operators stands in the graph.

    Raises:
        MissingDependency: an onnxscript without these rules.
    """
    for rule in _rules():
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


def _rules() -> list[Callable[[ir.Model], object]]:
    try:
        return [getattr(import_module(f"onnxscript.rewriter.ort_fusions.{module}"), rule) for module, rule in _RULES]
    except (ImportError, AttributeError) as error:
        raise MissingDependency(
            f"onnxscript {onnxscript.__version__} has no rules that fuse attention ({error})",
            "install the version that vlmexport names, or set onnx.fuse = false in the recipe",
        ) from error
