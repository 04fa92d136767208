"""What no library promises to keep is looked for, and missed in one line."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from vlmexport.artifact.onnx.passes import fuse_attention
from vlmexport.artifact.onnx.trace.components import trace_module
from vlmexport.errors import MissingDependency, Unsupported


def test_a_torch_that_names_no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmexport.artifact.onnx.passes.clean._SCOPES", "pkg.torch.onnx.other")
    with pytest.raises(Unsupported, match=r"torch .* does not say which module"):
        trace_module(torch.nn.Linear(2, 2), (torch.zeros(3, 2),), ({0: "n"},), ["x"], ["y"])


def test_an_onnxscript_without_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_attention, "_RULES", (("sdpa", "gone"),))
    with pytest.raises(MissingDependency, match=r"onnxscript .* has no rules that fuse attention") as caught:
        fuse_attention.fuse(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
    assert caught.value.exit_code == 4
