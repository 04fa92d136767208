"""What belongs to the whole process does not change while a thread traces beside another one."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import initializer_deduplication

from vlmexport.artifact.onnx.trace.components import _batch_norms_kept, trace_module
from vlmexport.artifact.onnx.trace.silent import SILENT


def state() -> tuple[Any, ...]:
    return sys.stdout, sys.stderr, list(warnings.filters), logging.getLogger(initializer_deduplication.__name__).level


class Looks(torch.nn.Linear):
    """Sees the process's state whenever it is run, which tracing does."""

    def __init__(self, seen: list[tuple[Any, ...]]) -> None:
        super().__init__(2, 2)
        self._seen = seen

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self._seen.append(state())
        return super().forward(values)


def test_tracing_within_changes_nothing() -> None:
    before, seen = state(), list[tuple[Any, ...]]()
    with SILENT:
        outer = state()
        trace_module(Looks(seen), (torch.zeros(3, 2),), ({0: "n"},), ["x"], ["y"])
        assert state() == outer
    assert seen
    assert all(one[0] is before[0] and one[1] is before[1] for one in seen)
    assert all(one[2][-3:] == outer[2][-3:] for one in seen)
    assert state() == before


def test_side_by_side_the_last_one_takes_it_back() -> None:
    before, entered, leave = state(), threading.Event(), threading.Event()

    def other() -> None:
        with SILENT:
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with pytest.raises(KeyError), SILENT:
        silent = state()
        thread.start()
        assert entered.wait(30)
        assert state() == silent
        raise KeyError
    assert state() == silent
    leave.set()
    thread.join()
    assert state() == before


def test_inputs_are_taken_back_where_the_optimiser_fails() -> None:
    names = ("x", "scale", "bias", "mean", "variance")
    values = [ir.Value(name=name) for name in names]
    node = ir.node("BatchNormalization", values)
    graph = ir.Graph(values[:1], node.outputs, nodes=[node], name="g")
    with pytest.raises(KeyError), _batch_norms_kept(graph):
        assert len(graph.inputs) == 5
        raise KeyError
    assert [value.name for value in graph.inputs] == ["x"]
