"""Sessions as users run them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vlmexport.artifact.onnx.session import open_session, run, with_outputs
from vlmexport.errors import CheckpointError

SIDE, ROWS = 512, 1 << 23
LONG = "/model/" + "layers.0/" * 40 + "MatMul_output_0"
"""A name of more than 127 bytes, as deep graphs have them."""


def product(path: Path) -> Path:
    """x · w + w, whose sum is the output."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "sum")}
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], np.arange(4.0))
    nodes = [helper.make_node("MatMul", ["x", "w"], [LONG]), helper.make_node("Add", [LONG, "w"], ["sum"])]
    graph = helper.make_graph(nodes, "product", [values["x"]], [values["sum"]], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_values_inside_become_outputs(tmp_path: Path) -> None:
    """The graph is otherwise what it was, as the package onnx reads it."""
    path = product(tmp_path / "product.onnx")
    graph = with_outputs(path, [LONG])
    found = run(open_session(path, graph=graph), {"x": np.eye(2, dtype=np.float32)})
    np.testing.assert_array_equal(found[LONG], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found["sum"], [[0, 2], [4, 6]])
    before, after = onnx.load(path), onnx.load_from_string(graph)
    assert [value.name for value in after.graph.output] == ["sum", LONG]
    del after.graph.output[1]
    assert before == after


RUNS = """
import sys
import numpy as np
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.workers.memory import peak_bytes

session, x = open_session(sys.argv[1], threads=1), np.zeros((int(sys.argv[2]), 1), np.float32)
for _ in range(3):
    run(session, {"x": x})
    print(peak_bytes())
"""


def test_runs_of_one_size_take_the_memory_of_one(tmp_path: Path) -> None:
    """As the views of a picture do. With ONNX Runtime's default the second takes all that the first did once more."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1]) for name in "xy"]
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Sin", ["x"], ["s"]),
             helper.make_node("Mul", ["e", "s"], ["m"]), helper.make_node("ReduceSum", ["m"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "values", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    command = [sys.executable, "-c", RUNS, str(tmp_path / "g.onnx"), str(ROWS)]
    first, *later = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert max(later) < first + ROWS  # a quarter of one value


def test_a_value_that_is_not_there(tmp_path: Path) -> None:
    path = product(tmp_path / "product.onnx")
    with pytest.raises(CheckpointError, match="export the bundle again"):
        open_session(path, graph=with_outputs(path, ["nothing"]))
    with pytest.raises(CheckpointError, match=r"none\.onnx cannot be opened"):
        with_outputs(tmp_path / "none.onnx", [LONG])


def test_threads_do_not_wait_busily_between_runs(tmp_path: Path) -> None:
    """Those of one graph would take the time of the next. With ONNX Runtime's default they go on for some 40 ms."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in "xy"}
    weight = helper.make_tensor("w", TensorProto.FLOAT, [SIDE, SIDE], np.ones((SIDE, SIDE), np.float32))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [values["x"]], [values["y"]], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "product.onnx")
    session = open_session(tmp_path / "product.onnx", threads=2)
    spent = []
    for _ in range(3):
        run(session, {"x": np.ones((SIDE, SIDE), np.float32)})
        start = time.process_time()
        time.sleep(0.1)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.005
